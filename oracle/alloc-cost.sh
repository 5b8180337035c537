#!/usr/bin/env bash
# Counts the instructions of kmalloc, kfree, vmalloc and vfree in real kernels, under a QEMU whose clock counts instructions.
#   alloc-cost.sh BUILD_DIR OUT.json KERNEL_DIR ...
# A KERNEL_DIR has vmlinuz and release (get-kernel.sh makes one); BUILD_DIR keeps kernel headers and modules (module/build-one.sh).
# Needs qemu-system-x86, busybox-static, cpio, python3, and for the 686 kernels KERNEL_DIR/busybox or busybox-static:i386 (fetched). About 2 minutes a kernel.
#
# OUT: {"runs": [{"release", "machine", "cmdline", "calibration": {...}, "costs": {what: {size: {"first", "least", "median", "greatest", "samples"} or {"mean", ...}}}}]}
set -euo pipefail
build=${1:?usage: alloc-cost.sh BUILD_DIR OUT.json KERNEL_DIR ...} out=${2:?usage: alloc-cost.sh BUILD_DIR OUT.json KERNEL_DIR ...}
shift 2
here=$(cd "$(dirname "$0")" && pwd)
for program in qemu-system-x86_64 busybox cpio python3; do
  command -v $program > /dev/null || { echo "alloc-cost.sh: needs $program" >&2; exit 1; }
done
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
: > "$scratch/all"
for kernel in "$@"; do
  release=$(cat "$kernel/release")
  "$here/module/build-one.sh" "$build" "$release" alloc_cost
  root=$scratch/initramfs
  rm -rf "$root"
  mkdir -p "$root/bin" "$root/proc"
  more=
  case $release in
    *-686 | *-686-pae)
      if [ -x "$kernel/busybox" ]; then
        cp "$kernel/busybox" "$build/busybox-i386"
      elif [ ! -x "$build/busybox-i386" ]; then
        (
          cd "$scratch"
          apt-get download -q busybox-static:i386 > /dev/null
          dpkg-deb --fsys-tarfile busybox-static_*_i386.deb | tar x ./bin/busybox
          mv bin/busybox "$build/busybox-i386"
        )
      fi
      cp "$build/busybox-i386" "$root/bin/busybox"
      more=vmalloc=640M # room for measurements in address space never used before
      ;;
    *) cp "$(command -v busybox)" "$root/bin/busybox" ;;
  esac
  ln -s busybox "$root/bin/sh"
  cp "$build/$release/alloc_cost.ko" "$root/"
  cat > "$root/init" << 'INIT'
#!/bin/sh
b=/bin/busybox
$b mount -t proc proc /proc
$b insmod /alloc_cost.ko
echo; echo @@BEGIN  # the firmware leaves escape sequences on the first line
$b cat /proc/alloc_cost
echo @@BYE
$b poweroff -f
INIT
  chmod +x "$root/init"
  (cd "$root" && find . | cpio -o -H newc --quiet) > "$scratch/initrd"
  for words in init_on_alloc=0 init_on_alloc=1; do
    timeout 1200 qemu-system-x86_64 -M pc -accel tcg -icount shift=0,sleep=off -cpu max,la57=off -m 1G -smp 1 -nographic -nodefaults -no-reboot -serial stdio \
      -kernel "$kernel/vmlinuz" -initrd "$scratch/initrd" -append "console=ttyS0 panic=-1 quiet loglevel=1 nokaslr $words $more" \
      < /dev/null 2> /dev/null | tr -d '\r' > "$scratch/console"
    grep -q '^end bytes=' "$scratch/console" || {
      echo "alloc-cost.sh: $release with $words did not answer; its last words:" >&2
      tail -n 3 "$scratch/console" >&2
      exit 1
    }
    echo "run $words" >> "$scratch/all"
    sed -n '/^@@BEGIN$/,/^@@BYE$/p' "$scratch/console" | grep -v '^@@' >> "$scratch/all"
    echo "$release, $words: $(grep '^calibration' "$scratch/console")"
  done
done
python3 - "$scratch/all" "$out" << 'PYTHON'
import json, os, sys

source, out = sys.argv[1:]
runs = []
for line in open(source):
    word, _, rest = line.strip().partition(" ")
    if word == "run":
        runs.append({"cmdline": rest, "costs": {}})
        continue
    values = dict(item.split("=", 1) for item in rest.split())
    if word == "alloc_cost":
        runs[-1] |= {"release": values["release"], "machine": values["machine"]}
    elif word == "calibration":
        runs[-1]["calibration"] = {key: int(value) for key, value in values.items()}
    elif word == "cost":
        what, size = values.pop("what"), values.pop("size")
        runs[-1]["costs"].setdefault(what, {})[size] = {key: int(value) for key, value in values.items()}
    elif word == "failed":
        runs[-1].setdefault("failed", []).append(values)
with open(out + ".new", "w") as file:
    file.write('{"runs": [\n')
    for number, run in enumerate(runs):
        costs = run.pop("costs")
        file.write(json.dumps(run)[:-1] + ', "costs": {\n')
        file.write(",\n".join(f"  {json.dumps(what)}: {json.dumps(sizes)}" for what, sizes in costs.items()))
        file.write("\n}}" + (",\n" if number < len(runs) - 1 else "\n"))
    file.write("]}\n")
os.replace(out + ".new", out)
print(f"wrote {out}: {len(runs)} runs")
PYTHON
