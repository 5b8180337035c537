// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The 28-byte experiment: vmalloc(28) until there is no more room for areas, then kmalloc(28) until there is no more memory in the direct map.
 *
 * Written for Linux 6.1 on i386, where the first ends with most of memory free. Before each half the CPU waits with interrupts off until the host writes the
 * half's number to a word whose physical address the line "wait" gives: what it dumps meanwhile is exactly the state from which the half begins.
 *
 * kmalloc is asked with __GFP_NOWARN alone: without __GFP_DIRECT_RECLAIM nothing is reclaimed, without __GFP_KSWAPD_RECLAIM kswapd is not woken, and
 * with interrupts off nobody else allocates, so the kernel's answers follow from the state. Objects are chained through their first word.
 */
#define pr_fmt(fmt) "exhaust28: " fmt
#include <linux/delay.h>
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#define BYTES 28

/* Returns with interrupts off. */
static unsigned long wait_for_host(unsigned int *word, unsigned int half)
{
	unsigned long flags;

	pr_emerg("wait half=%u physical=0x%llx\n", half, (unsigned long long)virt_to_phys(word));
	local_irq_save(flags);
	while (READ_ONCE(*word) != half)
		cpu_relax();
	return flags;
}

static void *take(void **chain, void *object)
{
	if (object) {
		*(void **)object = *chain;
		*chain = object;
	}
	return object;
}

static void vmalloc_half(void)
{
	void *chain = NULL, *first, *object;
	unsigned long count = 0;

	first = take(&chain, vmalloc(BYTES));
	for (object = first; object; object = take(&chain, vmalloc(BYTES)))
		count++;
	pr_emerg("vmalloc count=%lu first=0x%px last=0x%px\n", count, first, chain);
	while (chain) {
		object = chain;
		chain = *(void **)object;
		vfree(object);
	}
}

static void kmalloc_half(unsigned int *word)
{
	void *chain = NULL, *first, *last, *object;
	unsigned long flags, count = 0;

	flags = wait_for_host(word, 2);
	first = take(&chain, kmalloc(BYTES, __GFP_NOWARN));
	for (object = first; object; object = take(&chain, kmalloc(BYTES, __GFP_NOWARN)))
		count++;
	last = chain;
	while (chain) {
		object = chain;
		chain = *(void **)object;
		kfree(object);
	}
	local_irq_restore(flags);
	pr_emerg("kmalloc count=%lu first=0x%px last=0x%px\n", count, first, last);
}

static int __init exhaust28_init(void)
{
	unsigned int *word = kzalloc(sizeof(*word), GFP_KERNEL);

	if (!word)
		return -ENOMEM;
	local_irq_restore(wait_for_host(word, 1));
	vmalloc_half();
	msleep(2000); /* the purge of freed areas is done by a worker */
	kmalloc_half(word);
	pr_emerg("done\n");
	kfree(word);
	return 0;
}

static void __exit exhaust28_exit(void)
{
}

module_init(exhaust28_init);
module_exit(exhaust28_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("vmalloc(28) and kmalloc(28) to the end");
