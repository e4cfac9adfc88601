"""Writes container images as one docker-archive, without an engine.

usage: image_archive.py OUT < DESCRIPTION

Each line of DESCRIPTION is an image: NAME ENTRYPOINT LAYER..., where ENTRYPOINT
may be "-" for none and LAYER is a tar archive or one program as PATH=DESTINATION.
"""

import hashlib
import io
import json
import os
import platform
import sys
import tarfile

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def program_layer(source, destination):
    """A layer with one executable; no times in it, so that equal input gives equal bytes."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        entry = tarfile.TarInfo(destination.lstrip("/"))
        entry.mode = 0o755
        entry.size = os.path.getsize(source)
        with open(source, "rb") as program:
            tar.addfile(entry, program)
    layer.seek(0)
    return layer


def open_layer(description):
    source, separator, destination = description.partition("=")
    return program_layer(source, destination) if separator else open(source, "rb")


def add(tar, name, content):
    """Adds what is left to read in a file object."""
    start = content.tell()
    entry = tarfile.TarInfo(name)
    entry.size = content.seek(0, io.SEEK_END) - start
    content.seek(start)
    tar.addfile(entry, content)


def add_image(tar, written, name, entrypoint, layers):
    """Adds what is not in the archive yet and returns the image's manifest entry."""
    digests = []
    for description in layers:
        with open_layer(description) as layer:
            digest = hashlib.file_digest(layer, "sha256").hexdigest()
            digests.append(digest)
            if digest not in written:
                written.add(digest)
                layer.seek(0)
                add(tar, f"{digest}.tar", layer)
    config = json.dumps({
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {
            "Env": [f"PATH={PATH}"],
            "Entrypoint": None if entrypoint == "-" else [entrypoint],
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
    }).encode()
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    add(tar, config_name, io.BytesIO(config))
    return {"Config": config_name, "RepoTags": [name], "Layers": [f"{d}.tar" for d in digests]}


def main():
    written = set()
    with tarfile.open(sys.argv[1], "w") as tar:
        manifest = [
            add_image(tar, written, *line.split()[:2], line.split()[2:])
            for line in sys.stdin
            if line.strip()
        ]
        add(tar, "manifest.json", io.BytesIO(json.dumps(manifest).encode()))


if __name__ == "__main__":
    main()
