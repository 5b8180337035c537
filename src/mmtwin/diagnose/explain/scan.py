"""Finds the few places of a long log that are worth reading: every kind of report has a phrase that nothing else has.

Looking for a fixed string costs some 0.5 ns a byte, parsing a line some 3 us. So a log is searched first, and only what lies around the hits is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

ANCHORS: dict[bytes, tuple[tuple[bytes, ...], tuple[bytes, ...]]] = {
    b" allocation ": ((b"page", b"vmap", b"vmalloc:", b"percpu:"), (b"fail", b"stalls", b"for size")), b"vmalloc_node_r": ((), (b"ange for",)), b"oom-kill": ((), (b"er:", b":")),
    b"ut of Memory": ((b"O",), (b": Kill",)), b"ut of memory": ((b"O", b"o"), (b":", b" and no", b" (oom")), b"Unable to allocate": ((b"SLUB: ", b"SLAB: "), ()), b"B min:": ((), ()), b"B boost:": ((), ()), b"PFNs busy": ((), ()), b"-order alloc": ((), (b"ation failed",)), b"Mem-": ((), (b"Info:", b"info:")),
    b"vmalloc error: size": ((), ()), b"sleeping function": ((), (b" called",)), b"scheduling while": ((), (b" atomic",)), b"KASAN: ": ((), (b"null-ptr", b"prob", b"maybe", b"user-", b"wild-")), b"zone overwritten": ((), ()), b"oison overwritten": ((), ()), b"adding overwritten": ((), ()),
    b"bject already free": ((), ()), b"BUG: K": ((), (b"ASAN", b"FENCE", b"MSAN")),
    b"DMA-API: ": ((), ()), b"mm/": ((b"at ", b"linux/", b"kernel/", b"/"), (b"page_alloc.", b"slub.", b"slab", b"util.c", b"vmalloc.", b"usercopy.", b"percpu.")),
    b"swiotlb buffer is": ((), (b" full",)), b"SW-IOMMU space": ((), ()), b"cma_alloc: ": ((), ()), b"result of limit": ((b"as a ",), ()), b"FAULT_INJ": ((), (b"ECTION: forc",)),
    b"ainted): ": ((), ()), b"slab error in": ((), ()), b"Slab corruption": ((), ()), b"of DMA mask": ((), ()), b"DMA map of vm": ((), ()), b"usercopy: ": ((), ()),
}  # fmt: skip
"""Short strings, one of which is in every report's first line, and what must stand right before or behind it."""
SLUB_DEBUG = re.compile(rb"BUG \S+[^\n]{0,160}ainted\): ")

WHOLE = 256 << 10
"""A log up to so many bytes is read as a whole."""
BEFORE, AFTER = 6_000, 60_000
"""What is read around a hit: names of a wrapped line and the kernel's messages before it; a report with its stack, memory and task table."""
MOST = 1 << 20
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
    """Where a report begins, as far as its first words tell; not in order."""
    for anchor, (before, after) in ANCHORS.items():
        at, length = data.find(anchor), len(anchor)
        while at >= 0:
            if (not before or data.endswith(before, max(0, at - 16), at)) and (not after or data.startswith(after, at + length)):
                if anchor != b"ainted): " or SLUB_DEBUG.search(data, max(0, at - 200), at + length):
                    yield at
            at = data.find(anchor, at + length)


def find(data: bytes) -> Found:
    """The stretches worth reading."""
    if len(data) <= WHOLE:
        return Found([Window(data, 0)] if data else [], 0)
    spans: list[list[int]] = []
    unread = total = 0
    for at in sorted(hits(data)):
        if spans and at < spans[-1][1] - AFTER // 4:
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
