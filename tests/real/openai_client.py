"""The official OpenAI Python client through tollgate, against a real model.

usage: openai_client.py TOLLGATE_BINARY UPSTREAM_BASE_URL

Starts tollgate in a temporary directory before the upstream, chats and streams, spends a limit, hangs up, and
compares what tollgate counted with what the upstream reported. Prints one line a check; exits 1 at the first failure.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request

from openai import AuthenticationError, NotFoundError, OpenAI, RateLimitError


def main(binary: str, upstream: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        environment = {
            "PATH": os.environ["PATH"],
            "TOLLGATE_LISTEN": "127.0.0.1:0",
            "TOLLGATE_DATA_DIR": os.path.join(directory, "var"),
            "ENABLE_USAGE_GUARDRAILS": "true",
            "OPENAI_BASE_URL": upstream,
        }
        server = subprocess.Popen(
            [binary, "serve"], env=environment, cwd=directory, stdout=subprocess.PIPE, text=True,
            stderr=open(os.path.join(directory, "log"), "w"),
        )
        try:
            base = server.stdout.readline().split()[-1]
            check_all(base, lambda *arguments: cli(binary, environment, directory, *arguments))
        finally:
            server.terminate()
            assert server.wait(40) == 0, "tollgate did not stop cleanly"
    print("ok    stopped cleanly")


def cli(binary: str, environment: dict, directory: str, *arguments: str):
    run = subprocess.run(
        [binary, *arguments, "--output", "json"], env=environment, cwd=directory, capture_output=True, text=True
    )
    assert run.returncode == 0, f"{arguments}: {run.stderr}"
    return json.loads(run.stdout)


def check_all(base: str, tollgate) -> None:
    tollgate("plan", "create", "real", "--name", "Real")
    for feature, hard in [("messages", 6), ("input_tokens", 100_000), ("output_tokens", 100_000)]:
        tollgate("plan", "feature", "set", "real", feature, "--hard", str(hard))
    tollgate("tenant", "create", "acme", "--name", "Acme", "--plan", "real")
    key = tollgate("key", "create", "acme", "--name", "test")["key"]
    client = OpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0)
    reported = {"input_tokens": 0, "output_tokens": 0}

    model = client.models.list().data[0].id
    passed(f"models.list: {model}")

    def add(usage) -> None:
        reported["input_tokens"] += usage.prompt_tokens
        reported["output_tokens"] += usage.completion_tokens

    def ask(text: str, **more):
        return client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **more)

    answer = ask("Say hello.", max_tokens=16)
    add(answer.usage)
    passed(f"chat: {answer.usage.prompt_tokens} in, {answer.usage.completion_tokens} out")

    chunks = list(ask("Count to three.", max_tokens=24, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage is not None, "the usage chunk that was asked for is missing"
    add(chunks[-1].usage)
    passed(f"stream: {len(chunks)} chunks, {chunks[-1].usage.completion_tokens} out")

    quiet = list(ask("Say yes.", max_tokens=8, stream=True))
    assert all(chunk.usage is None for chunk in quiet), "a usage chunk that nobody asked for"
    assert all(chunk.choices for chunk in quiet), "a chunk without choices that nobody asked for"
    passed("stream without usage: none is shown")

    answer = client.responses.create(model=model, input="Say no.", max_output_tokens=16)
    reported["input_tokens"] += answer.usage.input_tokens
    reported["output_tokens"] += answer.usage.output_tokens
    passed(f"responses: {answer.usage.input_tokens} in, {answer.usage.output_tokens} out")

    counted = totals(base, key)
    quiet_used = {feature: counted[feature] - reported[feature] for feature in reported}
    assert counted["messages"] == 4, counted
    assert quiet_used["input_tokens"] > 0 and 0 < quiet_used["output_tokens"] <= 8, quiet_used
    passed(f"counted equals reported: {reported} and the quiet stream's {quiet_used}")

    stream = ask("Tell me a long story.", max_tokens=200, stream=True)
    for index, _ in enumerate(stream):
        if index == 3:
            break
    stream.close()
    wait_for(lambda: totals(base, key)["messages"] == 5, "a hang-up is charged")
    passed("a hang-up is charged")

    ask("Last one.", max_tokens=4)
    try:
        ask("One too many.", max_tokens=4)
        raise AssertionError("a spent limit was passed")
    except RateLimitError as refused:
        assert refused.code == "usage_limit_exceeded", refused.code
        assert refused.body["feature_key"] == "messages", refused.body
        assert refused.type == "insufficient_quota", refused.type
        passed(f"RateLimitError: {refused.body['message']}")
    assert client.models.list().data, "models need no quota"

    try:
        OpenAI(base_url=f"{base}/v1", api_key="tg_wrong", max_retries=0).models.list()
        raise AssertionError("a wrong key was taken")
    except AuthenticationError:
        passed("AuthenticationError for a wrong key")
    try:
        client.moderations.create(input="hi")
        raise AssertionError("a route that is not metered was served")
    except NotFoundError as error:
        assert error.code == "endpoint_not_metered", error.code
        passed("NotFoundError for a route that is not metered")

    usage = {item["feature_key"]: item for item in get(base, key, "/api/v1/usage")["features"]}
    assert all(item["reserved"] == 0 for item in usage.values()), usage
    passed("nothing is left reserved")


def totals(base: str, key: str) -> dict:
    answer = get(base, key, "/api/v1/usage/totals?period_start=2020-01-01T00:00:00Z&period_end=2100-01-01T00:00:00Z")
    return {row["feature_key"]: row["quantity"] for row in answer["totals"]}


def get(base: str, key: str, path: str):
    request = urllib.request.Request(base + path, headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"not within a minute: {what}"
        time.sleep(0.05)


def passed(what: str) -> None:
    print(f"ok    {what}", flush=True)


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]), sys.argv[2])
