"""Finds the few places of a long log that are worth reading: every kind of report has a phrase that nothing else has.

All phrases are looked for at once: whatever has seven bytes has, wherever it lies, four that begin at a multiple of four. So the four words that can be those are put into a table of hashes for
each phrase, and every fourth byte of the log is looked up in it (numpy, about 1 ns a byte).
Parsing costs some hundred times as much, so of a log with many reports only some are read: the first of each sort, told apart by the first line without its digits,
and then as many as the budget allows, in order. The rest is counted; of a kind with very many, by its words alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Anchor(NamedTuple):
    """A short string that is in the first line of every report of a kind.

    :ivar key: where in it the seven bytes begin that are looked for; better such as are rare.
    :ivar before: what must stand right before it, and `after` behind it; empty for anything.
    :ivar head: whether it begins a report; the others are further lines of most reports, and begin those whose head is not in the log.
    """

    kind: str
    text: bytes
    key: int = 0
    before: tuple[bytes, ...] = ()
    after: tuple[bytes, ...] = ()
    head: bool = True


SOURCE = (b"at ", b"linux/", b"kernel/", b"/", b"WARNING: ")
ANCHORS = (
    Anchor("page", b"page allocation ", 1, (), (b"fail", b"stalls")), Anchor("page", b"page alloction stalls", 6), Anchor("page", b"-order allocation failed", 3), Anchor("vmalloc", b"vmap allocation ", 1, (), (b"for size",)),
    Anchor("vmalloc", b"vmalloc: allocation fail", 5), Anchor("vmalloc", b"vmalloc_node_range for", 15), Anchor("vmalloc", b"vmalloc error: size", 11),
    Anchor("percpu", b"percpu: allocation fail", 4), Anchor("oom", b"oom-killer:"), Anchor("oom", b"oom-kill:", head=False), Anchor("oom", b"ut of memory", 4, (b"O", b"o"), (b":", b" and no", b" (oom"), False),
    Anchor("oom", b"ut of Memory: Kill", 9, head=False), Anchor("oom", b"result of limit", 7, (b"as a ",), head=False), Anchor("slab", b"Unable to allocate", 5, (b"SLUB: ", b"SLAB: ")),
    Anchor("memory", b"Mem-Info:", 2, head=False), Anchor("memory", b"Mem-info:", 2, head=False), Anchor("memory", b"kB min:", head=False), Anchor("memory", b"B boost:", 1, head=False),
    Anchor("cma", b"PFNs busy"), Anchor("cma", b"cma_alloc: "), Anchor("sleeping", b"sleeping function called", 6), Anchor("sleeping", b"scheduling while atomic", 8),
    Anchor("misuse", b"BUG: KASAN", 2), Anchor("misuse", b"BUG: KASan", 2), Anchor("misuse", b"BUG: KFENCE", 2), Anchor("misuse", b"BUG: KMSAN", 2), Anchor("misuse", b"KASAN: ", 0, (), (b"null-ptr", b"prob", b"maybe", b"user-", b"wild-"), False),
    Anchor("misuse", b" overwritten", 1, (b"zone", b"oison", b"adding")), Anchor("misuse", b"bject already free", 3), Anchor("misuse", b"slab error in", 1),
    Anchor("misuse", b"Slab corruption"), Anchor("misuse", b"usercopy: ", 3), Anchor("misuse", b"usercopy whitelist?", 5), Anchor("warning", b"mm/page_alloc.", 0, SOURCE), Anchor("warning", b"mm/slub.", 0, SOURCE), Anchor("warning", b"mm/slab", 0, SOURCE),
    Anchor("warning", b"mm/util.c", 0, SOURCE), Anchor("warning", b"mm/vmalloc.", 0, SOURCE), Anchor("warning", b"mm/usercopy.", 0, SOURCE), Anchor("warning", b"mm/percpu.", 0, SOURCE),
    Anchor("dma", b"DMA-API: ", 2), Anchor("dma", b"swiotlb buffer is", 6, (), (b" full",)), Anchor("dma", b"swiotlb addr", 5), Anchor("dma", b"SW-IOMMU space"), Anchor("dma", b"of DMA mask", 1), Anchor("dma", b"DMA map of vm", 2),
    Anchor("fault", b"FAULT_INJECTION: forc", 4), Anchor("stalled", b"memory allocation deadlock", 18, (b"ossible ",)),
)  # fmt: skip
SLUB_BUG = Anchor("misuse", b"BUG ")
"""Too short for the table; `SLUB_DEBUG` says what follows."""
SLUB_DEBUG = re.compile(rb"BUG (?!:)\S+[^\n]{0,120}?[Tt]ainted(?::[^)\n]{0,120})?\): ")
NUMBERS = b"0123456789abcdefABCDEF"

WHOLE = 256 << 10
"""A log up to so many bytes is read as a whole."""
BEFORE, AFTER = 6_000, 60_000
"""What is read around a report's first words: names of a wrapped line and the kernel's messages before it; the report with its stack, memory and task table."""
NEAR = 20_000
"""Bytes: further lines of a report are not further behind its head."""
BURST, TOGETHER = 3_000, 64
"""Reports that begin so many bytes from each other may be in one another (of several CPUs), and so many are read together at most."""
LONG = 8 << 20
MOST, PART_OF_LONG = 1 << 20, 128
"""So many bytes are read in detail at most; of logs from LONG on one in PART_OF_LONG, but WHOLE at least: so that they take a fiftieth of a second for each MB."""
LEAST = 1_000
"""Bytes that a report counts as in this, however short: its first words alone take as long to look at."""
MANY = 20_000
"""Of one anchor's reports so many are told apart; further ones are only counted."""
LONGEST = 8_000
"""Bytes: a line is not longer; what looks so has no line ends."""
CHUNK = 1 << 20
FACTOR, SHIFT = 2654435761, 18


class Window(NamedTuple):
    """A stretch of the log.

    :ivar data: its bytes.
    :ivar lines_before: line ends before it.
    :ivar first_line: reports that begin before this line belong to another stretch, or are not read; 0 if there are none.
    """

    data: bytes
    lines_before: int
    first_line: int = 0


class Found(NamedTuple):
    """What to read.

    :ivar windows: stretches around the reports chosen, in order.
    :ivar unread: reports, as far as their first words tell, that are in none of them, by kind.
    """

    windows: list[Window]
    unread: dict[str, int]


class _Keys:
    """The words of each anchor that are looked for, as a table of hashes."""

    def __init__(self, anchors: list[Anchor]) -> None:
        import numpy as np

        self.by_key: dict[bytes, list[tuple[Anchor, int]]] = {}
        for anchor in anchors:
            for at in range(anchor.key, anchor.key + 4):
                self.by_key.setdefault(anchor.text[at : at + 4], []).append((anchor, at))
        self.keys: NDArray[np.uint32] = np.array(sorted(int.from_bytes(key, "little") for key in self.by_key), "<u4")
        self.table: NDArray[np.bool_] = np.zeros(1 << (32 - SHIFT), np.bool_)
        self.table[(self.keys * np.uint32(FACTOR)) >> np.uint32(SHIFT)] = True

    def places(self, data: bytes, start: int) -> list[int]:
        """Where one of them is, in the chunk that begins at `start`, a multiple of four."""
        import numpy as np

        if not self.by_key:
            return []
        words = np.frombuffer(data, "<u4", min(CHUNK, len(data) - start) // 4, start)
        hashes = words * np.uint32(FACTOR)
        hashes >>= np.uint32(SHIFT)
        at = np.flatnonzero(self.table[hashes])
        at = at[self.keys[np.searchsorted(self.keys[:-1], words[at])] == words[at]]
        places: list[int] = (at * 4 + start).tolist()
        return places


def hits(data: bytes) -> tuple[list[tuple[int, Anchor]], Counter[str]]:
    """Where a report begins or goes on, as far as the words tell, in order; and how many more there are, by kind, of which there are too many to tell them apart."""
    left = list(ANCHORS)
    keys = _Keys(left)
    found = list(_slub_bugs(data))
    numbers: Counter[Anchor] = Counter()
    more: Counter[str] = Counter()
    for chunk in range(0, len(data), CHUNK):
        for place in keys.places(data, chunk):
            for anchor, key in keys.by_key[data[place : place + 4]]:
                start = place - key
                if (
                    start >= 0
                    and data.startswith(anchor.text, start)
                    and (not anchor.before or data.endswith(anchor.before, max(0, start - 16), start))
                    and (not anchor.after or data.startswith(anchor.after, start + len(anchor.text)))
                ):
                    found.append((start, anchor))
                    numbers[anchor] += 1
        full = [anchor for anchor in left if numbers[anchor] >= MANY]
        if full:
            for anchor in full:
                if anchor.head:
                    more[anchor.kind] += data.count(anchor.text, chunk + CHUNK)
            left = [anchor for anchor in left if anchor.head and anchor not in full]  # a further line could no longer be told from a first one
            keys = _Keys(left)
    return sorted(found, key=lambda hit: hit[0]), more


def _slub_bugs(data: bytes) -> Iterator[tuple[int, Anchor]]:
    """Where SLUB reports a bug; of the first words of `MANY` that may be such reports."""
    at = -1
    for _ in range(MANY):
        at = data.find(SLUB_BUG.text, at + 1)
        if at < 0:
            break
        if SLUB_DEBUG.match(data, at):
            yield at, SLUB_BUG


def find(data: bytes) -> Found:
    """The stretches worth reading."""
    if len(data) <= WHOLE:
        return Found([Window(data, 0)] if data else [], {})
    begins: list[tuple[int, Anchor]] = []
    last = -NEAR
    found, more = hits(data)
    for at, anchor in found:
        if anchor.head or at - last >= NEAR:
            begins.append((at, anchor))
            last = at
    starts = [_line_start(data, at) for at, _ in begins]
    chosen, unread = _choose(data, begins, starts)
    return Found(list(_windows(data, starts, chosen)), dict(unread + more))


def _line_start(data: bytes, at: int) -> int:
    """Where the line begins, or what stands for it in data without line ends."""
    lowest = max(0, at - LONGEST)
    end = data.rfind(b"\n", lowest, at)
    return lowest if end < 0 else end + 1


def _end(data: bytes, starts: list[int], n: int) -> int:
    """Where the text of a report ends: at the next one, or before."""
    return min(starts[n + 1] if n + 1 < len(starts) else len(data), starts[n] + AFTER)


def _choose(data: bytes, begins: list[tuple[int, Anchor]], starts: list[int]) -> tuple[list[int], Counter[str]]:
    """Numbers of the reports to read, in order, and what is left, by kind."""
    left = MOST if len(data) < LONG else min(MOST, max(WHOLE, len(data) // PART_OF_LONG))
    firsts: dict[tuple[str, bytes], int] = {}
    for n, (at, anchor) in enumerate(begins):
        line = data[max(starts[n], at - 100) : at + 120].split(b"\n", 1)[0]
        firsts.setdefault((anchor.kind, line.translate(None, NUMBERS)), n)
    chosen: set[int] = set()
    for numbers, keep in ((list(firsts.values()), left // 2), (range(len(begins)), 0)):
        for first in numbers:
            if left <= keep:
                break
            for n in range(first, min(first + TOGETHER, len(begins))):
                if n in chosen or left <= 0 or (n > first and starts[n] - starts[n - 1] >= BURST):
                    break
                chosen.add(n)
                left -= max(LEAST, _end(data, starts, n) - starts[n])
    return sorted(chosen), Counter(anchor.kind for n, (_, anchor) in enumerate(begins) if n not in chosen)


def _windows(data: bytes, starts: list[int], chosen: list[int]) -> Iterator[Window]:
    """One stretch for each run of reports that follow each other."""
    lines = counted = 0
    n = 0
    while n < len(chosen):
        this = chosen[n]
        first, end = starts[this], _end(data, starts, this)
        while n + 1 < len(chosen) and starts[chosen[n + 1]] <= end:
            n += 1
            end = _end(data, starts, chosen[n])
        n += 1
        start = _line_start(data, max(0, first - BEFORE))
        lines += data.count(b"\n", counted, start)
        counted = start
        crowded = this and first - starts[this - 1] < NEAR + BEFORE  # else whatever stands before belongs to this report, wrapped or without its head
        yield Window(data[start:end], lines, lines + data.count(b"\n", start, first) + 1 if crowded else 0)
