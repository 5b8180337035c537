# Anonymous memory: awk arrays and sort buffers grow by page faults (transparent huge pages where the kernel turns them on) and are given back at exit.
awk 'BEGIN { for (i = 0; i < 120000; i++) a[i] = i "mmtwin" i; n = 0; for (i in a) n += length(a[i]); print n }'
seq 1 60000 | sed 's/$/ some text to sort/' | sort -r | tail -n 1
dd if=/dev/zero of=/dev/null bs=24M count=3 2>/dev/null
(awk 'BEGIN { for (i = 0; i < 60000; i++) a[i] = i; }') &
(dd if=/dev/zero of=/dev/null bs=16M count=2 2>/dev/null) &
wait
