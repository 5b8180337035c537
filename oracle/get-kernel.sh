#!/usr/bin/env bash
# Fetches a Debian kernel, its modules and its debug symbols as packages and unpacks them; nothing is installed.
#   get-kernel.sh DIR [RELEASE]
# RELEASE is a version such as 6.1 (the newest cloud kernel of that series; the default), 6.1-686 or 6.1-686-pae (its newest 32-bit kernel of that
# flavour; "dpkg --add-architecture i386" first), or a whole release such as 6.1.0-56-cloud-amd64.
# 32-bit kernels also get DIR/busybox, a 32-bit one for their guests.
# Leaves DIR/vmlinuz, vmlinux (DWARF), config, modules/ and release. Needs a Debian with 6.1 in its package lists and about 1 GB of disk.
set -euo pipefail
dir=${1:?usage: get-kernel.sh DIR [RELEASE]} series=${2:-6.1}
command -v apt-get > /dev/null || { echo "get-kernel.sh: apt-get is not here; the kernels are Debian packages" >&2; exit 1; }
mkdir -p "$dir"
cd "$dir"
case $series in
  *-*-amd64 | *-*-686 | *-*-686-pae) release=$series ;;
  *)
    flavour=cloud-amd64
    case $series in
      *-*) flavour=${series#*-} series=${series%%-*} ;;
    esac
    pattern="^linux-image-${series//./\\.}\\.[0-9][0-9.]*-[0-9]+-$flavour-dbg$"
    release=$(apt-cache search --names-only "$pattern" | awk '{print $1}' | sed 's/^linux-image-//; s/-dbg$//' | sort -V | tail -n 1)
    [ -n "$release" ] || { echo "get-kernel.sh: no kernel $series in the package lists; run apt-get update, or name a whole release" >&2; exit 1; }
    ;;
esac
if [ -f release ] && [ "$(cat release)" = "$release" ] && [ -f vmlinux ]; then
  echo "$dir has $release already"
  exit 0
fi
apt-get download -q "linux-image-$release" "linux-image-$release-dbg"
rm -rf unpack modules
mkdir unpack
for deb in linux-image-"$release"_*.deb; do dpkg -x "$deb" unpack; done
dpkg-deb --fsys-tarfile linux-image-"$release"-dbg_*.deb | tar x -C unpack ./usr/lib/debug/boot
mv unpack/boot/vmlinuz-* vmlinuz
mv unpack/boot/config-* config
mv unpack/usr/lib/debug/boot/vmlinux-* vmlinux
mv unpack/lib/modules/"$release" modules
case $release in
  *-686 | *-686-pae)
    apt-get download -q busybox-static:i386
    dpkg -x busybox-static_*_i386.deb unpack
    mv unpack/bin/busybox busybox
    ;;
esac
rm -rf unpack ./*.deb
echo "$release" > release
echo "wrote $release to $dir"
