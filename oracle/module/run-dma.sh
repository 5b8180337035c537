#!/usr/bin/env bash
# Loads dma_probe.ko into guests of a real kernel and stores what it answers, and what the kernel's log says meanwhile.
#   run-dma.sh KERNEL_DIR MODULE.ko OUT.txt.gz      KERNEL_DIR has vmlinuz (oracle/get-kernel.sh), MODULE.ko is from build.sh
# One run after the other, each begins with a line "run ...". Needs qemu-system-x86, busybox-static, cpio. About 2 minutes.
set -euo pipefail
kernel=${1:?usage: run-dma.sh KERNEL_DIR MODULE.ko OUT.txt.gz} module=${2:?} out=${3:?}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# memory | CPUs | parts (see dma_probe.c) | machine and devices | further words for the command line
edu='edu,dma_mask=0xffffffffffffffff'
runs="
512M | 1 | 15 | -M pc | swiotlb=force
512M | 3 | 2  | -M pc | swiotlb=force
512M | 2 | 64 | -M pc | swiotlb=2048,2,force
512M | 1 | 9  | -M pc |
5G   | 2 | 41 | -M pc |
5G   | 1 | 40 | -M pc | swiotlb=noforce
512M | 1 | 16 | -M q35 -device intel-iommu -device $edu | intel_iommu=on iommu.strict=1
512M | 2 | 16 | -M q35 -device intel-iommu -device $edu | intel_iommu=on
512M | 1 | 16 | -M q35 -device $edu |
"
mkdir -p "$scratch/initramfs/bin" "$scratch/initramfs/proc"
cp "$(command -v busybox)" "$scratch/initramfs/bin/busybox"
ln -s busybox "$scratch/initramfs/bin/sh"
cp "$module" "$scratch/initramfs/dma_probe.ko"
cat > "$scratch/initramfs/init" << 'INIT'
#!/bin/sh
b=/bin/busybox
$b mount -t proc proc /proc
for w in $($b cat /proc/cmdline); do case $w in probe_parts=*) parts=${w#*=} ;; esac; done
$b insmod /dma_probe.ko parts=$parts && echo && echo @@BEGIN && $b dmesg | $b grep -i -E 'software IO TLB|DMAR: Intel|iommu: Default' | $b sed 's/^/log /'
$b cat /proc/dma_probe
$b dmesg | $b sed -n '/dma_probe: case/,$p' | $b grep -v -E '^(RSP|RAX|PKRU|RIP: 0033|---|RDX|RBP|R10|R13|FS:|CS:|CR2:|Code:|DR0|DR3| |Call Trace|Hardware|Modules)' | $b sed 's/^/log /'
echo @@BYE
$b poweroff -f
INIT
chmod +x "$scratch/initramfs/init"
(cd "$scratch/initramfs" && find . | cpio -o -H newc --quiet) > "$scratch/initrd"

: > "$scratch/all"
echo "$runs" | while IFS='|' read -r mem cpus parts devices words; do
  mem=$(echo $mem) cpus=$(echo $cpus) parts=$(echo $parts) words=$(echo $words)
  [ -n "$mem" ] || continue
  # a busy host can keep a guest from calibrating its timer: up to three tries
  # shellcheck disable=SC2086
  for _ in 1 2 3; do timeout 600 qemu-system-x86_64 $devices -accel tcg -cpu max -m "$mem" -smp "$cpus" -nographic -nodefaults -no-reboot -serial stdio \
    -kernel "$kernel/vmlinuz" -initrd "$scratch/initrd" -append "console=ttyS0 panic=-1 quiet loglevel=1 nokaslr printk.time=0 probe_parts=$parts $words" \
    < /dev/null 2> /dev/null | tr -d '\r' > "$scratch/console" || true
    ! grep -q '^end bytes=' "$scratch/console" || break
  done
  echo "run mem=$mem cpus=$cpus parts=$parts devices=$(echo $devices | tr ' ' '_') cmdline=$words" >> "$scratch/all"
  sed -n '/^@@BEGIN$/,/^@@BYE$/p' "$scratch/console" | grep -v '^@@' >> "$scratch/all" || true
  grep -q '^end bytes=' "$scratch/console" || {
    echo "run-dma.sh: the guest with $mem, $cpus CPUs and \"$words\" did not answer; its last words:" >&2
    tail -n 5 "$scratch/console" >&2
    exit 1
  }
  echo "$mem, $cpus CPUs, parts $parts, \"$words\": $(wc -l < "$scratch/all") lines"
done
# a mapping that never returns: what the log says until the guest is stopped
echo "run mem=512M cpus=1 parts=128 devices=-M_pc cmdline=swiotlb=512,1,force" >> "$scratch/all"
timeout 60 qemu-system-x86_64 -M pc -accel tcg -cpu max -m 512M -smp 1 -nographic -nodefaults -no-reboot -serial stdio -kernel "$kernel/vmlinuz" \
  -initrd "$scratch/initrd" -append "console=ttyS0 panic=-1 quiet loglevel=1 nokaslr printk.time=0 probe_parts=128 swiotlb=512,1,force" \
  < /dev/null 2> /dev/null | tr -d '\r' | grep -E '^(dma_probe: )?hang' | sed 's/^dma_probe: //' >> "$scratch/all" || true
gzip -9nc "$scratch/all" > "$out.new"
mv "$out.new" "$out"
echo "wrote $out"
