# Settings change while memory is in use: watermarks, sizes of the per-CPU lists, a CPU that goes and comes back, compaction, huge pages.
dd if=/dev/zero of=/tmp/a bs=64k count=100 2>/dev/null
echo 8192 > /proc/sys/vm/min_free_kbytes
dd if=/dev/zero of=/tmp/b bs=64k count=100 2>/dev/null
echo 50 > /proc/sys/vm/watermark_scale_factor
rm /tmp/a
echo 16 > /proc/sys/vm/percpu_pagelist_high_fraction
dd if=/dev/zero of=/tmp/c bs=64k count=100 2>/dev/null
echo 0 > /proc/sys/vm/percpu_pagelist_high_fraction
rm /tmp/b /tmp/c
c=/sys/devices/system/cpu/cpu1/online
[ -f $c ] && { echo 0 > $c; ls -lR /sys/bus > /tmp/x; echo 1 > $c; ls -lR /sys/bus > /tmp/y; }
echo 1 > /proc/sys/vm/compact_memory
echo 8 > /proc/sys/vm/nr_hugepages
grep -i huge /proc/meminfo > /dev/null
echo 0 > /proc/sys/vm/nr_hugepages
echo 3 > /proc/sys/vm/drop_caches
