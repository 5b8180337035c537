# Memory runs short: a tmpfs fills up while caches grow, kswapd and direct reclaim give pages back, compaction moves others.
mkdir /tmp/t && mount -t tmpfs -o size=90% none /tmp/t
for i in $(seq 1 40); do dd if=/dev/zero of=/tmp/t/f$i bs=1M count=1 2>/dev/null || break; done
find / -xdev -type f 2>/dev/null | head -500 | xargs cat > /dev/null 2>&1
for i in 1 3 5 7 9 11; do rm -f /tmp/t/f$i; done
(awk 'BEGIN { for (i = 0; i < 40000; i++) a[i] = i "x"; }') &
find /sys -name '*' > /dev/null
wait
rm -rf /tmp/t/*; umount /tmp/t
