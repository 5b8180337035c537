// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Counts the instructions of kmalloc, kfree, vmalloc and vfree, and of what vmalloc and vfree do inside, for sizes from 8 bytes to 4 MiB.
 *
 * The counter is the time stamp counter of a QEMU that runs with "-icount shift=0": it then advances by one per instruction, which the first line of the
 * output checks with loops of known length. What is printed has the counter's own reading subtracted. Written for Linux 6.1, x86-64 and i386, one CPU.
 * Answers are in /proc/alloc_cost, one line per measurement: what, size and the numbers of `samples` calls: first, least, median, greatest.
 */
#define pr_fmt(fmt) "alloc_cost: " fmt
#include <linux/gfp.h>
#include <linux/highmem.h>
#include <linux/kprobes.h>
#include <linux/math64.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/utsname.h>
#include <linux/vmalloc.h>
#include <linux/workqueue.h>
#include <asm/msr.h>

#define LEAST 3			/* 8 bytes */
#define MOST 22			/* 4 MiB */
#define SAMPLES 400
#define BATCH 64
#define OUTPUT (1 << 18)
#define CHUNK 100U		/* as many pages as vmalloc asks for at a time */

static char *output;
static size_t used;
static u64 overhead;

static __printf(1, 2) void say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	used += vscnprintf(output + used, OUTPUT - used, format, args);
	va_end(args);
}

/* Functions that modules are not offered; only their addresses are looked up, nothing stays probed. */
static struct vm_struct *(*get_vm_area_fn)(unsigned long size, unsigned long flags);
static int (*map_fn)(unsigned long addr, unsigned long end, pgprot_t prot, struct page **pages, unsigned int page_shift);
static void (*unmap_fn)(unsigned long start, unsigned long end);
static void *(*vmalloc_range_fn)(unsigned long size, unsigned long align, unsigned long start, unsigned long end, gfp_t gfp_mask, pgprot_t prot,
				 unsigned long vm_flags, int node, const void *caller);

static void *address_of(const char *symbol)
{
	struct kprobe probe = { .symbol_name = symbol };
	void *address;

	if (register_kprobe(&probe) < 0) {
		pr_err("%s is not here\n", symbol);
		return NULL;
	}
	address = probe.addr;
	unregister_kprobe(&probe);
	return address;
}

struct series {
	u64 taken[SAMPLES];
	int count;
};

static struct series series[12];

static void add(struct series *s, u64 from, u64 to)
{
	if (s->count < SAMPLES)
		s->taken[s->count++] = to - from - overhead;
}

static int ascending(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

static void finish(struct series *s, const char *what, unsigned long size)
{
	u64 first = s->taken[0];

	if (!s->count)
		return;
	sort(s->taken, s->count, sizeof(u64), ascending, NULL);
	say("cost what=%s size=%lu samples=%d first=%llu least=%llu median=%llu greatest=%llu\n", what, size, s->count, first, s->taken[0],
	    s->taken[s->count / 2], s->taken[s->count - 1]);
	s->count = 0;
}

static noinline void loop(unsigned long n)
{
	asm volatile("1: dec %0\n\tjnz 1b" : "+r"(n) : : "cc");
}

/* Two instructions a turn: the difference of two lengths is known to the instruction. */
static void calibrate(void)
{
	unsigned long flags;
	u64 a, b, c, d;
	int i;

	local_irq_save(flags);
	for (i = 0; i < 3; i++) {
		a = rdtsc();
		b = rdtsc();
	}
	overhead = b - a;
	loop(10);
	a = rdtsc();
	loop(1000);
	b = rdtsc();
	c = rdtsc();
	loop(101000);
	d = rdtsc();
	local_irq_restore(flags);
	say("calibration overhead=%llu turns=100000 counted=%llu expected=200000\n", overhead, (d - c) - (b - a));
}

/* Interrupts are off: slow paths and the tick do not interfere, and the same object comes back every time. */
static void measure_kmalloc(unsigned long size)
{
	void *held[BATCH];
	unsigned long flags;
	u64 a, b, c, total;
	int i, k, rounds = size > 65536 ? 8 : 64;

	for (i = 0; i < 40; i++) {
		local_irq_save(flags);
		a = rdtsc();
		held[0] = kmalloc(size, GFP_NOWAIT | __GFP_NOWARN);
		b = rdtsc();
		kfree(held[0]);
		c = rdtsc();
		local_irq_restore(flags);
		if (!held[0]) {
			say("failed what=kmalloc size=%lu\n", size);
			return;
		}
		add(&series[0], a, b);
		add(&series[1], b, c);
	}
	finish(&series[0], "kmalloc", size);
	finish(&series[1], "kfree", size);
	/* As programs do it: many are held at a time, so that slabs are filled, left and come back. */
	total = 0;
	for (k = 0; k < rounds; k++) {
		int n = size > (1 << 20) ? 4 : size > 65536 ? 16 : BATCH;

		a = rdtsc();
		for (i = 0; i < n; i++)
			held[i] = kmalloc(size, GFP_KERNEL | __GFP_NOWARN);
		for (i = 0; i < n; i++)
			kfree(held[i]);
		b = rdtsc();
		total += div_u64(b - a, n);
		cond_resched();
	}
	say("cost what=kmalloc_kfree_held size=%lu samples=%d mean=%llu\n", size, rounds, div_u64(total, rounds));
}

static void drain(void)
{
	vm_unmap_aliases();
	flush_scheduled_work();
	cond_resched();
}

/*
 * The address space behind the areas in use has no page tables when it is reached for the first time; after a purge it is used again, with them. A lap
 * before measuring makes the second case the rule.
 */
static void measure_vmalloc(unsigned long size)
{
	unsigned long pages = DIV_ROUND_UP(size, PAGE_SIZE), lap = 3 * 8192 / (pages + 1) + 2, i;
	int samples = pages > 64 ? 40 : 200, frees = min(BATCH, (int)(6000 / (pages + 1)));
	u64 a, b, c;
	void *p;

	for (i = 0; i < lap; i++) {
		vfree(vmalloc(size));
		cond_resched();
	}
	drain();
	for (i = 0; i < samples; i++) {
		a = rdtsc();
		p = vmalloc(size);
		b = rdtsc();
		vfree(p);
		c = rdtsc();
		add(&series[0], a, b);
		add(&series[1], b, c);
		cond_resched();
	}
	finish(&series[0], "vmalloc", size);
	finish(&series[1], "vfree", size);
	drain();
	/* What is put off: giving the addresses of many areas back, and the flush that goes before it. */
	frees = max(frees, 1);
	for (i = 0; i < 10; i++) {
		int k;

		for (k = 0; k < frees; k++)
			vfree(vmalloc(size));
		a = rdtsc();
		vm_unmap_aliases();
		b = rdtsc();
		add(&series[0], a, b);
		cond_resched();
	}
	finish(&series[0], "purge", size);
	a = rdtsc();
	vm_unmap_aliases();
	b = rdtsc();
	say("cost what=purge_of_nothing size=%lu samples=1 mean=%llu\n", size, b - a - overhead);
	say("cost what=areas_a_purge size=%lu samples=1 mean=%d\n", size, frees);
	/* All of it, the kernel thread that purges included. */
	drain();
	a = rdtsc();
	for (i = 0; i < lap; i++) {
		vfree(vmalloc(size));
		cond_resched();
	}
	drain();
	b = rdtsc();
	say("cost what=vmalloc_vfree_all size=%lu samples=%lu mean=%llu\n", size, lap, div64_u64(b - a, lap));
}

/* In address space that has no page tables yet: `at` moves on to the next such place. */
static void measure_first(unsigned long size, unsigned long *at, unsigned long step)
{
	u64 a, b;
	void *p;
	int i;

	for (i = 0; i < 3; i++) {
		unsigned long end = *at + max(step, ALIGN(size + PAGE_SIZE, step));

		a = rdtsc();
		p = vmalloc_range_fn(size, 1, *at, end, GFP_KERNEL, PAGE_KERNEL, 0, NUMA_NO_NODE, __builtin_return_address(0));
		b = rdtsc();
		*at = end;
		if (!p) {
			say("failed what=first size=%lu\n", size);
			return;
		}
		add(&series[0], a, b);
		vfree(p);
	}
	finish(&series[0], "vmalloc_without_tables", size);
	drain();
}

/*
 * vmalloc's and vfree's steps, one by one, as mm/vmalloc.c goes through them. free_vm_area unmaps and gives the area up; unmapping is measured on its own
 * before, and the pages are mapped again in between.
 */
static void measure_steps(unsigned long size)
{
	static const char *const names[] = {
		"step_area", "step_array", "step_pages", "step_zero", "step_map", "step_unmap", "step_unmap_area_free", "step_pages_free", "step_array_free",
	};
	unsigned long pages = DIV_ROUND_UP(size, PAGE_SIZE), bytes = pages * sizeof(struct page *), got, i;
	int samples = pages > 64 ? 20 : 60, n;
	u64 from[9], to[9];

	for (n = 0; n < samples; n++) {
		struct vm_struct *area;
		struct page **array;
		unsigned long start, end;

		from[0] = rdtsc();
		area = get_vm_area_fn(pages << PAGE_SHIFT, VM_ALLOC);
		to[0] = rdtsc();
		from[1] = rdtsc();
		array = bytes > PAGE_SIZE ? __vmalloc(bytes, GFP_KERNEL | __GFP_ZERO) : kmalloc(bytes, GFP_KERNEL | __GFP_ZERO);
		to[1] = rdtsc();
		if (!area || !array)
			return;
		from[2] = rdtsc();
		for (got = 0; got < pages;) {
			unsigned long more = alloc_pages_bulk_array_node(GFP_KERNEL | __GFP_NOWARN | __GFP_HIGHMEM, numa_mem_id(),
									  min_t(unsigned long, pages - got, CHUNK), array + got);
			if (!more)
				return;
			got += more;
			cond_resched();
		}
		to[2] = rdtsc();
		from[3] = rdtsc();
		for (i = 0; i < pages; i++)
			clear_highpage(array[i]);
		to[3] = rdtsc();
		start = (unsigned long)area->addr;
		end = start + (pages << PAGE_SHIFT);
		from[4] = rdtsc();
		map_fn(start, end, PAGE_KERNEL, array, PAGE_SHIFT);
		to[4] = rdtsc();
		from[5] = rdtsc();
		unmap_fn(start, end);
		to[5] = rdtsc();
		map_fn(start, end, PAGE_KERNEL, array, PAGE_SHIFT);
		from[6] = rdtsc();
		free_vm_area(area);
		to[6] = rdtsc();
		from[7] = rdtsc();
		for (i = 0; i < pages; i++) {
			__free_pages(array[i], 0);
			cond_resched();
		}
		to[7] = rdtsc();
		from[8] = rdtsc();
		kvfree(array);
		to[8] = rdtsc();
		for (i = 0; i < ARRAY_SIZE(names); i++)
			add(&series[i], from[i], to[i]);
		cond_resched();
	}
	for (i = 0; i < ARRAY_SIZE(names); i++)
		finish(&series[i], names[i], size);
	drain();
}

static ssize_t cost_read(struct file *file, char __user *to, size_t n, loff_t *at)
{
	return simple_read_from_buffer(to, n, at, output, used);
}

static const struct proc_ops cost_ops = {
	.proc_read = cost_read,
	.proc_lseek = default_llseek,
};

static int __init cost_init(void)
{
	unsigned long at, step;
	int shift;

	get_vm_area_fn = address_of("get_vm_area");
	map_fn = address_of("vmap_pages_range_noflush");
	unmap_fn = address_of("vunmap_range_noflush");
	vmalloc_range_fn = address_of("__vmalloc_node_range");
	if (!get_vm_area_fn || !map_fn || !unmap_fn || !vmalloc_range_fn)
		return -ENOENT;
	output = vzalloc(OUTPUT);
	if (!output)
		return -ENOMEM;
	say("alloc_cost format=1 release=%s machine=%s cpus=%u\n", init_utsname()->release, init_utsname()->machine, num_online_cpus());
	calibrate();
	for (shift = LEAST; shift <= MOST; shift++)
		measure_kmalloc(1UL << shift);
	for (shift = LEAST; shift <= MOST; shift++)
		measure_vmalloc(1UL << shift);
	for (shift = LEAST; shift <= MOST; shift++)
		measure_steps(1UL << shift);
#ifdef CONFIG_X86_64
	at = ALIGN(VMALLOC_START + (1UL << 40), PUD_SIZE);
	step = PUD_SIZE;	/* a new page of the PMD level, too */
#else
	at = ALIGN(VMALLOC_START + (VMALLOC_END - VMALLOC_START) / 4, PMD_SIZE);
	step = PMD_SIZE;
#endif
	for (shift = LEAST; shift <= MOST; shift++)
		measure_first(1UL << shift, &at, step);
	say("end bytes=%zu\n", used);
	if (!proc_create("alloc_cost", 0444, NULL, &cost_ops)) {
		vfree(output);
		return -ENOMEM;
	}
	return 0;
}

static void __exit cost_exit(void)
{
	remove_proc_entry("alloc_cost", NULL);
	vfree(output);
}

module_init(cost_init);
module_exit(cost_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Counts the instructions of kmalloc and vmalloc");
