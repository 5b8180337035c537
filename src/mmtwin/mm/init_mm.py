"""The page tables that a kernel has made by the time its allocators work (arch/x86/mm/init.c, init_64.c, init_32.c).

- The direct map, with the largest entries that fit into one run of memory: what ``split_mem_range`` and ``adjust_range_page_size_mask`` come to. The
  first MiB is mapped with PTEs, holes included; on 32 bits so is the whole first PMD.
- The kernel's image (64 bits), with huge entries; it is not split into text and data.
- The fixmap's and, on 32 bits with HighMem, kmap's tables, empty.
- On 64 bits the tables right below the PGD for the whole vmalloc range (``preallocate_vmalloc_pages``).

Which frames these tables are is a model: frames that the kernel keeps, the highest first; a memory dump's own are put in by `restore_page_tables`. The
maps of struct pages, CPU entry areas and the like are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count
from typing import Any

import numpy as np
import numpy.typing as npt

from mmtwin.mm.pgtable import level_shift, populate, table_index, walk_from
from mmtwin.mm.pgtable_tables import (
    PAGE_KERNEL,
    PAGE_KERNEL_EXEC,
    PAGE_PRESENT,
    PAGE_PSE,
    PAGE_SHIFT,
    PFN_BITS,
    Mmu,
    empty_mmu,
    signed,
)
from mmtwin.mm.tables import PG_ALLOCATED, PG_BUDDY, PG_PCP, PG_TABLE, Pgdat
from mmtwin.profiles.layout import AddressSpace
from mmtwin.profiles.physical import Frames

ISA_END_PFN = 0x100
FIXMAP_PMD_NUM = 2
"""PTE pages of the fixmap that the 64-bit kernel's image holds."""


class _Builder:
    """Makes tables before there is a page allocator."""

    def __init__(self, m: Mmu, frames: Iterator[int]) -> None:
        self.m, self.frames = m, frames

    def new_table(self, level: int) -> int:
        config = self.m.config[0]
        row = int(config["tables"])
        if row == len(self.m.table):
            self.m = Mmu(*(np.concatenate([t, np.zeros_like(t)]) if i < 3 else t for i, t in enumerate(self.m)))  # type: ignore[arg-type]
        self.m.table[row] = (next(self.frames), level, -1, 1)
        config["tables"] = row + 1
        return row

    def table(self, address: int, level: int) -> int:
        """Row of the table of this level for an address."""
        row, at = int(self.m.config[0]["root"]), int(self.m.config[0]["levels"])
        while at > level:
            i = table_index(self.m, address, at)
            if not int(self.m.entry[row, i]) & PAGE_PRESENT:
                child = self.new_table(at - 1)
                populate(self.m, row, i, child)
            row, at = int(self.m.child[row, i]), at - 1
        return row

    def leaves(self, address: int, start: int, end: int, level: int, prot: int) -> None:
        """Maps page frames `start` to `end`, whole pages of this level, to an address on; what is mapped already stays."""
        step = 1 << (level_shift(self.m, level) - PAGE_SHIFT)
        prot = (prot | (PAGE_PSE if level > 1 else 0)) & int(self.m.config[0]["supported"])
        while start < end:
            row, i = self.table(address, level), table_index(self.m, address, level)
            n = min((end - start) // step, self.m.entry.shape[1] - i)
            entries = (np.arange(start, start + n * step, step, dtype=np.int64) << PAGE_SHIFT) | prot
            have = self.m.entry[row, i : i + n]
            self.m.entry[row, i : i + n] = np.where(have & PAGE_PRESENT, have, entries)
            address, start = address + (n * step << PAGE_SHIFT), start + n * step


def new_mmu(
    space: AddressSpace,
    ram: Sequence[Frames],
    nr_cpus: int,
    frames: Iterable[int] = (),
    image: Sequence[Frames] = (),
    *,
    gbpages: bool = True,
    smap: bool = True,
) -> Mmu:
    """A booted kernel's tables, and cold TLBs.

    :param space: the address space.
    :param ram: page frames that are memory.
    :param frames: frames for the tables, in this order; when they run out, or if there are none, numbers behind the end of memory.
    :param image: frames of the kernel's image (64 bits).
    :param gbpages: the processor has entries of 1 GiB (64 bits).
    :param smap: it has SMAP and SMEP.
    """
    levels = space.levels
    end = max((stop for _, stop in ram), default=0)
    m = empty_mmu(levels, nr_cpus)
    config = m.config[0]
    config["huge_levels"] = 3 if levels > 3 and gbpages else 2
    config["smap"] = config["smep"] = smap
    make = _Builder(m, chain(frames, count(end)))
    config["root"] = make.new_table(levels)
    m.cpu["root"] = config["root"]
    if levels == 3:
        for i in range(4):  # the PDPT's entries are read when CR3 is loaded, so all of the kernel's exist, and no process ever lacks one
            make.table(i << 30, 2)
    config["kernel_index"] = table_index(m, signed(space.page_offset), levels) if levels < 4 else 256
    _direct_map(make, space, ram)
    if levels > 3:
        _kernel_map(make, space, image)
        top = 1 << level_shift(m, levels)
        for address in range(space.vmalloc_start & -top, space.vmalloc_limit, top):
            make.table(signed(address), levels - 1)
    else:
        pmd = 1 << level_shift(m, 2)
        for address in range(space.fixaddr_start & -pmd, space.fixaddr_top, pmd):
            make.table(address, 1)
        if space.pkmap_base:
            make.table(space.pkmap_base, 1)
    for name in ("pte_writes", "table_writes", "table_pages"):
        make.m.config[0][name] = 0
    return make.m


def _direct_map(make: _Builder, space: AddressSpace, ram: Sequence[Frames]) -> None:
    offset, levels, last = signed(space.page_offset), space.levels, int(make.m.config[0]["huge_levels"])
    sizes = [(level, 1 << (level_shift(make.m, level) - PAGE_SHIFT)) for level in range(last, 1, -1)]
    make.leaves(offset, 0, min(ISA_END_PFN, space.max_low_pfn), 1, PAGE_KERNEL)
    if levels < 4:
        first = sizes[-1][1]  # no huge entry where fixed-range MTRRs may be
        ram = [*((a, min(b, first)) for a, b in ram if a < first), *((max(a, first), b) for a, b in ram if b > first)]
    for start, end in ram:
        end = min(end, space.max_low_pfn)
        at = start
        while at < end:
            level, size = next(((level, size) for level, size in sizes if at % size == 0 and at + size <= end), (1, 1))
            if level == 1:
                stop = min(end, (at // sizes[-1][1] + 1) * sizes[-1][1])
            else:
                bigger = next((s for lv, s in reversed(sizes) if lv > level), 0)
                stop = end // size * size
                if bigger and at % bigger and (up := (at // bigger + 1) * bigger) + bigger <= end:
                    stop = up
            make.leaves(offset + (at << PAGE_SHIFT), at, stop, level, PAGE_KERNEL)
            at = stop


def _kernel_map(make: _Builder, space: AddressSpace, image: Sequence[Frames]) -> None:
    """``level3_kernel_pgt`` with ``level2_kernel_pgt`` and ``level2_fixmap_pgt``: the image's huge entries; modules lie in the same two PMD tables."""
    base = signed(space.kernel_map)
    size = 1 << (level_shift(make.m, 2) - PAGE_SHIFT)
    make.table(base, 2)
    for start, end in image:
        first, last = start // size * size, -(-end // size) * size
        make.leaves(base + (first << PAGE_SHIFT), first, last, 2, PAGE_KERNEL_EXEC)
    fixmap = base + (1 << 30)
    make.table(fixmap, 2)
    pmd = 1 << level_shift(make.m, 2)
    for k in range(FIXMAP_PMD_NUM):  # level1_fixmap_pgt: the PMD entries 507 and below
        make.table(fixmap + (507 - k) * pmd, 1)


def restore_page_tables(b: Pgdat, m: Mmu, rows: Iterable[tuple[int, int, int, int]], reserved: Sequence[Frames] = ()) -> Mmu:
    """Puts a memory dump's tables into the model's: each table of the dump keeps its frame, and its entries above the PTE level are the dump's.

    Entries that map memory are taken over as they are; PTE pages come empty (whoever restores the areas maps their pages). Frames outside of `reserved` came
    from the page allocator: they are marked as page tables, and may be freed.

    :param rows: the dump's entries: level of the table (1 PTE, 2 PMD ...; the highest is the PGD), its page frame, index, and value.
    :returns: the tables, larger if need be (the old ones are then out of date).
    """
    make = _Builder(m, iter(()))
    config, frames = m.config[0], int(b.config[0]["nr_frames"])
    root, top = int(config["root"]), int(config["levels"])
    known: dict[tuple[int, int], int] = {}

    def place(row: int, level: int, pfn: int) -> None:
        known[level, pfn] = row
        old = int(make.m.table[row]["pfn"])
        if 0 <= old < frames and old != pfn and int(b.page[old]["flags"]) == PG_TABLE:
            b.page[old]["flags"] = 0
        make.m.table[row]["pfn"] = pfn
        if 0 <= pfn < frames and not int(b.page[pfn]["flags"]) & (PG_BUDDY | PG_PCP):
            own = not any(start <= pfn < end for start, end in reserved)
            make.m.table[row]["boot"] = 0 if own else 1
            b.page[pfn]["flags"], b.page[pfn]["next"] = PG_ALLOCATED | PG_TABLE if own else PG_TABLE, row

    for level, pfn, i, value in sorted(((level, pfn, i, signed(value)) for level, pfn, i, value in rows), key=lambda row: -row[0]):
        if level == top and (level, pfn) not in known:
            place(root, level, pfn)
        row = known.get((level, pfn))
        if row is None or not value & PAGE_PRESENT:
            continue
        have = int(make.m.entry[row, i])
        make.m.entry[row, i] = value
        if level == 1 or value & PAGE_PSE:
            continue
        target = (value & PFN_BITS) >> PAGE_SHIFT
        child = known.get((level - 1, target), -1)
        if child < 0:
            if have & PAGE_PRESENT and not have & PAGE_PSE:
                child = int(make.m.child[row, i])
            else:
                make.frames = iter((target,))
                child = make.new_table(level - 1)
            place(child, level - 1, target)
        make.m.child[row, i] = child
    return make.m


def boot_frames(reserved: Sequence[Frames]) -> Iterator[int]:
    """Frames that the kernel keeps, the highest first."""
    return (pfn for start, end in sorted(reserved, reverse=True) for pfn in range(end - 1, start - 1, -1))


def mapped_bytes(m: Mmu, root: int | None = None) -> dict[int, int]:
    """Bytes that entries of each level map: level 1, 2 and 3 are what /proc/meminfo calls DirectMap4k, DirectMap2M and DirectMap1G, for all of the kernel's half."""
    found: dict[int, int] = {}
    todo: list[tuple[int, int]] = [(int(m.config[0]["root"]) if root is None else root, int(m.config[0]["levels"]))]
    while todo:
        row, level = todo.pop()
        entries: npt.NDArray[Any] = m.entry[row]
        leaf = (entries & PAGE_PRESENT != 0) & ((level == 1) | (entries & PAGE_PSE != 0))
        found[level] = found.get(level, 0) + int(leaf.sum()) * (1 << level_shift(m, level))
        if level > 1:
            todo += [(int(m.child[row, i]), level - 1) for i in np.flatnonzero((entries & PAGE_PRESENT != 0) & ~leaf)]
    return {level: size for level, size in found.items() if size}


def direct_map_bytes(m: Mmu, space: AddressSpace) -> dict[int, int]:
    """As `mapped_bytes`, of the direct map alone."""
    found: dict[int, int] = {}
    address = signed(space.page_offset)
    end = address + (space.max_low_pfn << PAGE_SHIFT)
    while address < end:
        entry, level, _, _ = walk_from(m, int(m.config[0]["root"]), address)
        size = 1 << level_shift(m, level)
        if entry & PAGE_PRESENT:
            found[level] = found.get(level, 0) + size
        address = (address & -size) + size
    return found
