// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Touches what must not be touched, so that a real kernel's reports of page faults can be kept.
 *
 * Each name written to /proc/faults does one thing, in the context of the process that writes, which dies of it. A case begins with a line
 * "faults: case NAME" in the kernel's log, with the addresses that it used. Written for Linux 6.1; only for a guest that is thrown away.
 */
#define pr_fmt(fmt) "faults: " fmt
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

static void read_at(unsigned long address)
{
	u8 value = READ_ONCE(*(u8 *)address);

	pr_err("read %02x\n", value);
}

static void write_at(unsigned long address)
{
	WRITE_ONCE(*(u8 *)address, 0x5a);
	pr_err("written\n");
}

static void jump_to(unsigned long address)
{
	void (*volatile function)(void) = (void *)address;

	function();
}

/* A page of the process, present and written to. */
static unsigned long user_page(unsigned long prot)
{
	unsigned long address = vm_mmap(NULL, 0, PAGE_SIZE, prot, MAP_ANONYMOUS | MAP_PRIVATE, 0);
	static const u8 ret[] = { 0xc3, 0x55 };

	if (copy_to_user((void __user *)address, ret, sizeof(ret)))
		pr_err("no user page\n");
	return address;
}

static unsigned long mapped(pgprot_t prot)
{
	struct page *page = alloc_page(GFP_KERNEL | __GFP_ZERO);

	return (unsigned long)vmap(&page, 1, VM_MAP, prot);
}

static void provoke(const char *name)
{
	unsigned long address = 0;
	void *p;

	if (!strcmp(name, "null_read"))
		;
	else if (!strcmp(name, "null_write") || !strcmp(name, "null_exec"))
		address = 0x18;
	else if (!strcmp(name, "guard_read"))
		address = (unsigned long)vmalloc(PAGE_SIZE) + PAGE_SIZE;
	else if (!strcmp(name, "guard_write"))
		address = (unsigned long)vmalloc(3 * PAGE_SIZE) + 3 * PAGE_SIZE + 8;
	else if (!strcmp(name, "freed_read")) {
		p = vmalloc(2 * PAGE_SIZE);
		vfree(p);
		address = (unsigned long)p + PAGE_SIZE;
	} else if (!strcmp(name, "stale_read")) {	/* in the TLB, and freed, but not purged */
		p = vzalloc(PAGE_SIZE);
		address = (unsigned long)p;
		WRITE_ONCE(*(u8 *)p, 0x77);
		vfree(p);
	} else if (!strcmp(name, "purged_read")) {
		p = vzalloc(PAGE_SIZE);
		address = (unsigned long)p;
		WRITE_ONCE(*(u8 *)p, 0x77);
		vfree(p);
		vm_unmap_aliases();
	} else if (!strcmp(name, "never_read"))
		address = VMALLOC_START + (VMALLOC_END - VMALLOC_START) / 2;
	else if (!strcmp(name, "module_read"))
		address = MODULES_END - 2 * PAGE_SIZE;
	else if (!strcmp(name, "ro_write"))
		address = mapped(PAGE_KERNEL_RO) + 0x10;
	else if (!strcmp(name, "ro_read"))
		address = mapped(PAGE_KERNEL_RO) + 0x10;
	else if (!strcmp(name, "nx_exec"))
		address = mapped(PAGE_KERNEL) + 0x20;
	else if (!strcmp(name, "nx_direct_exec"))
		address = (unsigned long)kmalloc(64, GFP_KERNEL);
	else if (!strcmp(name, "user_read") || !strcmp(name, "user_write"))
		address = user_page(PROT_READ | PROT_WRITE) + 1;
	else if (!strcmp(name, "user_exec"))
		address = user_page(PROT_READ | PROT_WRITE | PROT_EXEC);
	else if (!strcmp(name, "user_nx_exec"))
		address = user_page(PROT_READ | PROT_WRITE);
	else if (!strcmp(name, "user_unmapped_read"))
		address = 0x123000;
	else if (!strcmp(name, "beyond_read"))
		address = (unsigned long)high_memory + PAGE_SIZE;
#ifdef CONFIG_X86_64
	else if (!strcmp(name, "noncanonical_read"))
		address = 0x1234567800000000;
	else if (!strcmp(name, "noncanonical_write"))
		address = 0xdead000000000108;
#endif
	pr_err("case %s address %px high_memory %px vmalloc_start %lx\n", name, (void *)address, high_memory, (unsigned long)VMALLOC_START);
	if (strstr(name, "_write"))
		write_at(address);
	else if (strstr(name, "_exec"))
		jump_to(address);
	else
		read_at(address);
	pr_err("nothing happened\n");
}

static ssize_t faults_write(struct file *file, const char __user *from, size_t n, loff_t *pos)
{
	char name[32] = "";

	if (n >= sizeof(name) || copy_from_user(name, from, n))
		return -EINVAL;
	provoke(strim(name));
	return n;
}

static const struct proc_ops ops = { .proc_write = faults_write };

static int __init faults_init(void)
{
	return proc_create("faults", 0200, NULL, &ops) ? 0 : -ENOMEM;
}
module_init(faults_init);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Provokes page faults");
