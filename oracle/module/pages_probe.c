// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Asks a kernel for blocks of pages with many kinds of GFP flags and in many orders, in a random order that a seed decides.
 *
 * Written for Linux 6.1. After insmod, "SEED COUNT LIVE WHAT MAX_ORDER" written to /proc/pages_probe makes the calls in the writer's own task, so several
 * writers work at the same time. At most LIVE blocks are held at once and all are freed at the end; WHAT is a mask of the kinds of flags below.
 * Every request has __GFP_NOWARN, so a refused one says nothing in the kernel's log. How many were refused is read from /proc/pages_probe.
 */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/uaccess.h>

static const gfp_t kinds[] = {
	GFP_KERNEL,				/* 0x001 */
	GFP_KERNEL | __GFP_NORETRY,		/* 0x002 */
	GFP_KERNEL | __GFP_RETRY_MAYFAIL,	/* 0x004 */
	GFP_ATOMIC,				/* 0x008 */
	GFP_ATOMIC | __GFP_NOMEMALLOC,		/* 0x010 */
	GFP_NOWAIT,				/* 0x020 */
	GFP_NOIO,				/* 0x040 */
	GFP_NOFS,				/* 0x080 */
	GFP_HIGHUSER_MOVABLE,			/* 0x100 */
	GFP_HIGHUSER_MOVABLE | __GFP_NORETRY,	/* 0x200 */
	GFP_KERNEL | __GFP_RECLAIMABLE,		/* 0x400 */
	GFP_KERNEL | GFP_DMA32 | __GFP_NORETRY,	/* 0x800 */
	GFP_ATOMIC | GFP_DMA,			/* 0x1000 */
	GFP_TRANSHUGE_LIGHT & ~__GFP_COMP,	/* 0x2000 */
	GFP_TRANSHUGE & ~__GFP_COMP,		/* 0x4000 */
};

struct block {
	struct page *page;
	unsigned int order;
};

static atomic_t asked = ATOMIC_INIT(0), refused = ATOMIC_INIT(0);

static u64 next(u64 *state)	/* xorshift64* */
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return (*state * 2685821657736338717ULL) >> 33;
}

static void calls(u64 state, unsigned int count, struct block *held, unsigned int live, unsigned int what, unsigned int max_order)
{
	unsigned int i, kind;

	for (i = 0; i < count && !fatal_signal_pending(current); i++) {
		struct block *b = &held[next(&state) % live];

		if (b->page) {
			__free_pages(b->page, b->order);
			b->page = NULL;
			if (next(&state) & 1)
				continue;
		}
		do
			kind = next(&state) % ARRAY_SIZE(kinds);
		while (!(what & 1 << kind));
		b->order = next(&state) % (max_order + 1);
		if (b->order && next(&state) & 1)
			b->order = next(&state) % (b->order + 1);
		b->page = alloc_pages(kinds[kind] | __GFP_NOWARN, b->order);
		atomic_inc(&asked);
		if (!b->page)
			atomic_inc(&refused);
		cond_resched();
	}
}

static ssize_t probe_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	unsigned int seed, count, live, what, max_order, i;
	struct block *held;
	char line[80];

	if (size >= sizeof(line))
		return -EINVAL;
	if (copy_from_user(line, text, size))
		return -EFAULT;
	line[size] = 0;
	if (sscanf(line, "%u %u %u %i %u", &seed, &count, &live, &what, &max_order) != 5 || !seed || !live || live > 1 << 20 ||
	    !(what & ((1 << ARRAY_SIZE(kinds)) - 1)) || max_order > 10)
		return -EINVAL;
	held = kvcalloc(live, sizeof(*held), GFP_KERNEL);
	if (!held)
		return -ENOMEM;
	calls(seed * 0x9e3779b97f4a7c15ULL, count, held, live, what, max_order);
	for (i = 0; i < live; i++)
		if (held[i].page)
			__free_pages(held[i].page, held[i].order);
	kvfree(held);
	return size;
}

static int show(struct seq_file *m, void *v)
{
	seq_printf(m, "%d asked, %d refused\n", atomic_read(&asked), atomic_read(&refused));
	return 0;
}

static int probe_open(struct inode *inode, struct file *file)
{
	return single_open(file, show, NULL);
}

static const struct proc_ops probe_ops = {
	.proc_open = probe_open, .proc_read = seq_read, .proc_lseek = seq_lseek, .proc_release = single_release, .proc_write = probe_write,
};

static int __init probe_init(void)
{
	return proc_create("pages_probe", 0644, NULL, &probe_ops) ? 0 : -ENOMEM;
}

static void __exit probe_exit(void)
{
	remove_proc_entry("pages_probe", NULL);
}

module_init(probe_init);
module_exit(probe_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Asks for blocks of pages with many kinds of flags in many orders");
