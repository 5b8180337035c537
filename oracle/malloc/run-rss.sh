#!/usr/bin/env bash
# Runs rss_probe in a guest of a real kernel, with this machine's C library, and stores what it prints.
#   [MEM=512M] run-rss.sh KERNEL_DIR OUT.txt.gz [SEED STEPS THREADS LIMIT]...     KERNEL_DIR has vmlinuz (oracle/get-kernel.sh)
# With MEM=1G or more the kernel uses transparent huge pages.
# Needs gcc and glibc 2.36 (Debian 12), qemu-system-x86, busybox-static, cpio. Under a minute.
set -euo pipefail
kernel=${1:?usage: run-rss.sh KERNEL_DIR OUT.txt.gz [SEED STEPS THREADS LIMIT]...} out=${2:?}
shift 2
[ $# -gt 0 ] || set -- 1 200 0 0 2 200 0 0 3 300 2 0 6 300 0 12 7 300 1 200
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
root=$scratch/initramfs
mkdir -p "$root/bin" "$root/proc" "$root/dev" "$root/sys" "$root/lib/x86_64-linux-gnu" "$root/lib64"
cp "$(command -v busybox)" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
gcc -O1 -Wall -no-pie -o "$root/bin/rss_probe" "$(dirname "$0")/rss_probe.c" -lpthread
cp -L /lib64/ld-linux-x86-64.so.2 "$root/lib64/"
cp -L /lib/x86_64-linux-gnu/libc.so.6 "$root/lib/x86_64-linux-gnu/"
{
  echo '#!/bin/sh'
  echo 'b=/bin/busybox'
  echo '$b mount -t proc proc /proc; $b mount -t devtmpfs dev /dev; $b mount -t sysfs sys /sys'
  echo 'echo 100000000 > /sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs'  # it would join pages when it likes
  while [ $# -gt 3 ]; do
    echo "echo; /bin/rss_probe $1 $2 $3 $4"
    shift 4
  done
  echo '$b poweroff -f'
} > "$root/init"
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet) > "$scratch/initrd"
timeout 300 qemu-system-x86_64 -M pc -accel tcg -cpu max -m "${MEM:-512M}" -smp 1 -nographic -nodefaults -no-reboot -serial stdio \
  -kernel "$kernel/vmlinuz" -initrd "$scratch/initrd" -append "console=ttyS0 panic=-1 quiet loglevel=1 no5lvl" \
  < /dev/null 2> /dev/null | tr -d '\r' > "$scratch/console"
sed -n '/^seed /,/^end$/p' "$scratch/console" > "$scratch/rss"
[ "$(grep -c '^seed ' "$scratch/rss")" = "$(grep -c '^end$' "$scratch/rss")" ] && grep -q '^end$' "$scratch/rss" ||
  { echo "run-rss.sh: the guest did not come to the end; its last words:" >&2; tail -n 20 "$scratch/console" >&2; exit 1; }
gzip -9nc "$scratch/rss" > "$out.new"
mv "$out.new" "$out"
echo "wrote $out"
