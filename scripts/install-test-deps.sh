#!/usr/bin/env bash
# Installs what the tests need on Debian bookworm or trixie: the foreign programs that judge the
# daemon (QEMU, libnbd, fio, nbd-client, dissect.hypervisor), and a Linux kernel for the guest that
# mounts its exports. Does nothing, and asks no mirror anything, when all is there.
#
#   target/test-deps/venv      Python with dissect.hypervisor (the system's Python is not touched)
#   target/test-deps/kernel    an unpacked Debian cloud kernel (nothing of it is installed)
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
deps="$root/target/test-deps"

packages=(
    libnbd-bin python3-libnbd fio nbd-client        # NBD clients
    busybox-static e2fsprogs kmod cpio zstd xz-utils # the guest's initramfs, packed images
    syslinux mtools dosfstools                      # a disk that a guest boots from
    dmsetup                                         # a device that fails, in the guest
    binutils curl strace systemd valgrind           # valgrind counts instructions
    python3 python3-venv
)
qemu_packages=(qemu-system-x86 qemu-utils)
# The first QEMU whose NBD client speaks extended headers.
qemu_minimum=8.2

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -y -q -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 "$@"
}

lists_are_fresh=
refresh_lists() {
    [ -n "$lists_are_fresh" ] || apt_get update
    lists_are_fresh=yes
}

installed_version() {
    dpkg-query -W -f '${db:Status-Status} ${Version}\n' "$1" 2>/dev/null | sed -n 's/^installed //p'
}

# Prints those of "$@" that are not installed.
missing_of() {
    for package in "$@"; do
        [ -n "$(installed_version "$package")" ] || echo "$package"
    done
}

qemu_is_recent() {
    for package in "${qemu_packages[@]}"; do
        local version
        version="$(installed_version "$package")"
        [ -n "$version" ] && dpkg --compare-versions "${version#*:}" ge "$qemu_minimum" || return 1
    done
}

# Bookworm's own QEMU is too old, and mixing its system emulator with newer tools would remove the
# tools: both come from the backports of whatever mirror this machine already uses.
add_backports_source() {
    local codename="$1" mirror
    if apt-get indextargets --format '$(CODENAME)' 'Created-By: Packages' | grep -qx "$codename-backports"; then
        return
    fi
    mirror="$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' \
        "Codename: $codename" 'Component: main' | head -n 1)"
    [ -n "$mirror" ] || { echo "no apt source for $codename to derive its backports from" >&2; return 1; }
    as_root tee /etc/apt/sources.list.d/diskchain-test-backports.sources >/dev/null <<SOURCE
Types: deb
URIs: $mirror
Suites: $codename-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCE
    lists_are_fresh=
}

install_packages() {
    local missing codename
    if ! command -v apt-get >/dev/null; then
        echo "not a Debian: please install ${qemu_packages[*]} ${packages[*]}" >&2
        return 1
    fi
    missing="$(missing_of "${packages[@]}")"
    if [ -n "$missing" ]; then
        refresh_lists
        # shellcheck disable=SC2086 # one word per package
        apt_get install --no-install-recommends $missing
    fi
    if ! qemu_is_recent; then
        codename="$(. /etc/os-release && echo "${VERSION_CODENAME:-}")"
        refresh_lists
        if [ "$codename" = bookworm ]; then
            add_backports_source "$codename"
            refresh_lists
            apt_get install --no-install-recommends -t "$codename-backports" "${qemu_packages[@]}"
        else
            apt_get install --no-install-recommends "${qemu_packages[@]}"
        fi
    fi
}

install_python_readers() {
    local venv="$deps/venv"
    "$venv/bin/python" -c 'import dissect.hypervisor' 2>/dev/null && return
    rm -rf "$venv"
    /usr/bin/python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check dissect.hypervisor
}

# Leaves boot/vmlinuz-VERSION and lib/modules/VERSION (with modules.dep) under target/test-deps/kernel.
unpack_kernel() {
    local kernel="$deps/kernel" image unpacked
    compgen -G "$kernel/lib/modules/*/modules.dep" >/dev/null && return
    refresh_lists
    image="$(apt-cache depends --important linux-image-cloud-amd64 |
        sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)"
    [ -n "$image" ] || { echo "linux-image-cloud-amd64 names no kernel package" >&2; return 1; }
    unpacked="$(mktemp -d "$deps/kernel.XXXXXX")"
    # No sandbox user: it could not write here.
    (cd "$unpacked" && apt-get download -q -o APT::Sandbox::User=root "$image" && dpkg-deb -x "$image"_*.deb . && rm ./*.deb)
    # Trixie's kernel packages put the modules under usr/lib.
    if [ -d "$unpacked/usr/lib/modules" ]; then
        mkdir -p "$unpacked/lib"
        mv "$unpacked/usr/lib/modules" "$unpacked/lib/modules"
    fi
    find "$unpacked/lib/modules" -name '*.ko.xz' -exec xz --decompress {} +
    /usr/sbin/depmod -b "$unpacked" "$(ls "$unpacked/lib/modules")"
    rm -rf "$kernel"
    mv "$unpacked" "$kernel"
}

mkdir -p "$deps"
install_packages
install_python_readers
unpack_kernel
