#!/usr/bin/env bash
# Builds Linux 6.1 with the classic SLAB allocator out of Debian's source package; nothing is installed.
#   slab-kernel.sh DIR [SOURCE]
# SOURCE is linux-source-6.1.tar.xz or an unpacked tree; without it the package linux-source-6.1 is fetched.
# Leaves DIR/vmlinuz, vmlinux (DWARF), config, System.map, modules/ and release, as get-kernel.sh does. Takes 10 to 30 minutes and 3 GB of disk.
#   JOBS=2          processes of make at a time (default: one a CPU)
#   EXTRA=FILE      a further configuration fragment, such as one with CONFIG_SLAB_FREELIST_RANDOM=y
#   ALLOCATOR=slub  the same kernel with SLUB as Debian sets it, to compare the two: oracle/whatif.sh, workload allocators; both with EXTRA=oracle/allocators.config
set -euo pipefail
dir=${1:?usage: slab-kernel.sh DIR [SOURCE]} source=${2:-}
here=$(cd "$(dirname "$0")" && pwd)
missing=
for program in gcc make flex bison bc perl xz; do command -v "$program" > /dev/null || missing+=" $program"; done
echo '#include <gelf.h>' | gcc -E -x c - > /dev/null 2>&1 || missing+=" libelf-dev"
[ -z "$missing" ] || { echo "slab-kernel.sh: building needs$missing; on Debian: apt-get install$missing" >&2; exit 1; }
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
if [ -z "$source" ]; then
  (cd "$dir" && apt-get download -q linux-source-6.1 && rm -rf unpack && mkdir unpack && dpkg -x linux-source-6.1_*.deb unpack)
  source=$dir/unpack/usr/src/linux-source-6.1.tar.xz
fi
if [ -d "$source" ]; then
  tree=$(cd "$source" && pwd)
else
  mkdir -p "$dir/source"
  tar x -C "$dir/source" --strip-components=1 -f "$source"
  tree=$dir/source
fi
build=$dir/build
mkdir -p "$build"
run() { nice make -C "$tree" O="$build" -j"${JOBS:-$(nproc)}" KBUILD_BUILD_TIMESTAMP="Thu Jan 1 00:00:00 UTC 2026" KBUILD_BUILD_USER=mmtwin KBUILD_BUILD_HOST=mmtwin "$@"; }
run tinyconfig > /dev/null
(cd "$build" && "$tree/scripts/kconfig/merge_config.sh" -m .config "$here/slab-kernel.config" ${EXTRA:+"$EXTRA"} > /dev/null)
chosen=CONFIG_SLAB
if [ "${ALLOCATOR:-slab}" = slub ]; then
  chosen=CONFIG_SLUB
  "$tree/scripts/config" --file "$build/.config" --disable SLAB --enable SLUB --enable SLUB_DEBUG --enable SLUB_CPU_PARTIAL --enable SLAB_FREELIST_RANDOM --enable SLAB_FREELIST_HARDENED --set-str LOCALVERSION -slub-amd64
fi
run olddefconfig > /dev/null
for wanted in $chosen CONFIG_KPROBE_EVENTS CONFIG_FW_CFG_SYSFS CONFIG_CRASH_CORE CONFIG_RETHUNK CONFIG_DEBUG_INFO CONFIG_NUMA CONFIG_ZONE_DEVICE; do
  grep -q "^$wanted=y" "$build/.config" || { echo "slab-kernel.sh: $wanted is not set after all; see $build/.config" >&2; exit 1; }
done
run bzImage modules
cp "$build/arch/x86/boot/bzImage" "$dir/vmlinuz"
cp "$build/vmlinux" "$build/System.map" "$dir"
cp "$build/.config" "$dir/config"
mkdir -p "$dir/modules"
cp "$build/include/config/kernel.release" "$dir/release"
rm -rf "$dir/unpack" "$dir"/linux-source-6.1_*.deb
[ -n "${KEEP:-}" ] || rm -rf "$dir/source"
echo "wrote $(cat "$dir/release") to $dir"
