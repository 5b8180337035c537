"""What would have helped a request for pages: each rule looks at the verdict and yields what it knows; their order is the ranking."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mmtwin.diagnose.explain.mem_info import MemInfo
from mmtwin.diagnose.explain.model import Remedy, Request, size
from mmtwin.diagnose.explain.page_verdict import Judged, unpopulated
from mmtwin.diagnose.explain.zone_rules import COSTLY_ORDER, Ask, ZoneVerdict, rules_of

KNOWN_CALLERS = (
    (r"^(?:fill_balloon|balloon_\w+)$",
     Remedy("look", "the host's target for the balloon", "the balloon takes the guest's free pages until none is left, and tries again later")),
    (r"^vmemmap_populate\w*$",
     Remedy("look", "whether the memory was added in the end", "the map of page frames is then made of single pages, and nothing is wrong")),
    (r"^ttm_\w+$",
     Remedy("look", "whether anything broke", "the graphics drivers' memory manager goes on with smaller blocks by itself")),
    (r"^_*(?:dma_)?atomic_pool_\w+$",
     Remedy("look", "whether 'DMA: preallocated ... pool' follows in the log", "this pool of the DMA interface is then made smaller, and nothing is wrong; coherent_pool=SIZE asks for less")),
    (r"^(?:_*(?:pte|pmd|pud|p4d|pgd)_alloc\w*|crst_table_alloc|get_pgd_slow|mm_init)$", None),
    (r"^(?:sock_alloc_send\w*|unix_\w*sendmsg|netlink_\w+|nlmsg_\w+)$",
     Remedy("caller", "smaller messages (on UNIX sockets a smaller SO_SNDBUF, on netlink smaller dumps)", "a socket buffer's linear part has to be contiguous; a smaller one needs no large block")),
)  # fmt: skip
"""What to advise where the functions next to the allocator say what the block is for: it has to be contiguous (page tables: nothing), or the caller goes on without it."""
MOST_TIMES = 4
"""Dividing a reserve by more leaves nothing of it."""
KVMALLOC, COMPACTION, SCALE_FACTOR, CMA = (4, 12), (2, 6, 35), (4, 6), (3, 5)
"""First kernels that have them."""
HOLDERS = "who holds the memory"
WITHOUT_HIGHMEM = Remedy(
    "kernel", "a 64-bit kernel, or a memory split with more lowmem", "the kernel's own requests cannot use HighMem; there is no such split on 64 bits"
)
KERNEL_STACK = ("copy_process", "dup_task_struct", "alloc_thread_stack_node")
NEAR_CALLER = 3
"""Functions further away only lead to the one that asks: a driver's own table may be asked for by way of a message."""
PIECES = ("no_block", "per_order_watermark", "highatomic_only", "isolated_only", "not_shown", "cma_only")
"""Verdicts on requests that smaller pieces would have been found for."""
SHORT = ("watermark", "no_block", "really_empty", "lowmem_reserve")
"""Verdicts on requests that pages of another zone would have served."""


@dataclass(frozen=True)
class Refused:
    """A request and its verdict.

    :ivar page_kb: size of a page.
    :ivar counted: whether the log's counters say who holds the memory.
    :ivar newest: the newest kernel that can have printed the log: what came later is no advice.
    """

    judged: Judged
    ask: Ask
    request: Request
    page_kb: int
    counted: bool
    newest: tuple[int, ...]

    @property
    def code(self) -> str:
        return self.judged.code

    @property
    def main(self) -> ZoneVerdict | None:
        return self.judged.main

    @property
    def reclaim(self) -> bool:
        """Whether it may wait for reclaim."""
        return "DIRECT_RECLAIM" in self.ask.flags

    @property
    def want(self) -> str:
        return self.size(1 << self.ask.order)

    @property
    def who(self) -> str:
        return self.request.caller or "the caller"

    def size(self, pages: int) -> str:
        return size(pages * self.page_kb * 1024)


def remedies(judged: Judged, ask: Ask, request: Request, page_kb: int, info: MemInfo, newest: tuple[int, ...]) -> tuple[Remedy, ...]:
    """What would have helped, the best first.

    :param newest: the newest kernel that it can be.
    """
    refused = Refused(judged, ask, request, page_kb, bool(info.counters), newest)
    found = tuple(remedy for rule in RULES for remedy in rule(refused))
    lists = [info.counters[name] for name in ("active_anon", "inactive_anon", "active_file", "inactive_file", "active", "inactive") if name in info.counters]
    if lists and not any(lists):  # before there is any user space: nobody can set anything yet
        early = Remedy(
            "look",
            "what took the memory before the first program: crashkernel=, the kernel and its initramfs, pages that are not yet set up",
            "no process and no file holds any",
        )
        return (early, *(remedy for remedy in found if remedy.who != "admin" or not re.search(r"vm\.|/proc/sys", remedy.what)))
    return found


def lower_mask(request: Request, zone: str) -> Remedy:
    """For a request that was bound to a low zone."""
    who, changes = request.caller or "the caller", f"the request is not bound to zone {zone} then"
    if request.for_device:  # the DMA interface chose the zone by the device's mask
        return Remedy("caller", f"a wider DMA mask (dma_set_mask_and_coherent) in {who} if the device reaches more, or an IOMMU", changes)
    return Remedy("caller", f"no GFP_{zone} in {who} if the device reaches more", changes)


def smaller_pieces(it: Refused) -> Iterator[Remedy]:
    """What the caller could ask for instead."""
    if it.code not in PIECES and not (it.code == "watermark" and it.ask.order):
        return
    low = next((name for name in ("DMA", "DMA32") if name in it.ask.flags and it.judged.highest == name), "")
    near = next((pair for pair in KNOWN_CALLERS if any(re.match(pair[0], name) for name in it.request.path[:NEAR_CALLER])), None)
    if it.judged.main is not None and it.code == "watermark" and any(name in it.request.path[:NEAR_CALLER] for name in KERNEL_STACK):
        return  # a single page is missing, too
    if any(name in it.request.path[:NEAR_CALLER] for name in KERNEL_STACK):
        yield Remedy(
            "kernel", "CONFIG_VMAP_STACK (4.9 and newer, where the architecture has it)", f"kernel stacks then need single pages, no block of {it.want}"
        )
    elif it.ask.order and it.request.no_mmu:
        yield Remedy(
            "caller",
            "smaller mappings, or the large ones made early",
            "without an MMU a mapping is one piece of memory; neither vmalloc nor compaction can help",
        )
    elif near is not None and it.ask.order:
        if near[1] is not None:
            yield near[1]
    elif low and it.request.for_device:
        yield lower_mask(it.request, low)
    elif low:
        yield Remedy(
            "caller",
            f"no GFP_{low} in {it.who} if the device reaches more (a larger DMA mask), or dma_alloc_coherent",
            f"the request is not bound to the zone {low} then",
        )
    elif it.ask.order and it.request.for_device:
        yield Remedy(
            "caller",
            f"the buffer of {it.who} allocated {'' if it.reclaim else 'with GFP_KERNEL '}at start and kept, "
            f"{'or taken from CMA (cma= or a reserved-memory node), ' if it.newest >= CMA else ''}or smaller ones (scatter-gather), or an IOMMU",
            f"the device needs {it.want} in one piece, so vmalloc cannot help",
        )
    elif it.ask.order and "HIGHMEM" in it.ask.flags:
        yield Remedy(
            "caller", f"single pages in {it.who} (in a list, or mapped by vmap)", f"no block of {it.want} is needed; kmalloc and its like never ask for HighMem"
        )
    elif it.ask.order and it.request.by_cache and not it.request.by_kmalloc:
        yield Remedy(
            "caller",
            f"smaller objects in the cache that {it.who} allocates from{' (or slub_max_order=0)' if it.request.by_slub else ''}",
            f"its slabs then need no block of {it.want}",
        )
    elif it.ask.order and it.reclaim and "FS" in it.ask.flags and not it.request.by_kmalloc and it.request.caller:
        yield Remedy("caller", f"single pages or vmalloc in {it.who}, if the memory need not be contiguous", f"no block of {it.want} is needed")
    elif it.ask.order and it.reclaim and "FS" in it.ask.flags:
        virtual = "kvmalloc" if it.newest >= KVMALLOC else "vmalloc"
        yield Remedy(
            "caller",
            f"{virtual} instead of kmalloc in {it.who}, if the memory need not be contiguous",
            f"{'falls back to' if virtual == 'kvmalloc' else 'takes'} single pages{' by vmalloc' if virtual == 'kvmalloc' else ''}: no block of {it.want} is needed",
        )
    elif it.ask.order and it.reclaim:
        scope, name = ("memalloc_nofs_save", "GFP_NOFS") if "IO" in it.ask.flags else ("memalloc_noio_save", "GFP_NOIO")
        or_virtual = f", or kvmalloc under {scope}() (5.17 and newer accept {name})" if it.newest >= KVMALLOC else ""
        yield Remedy("caller", f"smaller pieces in {it.who}{or_virtual}", f"no block of {it.want} is needed")
    elif it.ask.order:
        yield Remedy(
            "caller",
            f"allocate in {it.who} ahead of time with GFP_KERNEL, or ask for single pages (scatter-gather)",
            "a request that may sleep can reclaim and compact; an atomic one cannot",
        )


def cma(it: Refused) -> Iterator[Remedy]:
    """Of memory that only movable pages and CMA's own callers may use."""
    if it.code == "cma_only" or (it.main is not None and it.main.cma_decides):
        free = it.main.cma if it.main is not None else 0
        yield Remedy(
            "admin",
            "a smaller CMA area (cma= on the command line)",
            "its pages become usable for every request",
        )
        stack = any(name in it.request.path[:NEAR_CALLER] for name in KERNEL_STACK)
        if it.ask.order and not stack:
            at_start = "" if it.reclaim else " at start, with GFP_KERNEL"  # CMA's own callers must be able to wait
            yield Remedy(
                "caller",
                f"if it is for a device: dma_alloc_coherent or dma_alloc_contiguous{at_start}, which are what CMA is for",
                f"may use the {it.size(free)} of free CMA" if free else "may use what is free in CMA",
            )


def atomic_reserve(it: Refused) -> Iterator[Remedy]:
    """Of the reserve for high-order atomic requests."""
    if it.code == "highatomic_only":
        if not it.ask.high and not it.reclaim and it.ask.order:
            yield Remedy("caller", f"GFP_ATOMIC in {it.who}", "may take blocks of that reserve")
        yield Remedy("caller", "retry after a moment", "the reserve is given back when a request that may reclaim fails for long")


def lowmem_reserve(it: Refused) -> Iterator[Remedy]:
    """A smaller reserve for the zone that would pass soonest."""
    kept = [z for z in it.judged.zones if z.eligible and z.rule == "lowmem_reserve" and (it.ask.order == 0 or z.usable_blocks)]
    zone = max(kept, key=lambda z: (_times(z) <= MOST_TIMES, _left(z)), default=None)
    if zone is not None and _times(zone) > MOST_TIMES and it.code != "lowmem_reserve":
        return  # it would strip the zone of its protection for little
    if zone is None or it.code == "not_shown" or zone.zone.low_counts:
        return
    times = _times(zone)
    left = _left(zone)
    names = ("DMA", "Normal", "HighMem") if any(z.zone.name == "HighMem" for z in it.judged.zones) else ("DMA", "DMA32", "Normal")
    index = names.index(zone.zone.name) if zone.zone.name in names else 0
    yield Remedy(
        "admin",
        f"{'twice' if times == 2 else f'{times} times'} the entry for {zone.zone.name} in vm.lowmem_reserve_ratio (the {('first', 'second', 'third')[index]} number where all zones exist)",
        f"its reserve falls from {zone.reserve} to {zone.reserve // times} pages; this request would then pass by {left}"
        + (f", which delays the next report by {it.size(left)} at most" if it.judged.oom else ""),
    )


def _left(z: ZoneVerdict) -> int:
    """By how many pages the request passes then."""
    return z.usable - z.least - z.reserve // _times(z)


def _times(z: ZoneVerdict) -> int:
    """By which power of two the zone's reserve must be divided for the request to pass."""
    times = 1
    while z.usable <= z.least + z.reserve // times and times < 1024:
        times *= 2
    return times


def boost_of_one_request(it: Refused) -> Iterator[Remedy]:
    """Where the watermark's boost alone refused a request that nothing else was wrong with."""
    if not it.judged.oom:
        yield from _boost(it)


def boost_of_an_oom(it: Refused) -> Iterator[Remedy]:
    """Where memory is out, the boost only brings it forward."""
    if it.judged.oom:
        yield from _boost(it)


def _boost(it: Refused) -> Iterator[Remedy]:
    if it.main is not None and it.main.boost_decides:
        yield Remedy(
            "admin",
            "vm.watermark_boost_factor=0",
            f"min falls from {it.main.mark} to {it.main.mark - it.main.boost} pages; the request would pass by {it.main.unboosted_margin} pages"
            + (", for the time being" if it.judged.oom else ""),
        )


def larger_blocks(it: Refused) -> Iterator[Remedy]:
    """Settings that keep or make larger blocks."""
    if it.code == "no_block" and it.reclaim and 0 < it.ask.order <= COSTLY_ORDER:
        yield Remedy("admin", "a higher vm.min_free_kbytes", "more pages stay free, so that larger blocks survive more often; no promise for a single request")
    if it.code == "per_order_watermark" and it.main is not None:
        yield Remedy("kernel", "Linux 4.4 or newer", f"one block of {it.want} is enough there, and {it.main.fitting} of that size or larger were free")
    if it.code == "per_order_watermark" and not it.reclaim:
        yield Remedy("admin", "a higher vm.min_free_kbytes", "kswapd keeps more pages free, in the higher orders, too")
    if it.code in ("no_block", "per_order_watermark", "highatomic_only", "cma_only") and it.ask.order and not it.request.no_mmu and it.newest >= COMPACTION:
        yield Remedy(
            "admin",
            "echo 1 > /proc/sys/vm/compact_memory" + (" (or vm.compaction_proactiveness, 5.9 and newer)" if it.newest >= (5, 9) else ""),
            "joins movable pages to larger blocks for now; unmovable ones keep their places",
        )


def more_free_pages(it: Refused) -> Iterator[Remedy]:
    """Where pages are too few, and what vm.min_free_kbytes does to it."""
    if it.code in ("watermark", "really_empty"):
        near = [z.margin for z in it.judged.zones if z.eligible and not unpopulated(z) and (it.ask.order == 0 or z.usable_blocks)]
        margin = max(near, default=it.main.margin if it.main is not None else 0)
        lack = 1 - margin if margin <= 0 else 0
        if it.reclaim and it.main is not None and (it.judged.oom or not (it.main.cma_decides or it.main.boost_decides)):
            yield Remedy("look", f"{HOLDERS}{' (see why)' if it.counted else ''}", _enough(it, lack))
        if it.ask.order and it.reclaim:
            yield Remedy("admin", "not: a higher vm.min_free_kbytes alone", "this request has to stay above it; it helps only because kswapd starts earlier")
        elif not it.reclaim and it.main is not None and it.main.least == it.main.mark:
            yield Remedy("admin", "not: a higher vm.min_free_kbytes", "without __GFP_HIGH the request has to stay above it, atomic or not")
            yield Remedy("caller", f"GFP_ATOMIC in {it.who}, if it must not fail", "__GFP_HIGH may go to half of the watermark")
        elif not it.reclaim:
            yield Remedy(
                "admin",
                f"a higher vm.min_free_kbytes{' (or vm.watermark_scale_factor)' if it.newest >= SCALE_FACTOR else ''}",
                "kswapd starts earlier and keeps more pages free, of which atomic requests may take a part"
                + (f"; {lack} pages more were needed" if lack else ""),
            )
    if it.code == "no_block" and not it.reclaim and not rules_of(it.ask.version).per_order:
        yield Remedy("admin", "not: vm.min_free_kbytes alone", "it keeps more pages free, not larger blocks")


def _enough(it: Refused, lack: int) -> str:
    """How much was missing, where that alone would have helped."""
    pages = f"{lack} more free {'page' if lack == 1 else 'pages'} ({it.size(lack)})"
    assert it.main is not None
    managed = it.main.zone.fields.get("managed", it.main.zone.fields.get("present", 0)) // it.page_kb
    if it.ask.no_watermarks:
        return "watermarks do not hold for it: a single free page that it may use is enough" if not it.ask.order else f"a free block of {it.want} is enough"
    if it.ask.order and 0 < managed < 1 << it.ask.order:
        return f"all of {it.main.zone.label} is less than the request: it can never be served there"
    if not lack:
        return "the dump is at the edge"
    if it.judged.oom:
        return f"this request lacked {pages.replace(' more', '')}; whoever fills the memory would have taken those, too"
    if it.ask.order and not it.main.usable_blocks:
        return f"{pages} were missing for the watermark, and a block of {it.want} besides"
    return f"{pages} would have been enough"


def no_marks(it: Refused) -> Iterator[Remedy]:
    """Where somebody has set vm.min_free_kbytes to nothing."""
    zones = [z for z in it.judged.zones if z.eligible and not unpopulated(z)]
    if zones and all(z.zone.fields.get("min") == 0 and z.zone.fields.get("high") == 0 for z in zones) and it.code not in ("not_shown", "evidence_missing"):
        yield Remedy(
            "admin",
            "vm.min_free_kbytes back to what the kernel had set",
            "every watermark is 0: kswapd starts only when nothing is left, and atomic requests have no reserve",
        )


def another_node(it: Refused) -> Iterator[Remedy]:
    """A request for one node only."""
    other = next((z for z in it.judged.zones if z.eligible and z.rule == "passes"), None)
    if "THISNODE" in it.ask.flags and other is not None and it.code != "not_shown":
        yield Remedy(
            "caller",
            f"no __GFP_THISNODE in {it.who}, if another node will do",
            f"node {other.zone.node} would have served it: {other.zone.label} passes by {other.margin}",
        )


def another_zone(it: Refused) -> Iterator[Remedy]:
    """Where no zone was left that the request may use."""
    if it.code != "zone_eligibility":
        return
    highest = it.judged.highest
    if any(z.eligible for z in it.judged.zones):
        yield lower_mask(it.request, highest)
        yield Remedy("admin", f"memory inside zone {highest} (a crash kernel: crashkernel=SIZE,low)", "the zone gets pages to give")
    else:
        yield Remedy(
            "admin",
            f"a node with zone {highest} or lower in cpuset.mems (or the memory policy)",
            "the request then has zones that it may use; freeing memory or killing processes cannot help",
        )
        yield Remedy("kernel", "Linux 5.16 or newer", "such a request fails at once and does not call the OOM killer")


def passed_by_now(it: Refused) -> Iterator[Remedy]:
    """Where the dump no longer shows why."""
    if it.code == "not_shown" and it.judged.oom:
        yield Remedy("look", f"{HOLDERS}{' (see why)' if it.counted else ''}", "a process was killed although pages were free again when the dump was printed")
    elif it.code == "not_shown":
        yield Remedy(
            "look", "/proc/buddyinfo over time, and whether it repeats", "a single failure of this kind has passed; a caller that falls back is not harmed"
        )


def out_of_reach(it: Refused) -> Iterator[Remedy]:
    """Memory in zones that kernel requests may not use."""
    zones = it.judged.zones
    if it.code not in SHORT or it.judged.highest == "Movable":
        return
    if it.judged.highest != "HighMem" and any(z.zone.name == "HighMem" and not unpopulated(z) for z in zones):
        yield WITHOUT_HIGHMEM
    if any(z.zone.name == "Movable" and z.free > 1 << it.ask.order for z in zones):
        yield Remedy("admin", "a smaller zone Movable (kernelcore= larger, or movablecore= smaller)", "its free pages become usable for requests like this one")


def costly(it: Refused) -> Iterator[Remedy]:
    """Requests that callers expect to fail."""
    if it.ask.order > COSTLY_ORDER and it.reclaim and it.code == "no_block":
        yield Remedy(
            "look", "whether anything broke", f"requests above order {COSTLY_ORDER} are allowed to fail, and many callers fall back to something smaller"
        )


RULES: tuple[Callable[[Refused], Iterator[Remedy]], ...] = (
    no_marks, another_node, smaller_pieces, cma, atomic_reserve, boost_of_one_request, more_free_pages, lowmem_reserve, boost_of_an_oom, larger_blocks, another_zone, passed_by_now, out_of_reach, costly,
)  # fmt: skip
"""The best first."""
