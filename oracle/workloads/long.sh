# 12 million events in 7 minutes: processes, pipes, files that come and go, a directory that only grows, a tmpfs that fills and empties. For the report's figures.
mkdir /tmp/t /tmp/keep && mount -t tmpfs -o size=60% none /tmp/t
i=0
end=$(( $(date +%s) + 420 ))
while [ $(date +%s) -lt $end ]; do
  i=$((i + 1))
  mkdir /tmp/keep/$i; echo $i > /tmp/keep/$i/file
  seq 200 | sort -r | md5sum > /dev/null
  for j in 1 2 3 4 5 6 7 8; do echo $j > /tmp/t/$i.$j; done
  dd if=/dev/zero of=/tmp/t/big$i bs=64k count=$((i % 32)) 2> /dev/null
  [ $((i % 40)) = 0 ] && rm -f /tmp/t/*
  find /proc/self /tmp/t -type f 2> /dev/null | head -100 | xargs cat > /dev/null 2>&1
done
rm -rf /tmp/t/*; umount /tmp/t
