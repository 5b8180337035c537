# Areas of one page: vmalloc and vfree alone, in random order (needs --module vmalloc_probe.ko).
insmod /lib/modules/vmalloc_probe.ko seed=21 count=8000 max_pages=1 max_align=1 live=200 what=0x1 log=0
