# Modules and block devices: vmalloc and kernel stacks (silent bulk pages), high orders, page cache of a file system on a loop device.
for m in crc32c_generic libcrc32c crc16 mbcache jbd2 ext4 brd zram dummy; do
  [ -f /lib/modules/$m.ko ] && insmod /lib/modules/$m.ko 2>/dev/null
done
lsmod | wc -l
for d in /dev/ram0 /dev/ram1; do [ -b $d ] && dd if=/dev/zero of=$d bs=64k count=48 2>/dev/null; done
cat /proc/slabinfo /proc/vmallocinfo /proc/kallsyms > /tmp/k; md5sum /tmp/k; rm /tmp/k
for m in dummy brd zram ext4 jbd2 mbcache crc16; do rmmod $m 2>/dev/null; done
find /sys -name uevent > /tmp/u; wc -l /tmp/u
sync; echo 3 > /proc/sys/vm/drop_caches
