# The same work for a kernel with SLUB and one with SLAB (mmtwin whatif --set allocator=slab): directories of which half go, processes, sleepers that stay, pipes,
# names of /proc and /sys looked up, files that grow and go, and a second round in which part of it is asked for again. Needs no module and no network.
mkdir /tmp/d
for i in $(seq 300); do mkdir /tmp/d/$i; echo $i > /tmp/d/$i/a; ln -s a /tmp/d/$i/b; done
ls -lR /sys/bus /sys/class > /tmp/l1
find /sys/devices /proc/1 /proc/sys > /tmp/l2
for i in $(seq 1 2 300); do rm -r /tmp/d/$i; done
for i in $(seq 15); do (sh -c 'echo one'; sh -c 'echo two') | sort | md5sum > /dev/null; done
for i in $(seq 25); do (sleep 1000) & done
dd if=/dev/zero bs=64k count=100 2> /dev/null | cat | gzip -c | md5sum > /dev/null
for i in $(seq 10); do dd if=/dev/zero of=/tmp/f$i bs=64k count=24 2> /dev/null; done
for i in 1 2 4 7 8 10; do rm /tmp/f$i; done
sleep 5
for i in $(seq 1 3 300); do mkdir -p /tmp/d/$i/e/f/g; echo $i > /tmp/d/$i/e/f/g/h; done
for i in $(seq 12); do (yes | head -n 2000 | gzip | gunzip | wc -l > /dev/null); done
seq 30000 | sort -r | md5sum > /dev/null
find /tmp/d -name h | xargs rm
sleep 5
