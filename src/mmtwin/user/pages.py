"""Pages of processes: taking them, who holds them, the way back (mm/swap.c, mm/mmu_gather.c, mm/memory.c of Linux 6.1).

A page that a process has lost is gathered first and freed with others: in the order of the batches, each batch from its end to its beginning. Page tables
go the same way (without a hypervisor's help ``tlb_remove_table`` is ``tlb_remove_page``).
"""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inline_routine, inner, routine
from mmtwin.mm.page_alloc import alloc_pages, free_pages_prepare, free_the_page_cold
from mmtwin.mm.tables import PG_ALLOCATED
from mmtwin.user.handles import pages_and_users, state, users_state
from mmtwin.user.lru import leave_lru, lruvec_add
from mmtwin.user.mm_tables import (
    ANON,
    EXCLUSIVE,
    GATHER_BATCH,
    GATHER_BATCHES,
    GATHER_BUNDLE,
    GATHER_ROWS,
    GATHER_TABLE,
    LRU_BATCH_ROWS,
    LRU_BATCH_SIZE,
    PG_SWAPBACKED,
    REF,
    REQUEST_ROWS,
    SHMEM,
    TAIL,
)

HPAGE_PMD_ORDER = 9
PAGE_SHIFT = 12
GFP_BATCH = 0x2800
"""GFP_NOWAIT | __GFP_NOWARN."""


@inner
def note_request(s: Any, order: int, gfp: int, pfn: int) -> None:
    """Remembers a page request for whoever watches; a free has gfp -1. Those beyond the room are only counted."""
    n = int(s.config[0]["taken"])
    if n < REQUEST_ROWS:
        s.request[3 * n], s.request[3 * n + 1], s.request[3 * n + 2] = order, gfp, pfn
    s.config[0]["taken"] = n + 1


@routine
def take_page(h: int, cpu: int, order: int, gfp: int) -> int:
    """A block from the page allocator, or a negative error."""
    b, s = pages_and_users(h)
    pfn = alloc_pages(b, cpu, order, gfp, False)
    note_request(s, order, gfp, pfn)
    return pfn


@inner
def compound_head(s: Any, pfn: int) -> int:
    """``compound_head``: a tail page's huge page."""
    return pfn & ~((1 << HPAGE_PMD_ORDER) - 1) if int(s.frame[pfn]) & TAIL else pfn


@inner
def get_page(s: Any, pfn: int) -> None:
    """One more holds it."""
    head = compound_head(s, pfn)
    s.frame[head] = int(s.frame[head]) + REF


@inner
def set_anon_rmap(s: Any, pfn: int, row: int, address: int, exclusive: bool) -> None:
    """``__page_set_anon_rmap``: an area's anon_vma, or, if others may have the page too, its oldest ancestor's, leads to who maps the page."""
    anon = int(s.vma[row]["anon_vma"])
    folio = s.folio[pfn]
    folio["mapping"] = anon if exclusive else int(s.anon[anon]["root"])
    folio["index"] = int(s.vma[row]["vm_pgoff"]) + ((address - int(s.vma[row]["vm_start"])) >> PAGE_SHIFT)


@inner
def new_anon_page(s: Any, pfn: int, row: int, address: int, mapcount: int) -> None:
    """``page_add_new_anon_rmap``: its process alone has it, with so many small entries."""
    s.frame[pfn] = REF | ANON | EXCLUSIVE
    folio = s.folio[pfn]
    folio["flags"], folio["mapcount"], folio["swap"] = PG_SWAPBACKED, mapcount, 0
    set_anon_rmap(s, pfn, row, address, True)


@inner
def clear_frames(s: Any, pfn: int, order: int) -> None:
    """Nobody holds it any more."""
    for i in range(pfn, pfn + (1 << order)):
        s.frame[i] = 0


@routine
def free_large(h: int, cpu: int, pfn: int, order: int) -> None:
    """``__folio_put_large``: a compound page goes back as a whole."""
    b, s = pages_and_users(h)
    leave_lru(b, s, pfn)
    clear_frames(s, pfn, order)
    note_request(s, order, -1, pfn)
    free_pages_prepare(b, pfn, order)
    free_the_page_cold(b, cpu, pfn, order)


@routine
def put_page(h: int, cpu: int, pfn: int) -> None:
    """``put_page``: one less holds it; the last one frees it."""
    b, s = pages_and_users(h)
    head = compound_head(s, pfn)
    left = int(s.frame[head]) - REF
    s.frame[head] = left
    if left < REF:
        free_large(h, cpu, head, int(b.page[head]["order"]))


@inner
def table_frame(m: Any, value: int) -> int:
    """The page frame behind a gathered value."""
    return int(m.table[value - GATHER_TABLE]["pfn"]) if value >= GATHER_TABLE else value


@inner
def release_table(m: Any, row: int) -> None:
    """The row of a table whose page is freed."""
    table, config = m.table[row], m.config[0]
    table["level"] = 0
    table["next"] = int(config["free_row"])
    config["free_row"] = row
    config["table_frees"] = int(config["table_frees"]) + 1


@routine
def release_pages(h: int, cpu: int, first: int, end: int) -> None:
    """``release_pages``: compound pages are freed at once, the others together behind them, the last one first (``free_unref_page_list``)."""
    b, m, s = state(h)
    kept = first
    for i in range(first, end):
        value = int(s.gather[i])
        if value < GATHER_TABLE:
            head = compound_head(s, value)
            left = int(s.frame[head]) - REF
            s.frame[head] = left
            if left >= REF:
                continue
            order = int(b.page[head]["order"])
            if order:
                free_large(h, cpu, head, order)
                continue
            leave_lru(b, s, head)
            s.frame[head] = 0
        s.gather[kept] = value
        kept += 1
    for i in range(kept - 1, first - 1, -1):
        pfn = table_frame(m, int(s.gather[i]))
        if int(s.gather[i]) >= GATHER_TABLE:
            release_table(m, int(s.gather[i]) - GATHER_TABLE)
        s.gather[i] = pfn
        note_request(s, 0, -1, pfn)
        free_pages_prepare(b, pfn, 0)
    for i in range(kept - 1, first - 1, -1):
        free_the_page_cold(b, cpu, int(s.gather[i]), 0)


# The way to the LRU lists


@routine
def lru_add_drain(h: int, cpu: int) -> None:
    """``lru_add_drain``: what the CPU has collected goes to the LRU lists."""
    b, s = pages_and_users(h)
    base = GATHER_ROWS + cpu * LRU_BATCH_ROWS
    n = int(s.gather[base + LRU_BATCH_SIZE])
    for i in range(base, base + n):
        pfn = int(s.gather[i])
        if int(s.frame[pfn]) >= REF:
            lruvec_add(b, s, pfn, False)
    s.gather[base + LRU_BATCH_SIZE] = 0
    release_pages(h, cpu, base, base + n)


@routine
def lru_cache_add(h: int, cpu: int, pfn: int, order: int) -> None:
    """``folio_add_lru``: the CPU collects 15 pages first, but lets go of them as soon as a huge one comes."""
    s = users_state(h)
    s.frame[pfn] = int(s.frame[pfn]) + REF
    base = GATHER_ROWS + cpu * LRU_BATCH_ROWS
    n = int(s.gather[base + LRU_BATCH_SIZE])
    s.gather[base + n] = pfn
    s.gather[base + LRU_BATCH_SIZE] = n + 1
    if order or n + 1 == LRU_BATCH_SIZE:
        lru_add_drain(h, cpu)


# Gathering


@routine
def gather(h: int, cpu: int, value: int) -> bool:
    """``__tlb_remove_page``: whether there is room for no more and what was gathered must go."""
    s = users_state(h)
    config = s.config[0]
    n, active = int(config["gathered"]), int(config["active"])
    s.gather[n] = value
    config["gathered"] = n + 1
    if n + 1 < GATHER_BUNDLE + GATHER_BATCH * active:
        return False
    batches = int(config["batches"])
    if active == batches:
        if batches == GATHER_BATCHES:
            return True
        pfn = take_page(h, cpu, 0, GFP_BATCH)
        if pfn < 0:
            return True
        s.batch_pfn[batches] = pfn
        config["batches"] = batches + 1
    config["active"] = active + 1
    return False


@routine
def tlb_flush_mmu(h: int, cpu: int) -> None:
    """``tlb_batch_pages_flush``: each batch is released; their pages are kept."""
    s = users_state(h)
    config = s.config[0]
    total, first, end = int(config["gathered"]), 0, GATHER_BUNDLE
    while first < total:
        end = min(end, total)
        lru_add_drain(h, cpu)
        release_pages(h, cpu, first, end)
        first = end
        end += GATHER_BATCH
    config["gathered"], config["active"] = 0, 0


@routine
def tlb_finish_mmu(h: int, cpu: int) -> None:
    """``tlb_finish_mmu``: the rest is released, then the batches' own pages."""
    b, s = pages_and_users(h)
    tlb_flush_mmu(h, cpu)
    config = s.config[0]
    for i in range(int(config["batches"])):
        pfn = int(s.batch_pfn[i])
        note_request(s, 0, -1, pfn)
        free_pages_prepare(b, pfn, 0)
        free_the_page_cold(b, cpu, pfn, 0)
    config["batches"] = 0


# Counters


@inner
def add_rss(s: Any, mm: int, pfn: int, n: int) -> None:
    """A page is mapped `n` times more (``page_add_anon_rmap``, ``page_add_file_rmap``, ``page_remove_rmap``), and counts for the process (``mm_counter``)."""
    head = compound_head(s, pfn)
    word, counts = int(s.frame[head]), s.mm[mm]
    s.folio[head]["mapcount"] = int(s.folio[head]["mapcount"]) + n
    if word & ANON:
        counts["rss_anon"] = int(counts["rss_anon"]) + n
    elif word & SHMEM:
        counts["rss_shmem"] = int(counts["rss_shmem"]) + n
    else:
        counts["rss_file"] = int(counts["rss_file"]) + n


@inline_routine
def mark_tails(h: int, pfn: int) -> None:
    """``prep_compound_page``."""
    b, s = pages_and_users(h)
    for i in range(pfn + 1, pfn + (1 << HPAGE_PMD_ORDER)):
        s.frame[i] = TAIL
    b.page[pfn]["flags"] = PG_ALLOCATED
