"""Runs the clients of docs/guide/clients.md as they stand there, against `tollgate serve --dev`: served, then refused.

The receiver's lines of docs/guide/notices.md are run as well.

Usage: run.py TOLLGATE_BINARY NODE_DIRECTORY   (a directory with node_modules; python packages are this interpreter's)
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

from standardwebhooks.webhooks import Webhook

ROOT = Path(__file__).parent.parent.parent
RUNNERS = {".py": [sys.executable], ".mjs": ["node"]}
# How many messages each client sends while it is served.
MESSAGES = {"chat.py": 2, "headers.py": 1, "chat.mjs": 2, "langchain_chat.py": 2, "ai_sdk.mjs": 2}


def clients() -> dict[str, str]:
    """The blocks marked `run by: make test-clients` with the name of a file."""
    page = (ROOT / "docs/guide/clients.md").read_text()
    block = r"<!-- run by: make test-clients -->\n<!-- file: (\S+) -->\n```\w+\n(.*?)```"
    return dict(re.findall(block, page, re.DOTALL))


def main(binary: str, node_directory: str) -> None:
    found = clients()
    assert found.keys() == MESSAGES.keys(), f"the page has {list(found)}, this test knows {list(MESSAGES)}"
    with tempfile.TemporaryDirectory() as data_dir:
        settings = {"PATH": os.environ["PATH"], "TOLLGATE_DATA_DIR": data_dir, "TOLLGATE_LISTEN": "127.0.0.1:0"}
        server = subprocess.Popen(
            [binary, "serve", "--dev"], env=settings, cwd=data_dir, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            address, key = started(server)

            def tollgate(*arguments: str):
                command = [binary, *arguments, "--output", "json"]
                return json.loads(subprocess.check_output(command, env=settings, cwd=data_dir))

            def used() -> int:
                features = tollgate("usage", "show", "--tenant", "demo")["features"]
                return next(item["used"] for item in features if item["feature_key"] == "messages")

            def run(name: str) -> str:
                # Beside node_modules, where the language looks for packages.
                path = Path(node_directory) / name
                path.write_text(found[name].replace("127.0.0.1:8080", address))
                environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "TENANT_KEY": key}
                done = subprocess.run(
                    [*RUNNERS[path.suffix], path.name], cwd=node_directory, env=environment, capture_output=True, text=True, timeout=120
                )
                assert done.returncode == 0, f"{name}: {done.stdout}\n{done.stderr}"
                return done.stdout

            for name in found:
                before = used()
                printed = run(name)
                assert printed.strip() and "refused" not in printed, f"{name}: {printed}"
                assert used() == before + MESSAGES[name], f"{name} sent {used() - before} messages"
                print(f"ok    {name} is served")
            tollgate("tenant", "limit", "set", "demo", "messages", "--hard", str(used()))
            for name in found:
                if "refused:" not in found[name]:
                    continue
                before = used()
                printed = run(name)
                wanted = r"refused: 429 usage_limit_exceeded messages \d{4}-\d\d-\d\dT"
                assert re.search(wanted, printed), f"{name}: {printed}"
                assert used() == before, f"{name} was counted"
                print(f"ok    {name} says why it is refused")
        finally:
            server.terminate()
            server.wait(40)
    receiver()


def started(server: subprocess.Popen) -> tuple[str, str]:
    """The address and the tenant's key, as `serve --dev` prints them."""
    address = key = None
    for line in server.stdout:
        if line.startswith("tollgate listening on http://"):
            address = line.split("//")[1].strip()
        if line.startswith("export TENANT_KEY="):
            key = line.split("=", 1)[1].strip()
        if address and key:
            return address, key
    sys.exit("the server did not start")


def receiver() -> None:
    """The lines that check a notice's signature take a good one, and no other."""
    page = (ROOT / "docs/guide/notices.md").read_text()
    code = re.search(r"<!-- run by: make test-clients -->\n```python\n(.*?)```", page, re.DOTALL)[1]
    secret = re.search(r"whsec_\w+", code)[0]
    body, now = '{"type":"tollgate.usage.limit_reached"}', datetime.now(timezone.utc)
    signature = Webhook(secret).sign("ntc_1", now, body)
    headers = {"webhook-id": "ntc_1", "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": signature}
    names = {"body": body, "headers": headers}
    exec(code, names)
    assert names["event"]["type"] == "tollgate.usage.limit_reached"
    try:
        exec(code, {"body": body.replace("limit", "l1mit"), "headers": headers})
    except Exception:
        print("ok    a notice's signature is checked")
    else:
        sys.exit("an altered notice was taken")


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2]))
