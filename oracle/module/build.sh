#!/usr/bin/env bash
# Builds the modules of this directory against Debian's kernel headers, which are fetched as packages and unpacked beside it; nothing is installed.
#   build.sh DIR [RELEASE]
# Leaves DIR/RELEASE/*.ko, one per C file (and the headers, about 130 MB). RELEASE is a whole release such as 6.1.0-56-cloud-amd64 (the default).
# Needs gcc, make and a Debian whose package lists have that kernel.
set -euo pipefail
dir=${1:?usage: build.sh DIR [RELEASE]} release=${2:-6.1.0-56-cloud-amd64}
here=$(cd "$(dirname "$0")" && pwd)
for program in gcc make apt-get dpkg; do
  command -v $program > /dev/null || { echo "build.sh: needs $program" >&2; exit 1; }
done
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)/$release
modules=$(cd "$here" && for source in *.c; do echo "${source%.c}"; done)
stale=
for module in $modules; do [ "$dir/$module.ko" -nt "$here/$module.c" ] || stale=1; done
if [ -z "$stale" ]; then
  echo "$dir: all modules are up to date"
  exit 0
fi
mkdir -p "$dir"
if [ ! -d "$dir/usr" ]; then
  common=$(echo "$release" | sed -E 's/-(cloud-|rt-)?amd64$//')-common
  kbuild=linux-kbuild-$(echo "$release" | grep -oE '^[0-9]+\.[0-9]+')
  (
    cd "$dir"
    apt-get download -q "linux-headers-$release" "linux-headers-$common" "$kbuild" > /dev/null
    for deb in ./*.deb; do dpkg -x "$deb" .; done
    rm -f ./*.deb
    # The packages name each other by absolute paths.
    find usr/src -maxdepth 2 -type f \( -name Makefile -o -name .kernelvariables \) -exec sed -i "s#/usr/src/linux-headers#$dir/usr/src/linux-headers#g" {} +
  )
fi
rm -rf "$dir/build"
mkdir "$dir/build"
cp "$here"/*.c "$dir/build/"
for module in $modules; do echo "obj-m += $module.o"; done > "$dir/build/Makefile"
make -s -C "$dir/usr/src/linux-headers-$release" M="$dir/build" modules
for module in $modules; do
  strip --strip-debug -o "$dir/$module.ko" "$dir/build/$module.ko"
  echo "wrote $dir/$module.ko"
done
