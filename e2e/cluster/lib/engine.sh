# shellcheck shell=bash
# The Docker engine: the machine's own where there is one, otherwise Debian's in
# namespaces of its own.

# Not in the cache: it belongs to root, and sockets need short paths.
readonly ENGINE_DIR=/var/lib/guideway-e2e
readonly ENGINE_SOCKET=unix://$ENGINE_DIR/docker.sock
readonly ENGINE_CGROUP=guideway-e2e

# "host" or "own", once find_engine has run.
ENGINE=

case ${GUIDEWAY_E2E_ENGINE:-own} in
host | own) ;;
*) die "GUIDEWAY_E2E_ENGINE=$GUIDEWAY_E2E_ENGINE: must be host or own, or not set" ;;
esac

# Process that holds the own engine's network namespace.
own_engine_pid() {
    local pid
    pid=$(cat "$ENGINE_DIR/pid" 2>/dev/null) || return 1
    # After a reboot or a crash the number may belong to someone else.
    tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -q "^unshare .*$ENGINE_DIR" || return 1
    echo "$pid"
}

# Fails when no engine is running that we could use.
find_engine() {
    if [ "${GUIDEWAY_E2E_ENGINE:-own}" = own ] && own_engine_pid >/dev/null; then
        use_own_engine
    elif [ "${GUIDEWAY_E2E_ENGINE:-host}" = host ] && timeout 20 docker info >/dev/null 2>&1; then
        ENGINE=host
    else
        return 1
    fi
}

use_own_engine() {
    ENGINE=own
    export DOCKER_HOST=$ENGINE_SOCKET
    # Debian's client first: a newer one may refuse to talk to Debian's engine.
    export PATH=/usr/bin:/usr/sbin:$PATH
}

# in_network COMMAND…: where the API server's published port is on 127.0.0.1.
in_network() {
    if [ "$ENGINE" = host ]; then
        "$@"
    elif [ "$(id -u)" = 0 ]; then
        nsenter --net="/proc/$(own_engine_pid)/ns/net" -- "$@"
    else
        # sudo drops PATH even with -E; files must stay the caller's.
        sudo -E nsenter --net="/proc/$(own_engine_pid)/ns/net" -- \
            setpriv --reuid="$(id -u)" --regid="$(id -g)" --init-groups \
            env "PATH=$PATH" "HOME=$HOME" "$@"
    fi
}

start_own_engine() {
    local started=$SECONDS
    [ "${GUIDEWAY_E2E_ENGINE:-own}" = own ] ||
        die "GUIDEWAY_E2E_ENGINE=host, but 'docker info' fails: start Docker, or unset the variable"
    require dockerd=docker.io runc=runc ip=iproute2 iptables=iptables nsenter=util-linux
    remove_own_engine
    say "starting a Docker engine in a network namespace of its own"
    # It outlives this command: no terminal, no lock, not our process group.
    as_root setsid --fork "$CLUSTER_DIR/engine/start" "$ENGINE_DIR" "$(id -g)" "$ENGINE_CGROUP" \
        </dev/null >/dev/null 2>&1 9>&-
    use_own_engine
    until timeout 5 docker info >/dev/null 2>&1; do
        if ((SECONDS - started > 60)) || { ((SECONDS - started > 2)) && ! own_engine_pid >/dev/null; }; then
            tail -n 20 "$ENGINE_DIR/dockerd.log" >&2
            die "dockerd ended, or did not answer within 60 s; its log is in $ENGINE_DIR/dockerd.log"
        fi
        sleep 0.1
    done
}

# Everything of the own engine, running or left behind by a crash.
remove_own_engine() {
    local pid
    if pid=$(own_engine_pid); then
        stop_own_engine "$pid"
    fi
    remove_cgroups
    # Its mounts went with its mount namespace; --one-file-system in case they did not.
    if [ -e "$ENGINE_DIR" ]; then
        as_root rm -rf --one-file-system "$ENGINE_DIR"
    fi
}

# Killing the namespace's first process makes the kernel end all others in it.
stop_own_engine() {
    local pid=$1 first
    first=$(cat "/proc/$pid/task/$pid/children" 2>/dev/null || true)
    as_root kill -KILL "$pid"
    for pid in $pid $first; do
        while [ -d "/proc/$pid" ]; do sleep 0.05; done
    done
}

# Containers leave empty groups behind when their engine is killed; children first.
remove_cgroups() {
    local root
    for root in "/sys/fs/cgroup/$ENGINE_CGROUP" "/sys/fs/cgroup"/*/"$ENGINE_CGROUP"; do
        [ -d "$root" ] || continue
        as_root find "$root" -depth -type d -exec rmdir {} +
    done
}
