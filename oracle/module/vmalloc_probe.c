// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Asks a kernel for virtual areas in every way it has, in a random order that a seed decides, and shows the answers in /proc/vmalloc_probe.
 *
 * Written for Linux 6.1 and 6.12, x86-64 and i386. Everything is asked while the module is loaded. What is live then stays live until the module
 * is unloaded with leave=1, else it is freed at once. Nothing is allocated for bookkeeping between the calls, so a recording shows only theirs.
 *
 *	seed=N count=N		the random calls; the same seed makes the same calls
 *	what=MASK		which functions, see WHAT below (default all but the ones that restrict a range)
 *	max_pages=N		sizes are 1 byte to that many pages, small ones more often
 *	max_align=N		alignments are 1 to that many bytes, powers of two
 *	live=N			areas held at the same time, at most
 *	threads=N		that many kernel threads on different CPUs at the same time, each with areas of its own; 0: the loading task
 *	sizes=N,N,...		first, a vmalloc of so many pages each, and all freed again; repeat=N times
 *	exhaust=1|2		instead: vmalloc (1) or kmalloc (2) of exhaust_size bytes until it fails, gfp=FLAGS (0: GFP_KERNEL)
 *	log=1			a line in the kernel's log for each call too
 *
 * Loading a module purges all areas that were freed lazily. So that they can be seen, more calls are made when "SEED COUNT WHAT MAX_PAGES" is written to
 * /proc/vmalloc_probe, with the same areas and threads; room=N says for how many calls more there shall be room in the answers.
 */
#define pr_fmt(fmt) "vmalloc_probe: " fmt
#include <linux/bottom_half.h>
#include <linux/completion.h>
#include <linux/io.h>
#include <linux/kprobes.h>
#include <linux/kthread.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/moduleloader.h>
#include <linux/proc_fs.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/utsname.h>
#include <linux/version.h>
#include <linux/vmalloc.h>
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 10, 0)
#include <linux/execmem.h>
#define HAVE_EXECMEM
#endif

enum {	/* WHAT: bits of the parameter, by function */
	VMALLOC, VZALLOC, VMALLOC_USER, VMALLOC_32, VMALLOC_HUGE, NODE_RANGE, VMAP, VM_MAP_RAM, KVMALLOC, IOREMAP, MODULE_ALLOC, GET_VM_AREA,
	DEFERRED,	/* some frees are vfree_atomic, or vfree with soft interrupts off: both are put off to a worker */
	ALIASES,	/* now and then vm_unmap_aliases, which purges */
	RANGES,		/* __vmalloc_node_range and __get_vm_area_caller also in small parts of the space, where they may fail */
	PERCPU,		/* every other call is __alloc_percpu, whose chunks are virtual areas from the top of the space */
	FUNCTIONS = DEFERRED,
};
static const char *const names[] = {
	"vmalloc", "vzalloc", "vmalloc_user", "vmalloc_32", "vmalloc_huge", "__vmalloc_node_range", "vmap", "vm_map_ram", "kvmalloc", "ioremap", "module_alloc",
	"__get_vm_area_caller", "vm_unmap_aliases", "kmalloc", "", "__alloc_percpu",
};
#define NAME_ALIASES 12
#define NAME_KMALLOC 13

static unsigned int seed = 1, count = 200, what = 0x3fff, max_pages = 40, max_align = 1 << 16, live = 48, threads, repeat = 1, exhaust, exhaust_size = 28, gfp, room, sizes[64];
static int nr_sizes;
static bool leave, log;
module_param(seed, uint, 0444);
module_param(count, uint, 0444);
module_param(what, uint, 0444);
module_param(max_pages, uint, 0444);
module_param(max_align, uint, 0444);
module_param(live, uint, 0444);
module_param(threads, uint, 0444);
module_param(repeat, uint, 0444);
module_param(exhaust, uint, 0444);
module_param(exhaust_size, uint, 0444);
module_param(gfp, uint, 0444);
module_param(room, uint, 0444);
module_param_array(sizes, uint, &nr_sizes, 0444);
module_param(leave, bool, 0444);
module_param(log, bool, 0444);

#define MOST_THREADS 16
#define IO_BASE 0xd0000000UL	/* of PCI; no RAM there in a QEMU pc machine of up to 3 GiB below 4 GiB */
#define IO_BYTES 0x10000000UL

/* One call, kept until somebody reads /proc/vmalloc_probe. */
struct answer {
	unsigned long addr, size, align;
	u8 function, cpu, thread, freed;
};

struct area {
	void *addr;	/* what the function returned; NULL: a free place */
	struct vm_struct *vm;
	unsigned int function, pages;
};

static struct answer *answers;
static unsigned int most_answers;
static atomic_t used = ATOMIC_INIT(0);
static struct area *areas;
static struct page **pages;
static unsigned int nr_pages;

/* Not exported to modules; found through kallsyms_lookup_name, whose address a kprobe tells. */
static unsigned long (*lookup)(const char *name);
static void *(*node_range)(unsigned long size, unsigned long align, unsigned long start, unsigned long end, gfp_t gfp_mask, pgprot_t prot,
			   unsigned long vm_flags, int node, const void *caller);
static struct vm_struct *(*get_area)(unsigned long size, unsigned long flags, unsigned long start, unsigned long end, const void *caller);
static void (*free_atomic)(const void *addr);
#ifdef HAVE_EXECMEM
static void *(*exec_alloc)(enum execmem_type type, size_t size);
static void (*exec_free)(void *addr);
#else
static void *(*exec_alloc)(unsigned long size);
static void (*exec_free)(void *addr);
#endif

static int find_functions(void)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };
	int error = register_kprobe(&probe);

	if (error)
		return error;
	lookup = (void *)probe.addr;
	unregister_kprobe(&probe);
#ifdef HAVE_EXECMEM
	node_range = (void *)lookup("__vmalloc_node_range_noprof");
	exec_alloc = (void *)lookup("execmem_alloc");
	exec_free = (void *)lookup("execmem_free");
#else
	node_range = (void *)lookup("__vmalloc_node_range");
	exec_alloc = (void *)lookup("module_alloc");
	exec_free = (void *)lookup("module_memfree");
#endif
	get_area = (void *)lookup("__get_vm_area_caller");
	free_atomic = (void *)lookup("vfree_atomic");
	return node_range && exec_alloc && exec_free && get_area && free_atomic ? 0 : -ENOENT;
}

static void note(unsigned int function, const void *addr, unsigned long size, unsigned long align, bool freed, unsigned int thread)
{
	unsigned int at = atomic_inc_return(&used) - 1;

	if (log)
		pr_info("%s %s addr=%#lx size=%lu align=%#lx\n", freed ? "free" : "call", names[function], (unsigned long)addr, size, align);
	if (at < most_answers)
		answers[at] = (struct answer){ (unsigned long)addr, size, align, function, raw_smp_processor_id(), thread, freed };
}

/* xorshift64: no division by 64 bits, which i386 has no instruction for. */
static u32 draw(u64 *state, u32 below)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return below ? (u32)(*state >> 16) % below : 0;
}

/* 1 byte to max_pages pages: half of them below a tenth of that. */
static unsigned long draw_size(u64 *state)
{
	unsigned int most = draw(state, 2) ? max_pages : max_pages / 10 + 1;

	return draw(state, most) * PAGE_SIZE + draw(state, 8) * (PAGE_SIZE / 8) + 1 + draw(state, PAGE_SIZE / 8);
}

static unsigned long draw_align(u64 *state)
{
	return 1UL << draw(state, ilog2(max_align) + 1);
}

/* A range of the vmalloc space: all of it, or a part. */
static void draw_range(u64 *state, unsigned long *start, unsigned long *end)
{
	*start = VMALLOC_START;
	*end = VMALLOC_END;
	if (what & 1 << RANGES && draw(state, 2)) {
		*start += draw(state, 512) * (PAGE_SIZE << 4);
		*end = *start + (PAGE_SIZE << 4) * (1 + draw(state, 64));
	}
}

static void take(struct area *a, u64 *state, unsigned int thread)
{
	unsigned long size = draw_size(state), align = 1, start = VMALLOC_START, end = VMALLOC_END;
	unsigned int n, function;

	do
		function = draw(state, FUNCTIONS);
	while (!(what & 1 << function));
	if (what & 1 << PERCPU && !draw(state, 2))
		function = PERCPU;
	n = DIV_ROUND_UP(size, PAGE_SIZE);
	a->vm = NULL;
	switch (function) {
	case VMALLOC:
		a->addr = vmalloc(size);
		break;
	case VZALLOC:
		a->addr = vzalloc(size);
		break;
	case VMALLOC_USER:
		a->addr = vmalloc_user(size);
		break;
	case VMALLOC_32:
		a->addr = vmalloc_32(size);
		break;
	case VMALLOC_HUGE:
		a->addr = vmalloc_huge(size, GFP_KERNEL);
		break;
	case NODE_RANGE:
		align = draw_align(state);
		draw_range(state, &start, &end);
		a->addr = node_range(size, align, start, end, GFP_KERNEL | __GFP_NOWARN, PAGE_KERNEL, 0, NUMA_NO_NODE, __builtin_return_address(0));
		break;
	case VMAP:
		n = min(n, nr_pages);
		size = (unsigned long)n << PAGE_SHIFT;
		a->addr = vmap(pages, n, VM_MAP, PAGE_KERNEL);
		break;
	case VM_MAP_RAM:
		n = min(n, nr_pages);
		size = (unsigned long)n << PAGE_SHIFT;
		a->addr = vm_map_ram(pages, n, NUMA_NO_NODE);
		break;
	case KVMALLOC:
		a->addr = kvmalloc(size, GFP_KERNEL);
		break;
	case IOREMAP:
		align = (unsigned long)draw(state, 256) << PAGE_SHIFT;	/* here: where in the device's memory */
		a->addr = (void __force *)ioremap(IO_BASE + align, min(size, IO_BYTES - align));
		break;
	case MODULE_ALLOC:
#ifdef HAVE_EXECMEM
		a->addr = exec_alloc(EXECMEM_MODULE_DATA, size);
#else
		a->addr = exec_alloc(size);
#endif
		break;
	case PERCPU:
		size = min_t(unsigned long, size, PCPU_MIN_UNIT_SIZE);
		a->addr = (void __force *)__alloc_percpu(size, 8);
		break;
	default:
		draw_range(state, &start, &end);
		a->vm = get_area(size, draw(state, 2) ? VM_IOREMAP : VM_MAP, start, end, __builtin_return_address(0));
		a->addr = a->vm ? a->vm->addr : NULL;
	}
	a->function = function;
	a->pages = n;
	note(function, a->addr, size, align, false, thread);
}

static void give(struct area *a, u64 *state, unsigned int thread)
{
	u32 how = what & 1 << DEFERRED && state ? draw(state, 4) : 0;

	switch (a->function) {
	case VMAP:
		vunmap(a->addr);
		break;
	case VM_MAP_RAM:
		vm_unmap_ram(a->addr, a->pages);
		break;
	case KVMALLOC:
		kvfree(a->addr);
		break;
	case IOREMAP:
		iounmap((void __iomem __force *)a->addr);
		break;
	case MODULE_ALLOC:
		exec_free(a->addr);
		break;
	case GET_VM_AREA:
		free_vm_area(a->vm);
		break;
	case PERCPU:
		free_percpu((void __percpu __force *)a->addr);
		break;
	default:
		if (how == 1) {
			free_atomic(a->addr);
		} else if (how == 2) {
			local_bh_disable();
			vfree(a->addr);
			local_bh_enable();
		} else {
			vfree(a->addr);
		}
	}
	note(a->function, a->addr, (unsigned long)a->pages << PAGE_SHIFT, 1, true, thread);
	a->addr = NULL;
}

static void random_calls(unsigned int thread)
{
	struct area *mine = areas + thread * live;
	u64 state = 0x9e3779b97f4a7c15ULL * (seed + 1) ^ (u64)(thread + 1) << 40;
	unsigned int i;

	for (i = 0; i < count; i++) {
		struct area *a = &mine[draw(&state, live)];
		bool again = draw(&state, 4) == 0;

		if (a->addr) {
			give(a, &state, thread);
			if (!again)
				continue;
		}
		take(a, &state, thread);
		if (what & 1 << ALIASES && draw(&state, 100) == 0) {
			vm_unmap_aliases();
			note(NAME_ALIASES, NULL, 0, 0, false, thread);
		}
		cond_resched();
	}
}

static void fixed_sizes(void)
{
	unsigned int round, i;

	for (round = 0; round < repeat; round++) {
		for (i = 0; i < nr_sizes && i < live; i++) {
			areas[i] = (struct area){ vmalloc((unsigned long)sizes[i] << PAGE_SHIFT), NULL, VMALLOC, sizes[i] };
			note(VMALLOC, areas[i].addr, (unsigned long)sizes[i] << PAGE_SHIFT, 1, false, 0);
		}
		for (i = 0; i < nr_sizes && i < live; i++)
			if (areas[i].addr)
				give(&areas[i], NULL, 0);
	}
}

/* Each object points to the one before it, so there is no table of them. */
static void until_it_fails(void)
{
	gfp_t flags = gfp ? (__force gfp_t)gfp : GFP_KERNEL;
	void **last = NULL, **first = NULL, **p;
	unsigned long got = 0;

	while ((p = exhaust == 1 ? __vmalloc(exhaust_size, flags) : kmalloc(exhaust_size, flags))) {
		*p = last;
		last = p;
		first = first ?: p;
		got++;
		cond_resched();
	}
	pr_info("exhaust %s size=%u count=%lu first=%#lx last=%#lx\n", exhaust == 1 ? "vmalloc" : "kmalloc", exhaust_size, got, (unsigned long)first,
		(unsigned long)last);
	note(exhaust == 1 ? VMALLOC : NAME_KMALLOC, last, got, 1, false, 0);
	while (last && !leave) {
		p = *last;
		kvfree(last);
		last = p;
		cond_resched();
	}
}

static DECLARE_COMPLETION(all_done);
static atomic_t running;

static int thread_main(void *number)
{
	random_calls((unsigned long)number);
	if (atomic_dec_and_test(&running))
		complete(&all_done);
	return 0;
}

static void in_threads(void)
{
	static struct task_struct *tasks[MOST_THREADS];
	unsigned int i, cpu = cpumask_first(cpu_online_mask);

	reinit_completion(&all_done);
	atomic_set(&running, threads);
	for (i = 0; i < threads; i++) {
		tasks[i] = kthread_create(thread_main, (void *)(unsigned long)i, "vmalloc_probe/%u", i);
		if (IS_ERR(tasks[i])) {
			if (atomic_dec_and_test(&running))
				complete(&all_done);
			continue;
		}
		kthread_bind(tasks[i], cpu);
		cpu = cpumask_next(cpu, cpu_online_mask);
		if (cpu >= nr_cpu_ids)
			cpu = cpumask_first(cpu_online_mask);
	}
	for (i = 0; i < threads; i++)
		if (!IS_ERR(tasks[i]))
			wake_up_process(tasks[i]);
	wait_for_completion(&all_done);
}

static void *seq_at(struct seq_file *m, loff_t *pos)
{
	return *pos < min_t(unsigned int, atomic_read(&used), most_answers) ? &answers[*pos] : NULL;
}

static void *seq_following(struct seq_file *m, void *v, loff_t *pos)
{
	++*pos;
	return seq_at(m, pos);
}

static void seq_ends(struct seq_file *m, void *v)
{
}

static int seq_line(struct seq_file *m, void *v)
{
	const struct answer *a = v;

	if (a == answers)
		seq_printf(m, "probe format=1 release=%s cpus=%u vmalloc_start=%#lx vmalloc_end=%#lx seed=%u count=%u calls=%d\n", init_utsname()->release,
			   num_online_cpus(), VMALLOC_START, (unsigned long)VMALLOC_END, seed, count, atomic_read(&used));
	seq_printf(m, "%s %s cpu=%u thread=%u addr=%#lx size=%lu align=%#lx\n", a->freed ? "free" : "call", names[a->function], a->cpu, a->thread, a->addr,
		   a->size, a->align);
	return 0;
}

static const struct seq_operations lines = { .start = seq_at, .next = seq_following, .stop = seq_ends, .show = seq_line };

static int probe_open(struct inode *inode, struct file *file)
{
	return seq_open(file, &lines);
}

static DEFINE_MUTEX(again);

static ssize_t probe_write(struct file *file, const char __user *from, size_t n, loff_t *at)
{
	int new[4] = { seed, count, what, max_pages };
	char text[80] = "";

	if (n >= sizeof(text) || copy_from_user(text, from, n))
		return -EINVAL;
	if (sscanf(text, "%i %i %i %i", &new[0], &new[1], &new[2], &new[3]) < 2 || new[3] <= 0 || !(new[2] & ((1 << FUNCTIONS) - 1)))
		return -EINVAL;
	mutex_lock(&again);
	seed = new[0];
	count = new[1];
	what = new[2];
	max_pages = new[3];
	if (!nr_pages)
		what &= ~(1 << VMAP | 1 << VM_MAP_RAM);
	if (threads)
		in_threads();
	else
		random_calls(0);
	mutex_unlock(&again);
	return n;
}

static const struct proc_ops probe_ops = {
	.proc_open = probe_open,
	.proc_read = seq_read,
	.proc_lseek = seq_lseek,
	.proc_release = seq_release,
	.proc_write = probe_write,
};

static void forget(void)
{
	unsigned int i;

	for (i = 0; i < (threads ?: 1) * live; i++)
		if (areas && areas[i].addr)
			give(&areas[i], NULL, i / live);
}

static void free_tables(void)
{
	unsigned int i;

	for (i = 0; i < nr_pages; i++)
		__free_page(pages[i]);
	kvfree(pages);
	kvfree(areas);
	kvfree(answers);
}

static int __init probe_init(void)
{
	int error;

	if (threads > MOST_THREADS || !live || !max_pages || !is_power_of_2(max_align) || !(what & ((1 << FUNCTIONS) - 1)))
		return -EINVAL;
	error = find_functions();
	if (error)
		return error;
	most_answers = 2 * count * (threads ?: 1) + 2 * repeat * nr_sizes + 2 * live * (threads ?: 1) + 2 * room + 16;
	answers = kvcalloc(most_answers, sizeof(*answers), GFP_KERNEL);
	areas = kvcalloc((threads ?: 1) * live, sizeof(*areas), GFP_KERNEL);
	pages = kvcalloc(max_pages, sizeof(*pages), GFP_KERNEL);
	if (!answers || !areas || !pages) {
		free_tables();
		return -ENOMEM;
	}
	if (what & (1 << VMAP | 1 << VM_MAP_RAM) && !exhaust)
		while (nr_pages < max_pages && (pages[nr_pages] = alloc_page(GFP_KERNEL)))
			nr_pages++;
	if (!nr_pages)
		what &= ~(1 << VMAP | 1 << VM_MAP_RAM);
	if (exhaust) {
		until_it_fails();
	} else {
		fixed_sizes();
		if (threads)
			in_threads();
		else if (count)
			random_calls(0);
		if (!leave)
			forget();
	}
	proc_create("vmalloc_probe", 0644, NULL, &probe_ops);
	return 0;
}

static void __exit probe_exit(void)
{
	remove_proc_entry("vmalloc_probe", NULL);
	forget();
	free_tables();
}

module_init(probe_init);
module_exit(probe_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Asks the kernel for virtual areas in every way and order");
