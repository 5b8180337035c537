#!/usr/bin/env bash
# Boots a real kernel with many CPU counts and slab options and stores what /sys/kernel/slab says of every cache.
#   sys-slab.sh KERNEL_DIR OUT.json.gz [CPUS ...]      KERNEL_DIR has vmlinuz and release (get-kernel.sh makes one)
# With CPUS only those machines, without further options. Needs qemu-system-x86, busybox-static, cpio, python3. About 3 minutes.
#
# OUT: {"release", "columns", "runs": [{"cpus", "cmdline", "present", "possible", "caches": [row, ...], "links": {alias: directory}, "slabinfo": [name, ...]}]}
# A cache is a row of the columns' values; slabinfo has the names from the newest cache to the oldest.
set -euo pipefail
kernel=${1:?usage: sys-slab.sh KERNEL_DIR OUT.json.gz [CPUS ...]} out=${2:?usage: sys-slab.sh KERNEL_DIR OUT.json.gz [CPUS ...]}
shift 2
for program in qemu-system-x86_64 busybox cpio python3; do
  command -v $program > /dev/null || { echo "sys-slab.sh: needs $program" >&2; exit 1; }
done
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ $# -gt 0 ]; then
  runs=$(printf '%s |\n' "$@")
else
  runs='
1 |
2 |
4 |
8 |
1 | slub_min_objects=4
4 | slub_min_objects=4
1 | slub_min_objects=32
4 | slub_min_objects=32
1 | slub_max_order=1
4 | slub_max_order=1
1 | slub_max_order=0
4 | slub_max_order=0
1 | slub_min_order=1
4 | slub_min_order=1
1 | slub_debug=FZPU
1 | slub_debug=OFZPU
1 | slub_debug=Z
1 | slub_debug=P
1 | slub_debug=U
1 | slab_nomerge
1 | cgroup.memory=nokmem
'
fi
mkdir -p "$scratch/initramfs/bin" "$scratch/initramfs/proc" "$scratch/initramfs/sys"
own=$kernel/busybox  # 32-bit kernels have their own
[ -f "$own" ] || own=$(command -v busybox)
cp "$own" "$scratch/initramfs/bin/busybox"
ln -s busybox "$scratch/initramfs/bin/sh"
columns="slab_size object_size objs_per_slab order align min_partial cpu_partial aliases usersize hwcache_align reclaim_account cache_dma destroy_by_rcu sanity_checks red_zone poison store_user ctor"
cat > "$scratch/initramfs/init" << INIT
#!/bin/sh
b=/bin/busybox
\$b mount -t proc proc /proc
\$b mount -t sysfs sys /sys
echo; echo @@BEGIN  # the firmware leaves escape sequences on the first line
for f in present possible; do read -r x < /sys/devices/system/cpu/\$f; echo "@\$f \$x"; done
cd /sys/kernel/slab
for d in *; do
  if [ -L "\$d" ]; then echo "@link \$d \$(\$b readlink "\$d")"; continue; fi
  row="@cache \$d"
  for c in $columns; do x=; read -r x < "\$d/\$c"; row="\$row|\${x%% *}"; done
  echo "\$row"
done
\$b awk 'NR > 2 { print "@slabinfo", \$1 }' /proc/slabinfo
echo @@BYE
\$b poweroff -f
INIT
chmod +x "$scratch/initramfs/init"
(cd "$scratch/initramfs" && find . | cpio -o -H newc --quiet) > "$scratch/initrd"

: > "$scratch/all"
echo "$runs" | while IFS='|' read -r cpus words; do
  cpus=$(echo $cpus) words=$(echo $words)
  [ -n "$cpus" ] || continue
  for attempt in 1 2 3; do  # on a busy host a guest now and then finds that its timer does not tick, and stops
    timeout 300 qemu-system-x86_64 -M pc -accel tcg -cpu max -m 256M -smp "$cpus" -nographic -nodefaults -no-reboot -serial stdio \
      -kernel "$kernel/vmlinuz" -initrd "$scratch/initrd" -append "console=ttyS0 panic=-1 quiet loglevel=1 $words" \
      < /dev/null 2> /dev/null | tr -d '\r' > "$scratch/console"
    if grep -q '^@@BYE$' "$scratch/console"; then break; fi
    echo "sys-slab.sh: attempt $attempt failed" >&2
  done
  grep -q '^@@BYE$' "$scratch/console" || {
    echo "sys-slab.sh: the guest with $cpus CPUs and \"$words\" did not answer; its last words:" >&2
    tail -n 3 "$scratch/console" >&2
    exit 1
  }
  { echo "@run $cpus|$words"; sed -n '/^@@BEGIN$/,$p' "$scratch/console" | grep -E '^@[a-z]'; } >> "$scratch/all"
  echo "$cpus CPUs, \"$words\": $(grep -c '^@cache' "$scratch/console") caches"
done
python3 - "$scratch/all" "$kernel/release" "$out" "$columns" << 'PYTHON'
import gzip, json, os, sys

source, release, out, columns = sys.argv[1:]
runs = []
for line in open(source):
    word, _, rest = line.rstrip("\n").partition(" ")
    if word == "@run":
        cpus, _, cmdline = rest.partition("|")
        runs.append({"cpus": int(cpus), "cmdline": cmdline, "caches": [], "links": {}, "slabinfo": []})
    elif word in ("@present", "@possible"):
        runs[-1][word[1:]] = int(rest.split("-")[-1]) + 1
    elif word == "@link":
        alias, target = rest.rsplit(" ", 1)
        runs[-1]["links"][alias] = target
    elif word == "@slabinfo":
        runs[-1]["slabinfo"].append(rest)
    elif word == "@cache":
        values = rest.split("|")
        runs[-1]["caches"].append([values[0], *map(int, values[1:-1]), int(bool(values[-1]))])
found = {"release": open(release).read().strip(), "columns": ["name", *columns.split()], "runs": runs}
with open(out + ".new", "wb") as file:
    file.write(gzip.compress(json.dumps(found, separators=(",", ":")).encode(), 9, mtime=0))
os.replace(out + ".new", out)
print(f"wrote {out}: {len(runs)} runs, {os.path.getsize(out)} bytes")
PYTHON
