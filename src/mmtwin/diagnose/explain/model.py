"""What a report says, and what follows from it: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmtwin.diagnose.explain.kernel_version import Kernel
from mmtwin.diagnose.explain.log_gfp import Flags
from mmtwin.diagnose.explain.stack import NONE, Stack
from mmtwin.diagnose.explain.zone_rules import ZoneVerdict

DECIDED, PROBABLE, UNDECIDED = "decided", "probable", "undecided"

VERDICTS = {
    "served": "nothing refuses it: a zone is above its watermark and has a block that fits (only of recordings, --at)",
    "no_block": "no free block of the order: free memory is in smaller pieces",
    "watermark": "too few free pages: the zone is at its watermark",
    "lowmem_reserve": "the zone's free pages are kept for requests that can use no other zone",
    "per_order_watermark": "blocks exist, but kernels up to 4.3 also want many pages free in the higher orders",
    "cma_only": "the only fitting blocks are in CMA, which this request may not use",
    "highatomic_only": "the only fitting blocks are in the reserve for atomic requests",
    "isolated_only": "the only fitting blocks are being taken away (isolated)",
    "really_empty": "no free page at all in any zone the request may use",
    "zone_eligibility": "no zone that the request may use: zone, cpuset or node restrict it",
    "not_shown": "the dump no longer shows a refusal: memory was freed in between, or something else refused",
    "evidence_missing": "the log does not hold what a verdict needs",
    "memcg_limit": "the control group's limit, not the machine's memory",
    "vmalloc_address_space": "no free range of kernel addresses large enough; physical memory does not matter",
    "vmalloc_too_large": "a vmalloc of more than all memory, or of nothing",
    "vmalloc_pages": "vmalloc got addresses, but not all page frames",
    "order_too_large": "larger than the largest piece the allocator has: it can never succeed",
    "allocator_warning": "an allocator warns about how it was called, or about its own data",
    "slab_refused": "a slab cache got no page; which rule refused is not in the log",
    "percpu_space": "the per-CPU allocator's chunks are full",
    "fault_injection": "refused on purpose: fault injection is on",
    "manual_oom": "somebody asked for the OOM killer (SysRq f)",
    "stalled": "nothing was refused: the request waits for memory for a long time",
    "use_after_free": "memory was used after it was freed",
    "out_of_bounds": "memory next to an object was read or written",
    "double_free": "something was freed twice",
    "invalid_free": "something was freed that is no object",
    "corruption": "the slab allocator's own data was overwritten",
    "objects_remaining": "a cache was destroyed that still has objects",
    "uninitialised": "memory was read that nobody had written",
    "null_pointer": "an access through a null or wild pointer",
    "sleeping_in_atomic": "a function that may sleep was called where sleeping is forbidden",
    "dma_from_stack": "a buffer on the kernel stack was given to a device",
    "dma_vmalloc": "a vmalloc address was given to a device",
    "dma_misuse": "the DMA interface was used wrongly",
    "dma_mask": "the device cannot reach this address",
    "swiotlb_full": "the bounce buffers are used up, or the request is larger than one can be",
    "cma_failed": "the contiguous memory area could not give the pages",
}
"""Every verdict's code and meaning."""


@dataclass(frozen=True)
class Segment:
    """One report's piece of the log.

    :ivar kind: which reader is for it.
    :ivar head: the match's text; `text` runs from there to the next report.
    :ivar before: what stands before it.
    :ivar after: what the next reports print, where dumps are in one another.
    :ivar turn: of doubled zones, which belong to this one.
    :ivar crash: where in the text the kernel's crash begins; None if it did not crash.
    """

    kind: str
    line: int
    seconds: float | None
    head: str
    text: str
    before: str
    kernel: Kernel
    stack: Stack
    comm: str = ""
    after: str = ""
    turn: int = 0
    interleaved: bool = False
    crash: int | None = None

    @property
    def own(self) -> str:
        """The report without a crash that follows it, which has a process and a stack of its own."""
        return self.text[: self.crash]

    @property
    def all(self) -> str:
        """The report with what others printed into it."""
        return self.text + ("\n" + self.after if self.after else "")

    @property
    def said(self) -> str:
        """The report without the process's name before its first words, which may be anything."""
        return self.text[max(0, self.text.find(self.head)) :]


@dataclass(frozen=True)
class Request:
    """What was asked for; None and "" where the log does not say.

    :ivar bytes: of the blocks asked for; `asked_bytes` what the caller wanted, where known.
    :ivar highest_zone: the highest zone it may use, and `zones` all of them, in the order of the kernel's search.
    :ivar place: "softirq", "system call", ...
    :ivar by_kmalloc: it came by way of kmalloc; `by_cache` by way of a slab cache of its own kind, `by_slub` one of SLUB's.
    :ivar for_device: it came by way of the DMA interface, so it has to be contiguous.
    :ivar no_mmu: the machine has no MMU: nothing can join pages.
    :ivar page_known: whether the size of a page is certain; if not, `bytes` is for pages of 4 kB.
    """

    comm: str = ""
    pid: int | None = None
    cpu: int | None = None
    order: int | None = None
    bytes: int | None = None
    asked_bytes: int | None = None
    flags: Flags | None = None
    highest_zone: str = ""
    zones: tuple[str, ...] = ()
    nodes: str = ""
    cpuset: str = ""
    mems_allowed: str = ""
    place: str = ""
    caller: str = ""
    module: str = ""
    path: tuple[str, ...] = ()
    page_known: bool = True
    by_kmalloc: bool = False
    by_cache: bool = False
    by_slub: bool = False
    for_device: bool = False
    no_mmu: bool = False

    @property
    def may_sleep(self) -> bool | None:
        """Whether it may wait for memory."""
        return None if self.flags is None or self.flags.value < 0 else "DIRECT_RECLAIM" in self.flags

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        flags = self.flags
        return {
            "comm": self.comm, "pid": self.pid, "cpu": self.cpu, "order": self.order, "bytes": self.bytes, "asked_bytes": self.asked_bytes,
            "gfp": flags.value if flags and flags.value >= 0 else None, "gfp_names": flags.names if flags else "", "gfp_printed": flags.printed if flags else "",
            "gfp_version": flags.era if flags else "", "gfp_agrees": flags.agree if flags else None, "gfp_note": flags.note if flags else "",
            "flags": sorted(flags.flags) if flags else [], "may_sleep": self.may_sleep, "highest_zone": self.highest_zone, "zones": list(self.zones), "nodemask": self.nodes,
            "cpuset": self.cpuset, "mems_allowed": self.mems_allowed, "context": self.place, "caller": self.caller, "module": self.module, "path": list(self.path),
            "page_size_known": self.page_known,
        }  # fmt: skip


@dataclass(frozen=True)
class Remedy:
    """Something to do.

    :ivar who: "caller" (the code that asks), "admin" (settings of this machine), "kernel" (another version or configuration), "look" (what to find out first).
    :ivar changes: what it would change, with numbers where the log has them.
    """

    who: str
    what: str
    changes: str


@dataclass(frozen=True)
class Verdict:
    """Why.

    :ivar code: one of `VERDICTS`.
    :ivar certainty: "decided", "probable" or "undecided".
    :ivar headline: the answer in a sentence or two.
    :ivar why: more sentences.
    :ivar missing: what the log does not hold or cannot decide.
    :ivar details: numbers of this kind of report, for JSON.
    """

    code: str
    certainty: str
    headline: str
    why: tuple[str, ...] = ()
    zones: tuple[ZoneVerdict, ...] = ()
    missing: tuple[str, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """One report, read and judged."""

    kind: str
    title: str
    line: int
    seconds: float | None
    kernel: Kernel
    request: Request | None
    verdict: Verdict
    page_kb: int = 4
    repeated: int = 1
    lines: tuple[int, ...] = ()
    stack: Stack = field(default=NONE, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        v = self.verdict
        return {
            "kind": self.kind, "title": self.title, "line": self.line, "seconds": self.seconds, "repeated": self.repeated, "lines": list(self.lines or (self.line,)),
            "kernel": self.kernel.release, "kernel_assumed": ".".join(map(str, self.kernel.version)), "verdict": v.code, "meaning": VERDICTS[v.code],
            "certainty": v.certainty, "headline": v.headline, "why": list(v.why), "request": self.request.to_dict() if self.request else None,
            "page_kb": self.page_kb, "zones": [zone_dict(zone) for zone in v.zones], "missing": list(v.missing),
            "remedies": [{"rank": rank, "who": r.who, "what": r.what, "changes": r.changes} for rank, r in enumerate(v.remedies, 1)], "details": v.details,
        }  # fmt: skip


def zone_dict(z: ZoneVerdict) -> dict[str, Any]:
    """A zone's arithmetic, in pages where a name does not say otherwise."""
    return {
        "node": z.zone.node, "zone": z.zone.name, "eligible": z.eligible, "why_not": z.why_not, "rule": z.rule, "free": z.free, "other_pages_of_request": z.order_pages,
        "free_cma": z.cma, "highatomic": z.highatomic, "usable": z.usable, "min": z.mark, "min_for_request": z.least, "low": z.low, "high": z.high, "boost": z.boost,
        "lowmem_reserve": z.reserve, "margin": z.margin, "margin_without_boost": z.unboosted_margin, "blocks_large_enough": z.fitting, "block_types": z.fitting_types,
        "block_usable": z.usable_blocks, "largest_usable_block_kb": z.largest_kb, "counter_and_list_differ_by": z.drift,
        "free_blocks": [[b.kb, b.count, b.types] for b in z.zone.blocks] if z.zone.blocks is not None else None, "steps": list(z.steps), "missing": list(z.missing),
    }  # fmt: skip


MOST_BYTES = 1 << 100
"""A larger number is damage, and would not fit into a float."""


def size(count: int) -> str:
    """Bytes for people: 64 KiB, 5.5 MiB."""
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << shift:
            value = min(count, MOST_BYTES) / (1 << shift)
            return f"{value:.0f} {unit}" if value == int(value) or value >= 100 else f"{value:.1f} {unit}"
    return f"{count} bytes"
