#!/usr/bin/env bash
# Boots Debian's 32-bit kernels with several sizes of memory and stores /proc/zoneinfo and /proc/pagetypeinfo, as a shell reads them first of all.
#   zoneinfo-i386.sh OUT.json.gz KERNEL_DIR ...      each KERNEL_DIR has vmlinuz, busybox and release (get-kernel.sh makes them)
# OUT: {"runs": [{"release", "ram_mib", "cpus", "initrd_bytes", "zoneinfo", "pagetypeinfo"}]}. Needs qemu-system-x86, cpio, python3. About a minute per kernel.
set -euo pipefail
out=${1:?usage: zoneinfo-i386.sh OUT.json.gz KERNEL_DIR ...}
shift
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch/initramfs/bin" "$scratch/initramfs/proc"
ln -s busybox "$scratch/initramfs/bin/sh"
cat > "$scratch/initramfs/init" << 'INIT'
#!/bin/sh
b=/bin/busybox
$b mount -t proc proc /proc
for f in zoneinfo pagetypeinfo; do echo; echo "@@FILE $f"; $b cat /proc/$f; echo "@@END"; done
$b poweroff -f
INIT
chmod +x "$scratch/initramfs/init"
for kernel in "$@"; do
  cp "$kernel/busybox" "$scratch/initramfs/bin/busybox"
  (cd "$scratch/initramfs" && find . | cpio -o -H newc --quiet) > "$scratch/initrd"
  for machine in 512:1 1024:1 1024:2 2048:1 2048:4 4096:1; do
    ram=${machine%:*} cpus=${machine#*:}
    name=$(cat "$kernel/release"):$ram:$cpus:$(stat -c %s "$scratch/initrd")
    timeout 200 qemu-system-x86_64 -M pc -accel tcg -cpu max -m "${ram}M" -smp "$cpus" -nographic -nodefaults -no-reboot -serial stdio \
      -kernel "$kernel/vmlinuz" -initrd "$scratch/initrd" -append "console=ttyS0 panic=-1 quiet loglevel=1 nokaslr" < /dev/null 2> /dev/null |
      tr -d '\r' > "$scratch/console:$name"
    echo "$name"
  done
done
python3 - "$out" "$scratch"/console:* << 'PYTHON'
import gzip, json, re, sys

runs = []
for path in sys.argv[2:]:
    _, release, ram, cpus, initrd = path.rsplit("/", 1)[1].split(":")
    files = dict(re.findall(r"@@FILE (\w+)\n(.*?)@@END", open(path, errors="replace").read(), re.S))
    assert set(files) == {"zoneinfo", "pagetypeinfo"}, f"{path}: the guest did not answer"
    runs.append({"release": release, "ram_mib": int(ram), "cpus": int(cpus), "initrd_bytes": int(initrd), **files})
with gzip.GzipFile(sys.argv[1], "wb", mtime=0) as file:
    file.write(json.dumps({"runs": runs}).encode())
PYTHON
echo "wrote $out"
