"""A server with a made-up business on it, the pages that it shows, and a browser to look at them."""

import contextlib
import http.server
import json
import os
import random
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from datetime import datetime, timedelta, timezone

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

TOKEN = "demo-only-0123456789abcdef0123456789abcdef"
MODELS = [("gpt-5.1", 60), ("gpt-5.1-mini", 30), ("claude-sonnet-4.5", 10)]
# Slug, name, plan, requests of a busy hour, and how many days ago it began.
TENANTS = [
    ("acme-robotics", "Acme Robotics", "pro", 8, 39),
    ("blue-harbor", "Blue Harbor Books", "starter", 2, 39),
    ("cedar-clinic", "Cedar Clinic", "pro", 5, 25),
    ("delta-freight", "Delta Freight", "starter", 1, 30),
    ("ember-games", "Ember Games", "team", 44, 39),
    ("fjord-analytics", "Fjord Analytics", "enterprise", 60, 39),
    ("grove-foods", "Grove Foods", "starter", 1, 12),
    ("lantern-school", "Lantern School", "starter", 1, 8),
]
# Where everything is, by the name of its picture.
PAGES = {
    "overview": "/admin",
    "plans": "/admin/plans",
    "plan": "/admin/plans/team",
    "tenants": "/admin/tenants?sort=percent",
    "tenant": "/admin/tenants/ember-games",
    "usage": "/admin/tenants/ember-games/usage?feature=output_tokens",
    "events": "/admin/tenants/ember-games/events",
    "statement": "/admin/tenants/ember-games/statement",
    "in-flight": "/admin/in-flight",
    "outbox": "/admin/outbox",
    "audit": "/admin/audit",
    "administrators": "/admin/administrators",
    "sessions": "/admin/sessions",
    "status": "/admin/status",
}


class Listener(http.server.BaseHTTPRequestHandler):
    """Who is told of limits: the chat takes it, the pager is not there any more."""

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(204 if self.path == "/chat" else 410)
        self.end_headers()

    def log_message(self, *_):
        pass


class Server:
    """The binary, in a directory of its own; stopped at the end of the `with`."""

    def __init__(self, binary):
        self.binary = binary
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        self.directory = self.stack.enter_context(tempfile.TemporaryDirectory())
        listener = self.stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener))
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        self.stack.callback(listener.shutdown)
        told = f"http://127.0.0.1:{listener.server_port}"
        self.environment = {
            "PATH": os.environ["PATH"],
            "TOLLGATE_DATA_DIR": os.path.join(self.directory, "var"),
            "TOLLGATE_LISTEN": "127.0.0.1:0",
            "TOLLGATE_PROVIDER": "simulated",
            "TOLLGATE_ADMIN_TOKEN": TOKEN,
            "ENABLE_USAGE_GUARDRAILS": "true",
            "USAGE_WEBHOOK_URL": f"{told}/chat,{told}/pager",
        }
        command = [self.binary, "serve"]
        self.process = subprocess.Popen(
            command, env=self.environment, cwd=self.directory, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.stack.callback(self.stop)
        self.base = self.process.stdout.readline().removeprefix("tollgate listening on ").strip()
        return self

    def __exit__(self, *_):
        self.stack.close()

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=60)

    def cli(self, *arguments):
        command = [self.binary, *arguments, "--output", "json"]
        return json.loads(subprocess.check_output(command, env=self.environment, cwd=self.directory))

    def post(self, key, path, body, kind="application/json"):
        """The status, and the body of the answer."""
        headers = {"authorization": f"Bearer {key}", "content-type": kind}
        request = urllib.request.Request(f"{self.base}{path}", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refused:
            return refused.code, json.load(refused)


def seed(server):
    """A business of some weeks: the same each time but for the hour of the day at which it is looked at."""
    dice = random.Random(20)
    now = datetime.now(timezone.utc)
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    next_month = (month + timedelta(days=32)).replace(day=1)
    cli = server.cli
    for code, name, preset in [("starter", "Starter", "starter"), ("pro", "Pro", "pro"), ("enterprise", "Enterprise", "enterprise")]:
        cli("plan", "create", code, "--name", name, "--preset", preset)
    cli("plan", "create", "team", "--name", "Team")
    for feature, soft, hard, scope, window in [
        ("messages", 9_000, 10_000, "tenant", "period"),
        ("messages", 60, 80, "user", "day"),
        ("messages", 2_500, 3_000, "key", "week"),
        ("input_tokens", 14_000_000, 16_000_000, "tenant", "period"),
        ("output_tokens", 4_000_000, 5_000_000, "tenant", "period"),
        ("cost", 90_000_000, 120_000_000, "tenant", "period"),
    ]:
        limit = ["--soft", str(soft), "--hard", str(hard), "--scope", scope, "--window", window]
        cli("plan", "feature", "set", "team", feature, *limit)
    keys = {}
    for slug, name, plan, busy, days in TENANTS:
        cli("tenant", "create", slug, "--name", name)
        period = ["--period-start", stamp(month), "--period-end", stamp(next_month)]
        cli("tenant", "subscribe", slug, "--plan", plan, *period)
        keys[slug] = [cli("key", "create", slug, "--name", it)["key"] for it in ("Production", "Nightly jobs")]
        send(server, slug, keys[slug], list(usage(dice, now, busy, days)))
    cli("tenant", "subscribe", "lantern-school", "--plan", "starter", "--status", "past_due")
    cli("tenant", "grant", "add", "grove-foods", "--feature", "messages", "--quantity", "25", "--reason", "Goodwill after the outage")
    cli("tenant", "limit", "set", "ember-games", "messages", "--window", "hour", "--hard", "400")
    for name, role in [("ada", "owner"), ("grace", "operator"), ("support desk", "viewer")]:
        cli("admin-token", "create", name, "--role", role)
    for slug, most in [("grove-foods", 60), ("delta-freight", 20)]:
        for _ in range(most):
            server.post(keys[slug][0], "/api/v1/chat", {"message": "How do I reset my password?"})
    for user, most in [("nadia", 75), ("omar", 52)]:
        for _ in range(most):
            server.post(keys["ember-games"][0], "/api/v1/chat", {"message": "Which quest is next?", "user": user})
    for slug, tokens in [("ember-games", 4_000), ("fjord-analytics", 32_000), ("fjord-analytics", 8_000), ("cedar-clinic", 1_500)]:
        body = {"quantities": {"messages": 1, "input_tokens": tokens // 2, "output_tokens": tokens}, "ttl_seconds": 3600}
        status, answer = server.post(keys[slug][0], "/api/v1/usage/reservations", body)
        assert status == 201, answer


def stamp(time):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def usage(dice, now, busy, days):
    """Time, quantities, user and model of what was used: by hour, more by day than by night."""
    for hours in range(days * 24, 0, -1):
        time = now - timedelta(hours=hours) + timedelta(minutes=7)
        is_day = 7 <= time.hour <= 19 and time.weekday() < 5
        messages = dice.randint(0, busy) if is_day else dice.randint(0, max(busy // 4, 1)) * (dice.random() < 0.4)
        if messages:
            tokens_in, tokens_out = messages * dice.randint(400, 1_900), messages * dice.randint(120, 700)
            cost = tokens_in + tokens_out * 8
            quantities = {"messages": messages, "input_tokens": tokens_in, "output_tokens": tokens_out, "cost": cost}
            model = dice.choices([it for it, _ in MODELS], [share for _, share in MODELS])[0]
            yield time, quantities, f"user-{min(int(dice.expovariate(0.4)), 14) + 1:02}", model


def send(server, slug, keys, used):
    for index, key in enumerate(keys):
        own = [it for number, it in enumerate(used) if (number % 4 == 3) == (index == 1)]
        for start in range(0, len(own), 500):
            events = [
                {
                    "specversion": "1.0",
                    "id": f"{slug}-{index}-{start + number}",
                    "source": "https://example.com/demo",
                    "type": "com.example.usage",
                    "subject": slug,
                    "time": stamp(time),
                    "data": {"quantities": quantities, "user": user, "model": model},
                }
                for number, (time, quantities, user, model) in enumerate(own[start : start + 500])
            ]
            status, answer = server.post(key, "/api/v1/usage/events", events, "application/cloudevents-batch+json")
            rejected = [it for it in answer.get("results", [answer]) if it.get("status") != "accepted"]
            assert status == 200 and not rejected, rejected[:3]


@contextlib.contextmanager
def chromium():
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--no-proxy-server",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
    ):
        options.add_argument(argument)
    # The browser leaves directories behind where temporary files go: they go away with this one.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        environment = os.environ | {"TMPDIR": directory}
        service = webdriver.ChromeService("/usr/bin/chromedriver", env=environment)
        driver = webdriver.Chrome(options=options, service=service)
        try:
            yield driver
        finally:
            driver.quit()


def look(driver, width, height, scheme):
    """From here on pages are seen on such a screen."""
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def sign_in(driver, server):
    driver.delete_all_cookies()  # those of another server at this address, if the browser has been there
    driver.get(f"{server.base}/admin")
    driver.find_element(By.ID, "token").send_keys(TOKEN)
    driver.find_element(By.CSS_SELECTOR, "button.primary").click()
    WebDriverWait(driver, 30).until(lambda it: it.find_elements(By.CSS_SELECTOR, "form.who"))
