#!/usr/bin/env bash
# Runs maps_probe in a guest of a real kernel and stores what it prints.
#   [MEM=512M] [SMAPS=25] run-maps.sh KERNEL_DIR OUT.txt.gz [SEED STEPS]...     KERNEL_DIR has vmlinuz (oracle/get-kernel.sh)
# With MEM=1G or more the kernel uses transparent huge pages (khugepaged sleeps). SMAPS: print /proc/self/smaps every so many steps, and do wilder things.
# Needs gcc (static libc), qemu-system-x86, busybox-static, cpio. Under a minute.
set -euo pipefail
kernel=${1:?usage: run-maps.sh KERNEL_DIR OUT.txt.gz [SEED STEPS]...} out=${2:?}
shift 2
[ $# -gt 0 ] || set -- 1 400 2 400 3 400
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch/initramfs/bin" "$scratch/initramfs/proc" "$scratch/initramfs/dev" "$scratch/initramfs/sys"
cp "$(command -v busybox)" "$scratch/initramfs/bin/busybox"
ln -s busybox "$scratch/initramfs/bin/sh"
gcc -O1 -static -no-pie -o "$scratch/initramfs/bin/maps_probe" "$(dirname "$0")/maps_probe.c"
{
  echo '#!/bin/sh'
  echo 'b=/bin/busybox'
  echo '$b mount -t proc proc /proc; $b mount -t devtmpfs dev /dev; $b mount -t sysfs sys /sys'
  echo 'echo 100000000 > /sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs'  # it would join pages when it likes
  while [ $# -gt 1 ]; do
    echo "echo; /bin/maps_probe $1 $2 ${SMAPS:-}"
    shift 2
  done
  echo '$b poweroff -f'
} > "$scratch/initramfs/init"
chmod +x "$scratch/initramfs/init"
(cd "$scratch/initramfs" && find . | cpio -o -H newc --quiet) > "$scratch/initrd"
timeout 300 qemu-system-x86_64 -M pc -accel tcg -cpu max -m "${MEM:-512M}" -smp 1 -nographic -nodefaults -no-reboot -serial stdio \
  -kernel "$kernel/vmlinuz" -initrd "$scratch/initrd" -append "console=ttyS0 panic=-1 quiet loglevel=1 no5lvl ${SMAPS:+nopku}" \
  < /dev/null 2> /dev/null | tr -d '\r' > "$scratch/console"
sed -n '/^seed /,/^end$/p' "$scratch/console" > "$scratch/maps"
grep -q '^end$' "$scratch/maps" || { echo "run-maps.sh: the guest did not come to the end; its last words:" >&2; tail -n 20 "$scratch/console" >&2; exit 1; }
gzip -9nc "$scratch/maps" > "$out.new"
mv "$out.new" "$out"
echo "wrote $out"
