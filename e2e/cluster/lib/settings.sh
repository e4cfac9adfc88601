# shellcheck shell=bash
# shellcheck disable=SC2034  # other files use what is set here
# Names, places and messages that all commands here share.

readonly CLUSTER=guideway
readonly KUBERNETES_VERSION=v1.36.3

CLUSTER_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly CLUSTER_DIR
REPOSITORY=$(cd "$CLUSTER_DIR/../.." && pwd)
readonly REPOSITORY

# What took long to build: kept until someone deletes it.
readonly CACHE=${GUIDEWAY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/guideway}
# What belongs to the running cluster: `down` deletes it.
readonly STATE=$CACHE/cluster
export KUBECONFIG=$STATE/kubeconfig

say() {
    printf 'cluster: %s\n' "$*" >&2
}

die() {
    printf 'cluster: error: %s\n' "$*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root, and there is no sudo: run it as root, or provide a Docker engine ('docker info' must work)"
    fi
}

# One `up` or `down` at a time; the lock goes with the process.
lock_cluster() {
    mkdir -p "$CACHE"
    exec 9>"$CACHE/cluster.lock"
    flock --nonblock 9 && return
    say "waiting for another up or down to finish"
    flock 9
}

# with_build_lock NAME COMMAND…: two builds of one thing would be work done twice.
with_build_lock() {
    local name=$1
    shift
    mkdir -p "$CACHE/locks"
    (
        flock 8
        "$@"
    ) 8>"$CACHE/locks/$name"
}

# hash_of FILE_OR_FOLDER…: of names and contents, so that it is the same in every checkout.
hash_of() {
    (
        cd "$CLUSTER_DIR" || exit
        find "$@" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    ) | sha256sum | cut -c1-16
}

# keep_newest FOLDER PATTERN: deletes all but two versions of a cached thing; two,
# because two checkouts may take turns.
keep_newest() {
    local -a found
    mapfile -t found < <(find "$1" -maxdepth 1 -name "$2" -printf '%T@ %p\n' | sort -rn | cut -d' ' -f2-)
    as_root rm -rf -- "${found[@]:2}"
}
