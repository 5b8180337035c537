# Virtual areas: kernel stacks of many tasks, modules that come and go, and random calls of vmalloc and its relatives (needs --module vmalloc_probe.ko).
for i in 1 2 3 4 5 6 7 8; do (: | cat | cat | cat > /dev/null) & done
wait
insmod /lib/modules/vmalloc_probe.ko seed=11 count=500 max_pages=40 what=0x3fff leave=1
for m in libcrc32c raid6_pq xor; do insmod /lib/modules/$m.ko; done
for i in 1 2 3 4 5 6 7 8; do sleep 0.1 & done
rmmod vmalloc_probe
for i in 1 2 3 4 5 6; do (: | cat | cat | cat | cat > /dev/null) & done
wait
insmod /lib/modules/vmalloc_probe.ko seed=17 count=400 max_pages=60 max_align=4194304 live=32 what=0x7fff leave=1
rmmod xor
rmmod vmalloc_probe
insmod /lib/modules/vmalloc_probe.ko seed=13 count=700 live=700 max_pages=16 what=0x9003 leave=1
echo 14 500 0x1bff 200 > /proc/vmalloc_probe
echo 15 200 0x00ff 20 > /proc/vmalloc_probe
