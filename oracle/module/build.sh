#!/usr/bin/env bash
# Builds the modules beside it against Debian's kernel headers, which are fetched as packages and unpacked beside it; nothing is installed.
#   build.sh DIR [RELEASE [MODULE ...]]
# Leaves DIR/RELEASE/MODULE.ko for each (and the headers, about 130 MB). RELEASE is a whole release such as 6.1.0-56-cloud-amd64 (the default) or
# 6.12.117+deb12-cloud-amd64; only vmalloc_probe is written for others than 6.1 on x86-64. MODULEs restrict which modules are built (without .c).
# Needs gcc, make and a Debian whose package lists have that kernel; for i386 also dpkg --add-architecture i386, and gcc-multilib.
set -euo pipefail
dir=${1:?usage: build.sh DIR [RELEASE]} release=${2:-6.1.0-56-cloud-amd64}
here=$(cd "$(dirname "$0")" && pwd)
for program in gcc make apt-get dpkg; do
  command -v $program > /dev/null || { echo "build.sh: needs $program" >&2; exit 1; }
done
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)/$release
shift $(($# < 2 ? $# : 2))
modules=${*:-$(cd "$here" && basename -s .c -- *.c)}
case $release in
  *-686 | *-686-pae) arch=:i386 ;;
  *) arch= ;;
esac
stale=
for module in $modules; do [ "$dir/$module.ko" -nt "$here/$module.c" ] || stale=1; done
if [ -z "$stale" ]; then
  echo "the modules in $dir are up to date"
  exit 0
fi
mkdir -p "$dir"
if [ ! -d "$dir/usr" ]; then
  version=$(echo "$release" | sed -E 's/-(cloud-|rt-)?(amd64|686|686-pae)$//')
  kbuild=linux-kbuild-$version
  apt-cache show "$kbuild" > /dev/null 2>&1 || kbuild=linux-kbuild-$(echo "$release" | grep -oE '^[0-9]+\.[0-9]+')
  (
    cd "$dir"
    apt-get download -q "linux-headers-$release$arch" "linux-headers-$version-common" "$kbuild" > /dev/null
    for deb in ./*.deb; do dpkg -x "$deb" .; done
    rm -f ./*.deb
    # The packages name each other by absolute paths.
    find usr/src -maxdepth 2 -type f \( -name Makefile -o -name .kernelvariables \) -exec sed -i "s#/usr/src/linux-headers#$dir/usr/src/linux-headers#g" {} +
  )
fi
rm -rf "$dir/build"
mkdir "$dir/build"
cp "$here/Makefile" "$dir/build/"
for module in $modules; do cp "$here/$module.c" "$dir/build/"; done
# No BTF: it would need pahole, and nothing here reads it.
make -s -C "$dir/usr/src/linux-headers-$release" CONFIG_DEBUG_INFO_BTF_MODULES= M="$dir/build" modules
for module in $modules; do
  strip --strip-debug -o "$dir/$module.ko" "$dir/build/$module.ko"
  echo "wrote $dir/$module.ko"
done
