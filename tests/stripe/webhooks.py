"""Signs webhooks with Stripe's own library, sends them to a server, and checks what it makes of them.

Usage: webhooks.py TOLLGATE_BINARY
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import stripe

SECRET = "whsec_EXAMPLE_of_a_secret"


def main(binary):
    with tempfile.TemporaryDirectory() as directory:
        environment = {
            "PATH": os.environ["PATH"],
            "TOLLGATE_DATA_DIR": os.path.join(directory, "var"),
            "TOLLGATE_LISTEN": "127.0.0.1:0",
            "TOLLGATE_PROVIDER": "simulated",
            "ENABLE_USAGE_GUARDRAILS": "true",
            "ENABLE_STRIPE_USAGE": "true",
            "STRIPE_SECRET_KEY": "sk_test_EXAMPLE",
            "STRIPE_WEBHOOK_SECRET": SECRET,
            "STRIPE_API_BASE": "http://127.0.0.1:1",
        }
        server = subprocess.Popen(
            [binary, "serve"], env=environment, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            base = server.stdout.readline().removeprefix("tollgate listening on ").strip()

            def cli(*arguments):
                command = [binary, *arguments, "--output", "json"]
                return json.loads(subprocess.check_output(command, env=environment, cwd=directory))

            for plan in ("small", "large"):
                cli("plan", "create", plan, "--name", plan)
            cli("tenant", "create", "acme", "--name", "Acme", "--plan", "small")
            check(base, cli)
        finally:
            server.terminate()
            server.wait(timeout=60)


def subscription(**change):
    now = int(time.time())
    item = {
        "current_period_start": now - 86400,
        "current_period_end": now + 86400,
        "price": {"lookup_key": "large", "recurring": {"interval": "month", "interval_count": 1}},
    }
    base = {
        "id": "sub_1",
        "object": "subscription",
        "customer": "cus_1",
        "status": "active",
        "created": now - 86400,
        "metadata": {"tenant_id": "acme"},
        "items": {"object": "list", "data": [item]},
    }
    return {**base, **change}


def event(identifier, created, subject, kind="updated"):
    return json.dumps(
        {
            "id": identifier,
            "object": "event",
            "api_version": stripe.api_version,
            "created": created,
            "type": f"customer.subscription.{kind}",
            "data": {"object": subject},
        }
    )


def send(base, payload, secret=SECRET, at=None):
    at = int(time.time()) if at is None else at
    signature = stripe.WebhookSignature._compute_signature(f"{at}.{payload}", secret)
    header = f"t={at},v1={signature}"
    if secret == SECRET and at > time.time() - 200:
        stripe.WebhookSignature.verify_header(payload, header, SECRET)  # the library takes it too
    headers = {"stripe-signature": header, "content-type": "application/json"}
    request = urllib.request.Request(f"{base}/webhooks/stripe", data=payload.encode(), headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def check(base, cli):
    now = int(time.time())

    def plan_and_status():
        found = cli("tenant", "show", "acme")["subscription"]
        return found["plan_code"], found["status"]

    new = event("evt_1", now - 10, subscription())
    assert send(base, new) == (200, {"received": True, "duplicate": False})
    assert plan_and_status() == ("large", "active"), plan_and_status()
    assert send(base, new) == (200, {"received": True, "duplicate": True})
    old = event("evt_0", now - 20, subscription(status="past_due"))
    assert send(base, old)[0] == 200
    assert plan_and_status() == ("large", "active"), "an older one changes nothing"
    assert send(base, event("evt_2", now - 5, subscription(status="paused"), "paused"))[0] == 200
    assert plan_and_status() == ("large", "paused"), plan_and_status()

    gone = event("evt_3", now, subscription(status="canceled"), "deleted")
    for refused in (send(base, gone, secret="whsec_wrong"), send(base, gone, at=now - 301), send(base, "no event")):
        assert refused[0] == 400, refused
    assert plan_and_status() == ("large", "paused"), "what is refused changes nothing"

    stranger = event("evt_4", now, subscription(id="sub_2", customer="cus_2", metadata={}))
    assert send(base, stranger) == (200, {"received": True, "duplicate": False})
    listed = {it["event_id"]: it["status"] for it in cli("stripe", "webhook", "list")["items"]}
    assert listed == {"evt_0": "applied", "evt_1": "applied", "evt_2": "applied", "evt_4": "unmatched"}, listed
    print(f"{len(listed)} webhooks signed by stripe {stripe.VERSION} were taken, 3 refused, and each did as it should")


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]))
