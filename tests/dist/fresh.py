"""The README's first two commands on a machine that has nothing but Debian, a Rust toolchain, what that links with, and make.

usage: fresh.py CACHE_DIRECTORY [COMMAND…]   (as root)

The machine is a root of its own with this repository, the toolchain and the target directory of whoever asks bound into
it; packages come from the Debian mirror that this machine uses. COMMANDs in place of the README's are run one by one.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from deb import ROOT, fresh_debian, make, sh

SERVES = "serve --dev"


def readme() -> list[str]:
    block = re.search(r"```sh\n(cargo run .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    return [line.split("#")[0].strip() for line in block.splitlines()]


def main(cache: Path, commands: list[str]) -> None:
    if os.geteuid() != 0:
        sys.exit("a root of its own can only be made as root")
    work = Path(tempfile.mkdtemp(prefix="fresh-", dir=make(cache)))
    home = Path.home()
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    bound = [ROOT, home / ".cargo", home / ".rustup", make(target)]
    # A worktree's history lies elsewhere.
    history = sh("git", "rev-parse", "--path-format=absolute", "--git-common-dir", cwd=ROOT).strip()
    bound += [Path(history)] if not Path(history).is_relative_to(ROOT) else []
    try:
        fresh_debian(cache, work / "root")
        root = work / "root"
        for file in ["/etc/resolv.conf", "/etc/hosts"]:
            shutil.copy(file, f"{root}{file}")
        shutil.rmtree(f"{root}/etc/apt")
        shutil.copytree("/etc/apt", f"{root}/etc/apt")
        mounts = [f"mount -t proc proc {root}/proc", f"mount --rbind /sys {root}/sys", f"mount --rbind /dev {root}/dev"]
        for path in bound:
            mounts.append(f"mkdir -p {root}{path} && mount --bind {path} {root}{path}")
        for command in ["apt-get update -q && apt-get install -qy --no-install-recommends gcc libc6-dev make", *(commands or readme())]:
            run(root, mounts, command, home, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def run(root: Path, mounts: list[str], command: str, home: Path, target: Path) -> None:
    print(f"--- {command}", flush=True)
    environment = {
        "HOME": str(home), "PATH": f"{home}/.cargo/bin:/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive",
        "CARGO_TARGET_DIR": str(target), "LC_ALL": "C.UTF-8",
    }
    environment |= {name: os.environ[name] for name in ["CARGO_BUILD_JOBS", "http_proxy", "https_proxy"] if name in os.environ}
    words = [f"{name}={value}" for name, value in environment.items()]
    script = " && ".join([*mounts, f'exec chroot {root} env -i "$@" bash -c \'cd {ROOT} && {command}\''])
    started = subprocess.Popen(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    for line in started.stdout:
        print(line, end="", flush=True)
        if SERVES in command and line.startswith("tollgate listening on"):
            started.kill()  # it would serve for ever
            started.wait()
            print("ok    it listens")
            return
    assert started.wait() == 0, f"{command} ended with {started.returncode}"
    print(f"ok    {command}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), sys.argv[2:])
