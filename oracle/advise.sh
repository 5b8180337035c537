#!/usr/bin/env bash
# What `mmtwin advise` is judged by, from a real kernel:
#   advise-slabs-6.1.txt            slabs that objects of one size need, from kmalloc and from a cache of their own (module advise_probe)
#   advise-6.1.ftrace.txt.gz        a trace of ordinary commands, and of that module holding 200 objects of 640 bytes
#   advise-atomic-6.1.ftrace.txt.gz a trace of kmalloc(GFP_KERNEL) with preemption off, in a softirq and in a hard interrupt (module contexts)
#   advise.sh BUILD_DIR OUT_DIR KERNEL_DIR     BUILD_DIR keeps kernel headers and modules (module/build.sh), KERNEL_DIR has vmlinuz and release (get-kernel.sh)
# Needs qemu-system-x86, busybox-static, cpio. A minute.
set -euo pipefail
usage="usage: advise.sh BUILD_DIR OUT_DIR KERNEL_DIR"
build=${1:?$usage} out=${2:?$usage} kernel=${3:?$usage}
here=$(cd "$(dirname "$0")" && pwd)
release=$(cat "$kernel/release")
"$here/module/build.sh" "$build" "$release" advise_probe contexts < /dev/null
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
root=$scratch/initramfs
mkdir -p "$root/bin" "$root/proc" "$root/dev" "$root/sys"
cp "$(command -v busybox)" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
cp "$build/$release/advise_probe.ko" "$build/$release/contexts.ko" "$root/"
cat > "$root/init" << 'INIT'
#!/bin/sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t devtmpfs dev /dev; $b mount -t sysfs sys /sys; $b mount -t tracefs tracefs /sys/kernel/tracing
for word in $($b cat /proc/cmdline); do case $word in advise=*) what=${word#*=} ;; esac; done
slab=/sys/kernel/slab
first() { read -r word _ < "$1"; echo "$word"; }
measure() { # size, count, kmalloc's class
  before=$(first $slab/kmalloc-$3/slabs)
  $b insmod /advise_probe.ko size=$1 count=$2
  after=$(first $slab/kmalloc-$3/slabs)
  $b rmmod advise_probe
  $b insmod /advise_probe.ko size=$1 count=$2 own=1
  own=$slab/advise_probe
  words="own_slabs $(first $own/slabs) order $(first $own/order) aliases $(first $own/aliases)"
  $b rmmod advise_probe
  echo "size $1 count $2 class $3 kmalloc_slabs $((after - before)) order $(first $slab/kmalloc-$3/order) $words"
}
slabs() {
  for n in 100 1000 5000; do
    for pair in 640:1k 288:512 1104:2k 264:512 136:192 72:96 2600:4k 4200:8k 1000:1k 560:1k; do measure ${pair%:*} $n ${pair#*:}; done
  done
}
tracing=/sys/kernel/tracing
events() {
  echo 20000 > $tracing/buffer_size_kb
  for e in kmalloc kfree kmem_cache_alloc kmem_cache_free; do echo 1 > $tracing/events/kmem/$e/enable; done
}
commands() {
  $b ls -lR /proc/sys > /dev/null
  for i in 1 2 3; do echo a | $b cat | $b wc > /dev/null; done
  $b find /sys/class > /dev/null
  $b mkdir /x; $b mount -t tmpfs x /x; $b cp /bin/busybox /x/; $b umount /x
  $b insmod /advise_probe.ko size=640 count=200
  $b rmmod advise_probe
}
ordinary() {
  events
  commands
  echo 0 > $tracing/tracing_on
  $b gzip -c $tracing/trace | $b base64
}
atomic() {
  events
  for t in kmalloc-preempt kmalloc-softirq kmalloc-hardirq; do
    echo > $tracing/trace
    echo 1 > $tracing/tracing_on
    $b insmod /contexts.ko test=$t
    echo 0 > $tracing/tracing_on
    $b cat $tracing/trace >> /trace  # while the module's names are known
    $b rmmod contexts
  done
  $b gzip -c /trace | $b base64
}
echo; echo @@BEGIN
$what
echo @@END
$b poweroff -f
INIT
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet) > "$scratch/initrd"
guest() { # what, CPUs
  timeout 300 qemu-system-x86_64 -M pc -accel tcg -cpu max -m 512M -smp "$2" -nographic -nodefaults -no-reboot -serial stdio -kernel "$kernel/vmlinuz" \
    -initrd "$scratch/initrd" -append "console=ttyS0 panic=-1 quiet loglevel=1 nokaslr no5lvl no_hash_pointers advise=$1" < /dev/null 2> /dev/null |
    tr -d '\r' > "$scratch/console"
  grep -q '^@@END$' "$scratch/console" || { echo "advise.sh: the guest did not come to the end; its last words:" >&2; tail -n 20 "$scratch/console" >&2; exit 1; }
  sed -n '/^@@BEGIN$/,/^@@END$/p' "$scratch/console" | grep -v '^@@'
}
{
  echo "Linux $release"
  for cpus in 1 4; do
    echo "cpus $cpus"
    guest slabs $cpus
  done
} > "$scratch/slabs"
guest ordinary 2 | base64 -d > "$scratch/ordinary.gz"
guest atomic 2 | base64 -d > "$scratch/atomic.gz"
gzip -t "$scratch/ordinary.gz" "$scratch/atomic.gz"
mv "$scratch/slabs" "$out/advise-slabs-6.1.txt"
gzip -dc "$scratch/ordinary.gz" | gzip -9n > "$out/advise-6.1.ftrace.txt.gz"
gzip -dc "$scratch/atomic.gz" | gzip -9n > "$out/advise-atomic-6.1.ftrace.txt.gz"
echo "wrote three files to $out"
