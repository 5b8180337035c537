"""The rules of `mmtwin advise`: what a site's traffic must show before something else is suggested, and what is suggested then.

Each rule is one function of a site. It gives a `Suggestion` with the numbers that it rests on, or None. Limits are data, in `Thresholds`. What a trace cannot show is part
of the suggestion (`Suggestion.unknown`). Sources: include/linux/gfp_types.h, include/linux/slab.h, mm/page_alloc.c, mm/slab_common.c, mm/util.c, mm/vmalloc.c, mm/mempool.c of 6.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from mmtwin.diagnose.advise.sites import CONTEXTS, TASK, Site, Use
from mmtwin.diagnose.advise.size_classes import slab_of
from mmtwin.gfp import GFP, GFP_ATOMIC, gfp_names
from mmtwin.mm.slab_common import (
    KMALLOC_CGROUP,
    KMALLOC_DMA,
    KMALLOC_MAX_CACHE_SIZE,
    KMALLOC_MAX_SIZE,
    KMALLOC_NORMAL,
    KMALLOC_RECLAIM,
    MINALIGN,
    SLAB_ACCOUNT,
    SLAB_CACHE_DMA,
    SLAB_RECLAIM_ACCOUNT,
    align_up,
    kmalloc_name,
    kmalloc_size_roundup,
    kmalloc_type,
    slab_flag_names,
)
from mmtwin.units import PAGE_SIZE, get_order

KINDS = ("bug", "failure", "memory", "order", "cost", "check")
"""What a suggestion is about, the most urgent first: the kernel forbids what the site does; requests have failed; memory is saved; smaller blocks of pages would do; the
same memory for less work; something that the trace makes likely and only the code can decide."""
PAGE_ALLOC_COSTLY_ORDER = 3
"""include/linux/mmzone.h: larger blocks are given up early."""


@dataclass(frozen=True)
class Thresholds:
    """Limits of the rules. All can be changed; docs/advise.md says why each is what it is.

    :ivar saving_bytes: a change must save so much at the site's peak: less than a page is not memory that anybody gets back.
    :ivar cache_objects: a cache of its own must hold so many at the peak: each CPU keeps a slab of it.
    :ivar costly_order: kvmalloc is for blocks above this order, or for any that failed.
    :ivar padding_percent: share of a cache's object that is padding before it is worth a look.
    :ivar account_bytes: memory that tasks made the kernel hold, without __GFP_ACCOUNT.
    :ivar atomic_requests: so many GFP_ATOMIC requests in task context before the question is asked.
    :ivar small_areas: areas of one page by one function before it is worth a change.
    :ivar fallback_percent: share of the failures after which something else was allocated.
    """

    saving_bytes: int = PAGE_SIZE
    cache_objects: int = 32
    costly_order: int = PAGE_ALLOC_COSTLY_ORDER
    padding_percent: float = 5.0
    account_bytes: int = 1 << 20
    atomic_requests: int = 16
    small_areas: int = 8
    fallback_percent: float = 50.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


THRESHOLDS = Thresholds()


@dataclass(frozen=True)
class Way:
    """How to allocate: what the twin does for a site's requests.

    :ivar allocator: "kmalloc", "cache", "kvmalloc", "vmalloc", "alloc_pages" (alloc_pages_exact), "pieces" (single pages) or "mempool" (over kmalloc).
    :ivar size: of a cache's objects. `flags`: SLAB_* of the cache. `reserve`: elements that a mempool keeps.
    :ivar add, drop: GFP flags added to and taken from those of each request.
    """

    allocator: str
    size: int = 0
    flags: int = 0
    reserve: int = 0
    add: int = 0
    drop: int = 0


@dataclass(frozen=True)
class Suggestion:
    """One thing to change at a site, and why.

    :ivar rule: name of the rule, a key of `RULES`. `kind`: one of `KINDS`.
    :ivar present: what the site does; `suggested`: what it should do; `why`: the numbers.
    :ivar threshold: the limit that was passed.
    :ivar unknown: what the trace does not show, and somebody must know before changing the code.
    :ivar saves_bytes: memory at the site's peak, by arithmetic (0 if it is about something else).
    :ivar now, then: the two ways for the twin to try; None if there is nothing to try.
    :ivar weight: what ranks suggestions of one kind, more is more important.
    """

    rule: str
    kind: str
    present: str
    suggested: str
    why: str
    threshold: str
    unknown: tuple[str, ...] = ()
    saves_bytes: int = 0
    now: Way | None = None
    then: Way | None = None
    weight: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the ways to try."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("now", "then", "unknown")} | {"unknown": list(self.unknown)}


@dataclass(frozen=True)
class Case:
    """What a rule looks at.

    :ivar held: what the site held at its peak: size asked for, bytes given and number.
    :ivar cpus: what slab orders depend on.
    :ivar accounted: __GFP_ACCOUNT has caches of its own.
    """

    site: Site
    held: tuple[tuple[int, int, int], ...]
    cpus: int
    accounted: bool
    limits: Thresholds = THRESHOLDS


SLAB_INTERNAL = frozenset(("memcg_alloc_slab_cgroups", "memcg_alloc_page_obj_cgroups", "alloc_slab_obj_exts", "alloc_empty_sheaf", "__alloc_empty_sheaf"))
"""Functions that allocate for the slab allocator itself: nobody is charged for that (mm/slab.h)."""
Rule = Callable[[Case], Suggestion | None]


def suggestions(case: Case) -> Iterator[Suggestion]:
    """All that the rules have to say about a site."""
    for rule in RULES.values():
        found = rule(case)
        if found is not None:
            yield found


def sleep_in_atomic(case: Case) -> Suggestion | None:
    """GFP_KERNEL and its like may sleep, and an interrupt, or a task with preemption, interrupts or bottom halves off, must not (``might_alloc``)."""
    site = case.site
    wrong = [use for use in site.uses if use.context != TASK and use.gfp & GFP.DIRECT_RECLAIM]
    locked = site.in_task[2] if site.in_task is not None else 0
    if not wrong and not locked:
        return None
    use = wrong[0] if wrong else next((u for u in site.uses if u.gfp & GFP.DIRECT_RECLAIM), None)
    if use is None:  # the call site's other kind of request
        return None
    number = sum(u.requests for u in wrong)
    where = CONTEXTS[use.context] if wrong else "an atomic section"
    parts = ([f"{number:,} of {_requests(site)} came from an interrupt"] if wrong else []) + (
        [f"{_count(locked, 'request')} of this call site came from tasks with preemption, interrupts or bottom halves off"] if locked else []
    )
    unknown = () if site.in_task is not None else ("requests under a spinlock or with interrupts off in task context: only trace text with its flags says so",)
    return Suggestion(
        "sleep-in-atomic", "bug", f"{_flags(use)} in {where}", "GFP_ATOMIC, or do it in process context (a work item, before taking the lock)",
        " and ".join(parts) + " and allow direct reclaim, which sleeps: with CONFIG_DEBUG_ATOMIC_SLEEP the kernel says "
        '"BUG: sleeping function called from invalid context", without it the machine may hang when memory is short', "any such request", unknown,
        now=_way(site) if wrong else None, then=_way(site, add=GFP_ATOMIC, drop=int(GFP.DIRECT_RECLAIM | GFP.IO | GFP.FS)), weight=number + locked,
    )  # fmt: skip


def wrong_zone(case: Case) -> Suggestion | None:
    """Slabs are mapped memory of one zone: __GFP_HIGHMEM, and __GFP_DMA32 in kmalloc, are dropped with a warning (``kmalloc_fix_flags``)."""
    wrong = [
        use for use in case.site.uses if use.gfp & (GFP.HIGHMEM | GFP.DMA32) and case.site.kmalloc and max(case.site.sizes, default=0) <= KMALLOC_MAX_CACHE_SIZE
    ]
    if not wrong:
        return None
    number = sum(use.requests for use in wrong)
    return Suggestion(
        "wrong-zone", "bug", _flags(wrong[0]), "without __GFP_HIGHMEM and __GFP_DMA32; for a device dma_alloc_coherent, or a cache with SLAB_CACHE_DMA32",
        f"{number:,} requests name a zone that no kmalloc cache is in: the kernel warns (\"Unexpected gfp\"), drops the flag and gives ordinary memory",
        "any such request", weight=number,
    )  # fmt: skip


def nofail_order(case: Case) -> Suggestion | None:
    """The page allocator warns of __GFP_NOFAIL above order 1 (``rmqueue``): it may loop for ever."""
    site, least = case.site, min(case.site.sizes, default=0)
    if not site.kmalloc or not site.gfp & GFP.NOFAIL or least <= 2 * PAGE_SIZE:
        return None
    return Suggestion(
        "nofail-order", "bug", f"kmalloc({_sizes(site)}, {_flags(site.uses[0])})", "kvmalloc with the same flags and kvfree",
        f"blocks of order {get_order(least)} that must not fail: the kernel warns above order 1 (mm/page_alloc.c), and loops until one appears", "any such request",
        _unknown_kvmalloc(site), now=_way(site), then=Way("kvmalloc"), weight=site.hits,
    )  # fmt: skip


def too_large(case: Case) -> Suggestion | None:
    """kmalloc ends at KMALLOC_MAX_SIZE."""
    site = case.site
    if not site.kmalloc or not site.failed or site.hits or not site.largest_failed > KMALLOC_MAX_SIZE:
        return None
    sleeps = all(use.gfp & GFP.DIRECT_RECLAIM and use.context == TASK for use in site.uses)
    return Suggestion(
        "too-large", "failure", f"kmalloc of up to {site.largest_failed:,} bytes", "kvmalloc and kvfree" if sleeps else "smaller pieces: vmalloc may not be called here",
        f"all {site.failed:,} requests failed: kmalloc never gives more than {KMALLOC_MAX_SIZE:,} bytes", "any such request", _unknown_kvmalloc(site),
        now=_way(site), then=Way("kvmalloc") if sleeps else None, weight=site.failed,
    )  # fmt: skip


def kvmalloc(case: Case) -> Suggestion | None:
    """Large blocks where single pages would do: only if it may sleep, the memory is not for DMA, and what is seen of the frees may be kvfree."""
    site = case.site
    largest = max(max(site.sizes, default=0), site.largest_failed if site.failed else 0)
    order = get_order(largest) if largest else 0
    wanted = order > case.limits.costly_order or (site.failed > 0 and largest > PAGE_SIZE)
    if (
        not site.kmalloc
        or not wanted
        or not site.hits
        or not site.may_sleep
        or site.dma
        or site.gfp & GFP.NOFAIL
        or _in_kvmalloc(site)
        or not _kvfree_fits(site)
    ):
        return None
    failed = f"; {site.failed:,} failed" if site.failed else ""
    return Suggestion(
        "kvmalloc", "failure" if site.failed else "order", f"kmalloc({_sizes(site)}, {_flags(site.uses[0])}): blocks up to order {order}", "kvmalloc and kvfree",
        f"{site.hits:,} requests, the largest of {largest:,} bytes, a block of {1 << order} adjacent pages{failed}; all may sleep, and kvmalloc takes single pages when "
        "no such block is free", f"order above {case.limits.costly_order} (PAGE_ALLOC_COSTLY_ORDER), or a failure above a page", _unknown_kvmalloc(site),
        now=_way(site), then=Way("kvmalloc"), weight=site.failed or (1 << order),
    )  # fmt: skip


def high_order_atomic(case: Case) -> Suggestion | None:
    """More than a page without direct reclaim: nothing is done to find such a block, it is there or it is not."""
    site = case.site
    largest = max(site.sizes, default=0)
    atomic = [use for use in site.uses if not use.gfp & GFP.DIRECT_RECLAIM]
    if largest <= PAGE_SIZE or not atomic or (not site.kmalloc and not site.failed):
        return None
    number, failed = sum(use.requests for use in atomic), sum(use.failed for use in atomic)
    return Suggestion(
        "high-order-atomic", "failure" if failed else "order", f"up to {largest:,} bytes with {_flags(atomic[0])}", "pieces of a page, or memory taken beforehand",
        f"{number:,} requests that may neither reclaim nor compact need blocks of order {get_order(largest)}; {failed:,} failed. The reserve for them "
        "(MIGRATE_HIGHATOMIC) is at most about 1% of a zone", "any such request above a page", ("how many page frames in a row the user of the memory needs",),
        now=_way(site), then=Way("pieces"), weight=failed or number,
    )  # fmt: skip


def mempool(case: Case) -> Suggestion | None:
    """Atomic requests, or requests on the way of writeback, that failed: what must go on keeps elements ready (mm/mempool.c)."""
    site = case.site
    strict = [use for use in site.uses if use.failed and not (use.gfp & GFP.NORETRY and use.gfp & GFP.NOWARN)]
    failed = [use for use in strict if not use.gfp & GFP.DIRECT_RECLAIM or not use.gfp & GFP.IO]
    if not failed or not site.hits or (site.size is None and not site.kmalloc):
        return None
    number = sum(use.failed for use in failed)
    size = max(site.sizes)
    reserve = max(1, site.peak)
    over = "mempool_create_kmalloc_pool" if site.kmalloc else "mempool_create_slab_pool"
    where = "atomic" if not failed[0].gfp & GFP.DIRECT_RECLAIM else "writeback path (no __GFP_IO)"
    return Suggestion(
        "mempool", "failure", f"{size:,} bytes with {_flags(failed[0])}", f"{over}({reserve}, ...) and mempool_alloc",
        f"{number:,} of {_requests(site)} failed ({where}); at most {site.peak:,} objects are held at once, so {reserve:,} kept ready ({reserve * size:,} bytes) "
        "would have served them", "any such failure", ("whether the caller can do without: then nothing is needed",),
        now=_way(site), then=Way("mempool", size=size, reserve=reserve), weight=number,
    )  # fmt: skip


def nowarn(case: Case) -> Suggestion | None:
    """A failure that has a fallback needs no report in the log."""
    site = case.site
    loud = sum(use.failed for use in site.uses if not use.gfp & GFP.NOWARN)
    if not loud or 100 * site.fallbacks < case.limits.fallback_percent * site.failed:
        return None
    return Suggestion(
        "nowarn", "failure", f"{_flags(next(u for u in site.uses if u.failed))}, and something else when that fails", "__GFP_NOWARN, and __GFP_NORETRY if the fallback is cheap; or kvmalloc",
        f"{loud:,} requests failed with a report in the kernel log each; after {site.fallbacks:,} of {site.failed:,} failures the same task got memory in another way at once",
        f"{case.limits.fallback_percent:g}% of the failures", ("whether what followed was the fallback",), weight=loud,
    )  # fmt: skip


def own_cache(case: Case) -> Suggestion | None:
    """Objects of one size that kmalloc's class is too large for, enough of them at once."""
    site, size = case.site, case.site.size
    if not site.kmalloc or size is None or not size <= KMALLOC_MAX_CACHE_SIZE or site.peak < case.limits.cache_objects:
        return None
    given, aligned = kmalloc_size_roundup(size), align_up(size, MINALIGN)
    saved = own_cache_saving(size, site.peak, case.cpus)
    if (given - aligned) * site.peak < case.limits.saving_bytes or saved < case.limits.saving_bytes:
        return None
    gfp = site.uses[0].gfp
    kind = kmalloc_type(gfp, case.accounted)
    flags = cache_flags(kind)
    class_slab, class_fit = slab_of(given, case.cpus)
    slab, fit = slab_of(aligned, case.cpus)
    lower = max((c for c in (8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096) if c < size), default=0)
    smaller = f" {size - lower:,} bytes less would fit into {kmalloc_name(kind, lower)}." if lower and size - lower <= size // 8 else ""
    return Suggestion(
        "own-cache", "memory", f"kmalloc({size}, {_flags(site.uses[0])}): {kmalloc_name(kind, size)}", f'kmem_cache_create("{_cache_name(site)}", {size}, 0, {slab_flag_names(flags) if flags else 0})',
        f"all {site.hits:,} requests ask for {size} bytes and get {given}; {site.peak:,} are held at once. A slab of {class_slab >> 10} KiB holds {class_fit} of the class, "
        f"one of {slab >> 10} KiB {fit} of the size: by arithmetic at least {saved:,} bytes at the peak.{smaller}",
        f"one size, {case.limits.cache_objects} objects held, {case.limits.saving_bytes:,} bytes saved",
        ("whether the size depends on the kernel's configuration", "copies to and from user space: then kmem_cache_create_usercopy, which is never merged"),
        saved, _way(site), Way("cache", size=size, flags=flags), saved,
    )  # fmt: skip


def own_cache_saving(size: int, number: int, cpus: int) -> int:
    """Bytes of slabs that `number` objects need less in a cache of their own; one slab that is not full is taken off, as the class would share it with others."""
    class_slab, class_fit = slab_of(kmalloc_size_roundup(size), cpus)
    slab, fit = slab_of(align_up(size, MINALIGN), cpus)
    return number * class_slab // class_fit - -(-number // fit) * slab - slab


def whole_pages(case: Case) -> Suggestion | None:
    """Above 8 KiB kmalloc rounds up to a power of two of pages; alloc_pages_exact gives the rest back, and vmalloc never takes it."""
    site = case.site
    large = [(align_up(size, PAGE_SIZE), given, number) for size, given, number in case.held if size > KMALLOC_MAX_CACHE_SIZE]
    saved = sum((given - pages) * number for pages, given, number in large)
    if not site.kmalloc or saved < case.limits.saving_bytes:
        return None
    held, number = sum(given * number for _, given, number in large), sum(number for _, _, number in large)
    present, why = (
        f"kmalloc({_sizes(site)}): {_orders(site)}",
        f"of {held:,} bytes in the {number:,} larger than 8 KiB held at the peak, {saved:,} are whole pages behind their end, as kmalloc gives 2^n pages",
    )
    threshold = f"{case.limits.saving_bytes:,} bytes at the peak"
    if _in_kvmalloc(site):
        return Suggestion(
            "whole-pages", "memory", "kvmalloc: " + present, "vmalloc and vfree, for what is held long", why, threshold,
            ("which callers of kvmalloc hold it, and how long: vmalloc costs a page-table entry for each page",), saved, _way(site),
            Way("vmalloc", drop=int(GFP.NORETRY | GFP.NOWARN)), saved,
        )  # fmt: skip
    sleeps = site.may_sleep and not site.dma and _kvfree_fits(site)
    return Suggestion(
        "whole-pages", "memory", present, "alloc_pages_exact and free_pages_exact" + (", or vmalloc and vfree" if sleeps else ""), why, threshold,
        ("whether the size is at hand where the memory is freed, which free_pages_exact needs",), saved, _way(site), Way("alloc_pages"), saved,
    )  # fmt: skip


def cache_padding(case: Case) -> Suggestion | None:
    """A cache whose objects are padded (SLAB_HWCACHE_ALIGN, alignment, a constructor's free pointer, or merged with larger ones)."""
    site, size = case.site, case.site.size
    if site.kmalloc or size is None or not site.hits or site.key == 0:
        return None
    given = site.bytes_alloc // site.hits
    saved = site.peak * (given - align_up(size, MINALIGN))
    if saved < case.limits.saving_bytes or 100 * (given - size) < case.limits.padding_percent * given or given - align_up(size, MINALIGN) <= MINALIGN:
        return None
    return Suggestion(
        "cache-padding", "check", f"{_cache(site)}: {size} bytes in {given}", f"alignment {MINALIGN}, without SLAB_HWCACHE_ALIGN",
        f"{given - size} bytes of each object are padding: {saved:,} bytes at the peak of {_count(site.peak, 'object')}", f"{case.limits.padding_percent:g}% and {case.limits.saving_bytes:,} bytes at the peak",
        ("why it is aligned: two objects in one cache line slow down CPUs that write to both", "whether it is merged with a cache of larger objects"),
        saved, Way("cache", size=given), Way("cache", size=size), saved,
    )  # fmt: skip


def atomic_in_task(case: Case) -> Suggestion | None:
    """GFP_ATOMIC takes from the reserves and fails early; in a task that may sleep there is no reason to."""
    site = case.site
    atomic = [use for use in site.uses if not use.gfp & GFP.DIRECT_RECLAIM and use.gfp & GFP.HIGH and not use.gfp & GFP.MEMALLOC]
    number = sum(use.requests for use in atomic)
    if len(atomic) != len(site.uses) or any(use.context != TASK for use in site.uses) or number < case.limits.atomic_requests:
        return None
    if site.in_task is not None and site.in_task[1]:
        return None  # it is right: something was off
    failed = sum(use.failed for use in atomic)
    where, unknown = "none from an interrupt", "locks held and preemption off: only trace text with its flags says so"
    if site.in_task is not None:
        where, unknown = (
            "with preemption, interrupts and bottom halves on",
            "RCU read sides, in which nothing may sleep either, and callers that did not run here",
        )
    return Suggestion(
        "atomic-in-task", "check", f"{_flags(atomic[0])}, always in a task", "GFP_KERNEL" + (", if no lock is held and preemption is on" if site.in_task is None else ""),
        f"all {number:,} requests came from tasks, {where}; {failed:,} failed. GFP_ATOMIC takes from the last reserves below the minimum watermark, "
        "which interrupts need, and gives up where GFP_KERNEL would reclaim", f"{case.limits.atomic_requests} requests, all in tasks", (unknown,),
        now=_way(site), then=_way(site, add=int(GFP.DIRECT_RECLAIM | GFP.IO | GFP.FS), drop=int(GFP.HIGH | GFP.ATOMIC)), weight=failed or number,
    )  # fmt: skip


def gfp_dma(case: Case) -> Suggestion | None:
    """ZONE_DMA is 16 MiB, for devices with 24 address bits."""
    site = case.site
    if not site.uses or not all(use.gfp & GFP.DMA for use in site.uses):
        return None
    return Suggestion(
        "gfp-dma", "check", f"GFP_DMA for {_sizes(site)} bytes", "dma_alloc_coherent or dma_map_single with the device's mask; without a device, no GFP_DMA",
        f"all {_requests(site)} ask for the 16 MiB of ZONE_DMA; {site.peak_bytes:,} bytes are held at once, {site.failed:,} failed", "any such request",
        ("whether a device with 24 address bits needs it",), now=_way(site), then=_way(site, drop=int(GFP.DMA)), weight=site.peak_bytes,
    )  # fmt: skip


def account(case: Case) -> Suggestion | None:
    """Memory that tasks can make the kernel hold, and that no memory cgroup is charged for."""
    site = case.site
    if site.name.partition("+")[0] in SLAB_INTERNAL:
        return None
    if any(use.gfp & GFP.ACCOUNT or use.context != TASK for use in site.uses) or site.peak_bytes < case.limits.account_bytes or not site.kmalloc:
        return None
    return Suggestion(
        "account", "check", _flags(site.uses[0]), "__GFP_ACCOUNT (GFP_KERNEL_ACCOUNT), if it belongs to who asked for it",
        f"{site.pids:,} tasks made it hold {site.peak_bytes:,} bytes at once, {site.live_bytes:,} at the end, which no memory cgroup is charged for",
        f"{case.limits.account_bytes:,} bytes held, all asked for by tasks", ("whose memory it is", "caches with SLAB_ACCOUNT: their requests do not show it"), weight=site.peak_bytes,
    )  # fmt: skip


RULES: dict[str, Rule] = {
    "sleep-in-atomic": sleep_in_atomic, "wrong-zone": wrong_zone, "nofail-order": nofail_order, "too-large": too_large, "kvmalloc": kvmalloc,
    "high-order-atomic": high_order_atomic, "mempool": mempool, "nowarn": nowarn, "own-cache": own_cache, "whole-pages": whole_pages, "cache-padding": cache_padding,
    "atomic-in-task": atomic_in_task, "gfp-dma": gfp_dma, "account": account,
}  # fmt: skip
"""By name, in the order in which they are asked."""


def verdict(case: Case) -> str:
    """Why nothing else is suggested for a site's memory, with the numbers."""
    site, limits = case.site, case.limits
    if not site.hits:
        return "no successful request"
    waste = sum((given - size) * number for size, given, number in case.held)
    held = sum(given * number for _, given, number in case.held)
    lost = f"{waste:,} of {held:,} bytes unused at its peak of {_count(site.peak, 'object')}"
    if waste < limits.saving_bytes:
        return f"right: {lost}, less than {_page(limits.saving_bytes)}"
    if not site.kmalloc:
        return f"right: {lost}; it has a cache of its own" if site.cache else f"right: {lost}; a cache"
    if site.size is None:
        return f"{lost}; {len(site.sizes):,} sizes ({_sizes(site)}), so no single cache fits; see the size classes"
    if site.peak < limits.cache_objects:
        return f"right: {lost}; a cache of its own is for {limits.cache_objects} objects or more"
    return f"right: {lost}; a cache of its own would not save {_page(limits.saving_bytes)}"


def cache_flags(kind: int) -> int:
    """SLAB_* flags of a cache that stands in for one of kmalloc's types."""
    return {KMALLOC_NORMAL: 0, KMALLOC_CGROUP: SLAB_ACCOUNT, KMALLOC_RECLAIM: SLAB_RECLAIM_ACCOUNT, KMALLOC_DMA: SLAB_CACHE_DMA}[kind]


def _page(size: int) -> str:
    return "a page" if size == PAGE_SIZE else f"{size:,} bytes"


def _way(site: Site, add: int = 0, drop: int = 0) -> Way:
    if site.kmalloc:
        return Way("kmalloc", add=add, drop=drop)
    return Way("cache", size=site.bytes_alloc // site.hits if site.hits else max(site.sizes, default=MINALIGN), add=add, drop=drop)


def _flags(use: Use) -> str:
    return gfp_names(use.gfp)


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' if number != 1 else ''}"


def _requests(site: Site) -> str:
    return _count(sum(use.requests for use in site.uses), "request")


def _sizes(site: Site) -> str:
    if not site.sizes:
        return f"{site.largest_failed:,}"
    least, most = min(site.sizes), max(site.sizes)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _orders(site: Site) -> str:
    least, most = get_order(min(site.sizes)), get_order(max(site.sizes))
    return f"order {least}" if least == most else f"orders {least} to {most}"


def _cache(site: Site) -> str:
    return next(iter(site.cache), "its cache")


def _cache_name(site: Site) -> str:
    name = site.name.partition("+")[0]
    return name if name.replace("_", "").replace(".", "").isalnum() and not name.startswith("0x") else "its_own"


def _in_kvmalloc(site: Site) -> bool:
    """Whether these are kvmalloc's own attempts, for which vmalloc stands in when they fail (``kvmalloc_node``, mm/util.c)."""
    return site.name.startswith(("kvmalloc", "__kvmalloc")) or bool(
        site.gfp & GFP.NORETRY and site.gfp & GFP.NOWARN and max(site.sizes, default=0) > KMALLOC_MAX_CACHE_SIZE
    )


def _kvfree_fits(site: Site) -> bool:
    """What is known of the frees: all by kfree, none in a hard interrupt (vfree there is put off, and must not be in an NMI)."""
    return all(kind in ("kfree", "slab_bulk_object") for kind in site.freed_by) and not any(context >= 2 for context in site.freed_in)


def _unknown_kvmalloc(site: Site) -> tuple[str, ...]:
    unseen = site.hits - site.freed
    frees = (f"how {unseen:,} objects are freed: their frees are not in the trace, and all must be kvfree",) if unseen else ()
    return ("whether the memory must be one piece for a device", *frees)
