# Requests that fail: blocks of many orders with many kinds of flags when memory is short, and processes that the OOM killer ends (needs --module pages_probe.ko).
insmod /lib/modules/pages_probe.ko
free=$(awk '/MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
mkdir /tmp/t && mount -t tmpfs -o size=100% none /tmp/t
dd if=/dev/zero of=/tmp/t/most bs=64k count=$((free * 10)) 2>/dev/null
hungry() { echo 1000 > /proc/self/oom_score_adj; exec awk -v n=3000000 'BEGIN { for (i = 0; i < n; i++) a[i] = "mmtwin mmtwin mmtwin" i }'; }
echo 1 300 $((free * 40)) 0x3a3e 5 > /proc/pages_probe
echo 2 $((free * 20)) $((free * 40)) 0x3a3e 5 > /proc/pages_probe
echo 3 300 60 0x7a3e 9 > /proc/pages_probe
for seed in 1 2; do
  (hungry) 2>/dev/null &
  sleep 1
  (echo 1$seed 150 150 0x3a3e 4 > /proc/pages_probe) &
  (echo 2$seed 150 60 0x7fff 4 > /proc/pages_probe) &
  wait
done
cat /proc/pages_probe
rm /tmp/t/most
umount /tmp/t
