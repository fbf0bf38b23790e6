"""Installs, runs, upgrades, removes and purges the .deb in a Debian of its own that systemd has booted.

usage: deb.py DEB STAGE CACHE_DIRECTORY   (as root)

The Debian is made by debootstrap once and kept in CACHE_DIRECTORY; each run works on a copy. It is booted in namespaces of
its own (processes, mounts, network, names), and ends with them. STAGE is what the package was made of: an older version
is packed from it, to be upgraded from.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGES = "adduser,curl,dbus,procps,systemd,systemd-sysv"
OLD = "0.0.9"
SETTINGS = "/etc/tollgate/tollgate.env"
CHAT = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:8080/api/v1/chat", "-d", '{"message":"hi"}']


def sh(*command, **options) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout}\n{done.stderr}"
    return done.stdout


def eventually(what: str, condition, seconds: float = 30):
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def fresh_debian(cache: Path, root: Path) -> None:
    base = cache / "base"
    if not (base / "etc/debian_version").exists():
        cache.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(base, ignore_errors=True)
        release = re.search(r"VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text())[1]
        half = cache / "half"
        shutil.rmtree(half, ignore_errors=True)
        subprocess.run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", release, half], check=True)
        half.rename(base)
    sh("cp", "-a", "--reflink=auto", base, root)


class Machine:
    """A booted Debian."""

    def __init__(self, root: Path):
        self.root = root
        # Its directory becomes the root of its mounts: systemd makes file systems for its services, which a chroot hides.
        # Of devices it gets none of the machine's terminals.
        boot = (
            f"mount --bind {root} {root} && cd {root} && mount -t proc proc proc && mount -t sysfs -o ro sysfs sys"
            " && mount -t tmpfs -o mode=755 tmpfs run && mount -t tmpfs tmpfs tmp && mount -t tmpfs -o mode=755 tmpfs dev"
            " && for node in null zero full random urandom tty; do touch dev/$node; mount --bind /dev/$node dev/$node; done"
            " && mkdir dev/shm dev/pts && mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts"
            " && ln -s pts/ptmx dev/ptmx && ln -s /proc/self/fd dev/fd"
            " && mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup"
            " && mkdir sys/fs/cgroup/systemd && mount -t cgroup -o none,name=systemd,xattr cgroup sys/fs/cgroup/systemd"
            " && mkdir -p old && pivot_root . old && exec chroot . sh -c"
            " 'umount -l /old && rmdir /old && exec /lib/systemd/systemd --unit=multi-user.target'"
        )
        self.unshare = subprocess.Popen(
            ["unshare", "--fork", "--kill-child", "--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup", "sh", "-c", boot],
            env={"container": "chroot", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            stdin=subprocess.DEVNULL, stdout=open(root.parent / "console", "w"), stderr=subprocess.STDOUT,
        )
        eventually("its first process", self.pid)
        eventually("systemd has booted", lambda: "running" in self.state() or "degraded" in self.state())

    def pid(self) -> int | None:
        children = Path(f"/proc/{self.unshare.pid}/task/{self.unshare.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def state(self) -> str:
        return subprocess.run(self.inside("systemctl", "is-system-running"), capture_output=True, text=True).stdout

    def inside(self, *command) -> list:
        entered = ["nsenter", "--all", "--root", "--wd", f"--target={self.pid()}", "env", "-i"]
        return [*entered, "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", *map(str, command)]

    def run(self, *command) -> str:
        return sh(*self.inside(*command))

    def fails(self, *command) -> bool:
        return subprocess.run(self.inside(*command), capture_output=True).returncode != 0

    def tollgate(self, *command) -> str:
        return self.run("runuser", "-u", "tollgate", "--", "tollgate", *command, "--data-dir", "/var/lib/tollgate")

    def main_pid(self) -> int:
        return int(self.run("systemctl", "show", "--value", "-p", "MainPID", "tollgate"))

    def is_healthy(self) -> bool:
        return not self.fails("tollgate", "healthcheck")

    def status(self) -> dict:
        """What proc(5) says of the service's process."""
        lines = self.run("cat", f"/proc/{self.main_pid()}/status").splitlines()
        return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}

    def end(self) -> None:
        self.unshare.kill()
        self.unshare.wait()


def install(machine: Machine, deb: Path) -> None:
    shutil.copy(deb, machine.root / "root" / deb.name)
    machine.run("apt-get", "install", "-y", "--no-install-recommends", "-o", "Dpkg::Options::=--force-confold", "--allow-downgrades", f"/root/{deb.name}")


def check(machine: Machine, old: Path, new: Path) -> None:
    install(machine, old)
    assert machine.run("systemctl", "is-enabled", "tollgate").strip() == "enabled"
    eventually("the installed service takes requests or says why", lambda: not machine.fails("tollgate", "healthcheck", "--live"))
    token = eventually("its first token is in the journal", lambda: re.search(
        r"admin token: (tga_[\w-]+)", machine.run("journalctl", "-u", "tollgate", "--no-pager")))
    print("ok    installed: it runs, and has said its administrator's token")

    mode = machine.run("stat", "-c", "%a %U %G", SETTINGS, "/var/lib/tollgate").splitlines()
    assert mode == ["640 root tollgate", "700 tollgate tollgate"], mode
    path = machine.root / SETTINGS[1:]
    path.write_text(path.read_text() + "\nTOLLGATE_PROVIDER=simulated\n")
    machine.run("systemctl", "restart", "tollgate")
    eventually("it is healthy with the changed settings", machine.is_healthy)

    status = machine.status()
    owner = machine.run("id", "-u", "tollgate").strip()
    assert status["Uid"].split() == [owner] * 4 and owner != "0", status["Uid"]
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2", status
    assert all(int(status[name], 16) == 0 for name in ["CapEff", "CapPrm", "CapBnd", "CapAmb"]), status
    exposure = machine.run("systemd-analyze", "security", "tollgate.service", "--no-pager").splitlines()[-1]
    assert float(re.search(r"level for tollgate.service: ([\d.]+)", exposure)[1]) < 2.0, exposure
    print("ok    locked in: its own user, no capabilities, a filter of system calls;", exposure.strip("→ "))

    machine.tollgate("plan", "create", "free", "--name", "Free", "--preset", "free")
    machine.tollgate("tenant", "create", "acme", "--name", "Acme", "--plan", "free")
    key = json.loads(machine.tollgate("key", "create", "acme", "--name", "one", "--output", "json"))["key"]
    chat = [*CHAT, "-H", f"Authorization: Bearer {key}"]

    def used() -> int:
        shown = json.loads(machine.tollgate("usage", "show", "--tenant", "acme", "--output", "json"))
        return next(item["used"] for item in shown["features"] if item["feature_key"] == "messages")

    assert machine.run(*chat) == "200" and used() == 1
    admin = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:8080/api/v1/admin/status"]
    assert machine.run(*admin, "-H", f"Authorization: Bearer {token[1]}") == "200"
    print("ok    a tenant asks, and is counted")

    before = machine.main_pid()
    install(machine, new)
    eventually("the new version is healthy", machine.is_healthy)
    version = machine.run("tollgate", "--version").split()[1]
    running = machine.run("dpkg-query", "-W", "-f", "${Version}", "tollgate")
    assert (version, running) == (version_of(new),) * 2, (version, running)
    assert machine.main_pid() != before, "the old binary still runs"
    assert "TOLLGATE_PROVIDER=simulated" in path.read_text(), "an upgrade keeps the settings"
    assert machine.run(*chat) == "200" and used() == 2, used()
    print("ok    upgraded: the new binary runs on the old data and settings")

    machine.run("kill", "-9", machine.main_pid())
    eventually("systemd has started it again", machine.is_healthy)
    assert used() == 2
    print("ok    killed: it is back, with what was used")

    machine.run("apt-get", "remove", "-y", "tollgate")
    assert machine.fails("pgrep", "-x", "tollgate") and path.exists()
    assert (machine.root / "var/lib/tollgate/tollgate.db").exists()
    install(machine, new)
    eventually("the service that came back is healthy", machine.is_healthy)
    assert used() == 2
    print("ok    removed and installed again: everything is there")

    machine.run("apt-get", "purge", "-y", "tollgate")
    assert machine.fails("pgrep", "-x", "tollgate") and machine.fails("id", "tollgate")
    left = [name for name in ["etc/tollgate", "var/lib/tollgate", "usr/share/tollgate", "usr/bin/tollgate",
                              "etc/systemd/system/multi-user.target.wants/tollgate.service"]
            if os.path.lexists(machine.root / name)]
    assert not left, left
    print("ok    purged: nothing is left")


def version_of(deb: Path) -> str:
    return sh("dpkg-deb", "--field", deb, "Version").strip()


def main(deb: Path, stage: Path, cache: Path) -> None:
    if os.geteuid() != 0:
        sys.exit("a Debian of its own can only be booted as root")
    if not shutil.which("debootstrap", path=os.environ["PATH"] + ":/usr/sbin"):
        sys.exit("debootstrap is missing; install Debian's package debootstrap")
    work = Path(tempfile.mkdtemp(prefix="deb-", dir=make(cache)))
    machine = None
    try:
        fresh_debian(cache, work / "root")
        sh(ROOT / "packaging/deb.sh", OLD, stage, work, env=os.environ | {"DEB_COMPRESSION": "gzip"})
        machine = Machine(work / "root")
        check(machine, next(work.glob("*.deb")), deb)
    except AssertionError:
        if machine:
            said = machine.inside("journalctl", "--no-pager", "-n", "40")
            print(subprocess.run(said, capture_output=True, text=True).stdout, file=sys.stderr)
        raise
    finally:
        if machine:
            machine.end()
        shutil.rmtree(work, ignore_errors=True)


def make(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute(), Path(sys.argv[3]).absolute())
