# Virtual areas on all CPUs at once: tasks, modules, and random calls of vmalloc and its relatives in a thread for each CPU (needs --module vmalloc_probe.ko).
cpus=$(grep -c ^processor /proc/cpuinfo)
for i in 1 2 3 4 5 6; do (: | cat | cat | cat > /dev/null) & done
insmod /lib/modules/vmalloc_probe.ko seed=21 count=200 threads=$cpus max_pages=40 what=0x3fff leave=1
for m in libcrc32c raid6_pq xor; do insmod /lib/modules/$m.ko & done
wait
rmmod vmalloc_probe & for i in 1 2 3 4 5 6 7 8; do (: | cat | cat > /dev/null) & done
wait
insmod /lib/modules/vmalloc_probe.ko seed=22 count=150 threads=$cpus live=150 max_pages=12 what=0x9003 leave=1
echo 23 300 0x1bff 200 > /proc/vmalloc_probe
echo 24 150 0x00ff 20 > /proc/vmalloc_probe
