// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Goes into every context and writes down what the kernel's predicates say there; then, one per boot, does what is forbidden there.
 *   insmod contexts.ko test=NAME      NAME: table, or a forbidden act (see `acts`); what the kernel says to it goes to the console.
 */
#include <linux/delay.h>
#include <linux/interrupt.h>
#include <linux/irq_work.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/timer.h>
#include <linux/vmalloc.h>
#include <linux/workqueue.h>
#include <asm/apic.h>
#include <asm/nmi.h>

static char *test = "table";
module_param(test, charp, 0);

static void (*act)(void);
static const char *where;
static void *area;
static struct page *page;
static int left;
static DEFINE_SPINLOCK(lock);
static volatile int done;

static void say(void)
{
	pr_info("contexts: %s preempt_count=%08x in_interrupt=%d in_task=%d in_atomic=%d in_hardirq=%d in_softirq=%d serving=%d in_nmi=%d irqs_disabled=%d\n",
		where, preempt_count(), !!in_interrupt(), !!in_task(), !!in_atomic(), !!in_hardirq(), !!in_softirq(), !!in_serving_softirq(),
		!!in_nmi(), !!irqs_disabled());
}

static void run(void)
{
	act();
	done = 1;
}

static void wait(void)
{
	while (!done)
		msleep(1);
	done = 0;
}

static void on_tasklet(struct tasklet_struct *t) { run(); }
static DECLARE_TASKLET(tasklet, on_tasklet);
static void on_timer(struct timer_list *t) { run(); }
static DEFINE_TIMER(timer, on_timer);
static void on_irq(struct irq_work *w) { run(); }
static struct irq_work irq = IRQ_WORK_INIT_HARD(on_irq);
static volatile int nmi_wanted;
static int on_nmi(unsigned int type, struct pt_regs *regs)
{
	if (!nmi_wanted)
		return NMI_DONE;
	nmi_wanted = 0;
	run();
	return NMI_HANDLED;
}

static void in_nmi_context(void)
{
	register_nmi_handler(NMI_LOCAL, on_nmi, 0, "contexts");
	nmi_wanted = 1;
	apic->send_IPI_mask(cpumask_of(raw_smp_processor_id()), NMI_VECTOR);
	wait();
	unregister_nmi_handler(NMI_LOCAL, "contexts");
}

static void in_irq_context(void) { irq_work_queue(&irq); wait(); }
static void in_tasklet_context(void) { tasklet_schedule(&tasklet); wait(); }
static void in_timer_context(void) { mod_timer(&timer, jiffies + 1); wait(); }

#define IN(name, enter, leave) do { where = name; enter; act(); leave; } while (0)

static void table(void)
{
	unsigned long flags;
	unsigned int saved, inner;

	act = say;
	IN("process", , );
	IN("preempt_disabled", preempt_disable(), preempt_enable());
	IN("preempt_disabled twice", preempt_disable(); preempt_disable(), preempt_enable(); preempt_enable());
	IN("spinlock", spin_lock(&lock), spin_unlock(&lock));
	IN("spinlock_irq", spin_lock_irqsave(&lock, flags), spin_unlock_irqrestore(&lock, flags));
	IN("spinlock_bh", spin_lock_bh(&lock), spin_unlock_bh(&lock));
	IN("bh_disabled", local_bh_disable(), local_bh_enable());
	IN("irqs_off", local_irq_disable(), local_irq_enable());
	IN("rcu_read", rcu_read_lock(), rcu_read_unlock());
	where = "softirq";
	in_tasklet_context();
	where = "timer";
	in_timer_context();
	where = "hardirq";
	in_irq_context();
	where = "nmi";
	in_nmi_context();

	pr_info("contexts: gfp process %x\n", current_gfp_context(GFP_KERNEL | __GFP_MOVABLE));
	saved = memalloc_nofs_save();
	pr_info("contexts: gfp nofs %x\n", current_gfp_context(GFP_KERNEL | __GFP_MOVABLE));
	inner = memalloc_noio_save();
	pr_info("contexts: gfp nofs noio %x\n", current_gfp_context(GFP_KERNEL | __GFP_MOVABLE));
	memalloc_noio_restore(inner);
	pr_info("contexts: gfp nofs again %x\n", current_gfp_context(GFP_KERNEL | __GFP_MOVABLE));
	memalloc_nofs_restore(saved);
	saved = memalloc_noio_save();
	pr_info("contexts: gfp noio %x\n", current_gfp_context(GFP_KERNEL | __GFP_MOVABLE));
	memalloc_noio_restore(saved);
	saved = memalloc_pin_save();
	pr_info("contexts: gfp pin %x\n", current_gfp_context(GFP_KERNEL | __GFP_MOVABLE));
	memalloc_pin_restore(saved);
	saved = memalloc_noreclaim_save();
	pr_info("contexts: gfp noreclaim %x\n", current_gfp_context(GFP_KERNEL | __GFP_MOVABLE));
	memalloc_noreclaim_restore(saved);
}

static void do_sleep(void) { schedule_timeout_uninterruptible(1); }
static void do_kmalloc(void) { void *p = kmalloc(100, GFP_KERNEL); pr_info("contexts: kmalloc %s\n", p ? "served" : "NULL"); kfree(p); }
static void do_vmalloc(void) { void *p = vmalloc(100); pr_info("contexts: vmalloc %s\n", p ? "served" : "NULL"); if (p && !in_interrupt()) vfree(p); }
static void do_vmalloc_atomic(void) { __vmalloc(100, GFP_ATOMIC); }
static void do_vfree(void) { vfree(area); left = page_count(page); }
static void do_vunmap(void) { vunmap(area); }

static void in_process(void) { run(); done = 0; }
static void in_preempt(void) { preempt_disable(); run(); preempt_enable(); done = 0; }
static void in_bh(void) { spin_lock_bh(&lock); run(); spin_unlock_bh(&lock); done = 0; }
static void in_bh_only(void) { local_bh_disable(); run(); local_bh_enable(); done = 0; }
static void in_irqs_off(void) { local_irq_disable(); run(); local_irq_enable(); done = 0; }
static void in_rcu(void) { rcu_read_lock(); run(); rcu_read_unlock(); done = 0; }

static const struct { const char *name; void (*act)(void); void (*context)(void); } acts[] = {
	{ "sleep-preempt", do_sleep, in_preempt },
	{ "sleep-bh", do_sleep, in_bh },
	{ "sleep-irqs_off", do_sleep, in_irqs_off },
	{ "sleep-rcu", do_sleep, in_rcu },
	{ "sleep-softirq", do_sleep, in_tasklet_context },
	{ "kmalloc-preempt", do_kmalloc, in_preempt },
	{ "kmalloc-softirq", do_kmalloc, in_tasklet_context },
	{ "kmalloc-hardirq", do_kmalloc, in_irq_context },
	{ "vmalloc-process", do_vmalloc, in_process },
	{ "vmalloc-preempt", do_vmalloc, in_preempt },
	{ "vmalloc-irqs_off", do_vmalloc, in_irqs_off },
	{ "vmalloc-bh", do_vmalloc, in_bh_only },
	{ "vmalloc-softirq", do_vmalloc, in_tasklet_context },
	{ "vmalloc-hardirq", do_vmalloc, in_irq_context },
	{ "vmalloc_atomic-hardirq", do_vmalloc_atomic, in_irq_context },
	{ "vfree-preempt", do_vfree, in_preempt },
	{ "vfree-bh", do_vfree, in_bh_only },
	{ "vfree-softirq", do_vfree, in_tasklet_context },
	{ "vfree-hardirq", do_vfree, in_irq_context },
	{ "vfree-nmi", do_vfree, in_nmi_context },
	{ "vunmap-softirq", do_vunmap, in_tasklet_context },
};

static int __init contexts_init(void)
{
	int i;

	if (!strcmp(test, "table")) {
		table();
		pr_info("contexts: end\n");
		return 0;
	}
	for (i = 0; i < ARRAY_SIZE(acts); i++) {
		if (strcmp(test, acts[i].name))
			continue;
		act = acts[i].act;
		if (act == do_vfree || act == do_vunmap) {
			area = vmalloc(100);
			page = vmalloc_to_page(area);
			get_page(page);	/* so that its count can be looked at afterwards: 2 while the area is there, 1 when it is gone */
		}
		pr_info("contexts: act %s\n", test);
		acts[i].context();
		if (page) {
			for (i = 0; i < 100 && page_count(page) > 1; i++)
				msleep(1);
			pr_info("contexts: %s\n", left == 1 ? "freed at once" : page_count(page) == 1 ? "freed later" : "not freed");
			put_page(page);
		}
		pr_info("contexts: end\n");
		return 0;
	}
	pr_err("contexts: no test %s\n", test);
	return -EINVAL;
}

static void __exit contexts_exit(void) { }

module_init(contexts_init);
module_exit(contexts_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("what is allowed where");
