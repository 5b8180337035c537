#!/usr/bin/env bash
# Loads contexts.ko into guests of a real kernel, one boot per forbidden act, and stores what the kernel says.
#   run-contexts.sh KERNEL_DIR MODULE.ko OUT.txt      KERNEL_DIR has vmlinuz (oracle/get-kernel.sh), MODULE.ko is from build.sh
# Needs qemu-system-x86, busybox-static, cpio. About 3 minutes.
set -euo pipefail
kernel=${1:?usage: run-contexts.sh KERNEL_DIR MODULE.ko OUT.txt} module=${2:?} out=${3:?}
scratch=$(mktemp -d)
root=$scratch/initramfs
trap 'rm -rf "$scratch"' EXIT
tests='table sleep-preempt sleep-bh sleep-irqs_off sleep-rcu sleep-softirq kmalloc-preempt kmalloc-softirq kmalloc-hardirq vmalloc-process vmalloc-preempt
vmalloc-irqs_off vmalloc-bh vmalloc-softirq vmalloc-hardirq vmalloc_atomic-hardirq vfree-preempt vfree-bh vfree-softirq vfree-hardirq vfree-nmi
vunmap-softirq'
mkdir -p "$root/bin" "$root/proc"
cp "$(command -v busybox)" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
cp "$module" "$root/contexts.ko"
cat > "$root/init" << 'INIT'
#!/bin/sh
b=/bin/busybox
$b mount -t proc proc /proc
for w in $($b cat /proc/cmdline); do case $w in contexts_test=*) t=${w#*=} ;; esac; done
$b echo 8 > /proc/sys/kernel/printk
$b insmod /contexts.ko test=$t
$b sleep 1
$b poweroff -f
INIT
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet) > "$scratch/initrd"
: > "$scratch/all"
for t in $tests; do
  timeout 120 qemu-system-x86_64 -M pc -accel tcg -cpu max -m 256M -smp 1 -nographic -nodefaults -no-reboot -serial stdio \
    -kernel "$kernel/vmlinuz" -initrd "$scratch/initrd" -append "console=ttyS0 panic=-1 quiet loglevel=1 nokaslr printk.time=0 contexts_test=$t" \
    < /dev/null 2> /dev/null | tr -d '\r' > "$scratch/console" || true
  echo "test $t" >> "$scratch/all"
  # registers, code bytes and stacks are a machine's own; what is left is the kernel's text
  sed -n '/^contexts: /,$p' "$scratch/console" | grep -E '^(contexts: |BUG|kernel BUG|invalid opcode|WARNING|Voluntary|Kernel panic|note: |Preemption|-----|RIP: |CPU: |in_atomic|preempt_count)' >> "$scratch/all" || true
  echo "$t: $(grep -c . "$scratch/console") lines"
done
cp "$scratch/all" "$out.new"
mv "$out.new" "$out"
echo "wrote $out"
