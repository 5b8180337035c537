"""The node's LRU lists: which list a page is on, and its moves between them (include/linux/mm_inline.h, mm/swap.c, mm/workingset.c of Linux 6.1).

Lists are chained through ``next`` and ``prev`` of the page table, as the kernel chains ``page->lru``; `PAGE.lru` says which one a page is on. A huge page is one entry
and counts as 512 pages. (Debian's 6.1 has the generations of MGLRU built in and switched off; these are the classic lists.)
"""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, routine
from mmtwin.gfp import MAX_NR_ZONES
from mmtwin.mm.buddy import page_zone
from mmtwin.mm.list import list_add, list_add_tail, list_del
from mmtwin.mm.tables import PG_LRU
from mmtwin.user.handles import pages_and_users, users_state
from mmtwin.user.mm_tables import (
    LRU_ACTIVE_ANON,
    LRU_ACTIVE_FILE,
    LRU_INACTIVE_ANON,
    LRU_INACTIVE_FILE,
    LRU_UNEVICTABLE,
    NR_LRU_LISTS,
    PG_ACTIVE,
    PG_REFERENCED,
    PG_SWAPBACKED,
    PG_UNEVICTABLE,
    PG_WORKINGSET,
)


@inner
def lru_head(b: Any, lru: int) -> int:
    """The list's head in the page table."""
    return int(b.config[0]["lru_base"]) + lru


@inner
def folio_lru_list(s: Any, pfn: int) -> int:
    """``folio_lru_list``: where its flags say that it belongs."""
    flags = int(s.folio[pfn]["flags"])
    if flags & PG_UNEVICTABLE:
        return LRU_UNEVICTABLE
    lru = LRU_INACTIVE_ANON if flags & PG_SWAPBACKED else LRU_INACTIVE_FILE
    return lru + 1 if flags & PG_ACTIVE else lru


@inner
def is_file_lru(s: Any, pfn: int) -> int:
    """``folio_is_file_lru``: 1 if nothing has to be swapped out to let it go (files, and anonymous pages given to MADV_FREE)."""
    return 0 if int(s.folio[pfn]["flags"]) & PG_SWAPBACKED else 1


@inner
def set_page_lru(b: Any, pfn: int, on: bool) -> None:
    """PG_lru, of all parts of a huge page: the page allocator counts them as movable."""
    for k in range(pfn, pfn + (1 << int(b.page[pfn]["order"]))):
        flags = int(b.page[k]["flags"])
        b.page[k]["flags"] = flags | PG_LRU if on else flags & ~PG_LRU


@inner
def count_lru(b: Any, s: Any, pfn: int, lru: int, sign: int) -> None:
    """``update_lru_size``."""
    at = page_zone(b, pfn) * NR_LRU_LISTS + lru
    s.lru_size[at] = int(s.lru_size[at]) + (sign << int(b.page[pfn]["order"]))


@inner
def lruvec_add(b: Any, s: Any, pfn: int, tail: bool) -> None:
    """``lruvec_add_folio``, or with `tail` ``lruvec_add_folio_tail``: onto its list, which makes it PG_lru."""
    lru = folio_lru_list(s, pfn)
    count_lru(b, s, pfn, lru, 1)
    b.page[pfn]["lru"] = lru + 1
    set_page_lru(b, pfn, True)
    if lru != LRU_UNEVICTABLE:
        if tail:
            list_add_tail(b.page, pfn, lru_head(b, lru))
        else:
            list_add(b.page, pfn, lru_head(b, lru))


@inner
def lruvec_del(b: Any, s: Any, pfn: int) -> None:
    """``lruvec_del_folio`` of a page that is on a list: it is on none then, and not PG_lru."""
    lru = int(b.page[pfn]["lru"]) - 1
    count_lru(b, s, pfn, lru, -1)
    b.page[pfn]["lru"] = 0
    set_page_lru(b, pfn, False)
    if lru != LRU_UNEVICTABLE:
        list_del(b.page, pfn)


@inner
def leave_lru(b: Any, s: Any, pfn: int) -> None:
    """``__page_cache_release``: what is freed is on no list any more."""
    if int(b.page[pfn]["lru"]):
        lruvec_del(b, s, pfn)


@routine
def lru_add(h: int, pfn: int, tail: bool) -> None:
    """`lruvec_add` for callers with a handle."""
    b, s = pages_and_users(h)
    lruvec_add(b, s, pfn, tail)


@routine
def lru_del(h: int, pfn: int) -> None:
    """`lruvec_del` for callers with a handle."""
    b, s = pages_and_users(h)
    lruvec_del(b, s, pfn)


@routine
def lru_size(h: int, lru: int) -> int:
    """``node_page_state`` of NR_LRU_BASE + `lru`: pages of a list."""
    return zones_lru_size(h, lru, MAX_NR_ZONES - 1)


@routine
def zones_lru_size(h: int, lru: int, highest_zoneidx: int) -> int:
    """``lruvec_lru_size``: pages of a list in zones up to this one."""
    s, size = users_state(h), 0
    for z in range(highest_zoneidx + 1):
        size += int(s.lru_size[z * NR_LRU_LISTS + lru])
    return size


@inner
def set_flags(s: Any, pfn: int, on: int, off: int) -> None:
    """Sets and clears flags of a folio."""
    s.folio[pfn]["flags"] = (int(s.folio[pfn]["flags"]) | on) & ~off


@routine
def folio_activate(h: int, pfn: int) -> None:
    """``folio_activate``, at once: the kernel collects 15 pages on each CPU first."""
    b, s = pages_and_users(h)
    if int(b.page[pfn]["lru"]) and not int(s.folio[pfn]["flags"]) & (PG_ACTIVE | PG_UNEVICTABLE):
        lruvec_del(b, s, pfn)
        set_flags(s, pfn, PG_ACTIVE, 0)
        lruvec_add(b, s, pfn, False)
        s.lruvec[0]["pgactivate"] = int(s.lruvec[0]["pgactivate"]) + (1 << int(b.page[pfn]["order"]))


@routine
def folio_mark_accessed(h: int, pfn: int) -> None:
    """``folio_mark_accessed``: inactive, then referenced, then active, then referenced."""
    b, s = pages_and_users(h)
    flags = int(s.folio[pfn]["flags"])
    if not flags & PG_REFERENCED:
        set_flags(s, pfn, PG_REFERENCED, 0)
    elif not flags & (PG_UNEVICTABLE | PG_ACTIVE):
        if int(b.page[pfn]["lru"]):
            folio_activate(h, pfn)
        else:
            set_flags(s, pfn, PG_ACTIVE, 0)  # it is in a batch on its way to the lists
        set_flags(s, pfn, 0, PG_REFERENCED)
        age_nonresident(s, 1 << int(b.page[pfn]["order"]))


# Pages that were evicted and come back (mm/workingset.c)


@inner
def age_nonresident(s: Any, n: int) -> None:
    """``workingset_age_nonresident``."""
    s.lruvec[0]["nonresident_age"] = int(s.lruvec[0]["nonresident_age"]) + n


@inner
def workingset_eviction(s: Any, pfn: int) -> int:
    """``workingset_eviction``: the shadow that takes the page's place, a number below -1: when it went, and whether it was part of the working set."""
    age = int(s.lruvec[0]["nonresident_age"])
    age_nonresident(s, 1)
    return -2 - (age << 1 | (1 if int(s.folio[pfn]["flags"]) & PG_WORKINGSET else 0))


@routine
def workingset_refault(h: int, pfn: int, shadow: int) -> None:
    """``workingset_refault``: a page that comes back sooner than the lists are long is active at once."""
    s = users_state(h)
    file, lruvec = is_file_lru(s, pfn), s.lruvec[0]
    age, workingset = (-2 - shadow) >> 1, (-2 - shadow) & 1
    if file:
        lruvec["workingset_refault_file"] = int(lruvec["workingset_refault_file"]) + 1
    else:
        lruvec["workingset_refault_anon"] = int(lruvec["workingset_refault_anon"]) + 1
    size = lru_size(h, LRU_ACTIVE_FILE)
    if not file:
        size += lru_size(h, LRU_INACTIVE_FILE)
    if int(lruvec["nr_swap_pages"]) > 0:
        size += lru_size(h, LRU_ACTIVE_ANON)
        if file:
            size += lru_size(h, LRU_INACTIVE_ANON)
    if int(lruvec["nonresident_age"]) - age > size:
        return
    set_flags(s, pfn, PG_ACTIVE, 0)
    age_nonresident(s, 1)
    if file:
        lruvec["workingset_activate_file"] = int(lruvec["workingset_activate_file"]) + 1
    else:
        lruvec["workingset_activate_anon"] = int(lruvec["workingset_activate_anon"]) + 1
    if workingset:
        set_flags(s, pfn, PG_WORKINGSET, 0)
        lru_note_cost(h, file, 1)
        if file:
            lruvec["workingset_restore_file"] = int(lruvec["workingset_restore_file"]) + 1
        else:
            lruvec["workingset_restore_anon"] = int(lruvec["workingset_restore_anon"]) + 1


@routine
def lru_note_cost(h: int, file: int, n: int) -> None:
    """``lru_note_cost``: what reclaiming this kind of pages has cost lately, a floating average."""
    lruvec, size = users_state(h).lruvec[0], 0
    if file:
        lruvec["file_cost"] = int(lruvec["file_cost"]) + n
    else:
        lruvec["anon_cost"] = int(lruvec["anon_cost"]) + n
    for lru in range(LRU_UNEVICTABLE):
        size += lru_size(h, lru)
    if int(lruvec["file_cost"]) + int(lruvec["anon_cost"]) > size // 4:
        lruvec["file_cost"] = int(lruvec["file_cost"]) // 2
        lruvec["anon_cost"] = int(lruvec["anon_cost"]) // 2
