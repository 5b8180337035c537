// SPDX-License-Identifier: GPL-2.0-or-later
// Holds `count` objects of `size` bytes until it is removed: of kmalloc, or of a cache of its own. What it needs in slabs is read from
// /sys/kernel/slab/CACHE/slabs before and after (oracle/advise.sh), and is what `mmtwin advise` predicts for its suggestion own-cache.
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

static int size = 640, count = 1000, own;
module_param(size, int, 0444);
module_param(count, int, 0444);
module_param(own, int, 0444);

static void **objects;
static struct kmem_cache *cache;

static noinline void probe_kmalloc(void)
{
	int i;

	for (i = 0; i < count; i++)
		objects[i] = kmalloc(size, GFP_KERNEL);
}

static noinline void probe_cache(void)
{
	int i;

	for (i = 0; i < count; i++)
		objects[i] = kmem_cache_alloc(cache, GFP_KERNEL);
}

static void give_back(void)
{
	int i;

	for (i = 0; i < count; i++)
		if (cache)
			kmem_cache_free(cache, objects[i]);
		else
			kfree(objects[i]);
	kmem_cache_destroy(cache);
	vfree(objects);
}

static int __init advise_probe_init(void)
{
	objects = vzalloc(array_size(count, sizeof(*objects)));
	if (!objects)
		return -ENOMEM;
	if (own) {
		cache = kmem_cache_create("advise_probe", size, 0, 0, NULL);
		if (!cache) {
			vfree(objects);
			return -ENOMEM;
		}
		probe_cache();
	} else {
		probe_kmalloc();
	}
	return 0;
}

static void __exit advise_probe_exit(void)
{
	give_back();
}

module_init(advise_probe_init);
module_exit(advise_probe_exit);
MODULE_DESCRIPTION("Objects of one size, of kmalloc or of a cache");
MODULE_LICENSE("GPL");
