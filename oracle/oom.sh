#!/usr/bin/env bash
# Lets the OOM killer of a real kernel strike in guests, and stores what it said: the reports, and what /proc said of the processes before.
#   oom.sh PYTHON KERNEL_DIR OUT.json.gz      KERNEL_DIR has vmlinuz, modules, release (get-kernel.sh makes one)
# Needs qemu-system-x86, busybox-static, cpio, gcc with a static C library. About 2 minutes. OOM_KEEP=DIR keeps the consoles.
set -euo pipefail
usage="usage: oom.sh PYTHON KERNEL_DIR OUT.json.gz"
python=${1:?$usage} kernel=${2:?$usage} out=${3:?$usage}
here=$(cd "$(dirname "$0")" && pwd)
for program in qemu-system-x86_64 busybox cpio gcc; do
  command -v $program > /dev/null || { echo "oom.sh: needs $program" >&2; exit 1; }
done
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
truncate -s 64M "$scratch/swap"
truncate -s 32M "$scratch/file"
root=$scratch/initramfs
mkdir -p "$root/bin" "$root/proc" "$root/dev" "$root/sys"
cp "$(command -v busybox)" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
gcc -O2 -static -o "$root/oom-user" "$here/oom-user.c"
"$here/copy-modules.sh" "$kernel" "$root" virtio virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk
cat > "$root/init" << 'INIT'
#!/bin/sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for m in virtio virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do [ -f /$m.ko ] && $b insmod /$m.ko 2> /dev/null; done
$b sleep 1
parameters=" $($b cat /proc/cmdline) "
case $parameters in *" with-swap "*) $b mkswap /dev/vda > /dev/null; $b swapon /dev/vda ;; esac
echo; echo @@BEGIN  # the firmware leaves escape sequences on the first line
u=/oom-user
. /scenarios
echo m > /proc/sysrq-trigger
$b sleep 1
$b dmesg
echo @@BYE
$b poweroff -f
INIT
chmod +x "$root/init"

# RAM in MiB, CPUs, further words of the command line; scenarios from standard input.
guest() {
  cat > "$root/scenarios"
  (cd "$root" && find . | cpio -o -H newc --quiet) > "$scratch/initrd"
  timeout 300 qemu-system-x86_64 -M pc -accel tcg -cpu max -m "$1M" -smp "$2" -nographic -nodefaults -no-reboot -serial stdio \
    -drive "file=$scratch/swap,format=raw,if=virtio" -drive "file=$scratch/file,format=raw,if=virtio" \
    -kernel "$kernel/vmlinuz" -initrd "$scratch/initrd" \
    -append "console=ttyS0 panic=-1 nokaslr no_hash_pointers printk.time=1 log_buf_len=4M sysrq_always_enabled no5lvl ${3:-quiet loglevel=1}" \
    < /dev/null 2> /dev/null | tr -d '\r' > "$scratch/console" || true
  echo "@guest $1 $2 $(cat "$kernel/release") ${3:-}" >> "$scratch/all"
  sed -n '/^@@BEGIN$/,$p' "$scratch/console" >> "$scratch/all"
  echo "guest of $1 MiB, $2 CPUs: $(grep -c 'Killed process' "$scratch/console" || true) killed"
}
: > "$scratch/all"
guest 128 1 << 'S'
$u tie "a,0,anon:12" "b,0,anon:12" "c,0,anon:12" "grow,-500,grow"
$u adjust,strikes=4 "minus,-1000,anon:16" "half,-500,anon:14" "none,0,anon:10" "plus,500,anon:2" "first,1000,anon:1" "grow,-900,grow"
$b sleep 5  # the kernel prints at most 10 reports in 5 seconds
$u kinds,strikes=3 "shared,0,shm:14" "tables,0,tables:10" "private,0,anon:8" "file,0,file:16" "grow,-400,grow"
$u family,strikes=3 "parent,0,anon:6,kids:8" "single,0,anon:9" "grow,-700,grow"
$b sleep 5
$u allocating,oom_kill_allocating_task=1 "big,0,anon:30" "grow,-300,grow"
$u protected,oom_kill_allocating_task=1 "big,0,anon:24" "grow,-1000,anon:40"
$u silent,oom_dump_tasks=0 "big,0,anon:40" "grow,0,grow"
$b sleep 5
$u share,strikes=1 "vforked,0,anon:20,vfork" "grow,-600,grow"
S
guest 128 2 with-swap\ quiet\ loglevel=1 << 'S'
$u swapped,strikes=2 "old,0,anon:40" "older,0,anon:30" "adjusted,150,anon:10" "grow,0,grow"
$u tables,strikes=2 "tables,0,tables:24" "user,0,anon:20" "grow,-800,grow"
$u asked,sysrq=1,strikes=3 "x,0,anon:12" "y,0,anon:12" "z,-10,anon:14" "w,0,shm:6"
S
guest 256 2 << 'S'
$u mixed,strikes=3 "one,100,anon:20" "two,50,anon:33" "three,-20,anon:60" "four,0,shm:50" "grow,-250,grow"
$u asked,sysrq=1,strikes=4 "x,3,anon:12" "y,-3,anon:12" "t,0,tables:11" "z,1000,anon:1" "w,-999,anon:60"
S
guest 256 1 with-swap\ quiet\ loglevel=1 << 'S'
$u swapped,strikes=3 "old,0,anon:60" "half,-120,anon:60" "shared,0,shm:40" "grow,-300,grow"
S
guest 128 1 loglevel=7 << 'S'
$u panic,panic_on_oom=1 "big,0,anon:30" "grow,0,grow"
S
guest 128 1 loglevel=7 << 'S'
$u nobody,oom_kill_allocating_task=1 "big,-1000,anon:30" "grow,-1000,grow"
S
[ -z "${OOM_KEEP:-}" ] || cp "$scratch/all" "$OOM_KEEP"
"$python" "$here/oom-report.py" "$scratch/all" "$out"
