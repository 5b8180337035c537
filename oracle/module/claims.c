// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The experiments of `mmtwin claims` in a real kernel: each prints lines "claims: NAME key=value ..." with what it measured.
 *   insmod claims.ko            all but what needs memory pressure
 *   insmod claims.ko part=hold  keeps 16 MiB of vmalloc memory; rmmod says whether its frames and its contents are what they were
 *
 * Written for Linux 6.1 and 6.12 on x86-64 and for 6.1 on i386. Values are decimal or 0x; a run of pages is a stretch of adjacent page frames.
 */
#include <linux/dma-mapping.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/swap.h>
#include <linux/version.h>
#include <linux/vmalloc.h>

static char *part = "all";
module_param(part, charp, 0);

#define say(format, ...) pr_info("claims: " format "\n", ##__VA_ARGS__)
#define QUIET (GFP_KERNEL | __GFP_NOWARN | __GFP_NORETRY)

static bool in_vmalloc(unsigned long p)
{
	return p >= VMALLOC_START && p < VMALLOC_END;
}

static const char *region(const void *address)
{
	unsigned long p = (unsigned long)address;

	if (p < TASK_SIZE_MAX)
		return "user";
	if (p >= PAGE_OFFSET && p < (unsigned long)high_memory)
		return "direct_map";
	if (in_vmalloc(p))
		return "vmalloc";
	if (p >= MODULES_VADDR && p < MODULES_END)
		return "modules";
	return "other";
}

static bool user_may(const void *address)
{
	unsigned int level;
	pte_t *pte = lookup_address((unsigned long)address, &level);

	return pte && pte_flags(*pte) & _PAGE_USER;
}

static unsigned long frame(const char *p)
{
	return is_vmalloc_addr(p) || !virt_addr_valid(p) ? page_to_pfn(vmalloc_to_page(p)) : virt_to_phys((void *)p) >> PAGE_SHIFT;
}

static unsigned long runs(const char *p, unsigned long pages)
{
	unsigned long i, n = 1;

	for (i = 1; i < pages; i++)
		n += frame(p + i * PAGE_SIZE) != frame(p + (i - 1) * PAGE_SIZE) + 1;
	return n;
}

/* All entries of the kernel's page tables for a range: how many map pages, how many lead to tables, and a sum that any change of one of them changes. */
struct census {
	unsigned long leaves, tables;
	u64 sum;
};

static bool count_entry(struct census *c, unsigned long at, u64 value, bool leaf)
{
	c->leaves += leaf;
	c->tables += !leaf;
	c->sum += ((value & ~(u64)(_PAGE_ACCESSED | _PAGE_DIRTY)) ^ at) * 0x9e3779b97f4a7c15ULL;
	return leaf;
}

static void census(struct census *c, unsigned long start, unsigned long end)
{
	pgd_t *base = __va(read_cr3_pa());
	unsigned long at = start, next;

	for (; at < end && at >= start; at = next) {
		pgd_t *pgd = base + pgd_index(at);
		p4d_t *p4d;
		pud_t *pud;
		pmd_t *pmd;
		pte_t *pte;

		next = (at & PGDIR_MASK) + PGDIR_SIZE;
		if (pgd_none(*pgd))
			continue;
		p4d = p4d_offset(pgd, at);
		next = (at & P4D_MASK) + P4D_SIZE;
		if (p4d_none(*p4d))
			continue;
		pud = pud_offset(p4d, at);
		next = (at & PUD_MASK) + PUD_SIZE;
		if (pud_none(*pud))
			continue;
#if CONFIG_PGTABLE_LEVELS > 2
		if (!(at & ~PUD_MASK) || at == start)
			if (count_entry(c, at, pud_val(*pud), pud_flags(*pud) & _PAGE_PSE))
				continue;
#endif
		pmd = pmd_offset(pud, at);
		next = (at & PMD_MASK) + PMD_SIZE;
		if (pmd_none(*pmd))
			continue;
		if (!(at & ~PMD_MASK) || at == start)
			if (count_entry(c, at, pmd_val(*pmd), pmd_flags(*pmd) & _PAGE_PSE))
				continue;
		pte = pte_offset_kernel(pmd, at);
		next = (at & PAGE_MASK) + PAGE_SIZE;
		if (!pte_none(*pte))
			count_entry(c, at, pte_val(*pte), true);
	}
}

static struct census now(void)
{
	struct census c = {};

	census(&c, PAGE_OFFSET, (unsigned long)high_memory);
	census(&c, VMALLOC_START, VMALLOC_END);
	return c;
}

static void memory(void)
{
	char *p = kmalloc(100, GFP_KERNEL), *v = vmalloc(100);

	say("kmalloc region=%s user=%d", region(p), user_may(p));
	say("vmalloc region=%s user=%d", region(v), user_may(v));
	vfree(v);
	kfree(p);
}

static void contiguity(void)
{
	static struct page *page[512];
	unsigned long size, worst = 0;
	char *p;
	int i, n;

	for (size = 1; size <= 4 << 20; size *= 2) {
		p = kmalloc(size, GFP_KERNEL);
		if (!p)
			break;
		worst = max(worst, runs(p, DIV_ROUND_UP(size, PAGE_SIZE)));
		kfree(p);
	}
	say("kmalloc-runs largest=%lu runs=%lu", size / 2, worst);
	/* Every second of a few free pages is kept by someone else: what vmalloc gets next are pages without neighbours. */
	for (n = 0; n < ARRAY_SIZE(page); n++)
		page[n] = alloc_page(GFP_KERNEL);
	for (i = 1; i < n; i += 2)
		__free_page(page[i]);
	p = vmalloc(64 * PAGE_SIZE);
	say("vmalloc-runs pages=64 runs=%lu", runs(p, 64));
	vfree(p);
	for (i = 0; i < n; i += 2)
		__free_page(page[i]);
}

static void limits(void)
{
	static const unsigned int sizes[] = { 1, 28, 100, 129, 193, 4096, 4097, 8193, 131072, 131073 };
	unsigned long low = 1 << 20, high = 64 << 20;
	char text[128];
	int i, at = 0;
	char *p;

	while (high - low > 1) {
		unsigned long middle = low + (high - low) / 2;

		p = kmalloc(middle, QUIET);
		kfree(p);
		*(p ? &low : &high) = middle;
	}
	say("kmalloc-limit largest=%lu page_size=%lu", low, PAGE_SIZE);
	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		p = kmalloc(sizes[i], GFP_KERNEL);
		at += scnprintf(text + at, sizeof(text) - at, "%s%u:%zu", i ? "," : "", sizes[i], ksize(p));
		kfree(p);
	}
	say("ksize %s", text);
	p = vmalloc(64 << 20);
	say("vmalloc-large bytes=%d served=%d", 64 << 20, !!p);
	vfree(p);
	p = vmalloc((totalram_pages() + 1) << PAGE_SHIFT);
	say("vmalloc-all-memory served=%d", !!p);
	vfree(p);
}

static void offset(void)
{
	unsigned long size, first = 0;
	int same = 1;

	for (size = 8; size <= 4 << 20; size *= 2) {
		char *p = kmalloc(size, GFP_KERNEL);
		unsigned long difference = (unsigned long)p - (unsigned long)virt_to_phys(p);

		if (!first)
			first = difference;
		same &= difference == first;
		kfree(p);
	}
	say("offset offset=0x%lx same=%d page_offset=0x%lx", first, same, PAGE_OFFSET);
}

static void tables(void)
{
	struct census before, after;
	unsigned long size, sizes = 0, changes = 0, leaves = 0;
	char *p;

	before = now();
	for (size = 8; size <= 4 << 20; size *= 2) {
		p = kmalloc(size, GFP_KERNEL);
		after = now();
		changes += before.sum != after.sum;
		leaves += after.leaves - before.leaves;
		sizes++;
		kfree(p);
	}
	say("kmalloc-tables sizes=%lu changes=%lu entries=%ld", sizes, changes, leaves);
	p = vmalloc(100 * PAGE_SIZE); /* once before, for the page tables that it may need */
	vfree(p);
	before = now();
	p = vmalloc(100 * PAGE_SIZE);
	after = now();
	say("vmalloc-tables pages=100 entries=%ld tables=%ld", after.leaves - before.leaves, after.tables - before.tables);
	before = after;
	vfree(p);
	after = now();
	say("vfree-tables pages=100 entries=%ld tables=%ld", after.leaves - before.leaves, after.tables - before.tables);
}

static void fragmented(void)
{
	struct page *chain = NULL, *next;
	unsigned long taken = 0, freed = 0;
	char *k, *v, *kv;
	bool keep = true;

	while (global_zone_page_state(NR_FREE_PAGES) > 8192 && (next = alloc_page(QUIET))) {
		next->private = (unsigned long)chain;
		chain = next;
		taken++;
	}
	/* Free every second page, and put those kept on a chain of their own. */
	next = chain;
	chain = NULL;
	while (next) {
		struct page *page = next;

		next = (struct page *)page->private;
		keep = !keep;
		if (keep) {
			page->private = (unsigned long)chain;
			chain = page;
		} else {
			page->private = 0;
			__free_page(page);
			freed++;
		}
	}
	/* What was free before is taken, so that only the single pages are left. */
	for (;;) {
		struct page *page = alloc_pages(QUIET, 2);

		if (!page)
			break;
		split_page(page, 2);
		for (int i = 0; i < 4; i++) {
			page[i].private = (unsigned long)chain;
			chain = page + i;
		}
	}
	k = kmalloc(1 << 20, QUIET);
	v = vmalloc(1 << 20);
	kv = kvmalloc(1 << 20, GFP_KERNEL);
	say("fragmented bytes=%d free_enough=%d kmalloc=%d vmalloc=%d kvmalloc=%s", 1 << 20, global_zone_page_state(NR_FREE_PAGES) > 1024, !!k, !!v, kv ? region(kv) : "null");
	kfree(k);
	vfree(v);
	kvfree(kv);
	while (chain) {
		next = (struct page *)chain->private;
		chain->private = 0;
		__free_page(chain);
		chain = next;
	}
	kv = kvmalloc(8192, GFP_KERNEL);
	say("kvmalloc bytes=8192 region=%s", region(kv));
	kvfree(kv);
	kv = kvmalloc(64 << 20, GFP_KERNEL);
	say("kvmalloc bytes=%d region=%s", 64 << 20, kv ? region(kv) : "null");
	kvfree(kv);
}

static void module_memory(void)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
	char *base = THIS_MODULE->mem[MOD_TEXT].base;
	unsigned int size = THIS_MODULE->mem[MOD_TEXT].size;
#else
	char *base = THIS_MODULE->core_layout.base;
	unsigned int size = THIS_MODULE->core_layout.size;
#endif
	say("module region=%s page_aligned=%d pages=%u direct_map=%d", region(base), !offset_in_page(base), DIV_ROUND_UP(size, (unsigned int)PAGE_SIZE), virt_addr_valid(base));
}

static void small(void)
{
	static void *object[2048];
	static unsigned long frames[2048];
	static int on_page[2048];
	int i, j, pages = 0, most = 0;
	unsigned long least = -1UL;
	char *p[2];

	for (i = 0; i < ARRAY_SIZE(object); i++) {
		unsigned long pfn;

		object[i] = kmalloc(28, GFP_KERNEL);
		pfn = virt_to_phys(object[i]) >> PAGE_SHIFT;
		for (j = 0; j < pages && frames[j] != pfn; j++)
			;
		if (j == pages)
			frames[pages++] = pfn;
		most = max(most, ++on_page[j]);
	}
	say("small-kmalloc objects=%zu bytes_each=%zu pages=%d most=%d", ARRAY_SIZE(object), ksize(object[0]), pages, most);
	for (i = 0; i < ARRAY_SIZE(object); i++)
		kfree(object[i]);
	for (i = 0; i < 64; i++) {
		object[i] = vmalloc(28);
		for (j = 0; j < i; j++)
			least = min(least, (unsigned long)abs((long)object[i] - (long)object[j]));
	}
	for (i = 0, pages = 0; i < 64; i++) {
		unsigned long pfn = vmalloc_to_pfn(object[i]);

		for (j = 0; j < pages && frames[j] != pfn; j++)
			;
		if (j == pages)
			frames[pages++] = pfn;
	}
	say("small-vmalloc objects=64 addresses_each=%lu pages=%d", least, pages);
	for (i = 0; i < 64; i++)
		vfree(object[i]);
	p[0] = kmalloc(100, GFP_KERNEL);
	p[1] = vmalloc(100);
	kvfree(p[0]);
	kvfree(p[1]);
	say("kvfree left=%d", in_vmalloc((unsigned long)p[1]) && vmalloc_to_page(p[1]) != NULL);
}

static void construct(void *object)
{
}

static void slabs(void)
{
	static const unsigned int sizes[] = { 100, 8192, 8193 };
	static char *object[600];
	char text[64];
	unsigned long size, aligned = 1, starts = 0, stride = -1UL, seen[64];
	struct kmem_cache *cache;
	int i, j, at = 0;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		char *p = kmalloc(sizes[i], GFP_KERNEL);

		at += scnprintf(text + at, sizeof(text) - at, "%s%u:%d", i ? "," : "", sizes[i], !!PageSlab(virt_to_head_page(p)));
		kfree(p);
	}
	say("in-slab %s", text);
	for (size = 8; size <= 1 << 20; size *= 2) {
		for (i = 0; i < 16; i++) {
			object[i] = kmalloc(size, GFP_KERNEL);
			aligned &= !((unsigned long)object[i] & (size - 1));
		}
		while (i)
			kfree(object[--i]);
	}
	say("aligned largest=%lu aligned=%lu", size / 2, aligned);
	/* Objects of 600 bytes leave room in their slabs: where in its slab does the first object lie? */
	cache = kmem_cache_create("claims", 600, 0, 0, construct);
	if (!cache)
		return;
	for (i = 0; i < ARRAY_SIZE(object); i++) {
		object[i] = kmem_cache_alloc(cache, GFP_KERNEL);
		for (j = 0; j < i; j++)
			stride = min(stride, (unsigned long)abs((long)object[i] - (long)object[j]));
	}
	for (i = 0; i < ARRAY_SIZE(object); i++) {
		size = (object[i] - (char *)page_address(virt_to_head_page(object[i]))) % stride;
		for (j = 0; j < starts && seen[j] != size; j++)
			;
		if (j == starts && starts < ARRAY_SIZE(seen))
			seen[starts++] = size;
	}
	say("colours object_size=600 stride=%lu colours=%lu", stride, starts);
	for (i = 0; i < ARRAY_SIZE(object); i++)
		kmem_cache_free(cache, object[i]);
	kmem_cache_destroy(cache);
}

static void dma(void)
{
	struct platform_device *device = platform_device_register_simple("claims", -1, NULL, 0);
	struct sg_table table;
	struct page *page[16];
	char *k = kmalloc(16 * PAGE_SIZE, GFP_KERNEL), *v = vmalloc(16 * PAGE_SIZE);
	dma_addr_t at;
	int i, error_k, error_v, segments;

	if (IS_ERR(device))
		return;
	dma_coerce_mask_and_coherent(&device->dev, DMA_BIT_MASK(32));
	at = dma_map_single(&device->dev, k, 16 * PAGE_SIZE, DMA_TO_DEVICE);
	error_k = dma_mapping_error(&device->dev, at);
	if (!error_k)
		dma_unmap_single(&device->dev, at, 16 * PAGE_SIZE, DMA_TO_DEVICE);
	at = dma_map_single(&device->dev, v, 16 * PAGE_SIZE, DMA_TO_DEVICE);
	error_v = dma_mapping_error(&device->dev, at);
	for (i = 0; i < 16; i++)
		page[i] = vmalloc_to_page(v + i * PAGE_SIZE);
	if (sg_alloc_table(&table, 16, GFP_KERNEL))
		return;
	for (i = 0; i < 16; i++)
		sg_set_page(table.sgl + i, page[i], PAGE_SIZE, 0);
	segments = dma_map_sg(&device->dev, table.sgl, 16, DMA_TO_DEVICE);
	say("dma bytes=%lu kmalloc=%d vmalloc=%d pages=%d segments=%d", 16 * PAGE_SIZE, error_k, error_v, 16, segments);
	dma_unmap_sg(&device->dev, table.sgl, 16, DMA_TO_DEVICE);
	sg_free_table(&table);
	platform_device_unregister(device);
	vfree(v);
	kfree(k);
}

#define HELD (16 << 20)
static unsigned long *held;
static u64 held_frames;

static u64 sum_of_frames(void)
{
	u64 sum = 0;
	long i;

	for (i = 0; i < HELD >> PAGE_SHIFT; i++)
		sum = sum * 31 + vmalloc_to_pfn((char *)held + (i << PAGE_SHIFT));
	return sum;
}

static int __init claims_init(void)
{
	long i;

	if (!strcmp(part, "hold")) {
		held = vmalloc(HELD);
		if (!held)
			return -ENOMEM;
		for (i = 0; i < HELD / sizeof(long); i++)
			held[i] = i * 2654435761UL;
		held_frames = sum_of_frames();
		return 0;
	}
	memory();
	contiguity();
	limits();
	offset();
	tables();
	module_memory();
	small();
	slabs();
	dma();
	fragmented();
	say("swap-structures swap_info_struct=%zu avail_list=%zu nodes=%d address_space=%zu cluster=%zu", sizeof(struct swap_info_struct), sizeof(struct plist_node),
	    nr_node_ids, sizeof(struct address_space), sizeof(struct swap_cluster_info));
	say("end");
	return 0;
}

static void __exit claims_exit(void)
{
	long i, wrong = 0, lru = 0;

	if (!held)
		return;
	for (i = 0; i < HELD >> PAGE_SHIFT; i++)
		lru += PageLRU(vmalloc_to_page((char *)held + (i << PAGE_SHIFT)));
	for (i = 0; i < HELD / sizeof(long); i++)
		wrong += held[i] != i * 2654435761UL;
	say("held bytes=%d frames_same=%d lru=%ld wrong=%ld", HELD, sum_of_frames() == held_frames, lru, wrong);
	vfree(held);
}

module_init(claims_init);
module_exit(claims_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("The experiments of mmtwin claims");
