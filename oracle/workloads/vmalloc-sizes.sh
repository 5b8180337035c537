# vmalloc and vfree of fixed sizes, three times, for the order of what one call does inside (needs --slab --vmap --module vmalloc_probe.ko).
insmod /lib/modules/vmalloc_probe.ko count=0 sizes=1,2,100,101,200,201,512,513,1200 repeat=3
