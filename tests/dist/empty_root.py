"""The static binary in a root directory that holds nothing else: it must answer through TLS and a host name.

usage: empty_root.py TOLLGATE_BINARY

Starts an HTTPS upstream with a certificate of its own, and the binary in a chroot with that certificate as its only
root of trust. As an ordinary user the chroot is made in a user namespace (unshare -r).
"""

import http.server
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import urllib.request


class Upstream(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.answer({
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
        })

    def answer(self, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass


def main(binary: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        shutil.copy(binary, os.path.join(root, "tollgate"))
        port = serve_tls(root)
        environment = {
            "SSL_CERT_FILE": "/roots.pem",
            "TOLLGATE_DATA_DIR": "/data",
            "TOLLGATE_LISTEN": "127.0.0.1:0",
            "ENABLE_USAGE_GUARDRAILS": "true",
            "OPENAI_BASE_URL": f"https://localhost:{port}/v1",
        }
        prefix = ["chroot", root] if os.geteuid() == 0 else ["unshare", "-r", "chroot", root]

        def command(*arguments: str) -> list:
            return [*prefix, "/tollgate", *arguments]

        path = {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
        server = subprocess.Popen(
            command("serve"), env=environment | path, stdout=subprocess.PIPE, text=True
        )
        try:
            base = server.stdout.readline().split()[-1]

            def tollgate(*arguments: str):
                run = subprocess.run(
                    command(*arguments, "--output", "json"), env=environment | path, capture_output=True, text=True
                )
                assert run.returncode == 0, f"{arguments}: {run.stderr}"
                return json.loads(run.stdout)

            tollgate("plan", "create", "free", "--name", "Free", "--preset", "free")
            tollgate("tenant", "create", "acme", "--name", "Acme", "--plan", "free")
            key = tollgate("key", "create", "acme", "--name", "test")["key"]
            for path_of, body in [
                ("/api/v1/chat", {"message": "hi"}),
                ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
            ]:
                request = urllib.request.Request(
                    base + path_of, json.dumps(body).encode(), {"Authorization": f"Bearer {key}"}
                )
                assert b"hello" in urllib.request.urlopen(request).read()
                print(f"ok    {path_of} through TLS and a host name, in an empty root")
            used = tollgate("usage", "show", "--tenant", "acme")["features"][0]["used"]
            assert used == 2, used
        finally:
            server.terminate()
            assert server.wait(40) == 0
    print("ok    stopped cleanly")


def serve_tls(root: str) -> int:
    certificate, key = os.path.join(root, "roots.pem"), os.path.join(tempfile.mkdtemp(), "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"],
        check=True, capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]))
