// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Misuses slab objects in every way that SLUB's debugging notices, so that a real kernel's reports can be kept.
 *
 * Written for Linux 6.1 with CONFIG_SLUB, booted with "slub_debug=FZPU;FP,misuse_align" on one CPU. Each case begins with a line "misuse: case NAME" in
 * the kernel's log and has a cache of its own, in which all objects of the first slab are taken and all but the two lowest given back: so places and
 * counts do not depend on the random order of the free list. Loading it corrupts memory on purpose: only in a guest that is thrown away.
 */
#define pr_fmt(fmt) "misuse: " fmt
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sort.h>
#include <linux/slab.h>

/* Modules do not see struct slab (mm/slab.h); this is its head in 6.1 with SLUB. */
struct slab {
	unsigned long flags;
	unsigned long list[2];
	struct kmem_cache *slab_cache;
	void *freelist;
	unsigned int inuse : 16, objects : 15, frozen : 1;
};
#define slab_address(slab) page_address((const struct page *)(slab))
#include <linux/slub_def.h>

#define MOST 512
static struct kmem_cache *cache;
static u8 *p, *q;	/* the lowest object of the slab, and the next one */
static void *objects[MOST];

static struct slab *slab_of(const void *object)
{
	return (struct slab *)virt_to_head_page(object);
}

static int by_address(const void *a, const void *b)
{
	const void *x = *(void *const *)a, *y = *(void *const *)b;

	return x < y ? -1 : x > y;
}

static void *take(void)
{
	return cache ? kmem_cache_alloc(cache, GFP_KERNEL) : kmalloc(28, GFP_KERNEL | GFP_DMA);
}

/* A cache with one slab, of which p and q are taken; size 0: kmalloc's for 28 bytes and DMA, which nobody else uses. */
static void begin(const char *name, unsigned int size)
{
	int i, count;

	pr_err("case %s\n", name + sizeof("misuse_") - 1);
	cache = size ? kmem_cache_create(name, size, 0, 0, NULL) : NULL;
	objects[0] = take();
	count = min_t(int, slab_of(objects[0])->objects, MOST);
	for (i = 1; i < count; i++)
		objects[i] = take();
	sort(objects, count, sizeof(void *), by_address, NULL);
	for (i = 2; i < count; i++)
		kfree(objects[i]);
	p = objects[0];
	q = objects[1];
}

static int __init misuse_init(void)
{
	struct kmem_cache *other;
	u8 *end, *slot;

	begin("misuse_left", 40);
	memset(p - 4, 'x', 4);
	kfree(p);

	begin("misuse_right", 28);
	memset(p, 'x', 30);
	kfree(p);

	begin("misuse_kmalloc", 0);
	memset(p, 'x', 33);
	kfree(p);

	begin("misuse_poison", 40);
	kfree(p);
	p[3] = 'A';
	p[5] = 'B';
	take();
	kfree(q);	/* into a slab that is disabled now */

	begin("misuse_end_poison", 40);
	kfree(p);
	p[39] = 0;
	take();

	begin("misuse_padding", 40);
	memset(p + cache->size - cache->red_left_pad - 8, 0, 4);
	kfree(p);

	begin("misuse_freeptr", 40);
	memset(p + cache->offset, 'A', 8);
	kfree(p);

	begin("misuse_freeptr_alloc", 40);
	kfree(p);
	memset(p + cache->offset, 'A', 8);
	take();

	begin("misuse_chain", 40);
	kfree(p);
	memset(p + cache->offset, 'A', 8);
	kfree(q);

	begin("misuse_double", 40);
	kfree(p);
	kfree(p);

	begin("misuse_invalid", 40);
	kfree(p + 8);

	begin("misuse_wrong", 40);
	other = kmem_cache_create("misuse_other", 40, 0, 0, NULL);
	kmem_cache_free(other, p);

	pr_err("case never\n");
	do {
		cache = kmem_cache_create("misuse_never", 40, 0, 0, NULL);
		p = kmem_cache_alloc(cache, GFP_KERNEL);
		slot = (u8 *)slab_address(slab_of(p)) + cache->red_left_pad;
	} while (slot == p);
	kfree(slot);

	begin("misuse_slab_padding", 600);
	end = (u8 *)slab_address(slab_of(p)) + page_size(virt_to_head_page(p));
	memset(end - 4, 0, 2);
	kfree(p);

	begin("misuse_destroy", 40);
	kmem_cache_destroy(cache);

	begin("misuse_discard", 40);
	kfree(q);
	kfree(p);
	p[7] = 'C';
	kmem_cache_destroy(cache);

	begin("misuse_align", 20);
	q[21] = 1;
	kfree(q);

	pr_err("case end\n");
	return 0;
}
module_init(misuse_init);

MODULE_DESCRIPTION("Misuses slab objects so that SLUB's debugging reports it");
MODULE_LICENSE("GPL");
