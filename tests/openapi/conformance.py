"""Holds a running tollgate against its own description, with schemathesis, for the token of every role.

Usage: python tests/openapi/conformance.py path/to/tollgate [examples per operation]

A server of its own on a free port, with the simulated provider and a fresh data dir; ends with code 1 at a 5xx, a
status or content type that is not described, or a body that does not fit its schema.
"""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

OWNER = "conformance-only-0123456789abcdef0123456789"
CHECKS = ",".join(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
    ]
)


def call(base, method, path, body=None):
    request = urllib.request.Request(
        base + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"authorization": f"Bearer {OWNER}"},
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def start(binary, directory):
    environment = {
        "PATH": os.environ["PATH"],
        "TOLLGATE_LISTEN": "127.0.0.1:0",
        "TOLLGATE_DATA_DIR": str(directory / "data"),
        "TOLLGATE_PROVIDER": "simulated",
        "ENABLE_USAGE_GUARDRAILS": "true",
        "TOLLGATE_ADMIN_TOKEN": OWNER,
        "RUST_LOG": "warn",
    }
    with open(directory / "server.log", "w") as log:
        server = subprocess.Popen(
            [binary, "serve"], env=environment, cwd=directory, stdout=subprocess.PIPE, stderr=log, text=True
        )
    line = server.stdout.readline()
    prefix = "tollgate listening on "
    if not line.startswith(prefix):
        sys.exit(f"the server's first line is {line!r}; its log: {(directory / 'server.log').read_text()}")
    return server, line[len(prefix) :].strip()


def prepare(base):
    """A token a role; what the examples of the description name is there."""
    admin = "/api/v1/admin"
    call(base, "POST", f"{admin}/plans", {"plan_code": "starter", "name": "Starter", "preset": "starter"})
    call(base, "POST", f"{admin}/tenants", {"slug": "acme", "name": "Acme", "plan_code": "starter"})
    key = call(base, "POST", f"{admin}/tenants/acme/keys", {"name": "conformance"})["key"]
    tokens = {"tenant": key}
    for role in ["viewer", "operator"]:
        made = call(base, "POST", f"{admin}/admin-tokens", {"name": f"test {role}", "role": role})
        tokens[role] = made["token"]
    return tokens | {"owner": OWNER}


def run(base, directory, role, token, examples):
    which = "--exclude-path-regex" if role == "tenant" else "--include-path-regex"
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        "run",
        f"{base}/openapi.json",
        f"{which}=^/api/v1/admin/",
        f"--header=Authorization: Bearer {token}",
        f"--checks={CHECKS}",
        "--phases=examples,coverage,fuzzing",
        f"--max-examples={examples}",
        "--seed=1",
        # One: CPython 3.11 trips over reading sources in two threads (AST constructor recursion depth mismatch).
        "--workers=1",
        "--continue-on-failure",
        "--request-timeout=30",
        "--warnings=off",
        "--suppress-health-check=all",
    ]
    print(f"--- {role}", flush=True)
    return subprocess.run(command, cwd=directory, check=False).returncode


def main():
    binary = str(Path(sys.argv[1]).resolve())
    examples = sys.argv[2] if len(sys.argv) > 2 else "5"
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        server, base = start(binary, directory)
        try:
            failed = [
                role
                for role, token in prepare(base).items()
                if run(base, directory, role, token, examples) != 0
            ]
            with urllib.request.urlopen(f"{base}/readyz") as ready:
                assert json.load(ready)["status"] == "ready"
        finally:
            server.terminate()
            server.wait(60)
        log = (directory / "server.log").read_text()
        for secret in ["tg_", "tga_", OWNER, "panicked"]:
            if secret in log:
                sys.exit(f"the server's log holds {secret!r}:\n{log}")
    if failed:
        sys.exit(f"not as described for: {', '.join(failed)}")


main()
