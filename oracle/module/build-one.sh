#!/usr/bin/env bash
# Builds one module of this directory against Debian's kernel headers, which are fetched as packages and unpacked; nothing is installed.
#   build-one.sh DIR RELEASE NAME
# Leaves DIR/RELEASE/NAME.ko (and the headers, about 130 MB). RELEASE is a whole release: 6.1.0-56-cloud-amd64, 6.1.0-50-686, 6.1.0-50-686-pae.
# Needs gcc-12, make and a Debian whose package lists have that kernel (for the 686 ones after dpkg --add-architecture i386).
set -euo pipefail
dir=${1:?usage: build-one.sh DIR RELEASE NAME} release=${2:?} name=${3:?}
here=$(cd "$(dirname "$0")" && pwd)
for program in gcc-12 make apt-get dpkg; do
  command -v $program > /dev/null || { echo "build-one.sh: needs $program" >&2; exit 1; }
done
mkdir -p "$dir/$release"
dir=$(cd "$dir" && pwd)/$release
if [ "$dir/$name.ko" -nt "$here/$name.c" ]; then
  echo "$dir/$name.ko is up to date"
  exit 0
fi
if [ ! -d "$dir/usr" ]; then
  case $release in
    *-686 | *-686-pae) headers=linux-headers-$release:i386 ;;
    *) headers=linux-headers-$release ;;
  esac
  common=$(echo "$release" | sed -E 's/-(cloud-|rt-)?(amd64|686|686-pae)$//')-common
  kbuild=linux-kbuild-$(echo "$release" | grep -oE '^[0-9]+\.[0-9]+')
  (
    cd "$dir"
    apt-get download -q "$headers" "linux-headers-$common" "$kbuild" > /dev/null
    for deb in ./*.deb; do dpkg -x "$deb" .; done
    rm -f ./*.deb
    # The packages name each other by absolute paths.
    find usr/src -maxdepth 2 -type f \( -name Makefile -o -name .kernelvariables \) -exec sed -i "s#/usr/src/linux-headers#$dir/usr/src/linux-headers#g" {} +
  )
fi
rm -rf "$dir/build-$name"
mkdir "$dir/build-$name"
cp "$here/$name.c" "$dir/build-$name/"
echo "obj-m := $name.o" > "$dir/build-$name/Makefile"
# Without type information, which needs pahole and which nothing here reads.
make -s -C "$dir/usr/src/linux-headers-$release" M="$dir/build-$name" CONFIG_DEBUG_INFO_BTF_MODULES= modules
strip --strip-debug -o "$dir/$name.ko" "$dir/build-$name/$name.ko"
echo "wrote $dir/$name.ko"
