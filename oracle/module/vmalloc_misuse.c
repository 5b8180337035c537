// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Misuses vmalloc and its family, so that a real kernel's answers can be kept.
 *
 * Written for Linux 6.1. Each case runs in a kernel thread of its own, which an oops may kill, and begins with a line "vmisuse: case NAME" in the
 * kernel's log. Loading it breaks the kernel on purpose: only in a guest that is thrown away.
 */
#define pr_fmt(fmt) "vmisuse: " fmt
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

static unsigned int state_of(void *p)
{
	return is_vmalloc_addr(p) ? (vmalloc_to_page(p) ? 2 : 1) : 0;
}

static void vfree_unaligned(void)
{
	char *p = vmalloc(8192);

	vfree(p + 8);
	pr_err("area %u\n", state_of(p));
	vfree(p);
}

static void vfree_kmalloc(void)
{
	void *p = kmalloc(8192, GFP_KERNEL);

	vfree(p);
	kfree(p);
}

static void vfree_small_kmalloc(void)
{
	char *p = kmalloc(64, GFP_KERNEL), *q = kmalloc(64, GFP_KERNEL);

	vfree(offset_in_page(p) ? p : q);
}

static void vfree_twice(void)
{
	void *p = vmalloc(8192);

	vfree(p);
	vfree(p);
}

static void vfree_middle(void)
{
	char *p = vmalloc(3 * PAGE_SIZE);

	vfree(p + PAGE_SIZE);
	pr_err("first page %u\n", state_of(p));
}

static void vfree_guard(void)
{
	char *p = vmalloc(3 * PAGE_SIZE);

	vfree(p + 3 * PAGE_SIZE);
	pr_err("first page %u\n", state_of(p));
}

static void vfree_null(void)
{
	vfree(NULL);
}

static void vfree_user(void)
{
	vfree((void *)0x400000);
}

static void vmalloc_zero(void)
{
	pr_err("got %px\n", vmalloc(0));
}

static void vmalloc_too_large(void)
{
	pr_err("got %px\n", vmalloc(1UL << (BITS_PER_LONG - 1)));
}

static void vmalloc_all_memory(void)
{
	pr_err("got %px\n", vmalloc((totalram_pages() + 1) << PAGE_SHIFT));
}

static void kvmalloc_int_max(void)
{
	pr_err("got %px\n", kvmalloc((size_t)INT_MAX + 1, GFP_KERNEL));
}

static void kvmalloc_atomic(void)
{
	pr_err("got %px\n", kvmalloc(16 << 20, GFP_ATOMIC));
}

static void ioremap_ram(void)
{
	void *p = kmalloc(8192, GFP_KERNEL);

	pr_err("got %px\n", ioremap(virt_to_phys(p), 4096));
}

static void ioremap_zero(void)
{
	pr_err("got %px\n", ioremap(0xfed00000, 0));
}

static void vmap_no_guard(void)
{
	struct page *page = alloc_page(GFP_KERNEL);
	void *p = vmap(&page, 1, VM_MAP | VM_NO_GUARD, PAGE_KERNEL);

	pr_err("got %u\n", state_of(p));
	vunmap(p);
}

static void vunmap_vmalloc(void)
{
	void *p = vmalloc(8192);

	vunmap(p);
	pr_err("area %u\n", state_of(p));
}

static void vmalloc_preempt_disabled(void)
{
	void *p;

	preempt_disable();
	p = vmalloc(8192);
	preempt_enable();
	pr_err("got %u\n", state_of(p));
}

static void vfree_bh_disabled(void)
{
	void *p = vmalloc(8192);

	local_bh_disable();
	vfree(p);
	pr_err("area %u\n", state_of(p));
	local_bh_enable();
	msleep(100);
	pr_err("area %u\n", state_of(p));
}

static void vmalloc_bh_disabled(void)
{
	local_bh_disable();
	vmalloc(8192);
	local_bh_enable();
}

static void kfree_vmalloc(void)
{
	void *p = vmalloc(8192);

	pr_err("address %px\n", p);
	kfree(p);
}

static void ksize_vmalloc(void)
{
	void *p = vmalloc(8192);

	pr_err("address %px\n", p);
	pr_err("ksize %zu\n", ksize(p));
}

static void write_guard(void)
{
	volatile char *p = vmalloc(8192);

	pr_err("address %px\n", p);
	p[8192] = 1;
}

static void read_freed(void)
{
	volatile char *p = vmalloc(8192);

	pr_err("address %px\n", p);
	vfree((void *)p);
	pr_err("read %d\n", p[0]);
}

static void read_freed_touched(void)
{
	volatile char *p = vmalloc(8192);

	p[0] = 7;
	vfree((void *)p);
	pr_err("read %d\n", p[0]);
}

#define CASE(name) { #name, name }
static const struct {
	const char *name;
	void (*run)(void);
} cases[] = {
	CASE(vfree_unaligned), CASE(vfree_kmalloc), CASE(vfree_small_kmalloc), CASE(vfree_twice), CASE(vfree_middle), CASE(vfree_guard), CASE(vfree_null),
	CASE(vfree_user), CASE(vmalloc_zero), CASE(vmalloc_too_large), CASE(vmalloc_all_memory), CASE(kvmalloc_int_max), CASE(kvmalloc_atomic), CASE(ioremap_ram),
	CASE(ioremap_zero), CASE(vmap_no_guard), CASE(vunmap_vmalloc), CASE(vmalloc_preempt_disabled), CASE(vfree_bh_disabled), CASE(write_guard), CASE(read_freed), CASE(read_freed_touched),
	CASE(kfree_vmalloc), CASE(ksize_vmalloc), CASE(vmalloc_bh_disabled),
};

static DECLARE_COMPLETION(done);

static int thread(void *index)
{
	cases[(long)index].run();
	complete(&done);
	return 0;
}

static int __init vmisuse_init(void)
{
	long i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		pr_err("case %s\n", cases[i].name);
		reinit_completion(&done);
		if (IS_ERR(kthread_run(thread, (void *)i, "vmisuse")))
			return -ENOMEM;
		if (!wait_for_completion_timeout(&done, 2 * HZ))
			pr_err("thread died\n");
		msleep(20);
	}
	pr_err("case end\n");
	return -EAGAIN;
}

module_init(vmisuse_init);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Misuses of vmalloc for mmtwin");
