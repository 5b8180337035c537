# Memory runs short without swap: page cache of a block device (a loop device over a file of holes) has to go for a tmpfs that fills up and for processes.
echo 8 > /proc/sys/vm/nr_hugepages
free=$(awk '/MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
insmod /lib/modules/loop.ko; truncate -s 1G /tmp/holes; losetup /dev/loop0 /tmp/holes
mkdir /tmp/t && mount -t tmpfs -o size=98% none /tmp/t
dd if=/dev/zero of=/tmp/t/first bs=64k count=$((free * 7)) 2>/dev/null
dd if=/dev/loop0 of=/dev/null bs=64k count=$((free * 8)) 2>/dev/null
dd if=/dev/zero of=/tmp/t/second bs=64k count=$((free * 5)) 2>/dev/null
(awk 'BEGIN { for (i = 0; i < 8000; i++) a[i] = i "x"; }') &
(dd if=/dev/loop0 of=/dev/null bs=64k skip=4000 count=$((free * 3)) 2>/dev/null) &
(seq 2000 | sort -r | md5sum > /dev/null) &
wait
umount /tmp/t
