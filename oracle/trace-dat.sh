#!/usr/bin/env bash
# Makes the trace.dat files of tests/data/trace-cmd in a guest, and what trace-cmd report says about them. Needs qemu-system-x86, busybox-static, cpio and
# trace-cmd. About 2 minutes.
#   trace-dat.sh PYTHON KERNEL_DIR OUT_DIR
set -euo pipefail
usage="usage: trace-dat.sh PYTHON KERNEL_DIR OUT_DIR"
python=${1:?$usage} kernel=${2:?$usage} out=${3:?$usage}
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
root=$scratch/initramfs
mkdir -p "$root"/{bin,proc,dev,sys,tmp} "$out"
cp "$(command -v busybox)" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
program=$(command -v trace-cmd)
for file in "$program" $(ldd "$program" | grep -o '/[^ ]*'); do
  mkdir -p "$root$(dirname "$file")"
  cp -L "$file" "$root$file"
done
"$here/copy-modules.sh" "$kernel" "$root" virtio virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk
cat > "$root/init" << INIT
#!/bin/sh
b=/bin/busybox
\$b mount -t proc proc /proc; \$b mount -t sysfs sys /sys; \$b mount -t devtmpfs dev /dev; \$b mount -t tmpfs t /tmp; \$b mount -t tracefs t /sys/kernel/tracing
for m in virtio virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do [ -f /\$m.ko ] && \$b insmod /\$m.ko 2> /dev/null; done
\$b sleep 1
cd /tmp
E="-e kmem:kmalloc -e kmem:kfree -e kmem:kmem_cache_alloc -e kmem:kmem_cache_free -e kmem:mm_page_alloc -e kmem:mm_page_free"
$program record -q -T \$E -C mono -o stacks.dat \$b ls / > /dev/null
$program record -q \$E -C counter -o counter.dat \$b ls / > /dev/null
\$b tar cf /dev/vda stacks.dat counter.dat
\$b sync
\$b poweroff -f
INIT
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet) > "$scratch/initrd"
truncate -s 128M "$scratch/disk"
timeout 600 qemu-system-x86_64 -accel tcg -m 512M -smp 2 -kernel "$kernel/vmlinuz" -initrd "$scratch/initrd" -nographic -no-reboot \
  -append "console=ttyS0 quiet nokaslr no_hash_pointers panic=1" -drive "file=$scratch/disk,format=raw,if=virtio" < /dev/null > "$scratch/log" 2>&1
tar xf "$scratch/disk" -C "$scratch"
cd "$scratch"
for name in stacks counter; do
  trace-cmd convert --file-version 6 -i $name.dat -o $name.6.dat > /dev/null
  # Most of a file are the kernel's symbols: those that nothing here names become blank lines.
  "$python" - $name.6.dat $name.small.dat << 'PYTHON'
import re, struct, sys
from pathlib import Path
from mmtwin.recording.readers import read
from mmtwin.recording.readers.page_callers import is_allocator
from mmtwin.recording.readers.tracing_data import Cursor, read_formats, read_start
data = Path(sys.argv[1]).read_bytes()
cursor = Cursor(data)
read_formats(cursor, read_start(cursor))
at = cursor.at
text = cursor.take(cursor.u32("kallsyms"), "kallsyms")
used = {line.split(" ", 1)[1].split("+")[0] for line in read(sys.argv[1]).provenance.procfs["symbols"].splitlines()}
lines = sorted(line for line in text.split(b"\n") if re.match(rb"[0-9a-f]{16} [tTwW] ", line))
names = [line.split()[2].decode() for line in lines]
kept = {j for i, n in enumerate(names) if n in used or is_allocator(n) for j in (i, i + 1)}
small = b"".join(lines[i] + b"\n" for i in sorted(kept) if i < len(lines))
Path(sys.argv[2]).write_bytes(data[: at + 4] + small.ljust(len(text), b"\n") + data[at + 4 + len(text) :])
PYTHON
done
gzip -9nc stacks.small.dat > "$out/stacks-v6.dat.gz"
trace-cmd convert --compression zstd -i counter.small.dat -o "$out/counter-v7.dat" > /dev/null
# report prints a kmalloc's call site once more before the fields
for name in stacks:stacks-v6 counter:counter-v7; do
  trace-cmd report -t -i "${name%%:*}.dat" 2> /dev/null | sed -E 's/: +\([^)]*\) call_site/: call_site/' | gzip -9n > "$out/${name##*:}.report.txt.gz"
done
