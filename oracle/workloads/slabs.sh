# What slabs go through: objects charged to a cgroup, caches shrunk, dropped and freed in bulk, sockets, mounts, timers, directories that grow and go.
mkdir -p /tmp/cg && mount -t cgroup2 none /tmp/cg && echo +memory > /tmp/cg/cgroup.subtree_control
for group in a b; do
  mkdir /tmp/cg/$group
  (echo 0 > /tmp/cg/$group/cgroup.procs; mkdir /tmp/$group; for i in $(seq 60); do mkdir /tmp/$group/$i; echo $i > /tmp/$group/$i/file; ls /tmp/$group | sort > /dev/null; done
    find /tmp/$group -type f | xargs cat | wc -l > /dev/null)
done
ifconfig lo up 127.0.0.1
for i in 1 2 3; do (nc -l -p 50$i > /tmp/received$i &) ; sleep 0.2; echo hello | nc -w 1 127.0.0.1 50$i; done
for i in $(seq 8); do mkdir -p /tmp/m$i; mount -t tmpfs -o size=1m none /tmp/m$i; seq 2000 > /tmp/m$i/n; done
for c in dentry kmalloc-64 kmalloc-192 maple_node filp vm_area_struct anon_vma; do echo 1 > /sys/kernel/slab/$c/shrink; done
echo 2 > /proc/sys/vm/drop_caches
for i in $(seq 8); do umount /tmp/m$i; done
rm -r /tmp/a /tmp/b; rmdir /tmp/cg/a /tmp/cg/b
for c in $(ls /sys/kernel/slab | grep -v '^:' | head -40); do echo 1 > /sys/kernel/slab/$c/shrink 2> /dev/null; done
seq 20000 | sort -r | md5sum; (sleep 1 | cat) & (yes | head -n 30000 | gzip | gunzip | wc -l); wait
