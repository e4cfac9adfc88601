# shellcheck shell=bash
# Debian packages the commands need, installed only where a program is missing.

# require PROGRAM=PACKAGE…
require() {
    [ -z "$(missing_packages "$@")" ] || with_build_lock packages install_missing "$@"
}

missing_packages() {
    local pair
    for pair; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%=*}" >/dev/null || echo "${pair#*=}"
    done
}

# The images and the cluster are built side by side, and apt-get serves one at a time.
install_missing() {
    local -a missing
    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"
}

install_packages() {
    command -v apt-get >/dev/null ||
        die "missing here, and there is no apt-get to install it with: $*"
    say "installing Debian packages: $*"
    local log=$CACHE/apt.log
    mkdir -p "$CACHE"
    as_root bash -s -- "$@" >"$log" 2>&1 <"$CLUSTER_DIR/lib/install-quietly" || {
        tail -n 20 "$log" >&2
        die "apt-get could not install $*; the whole log is in $log"
    }
}
