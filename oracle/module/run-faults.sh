#!/usr/bin/env bash
# Loads faults.ko into a guest of a real kernel, provokes every fault, and stores what the kernel said.
#   run-faults.sh KERNEL_DIR faults.ko OUT.txt [WORD ...]      WORDs go to the kernel's command line (no5lvl)
# KERNEL_DIR has vmlinuz (oracle/get-kernel.sh), the module is from build.sh. $MMTWIN_CPU is QEMU's processor (max). The guest's
# busybox is the kernel's, which 32-bit kernels come with, or the host's. Needs qemu-system-x86, busybox-static, cpio. Under a minute.
set -euo pipefail
kernel=${1:?usage: run-faults.sh KERNEL_DIR faults.ko OUT.txt [WORD ...]} module=${2:?} out=${3:?}
shift 3
busybox=$(command -v busybox)
[ ! -x "$kernel/busybox" ] || busybox=$kernel/busybox
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch/initramfs/bin" "$scratch/initramfs/proc"
cp "$busybox" "$scratch/initramfs/bin/busybox"
ln -s busybox "$scratch/initramfs/bin/sh"
cp "$module" "$scratch/initramfs/module.ko"
cat > "$scratch/initramfs/init" << 'INIT'
#!/bin/sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
$b echo 8 > /proc/sys/kernel/printk
$b insmod /module.ko
$b echo "faults: DirectMap $($b grep DirectMap /proc/meminfo | $b tr -s ' \n' ' ')" > /dev/kmsg
for name in null_read null_write null_exec guard_read guard_write freed_read stale_read purged_read never_read module_read ro_write ro_read nx_exec \
  nx_direct_exec user_read user_write user_exec user_nx_exec user_unmapped_read beyond_read noncanonical_read noncanonical_write; do
  $b sh -c "$b echo $name > /proc/faults"
done
$b echo "faults: end" > /dev/kmsg
$b poweroff -f
INIT
chmod +x "$scratch/initramfs/init"
mkdir -p "$scratch/initramfs/dev"
(cd "$scratch/initramfs" && find . | cpio -o -H newc --quiet) > "$scratch/initrd"
timeout 300 qemu-system-x86_64 -M pc -accel tcg -cpu "${MMTWIN_CPU:-max}" -m 512M -smp 1 -nographic -nodefaults -no-reboot -serial stdio \
  -kernel "$kernel/vmlinuz" -initrd "$scratch/initrd" \
  -append "console=ttyS0 panic=-1 quiet loglevel=1 nokaslr printk.time=0 init_on_alloc=0 $*" \
  < /dev/null 2> /dev/null | tr -d '\r' > "$scratch/console"
cp "$scratch/console" "${MMTWIN_CONSOLE:-/dev/null}"
grep -q '^faults: end' "$scratch/console" || {
  echo "run-faults.sh: the guest did not come to the end; its last words:" >&2
  tail -n 30 "$scratch/console" >&2
  exit 1
}
# Kept are the cases' own lines and those of the reports that a twin can know: not registers, stacks, modules.
grep -E '^(faults: |kernel tried to execute|unable to execute|BUG: |#PF: |PGD |\*pdpt = |\*pde = |Oops: |general protection fault|CR2: [0-9a-f]+$)' \
  "$scratch/console" > "$out.new"
mv "$out.new" "$out"
echo "wrote $out"
