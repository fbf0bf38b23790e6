"""Sends usage with the CloudEvents SDK, again and again from many threads, and checks that each event counted once.

Usage: send.py TOLLGATE_BINARY
"""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

from cloudevents.conversion import to_binary, to_structured
from cloudevents.http import CloudEvent

EVENTS, SENDERS, ROUNDS = 60, 8, 5


def main(binary):
    with tempfile.TemporaryDirectory() as directory:
        environment = {
            "PATH": os.environ["PATH"],
            "TOLLGATE_DATA_DIR": os.path.join(directory, "var"),
            "TOLLGATE_LISTEN": "127.0.0.1:0",
            "TOLLGATE_PROVIDER": "simulated",
            "ENABLE_USAGE_GUARDRAILS": "true",
        }
        server = subprocess.Popen(
            [binary, "serve"], env=environment, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            base = server.stdout.readline().removeprefix("tollgate listening on ").strip()

            def cli(*arguments):
                command = [binary, *arguments, "--output", "json"]
                return json.loads(subprocess.check_output(command, env=environment, cwd=directory))

            cli("plan", "create", "open", "--name", "Open", "--preset", "enterprise")
            cli("tenant", "create", "acme", "--name", "Acme", "--plan", "open")
            key = cli("key", "create", "acme", "--name", "sender")["key"]
            check(base, key)
        finally:
            server.terminate()
            server.wait(timeout=60)


def event(index):
    attributes = {
        "id": f"event-{index}",
        "source": "https://example.com/jobs",
        "type": "com.example.usage",
        "subject": "acme",
        "time": datetime.now(timezone.utc).isoformat(),
        "datacontenttype": "application/json",
    }
    return CloudEvent(attributes, {"quantities": {"messages": 1, "output_tokens": index}, "user": f"user-{index % 3}"})


def post(base, key, headers, body):
    headers = {**headers, "authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{base}/api/v1/usage/events", data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["results"]


def send_all(base, key, events, sender):
    statuses = []
    for turn in range(ROUNDS):
        mode = (sender + turn) % 3
        if mode == 0:
            bodies = [json.loads(to_structured(it)[1]) for it in events]
            statuses += post(base, key, {"content-type": "application/cloudevents-batch+json"}, json.dumps(bodies).encode())
        else:
            convert = to_structured if mode == 1 else to_binary
            for it in events:
                statuses += post(base, key, *convert(it))
    return [result["status"] for result in statuses]


def check(base, key):
    events = [event(index) for index in range(EVENTS)]
    with ThreadPoolExecutor(SENDERS) as pool:
        sent = list(pool.map(lambda sender: send_all(base, key, events, sender), range(SENDERS)))
    statuses = [status for each in sent for status in each]
    assert len(statuses) == EVENTS * SENDERS * ROUNDS, len(statuses)
    assert statuses.count("accepted") == EVENTS, statuses.count("accepted")
    assert statuses.count("duplicate") == len(statuses) - EVENTS, set(statuses)
    request = urllib.request.Request(f"{base}/api/v1/usage", headers={"authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        used = {item["feature_key"]: item["used"] for item in json.load(answer)["features"]}
    assert used["messages"] == EVENTS, used
    assert used["output_tokens"] == sum(range(EVENTS)), used
    print(f"{len(statuses)} events sent by {SENDERS} senders, {EVENTS} counted, each once")


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]))
