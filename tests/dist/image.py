"""Builds the image of dist/container with buildah, and runs what it says in what it holds.

usage: image.py CONTEXT   (as root)

Nothing is pulled: the image begins empty. It is run by chroot, as its user and with its environment, which shows what a
container would: an empty root, a data directory that its user can write to, a health check without a shell.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time


def sh(*command, **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout.strip()


def main(context: str) -> None:
    if not shutil.which("buildah"):
        sys.exit("buildah is missing; install Debian's package buildah")
    with tempfile.TemporaryDirectory() as storage:
        buildah = ["buildah", "--root", f"{storage}/root", "--runroot", f"{storage}/run", "--storage-driver", "vfs"]
        build = ["build", "--isolation", "chroot", "--format", "docker", "--tag", "tollgate", "--file", f"{context}/Containerfile"]
        sh(*buildah, *build, context)
        image = json.loads(sh(*buildah, "inspect", "--type", "image", "tollgate"))["Docker"]["config"]
        assert image["User"] == "65532:65532" and image["Entrypoint"] == ["/tollgate"] and image["Cmd"] == ["serve"], image
        check = image["Healthcheck"]["Test"]
        assert check[0] == "CMD", check
        container = sh(*buildah, "from", "--pull-never", "tollgate")
        root = sh(*buildah, "mount", container)
        try:
            run(root, image, check[1:])
        finally:
            sh(*buildah, "umount", container)
            sh(*buildah, "rm", container)


def run(root: str, image: dict, check: list) -> None:
    found = sorted(os.path.relpath(os.path.join(directory, name), root) for directory, _, names in os.walk(root) for name in names)
    assert found == ["tollgate"], f"the image holds {found}"
    environment = dict(entry.split("=", 1) for entry in image["Env"])
    environment |= {"TOLLGATE_PROVIDER": "simulated", "ENABLE_USAGE_GUARDRAILS": "true", "TOLLGATE_LISTEN": "127.0.0.1:18437"}
    inside = ["/usr/sbin/chroot", f"--userspec={image['User']}", root]
    server = subprocess.Popen([*inside, *image["Entrypoint"], *image["Cmd"]], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout.readline().startswith("tollgate listening on"), "it does not start"
        deadline = time.monotonic() + 30
        while subprocess.run([*inside, *check], env=environment, capture_output=True).returncode != 0:
            assert time.monotonic() < deadline, "its health check does not pass"
            time.sleep(0.1)
        sh(*inside, "/tollgate", "plan", "create", "free", "--name", "Free", "--preset", "free", env=environment)
        mode = os.stat(f"{root}/data")
        assert (mode.st_uid, mode.st_mode & 0o777) == (65532, 0o700), mode
    finally:
        server.terminate()
        assert server.wait(40) == 0
    assert subprocess.run([*inside, *check], env=environment, capture_output=True).returncode == 1
    print("ok    the image is the binary alone; it runs as 65532, is healthy while it runs, and keeps its data")


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]))
