"""What `make dist` packed is what docs/guide/packages.md says.

usage: packages.py DIST_DIRECTORY NAME_OF_THE_TARBALL
"""

import gzip
import os
import re
import stat
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
ASSETS = ["alerts/tollgate.yml", "dashboards/tollgate.json", "presets/plans.json", "presets/prices.json"]


def tarball(dist: Path, name: str) -> None:
    path = dist / f"{name}.tar.gz"
    with tarfile.open(path) as archive:
        names = set(archive.getnames())
        owners = {(member.uid, member.gid) for member in archive}
    wanted = ["tollgate", "README.md", "LICENSE", "CHANGELOG.md", "man/tollgate.1", "completions/tollgate.bash"]
    wanted += ["completions/_tollgate", "completions/tollgate.fish", "packaging/compose.yaml", "packaging/kubernetes.yaml"]
    wanted += ["packaging/Containerfile", "packaging/tollgate.service"] + [f"assets/{asset}" for asset in ASSETS]
    missing = [file for file in wanted if f"{name}/{file}" not in names]
    assert not missing, f"the tarball lacks {missing}"
    assert owners == {(0, 0)}, owners

    page = (ROOT / "docs/guide/packages.md").read_text()
    commands = re.search(r"<!-- run by: make dist -->\n```sh\n(.*?)```", page, re.DOTALL)[1]
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / path.name).symlink_to(path.absolute())
        environment = {"HOME": home, "PATH": os.environ["PATH"]}
        subprocess.run(["bash", "-euc", commands], cwd=home, env=environment, check=True)
        binary = f"{home}/.local/bin/tollgate"
        version = subprocess.check_output([binary, "--version"], text=True).split()[1]
        assert version in name, version
        manual = Path(home, ".local/share/man/man1/tollgate.1").read_text()
        assert ".TH tollgate" in manual and "TOLLGATE" in manual.upper(), manual[:200]
        completions = f"{home}/.local/share/bash-completion/completions/tollgate"
        completed = 'source "$0"; COMP_WORDS=(tollgate he); COMP_CWORD=1; _tollgate tollgate he tollgate; echo "${COMPREPLY[*]}"'
        words = subprocess.check_output(["bash", "-c", completed, completions], text=True).split()
        assert "healthcheck" in words, words
    print("ok    the tarball, unpacked and installed as the guide says")


def deb(path: Path) -> None:
    fields = subprocess.check_output(["dpkg-deb", "--field", path], text=True)
    assert "Package: tollgate\n" in fields and "Depends: adduser\n" in fields, fields
    listed = subprocess.check_output(["dpkg-deb", "--contents", path], text=True)
    for file in ["./usr/bin/tollgate", "./lib/systemd/system/tollgate.service", "./etc/tollgate/tollgate.env",
                 "./usr/share/man/man1/tollgate.1.gz", *(f"./usr/share/tollgate/{asset}" for asset in ASSETS)]:
        assert f" {file}\n" in listed, f"the .deb lacks {file}:\n{listed}"
    strange = [line for line in listed.splitlines() if " root/root " not in line]
    assert not strange, strange
    with tempfile.TemporaryDirectory() as out:
        subprocess.run(["dpkg-deb", "--extract", path, out], check=True)
        with gzip.open(f"{out}/usr/share/man/man1/tollgate.1.gz") as manual:
            assert b"healthcheck" in manual.read()
    print("ok    the .deb has what it should")


def container(context: Path) -> None:
    containerfile = (context / "Containerfile").read_text()
    sources = re.findall(r"^COPY (?:--\S+ )*(\S+) \S+$", containerfile, re.MULTILINE)
    assert sources == ["tollgate", "directories"], sources
    for source in sources:
        assert (context / source).exists(), f"{source} is not in the image's context"
    for directory in ["data", "tmp"]:
        assert stat.S_IMODE((context / "directories" / directory).stat().st_mode) == 0o700, directory
    assert stat.S_IMODE((context / "tollgate").stat().st_mode) & 0o111
    assert "FROM scratch" in containerfile and "USER 65532" in containerfile
    print("ok    the image's context is whole")


def main(dist: Path, name: str) -> None:
    subprocess.run(["sha256sum", "--quiet", "--strict", "-c", "SHA256SUMS"], cwd=dist, check=True)
    summed = (dist / "SHA256SUMS").read_text()
    packed = [*dist.glob("*.deb"), *dist.glob("*.tar.gz")]
    assert len(packed) == 2 and all(f"  {file.name}\n" in summed for file in packed), (packed, summed)
    tarball(dist, name)
    deb(next(dist.glob("*.deb")))
    container(dist / "container")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
