# Memory runs short in a machine that can give some of it back: a tmpfs that stays, page cache of a block device and dentries that kswapd and direct reclaim
# take again, processes, and a module's requests of many orders and flags of which some are refused (needs --module pages_probe.ko). All amounts are fixed, so
# that the workload is the same on a larger machine (meant for 192 MiB).
insmod /lib/modules/pages_probe.ko
insmod /lib/modules/loop.ko; truncate -s 1G /tmp/holes; losetup /dev/loop0 /tmp/holes
mkdir /tmp/t && mount -t tmpfs -o size=100% none /tmp/t
find /sys -name '*' > /dev/null
for i in $(seq 15); do dd if=/dev/zero of=/tmp/t/f$i bs=64k count=48 2> /dev/null; done
dd if=/dev/loop0 of=/dev/null bs=64k count=900 2> /dev/null
for i in 2 5 8 11; do rm /tmp/t/f$i; done
echo 3 12000 7000 0x03e 4 > /proc/pages_probe
for i in $(seq 8); do (sh -c 'echo one'; sh -c 'echo two') | sort | md5sum > /dev/null; done
(find /sys/devices -name '*' > /dev/null) &
(dd if=/dev/loop0 of=/dev/null bs=64k skip=2000 count=500 2> /dev/null) &
(seq 3000 | sort -r | md5sum > /dev/null) &
wait
for i in 2 5; do dd if=/dev/zero of=/tmp/t/f$i bs=64k count=48 2> /dev/null; done
(echo 5 12000 10000 0x038 3 > /proc/pages_probe) &
(echo 6 4000 3000 0x206 4 > /proc/pages_probe) &
wait
cat /proc/pages_probe
rm -r /tmp/t/*; umount /tmp/t
