#!/usr/bin/env bash
# Makes the experiments of `mmtwin claims` in real kernels and stores what they measured: the module claims.c, the program claims-user.c, swapon, and what
# other recorded experiments say (contexts, misuse, costs, layouts, the 28 bytes).
#   claims.sh PYTHON BUILD_DIR OUT.json KERNEL_DIR KERNEL_DIR_686 KERNEL_DIR_612
# A KERNEL_DIR has vmlinuz, modules, release (get-kernel.sh makes one); BUILD_DIR keeps kernel headers and modules (module/build.sh). Needs
# qemu-system-x86, busybox-static, cpio, gcc with a static C library. About 2 minutes.
set -euo pipefail
usage="usage: claims.sh PYTHON BUILD_DIR OUT.json KERNEL_DIR KERNEL_DIR_686 KERNEL_DIR_612"
python=${1:?$usage} build=${2:?$usage} out=${3:?$usage} amd64=${4:?$usage} i386=${5:?$usage} newer=${6:?$usage}
here=$(cd "$(dirname "$0")" && pwd)
for program in qemu-system-x86_64 busybox cpio gcc; do
  command -v $program > /dev/null || { echo "claims.sh: needs $program" >&2; exit 1; }
done
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
gcc -O2 -static -o "$scratch/claims-user" "$here/claims-user.c"
# Two disks to swap to; nothing is stored but what is written.
truncate -s 256M "$scratch/swap1"
truncate -s 4G "$scratch/swap2"
: > "$scratch/all"
for kernel in "$amd64" "$newer" "$i386"; do
  release=$(cat "$kernel/release")
  "$here/module/build.sh" "$build" "$release" claims < /dev/null
  root=$scratch/initramfs
  rm -rf "$root"
  mkdir -p "$root/bin" "$root/proc" "$root/dev" "$root/sys"
  machine=
  case $release in
    *-686) cp "$kernel/busybox" "$root/bin/busybox" ;;
    *)
      cp "$(command -v busybox)" "$root/bin/busybox"
      cp "$scratch/claims-user" "$root/"
      machine=no5lvl
      ;;
  esac
  ln -s busybox "$root/bin/sh"
  cp "$build/$release/claims.ko" "$root/"
  "$here/copy-modules.sh" "$kernel" "$root" virtio virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk
  cat > "$root/init" << 'INIT'
#!/bin/sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
$b insmod /claims.ko
echo; echo @@BEGIN  # the firmware leaves escape sequences on the first line
$b dmesg | $b grep '^\[[^]]*\] claims: [a-z0-9-]* [a-z_]*[=0-9]' | $b sed 's/^\[[^]]*\] //'
$b grep -c 'claims:\|load_module\|move_module\|module_alloc' /proc/vmallocinfo | $b sed 's/^/claims: module-areas count=/'
[ -x /claims-user ] && /claims-user malloc
$b rmmod claims
# Which of the first two needs the other depends on the kernel.
for m in virtio virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do [ -f /$m.ko ] && $b insmod /$m.ko 2> /dev/null; done
$b sleep 1
for d in vda vdb; do
  [ -b /dev/$d ] || continue
  [ $d = vda ] || $b echo 0 > /sys/block/$d/queue/rotational  # the second one passes for a solid-state disk
  $b mkswap /dev/$d > /dev/null
  $b cat /proc/vmallocinfo > /before
  $b swapon /dev/$d
  $b cat /proc/vmallocinfo > /after
  # Areas that are new, with their sizes, callers and pages; the first word, the addresses, is the machine's own.
  $b awk -v d=$d 'NR == FNR { seen[$1] = 1; next } !($1 in seen) { printf "claims: swapon disk=%s bytes=%s caller=%s", d, $2, $3; for (i = 4; i <= NF; i++) if ($i ~ /=/) printf " %s", $i; print "" }' /before /after
  $b awk -v d=$d '$1 == "/dev/" d { printf "claims: swap-size disk=%s kilobytes=%s\n", d, $3 }' /proc/swaps
  $b sed "s/^/claims: swap-kind disk=$d rotational=/" /sys/block/$d/queue/rotational
done
if [ -x /claims-user ]; then
  $b insmod /claims.ko part=hold
  $b awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo > /available
  /claims-user pressure $(($($b cat /available) + 64))
  $b rmmod claims
  $b dmesg | $b grep '^\[[^]]*\] claims: held ' | $b sed 's/^\[[^]]*\] //'
fi
echo @@BYE
$b poweroff -f
INIT
  chmod +x "$root/init"
  (cd "$root" && find . | cpio -o -H newc --quiet) > "$scratch/initrd"
  timeout 400 qemu-system-x86_64 -M pc -accel tcg -cpu max -m 512M -smp 1 -nographic -nodefaults -no-reboot -serial stdio \
    -drive "file=$scratch/swap1,format=raw,if=virtio" -drive "file=$scratch/swap2,format=raw,if=virtio" \
    -kernel "$kernel/vmlinuz" -initrd "$scratch/initrd" \
    -append "console=ttyS0 panic=-1 quiet loglevel=1 nokaslr no_hash_pointers printk.time=1 log_buf_len=4M $machine" < /dev/null 2> /dev/null | tr -d '\r' > "$scratch/console" || true
  grep -q '^@@BYE$' "$scratch/console" || {
    echo "claims.sh: $release did not come to the end; its last words:" >&2
    tail -n 12 "$scratch/console" >&2
    exit 1
  }
  echo "@kernel $release" >> "$scratch/all"
  sed -n '/^@@BEGIN$/,/^@@BYE$/p' "$scratch/console" | grep '^claims: ' >> "$scratch/all"
  echo "$release: $(grep -c '^claims: ' "$scratch/console") lines"
done
[ -z "${CLAIMS_KEEP:-}" ] || cp "$scratch/all" "$CLAIMS_KEEP"
"$python" "$here/claims-kernel.py" "$scratch/all" "$here/../tests/data" "$out"
