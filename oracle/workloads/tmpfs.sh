# A tmpfs that grows and shrinks out of order: big files, holes, truncation, small files, many directories.
mkdir /tmp/t && mount -t tmpfs none /tmp/t
for i in $(seq 1 12); do dd if=/dev/zero of=/tmp/t/big$i bs=256k count=12 2>/dev/null; done
for i in 2 4 6 8 10 12; do rm /tmp/t/big$i; done
for i in $(seq 1 300); do mkdir -p /tmp/t/d$((i % 17))/e$i; echo $i > /tmp/t/d$((i % 17))/e$i/f; done
truncate -s 1M /tmp/t/big1; truncate -s 64K /tmp/t/big3
dd if=/dev/zero of=/tmp/t/hole bs=4k count=64 seek=4096 2>/dev/null
tar -cf /tmp/t/all.tar /tmp/t/d1 /tmp/t/d2 /tmp/t/d3; tar -xf /tmp/t/all.tar -C /tmp/t
rm -r /tmp/t/d*
umount /tmp/t
