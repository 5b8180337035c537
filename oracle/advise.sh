#!/usr/bin/env bash
# Measures in a real kernel what `mmtwin advise` predicts for its suggestion own-cache: slabs that objects of one size need, from kmalloc and from a cache of their own.
#   advise.sh BUILD_DIR OUT.txt KERNEL_DIR     BUILD_DIR keeps kernel headers and modules (module/build.sh), KERNEL_DIR has vmlinuz and release (get-kernel.sh)
# Needs qemu-system-x86, busybox-static, cpio. Half a minute.
set -euo pipefail
usage="usage: advise.sh BUILD_DIR OUT.txt KERNEL_DIR"
build=${1:?$usage} out=${2:?$usage} kernel=${3:?$usage}
here=$(cd "$(dirname "$0")" && pwd)
release=$(cat "$kernel/release")
"$here/module/build.sh" "$build" "$release" advise_probe < /dev/null
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch/root/bin" "$scratch/root/proc" "$scratch/root/dev" "$scratch/root/sys"
cp "$(command -v busybox)" "$scratch/root/bin/busybox"
ln -s busybox "$scratch/root/bin/sh"
cp "$build/$release/advise_probe.ko" "$scratch/root/"
cat > "$scratch/root/init" << 'INIT'
#!/bin/sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t devtmpfs dev /dev; $b mount -t sysfs sys /sys
slab=/sys/kernel/slab
first() { read -r word _ < "$1"; echo "$word"; }
measure() { # size, count, kmalloc's class
  before=$(first $slab/kmalloc-$3/slabs)
  $b insmod /advise_probe.ko size=$1 count=$2
  after=$(first $slab/kmalloc-$3/slabs)
  $b rmmod advise_probe
  $b insmod /advise_probe.ko size=$1 count=$2 own=1
  own=$slab/advise_probe
  words="own_slabs $(first $own/slabs) order $(first $own/order) aliases $(first $own/aliases)"
  $b rmmod advise_probe
  echo "size $1 count $2 class $3 kmalloc_slabs $((after - before)) order $(first $slab/kmalloc-$3/order) $words"
}
echo; echo @@BEGIN
for n in 100 1000 5000; do
  for pair in 640:1k 288:512 1104:2k 264:512 136:192 72:96 2600:4k 4200:8k 1000:1k 560:1k; do measure ${pair%:*} $n ${pair#*:}; done
done
echo @@END
$b poweroff -f
INIT
chmod +x "$scratch/root/init"
(cd "$scratch/root" && find . | cpio -o -H newc --quiet) > "$scratch/initrd"
echo "Linux $release" > "$out.new"
for cpus in 1 4; do
  timeout 300 qemu-system-x86_64 -M pc -accel tcg -cpu max -m 512M -smp $cpus -nographic -nodefaults -no-reboot -serial stdio -kernel "$kernel/vmlinuz" \
    -initrd "$scratch/initrd" -append "console=ttyS0 panic=-1 quiet loglevel=1 nokaslr no5lvl" < /dev/null 2> /dev/null | tr -d '\r' > "$scratch/console"
  grep -q '^@@END$' "$scratch/console" || { echo "advise.sh: the guest did not come to the end; its last words:" >&2; tail -n 20 "$scratch/console" >&2; exit 1; }
  echo "cpus $cpus" >> "$out.new"
  grep '^size ' "$scratch/console" >> "$out.new"
done
mv "$out.new" "$out"
echo "wrote $out"
