# shellcheck shell=bash
# Debian packages the commands need, installed only where a program is missing.

# require PROGRAM=PACKAGE…
require() {
    local pair
    local -a missing=()
    for pair; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
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
