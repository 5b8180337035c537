"""Finds the few places of a long log that are worth reading: every kind of report has a phrase that nothing else has.

Looking for a fixed string costs some 0.5 ns a byte, parsing a line some 3 us. So a log is searched first, and only what lies around the hits is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

ANCHORS = (
    b" allocation ", b"vmalloc_node_r", b"oom-kill", b"ut of memory", b"Unable to allocate", b"Mem-", b"vmalloc error", b"sleeping function", b"scheduling while", b"BUG: K",
    b"DMA-API", b"at mm/", b" overwritten", b"swiotlb", b"SW-IOMMU", b"cma: ", b"result of limit", b"FAULT_INJ", b"ainted): ", b"slab error in", b"Slab corruption",
    b"DMA ma", b"usercopy: ",
)  # fmt: skip
"""Short strings, one of which is in every report's first line."""

PHRASES = re.compile(
    rb"page\s+allocation\s+(?:failure|stalls)|oom-killer|oom-kill:|Out of memory|out of memory: Kill|[Mm]emory cgroup out of memory|SL[AU]B: Unable to allocate"
    rb"|Mem-[Ii]nfo:|vmap allocation for size|vmalloc_node_range for size|vmalloc: allocation fail|vmalloc error|sleeping function called|scheduling while atomic|BUG: K(?:ASAN|FENCE|CSAN)"
    rb"|DMA-API:|(?:WARNING:|BUG|BUG:)[^\n]{0,60}\bat (?:[\w./-]*/)?mm/(?:page_alloc|slub|slab|slab_common|util|vmalloc|usercopy)\.c|[Rr]edzone overwritten|[Pp]oison overwritten"
    rb"|adding overwritten|swiotlb buffer is full|SW-IOMMU space|swiotlb: |cma: (?:cma_alloc|__cma_alloc|number of available)|killed as a result of limit"
    rb"|FAULT_INJECTION: forc|BUG \S+ [^\n]{0,40}ainted[^\n)]{0,60}\): |slab error in|Slab corruption|percpu: allocation failed|of DMA mask|DMA map of|usercopy: "
)
"""What makes a line with an anchor the start of a report, or part of one."""

WHOLE = 256 << 10
"""A log up to so many bytes is read as a whole."""
BEFORE, AFTER = 6_000, 60_000
"""What is read around a hit: names of a wrapped line and the kernel's messages before it; a report with its stack, memory and task table."""
MOST = 8 << 20
"""So much is read in detail at most; the rest of the hits is counted."""


class Window(NamedTuple):
    """A stretch of the log: its bytes, and how many line ends were before it."""

    data: bytes
    lines_before: int


class Found(NamedTuple):
    """What to read.

    :ivar windows: stretches around the hits, in order.
    :ivar unread: hits that are in none of them.
    """

    windows: list[Window]
    unread: int


def hits(data: bytes) -> Iterator[int]:
    """Where a report's phrase is; not in order."""
    for anchor in ANCHORS:
        at = data.find(anchor)
        while at >= 0:
            start = max(data.rfind(b"\n", max(0, at - 300), at) + 1, at - 300, 0)
            if PHRASES.search(data, start, at + 120):
                yield at
            at = data.find(anchor, at + len(anchor))


def find(data: bytes) -> Found:
    """The stretches worth reading."""
    if len(data) <= WHOLE:
        return Found([Window(data, 0)] if data else [], 0)
    spans: list[list[int]] = []
    unread = total = 0
    for at in sorted(hits(data)):
        if spans and at < spans[-1][1] - AFTER // 4 and not unread:
            continue
        start, end = max(0, at - BEFORE), min(len(data), at + AFTER)
        if total > MOST:
            unread += 1
            continue
        if spans and start <= spans[-1][1]:
            total += end - spans[-1][1]
            spans[-1][1] = end
        else:
            total += end - start
            spans.append([start, end])
    windows, lines, counted = [], 0, 0
    for start, end in spans:
        start = data.rfind(b"\n", 0, start) + 1 if start else 0
        lines += data.count(b"\n", counted, start)
        counted = start
        windows.append(Window(data[start:end], lines))
    return Found(windows, unread)
