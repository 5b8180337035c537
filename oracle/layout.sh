#!/usr/bin/env bash
# Boots real kernels with many amounts of memory and command lines and stores where each has what.
#   layout.sh BUILD_DIR OUT.json.gz KERNEL_DIR ...
# A KERNEL_DIR has vmlinuz and release (get-kernel.sh makes one); of the list below the runs of those kernels are made. BUILD_DIR keeps kernel headers and
# modules (module/build-one.sh). Needs qemu-system-x86, busybox-static, cpio, python3, and for the 686 kernels KERNEL_DIR/busybox or busybox-static:i386 (fetched). About 8 minutes.
#
# OUT: {"runs": [{"release", "ram", "cpu", "cmdline", "dmesg": [line, ...], "files": {"iomem": text, ...}, "probe": {macro: value}, "kcore": [[address, bytes], ...]}]}
set -euo pipefail
build=${1:?usage: layout.sh BUILD_DIR OUT.json.gz KERNEL_DIR ...} out=${2:?usage: layout.sh BUILD_DIR OUT.json.gz KERNEL_DIR ...}
shift 2
here=$(cd "$(dirname "$0")" && pwd)
for program in qemu-system-x86_64 busybox cpio python3; do
  command -v $program > /dev/null || { echo "layout.sh: needs $program" >&2; exit 1; }
done
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# kernels whose release ends so | RAM | processor | further words for the command line
runs='
cloud-amd64 | 256M  | max,la57=off | nokaslr
cloud-amd64 | 2G    | max,la57=off | nokaslr
cloud-amd64 | 4G    | max,la57=off | nokaslr
cloud-amd64 | 9G    | max,la57=off | nokaslr
cloud-amd64 | 512M  | max,la57=off |
cloud-amd64 | 4G    | max,la57=off |
cloud-amd64 | 256M  | max          | nokaslr
cloud-amd64 | 4G    | max          | nokaslr
cloud-amd64 | 512M  | max          | nokaslr no5lvl
cloud-amd64 | 1G    | max          |
50-686      | 128M  | max | nokaslr
50-686      | 512M  | max | nokaslr
50-686      | 1G    | max | nokaslr
50-686      | 2G    | max | nokaslr
50-686      | 4G    | max | nokaslr
50-686      | 2G    | max |
50-686      | 512M  | max | nokaslr vmalloc=64M
50-686      | 512M  | max | nokaslr vmalloc=512M
50-686      | 1G    | max | nokaslr vmalloc=64M
50-686      | 1G    | max | nokaslr vmalloc=128M
50-686      | 2G    | max | nokaslr vmalloc=128M
50-686      | 2G    | max | nokaslr vmalloc=256M
50-686      | 2G    | max | nokaslr vmalloc=512M
50-686      | 4G    | max | nokaslr vmalloc=256M
50-686      | 512M  | max | nokaslr vmalloc=960M
50-686      | 512M  | max | nokaslr vmalloc=1000M
50-686      | 1G    | max | nokaslr vmalloc=1000M
50-686      | 2G    | max | nokaslr vmalloc=8M
50-686      | 2G    | max | nokaslr vmalloc=0
50-686      | 512M  | max | nokaslr highmem=128M
50-686      | 512M  | max | nokaslr highmem=480M
50-686      | 512M  | max | nokaslr highmem=1G
50-686      | 2G    | max | nokaslr highmem=256M
50-686      | 2G    | max | nokaslr highmem=0
50-686      | 1G    | max | nokaslr reservetop=10M
50-686      | 1G    | max | nokaslr vmalloc=0x6000000 vmalloc=200000k
686-pae     | 512M  | max | nokaslr
686-pae     | 1G    | max | nokaslr
686-pae     | 2G    | max | nokaslr
686-pae     | 4G    | max | nokaslr
686-pae     | 4G    | max |
686-pae     | 4G    | max | nokaslr pti=on
686-pae     | 2G    | max | nokaslr vmalloc=64M
686-pae     | 4G    | max | nokaslr vmalloc=256M
686-pae     | 4G    | max | nokaslr vmalloc=512M
686-pae     | 4G    | max | nokaslr vmalloc=128M highmem=1G
686-pae     | 1G    | max | nokaslr highmem=300M
'
: > "$scratch/all"
for kernel in "$@"; do
  release=$(cat "$kernel/release")
  "$here/module/build-one.sh" "$build" "$release" layout_probe
  root=$scratch/initramfs
  rm -rf "$root"
  mkdir -p "$root/bin" "$root/proc" "$root/sys"
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
      ;;
    *) cp "$(command -v busybox)" "$root/bin/busybox" ;;
  esac
  ln -s busybox "$root/bin/sh"
  cp "$build/$release/layout_probe.ko" "$root/"
  cat > "$root/init" << 'INIT'
#!/bin/sh
b=/bin/busybox
$b mount -t proc proc /proc
$b insmod /layout_probe.ko
echo; echo @@BEGIN  # the firmware leaves escape sequences on the first line
echo @file dmesg; $b dmesg
for f in iomem meminfo zoneinfo buddyinfo vmallocinfo layout_probe; do echo "@file $f"; $b cat /proc/$f; done
echo @file kcore; $b head -c 4096 /proc/kcore | $b hexdump -v -e '64/1 "%02x" "\n"'
echo @@BYE
$b poweroff -f
INIT
  chmod +x "$root/init"
  (cd "$root" && find . | cpio -o -H newc --quiet) > "$scratch/initrd"
  echo "$runs" | while IFS='|' read -r which ram cpu words; do
    which=$(echo $which) ram=$(echo $ram) cpu=$(echo $cpu) words=$(echo $words)
    [ -n "$which" ] || continue
    case $release in *"$which") ;; *) continue ;; esac
    timeout 100 qemu-system-x86_64 -M pc -accel tcg -cpu "$cpu" -m "$ram" -smp 1 -nographic -nodefaults -no-reboot -serial stdio \
      -kernel "$kernel/vmlinuz" -initrd "$scratch/initrd" -append "console=ttyS0 panic=-1 quiet loglevel=1 no_hash_pointers $words" \
      < /dev/null 2> /dev/null | tr -d '\r' > "$scratch/console" || true # what does not boot hangs
    echo "@run $release|$ram|$cpu|$words" >> "$scratch/all"
    if grep -q '^@@BYE$' "$scratch/console"; then
      sed -n '/^@@BEGIN$/,/^@@BYE$/p' "$scratch/console" | grep -v '^@@' >> "$scratch/all"
      echo "$release, $ram, $cpu, \"$words\": $(grep -c . "$scratch/console") lines"
    else
      echo "$release, $ram, $cpu, \"$words\": the kernel did not boot"
    fi
  done
done
python3 - "$scratch/all" "$out" << 'PYTHON'
import gzip, json, os, re, struct, sys

source, out = sys.argv[1:]
KEPT = re.compile(
    r"Linux version|Command line|BIOS-e820|e820: (update|remove)|last_pfn|HIGHMEM|LOWMEM|low ram|Zone ranges|Movable zone|Early memory node|Initmem|"
    r"^\s+(DMA|DMA32|Normal|HighMem|Device|node +\d+:)\b|Memory:|highmem|Initializing HighMem|Reserving virtual|Warning|vmalloc|isolation|zones?:|"
    r"virtual kernel|LA57|5-level|KASLR|pages used for memmap|HighMem zone"
)
runs, name, texts = [], None, {}


def finish():
    if not runs:
        return
    run = runs[-1]
    files = {key: "\n".join(value) for key, value in texts.items()}
    run["dmesg"] = [line for line in (re.sub(r"^\[ *[0-9.]+\] ?", "", line) for line in files.pop("dmesg", "").split("\n")) if KEPT.search(line)]
    run["probe"] = {key: int(value, 16) for key, value in (line.rsplit(" ", 1) for line in files.pop("layout_probe", "").split("\n") if line)}
    run["kcore"] = kcore(bytes.fromhex(files.pop("kcore", "").replace("\n", "")))
    run["files"] = files


def kcore(data):
    """The program headers: address and size of every range of kernel memory."""
    if not data:
        return []
    wide = data[4] == 2
    phoff, phentsize, phnum = (*struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)) if wide else (*struct.unpack_from("<I", data, 28), *struct.unpack_from("<HH", data, 42))
    found = []
    for at in range(phoff, phoff + phentsize * phnum, phentsize):
        if wide:
            kind, _, _, vaddr, paddr, _, size, _ = struct.unpack_from("<IIQQQQQQ", data, at)
        else:
            kind, _, vaddr, paddr, _, size, _, _ = struct.unpack_from("<IIIIIIII", data, at)
        if kind == 1:
            found.append([vaddr, size, paddr])
    return sorted(found)


for line in open(source):
    line = line.rstrip("\n")
    if line.startswith("@run "):
        finish()
        release, ram, cpu, cmdline = line[5:].split("|")
        runs.append({"release": release, "ram": ram, "cpu": cpu, "cmdline": cmdline})
        texts = {}
    elif line.startswith("@file "):
        name = line[6:]
        texts[name] = []
    elif line:
        texts[name].append(line)
finish()
with open(out + ".new", "wb") as file:
    file.write(gzip.compress(json.dumps({"runs": runs}, separators=(",", ":")).encode(), 9, mtime=0))
os.replace(out + ".new", out)
print(f"wrote {out}: {len(runs)} runs, {os.path.getsize(out)} bytes")
PYTHON
