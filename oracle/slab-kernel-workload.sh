# A little of everything, short: processes, files of sysfs, dropped caches, the periodic pass.
for i in 1 2 3 4; do sh -c 'true | cat'; done
ls -lR /sys/class > /tmp/x
echo 2 > /proc/sys/vm/drop_caches
sleep 5
rm /tmp/x
