#!/bin/bash
# Packs tollgate_VERSION_ARCH.deb with dpkg-deb.
#
# usage: packaging/deb.sh VERSION STAGE OUT_DIR
#
# STAGE is what the tarball holds too: the static binary, its manual, completions and assets (see `make dist`).
set -euo pipefail
cd "$(dirname "$0")/.."
version=$1 stage=$2 out=$3

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 0755 "$root"

put() { install -D -m "$1" "$2" "$root/$3"; }
put 0755 "$stage/tollgate" usr/bin/tollgate
put 0644 packaging/tollgate.service lib/systemd/system/tollgate.service
put 0640 packaging/tollgate.env etc/tollgate/tollgate.env
put 0644 "$stage/completions/tollgate.bash" usr/share/bash-completion/completions/tollgate
put 0644 "$stage/completions/_tollgate" usr/share/zsh/vendor-completions/_tollgate
put 0644 "$stage/completions/tollgate.fish" usr/share/fish/vendor_completions.d/tollgate.fish
put 0644 README.md usr/share/doc/tollgate/README.md
put 0644 LICENSE usr/share/doc/tollgate/copyright
install -d "$root/usr/share/man/man1" "$root/usr/share/tollgate"
gzip -9n <"$stage/man/tollgate.1" >"$root/usr/share/man/man1/tollgate.1.gz"
gzip -9n <CHANGELOG.md >"$root/usr/share/doc/tollgate/changelog.gz"
cp -r docs "$root/usr/share/doc/tollgate/"
cp -r "$stage"/assets/{alerts,dashboards,presets} "$root/usr/share/tollgate/"

install -d -m 0755 "$root/DEBIAN"
for script in postinst prerm postrm; do
    install -m 0755 "packaging/debian/$script" "$root/DEBIAN/$script"
done
echo /etc/tollgate/tollgate.env >"$root/DEBIAN/conffiles"
(cd "$root" && find usr lib -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
architecture=$(dpkg --print-architecture)
cat >"$root/DEBIAN/control" <<CONTROL
Package: tollgate
Version: $version
Architecture: $architecture
Maintainer: The tollgate authors <tollgate@example.com>
Section: net
Priority: optional
Depends: adduser
Recommends: ca-certificates
Installed-Size: $(du -ks "$root" | cut -f1)
Description: one binary between an application and its language model
 tollgate meters what each tenant uses, checks the tenant's plan before the
 model runs, and writes usage down before the answer leaves, so that limits
 hold exactly and nothing is lost. Any OpenAI client uses it by changing its
 base URL and key. SQLite inside by default; Postgres and Redis for several
 machines.
CONTROL

# Two builds of one source are the same file.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH
find "$root" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
mkdir -p "$out"
dpkg-deb --root-owner-group -Z"${DEB_COMPRESSION:-xz}" --build "$root" "$out/tollgate_${version}_${architecture}.deb"
