# Sourced by the script that runs a page of the documentation (tests/it/docs/scene.rs); the script ends at the first
# command that fails, and names its block.
set -Eeuo pipefail

at() {
    place=$1
}
trap 'echo "--- failed in ${place:-the scene} (line $LINENO): $BASH_COMMAND" >&2' ERR

mkdir -p "$SCENE/bin" "$SCENE/etc" "$SCENE/backups"
export HOME=$SCENE TZ=UTC LC_ALL=C.UTF-8 NO_COLOR=1
export PATH=$SCENE/bin:$PATH
# As a reader's server is that was started with no more than the page says: the model is simulated.
export TOLLGATE_LISTEN=$SCENE_ADDRESS TOLLGATE_PROVIDER=simulated ENABLE_USAGE_GUARDRAILS=true

command_named() {
    cat >"$SCENE/bin/$1"
    chmod +x "$SCENE/bin/$1"
}

# `tollgate serve` stays in the foreground and would be the last command of the page: here it replaces the server that
# runs, in the background, and returns when it takes requests.
command_named tollgate <<'SHIM'
#!/bin/bash
if [ "${1:-}" != serve ]; then
    exec "$SCENE_BINARY" "$@"
fi
systemctl stop tollgate
cd "$SCENE"
setsid "$SCENE_BINARY" "$@" >"$SCENE/server.out" 2>>"$SCENE/server.log" </dev/null &
echo $! >"$SCENE/server.pid"
for _ in $(seq 600); do
    code=$(/usr/bin/curl -s -o /dev/null -w '%{http_code}' "http://$SCENE_ADDRESS/readyz" || true)
    [ "$code" = 200 ] && exit 0
    kill -0 "$(cat "$SCENE/server.pid")" 2>/dev/null || break
    sleep 0.05
done
echo "the server does not start: $(tail -n 3 "$SCENE/server.log")" >&2
exit 1
SHIM

command_named systemctl <<'SHIM'
#!/bin/bash
id=$(cat "$SCENE/server.pid" 2>/dev/null || true)
stop() {
    [ -n "$id" ] || return 0
    /usr/bin/curl -s "http://$SCENE_ADDRESS/metrics" >>"$SCENE/metrics" || true
    kill -TERM "$id" 2>/dev/null || true
    while kill -0 "$id" 2>/dev/null; do sleep 0.02; done
    rm -f "$SCENE/server.pid"
}
case "$1" in
    stop) stop ;;
    start | restart) exec tollgate serve ;;
    *) ;;
esac
SHIM

command_named cargo <<'SHIM'
#!/bin/bash
[ "$1 ${2:-} ${3:-}" = "run --release --" ] || { echo "cargo $* is not run here" >&2; exit 1; }
shift 3
exec tollgate "$@"
SHIM

command_named sudo <<'SHIM'
#!/bin/bash
[ "$1" = -u ] && shift 2
exec "$@"
SHIM

command_named journalctl <<'SHIM'
#!/bin/bash
exec cat "$SCENE/server.log" "$SCENE/server.out"
SHIM

stop_server() {
    systemctl stop tollgate
}

# For pages that begin with nothing.
fresh_server() {
    stop_server
    rm -rf "$SCENE/var"
    tollgate serve
}

export TOLLGATE_DATA_DIR=$SCENE/var
tollgate serve --dev
# What it printed to be pasted.
eval "$(grep '^export ' "$SCENE/server.out")"
