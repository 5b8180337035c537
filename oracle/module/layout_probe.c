// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Says where a running x86 kernel has what: the macros of its headers, evaluated inside it. One line per value in /proc/layout_probe, "name value",
 * addresses as unsigned hexadecimal. Written for Linux 6.1 and 6.12, x86-64 and i386.
 */
#include <linux/highmem.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/vmalloc.h>
#include <asm/cpu_entry_area.h>
#include <asm/fixmap.h>
#include <asm/pgtable.h>

#define SAY(name) seq_printf(m, #name " %#lx\n", (unsigned long)(name))

static int probe_show(struct seq_file *m, void *unused)
{
	SAY(PAGE_OFFSET);
	SAY(high_memory);
	SAY(VMALLOC_START);
	SAY(VMALLOC_END);
	SAY(VMALLOC_TOTAL);
	SAY(MODULES_VADDR);
	SAY(MODULES_END);
	SAY(FIXADDR_START);
	SAY(FIXADDR_TOP);
	SAY(FIXADDR_TOT_START);
	SAY(CPU_ENTRY_AREA_BASE);
	SAY(LDT_BASE_ADDR);
	SAY(LDT_END_ADDR);
	SAY(TASK_SIZE_MAX);
	SAY(KERNEL_IMAGE_SIZE);
	SAY(__START_KERNEL_map);
#ifdef CONFIG_SPARSEMEM
	SAY(MAX_PHYSMEM_BITS);
#endif
	SAY(NR_CPUS);
	SAY(PTRS_PER_PTE);
	SAY(PMD_SIZE);
	SAY(PGDIR_SIZE);
	SAY(__end_of_permanent_fixed_addresses);
	SAY(__end_of_fixed_addresses);
	SAY(sizeof(struct cpu_entry_area));
	SAY(sizeof(struct page));
	SAY(IOREMAP_MAX_ORDER);
#ifdef CONFIG_X86_64
	SAY(VMEMMAP_START);
	SAY(ESPFIX_BASE_ADDR);
	SAY(EFI_VA_START);
	SAY(EFI_VA_END);
	SAY(GUARD_HOLE_BASE_ADDR);
	SAY(GUARD_HOLE_END_ADDR);
	SAY(VSYSCALL_ADDR);
	SAY(pgtable_l5_enabled());
#else
	SAY(PKMAP_BASE);
	SAY(LAST_PKMAP);
	SAY(TASK_SIZE);
#endif
	return 0;
}

static int __init probe_init(void)
{
	return proc_create_single("layout_probe", 0444, NULL, probe_show) ? 0 : -ENOMEM;
}

static void __exit probe_exit(void)
{
	remove_proc_entry("layout_probe", NULL);
}

module_init(probe_init);
module_exit(probe_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Says where the kernel has what");
