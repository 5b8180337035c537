#!/usr/bin/env bash
# Loads misuse.ko (with slub_debug) or vmalloc_misuse.ko into a guest of a real kernel and stores the kernel's reports.
#   run-misuse.sh KERNEL_DIR MODULE.ko OUT.txt      KERNEL_DIR has vmlinuz (oracle/get-kernel.sh), MODULE.ko is from build.sh
# Needs qemu-system-x86, busybox-static, cpio. Under a minute.
set -euo pipefail
kernel=${1:?usage: run-misuse.sh KERNEL_DIR MODULE.ko OUT.txt} module=${2:?} out=${3:?}
name=$(basename "$module" .ko)
case $name in
  misuse) tag=misuse options="slub_debug=FZPU;FP,misuse_align" ends='^misuse: case end$' ;;
  vmalloc_misuse) tag=vmisuse options=no5lvl ends='^Kernel panic' ;;
  *) echo "run-misuse.sh: $module: expected misuse.ko or vmalloc_misuse.ko" >&2; exit 2 ;;
esac
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch/initramfs/bin" "$scratch/initramfs/proc"
cp "$(command -v busybox)" "$scratch/initramfs/bin/busybox"
ln -s busybox "$scratch/initramfs/bin/sh"
cp "$module" "$scratch/initramfs/module.ko"
cat > "$scratch/initramfs/init" << 'INIT'
#!/bin/sh
b=/bin/busybox
$b mount -t proc proc /proc
$b echo 8 > /proc/sys/kernel/printk
$b insmod /module.ko
$b poweroff -f
INIT
chmod +x "$scratch/initramfs/init"
(cd "$scratch/initramfs" && find . | cpio -o -H newc --quiet) > "$scratch/initrd"
timeout 300 qemu-system-x86_64 -M pc -accel tcg -cpu max -m 512M -smp 1 -nographic -nodefaults -no-reboot -serial stdio \
  -kernel "$kernel/vmlinuz" -initrd "$scratch/initrd" \
  -append "console=ttyS0 panic=-1 quiet loglevel=1 nokaslr printk.time=0 init_on_alloc=0 $options" \
  < /dev/null 2> /dev/null | tr -d '\r' > "$scratch/console"
sed -n "/^$tag: case /,/$ends/p" "$scratch/console" > "$scratch/reports"
tail -n 1 "$scratch/reports" | grep -q "$ends" || {
  echo "run-misuse.sh: the guest did not come to the end; its last words:" >&2
  tail -n 30 "$scratch/console" >&2
  exit 1
}
cp "$scratch/reports" "$out.new"
mv "$out.new" "$out"
echo "wrote $out"
