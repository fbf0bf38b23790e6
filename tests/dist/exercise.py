"""Puts a server through what servers do all day, so that a build that counts has something to count.

usage: exercise.py TOLLGATE_BINARY DIRECTORY

The binary must have been built with -Cprofile-generate; its counts come to DIRECTORY as *.profraw. A second server of
the same binary, which makes answers up, is the model. Each way of guarding gets its turn: usage on disk, usage that
survives the process, guardrails off; and so do Redis and Postgres, which it starts itself.
"""

import atexit
import contextlib
import glob
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading

PLENTY = "1000000000000"
CONNECTIONS = 24
# As one sees them at a gateway: nearly all are chats that are answered whole.
WHOLE, STREAMS, OTHERS, LARGE, REFUSED, STRANGERS = 12_000, 600, 600, 400, 4_000, 2_000
MESSAGES = [
    {"role": "system", "content": "You answer in one short sentence."},
    {"role": "user", "content": "Why is usage counted before the model runs, and not after?"},
]
CHAT = {"model": "gpt-4o-mini", "messages": MESSAGES, "max_tokens": 64}


class Server:
    def __init__(self, binary: str, counts: pathlib.Path, data: pathlib.Path, **settings: str) -> None:
        self.binary = binary
        self.environment = {
            "PATH": os.environ["PATH"],
            "LLVM_PROFILE_FILE": str(counts / "%m.profraw"),
            "TOLLGATE_DATA_DIR": str(data),
            "TOLLGATE_LISTEN": "127.0.0.1:0",
            **settings,
        }
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [self.binary, "serve"], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        # Where something fails it ends with this program; of one that has ended this asks nothing.
        atexit.register(self.process.kill)
        line = self.process.stdout.readline()
        if "http://" not in line:
            raise SystemExit(f"the server printed {line!r} instead of its address")
        self.port = int(line.strip().rsplit(":", 1)[1])
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def stop(self) -> None:
        """Lets it end by itself: counts are written at the end of a process."""
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(timeout=120) != 0:
            raise SystemExit(f"the server ended with {self.process.returncode}")

    def cli(self, *arguments: str) -> dict:
        done = subprocess.run(
            [self.binary, *arguments, "--output", "json"],
            env=self.environment, capture_output=True, text=True, check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"tollgate {' '.join(arguments)}: {done.stderr}")
        return json.loads(done.stdout or "null")

    def make_key(self, plan: str, messages: str) -> str:
        self.cli("plan", "create", plan, "--name", plan)
        for feature, hard in (("messages", messages), ("input_tokens", PLENTY), ("output_tokens", PLENTY)):
            self.cli("plan", "feature", "set", plan, feature, "--hard", hard)
        self.cli("tenant", "create", plan, "--name", plan, "--plan", plan)
        return self.cli("key", "create", plan, "--name", "exercise")["key"]

    def send(self, many: int, key: str, path: str, body: dict, status: int) -> None:
        """Sends `body` so many times over some connections; each must be answered with `status`."""
        text = json.dumps(body).encode()
        # In one piece: who is turned away by his key is not waited for to send the rest.
        request = (
            f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
        ).encode() + text
        wrong: list = []

        def client() -> None:
            with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
                for _ in range(many // CONNECTIONS):
                    connection.sendall(request)
                    answer = http.client.HTTPResponse(connection, method="POST")
                    answer.begin()
                    content = answer.read()
                    if answer.status != status:
                        wrong.append((answer.status, content[:300]))
                        return

        clients = [threading.Thread(target=client) for _ in range(CONNECTIONS)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        if wrong:
            raise SystemExit(f"POST {path} was answered {wrong[0]} instead of {status}")

    def get(self, path: str, key: str = "") -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path, headers={"authorization": f"Bearer {key}"} if key else {})
        connection.getresponse().read()
        connection.close()


def program(name: str) -> str:
    """Debian keeps Postgres' programs where no PATH looks."""
    found = shutil.which(name) or next(iter(sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), reverse=True)), None)
    if not found:
        raise SystemExit(f"{name} is missing: make deps installs it")
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def running(command: list, port: int, **options: object):
    """A server that is ready once its port takes connections, and is ended afterwards."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options)
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} did not start: {process.stderr.read().decode()}")
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


@contextlib.contextmanager
def redis(directory: pathlib.Path):
    port = free_port()
    command = [program("redis-server"), "--port", str(port), "--dir", str(directory), "--save", "", "--appendonly", "no"]
    with running(command, port):
        yield f"redis://127.0.0.1:{port}"


@contextlib.contextmanager
def postgres(directory: pathlib.Path):
    data, port = directory / "postgres", free_port()
    data.mkdir()
    # It refuses root.
    options: dict = {}
    if os.geteuid() == 0:
        options = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        directory.chmod(0o755)
        shutil.chown(data, "nobody", "nogroup")
    init = [program("initdb"), "-D", str(data), "-U", "tollgate", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"]
    subprocess.run(init, check=True, stdout=subprocess.DEVNULL, cwd="/", **options)
    command = [program("postgres"), "-D", str(data), "-p", str(port), "-k", str(data), "-h", "127.0.0.1"]
    with running(command, port, cwd="/", **options):
        yield f"postgres://tollgate@127.0.0.1:{port}/postgres"


def exercise(server: Server) -> None:
    busy, spent = server.make_key("plenty", PLENTY), server.make_key("none", "0")
    is_guarded = server.environment["ENABLE_USAGE_GUARDRAILS"] == "true"
    chats = "/v1/chat/completions"
    server.send(WHOLE, busy, chats, CHAT, 200)
    server.send(STREAMS, busy, chats, {**CHAT, "stream": True}, 200)
    server.send(OTHERS, busy, "/v1/responses", {"model": "gpt-4o-mini", "input": "How much is left?"}, 200)
    server.send(OTHERS, busy, "/v1/embeddings", {"model": "text-embedding-3-small", "input": "a text"}, 200)
    long = {"role": "user", "content": "All that was said before, word by word. " * 1_600}
    server.send(LARGE, busy, chats, {**CHAT, "messages": [*MESSAGES, long]}, 200)
    if is_guarded:
        server.send(OTHERS, busy, "/api/v1/chat", {"message": "How much is left?"}, 200)
        server.send(REFUSED, spent, chats, CHAT, 429)
    server.send(STRANGERS, "tg_" + 43 * "A", chats, CHAT, 401)
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/admin"):
        server.get(path)
    for path in ("/v1/models", "/api/v1/usage", "/api/v1/usage/totals"):
        server.get(path, busy)
    server.cli("usage", "show", "--tenant", "plenty")


def main(binary: str, counts: pathlib.Path) -> None:
    counts.mkdir(parents=True, exist_ok=True)
    for old in counts.glob("*.profraw"):
        old.unlink()
    with tempfile.TemporaryDirectory() as directory:
        below = pathlib.Path(directory)
        model = Server(
            binary, counts, below / "model", TOLLGATE_PROVIDER="simulated", ENABLE_USAGE_GUARDRAILS="false",
        )
        of_model = model.make_key("model", PLENTY)
        def put_through(name: str, **settings: str) -> None:
            server = Server(
                binary, counts, below / name, TOLLGATE_PROVIDER="openai", OPENAI_API_KEY=of_model,
                OPENAI_BASE_URL=f"http://127.0.0.1:{model.port}/v1",
                **{"ENABLE_USAGE_GUARDRAILS": "true", **settings},
            )
            exercise(server)
            server.stop()
            server.start()
            server.stop()

        put_through("full", USAGE_DURABILITY="full")
        put_through("process", USAGE_DURABILITY="process")
        put_through("bare", ENABLE_USAGE_GUARDRAILS="false")
        with postgres(below) as database, redis(below) as counters:
            put_through(
                "replica", DATABASE_URL=database,
                USAGE_GUARDRAIL_CACHE_BACKEND="redis", USAGE_GUARDRAIL_REDIS_URL=counters,
            )
        model.stop()
    found = sorted(counts.glob("*.profraw"))
    if not found:
        raise SystemExit(f"{binary} counted nothing; was it built with -Cprofile-generate?")
    print(f"counted: {', '.join(f'{file.name} ({file.stat().st_size:,} bytes)' for file in found)}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(sys.argv[1], pathlib.Path(sys.argv[2]))
