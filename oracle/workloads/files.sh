# Files and directory trees by three processes at once: page cache of tmpfs, dentries and inodes, slab growth and shrinking.
work() {
  dd if=/dev/zero of=/tmp/f$1 bs=64k count=300 2>/dev/null
  for i in $(seq 1 20); do ls -lR /sys/bus > /tmp/l$1$i; done
  rm /tmp/f$1
  find / -xdev > /tmp/ff$1
  rm /tmp/l$1*
}
work a & work b & work c &
wait
