// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Asks a real kernel how its kmalloc, krealloc and kmem_cache_create behave and shows the answers in /proc/kmalloc_probe.
 *
 * Written for Linux 6.1 with CONFIG_SLUB. Everything is asked while the module is loaded; what it allocates it gives back at once.
 * Lines are words, the first names the kind, the others are key=value, or a cache's values in the order of the line "geometry". Consecutive sizes with the same answers share a line.
 * parts (a module parameter): 1 the table of all caches, 2 kmalloc, 4 arrays and krealloc, 8 kmem_cache_create.
 */
#define pr_fmt(fmt) "kmalloc_probe: " fmt
#include <linux/cpumask.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/irq_work.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/utsname.h>
#include <linux/vmalloc.h>
#include <linux/completion.h>

/* Modules do not see struct slab (mm/slab.h); this is its head in 6.1 with SLUB, and loading ends if it is not. */
struct slab {
	unsigned long flags;
	unsigned long list[2];
	struct kmem_cache *slab_cache;
	void *freelist;
	unsigned int inuse : 16, objects : 15, frozen : 1;
};
#define slab_address(slab) page_address((const struct page *)(slab))
#include <linux/slub_def.h>

static int parts = 15;
module_param(parts, int, 0444);

#define DENSE 9000		/* every size up to this one */
#define HELD 16			/* objects held at the same time, so that different places of a slab are seen */
#define OUTPUT (8 << 20)
#define POISON_BYTE 0xa5

static char *output;
static size_t used;

static __printf(1, 2) void say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	used += vscnprintf(output + used, OUTPUT - used, format, args);
	va_end(args);
}

static struct kmem_cache *cache_of(const void *object)
{
	struct page *head = virt_to_head_page(object);

	return PageSlab(head) ? ((struct slab *)head)->slab_cache : NULL;
}

static bool struct_slab_is_known(void)
{
	struct kmem_cache *mine = kmem_cache_create("kmalloc_probe_own", 40, 0, SLAB_TYPESAFE_BY_RCU, NULL);
	void *object;
	bool known;

	if (!mine)
		return false;
	object = kmem_cache_alloc(mine, GFP_KERNEL);
	known = object && cache_of(object) == mine;
	if (object)
		kmem_cache_free(mine, object);
	kmem_cache_destroy(mine);
	return known;
}

static const char *own_name = "";	/* a cache of this name is called "." */

/* The values of the columns that the line "geometry" names, without their names. */
static void say_cache(const struct kmem_cache *s)
{
	say(" %s %#x %u %u %u %u %u %u %u %u %u %u", strcmp(s->name, own_name) ? s->name : ".", (unsigned int)s->flags, s->object_size, s->size, s->inuse, s->offset,
	    s->align, s->red_left_pad, s->oo.x >> 16, s->oo.x & 0xffff, s->min.x >> 16, s->min.x & 0xffff);
	say(" %#x %lu %u %u %d %u %u %d\n", (unsigned int)s->allocflags, s->min_partial, s->cpu_partial, s->cpu_partial_slabs, s->refcount, s->useroffset, s->usersize,
	    !!s->ctor);
}

/* The list of caches is reached from a cache of our own, which as the newest is its first. Oldest first, like the kernel's merging. */
static void table_of_caches(void)
{
	struct kmem_cache *mine = kmem_cache_create("kmalloc_probe_own", 40, 0, SLAB_TYPESAFE_BY_RCU, NULL);
	struct list_head *head, *at;

	if (!mine)
		return;
	head = mine->list.prev;
	for (at = head->prev; at != &mine->list; at = at->prev) {
		say("cache");
		say_cache(list_entry(at, struct kmem_cache, list));
	}
	kmem_cache_destroy(mine);
}

/* ---- kmalloc ---- */

struct answer {
	bool ok;
	size_t ksize, roundup, align;
	struct kmem_cache *cache;
	bool linear;		/* virt_to_phys is the address less one constant */
	bool contiguous;	/* first and last byte lie in one block of pages, at the right distance */
	int zero;		/* 1 zeroed up to ksize, 0 not, -1 not asked */
	int dma;		/* 1 below 16 MiB, 0 not, -1 not asked */
	unsigned int pages_order;	/* order of the block of pages */
};

static struct {
	const char *context;
	gfp_t gfp;
	bool open;
	size_t from, to;
	struct answer last;
	unsigned long dirty, asked;
} run;

static void close_run(void)
{
	const struct answer *a = &run.last;

	if (!run.open)
		return;
	run.open = false;
	say("kmalloc ctx=%s gfp=%#x from=%zu to=%zu ", run.context, (unsigned int)run.gfp, run.from, run.to);
	if (!a->ok) {
		say("null roundup=%zu\n", a->roundup);
		return;
	}
	say("ksize=%zu roundup=%zu align=%zu cache=%s pages_order=%u linear=%d contiguous=%d zero=%d dma=%d\n", a->ksize, a->roundup, a->align,
	    a->cache ? a->cache->name : "-", a->pages_order, a->linear, a->contiguous, a->zero, a->dma);
}

static bool same(const struct answer *a, const struct answer *b)
{
	return a->ok == b->ok && a->ksize == b->ksize && a->roundup == b->roundup && a->align == b->align && a->cache == b->cache &&
	       a->linear == b->linear && a->contiguous == b->contiguous && a->zero == b->zero && a->dma == b->dma && a->pages_order == b->pages_order;
}

static void ask(size_t size, gfp_t gfp, int count)
{
	void *held[HELD] = {};
	struct answer a = { .linear = true, .contiguous = true, .align = SIZE_MAX, .zero = gfp & __GFP_ZERO ? 1 : -1, .dma = gfp & __GFP_DMA ? 1 : -1 };
	gfp_t quiet = size > (1 << 15) ? gfp | __GFP_NOWARN : gfp;
	bool dirty = false;
	int i;

	a.roundup = kmalloc_size_roundup(size);
	for (i = 0; i < count; i++) {
		void *p = held[i] = kmalloc(size, quiet);
		size_t k, low;

		if (!p || ZERO_OR_NULL_PTR(p)) {
			a.ok = !!p;
			a.align = p ? (size_t)p : 0;
			continue;
		}
		a.ok = true;
		k = ksize(p);
		a.ksize = k;
		low = (unsigned long)p & -(unsigned long)p;
		a.align = min(a.align, min(low, roundup_pow_of_two(k)));
		a.cache = cache_of(p);
		a.pages_order = compound_order(virt_to_head_page(p));
		a.linear &= virt_to_phys(p) == (unsigned long)p - PAGE_OFFSET;
		a.contiguous &= virt_to_head_page(p) == virt_to_head_page(p + k - 1) &&
				page_to_pfn(virt_to_page(p + k - 1)) - page_to_pfn(virt_to_page(p)) == ((unsigned long)p + k - 1) / PAGE_SIZE - (unsigned long)p / PAGE_SIZE;
		if (a.dma == 1 && virt_to_phys(p) + k > 16 << 20)
			a.dma = 0;
		if (memchr_inv(p, 0, k))
			dirty = true;
		memset(p, POISON_BYTE, k);
	}
	if (a.zero == 1 && dirty)
		a.zero = 0;
	for (i = 0; i < count; i++)
		kfree(held[i]);
	run.asked++;
	run.dirty += dirty;
	if (run.open && run.to + 1 == size && same(&run.last, &a)) {
		run.to = size;
		return;
	}
	close_run();
	run.open = true;
	run.from = run.to = size;
	run.last = a;
}

static void all_sizes(const char *context, gfp_t gfp, size_t largest)
{
	size_t size;
	int shift;

	run.context = context;
	run.gfp = gfp;
	run.dirty = run.asked = 0;
	for (size = 0; size <= DENSE; size++)
		ask(size, gfp, HELD);
	for (shift = 14; (1UL << shift) <= largest; shift++) {
		ask((1UL << shift) - 1, gfp, 2);
		ask(1UL << shift, gfp, 2);
		if ((1UL << shift) < largest || largest == KMALLOC_MAX_SIZE)
			ask((1UL << shift) + 1, gfp, 1);
	}
	if (largest == KMALLOC_MAX_SIZE) {
		ask(2 * KMALLOC_MAX_SIZE, gfp, 1);
		ask(SIZE_MAX / 2, gfp, 1);
		ask(SIZE_MAX - 4095, gfp, 1);
		ask(SIZE_MAX - 1, gfp, 1);
		ask(SIZE_MAX, gfp, 1);
	}
	close_run();
	say("unzeroed ctx=%s gfp=%#x sizes=%lu of=%lu\n", context, (unsigned int)gfp, run.dirty, run.asked);
}

static DEFINE_SPINLOCK(probe_lock);
static DECLARE_COMPLETION(tasklet_done);
static DECLARE_COMPLETION(irq_done);

static void in_tasklet(struct tasklet_struct *unused)
{
	say("context name=softirq in_softirq=%d in_hardirq=%d\n", !!in_serving_softirq(), !!in_hardirq());
	all_sizes("softirq", GFP_ATOMIC, 1 << 20);
	complete(&tasklet_done);
}
static DECLARE_TASKLET(probe_tasklet, in_tasklet);

static void in_irq_work(struct irq_work *unused)
{
	say("context name=hardirq in_softirq=%d in_hardirq=%d\n", !!in_serving_softirq(), !!in_hardirq());
	all_sizes("hardirq", GFP_ATOMIC, 1 << 20);
	complete(&irq_done);
}

static void probe_kmalloc(void)
{
	static const gfp_t process[] = {
		GFP_KERNEL, GFP_ATOMIC, GFP_NOWAIT, GFP_KERNEL | GFP_DMA, GFP_KERNEL | __GFP_RECLAIMABLE, GFP_KERNEL_ACCOUNT, GFP_KERNEL | __GFP_ZERO,
		GFP_NOIO, GFP_NOFS, GFP_KERNEL | GFP_DMA | __GFP_RECLAIMABLE | __GFP_ACCOUNT, GFP_KERNEL_ACCOUNT | __GFP_RECLAIMABLE,
		GFP_ATOMIC | __GFP_ZERO, GFP_KERNEL | GFP_DMA | __GFP_ZERO,
	};
	static struct irq_work work = IRQ_WORK_INIT_HARD(in_irq_work);
	int i;

	for (i = 0; i < ARRAY_SIZE(process); i++)
		all_sizes("process", process[i], process[i] & GFP_DMA ? 1 << 20 : KMALLOC_MAX_SIZE);
	spin_lock(&probe_lock);
	say("context name=spinlock preempt_count=%d\n", preempt_count() & PREEMPT_MASK ? 1 : 0);
	all_sizes("spinlock", GFP_ATOMIC, 1 << 20);
	all_sizes("spinlock", GFP_NOWAIT, 1 << 20);
	spin_unlock(&probe_lock);
	tasklet_schedule(&probe_tasklet);
	wait_for_completion(&tasklet_done);
	tasklet_kill(&probe_tasklet);
	irq_work_queue(&work);
	wait_for_completion(&irq_done);
	irq_work_sync(&work);
}

/* ---- arrays, krealloc ---- */

static void ask_array(const char *how, size_t n, size_t size)
{
	void *p = how[1] == 'c' ? kcalloc(n, size, GFP_KERNEL | __GFP_NOWARN) : kmalloc_array(n, size, GFP_KERNEL | __GFP_NOWARN);

	say("array how=%s n=%zu size=%zu ", how, n, size);
	if (!p)
		say("null\n");
	else if (ZERO_OR_NULL_PTR(p))
		say("zero_size_ptr=%lu\n", (unsigned long)p);
	else
		say("ksize=%zu zero=%d\n", ksize(p), how[1] == 'c' ? !memchr_inv(p, 0, ksize(p)) : -1);
	kfree(p);
}

static void ask_krealloc(size_t from, size_t to)
{
	unsigned char *p = kmalloc(from, GFP_KERNEL), *q;
	size_t before, i, kept;

	if (!p)
		return;
	before = ksize(p);
	if (!ZERO_OR_NULL_PTR(p))
		memset(p, POISON_BYTE, before);
	q = krealloc(p, to, GFP_KERNEL | __GFP_NOWARN);
	say("krealloc from=%zu to=%zu ksize_before=%zu ", from, to, before);
	if (!q) {
		say("null\n");
		kfree(p);	/* a failed krealloc leaves the old object alone */
		return;
	}
	if (ZERO_OR_NULL_PTR(q)) {
		say("zero_size_ptr=%lu\n", (unsigned long)q);
		return;
	}
	kept = min3(before, to, from);
	for (i = 0; i < kept && q[i] == POISON_BYTE; i++)
		;
	say("same=%d ksize=%zu kept=%d\n", q == p, ksize(q), i == kept);
	kfree(q);
}

static void probe_arrays(void)
{
	static const size_t pairs[][2] = {
		{ 0, 0 }, { 0, 8 }, { 1, 1 }, { 3, 7 }, { 10, 10 }, { 100, 100 }, { 512, 8192 }, { 1024, 4096 }, { 1025, 4096 },
		{ SIZE_MAX, 1 }, { SIZE_MAX, 2 }, { SIZE_MAX / 2 + 1, 2 }, { SIZE_MAX / 8 + 1, 8 }, { SIZE_MAX / 16 + 2, 16 }, { 2, SIZE_MAX },
		{ 1UL << 32, 1UL << 32 }, { (1UL << 32) + 1, 1UL << 32 }, { SIZE_MAX, SIZE_MAX },
	};
	static const size_t sizes[] = { 0, 1, 8, 9, 64, 65, 96, 128, 190, 193, 500, 2048, 4096, 8192, 8193, 16384, 20000, 65536 };
	void *p;
	int i, k;

	for (i = 0; i < ARRAY_SIZE(pairs); i++) {
		ask_array("kcalloc", pairs[i][0], pairs[i][1]);
		ask_array("kmalloc_array", pairs[i][0], pairs[i][1]);
	}
	for (i = 0; i < ARRAY_SIZE(sizes); i++)
		for (k = 0; k < ARRAY_SIZE(sizes); k++)
			ask_krealloc(sizes[i], sizes[k]);
	ask_krealloc(100, SIZE_MAX);
	ask_krealloc(100, KMALLOC_MAX_SIZE + 1);
	p = krealloc(NULL, 100, GFP_KERNEL);
	say("krealloc_null to=100 ksize=%zu\n", ksize(p));
	kfree(p);
	p = krealloc(NULL, 0, GFP_KERNEL);
	say("krealloc_null to=0 zero_size_ptr=%lu\n", (unsigned long)p);
	say("ksize_of null=%zu zero_size_ptr=%zu\n", ksize(NULL), ksize(ZERO_SIZE_PTR));
	kfree(NULL);
	kfree(ZERO_SIZE_PTR);
	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		unsigned char *z = kmalloc(sizes[i], GFP_KERNEL);

		if (!ZERO_OR_NULL_PTR(z))
			memset(z, POISON_BYTE, ksize(z));
		kfree(z);
		z = kzalloc(sizes[i], GFP_KERNEL);
		if (!ZERO_OR_NULL_PTR(z))
			say("kzalloc size=%zu ksize=%zu zero=%d\n", sizes[i], ksize(z), !memchr_inv(z, 0, ksize(z)));
		kfree(z);
	}
}

/* ---- kmem_cache_create ---- */

static unsigned long constructed;

static void probe_ctor(void *object)
{
	constructed++;
	*(char *)object = 0x5c;
}

static unsigned int caches_made;

static void ask_cache(unsigned int size, unsigned int align, slab_flags_t flags, bool ctor, unsigned int useroffset, unsigned int usersize)
{
	char name[24];
	struct kmem_cache *s;
	void *object;

	snprintf(name, sizeof(name), "probe%u", caches_made++);
	s = kmem_cache_create_usercopy(name, size, align, flags, useroffset, usersize, ctor ? probe_ctor : NULL);
	say("create size=%u align=%u flags=%#x ctor=%d useroffset=%u usersize=%u ", size, align, (unsigned int)flags, ctor, useroffset, usersize);
	if (!s) {
		say("null\n");
		return;
	}
	constructed = 0;
	object = kmem_cache_alloc(s, GFP_KERNEL | __GFP_NOWARN);
	say("merged=%d kmem_cache_size=%u ksize=%zu constructed=%lu", strcmp(s->name, name) != 0, kmem_cache_size(s), object ? ksize(object) : 0, constructed);
	own_name = name;
	say_cache(s);
	own_name = "";
	if (object)
		kmem_cache_free(s, object);
	kmem_cache_destroy(s);
}

static void probe_caches(void)
{
	static const unsigned int sizes[] = {
		1, 7, 8, 9, 16, 24, 33, 48, 64, 65, 104, 128, 192, 200, 256, 400, 512, 700, 1000, 1024, 1300, 2000, 2500, 3600, 4096, 4097, 6000, 8192, 10000, 20000, 32768, 100000, 1 << 20, 4 << 20,
	};
	static const unsigned int aligns[] = { 4, 8, 16, 32, 64, 256, 4096 };
	static const slab_flags_t flags[] = {
		0, SLAB_HWCACHE_ALIGN, SLAB_TYPESAFE_BY_RCU, SLAB_RECLAIM_ACCOUNT, SLAB_ACCOUNT, SLAB_CACHE_DMA, SLAB_CACHE_DMA32, SLAB_NO_USER_FLAGS,
		SLAB_RED_ZONE, SLAB_POISON, SLAB_STORE_USER, SLAB_CONSISTENCY_CHECKS, SLAB_RED_ZONE | SLAB_POISON, SLAB_RED_ZONE | SLAB_STORE_USER,
		SLAB_RED_ZONE | SLAB_POISON | SLAB_STORE_USER | SLAB_CONSISTENCY_CHECKS, SLAB_POISON | SLAB_TYPESAFE_BY_RCU,
		SLAB_HWCACHE_ALIGN | SLAB_RED_ZONE, SLAB_HWCACHE_ALIGN | SLAB_RECLAIM_ACCOUNT | SLAB_ACCOUNT,
	};
	int i, k;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		for (k = 0; k < ARRAY_SIZE(flags); k++)
			ask_cache(sizes[i], 0, flags[k], false, 0, 0);
		for (k = 0; k < ARRAY_SIZE(aligns); k++) {
			ask_cache(sizes[i], aligns[k], 0, false, 0, 0);
			ask_cache(sizes[i], aligns[k], SLAB_HWCACHE_ALIGN | SLAB_RED_ZONE, false, 0, 0);
		}
		ask_cache(sizes[i], 0, 0, true, 0, 0);
		ask_cache(sizes[i], 64, SLAB_RED_ZONE | SLAB_POISON, true, 0, 0);
		ask_cache(sizes[i], 0, 0, false, 0, sizes[i]);
	}
	/* What is refused. Size 0 is not asked: 6.1 divides by it. */
	ask_cache((4 << 20) + 1, 0, 0, false, 0, 0);
	ask_cache(4 << 20, 0, SLAB_RED_ZONE, false, 0, 0);
	ask_cache(8 << 20, 0, 0, false, 0, 0);
	ask_cache(64, 0, SLAB_KMALLOC, false, 0, 0);
	ask_cache(64, 0, (__force slab_flags_t)0x1, false, 0, 0);
	ask_cache(64, 0, SLAB_MEM_SPREAD, false, 0, 0);
	ask_cache(64, 0, SLAB_NOLEAKTRACE, false, 0, 0);
	/* Regions for user copies that do not fit are dropped with a warning. */
	ask_cache(64, 0, 0, false, 8, 0);
	ask_cache(64, 0, 0, false, 0, 65);
	ask_cache(64, 0, 0, false, 60, 8);
	ask_cache(64, 0, 0, false, 56, 8);
}

/* Two caches that are alike, with one alive while the other is made; and a name that exists. */
static void probe_merging(void)
{
	struct kmem_cache *a = kmem_cache_create("probe_first", 984, 8, 0, NULL), *b;
	static const unsigned int sizes[] = { 970, 976, 977, 980, 984, 985, 992 };
	int i;

	if (!a)
		return;
	say("merge_first");
	say_cache(a);
	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		b = kmem_cache_create("probe_second", sizes[i], 0, 0, NULL);
		say("merge size=%u same=%d", sizes[i], a == b);
		say_cache(b);
		kmem_cache_destroy(b);
	}
	kmem_cache_destroy(a);
	a = kmem_cache_create("probe_twice", 984, 0, 0, probe_ctor);
	b = kmem_cache_create("probe_twice", 984, 0, 0, probe_ctor);
	say("twice first=%d second=%d\n", !!a, !!b);
	kmem_cache_destroy(b);
	kmem_cache_destroy(a);
}

static ssize_t probe_read(struct file *file, char __user *to, size_t n, loff_t *at)
{
	return simple_read_from_buffer(to, n, at, output, used);
}

static const struct proc_ops probe_ops = {
	.proc_read = probe_read,
	.proc_lseek = default_llseek,
};

static int __init probe_init(void)
{
	output = vzalloc(OUTPUT);
	if (!output)
		return -ENOMEM;
	if (!struct_slab_is_known()) {
		pr_err("struct slab does not look like a SLUB kernel's\n");
		vfree(output);
		return -ENODEV;
	}
	say("probe format=1 release=%s present_cpus=%u nr_cpu_ids=%u parts=%d page_offset=%#lx\n", init_utsname()->release, num_present_cpus(),
	    nr_cpu_ids, parts, PAGE_OFFSET);
	say("constants kmalloc_min_size=%u kmalloc_max_cache_size=%lu kmalloc_max_size=%lu kmalloc_types=%d zero_size_ptr=%lu cache_line_size=%d\n",
	    KMALLOC_MIN_SIZE, KMALLOC_MAX_CACHE_SIZE, KMALLOC_MAX_SIZE, NR_KMALLOC_TYPES, (unsigned long)ZERO_SIZE_PTR, cache_line_size());
	say("geometry name flags object_size size inuse offset align red_left_pad order objects min_order min_objects allocflags min_partial cpu_partial");
	say(" cpu_partial_slabs refcount useroffset usersize ctor\n");
	if (parts & 1)
		table_of_caches();
	if (parts & 2)
		probe_kmalloc();
	if (parts & 4)
		probe_arrays();
	if (parts & 8) {
		probe_caches();
		probe_merging();
	}
	say("end bytes=%zu\n", used);
	if (!proc_create("kmalloc_probe", 0444, NULL, &probe_ops)) {
		vfree(output);
		return -ENOMEM;
	}
	return 0;
}

static void __exit probe_exit(void)
{
	remove_proc_entry("kmalloc_probe", NULL);
	vfree(output);
}

module_init(probe_init);
module_exit(probe_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Asks the kernel how kmalloc and kmem_cache_create behave");
