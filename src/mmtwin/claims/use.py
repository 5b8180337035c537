"""Rows: devices, the right use, contexts, pairs of calls, the swap map."""

from __future__ import annotations

from typing import Any

from mmtwin.claims.table import claim
from mmtwin.claims.tools import frames, outcome, region, served
from mmtwin.errors import AllocationFailure, DmaMappingError
from mmtwin.gfp import GFP_ATOMIC, GFP_HIGHUSER_MOVABLE, GFP_KERNEL, gfp_names
from mmtwin.machine import Machine


@claim(
    "A device can use kmalloc's memory as it is.",
    says="dma_map_single of {bytes:size} from kmalloc: {kmalloc}",
    compared=("bytes", "kmalloc"),
    holds=lambda f: f["kmalloc"] == "mapped",
    truth="One address and one length, as far as the device can address; else the kernel copies through a bounce buffer.",
)
def dma_kmalloc(m: Machine) -> dict[str, Any]:
    device, p = m.device("claims", dma_mask=32), m.kmalloc(65536)
    dma = device.dma_map_single(p, 65536)
    return {"bytes": 65536, "kmalloc": "refused" if device.dma_mapping_error(dma) else "mapped"}


@claim(
    "Devices cannot use vmalloc's memory.",
    says="dma_map_single of {bytes:size} from vmalloc: {whole}; its pages as a scatterlist: {pages} mapped",
    compared=("bytes", "whole", "pages"),
    holds=lambda f: f["whole"] == "refused" and f["pages"] == 0,
    truth="Not by its address, but page by page they can: a scatterlist of its page frames.",
)
def dma_vmalloc(m: Machine) -> dict[str, Any]:
    device, v = m.device("claims", dma_mask=32), m.vmalloc(65536)
    try:
        device.dma_map_single(v, 65536)
        whole = "mapped"
    except DmaMappingError:
        whole = "refused"
    return {"bytes": 65536, "whole": whole, "pages": device.dma_map_sg(device.scatterlist(v, 65536))}


@claim(
    "Only DMA needs physically contiguous memory.",
    says="8 pages without neighbours, one range of addresses for the kernel: a device sees {direct} pieces; behind an IOMMU it sees {iommu}",
    compared=("direct", "iommu"),
    holds=lambda f: f["direct"] > 1,
    truth="The processor has page tables, a device has not; unless an IOMMU gives it some, then it needs no contiguous memory either.",
)
def dma_contiguous(m: Machine) -> dict[str, Any]:
    pages = [m.alloc_pages(0, GFP_KERNEL) for _ in range(16)]
    v = m.vmap(pages[::2])
    device, translated = m.device("claims", dma_mask=32), m.device("translated", dma_mask=32, iommu=True)
    return {"direct": device.dma_map_sg(device.scatterlist(v, 8 * 4096)), "iommu": translated.dma_map_sg(translated.scatterlist(v, 8 * 4096))}


@claim(
    "vmalloc is for large buffers that only software sees.",
    says="memory free in single pages only: kmalloc of {bytes:size}: {kmalloc}; vmalloc: {vmalloc}; kvmalloc took the {kvmalloc} space",
    compared=("bytes", "kmalloc", "vmalloc", "kvmalloc"),
    holds=lambda f: f["kmalloc"] == "NULL" and f["vmalloc"] == "served",
    truth="kvmalloc tries kmalloc first and falls back to vmalloc: the right call when both would do.",
)
def vmalloc_large_buffers(m: Machine) -> dict[str, Any]:
    taken = []
    try:
        while m.free > 8192:
            taken.append(m.alloc_pages(0, GFP_KERNEL))
    except AllocationFailure:
        pass
    for pfn in taken[1::2]:
        m.free_pages(pfn, 0)
    while served(m.alloc_pages, 2, GFP_KERNEL):
        pass  # what was free before
    size = 1 << 20
    return {
        "bytes": size,
        "kmalloc": "served" if served(m.kmalloc, size) else "NULL",
        "vmalloc": "served" if served(m.vmalloc, size) else "NULL",
        "kvmalloc": region(m, m.kvmalloc(size)),
    }


@claim(
    "vmalloc gives modules their memory.",
    says="a module's code lies in the {region} space; on 32-bit x86 in the {region_32_bits} space",
    compared=("region", "region_32_bits"),
    holds=lambda f: f["region"] == "modules" or f["region"] == "vmalloc",
    truth="vmalloc's own code gives it, page by page and with page tables; on x86-64 from addresses of their own, which 32-bit jumps reach.",
)
def vmalloc_modules(m: Machine) -> dict[str, Any]:
    from mmtwin.machine import boot

    small = boot("linux-6.1-i386", ram="512MiB", cpus=1)
    return {"region": region(m, m.module_alloc(50_000)), "region_32_bits": region(small, small.module_alloc(50_000))}


@claim(
    "vmalloc itself calls kmalloc(GFP_KERNEL).",
    says="one vmalloc made {kmallocs} kmallocs, with {flags}",
    compared=("kmallocs", "flags"),
    holds=lambda f: f["kmallocs"] > 0 and "GFP_KERNEL" in f["flags"],
    truth="For the area's descriptor and for the array of its pages.",
)
def vmalloc_calls_kmalloc(m: Machine) -> dict[str, Any]:
    with m.events() as log:
        m.vmalloc(8192)
    calls = [e for e in log if e.kind == "kmalloc"]
    return {"kmallocs": len(calls), "flags": " and ".join(sorted({gfp_names(e.gfp) for e in calls}))}


@claim(
    "vmalloc cannot be used in atomic context.",
    says="in a softirq: {softirq}; in a hard interrupt: {hardirq}; there with GFP_ATOMIC: {gfp_atomic}; with preemption disabled: {preemption}",
    compared=("softirq", "hardirq", "gfp_atomic", "preemption"),
    holds=lambda f: "BUG" in f["softirq"] and "BUG" in f["hardirq"],
    truth="In an interrupt it is a BUG, whatever the flags. With preemption merely disabled no check sees it (without CONFIG_DEBUG_ATOMIC_SLEEP): it works until it has to wait.",
)
def vmalloc_atomic_context(m: Machine) -> dict[str, Any]:
    m.atomic_sleep = "off"  # as Debian's kernels: no CONFIG_DEBUG_ATOMIC_SLEEP
    with m.softirq():
        softirq = outcome(m.vmalloc, 8192)
    with m.hardirq():
        hardirq, gfp_atomic = outcome(m.vmalloc, 8192), outcome(m.vmalloc, 8192, GFP_ATOMIC)
    with m.preempt_disabled():
        preemption = outcome(m.vmalloc, 8192)
    return {"softirq": softirq, "hardirq": hardirq, "gfp_atomic": gfp_atomic, "preemption": preemption}


@claim(
    "kmalloc(GFP_ATOMIC) can be used in interrupts.",
    says="in a softirq: {softirq}; in a hard interrupt: {hardirq}",
    compared=("softirq", "hardirq"),
    holds=lambda f: f["softirq"] == f["hardirq"] == "served",
    truth="It never waits; instead it may use part of the reserves, and may fail.",
)
def kmalloc_atomic_context(m: Machine) -> dict[str, Any]:
    with m.softirq():
        softirq = outcome(m.kmalloc, 100, GFP_ATOMIC)
    with m.hardirq():
        hardirq = outcome(m.kmalloc, 100, GFP_ATOMIC)
    return {"softirq": softirq, "hardirq": hardirq}


@claim(
    "vfree must not be called in interrupts.",
    says="in a hard interrupt: {hardirq}; in an NMI: {nmi}",
    compared=("hardirq", "nmi"),
    holds=lambda f: "BUG" in f["hardirq"],
    then="before Linux 3.10",
    truth="It leaves the work to a kernel worker; only in an NMI it is a BUG.",
)
def vfree_interrupt(m: Machine) -> dict[str, Any]:
    v = m.vmalloc(8192)
    with m.hardirq():
        m.vfree(v)
        there = m.find_vm_area(v) is not None
    v = m.vmalloc(8192)
    with m.nmi():
        nmi = outcome(m.vfree, v)
    return {"hardirq": "freed later" if there else "freed at once", "nmi": nmi}


@claim(
    "What kmalloc gave goes to kfree, what vmalloc gave to vfree.",
    says="vfree of kmalloc's memory: {vfree}; kfree of vmalloc's: {kfree}; kvfree takes both: {kvfree}",
    compared=("vfree", "kfree", "kvfree"),
    holds=lambda f: "bad address" in f["vfree"] + f["kfree"] or "nonexistent" in f["vfree"],
    truth="vfree only warns, and the memory is lost; kfree looks for a page where there is none and crashes. kvfree looks at the address.",
)
def pairs(m: Machine) -> dict[str, Any]:
    p, v = m.kmalloc(8192), m.vmalloc(8192)
    vfree = outcome(m.vfree, p).split(" (")[0]
    kfree = outcome(m.kfree, v).split(": ffff")[0]
    m.kvfree(p)
    m.kvfree(v)
    return {"vfree": vfree, "kfree": kfree, "kvfree": "yes" if m.find_vm_area(v) is None else "no"}


@claim(
    "Swapping uses vmalloc: the map of a swap device is in its space.",
    says="swapon of {small_device:size}: areas of {small:size} and {small_cgroups:size}; of {large_device:size}: {large:size} and {large_cgroups:size} (a guard page each included)",
    compared=("small_device", "small", "small_cgroups", "large_device", "large", "large_cgroups"),
    holds=lambda f: f["large"] == f["large_device"] // 4096 + 4096,
    truth="One byte for each page of the device, and an array that says which cgroup each belongs to.",
)
def swap_map(m: Machine) -> dict[str, Any]:
    def areas(bytes_: int, rotational: bool) -> list[int]:
        before = set(m.vmallocinfo().splitlines())
        m.swapon(bytes_, rotational=rotational)
        return sorted((int(line.split()[1]) for line in m.vmallocinfo().splitlines() if line not in before), reverse=True)

    (small, small_cgroups), (large, large_cgroups) = areas(256 << 20, True), areas(4 << 30, False)
    return {
        "small_device": 256 << 20,
        "small": small,
        "small_cgroups": small_cgroups,
        "large_device": 4 << 30,
        "large": large,
        "large_cgroups": large_cgroups,
    }


@claim(
    "vmalloc's memory can be swapped out.",
    says="with memory full and swap on, {bytes:size} of vmalloc were in {frames} frames, contents {contents}",
    more="; none of its pages was on a list of pages that may go ({lru}), while {swapped:size} of a process beside it were on the disk",
    compared=("bytes", "frames", "contents"),
    holds=lambda f: f["frames"] != "the same",
    truth="No memory of the kernel is swapped. What has to do with swapping is the map of a swap device's pages, which vmalloc allocates.",
)
def vmalloc_not_swapped(m: Machine) -> dict[str, Any]:
    size = 16 << 20
    v = m.vmalloc(size)
    m.write(v, b"the first page")
    m.write(v + size - 13, b"the last page")
    before = frames(m, v, size)
    m.swapon(256 << 20)
    while served(m.alloc_pages, 0, GFP_HIGHUSER_MOVABLE):
        pass  # a process's pages, until there are no more
    intact = m.read(v, 14) + m.read(v + size - 13, 13) == b"the first pagethe last page"
    return {"bytes": size, "frames": "the same" if frames(m, v, size) == before else "others", "contents": "intact" if intact else "lost"}
