# shellcheck shell=bash
# Builds the programs pinned in modules/ and keeps them in the cache.

# Of all that determines a module's programs.
module_key() {
    local module=$1
    {
        hash_of "modules/$module"
        linker_flags "$module"
        go env GOVERSION GOARCH
    } | sha256sum | cut -c1-16
}

# The folder of a module's programs, whether built yet or not.
module_dir() {
    echo "$CACHE/tools/$1-$(module_key "$1")"
}

# Kubernetes reads its own version from variables that the linker sets.
linker_flags() {
    printf -- '-s -w'
    [ "$1" = kubernetes ] || return 0
    local package major minor
    IFS=. read -r major minor _ <<<"${KUBERNETES_VERSION#v}"
    for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        printf -- ' -X %s.%s' "$package" "gitVersion=$KUBERNETES_VERSION" \
            "$package" "gitMajor=$major" "$package" "gitMinor=$minor" "$package" gitTreeState=clean
    done
}

# build_modules NAME…
build_modules() {
    local module
    command -v go >/dev/null || die "go is not in PATH: install Go 1.26 or newer"
    for module; do
        [ -d "$(module_dir "$module")" ] || with_build_lock "tools-$module" build_module "$module"
    done
}

build_module() {
    local module=$1 out target=tool started=$SECONDS
    out=$(module_dir "$module")
    # Someone else may have built it while we waited for the lock.
    [ ! -d "$out" ] || return 0
    rm -rf "$CACHE/tools/$module-"*.new
    mkdir -p "$out.new"
    [ ! -f "$CLUSTER_DIR/modules/$module/main.go" ] || target=.
    say "building $module from its Go modules$(expectation "$module")"
    (
        cd "$CLUSTER_DIR/modules/$module"
        CGO_ENABLED=0 GOFLAGS=-mod=readonly nice -n 5 \
            go build -trimpath -ldflags "$(linker_flags "$module")" -o "$out.new/" "$target"
    ) || die "go could not build $module; see its messages above"
    mv "$out.new" "$out"
    keep_newest "$CACHE/tools" "$module-*"
    say "built $module in $((SECONDS - started)) s"
}

expectation() {
    case $1 in
    kubernetes) echo " (about ten minutes on two cores, the first time)" ;;
    containerd | coredns) echo " (two to three minutes on two cores, the first time)" ;;
    esac
}
