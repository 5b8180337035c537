"""Pictures of a machine's memory for a terminal, used by the examples beside this file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from mmtwin import Machine
from mmtwin.page_fault import entries_to

LEVELS = {5: "PGD", 4: "P4D", 3: "PUD", 2: "PMD", 1: "PTE"}
SHADES = " .:-=+*#%@"


def used_frames(m: Machine) -> npt.NDArray[np.bool_]:
    """For each page frame whether it is in use: all but what is in the free lists and the CPUs' lists."""
    used = np.ones(int(m.state.config[0]["nr_frames"]), dtype=bool)
    for listed in ("free", "pcp_pages"):
        for pfn, order in m.frame(listed).select("pfn", "order").iter_rows():
            used[pfn : pfn + (1 << order)] = False
    return used


def memory_map(m: Machine, columns: int = 64, rows: int = 8) -> str:
    """All page frames as a rectangle: each character is a stretch of frames, the darker the more of them are in use."""
    used = used_frames(m)
    cells, lines = columns * rows, []
    for row in range(rows):
        line = ""
        for column in range(columns):
            cell = row * columns + column
            part = used[len(used) * cell // cells : len(used) * (cell + 1) // cells]
            line += SHADES[min(9, int(part.mean() * 9.99))]
        lines.append(f"  |{line}|")
    return "\n".join(lines)


def frames(pages: Sequence[int], of: Iterable[int], mark: str = "#") -> str:
    """A stretch of page frames, those of a request marked."""
    chosen = set(of)
    return "".join(mark if pfn in chosen else "." for pfn in pages)


def runs(pages: Sequence[int]) -> str:
    """Page frames as stretches of neighbours: "12a0-12a3, 12b0"."""
    parts: list[list[int]] = []
    for pfn in pages:
        if parts and pfn == parts[-1][-1] + 1:
            parts[-1].append(pfn)
        else:
            parts.append([pfn])
    words = [f"{p[0]:x}-{p[-1]:x}" if len(p) > 1 else f"{p[0]:x}" for p in parts]
    return ", ".join(words[:8]) + (f", ... ({len(parts)} stretches)" if len(parts) > 8 else "")


def free_lists(m: Machine) -> str:
    """How many free blocks there are of each order, as bars."""
    blocks = m.frame("free").group_by("order").len().sort("order")
    number = dict(blocks.iter_rows())
    lines = []
    for order in range(11):
        count = number.get(order, 0)
        bar = "#" * min(48, count.bit_length() * 3)
        lines.append(f"  order {order:>2} ({4 << order:>5} KiB) {count:>7,} {bar}")
    return "\n".join(lines)


def walk(m: Machine, address: int) -> str:
    """The way from the page tables' root to an address, one line per level."""
    lines, indent = [f"  0x{address:x}"], "  "
    top = int(m.mmu.config[0]["levels"])
    for level, entry in entries_to(m.mmu, int(m.mmu.config[0]["root"]), address):
        name = "PGD" if level == top else LEVELS[level]
        if not entry & 1:
            lines.append(f"{indent}`- {name}: nothing there")
            break
        pfn = (entry & ((1 << 52) - 1)) >> 12
        huge = level > 1 and entry & 0x80
        what = (
            "maps 2 MiB of the direct map"
            if huge and level == 2
            else "maps 1 GiB of the direct map"
            if huge
            else "maps frame"
            if level == 1
            else "table in frame"
        )
        lines.append(f"{indent}`- {name}: {entry & ((1 << 64) - 1):016x}  {what}{'' if huge else f' {pfn:x}'}")
        indent += "   "
    return "\n".join(lines)
