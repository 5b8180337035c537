# More memory than there is, with swap (--swap): processes touch theirs in random order, a tmpfs is filled beyond what is free and read back.
echo 14 > /proc/sys/vm/nr_hugepages
total=$(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo)
touching() { awk -v seed=$1 -v n=$2 'BEGIN { srand(seed); for (i = 0; i < n; i++) a[i] = "mmtwin mmtwin mmtwin mmtwin mmtwin mmtwin" i; for (i = 0; i < n / 40; i++) a[int(rand() * n)] = i; }'; }
touching 1 $((total * 1080)) &
touching 2 $((total * 1080)) &
wait
mkdir /tmp/t && mount -t tmpfs -o size=200% none /tmp/t
dd if=/dev/zero of=/tmp/t/big bs=64k count=$((total * 7)) 2>/dev/null
dd if=/tmp/t/big of=/dev/null bs=64k count=$total 2>/dev/null
rm /tmp/t/big
umount /tmp/t
