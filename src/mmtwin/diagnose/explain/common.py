"""What several readers need: the request line, the process, the words for it."""

from __future__ import annotations

import re

from mmtwin.diagnose.explain.log_gfp import Flags, decode
from mmtwin.diagnose.explain.model import Request, Segment, size

WHO = re.compile(r"CPU:\s*(\d+)\s+(?:UID:\s*\d+\s+)?PID:\s*(\d+)|\b[Pp]id:\s*(\d+),\s*(?:comm|name):")
CPU = re.compile(r"CPU:\s*(\d+)\s+(?:UID:\s*\d+\s+)?PID:\s*(\d+)")
MODE = re.compile(r"(?:mode:|gfp_mask=|gfp=)\s*(0x[0-9a-fA-F]{1,16}|0x[0-9a-fA-F]*\*+)\s*(?:\(([\w|\s]{0,400}?)\))?(?=[\s,)/]|$|order)")
"""Some services put asterisks for digits; the names must do then."""
MOST_ORDER = 60
SEVERAL_PAGE_SIZES = re.compile(
    r"\bCall trace:|aarch64|arm64|\bel[01]t?_\w+\+0x|powerpc|ppc64|\[c0000000[0-9a-f]{8}\]|\bNIP\b|\[<?a00000010[0-9a-f]{7}>?\]|ia64_\w+\+|\bTPC:|sparc64|loongarch|mips64"
)
"""What only reports of architectures have that can be built with other pages than of 4 kB."""


def flags_of(segment: Segment, text: str | None = None) -> Flags | None:
    """The flags in a report's first lines; None if they are not there."""
    match = MODE.search((segment.said if text is None else text)[:4000])
    if match is None:
        return None
    value = -1 if "*" in match[1] else int(match[1], 16) & 0xFFFFFFFFFFFF
    return decode(value, re.sub(r"\s+", "", match[2] or ""), segment.kernel.version, segment.kernel.known)


NOMMU = re.compile(r"\bAllocation\s+of\s+length\s+(\d{1,15})\s+from\s+process\s+\d+|-nommu\b")
"""Only mm/nommu.c says so; some machines are named after it."""


def request_of(segment: Segment, page_kb: int, order: int | None, flags: Flags | None, page_known: bool = False) -> Request:
    """Who asked for what.

    :param page_known: the log shows that pages are of `page_kb`.
    """
    head = segment.text[:3000]
    who = WHO.search(segment.own[:8000])
    if who and not who[1] and (named := CPU.search(segment.own[:8000])) and named[2] == who[3]:
        who = named  # "in_atomic(): 0, pid: 801, name: sh" comes before the line that has the CPU
    nodes = re.search(r"nodemask=\s*(\(null\)|[\d,-]+?)(?=[,\s]*(?:cpuset|order|oom_score|mems|global|task|$|\s))", head)
    cpuset = re.search(r"cpuset=\s*([^\s,]+)", head)
    mems = re.search(r"mems_allowed=\s*([\d,-]*\d)", segment.text)
    if order is not None and not 0 <= order <= MOST_ORDER:
        order = None
    stack, nommu = segment.stack, NOMMU.search(segment.text)
    known = stack.allocates or segment.kind not in ("page", "oom")
    return Request(
        segment.comm, int(who[2] or who[3]) if who else None, int(who[1]) if who and who[1] else None, order, (page_kb * 1024) << order if order is not None else None,
        int(nommu[1]) if nommu and nommu[1] else None, flags,
        nodes=nodes[1] if nodes else "", cpuset=cpuset[1] if cpuset else "", mems_allowed=mems[1] if mems else "", place=stack.place, caller=stack.caller if known else "",
        module=stack.module if known else "", path=stack.path if known else (), page_known=page_known or SEVERAL_PAGE_SIZES.search(segment.text[:20_000]) is None,
        by_kmalloc=known and any("kmalloc" in name or "alloc_trace" in name for name in stack.inner), by_cache=known and any("kmem_cache_alloc" in name for name in stack.inner),
        by_slub=known and any(re.match(r"_*new_slab|_*slab_alloc|allocate_slab", name) for name in stack.inner),
        for_device=known and any("dma" in name or "coherent" in name for name in stack.inner), no_mmu=nommu is not None,
    )  # fmt: skip


def where(place: str) -> str:
    """ "in a softirq", "at kernel start"."""
    if place == "kernel start":
        return "at kernel start"
    return f"in {'an' if place[:1] in 'aeiou' else 'a'} {place}"


def name_of(request: Request, first: bool = False) -> str:
    """The process, for sentences; `first` in them."""
    return request.comm or ("A process" if first else "a process")


def asked(request: Request) -> str:
    """ "64 KiB in one piece (order 4, GFP_KERNEL)"."""
    flags = f", {'no flags' if request.flags.names == 'none' else request.flags.names}" if request.flags is not None and request.flags.value >= 0 else ""
    if request.order is None or request.bytes is None:
        return f"memory (the order is not in the log{flags})"
    piece = " in one piece" if request.order else ""
    if not request.page_known:
        return f"{1 << request.order} page{'s' * (request.order > 0)}{piece} (order {request.order}{flags}; {size(request.bytes)} if a page has {size(request.bytes >> request.order)})"
    return f"{size(request.bytes)}{piece} (order {request.order}{flags})"
