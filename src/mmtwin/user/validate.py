"""Invariants of processes' memory: areas, their trees and lists, page tables against areas, counters and reference counts."""

from __future__ import annotations

from collections import Counter

import numpy as np

from mmtwin.errors import InvariantError
from mmtwin.mm.buddy import page_zone
from mmtwin.mm.pgtable_tables import PAGE_PRESENT, PAGE_PSE, PAGE_RW, PAGE_SHIFT, PFN_BITS, Mmu
from mmtwin.mm.rbtree import compute_max
from mmtwin.mm.tables import NR_LRU_HEADS, PG_ALLOCATED, PG_LRU, Pgdat
from mmtwin.mm.vmap_tables import NIL, RB_BLACK, RB_RED
from mmtwin.user.huge import PAGE_PROTNONE
from mmtwin.user.lru import folio_lru_list
from mmtwin.user.mm_tables import (
    ANON,
    EXCLUSIVE,
    FILE_SHMEM,
    GATHER_ROWS,
    LRU_BATCH_ROWS,
    LRU_BATCH_SIZE,
    LRU_UNEVICTABLE,
    NR_LRU_LISTS,
    REF,
    SHMEM,
    SLOT_CACHE_ROWS,
    SLOT_CUR,
    SLOT_N_RET,
    SLOT_NR,
    SLOT_RET,
    SLOT_SLOTS,
    SWAP_HAS_CACHE,
    TAIL,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_SHARED,
    VM_WRITE,
    Users,
    areas_of,
)
from mmtwin.user.swap import entry_slot

PRESENT = PAGE_PRESENT | PAGE_PROTNONE
SLOT_MARK = -1
"""In the counters of who is held: key of a slot is this minus its number."""


def validate_users(s: Users, m: Mmu, b: Pgdat) -> None:
    """Checks every address space, then the page frames.

    :raises InvariantError: naming the first broken one.
    """
    held, mapped, files, counts = Counter[int](), Counter[int](), Counter[int](), Counter[int]()
    for mm in np.flatnonzero(s.mm["used"][: int(s.config[0]["mms"])]).tolist():
        rows = areas_of(s, mm)
        _check_areas(s, mm, rows)
        _check_entries(s, m, mm, rows, held, mapped, counts)
        files.update(int(s.vma[row]["vm_file"]) for row in rows)
    _check_anon_vmas(s)
    for row, file in enumerate(s.file):
        pages = s.cache[int(file["first"]) : int(file["first"]) + int(file["pages"])]
        cached = pages[pages >= 0].tolist()
        if int(file["kind"]) == FILE_SHMEM:
            held.update((SLOT_MARK + 2 + pages[pages < -1]).tolist())
        held.update(cached)
        if len(cached) != int(file["cached"]) or int(file["refcount"]) < files[row]:
            raise InvariantError(
                f"file {row}: {len(cached)} pages in the cache, {files[row]} areas; it counts {int(file['cached'])} and {int(file['refcount'])}"
            )
    for cpu in range((len(s.gather) - GATHER_ROWS) // LRU_BATCH_ROWS):
        base = GATHER_ROWS + cpu * LRU_BATCH_ROWS
        held.update(s.gather[base : base + int(s.gather[base + LRU_BATCH_SIZE])].tolist())
    huge_zero = int(s.config[0]["huge_zero_pfn"])
    if huge_zero >= 0:
        held[huge_zero] += 1
    if int(s.config[0]["gathered"]) or int(s.config[0]["batches"]):
        raise InvariantError("processes: pages are gathered but were not freed")
    wrong = [pfn for pfn, n in counts.items() if int(s.folio[pfn]["mapcount"]) != n]
    if wrong:
        raise InvariantError(f"page frame {wrong[0]}: mapped {counts[wrong[0]]} times, it counts {int(s.folio[wrong[0]]['mapcount'])}")
    _check_swap(s, held)
    _check_frames(s, b, held, mapped)
    _check_lru(s, b)


def _check_swap(s: Users, held: Counter[int]) -> None:
    """Slots: their counts are the entries that mean them, and the swap cache's pages know their slots."""
    kept = Counter[int]()
    for base in range(0, len(s.slots), SLOT_CACHE_ROWS):
        first = base + SLOT_SLOTS + int(s.slots[base + SLOT_CUR])
        kept.update(s.slots[first : first + int(s.slots[base + SLOT_NR])].tolist())
        kept.update(s.slots[base + SLOT_RET : base + SLOT_RET + int(s.slots[base + SLOT_N_RET])].tolist())
    free = 0
    for d, si in enumerate(s.swap):
        if not int(si["used"]):
            continue
        first, size = int(si["first"]), int(si["max"])
        used = np.flatnonzero(s.swap_map[first + 1 : first + size]) + first + 1
        if len(used) != int(si["inuse_pages"]):
            raise InvariantError(f"swap device {d}: {len(used)} slots are in use, it counts {int(si['inuse_pages'])}")
        free += int(si["pages"]) - len(used)
        for slot in used.tolist():
            word, pfn = int(s.swap_map[slot]), int(s.swap_cache[slot])
            entries = word & (SWAP_HAS_CACHE - 1)
            if entries != held[SLOT_MARK - slot]:
                raise InvariantError(f"swap device {d}, slot {slot - first}: {held[SLOT_MARK - slot]} entries mean it, it counts {entries}")
            if bool(word & SWAP_HAS_CACHE) != (pfn >= 0 or kept[slot] > 0) or (pfn >= 0 and int(s.folio[pfn]["swap"]) != slot + 1):
                raise InvariantError(f"swap device {d}, slot {slot - first}: its word is 0x{word:x}, and the swap cache has page frame {pfn} for it")
            if pfn >= 0:
                held[pfn] += 1
    for slot in [key for key in held if key < 0]:
        del held[slot]
    if free != int(s.lruvec[0]["nr_swap_pages"]):
        raise InvariantError(f"swap: {free} slots are free, nr_swap_pages is {int(s.lruvec[0]['nr_swap_pages'])}")


def _check_lru(s: Users, b: Pgdat) -> None:
    """Lists: what is on them says so, nothing else does, and their sizes are right."""
    found, sizes = set[int](), Counter[int]()
    base = int(b.config[0]["lru_base"])
    for lru in range(LRU_UNEVICTABLE):
        at = int(b.page[base + lru]["next"])
        while at != base + lru:
            if int(b.page[at]["lru"]) != lru + 1 or int(b.page[int(b.page[at]["next"])]["prev"]) != at or not int(b.page[at]["flags"]) & PG_LRU:
                raise InvariantError(f"page frame {at}: on LRU list {lru}, but its links or its flags say otherwise")
            found.add(at)
            at = int(b.page[at]["next"])
    for lru in range(NR_LRU_LISTS, NR_LRU_HEADS):
        if int(b.page[base + lru]["next"]) != base + lru:
            raise InvariantError(f"reclaim's list {lru} is not empty")
    for pfn in np.flatnonzero(b.page["lru"][: int(b.config[0]["nr_frames"])]).tolist():
        lru = int(b.page[pfn]["lru"]) - 1
        if (lru != LRU_UNEVICTABLE and pfn not in found) or not int(s.frame[pfn]) or lru != folio_lru_list(s, pfn):
            raise InvariantError(f"page frame {pfn}: it claims LRU list {lru}, and is not there, not in use, or belongs elsewhere")
        sizes[page_zone(b, pfn) * NR_LRU_LISTS + lru] += 1 << int(b.page[pfn]["order"])
    for at, size in enumerate(s.lru_size.tolist()):
        if size != sizes[at]:
            raise InvariantError(f"zone {at // NR_LRU_LISTS}, LRU list {at % NR_LRU_LISTS}: {sizes[at]} pages, it counts {size}")


def _check_areas(s: Users, mm: int, rows: list[int]) -> None:
    """List, tree, gaps and counters of an address space."""
    end, prev, sizes = 0, NIL, Counter[str]()
    for row in rows:
        vma = s.vma[row]
        start, stop, flags = int(vma["vm_start"]), int(vma["vm_end"]), int(vma["vm_flags"])
        if not end <= start < stop <= int(s.mm[mm]["task_size"]) or start & 4095 or stop & 4095:
            raise InvariantError(f"address space {mm}: area {start:x}-{stop:x} is empty, overlaps the one before it, or lies outside")
        if int(vma["prev"]) != prev or int(vma["vm_mm"]) != mm or int(vma["va_start"]) != end or int(vma["va_end"]) != start:
            raise InvariantError(f"address space {mm}: area {start:x}-{stop:x}: wrong neighbour, owner or gap")
        pages = stop - start >> PAGE_SHIFT
        sizes["total_vm"] += pages
        if flags & (VM_EXEC | VM_WRITE | VM_GROWSDOWN) == VM_EXEC:
            sizes["exec_vm"] += pages
        elif flags & VM_GROWSDOWN:
            sizes["stack_vm"] += pages
        elif flags & (VM_WRITE | VM_SHARED) == VM_WRITE:
            sizes["data_vm"] += pages
        end, prev = stop, row
    for name in ("total_vm", "exec_vm", "stack_vm", "data_vm"):
        if int(s.mm[mm][name]) != sizes[name]:
            raise InvariantError(f"address space {mm}: {name} is {int(s.mm[mm][name])}, its areas have {sizes[name]} pages")
    if int(s.mm[mm]["map_count"]) != len(rows) or int(s.mm[mm]["last"]) != prev:
        raise InvariantError(f"address space {mm}: map_count is {int(s.mm[mm]['map_count'])}, it has {len(rows)} areas")
    found = list[int]()
    _walk_tree(s, mm, int(s.mm[mm]["rb_root"]), NIL, found)
    if found != rows:
        raise InvariantError(f"address space {mm}: the tree has other areas than the list, or another order")


def _walk_tree(s: Users, mm: int, node: int, parent: int, found: list[int]) -> int:
    """The subtree's areas in order; returns its black height."""
    if node == NIL:
        return 1
    entry = s.vma[node]
    if int(entry["rb_parent"]) != parent or int(entry["subtree_max_size"]) != compute_max(s.vma, node):
        raise InvariantError(f"address space {mm}: area row {node}: wrong parent or largest gap")
    red = int(entry["rb_color"]) == RB_RED
    if red and (parent == NIL or any(int(s.vma[int(entry[side])]["rb_color"]) == RB_RED for side in ("rb_left", "rb_right") if int(entry[side]) != NIL)):
        raise InvariantError(f"address space {mm}: area row {node} is red below red")
    left = _walk_tree(s, mm, int(entry["rb_left"]), node, found)
    found.append(node)
    if left != _walk_tree(s, mm, int(entry["rb_right"]), node, found):
        raise InvariantError(f"address space {mm}: area row {node}: black heights differ")
    return left + (int(entry["rb_color"]) == RB_BLACK)


def _check_entries(s: Users, m: Mmu, mm: int, rows: list[int], held: Counter[int], mapped: Counter[int], counts: Counter[int]) -> None:
    """Page tables: what they map lies in an area that allows it, and adds up to the counters."""
    bits, top = int(m.config[0]["bits"]), int(m.config[0]["levels"])
    starts = np.array([int(s.vma[row]["vm_start"]) for row in rows], dtype=np.int64)
    sizes, tables = Counter[str](), 0
    zero, huge_zero = int(s.config[0]["zero_pfn"]), int(s.config[0]["huge_zero_pfn"])
    todo = [(int(s.mm[mm]["pgd"]), top, 0)]
    while todo:
        table, level, base = todo.pop()
        entries = m.entry[table]
        if level == top:
            entries = entries[: int(m.config[0]["kernel_index"])]
        for i in np.flatnonzero(entries).tolist():
            entry, address = int(entries[i]), base + (i << (PAGE_SHIFT + (level - 1) * bits))
            if not entry & PRESENT:
                if level > 1:
                    raise InvariantError(f"address space {mm}: entry 0x{entry:x} at {address:x} is neither empty nor present")
                held[SLOT_MARK - entry_slot(m, s, entry)] += 1
                sizes["rss_swap"] += 1
                continue
            if level > 1 and not entry & PAGE_PSE:
                tables += 1
                todo.append((int(m.child[table, i]), level - 1, address))
                continue
            at = int(np.searchsorted(starts, address, side="right")) - 1
            size = 1 << (PAGE_SHIFT + (level - 1) * bits)
            if at < 0 or address + size > int(s.vma[rows[at]]["vm_end"]):
                raise InvariantError(f"address space {mm}: {address:x} is mapped, but belongs to no area")
            vma = s.vma[rows[at]]
            flags = int(vma["vm_flags"])
            if entry & PAGE_RW and not flags & VM_WRITE:
                raise InvariantError(f"address space {mm}: {address:x} may be written, its area not")
            pfn = (entry & PFN_BITS) >> PAGE_SHIFT
            pfn = pfn if level == 1 else pfn & ~1
            tables += level > 1  # the one in reserve
            if pfn in (zero, huge_zero):
                continue
            head = pfn & ~511 if int(s.frame[pfn]) & TAIL else pfn
            word, pages = int(s.frame[head]), 1 if level == 1 else 512
            held[head] += 1
            counts[head] += pages
            if int(s.frame[pfn]) & TAIL:
                mapped[pfn] += 1
            sizes["rss_anon" if word & ANON else "rss_shmem" if word & SHMEM else "rss_file"] += pages
            if word & ANON and not int(vma["anon_vma"]):
                raise InvariantError(f"address space {mm}: {address:x}: an anonymous page in an area without anon_vma")
            if word & ANON and entry & PAGE_RW and not int(s.frame[pfn]) & EXCLUSIVE:
                raise InvariantError(f"address space {mm}: {address:x}: page frame {pfn} may be written, but is not the process's alone")
    for name in ("rss_anon", "rss_file", "rss_shmem", "rss_swap"):
        if int(s.mm[mm][name]) != sizes[name]:
            raise InvariantError(f"address space {mm}: {name} is {int(s.mm[mm][name])}, its page tables map {sizes[name]}")
    if tables != int(s.mm[mm]["pgtables"]):
        raise InvariantError(f"address space {mm}: it has {tables} page tables and counts {int(s.mm[mm]['pgtables'])}")


def _check_anon_vmas(s: Users) -> None:
    """Links, areas and counters of anon_vmas."""
    links, active = Counter[int](), Counter[int]()
    for mm in np.flatnonzero(s.mm["used"][: int(s.config[0]["mms"])]).tolist():
        for row in areas_of(s, mm):
            avc, own = int(s.vma[row]["chain"]), int(s.vma[row]["anon_vma"])
            chain = list[int]()
            while avc != NIL:
                chain.append(int(s.avc[avc]["anon_vma"]))
                avc = int(s.avc[avc]["next"])
            links.update(chain)
            if own:
                active[own] += 1
                if own not in chain:
                    raise InvariantError(f"area row {row}: its anon_vma {own} is not in its chain")
    for row in range(1, int(s.config[0]["anons"])):
        anon = s.anon[row]
        if int(anon["root"]) and (int(anon["nr"]) != links[row] or int(anon["num_active_vmas"]) != active[row]):
            raise InvariantError(f"anon_vma {row}: {links[row]} links and {active[row]} areas; it counts {int(anon['nr'])} and {int(anon['num_active_vmas'])}")


def _check_frames(s: Users, b: Pgdat, held: Counter[int], mapped: Counter[int]) -> None:
    """Reference counts, and that whatever is held is allocated."""
    for pfn in np.flatnonzero(s.frame).tolist():
        word = int(s.frame[pfn])
        if word & TAIL:
            head = pfn & ~511
            if word // REF != mapped[pfn] or int(s.frame[head]) < REF or not int(b.page[head]["flags"]) & PG_ALLOCATED or int(b.page[head]["order"]) != 9:
                raise InvariantError(f"page frame {pfn}: part of a huge page that is not there, or mapped {mapped[pfn]} times and counting {word // REF}")
            continue
        if word // REF != held[pfn] or not held[pfn]:
            raise InvariantError(f"page frame {pfn}: {held[pfn]} hold it, it counts {word // REF}")
        if not int(b.page[pfn]["flags"]) & PG_ALLOCATED:
            raise InvariantError(f"page frame {pfn} is held by processes, but is not allocated")
    lost = [pfn for pfn in held if not int(s.frame[pfn])]
    if lost:
        raise InvariantError(f"page frame {min(lost)} is mapped, but counts as nobody's")
