# shellcheck shell=bash
# Builds kind's node image where no registry can be reached: a small Debian with the
# files of node/, containerd, Kubernetes and the images of the control plane.

readonly NODE_MODULES=(kubernetes etcd coredns pause containerd cni)

node_image_key() {
    local module
    {
        hash_of node lib/node-image.sh lib/image_archive.py lib/debian-root
        for module in "${NODE_MODULES[@]}"; do module_key "$module"; done
    } | sha256sum | cut -c1-16
}

node_image_name() {
    echo "guideway-e2e-node:$(node_image_key)"
}

debian_dir() {
    echo "$CACHE/debian-$(hash_of lib/debian-root)"
}

# The finished archive, for `docker load`.
node_archive() {
    echo "$CACHE/node-image-$(node_image_key).tar"
}

# Makes sure that the archive is there.
build_node_archive() {
    [ -f "$(node_archive)" ] && return
    build_modules "${NODE_MODULES[@]}"
    with_build_lock debian build_debian
    with_build_lock node-image assemble_node
}

build_debian() {
    local out started=$SECONDS log=$CACHE/debootstrap.log
    out=$(debian_dir)
    [ ! -d "$out" ] || return 0
    require debootstrap=debootstrap
    say "making the nodes' Debian with debootstrap (about a minute)"
    as_root rm -rf "$CACHE"/debian-*.new
    as_root "$CLUSTER_DIR/lib/debian-root" "$out.new" >"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        die "debootstrap failed; the whole log is in $log"
    }
    mv "$out.new" "$out"
    keep_newest "$CACHE" "debian-*"
    say "made the nodes' Debian in $((SECONDS - started)) s"
}

assemble_node() {
    local archive work started=$SECONDS
    archive=$(node_archive)
    [ ! -f "$archive" ] || return 0
    say "assembling the node image"
    rm -rf "$CACHE"/node-image-*.new
    work=$archive.new
    mkdir -p "$work/root"
    lay_out_node "$work/root"
    tar -C "$work/root" --owner=0 --group=0 --numeric-owner -cf "$work/node.tar" .
    python3 "$CLUSTER_DIR/lib/image_archive.py" "$work/image.tar" <<EOF
$(node_image_name) /usr/local/bin/entrypoint $(debian_dir)/debian.tar $work/node.tar
EOF
    mv "$work/image.tar" "$archive"
    rm -rf "$work"
    keep_newest "$CACHE" "node-image-*.tar"
    say "assembled the node image in $((SECONDS - started)) s"
}

# The node's files above Debian's. /bin and /sbin are links there, so only /usr here.
lay_out_node() {
    local root=$1 kubernetes containerd
    kubernetes=$(module_dir kubernetes)
    containerd=$(module_dir containerd)
    mkdir -p "$root"/{usr/bin,usr/local/bin,usr/local/lib/node,opt/cni/bin,etc/containerd,kind/images,kind/manifests,kind/patches}
    cp "$kubernetes"/{kubeadm,kubectl,kubelet} "$root/usr/bin/"
    cp "$containerd"/{containerd,containerd-shim-runc-v2,ctr} "$root/usr/local/bin/"
    cp "$(module_dir cni)"/* "$root/opt/cni/bin/"
    cp "$CLUSTER_DIR"/node/{entrypoint,systemctl} "$root/usr/local/bin/"
    cp -r "$CLUSTER_DIR/node/services" "$root/usr/local/lib/node/"
    cp "$CLUSTER_DIR"/node/default-*.yaml "$root/kind/manifests/"
    cp "$CLUSTER_DIR"/node/*+strategic.yaml "$root/kind/patches/"
    echo "$KUBERNETES_VERSION" >"$root/kind/version"
    sed "s|@PAUSE_IMAGE@|$(image_name pause)|" "$CLUSTER_DIR/node/containerd.toml" \
        >"$root/etc/containerd/config.toml"
    write_images "$root/kind/images"
}

# image_name COMPONENT: what kubeadm will ask for, registry and tag included.
image_name() {
    "$(module_dir kubernetes)/kubeadm" config images list --kubernetes-version "$KUBERNETES_VERSION" |
        grep "/$1:" || die "kubeadm $KUBERNETES_VERSION names no image for $1"
}

write_images() {
    local out=$1 kubernetes component
    kubernetes=$(module_dir kubernetes)
    python3 "$CLUSTER_DIR/lib/image_archive.py" "$out/every-node.tar" <<EOF
$(image_name pause) /pause $(module_dir pause)/pause=/pause
$(image_name coredns) /coredns $(module_dir coredns)/coredns=/coredns
$(image_name kube-proxy) - $(debian_dir)/nft.tar $kubernetes/kube-proxy=/usr/local/bin/kube-proxy
EOF
    {
        echo "$(image_name etcd) - $(module_dir etcd)/server=/usr/local/bin/etcd"
        for component in kube-apiserver kube-controller-manager kube-scheduler; do
            echo "$(image_name "$component") - $kubernetes/$component=/usr/local/bin/$component"
        done
    } | python3 "$CLUSTER_DIR/lib/image_archive.py" "$out/control-plane.tar"
}
