# Virtual areas: kernel stacks of many tasks, modules that come and go, and random calls of vmalloc and its relatives (needs --module vmalloc_probe.ko).
modules="libcrc32c raid6_pq xor zstd_compress btrfs"
for i in 1 2 3 4 5 6; do (: | cat | cat | cat > /dev/null) & done
wait
insmod /lib/modules/vmalloc_probe.ko seed=11 count=700 max_pages=40 leave=1
for m in $modules; do [ -f /lib/modules/$m.ko ] && insmod /lib/modules/$m.ko; done
for i in 1 2 3 4 5 6 7 8; do sleep 0.1 & done
rmmod vmalloc_probe
for i in 1 2 3 4; do (: | cat | cat | cat | cat > /dev/null) & done
wait
insmod /lib/modules/vmalloc_probe.ko seed=12 count=400 max_pages=200 max_align=4194304 live=24 what=0x7fff leave=1
for m in btrfs zstd_compress xor; do rmmod $m 2> /dev/null; done
insmod /lib/modules/xor.ko
