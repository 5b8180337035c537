# One workload for many settings (mmtwin whatif): directories of which half go, processes, pipes, files, sleepers that stay, and blocks asked for without
# reclaim until memory is out, of which some are refused (needs --module pages_probe.ko). "whatif.cpu_partial=N" on the kernel's command line sets that of all caches.
n=$(sed -n 's/.*whatif.cpu_partial=\([0-9]*\).*/\1/p' /proc/cmdline)
[ -z "$n" ] || for f in /sys/kernel/slab/*/cpu_partial; do [ -L ${f%/*} ] || echo $n > $f 2> /dev/null; done
insmod /lib/modules/pages_probe.ko
mkdir /tmp/d
for i in $(seq 250); do mkdir /tmp/d/$i; echo $i > /tmp/d/$i/a; echo $i > /tmp/d/$i/b; done
ls -lR /sys/bus > /tmp/l1
find /sys/devices -name 'uevent' > /tmp/l2
for i in $(seq 1 3 250); do rm -r /tmp/d/$i; done
for i in 1 2 3 4 5 6 7 8 9 10 11 12; do (sh -c 'echo one'; sh -c 'echo two') | sort | md5sum > /dev/null; done
dd if=/dev/zero bs=64k count=60 2> /dev/null | cat | gzip -c | md5sum > /dev/null
for i in $(seq 20); do (sleep 1000) & done
for i in $(seq 12); do dd if=/dev/zero of=/tmp/d/f$i bs=64k count=16 2> /dev/null; done
for i in 1 4 7 10; do rm /tmp/d/f$i; done
echo 7 20000 12000 0x38 5 > /proc/pages_probe
echo 8 20000 16000 0x38 3 > /proc/pages_probe
cat /proc/pages_probe
for i in $(seq 20 3 250); do rm -rf /tmp/d/$i; done
