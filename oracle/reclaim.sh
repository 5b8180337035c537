#!/usr/bin/env bash
# Lets processes touch more memory than guests have, and stores what their kernel counted (reclaim-user.c): tests/data/reclaim-6.1.txt.
#   reclaim.sh KERNEL_DIR OUT      KERNEL_DIR has vmlinuz, modules, release (get-kernel.sh makes one)
# Needs qemu-system-x86, busybox-static, cpio, gcc with a static C library. About 2 minutes.
set -euo pipefail
usage="usage: reclaim.sh KERNEL_DIR OUT"
kernel=${1:?$usage} out=${2:?$usage}
here=$(cd "$(dirname "$0")" && pwd)
for program in qemu-system-x86_64 busybox cpio gcc; do
  command -v $program > /dev/null || { echo "reclaim.sh: needs $program" >&2; exit 1; }
done
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
truncate -s 256M "$scratch/swap"
root=$scratch/initramfs
mkdir -p "$root/bin" "$root/proc" "$root/dev" "$root/sys"
cp "$(command -v busybox)" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
gcc -O2 -static -o "$root/reclaim-user" "$here/reclaim-user.c"
"$here/copy-modules.sh" "$kernel" "$root" virtio virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk
cat > "$root/init" << 'INIT'
#!/bin/sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for m in virtio virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do [ -f /$m.ko ] && $b insmod /$m.ko 2> /dev/null; done
$b sleep 1
echo; echo @@BEGIN
set -- $($b cat /run-this)
rotational=$1
shift
echo $rotational > /sys/block/vda/queue/rotational
$b mkswap /dev/vda > /dev/null
$b swapon /dev/vda
/reclaim-user "$@"
echo @@BYE
$b poweroff -f
INIT
chmod +x "$root/init"
: > "$out.new"
# RAM in MiB, CPUs, rotational, extra MiB, order, rounds
while read -r memory cpus rotational extra order rounds; do
  echo "$rotational $extra $order $rounds" > "$root/run-this"
  (cd "$root" && find . | cpio -o -H newc --quiet) > "$scratch/initrd"
  timeout 300 qemu-system-x86_64 -M pc -accel tcg -cpu max -m "${memory}M" -smp "$cpus" -nographic -nodefaults -no-reboot -serial stdio \
    -drive "file=$scratch/swap,format=raw,if=virtio" -kernel "$kernel/vmlinuz" -initrd "$scratch/initrd" \
    -append "console=ttyS0 panic=-1 nokaslr quiet loglevel=1 no5lvl" < /dev/null 2> /dev/null | tr -d '\r' > "$scratch/console" || true
  echo "@guest $(cat "$kernel/release") memory=$memory cpus=$cpus rotational=$rotational extra=$extra order=$order rounds=$rounds" >> "$out.new"
  sed -n '/^reclaim: /p' "$scratch/console" >> "$out.new"
done << 'GUESTS'
128 1 1 16 up 2
128 1 1 16 random 2
128 1 0 16 up 2
128 1 0 16 random 2
256 2 1 32 random 2
256 2 0 64 up 1
GUESTS
mv "$out.new" "$out"
echo "wrote $(grep -c @guest "$out") guests to $out"
