#!/bin/bash
# Runs one RUN step of a Dockerfile's builder stage without a container engine: this host's programs,
# read-only but for a memory overlay, with /src, /target and /out as given.
#
#   run-step.sh CONTEXT TARGET OUT COMMAND      (root; the environment is the step's)
set -euo pipefail

if [ "${STEP_STAGE:-outside}" = outside ]; then
    [ "$(id -u)" = 0 ] || { echo "a builder stage takes root here" >&2; exit 125; }
    STEP_STAGE=inside exec unshare --mount "$0" "$@"
fi

mount --make-rprivate /
stage=$(mktemp -d)
mount -t tmpfs -o mode=755 diskchain-test "$stage"
mkdir "$stage"/{upper,work,root}
root=$stage/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$stage/upper,workdir=$stage/work" "$root"
# cargo's downloads are kept, as by the step's own cache mount.
caches=("${CARGO_HOME:-$HOME/.cargo}" "${RUSTUP_HOME:-$HOME/.rustup}")
for folder in /proc /sys /dev "${caches[@]}"; do
    [ ! -d "$folder" ] || mount --rbind "$folder" "$root$folder"
done
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mkdir -p "$root"/{src,target,out}
mount --bind "$1" "$root/src"
mount --bind "$2" "$root/target"
mount --bind "$3" "$root/out"
exec chroot "$root" /bin/sh -c "cd /src && $4"
