// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Asks the DMA API of a real kernel and writes down its answers: addresses of coherent memory, bounce-buffer slots, pool blocks, I/O virtual addresses.
 *   insmod dma_probe.ko parts=N       N: bits of `parts` below
 * The answers are in /proc/dma_probe, one line each. With QEMU's "edu" device (1234:11e8) the IOMMU part runs, and a real device moves bytes.
 */
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/dmapool.h>
#include <linux/iommu.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/platform_device.h>
#include <linux/proc_fs.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>
#include <linux/workqueue.h>

enum { COHERENT = 1, BOUNCE = 2, POOL = 4, MISUSE = 8, IOMMU = 16, HIGH = 32, FULL = 64, HANG = 128 };

static int parts = COHERENT | BOUNCE | POOL | MISUSE;
module_param(parts, int, 0);

#define TEXT_SIZE (4 << 20)
#define LIVE 96
static char *text;
static size_t text_len;
static struct device *dev;
static u32 seed;

static __printf(1, 2) void say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	text_len += vscnprintf(text + text_len, TEXT_SIZE - text_len, format, args);
	va_end(args);
}

static u32 draw(u32 n)
{
	seed = seed * 1664525 + 1013904223;
	return (seed >> 8) % n;
}

static void mask(int bits)
{
	int error = dma_coerce_mask_and_coherent(dev, DMA_BIT_MASK(bits));

	say("mask bits=%d error=%d required=%llx max_mapping=%zx\n", bits, error, dma_get_required_mask(dev), dma_max_mapping_size(dev));
}

static void coherent(void)
{
	static const size_t sizes[] = { 1, 100, 4096, 4097, 12288, 65536, 65537, 1 << 20, 4 << 20, (4 << 20) + 1 };
	static const int bits[] = { 24, 28, 31, 32, 33, 64 };
	int i, j;

	for (i = 0; i < ARRAY_SIZE(bits); i++) {
		mask(bits[i]);
		for (j = 0; j < ARRAY_SIZE(sizes); j++) {
			dma_addr_t dma;
			size_t k, dirty = 0;
			unsigned char *cpu = dma_alloc_coherent(dev, sizes[j], &dma, GFP_KERNEL | __GFP_NOWARN);

			if (!cpu) {
				say("coherent bits=%d size=%zu null\n", bits[i], sizes[j]);
				continue;
			}
			for (k = 0; k < PAGE_ALIGN(sizes[j]); k++)
				dirty += cpu[k] != 0;
			say("coherent bits=%d size=%zu dma=%llx same=%d zone=%d dirty=%zu\n", bits[i], sizes[j], dma, virt_to_phys(cpu) == dma,
			    page_zonenum(virt_to_page(cpu)), dirty);
			memset(cpu, 0x5a, sizes[j]);
			dma_free_coherent(dev, sizes[j], cpu, dma);
		}
	}
}

struct live {
	dma_addr_t dma;
	size_t size;
	int dir;
};

static struct live live[LIVE];
static char *buffer;
static const char *const dirs[] = { "both", "to", "from" };

static size_t size(void)
{
	switch (draw(6)) {
	case 0: return 1 + draw(64);
	case 1: return 1 + draw(2048);
	case 2: return 2048 * (1 + draw(8));
	case 3: return 4096 * (1 + draw(8));
	case 4: return 1 + draw(65536);
	default: return draw(20) ? 1 + draw(16384) : 262144 - draw(2) * draw(5000);
	}
}

/* One mapping or unmapping of the random sequence, on the CPU that the caller chose. */
static long bounce_step(void *unused)
{
	int i = draw(LIVE);
	struct live *l = &live[i];

	if (l->size) {
		dma_unmap_single(dev, l->dma, l->size, l->dir);
		say("unmap %d cpu=%d dma=%llx size=%zu dir=%s\n", i, raw_smp_processor_id(), l->dma, l->size, dirs[l->dir]);
		l->size = 0;
	} else {
		size_t n = size(), at = draw(4) * 512 + draw(2) * draw(4096);

		l->dir = draw(3);
		l->dma = dma_map_single(dev, buffer + at, n, l->dir);
		if (dma_mapping_error(dev, l->dma)) {
			say("map %d cpu=%d phys=%llx size=%zu dir=%s error\n", i, raw_smp_processor_id(), (u64)virt_to_phys(buffer + at), n, dirs[l->dir]);
		} else {
			say("map %d cpu=%d phys=%llx size=%zu dir=%s dma=%llx\n", i, raw_smp_processor_id(), (u64)virt_to_phys(buffer + at), n,
			    dirs[l->dir], l->dma);
			l->size = n;
		}
	}
	return 0;
}

static void bounce_round(int steps)
{
	int i;

	for (i = 0; i < steps; i++)
		work_on_cpu(draw(num_online_cpus()), bounce_step, NULL);
	for (i = 0; i < LIVE; i++)
		if (live[i].size) {
			dma_unmap_single(dev, live[i].dma, live[i].size, live[i].dir);
			say("unmap %d cpu=%d dma=%llx size=%zu dir=%s\n", i, 0, live[i].dma, live[i].size, dirs[live[i].dir]);
			live[i].size = 0;
		}
}

/* Which way bytes go, and when. */
static long bounce_copies(void *unused)
{
	int dir;

	for (dir = DMA_BIDIRECTIONAL; dir <= DMA_FROM_DEVICE; dir++) {
		char *p = buffer + 100, *q;
		dma_addr_t dma;

		strcpy(p, "cpu1");
		dma = dma_map_single(dev, p, 16, dir);
		q = phys_to_virt(dma);
		say("copies dir=%s cpu=%d dma=%llx mapped=%s", dirs[dir], raw_smp_processor_id(), dma, q);
		strcpy(q, "dev1");
		dma_sync_single_for_cpu(dev, dma, 16, dir);
		say(" for_cpu=%s", p);
		strcpy(p, "cpu2");
		strcpy(q, "dev2");
		dma_sync_single_for_device(dev, dma, 16, dir);
		say(" for_device=%s", q);
		strcpy(p, "cpu3");
		strcpy(q, "dev3");
		dma_sync_single_for_cpu(dev, dma + 8, 4, dir);
		dma_unmap_single(dev, dma, 16, dir);
		say(" unmapped=%s\n", p);
	}
	return 0;
}

static void bounce(void)
{
	static struct device_dma_parameters parms;

	mask(64);
	seed = 1;
	work_on_cpu(0, bounce_copies, NULL);
	say("round align=0 boundary=0\n");
	bounce_round(1500);
	dev->dma_parms = &parms;
	dma_set_min_align_mask(dev, 0xfff);
	say("round align=fff boundary=0\n");
	say("max_mapping=%zx\n", dma_max_mapping_size(dev));
	bounce_round(1000);
	dma_set_min_align_mask(dev, 0x1ff);
	dma_set_seg_boundary(dev, 0xffff);
	say("round align=1ff boundary=ffff\n");
	bounce_round(1000);
	dma_set_min_align_mask(dev, 0);
	dma_set_seg_boundary(dev, 0xffffffff);
	dev->dma_parms = NULL;
}

/* A search for odd slots that began at an even one, in a pool without any: it does not end, so the log has to tell. */
static void hang(void)
{
	static struct device_dma_parameters parms;
	int i;

	mask(64);
	dev->dma_parms = &parms;
	dma_set_min_align_mask(dev, 0xfff);
	for (i = 0; i < 4; i++)
		pr_emerg("hang %d error=%d\n", i, dma_mapping_error(dev, dma_map_single(dev, buffer, i < 3 ? 262144 : 4096, DMA_TO_DEVICE)));
	pr_emerg("hang mapping\n");
	pr_emerg("hang over error=%d\n", dma_mapping_error(dev, dma_map_single(dev, buffer + 2048, 126 << 11, DMA_TO_DEVICE)));
}

/* Until the pool is full, then one more, then each way again. */
static void full(void)
{
	static dma_addr_t taken[1024];
	int i, n = 0;

	mask(64);
	while (n < ARRAY_SIZE(taken)) {
		taken[n] = dma_map_single(dev, buffer, 262144, DMA_TO_DEVICE);
		if (dma_mapping_error(dev, taken[n]))
			break;
		say("full %d dma=%llx\n", n, taken[n]);
		n++;
	}
	say("full after %d\n", n);
	for (i = 0; i < n; i++)
		dma_unmap_single(dev, taken[i], 262144, DMA_TO_DEVICE);
	say("over error=%d\n", dma_mapping_error(dev, dma_map_single(dev, buffer, 262145, DMA_TO_DEVICE)));
}

static void pool(void)
{
	static const size_t shapes[][3] = { { 1, 0, 0 }, { 4, 1, 0 }, { 32, 16, 0 }, { 64, 64, 4096 }, { 96, 32, 512 }, { 100, 4, 256 }, { 512, 0, 1024 },
		{ 1024, 0, 1024 }, { 2048, 0, 0 }, { 3000, 8, 0 }, { 4096, 0, 4096 }, { 6000, 16, 8192 }, { 60, 4, 0 }, { 2049, 0, 8192 }, { 1000, 8, 65536 }, { 24, 3, 0 }, { 0, 0, 0 }, { 64, 0, 32 }, { 64, 0, 100 } };
	static dma_addr_t dmas[LIVE], pages[2000];
	static void *blocks[LIVE];
	int s, i, k, step, n;

	mask(32);
	for (s = 0; s < ARRAY_SIZE(shapes); s++) {
		struct dma_pool *p = dma_pool_create("probe", dev, shapes[s][0], shapes[s][1], shapes[s][2]);
		size_t allocation = max_t(size_t, PAGE_SIZE, ALIGN(max_t(size_t, shapes[s][0], 4), shapes[s][1] ? shapes[s][1] : 1));

		say("pool size=%zu align=%zu boundary=%zu %s\n", shapes[s][0], shapes[s][1], shapes[s][2], p ? "made" : "null");
		if (!p)
			continue;
		n = 0;
		for (step = 0; step < 300; step++) {
			i = draw(LIVE);
			if (blocks[i]) {
				dma_pool_free(p, blocks[i], dmas[i]);
				say("f %d\n", i);
				blocks[i] = NULL;
				continue;
			}
			blocks[i] = dma_pool_alloc(p, GFP_KERNEL, &dmas[i]);
			for (k = 0; k < n && !(dmas[i] >= pages[k] && dmas[i] < pages[k] + allocation); k++)
				;
			if (k == n)
				pages[n++] = dmas[i] & -(dma_addr_t)PAGE_SIZE;
			say("a %d %d %llx\n", i, k, dmas[i] - pages[k]);
		}
		for (i = 0; i < LIVE; i++)
			if (blocks[i]) {
				dma_pool_free(p, blocks[i], dmas[i]);
				blocks[i] = NULL;
			}
		dma_pool_destroy(p);
	}
}

/* What the API refuses; the texts are in the kernel's log. */
static void misuse(void)
{
	void *area = vmalloc(8192);
	struct dma_pool *p;
	dma_addr_t dma;
	void *block;

	mask(32);
	pr_info("dma_probe: case vmalloc\n");
	say("vmalloc error=%d\n", dma_mapping_error(dev, dma_map_single(dev, area, 100, DMA_TO_DEVICE)));
	vfree(area);
	pr_info("dma_probe: case 24 bits\n");
	mask(24);
	dma = dma_map_single(dev, buffer, 100, DMA_TO_DEVICE);
	say("24bits error=%d phys=%llx\n", dma_mapping_error(dev, dma), (u64)virt_to_phys(buffer));
	mask(32);
	pr_info("dma_probe: case free in no pool\n");
	p = dma_pool_create("probe", dev, 64, 0, 0);
	block = dma_pool_alloc(p, GFP_KERNEL, &dma);
	dma_pool_free(p, block, dma + (1 << 20));
	pr_info("dma_probe: case busy\n");
	dma_pool_destroy(p);
	pr_info("dma_probe: case twice\n");
	p = dma_pool_create("probe", dev, 64, 0, 0);
	block = dma_pool_alloc(p, GFP_KERNEL, &dma);
	dma_pool_free(p, block, dma);
	dma_pool_free(p, block, dma);
	say("twice same=%d\n", dma_pool_alloc(p, GFP_KERNEL, &dma) == dma_pool_alloc(p, GFP_KERNEL, &dma));
	pr_info("dma_probe: case end\n");
}

/* Memory above 4 GiB for a device that reaches 32 bits. */
static void high(void)
{
	struct page *page = alloc_pages(GFP_KERNEL, 8);
	int i;

	mask(32);
	buffer = page_address(page);
	pr_info("dma_probe: case high\n");
	say("high phys=%llx\n", (u64)page_to_phys(page));
	for (i = 0; i < 4; i++) {
		dma_addr_t dma = dma_map_page(dev, page, 512 * i, 5000, DMA_TO_DEVICE);

		if (dma_mapping_error(dev, dma))
			say("high error\n");
		else
			say("high dma=%llx\n", dma);
	}
	pr_info("dma_probe: case end\n");
}

/* I/O virtual addresses, and QEMU's edu device: registers at BAR 0, its own 4 KiB at 0x40000. */
static void __iomem *edu;

static void edu_copy(dma_addr_t from, dma_addr_t to, u32 n, int to_ram)
{
	writeq(from, edu + 0x80);
	writeq(to, edu + 0x88);
	writeq(n, edu + 0x90);
	writeq(1 | to_ram << 1, edu + 0x98);
	while (readq(edu + 0x98) & 1)
		msleep(10);
}

static void iova_steps(int steps, int most)
{
	int step;

	for (step = 0; step < steps; step++) {
		int i = draw(LIVE);
		struct live *l = &live[i];

		if (l->size) {
			dma_unmap_page(dev, l->dma, l->size, DMA_BIDIRECTIONAL);
			say("iunmap %d %llx\n", i, l->dma);
			l->size = 0;
		} else {
			size_t n = 1 + draw(4096 * (1 + draw(most)));
			int at = draw(4096);

			l->dma = dma_map_page(dev, virt_to_page(buffer), at, n, DMA_BIDIRECTIONAL);
			l->size = n;
			say("imap %d %x %zu %llx\n", i, at, n, l->dma);
		}
	}
}

static void iova_end(void)
{
	int i;

	for (i = 0; i < LIVE; i++)
		if (live[i].size) {
			dma_unmap_page(dev, live[i].dma, live[i].size, DMA_BIDIRECTIONAL);
			say("iunmap %d %llx\n", i, live[i].dma);
			live[i].size = 0;
		}
}

static void iommu(void)
{
	struct pci_dev *pci = pci_get_device(0x1234, 0x11e8, NULL);
	static struct scatterlist list[8];
	struct page *pages[16], *every[8];
	unsigned long flags;
	dma_addr_t dma;
	char *area;
	int i, n;
	struct resource *r;

	if (!pci || pci_enable_device(pci)) {
		say("iommu: no edu device\n");
		return;
	}
	pci_set_master(pci);
	dev = &pci->dev;
	edu = pci_iomap(pci, 0, 0);
	say("edu id=%x translated=%d\n", readl(edu), device_iommu_mapped(dev));
	pci_bus_for_each_resource(pci->bus, r, i)
		if (r && resource_type(r) == IORESOURCE_MEM)
			say("window %llx %llx\n", r->start, r->end);
	dma_set_mask_and_coherent(dev, DMA_BIT_MASK(32));
	if (!device_iommu_mapped(dev))
		goto device;
	seed = 7;
	/* first, and with interrupts off, so that the 10 ms timer that empties the flush queue cannot come in between */
	say("iround bits=32 nowait\n");
	local_irq_save(flags);
	iova_steps(2500, 40);
	iova_end();
	local_irq_restore(flags);
	msleep(50);
	say("iround bits=32\n");
	iova_steps(1000, 40);
	iova_end();
	dma_set_mask_and_coherent(dev, DMA_BIT_MASK(64));
	say("iround bits=64\n");
	iova_steps(600, 200);
	iova_end();
	dma_set_mask_and_coherent(dev, DMA_BIT_MASK(28));
	say("iround bits=28\n");
	iova_steps(600, 8);
	iova_end();
device:
	/* scattered frames become one range, and the device reads and writes through it */
	for (i = 0; i < 16; i++)
		pages[i] = alloc_page(GFP_KERNEL);
	for (i = 0; i < 8; i++)
		every[i] = pages[2 * i];
	area = vmap(every, 8, VM_MAP, PAGE_KERNEL);
	sg_init_table(list, 8);
	for (i = 0; i < 8; i++) {
		sg_set_page(&list[i], vmalloc_to_page(area + i * PAGE_SIZE), PAGE_SIZE, 0);
		memset(area + i * PAGE_SIZE, 'a' + i, PAGE_SIZE);
	}
	n = dma_map_sg(dev, list, 8, DMA_BIDIRECTIONAL);
	say("sg nents=%d first=%llx len=%x adjacent_frames=%d\n", n, sg_dma_address(list), sg_dma_len(list),
	    page_to_pfn(every[7]) == page_to_pfn(every[0]) + 7);
	dma = sg_dma_address(list);
	edu_copy(dma + 2 * PAGE_SIZE - 8, 0x40000, 16, 0);
	edu_copy(0x40000, dma + 100, 16, 1);
	say("edu read %.16s\n", area + 100);
	dma_unmap_sg(dev, list, 8, DMA_BIDIRECTIONAL);
	pr_info("dma_probe: case unmapped\n");
	edu_copy(0x40000, dma + 100, 16, 1);
	edu_copy(dma + 100, 0x40000, 16, 0);
	msleep(100);
	pr_info("dma_probe: case end\n");
	area = dma_alloc_coherent(dev, 5 * PAGE_SIZE, &dma, GFP_KERNEL);
	say("coherent iova=%llx vmalloc=%d adjacent_frames=%d\n", dma, is_vmalloc_addr(area),
	    is_vmalloc_addr(area) && vmalloc_to_pfn(area + 4 * PAGE_SIZE) == vmalloc_to_pfn(area) + 4);
	dma_free_coherent(dev, 5 * PAGE_SIZE, area, dma);
	area = dma_alloc_coherent(dev, 5 * PAGE_SIZE, &dma, GFP_ATOMIC);
	say("coherent atomic iova=%llx vmalloc=%d\n", dma, is_vmalloc_addr(area));
	dma_free_coherent(dev, 5 * PAGE_SIZE, area, dma);
}

static ssize_t probe_read(struct file *file, char __user *to, size_t n, loff_t *at)
{
	return simple_read_from_buffer(to, n, at, text, text_len);
}

static const struct proc_ops ops = { .proc_read = probe_read };

static int __init dma_probe_init(void)
{
	struct platform_device *platform = platform_device_register_simple("dma_probe", -1, NULL, 0);

	text = vmalloc(TEXT_SIZE);
	buffer = (char *)__get_free_pages(GFP_KERNEL, 7);
	if (IS_ERR(platform) || !text || !buffer)
		return -ENOMEM;
	dev = &platform->dev;
	say("buffer=%llx\n", (u64)virt_to_phys(buffer));
	if (parts & COHERENT)
		coherent();
	if (parts & BOUNCE)
		bounce();
	if (parts & FULL)
		full();
	if (parts & HANG)
		hang();
	if (parts & POOL)
		pool();
	if (parts & MISUSE)
		misuse();
	if (parts & HIGH)
		high();
	if (parts & IOMMU)
		iommu();
	say("end bytes=%zu\n", text_len);
	proc_create("dma_probe", 0400, NULL, &ops);
	return 0;
}

module_init(dma_probe_init);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("answers of the DMA API");
