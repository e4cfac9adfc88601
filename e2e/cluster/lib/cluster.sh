# shellcheck shell=bash
# The kind cluster itself: create, check, connect, delete.

readonly PUBLISHED_PORTS=(30080 30081 30082 30083)

kind() {
    in_network "$(module_dir kind)/kind" "$@" 9>&-
}

kubectl() {
    in_network "$STATE/bin/kubectl" --request-timeout=10s "$@"
}

node_containers() {
    docker ps --format '{{.Names}}' --filter "label=io.x-k8s.kind.cluster=$CLUSTER" "$@" | sort
}

cluster_exists() {
    [ -n "$(node_containers --all)" ]
}

nodes_running() {
    local running
    running=$(node_containers)
    [ -n "$running" ] && [ "$running" = "$(node_containers --all)" ]
}

# Whether `up` got to its end with this cluster, and did not die on the way.
cluster_complete() {
    nodes_running && docker exec "$CLUSTER-control-plane" test -e /kind/complete
}

# Quick: what someone who types `up` twice waits for.
cluster_healthy() {
    if [ ! -s "$KUBECONFIG" ] || [ ! -x "$STATE/bin/kubectl" ]; then
        connect || return 1
    fi
    [ "$(ready_nodes)" = "$(node_containers | wc -l)" ]
}

ready_nodes() {
    kubectl get nodes -o \
        'jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}' 2>/dev/null |
        grep -c True
}

# A test that was killed may have left the API server stopped for a moment.
wait_healthy() {
    local deadline=$((SECONDS + $1))
    until cluster_healthy; do
        ((SECONDS < deadline)) || return 1
        sleep 1
    done
}

# Sets NODE_IMAGE, for `kind create`, and NODE_IMAGE_BUILT: whether it was built here.
choose_node_image() {
    NODE_IMAGE=${GUIDEWAY_E2E_NODE_IMAGE:-}
    NODE_IMAGE_BUILT=no
    [ -z "$NODE_IMAGE" ] || return 0
    if [ "$ENGINE" = host ] && pull_official_image; then
        return
    fi
    NODE_IMAGE_BUILT=yes
    load_node_image
}

# kind names the node image it was released with in its source.
pull_official_image() {
    local source
    source=$(cd "$CLUSTER_DIR/modules/kind" && go list -m -f '{{.Dir}}' sigs.k8s.io/kind)
    NODE_IMAGE=$(sed -n 's/^const Image = "\(.*\)"$/\1/p' "$source/pkg/apis/config/defaults/image.go")
    docker image inspect "$NODE_IMAGE" >/dev/null 2>&1 && return
    say "pulling $NODE_IMAGE"
    docker pull --quiet "$NODE_IMAGE" >/dev/null && return
    say "no registry in reach: using a node image built here"
    return 1
}

load_node_image() {
    local started
    build_node_archive
    started=$SECONDS
    NODE_IMAGE=$(node_image_name)
    docker image inspect "$NODE_IMAGE" >/dev/null 2>&1 && return
    docker load --quiet --input "$(node_archive)" >/dev/null
    say "loaded the node image in $((SECONDS - started)) s"
}

create_cluster() {
    local nodes=$1
    say "creating a cluster with $nodes node(s) from $NODE_IMAGE"
    kind_config "$nodes" >"$STATE/kind.yaml"
    kind create cluster --name "$CLUSTER" --image "$NODE_IMAGE" --config "$STATE/kind.yaml" \
        --kubeconfig "$KUBECONFIG" --retain || give_up "kind could not create the cluster"
}

# Shows what the nodes say, while they are still there.
give_up() {
    local node
    for node in $(node_containers --all); do
        say "last lines of $node:"
        docker logs --tail 8 "$node" >&2 || true
    done
    die "$1; more is in /var/log of the nodes (docker --host ${DOCKER_HOST:-default} exec NODE …); e2e/cluster/up tries again from the start"
}

kind_config() {
    local nodes=$1 port i
    cat <<EOF
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
networking:
  kubeProxyMode: nftables
nodes:
- role: control-plane
  extraPortMappings:
EOF
    for port in "${PUBLISHED_PORTS[@]}"; do
        echo "  - {containerPort: $port, hostPort: $port, listenAddress: 127.0.0.1}"
    done
    for ((i = 1; i < nodes; i++)); do
        echo "- role: worker"
    done
    cat <<EOF
kubeadmConfigPatches:
- |
  kind: KubeletConfiguration
  # Machines with version 1 of cgroups still exist.
  failCgroupV1: false
EOF
    [ "$NODE_IMAGE_BUILT" = no ] || built_image_patches
}

# The node image built here has no systemd to manage cgroups, but patches for kubeadm.
built_image_patches() {
    cat <<EOF
  cgroupDriver: cgroupfs
- |
  kind: InitConfiguration
  patches:
    directory: /kind/patches
EOF
}

# Everything a command outside the cluster needs.
connect() {
    build_modules kind
    mkdir -p "$STATE/bin"
    kind get kubeconfig --name "$CLUSTER" >"$KUBECONFIG.new" || return
    chmod 600 "$KUBECONFIG.new"
    mv "$KUBECONFIG.new" "$KUBECONFIG"
    ln -sf "$(module_dir kind)/kind" "$STATE/bin/kind"
    [ "$ENGINE" = host ] || ln -sf /usr/bin/docker "$STATE/bin/docker"
    docker cp "$CLUSTER-control-plane:/usr/bin/kubectl" "$STATE/bin/kubectl" >/dev/null
}

# What kind leaves to its user.
finish_cluster() {
    # Workloads may run on every node, as they may with one.
    kubectl taint nodes --all node-role.kubernetes.io/control-plane- >/dev/null 2>&1 || true
    if ! wait_complete; then
        kubectl get nodes,pods --all-namespaces --output wide >&2 || true
        give_up "the cluster did not get ready"
    fi
    [ "$ENGINE" = host ] || route_pods
    docker exec "$CLUSTER-control-plane" touch /kind/complete
}

wait_complete() {
    kubectl wait nodes --all --for=condition=Ready --timeout=120s --request-timeout=0 >/dev/null &&
        kubectl --namespace kube-system rollout status --timeout=120s --request-timeout=0 \
            daemonset/kube-proxy deployment/coredns >/dev/null
}

# The own network namespace is nobody else's, so it may know the way to pods and Services.
route_pods() {
    local name range address
    kubectl get nodes -o 'jsonpath={range .items[*]}{.metadata.name}|{.spec.podCIDR}|{.status.addresses[?(@.type=="InternalIP")].address}{"\n"}{end}' |
        while IFS='|' read -r name range address; do
            add_route "$range" "$address"
            # kind's range of Service addresses; any node's kube-proxy would do.
            [ "$name" != "$CLUSTER-control-plane" ] || add_route 10.96.0.0/16 "$address"
        done
}

add_route() {
    as_root nsenter --net="/proc/$(own_engine_pid)/ns/net" -- ip route replace "$1" via "$2"
}
