#!/usr/bin/env bash
# Builds the CPU image from Debian packages alone, without a registry, and tries it: doctor, then three steps of the
# quickstart. Needs mmdebstrap, buildah and podman, and 20 GB of disk.
#
# The image's size and the list of its packages (an SBOM) are written to ABOUT (default: build/image).
#
#   deploy/docker/build.sh [PATH]...    files and folders that pip needs while it builds, and nowhere else
#
# pip uses the index of its configuration. Where that is not the public one, name what holds it, for example
# ~/.config/pip, certificates and folders of wheels: each is mounted read-only while it builds and is not in the image.
#
# Where containers cannot be made the usual way, in a sandbox say, tell buildah and podman so by their own variables:
# BUILDAH_ISOLATION=chroot, CONTAINERS_CONF (runtime, cgroup_manager, default_ulimits), CONTAINERS_STORAGE_CONF.
set -euo pipefail
cd "$(dirname "$0")/../.."

image=${IMAGE:-localhost/redraft:cpu}
base=localhost/redraft-base
work=$(mktemp --directory)
trap 'rm -rf "$work"' EXIT

if ! podman image exists "$base"; then
    mmdebstrap --variant=minbase --include=ca-certificates,passwd,python3,python3-venv,libnuma1,wget bookworm "$work/base.tar"
    podman import "$work/base.tar" "$base"
fi

arguments=()
for path in "$@"; do
    arguments+=(--volume "$path:$path:ro")
done
buildah build --layers --network host --format docker --build-arg BASE_IMAGE="$base" "${arguments[@]}" \
    --file deploy/docker/Dockerfile --tag "$image" .

# Beside the image: how large it is, and what is in it.
about=${ABOUT:-build/image}
mkdir --parents "$about"
podman image inspect --format '{{.Size}}' "$image" >"$about/bytes.txt"
podman run --rm --interactive --network none --entrypoint python "$image" - <deploy/docker/sbom.py >"$about/sbom.json"
echo "built: $(cat "$about/bytes.txt") bytes; $about/sbom.json lists what is in it"

run() { podman run --rm --network host --shm-size 2g "$image" "$@"; }
run doctor
run train /opt/redraft/recipes/quickstart.yaml steps=3 evaluation.n=20 learner.batch_groups=16 \
    model.make.pretrain.steps=20
