#!/usr/bin/env bash
# Loads kmalloc_probe.ko into guests of a real kernel and stores what it answers: once in full, then once per boot option of a list.
#   run.sh KERNEL_DIR MODULE.ko OUT.txt.gz      KERNEL_DIR has vmlinuz (oracle/get-kernel.sh), MODULE.ko is from build.sh
# One run after the other, each begins with a line "run cpus=N cmdline=...". Needs qemu-system-x86, busybox-static, cpio. About 3 minutes.
set -euo pipefail
kernel=${1:?usage: run.sh KERNEL_DIR MODULE.ko OUT.txt.gz} module=${2:?} out=${3:?}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# CPUs | parts (see kmalloc_probe.c) | further words for the command line
runs='
1 | 15 | init_on_alloc=0
4 | 9  | init_on_alloc=0
1 | 9  | init_on_alloc=0 slub_debug=FZPU
1 | 1  | init_on_alloc=0 slub_debug=OFZPU
1 | 1  | init_on_alloc=0 slub_debug=Z
1 | 1  | init_on_alloc=0 slub_debug=P
1 | 1  | init_on_alloc=0 slub_debug=U
1 | 1  | slab_nomerge
1 | 4  |
'
mkdir -p "$scratch/initramfs/bin" "$scratch/initramfs/proc" "$scratch/initramfs/sys"
cp "$(command -v busybox)" "$scratch/initramfs/bin/busybox"
ln -s busybox "$scratch/initramfs/bin/sh"
cp "$module" "$scratch/initramfs/kmalloc_probe.ko"
cat > "$scratch/initramfs/init" << 'INIT'
#!/bin/sh
b=/bin/busybox
$b mount -t proc proc /proc
for w in $($b cat /proc/cmdline); do case $w in probe_parts=*) parts=${w#*=} ;; esac; done
$b insmod /kmalloc_probe.ko parts=$parts && echo && echo @@BEGIN && $b cat /proc/kmalloc_probe
echo @@BYE
$b poweroff -f
INIT
chmod +x "$scratch/initramfs/init"
(cd "$scratch/initramfs" && find . | cpio -o -H newc --quiet) > "$scratch/initrd"

: > "$scratch/all"
echo "$runs" | while IFS='|' read -r cpus parts words; do
  cpus=$(echo $cpus) parts=$(echo $parts) words=$(echo $words)
  [ -n "$cpus" ] || continue
  timeout 600 qemu-system-x86_64 -M pc -accel tcg -cpu max -m 512M -smp "$cpus" -nographic -nodefaults -no-reboot -serial stdio \
    -kernel "$kernel/vmlinuz" -initrd "$scratch/initrd" -append "console=ttyS0 panic=-1 quiet loglevel=1 nokaslr probe_parts=$parts $words" \
    < /dev/null 2> /dev/null | tr -d '\r' > "$scratch/console"
  echo "run cpus=$cpus cmdline=$words" >> "$scratch/all"
  sed -n '/^@@BEGIN$/,/^@@BYE$/p' "$scratch/console" | grep -v '^@@' >> "$scratch/all" || true
  tail -n 1 "$scratch/all" | grep -q '^end bytes=' || {
    echo "run.sh: the guest with $cpus CPUs and \"$words\" did not answer; its last words:" >&2
    tail -n 3 "$scratch/console" >&2
    exit 1
  }
  echo "$cpus CPUs, parts $parts, \"$words\": $(wc -l < "$scratch/all") lines"
done
gzip -9nc "$scratch/all" > "$out.new"
mv "$out.new" "$out"
echo "wrote $out"
