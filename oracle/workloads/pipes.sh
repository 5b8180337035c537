# Data through pipes: unmovable pages handed from writer to reader and freed by the other side.
for i in 1 2 3 4; do
  dd if=/dev/zero bs=64k count=120 2>/dev/null | cat | gzip -c | md5sum > /dev/null &
done
wait
yes mmtwin | head -n 200000 | tr a-z A-Z | sort -u | wc -l
mkfifo /tmp/p
cat /tmp/p > /dev/null & dd if=/dev/urandom of=/tmp/p bs=128k count=40 2>/dev/null
wait
rm /tmp/p
