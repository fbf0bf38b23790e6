"""Has a server write its usage to files, and reads them with DuckDB and pandas as the guide does: their sums are the totals.

Notices of the same usage are checked with the Standard Webhooks library.

Usage: read.py TOLLGATE_BINARY
"""

import base64
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import duckdb
import pandas
from standardwebhooks.webhooks import Webhook

SECRET = "whsec_" + base64.b64encode(b"EXAMPLE-of-a-secret-1234").decode()
TENANTS = {"acme": 40, "beta": 25}
FEATURES = ["messages", "input_tokens", "output_tokens", "cost"]
GUIDE = os.path.join(os.path.dirname(__file__), "../../docs/guide/analytics.md")


def main(binary):
    notices, url = receiver()
    with tempfile.TemporaryDirectory() as directory:
        usage = os.path.join(directory, "usage")
        environment = {
            "PATH": os.environ["PATH"],
            "TOLLGATE_DATA_DIR": os.path.join(directory, "var"),
            "TOLLGATE_LISTEN": "127.0.0.1:0",
            "TOLLGATE_PROVIDER": "simulated",
            "ENABLE_USAGE_GUARDRAILS": "true",
            "USAGE_ANALYTICS_SINK": f"file:{usage}",
            "USAGE_WEBHOOK_URL": url,
            "USAGE_WEBHOOK_SECRET": SECRET,
        }
        server = subprocess.Popen(
            [binary, "serve"], env=environment, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            base = server.stdout.readline().removeprefix("tollgate listening on ").strip()

            def cli(*arguments):
                command = [binary, *arguments, "--output", "json"]
                return json.loads(subprocess.check_output(command, env=environment, cwd=directory))

            totals = use(base, cli)
            deadline = time.monotonic() + 30
            while len(notices) < 2 * len(TENANTS) and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            server.terminate()
            server.wait(timeout=60)
        compare(usage, totals)
    told = sorted((event["data"]["tenant_slug"], event["data"]["threshold"]) for event in notices)
    assert told == [(tenant, threshold) for tenant in sorted(TENANTS) for threshold in (80, 100)], told
    print(f"{len(notices)} notices verified with standardwebhooks: {told}")


def receiver():
    """Takes notices whose signature is good."""
    notices, hook = [], Webhook(SECRET)

    class Take(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            notices.append(hook.verify(body, dict(self.headers)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Take)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return notices, f"http://127.0.0.1:{server.server_port}/"


def use(base, cli):
    """Chats of every tenant up to its limit, a correction, and the totals by the server."""
    for tenant, messages in TENANTS.items():
        cli("plan", "create", tenant, "--name", tenant, "--preset", "enterprise")
        cli("plan", "feature", "set", tenant, "messages", "--hard", str(messages))
        cli("tenant", "create", tenant, "--name", tenant, "--plan", tenant)
    for tenant, messages in TENANTS.items():
        key = cli("key", "create", tenant, "--name", "test")["key"]
        head = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

        def chat(number):
            body = json.dumps({"message": f"question {number}", "model": "gpt-4o"}).encode()
            urllib.request.urlopen(urllib.request.Request(f"{base}/api/v1/chat", body, head), timeout=30).read()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(chat, range(messages)))
    cli("usage", "correct", "--tenant", "acme", "--feature", "output_tokens", "--quantity", "-7", "--reason", "test")
    totals = {}
    for tenant in TENANTS:
        asked = [word for feature in FEATURES for word in ("--feature", feature)]
        found = cli("usage", "totals", "--tenant", tenant, "--period-start", "2020-01-01T00:00:00Z",
                    "--period-end", "2100-01-01T00:00:00Z", *asked)
        totals[tenant] = {total["feature_key"]: total["quantity"] for total in found["totals"]}
    return totals


def compare(usage, totals):
    source = f"(SELECT DISTINCT ON (id) * FROM read_ndjson('{usage}/*.ndjson', union_by_name = true))"
    sums = ", ".join(f"coalesce(sum(data.quantities.{feature}), 0)::BIGINT" for feature in FEATURES)
    rows = duckdb.sql(f"SELECT data.tenant_slug, {sums} FROM {source} GROUP BY 1").fetchall()
    by_duckdb = {row[0]: dict(zip(FEATURES, row[1:])) for row in rows}
    assert by_duckdb == totals, (by_duckdb, totals)
    kinds = duckdb.sql(f"SELECT type, count(*) FROM {source} GROUP BY 1 ORDER BY 1").fetchall()
    assert kinds == [("tollgate.usage.corrected", 1), ("tollgate.usage.recorded", sum(TENANTS.values()))], kinds

    files = [pandas.read_json(path, lines=True) for path in glob(f"{usage}/*.ndjson")]
    data = pandas.json_normalize(pandas.concat(files).drop_duplicates("id")["data"])
    columns = [f"quantities.{feature}" for feature in FEATURES]
    frame = data.groupby("tenant_slug")[columns].sum()
    by_pandas = {tenant: {f: int(frame.loc[tenant, f"quantities.{f}"]) for f in FEATURES} for tenant in totals}
    assert by_pandas == totals, (by_pandas, totals)

    with open(GUIDE, encoding="utf-8") as guide:
        examples = re.findall(r"```(sql|python)\n(.*?)```", guide.read(), re.S)
    for language, example in examples:
        example = example.replace("/var/lib/tollgate/usage", usage)
        if language == "sql":
            print(duckdb.sql(example))
        else:
            exec(example, {})
    print(f"{len(files)} file(s), {sum(kind[1] for kind in kinds)} events: DuckDB = pandas = totals: {totals}")


main(sys.argv[1])
