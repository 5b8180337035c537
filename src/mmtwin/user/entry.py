"""Compiled entry points of processes' memory. All take the machine's handle (user/handles.py)."""

from __future__ import annotations

from mmtwin._jit import kernel
from mmtwin.mm.mmu import USER, translate
from mmtwin.mm.pgtable_tables import NO_ROOM
from mmtwin.mm.vmap_tables import NIL
from mmtwin.user import anon_vma, fault, pages, tables, vma, zap
from mmtwin.user.handles import state, table_state, users_state

SPARE_TABLES = 8
"""Room that one fault may need."""


# Areas


@kernel
def find_vma_entry(h: int, mm: int, address: int) -> int:
    """`vma.find_vma`."""
    return vma.find_vma(users_state(h), mm, address)


@kernel
def unmapped_area_entry(h: int, mm: int, topdown: bool, low: int, high: int, length: int) -> int:
    """`vma.unmapped_area_topdown` or `vma.unmapped_area`."""
    s = users_state(h)
    if topdown:
        return vma.unmapped_area_topdown(s, mm, low, high, length)
    return vma.unmapped_area(s, mm, low, high, length)


@kernel
def insert_vma_entry(h: int, mm: int, start: int, end: int, flags: int, pgoff: int, file: int) -> int:
    """A new area: its row."""
    s = users_state(h)
    row = vma.new_vma(s)
    area = s.vma[row]
    area["vm_start"], area["vm_end"], area["vm_flags"], area["vm_pgoff"], area["vm_file"] = start, end, flags, pgoff, file
    area["anon_vma"], area["chain"] = NIL, NIL
    vma.vma_link(s, mm, row)
    if file >= 0:
        s.file[file]["refcount"] = int(s.file[file]["refcount"]) + 1
    return row


@kernel
def merge_entry(h: int, mm: int, prev: int, start: int, end: int, flags: int, anon: int, file: int, pgoff: int) -> int:
    """`vma.vma_merge`."""
    return vma.vma_merge(table_state(h), users_state(h), mm, prev, start, end, flags, anon, file, pgoff)


@kernel
def split_entry(h: int, row: int, address: int, new_below: bool) -> int:
    """`vma.split_vma`."""
    return vma.split_vma(table_state(h), users_state(h), row, address, new_below)


@kernel
def set_bounds_entry(h: int, row: int, start: int, end: int, pgoff: int) -> None:
    """`vma.set_bounds`."""
    vma.set_bounds(users_state(h), row, start, end, pgoff)


@kernel
def copy_vma_entry(h: int, row: int, start: int, end: int, pgoff: int) -> int:
    """An area like another at another place (``copy_vma`` without a merge): its row."""
    s = users_state(h)
    new = vma.new_vma(s)
    vma.copy_area(s, new, row)
    s.vma[new]["vm_start"], s.vma[new]["vm_end"], s.vma[new]["vm_pgoff"] = start, end, pgoff
    anon_vma.anon_vma_clone(s, new, row)
    vma.vma_link(s, int(s.vma[row]["vm_mm"]), new)
    file = int(s.vma[new]["vm_file"])
    if file >= 0:
        s.file[file]["refcount"] = int(s.file[file]["refcount"]) + 1
    return new


@kernel
def remove_vma_entry(h: int, row: int) -> None:
    """``remove_vma``, and what ``free_pgtables`` unlinks before it."""
    s = users_state(h)
    anon_vma.unlink_anon_vmas(s, row)
    file = int(s.vma[row]["vm_file"])
    if file >= 0:
        s.file[file]["refcount"] = int(s.file[file]["refcount"]) - 1
    vma.vma_unlink(s, row)
    vma.free_vma(s, row)


@kernel
def anon_vma_prepare_entry(h: int, row: int) -> None:
    """`anon_vma.anon_vma_prepare`, with a neighbour's if there is a fitting one."""
    s = users_state(h)
    anon_vma.anon_vma_prepare(s, row, vma.find_mergeable_anon_vma(s, row))


@kernel
def unlink_anon_vmas_entry(h: int, row: int) -> None:
    """`anon_vma.unlink_anon_vmas`."""
    anon_vma.unlink_anon_vmas(users_state(h), row)


@kernel
def fork_vma_entry(h: int, mm: int, parent: int) -> int:
    """A child's copy of an area, linked in (the body of ``dup_mmap`` up to ``copy_page_range``): its row."""
    s = users_state(h)
    row = vma.new_vma(s)
    vma.copy_area(s, row, parent)
    anon_vma.anon_vma_fork(s, row, parent)
    vma.vma_link(s, mm, row)
    file = int(s.vma[row]["vm_file"])
    if file >= 0:
        s.file[file]["refcount"] = int(s.file[file]["refcount"]) + 1
    return row


# Page tables and pages


@kernel
def pgd_alloc_entry(h: int, cpu: int) -> int:
    """`tables.user_pgd_alloc`."""
    return tables.user_pgd_alloc(h, cpu)


@kernel
def pgd_free_entry(h: int, cpu: int, row: int) -> None:
    """`tables.user_pgd_free`."""
    tables.user_pgd_free(h, cpu, row)


@kernel
def touch_entry(h: int, cpu: int, mm: int, address: int, end: int, step: int, access: int) -> tuple[int, int]:
    """Accesses an address every `step` bytes, faulting as needed: the first address that was not reached, and why (0: all were)."""
    b, m, s = state(h)
    s.config[0]["source"], s.config[0]["target"] = -1, -1
    while address < end:
        found = translate(m, cpu, address, access | USER)
        if found < 0:
            if int(b.config[0]["kswapd_pending"]):
                return address, fault.FAULT_KSWAPD
            if int(m.config[0]["tables"]) + SPARE_TABLES > len(m.table):
                return address, NO_ROOM
            code = fault.handle_mm_fault(h, cpu, mm, address, -1 - found)
            if code < 0:
                return address, code
            continue
        address += step
    return address, 0


@kernel
def unmap_region_entry(h: int, cpu: int, first: int, last: int, start: int, end: int, floor: int, ceiling: int) -> None:
    """``unmap_region``: the pages of the areas from row `first` to `last` between two addresses, then the tables that served only them."""
    s = users_state(h)
    pages.lru_add_drain(h, cpu)
    row = first
    while True:
        zap.unmap_page_range(h, cpu, row, max(int(s.vma[row]["vm_start"]), start), min(int(s.vma[row]["vm_end"]), end))
        if row == last:
            break
        row = int(s.vma[row]["next"])
    tables.free_pgtables(h, cpu, int(s.vma[first]["vm_mm"]), first, last, floor, ceiling)
    pages.tlb_finish_mmu(h, cpu)


@kernel
def zap_entry(h: int, cpu: int, row: int, start: int, end: int) -> None:
    """``zap_page_range``: pages of one area go, tables stay."""
    pages.lru_add_drain(h, cpu)
    zap.unmap_page_range(h, cpu, row, start, end)
    pages.tlb_finish_mmu(h, cpu)


@kernel
def change_protection_entry(h: int, row: int, start: int, end: int) -> None:
    """`zap.change_protection`."""
    zap.change_protection(h, row, start, end)


@kernel
def move_page_tables_entry(h: int, cpu: int, row: int, start: int, new_start: int, size: int) -> int:
    """`zap.move_page_tables`."""
    return zap.move_page_tables(h, cpu, row, start, new_start, size)


@kernel
def madvise_free_entry(h: int, cpu: int, row: int, start: int, end: int) -> int:
    """`zap.madvise_free`."""
    pages.lru_add_drain(h, cpu)
    return zap.madvise_free(h, cpu, row, start, end)


@kernel
def copy_page_range_entry(h: int, cpu: int, row: int, parent: int) -> int:
    """`fault.copy_page_range`."""
    return fault.copy_page_range(h, cpu, row, parent)


@kernel
def lru_add_drain_entry(h: int, cpu: int) -> None:
    """`pages.lru_add_drain`."""
    pages.lru_add_drain(h, cpu)


@kernel
def drop_cache_entry(h: int, cpu: int, file: int) -> int:
    """``truncate_inode_pages``: the page cache lets go of a file's pages, in batches of 15; returns how many it had."""
    s = users_state(h)
    pages.lru_add_drain(h, cpu)
    first, n, done = int(s.file[file]["first"]), 0, 0
    for at in range(first, first + int(s.file[file]["pages"])):
        pfn = int(s.cache[at])
        if pfn >= 0:
            s.cache[at] = -1
            s.gather[n] = pfn
            n += 1
            done += 1
        if n == 15 or (n and at == first + int(s.file[file]["pages"]) - 1):
            pages.release_pages(h, cpu, 0, n)
            n = 0
    s.file[file]["cached"] = 0
    return done
