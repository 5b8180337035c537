# A bit of everything that asks for pages: processes, pipes, files in tmpfs, sysfs; for the call sites of pages.
for i in 1 2 3; do ls / > /dev/null; cat /proc/meminfo | sort > /tmp/x$i; done
mkdir /tmp/d; for i in 1 2 3 4 5 6 7 8; do echo $i > /tmp/d/$i; done
dd if=/dev/zero of=/tmp/f bs=64k count=40 2>/dev/null
find /sys/kernel > /dev/null
rm -r /tmp/d /tmp/f
