"""Page faults of processes (mm/memory.c, mm/huge_memory.c, mm/filemap.c of Linux 6.1).

`handle_mm_fault` answers 0 (the access may be tried again) or a negative number: what the page allocator said, or one of the FAULT_* below, which say what the
caller has to do first, or that the process has no business there. Whatever was done before is kept, as in the kernel, so that the fault can be taken again.
"""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, routine
from mmtwin.mm.mmu import PF_PROT, WRITE
from mmtwin.mm.pgtable import count_writes, table_index
from mmtwin.mm.pgtable_tables import PAGE_ACCESSED, PAGE_DIRTY, PAGE_PRESENT, PAGE_PSE, PAGE_RW, PAGE_SHIFT, PFN_BITS
from mmtwin.mm.tables import PG_LRU
from mmtwin.mm.vmap_tables import NIL
from mmtwin.user.handles import state, tables_and_users, users_state
from mmtwin.user.huge import HPAGE_PMD_NR, PMD_SIZE, deposit, flush_tlb_range, page_prot, pmd_of, split_huge_pmd
from mmtwin.user.lru import set_flags, workingset_refault
from mmtwin.user.mm_tables import (
    ANON,
    EXCLUSIVE,
    FILE_SHMEM,
    FILE_SPECIAL,
    IO_FILE_IN,
    PG_DIRTY,
    PG_SWAPBACKED,
    REF,
    SHMEM,
    TAIL,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_HUGEPAGE,
    VM_NO_KHUGEPAGED,
    VM_NOHUGEPAGE,
    VM_RAND_READ,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
)
from mmtwin.user.pages import HPAGE_PMD_ORDER, add_rss, compound_head, get_page, lru_add_drain, lru_cache_add, mark_tails, new_anon_page, put_page, take_page
from mmtwin.user.swap import (
    SWP_EXCLUSIVE,
    delete_from_swap_cache,
    entry_slot,
    folio_free_swap,
    note_io,
    swap_cache_page,
    swap_cluster_readahead,
    swap_duplicate,
    swap_free,
)
from mmtwin.user.swapin import do_swap_page
from mmtwin.user.tables import free_user_table, new_user_table, user_table
from mmtwin.user.vma import find_vma
from mmtwin.user.zap import PRESENT, huge_pfn, is_huge, is_zero_page

FAULT_MAPERR, FAULT_ACCERR, FAULT_BUS = -2001, -2002, -2003
"""SIGSEGV (nothing is mapped there; not for this), SIGBUS."""
FAULT_STACK, FAULT_ANON_VMA, FAULT_KSWAPD = -2011, -2012, -2013
"""A stack must grow first; the area needs an anon_vma first; the fault was taken, and kswapd was woken."""

GFP_HIGHUSER_MOVABLE = 0x100CCA
GFP_COMP, GFP_ZERO, GFP_MOVABLE, GFP_DIRECT_RECLAIM = 0x40000, 0x100, 0x8, 0x400
GFP_ANON_ZEROED = GFP_HIGHUSER_MOVABLE | GFP_COMP | GFP_ZERO
GFP_ANON = GFP_HIGHUSER_MOVABLE | GFP_COMP
GFP_TRANSHUGE_LIGHT, GFP_TRANSHUGE = 0x1C20CA, 0x1C24CA
GFP_LOCAL_TRY = 0x210000
"""__GFP_THISNODE | __GFP_NORETRY."""
GFP_READAHEAD = 0x12000
"""__GFP_NORETRY | __GFP_NOWARN."""


@inner
def set_entry(m: Any, row: int, i: int, pfn: int, bits: int) -> None:
    """``set_pte_at``."""
    m.entry[row, i] = (pfn << PAGE_SHIFT) | bits
    count_writes(m, 1)


@inner
def writable(prot: int, flags: int) -> int:
    """``maybe_mkwrite(pte_mkdirty())``."""
    return prot | PAGE_DIRTY | PAGE_RW if flags & VM_WRITE else prot | PAGE_DIRTY


# Anonymous memory


@routine
def do_anonymous_page(h: int, cpu: int, row: int, mm: int, table: int, i: int, address: int, write: bool) -> int:
    """``do_anonymous_page``, its PTE table being there: the zero page for a read, a page for a write."""
    m, s = tables_and_users(h)
    flags = int(s.vma[row]["vm_flags"])
    prot = page_prot(m, flags)
    if not write:
        set_entry(m, table, i, int(s.config[0]["zero_pfn"]), prot)
        return 0
    if int(s.vma[row]["anon_vma"]) == NIL:
        return FAULT_ANON_VMA
    pfn = take_page(h, cpu, 0, GFP_ANON_ZEROED)
    if pfn < 0:
        return pfn
    new_anon_page(s, pfn, row, address, 1)
    s.config[0]["target"] = pfn
    s.mm[mm]["rss_anon"] = int(s.mm[mm]["rss_anon"]) + 1
    lru_cache_add(h, cpu, pfn, 0)
    set_entry(m, table, i, pfn, writable(prot, flags))
    return 0


@routine
def do_huge_pmd_anonymous_page(h: int, cpu: int, row: int, mm: int, pmd: int, i: int, address: int, write: bool) -> int:
    """``do_huge_pmd_anonymous_page``: 0, a negative error, or 1: small pages then (``VM_FAULT_FALLBACK``)."""
    m, s = tables_and_users(h)
    vma, config, start = s.vma[row], s.config[0], address & -PMD_SIZE
    if start < int(vma["vm_start"]) or start + PMD_SIZE > int(vma["vm_end"]):
        return 1
    if int(vma["anon_vma"]) == NIL:
        return FAULT_ANON_VMA
    flags = int(vma["vm_flags"])
    if not write and int(config["thp_zero"]):
        spare = new_user_table(h, cpu, 1)
        if spare < 0:
            return spare
        if int(config["huge_zero_pfn"]) < 0:
            pfn = take_page(h, cpu, HPAGE_PMD_ORDER, (GFP_TRANSHUGE | GFP_ZERO) & ~GFP_MOVABLE)
            if pfn < 0:
                free_user_table(h, cpu, spare)
                s.config[0]["thp_fallbacks"] = int(s.config[0]["thp_fallbacks"]) + 1
                return 1
            config["huge_zero_pfn"], config["huge_zero_refcount"] = pfn, 1
            s.frame[pfn] = REF
            mark_tails(h, pfn)
        if not int(s.mm[mm]["huge_zero"]):
            s.mm[mm]["huge_zero"] = 1
            config["huge_zero_refcount"] = int(config["huge_zero_refcount"]) + 1
        set_entry(m, pmd, i, int(config["huge_zero_pfn"]), page_prot(m, flags) | PAGE_PSE)
    else:
        gfp = GFP_TRANSHUGE_LIGHT | (GFP_DIRECT_RECLAIM if flags & VM_HUGEPAGE else 0)
        pfn = -1
        if int(config["numa"]):
            pfn = take_page(h, cpu, HPAGE_PMD_ORDER, gfp | GFP_LOCAL_TRY)
        if pfn < 0 and (not int(config["numa"]) or gfp & GFP_DIRECT_RECLAIM):
            pfn = take_page(h, cpu, HPAGE_PMD_ORDER, gfp)
        if pfn < 0:
            s.config[0]["thp_fallbacks"] = int(s.config[0]["thp_fallbacks"]) + 1
            return 1
        new_anon_page(s, pfn, row, start, HPAGE_PMD_NR)
        spare = new_user_table(h, cpu, 1)
        if spare < 0:
            mark_tails(h, pfn)
            put_page(h, cpu, pfn)
            return spare
        mark_tails(h, pfn)
        config["target"] = pfn
        lru_cache_add(h, cpu, pfn, HPAGE_PMD_ORDER)
        set_entry(m, pmd, i, pfn, writable(page_prot(m, flags), flags) | PAGE_PSE)
        s.mm[mm]["rss_anon"] = int(s.mm[mm]["rss_anon"]) + HPAGE_PMD_NR
        s.config[0]["thp_faults"] = int(s.config[0]["thp_faults"]) + 1
    deposit(m, pmd, spare)
    s.mm[mm]["pgtables"] = int(s.mm[mm]["pgtables"]) + 1
    return 0


@inner
def thp_allowed(s: Any, row: int, flags: int) -> bool:
    """``hugepage_vma_check`` for a fault."""
    mode = int(s.config[0]["thp"])
    if mode == 0 or flags & (VM_NOHUGEPAGE | VM_NO_KHUGEPAGED) or int(s.vma[row]["vm_file"]) >= 0:
        return False
    return mode == 2 or flags & VM_HUGEPAGE != 0


# Writes to what is mapped read-only


@routine
def wp_page_copy(h: int, cpu: int, row: int, mm: int, table: int, i: int, address: int) -> int:
    """``wp_page_copy``: the process gets a page of its own."""
    m, s = tables_and_users(h)
    if int(s.vma[row]["anon_vma"]) == NIL:
        return FAULT_ANON_VMA
    entry = int(m.entry[table, i])
    old = (entry & PFN_BITS) >> PAGE_SHIFT
    zero = is_zero_page(s, old)
    pfn = take_page(h, cpu, 0, GFP_ANON_ZEROED if zero else GFP_ANON)
    if pfn < 0:
        return pfn
    flags = int(s.vma[row]["vm_flags"])
    new_anon_page(s, pfn, row, address, 1)
    s.config[0]["target"] = pfn
    if not zero:
        s.config[0]["source"] = old
        add_rss(s, mm, old, -1)
    s.mm[mm]["rss_anon"] = int(s.mm[mm]["rss_anon"]) + 1
    flush_tlb_range(m, int(s.mm[mm]["pgd"]), address & -(1 << PAGE_SHIFT), (address & -(1 << PAGE_SHIFT)) + (1 << PAGE_SHIFT))
    lru_cache_add(h, cpu, pfn, 0)
    set_entry(m, table, i, pfn, writable(page_prot(m, flags), flags))
    s.config[0]["cow"] = int(s.config[0]["cow"]) + 1
    if not zero:
        if int(s.frame[old]) & TAIL:
            s.frame[old] = int(s.frame[old]) - REF
        put_page(h, cpu, old)
    return 0


@routine
def do_wp_page(h: int, cpu: int, row: int, mm: int, table: int, i: int, address: int) -> int:
    """``do_wp_page``: a page that nobody else holds is taken over, a shared mapping is made writable, anything else is copied."""
    b, m, s = state(h)
    entry, flags = int(m.entry[table, i]), int(s.vma[row]["vm_flags"])
    pfn = (entry & PFN_BITS) >> PAGE_SHIFT
    reuse = False
    if not is_zero_page(s, pfn):
        head = compound_head(s, pfn)
        if int(s.frame[head]) & ANON:
            reuse = int(s.frame[pfn]) & EXCLUSIVE != 0
            if not reuse and int(s.frame[head]) < 4 * REF:
                if not int(b.page[head]["flags"]) & PG_LRU:  # not on an LRU list yet: this CPU may be the one that holds it
                    lru_add_drain(h, cpu)
                if int(s.folio[head]["swap"]) and int(s.frame[head]) < 3 * REF:
                    folio_free_swap(h, cpu, head)
                reuse = int(s.frame[head]) < 2 * REF
                if reuse:
                    s.frame[pfn] = int(s.frame[pfn]) | EXCLUSIVE
                    s.folio[head]["mapping"] = int(s.vma[row]["anon_vma"])  # page_move_anon_rmap
        else:
            reuse = flags & (VM_WRITE | VM_SHARED) == VM_WRITE | VM_SHARED
            if reuse:
                set_flags(s, head, PG_DIRTY, 0)
    if reuse:
        m.entry[table, i] = entry | PAGE_ACCESSED | PAGE_DIRTY | PAGE_RW
        count_writes(m, 1)
        flush_tlb_range(m, int(s.mm[mm]["pgd"]), address & -(1 << PAGE_SHIFT), (address & -(1 << PAGE_SHIFT)) + (1 << PAGE_SHIFT))
        s.config[0]["reused"] = int(s.config[0]["reused"]) + 1
        return 0
    return wp_page_copy(h, cpu, row, mm, table, i, address)


@routine
def do_huge_pmd_wp_page(h: int, row: int, mm: int, pmd: int, i: int, address: int) -> int:
    """``do_huge_pmd_wp_page``: 0 if the huge page was taken over, 1 if it is mapped by small entries now."""
    m, s = tables_and_users(h)
    entry, flags = int(m.entry[pmd, i]), int(s.vma[row]["vm_flags"])
    pfn = huge_pfn(entry)
    if not is_zero_page(s, pfn) and (int(s.frame[pfn]) & EXCLUSIVE or int(s.frame[pfn]) < 2 * REF):
        s.frame[pfn] = int(s.frame[pfn]) | EXCLUSIVE
        m.entry[pmd, i] = entry | PAGE_ACCESSED | PAGE_DIRTY | PAGE_RW
        count_writes(m, 1)
        flush_tlb_range(m, int(s.mm[mm]["pgd"]), address & -PMD_SIZE, (address & -PMD_SIZE) + PMD_SIZE)
        s.config[0]["reused"] = int(s.config[0]["reused"]) + 1
        return 0
    split_huge_pmd(m, s, mm, pmd, i, flags, address)
    return 1


# Files


@inner
def cache_slot(s: Any, file: int, pgoff: int) -> int:
    """Where the page cache keeps this page of a file."""
    return int(s.file[file]["first"]) + pgoff


@routine
def add_to_page_cache(h: int, cpu: int, file: int, pgoff: int, gfp: int) -> int:
    """``filemap_add_folio`` (shared memory: ``shmem_alloc_and_acct_folio``): a page of the file, or a negative error."""
    s = users_state(h)
    pfn = take_page(h, cpu, 0, gfp)
    if pfn < 0:
        return pfn
    shmem, at = int(s.file[file]["kind"]) == FILE_SHMEM, cache_slot(s, file, pgoff)
    shadow = int(s.cache[at])
    add_file_page(s, pfn, file, pgoff, shmem)
    if shadow < -1:
        workingset_refault(h, pfn, shadow)
    note_io(s, IO_FILE_IN, at, pfn)
    lru_cache_add(h, cpu, pfn, 0)
    return pfn


@inner
def add_file_page(s: Any, pfn: int, file: int, pgoff: int, shmem: bool) -> None:
    """The page cache holds it."""
    s.frame[pfn] = REF | (SHMEM if shmem else 0)
    folio = s.folio[pfn]
    folio["flags"], folio["mapcount"], folio["swap"] = PG_SWAPBACKED if shmem else 0, 0, 0
    folio["mapping"], folio["index"] = file, pgoff
    s.cache[cache_slot(s, file, pgoff)] = pfn
    s.file[file]["cached"] = int(s.file[file]["cached"]) + 1


@routine
def shmem_swapin(h: int, cpu: int, file: int, pgoff: int) -> int:
    """``shmem_swapin_folio``: a page of shared memory comes back from swap, or a negative error."""
    s = users_state(h)
    at = cache_slot(s, file, pgoff)
    slot = -2 - int(s.cache[at])
    pfn = swap_cache_page(s, slot, -1, 0)
    if pfn < 0:
        pfn = swap_cluster_readahead(h, cpu, slot)
        if pfn < 0:
            return pfn
    s.frame[pfn] = (int(s.frame[pfn]) & ~(ANON | EXCLUSIVE)) + REF  # held by the page cache again
    delete_from_swap_cache(h, cpu, pfn, -1)
    swap_free(h, cpu, slot)
    s.frame[pfn] = int(s.frame[pfn]) | SHMEM
    folio = s.folio[pfn]
    folio["mapping"], folio["index"] = file, pgoff
    set_flags(s, pfn, PG_DIRTY, 0)
    s.cache[at] = pfn
    s.file[file]["cached"] = int(s.file[file]["cached"]) + 1
    return pfn


@routine
def filemap_fault(h: int, cpu: int, row: int, mm: int, file: int, pgoff: int) -> int:
    """``filemap_fault`` and ``shmem_fault``: the file's page, read in if need be with what is around it (``do_sync_mmap_readahead``)."""
    s = users_state(h)
    if pgoff >= int(s.file[file]["pages"]):
        return FAULT_BUS
    pfn = int(s.cache[cache_slot(s, file, pgoff)])
    if pfn >= 0:
        return pfn
    gfp = int(s.file[file]["gfp"])
    if int(s.file[file]["kind"]) == FILE_SHMEM:
        if pfn < -1:
            s.mm[mm]["maj_flt"] = int(s.mm[mm]["maj_flt"]) + 1
            return shmem_swapin(h, cpu, file, pgoff)
        return add_to_page_cache(h, cpu, file, pgoff, gfp | GFP_COMP)
    s.mm[mm]["maj_flt"] = int(s.mm[mm]["maj_flt"]) + 1
    around = int(s.config[0]["ra_pages"])
    if around and not int(s.vma[row]["vm_flags"]) & VM_RAND_READ:
        first = max(pgoff - around // 2, 0)
        for at in range(first, min(first + around, int(s.file[file]["pages"]))):
            if int(s.cache[cache_slot(s, file, at)]) < 0 and add_to_page_cache(h, cpu, file, at, gfp | GFP_COMP | GFP_READAHEAD) < 0:
                break
        pfn = int(s.cache[cache_slot(s, file, pgoff)])
    if pfn < 0:
        pfn = add_to_page_cache(h, cpu, file, pgoff, gfp | GFP_COMP)
    return pfn


@routine
def filemap_map_pages(h: int, row: int, mm: int, table: int, file: int, address: int) -> bool:
    """``do_fault_around``: maps what the page cache has of the 16 pages around; whether the page itself was among them."""
    m, s = tables_and_users(h)
    vma, around = s.vma[row], int(s.config[0]["fault_around"])
    first = max(address & -(around << PAGE_SHIFT), int(vma["vm_start"]))
    end = min(first + (around << PAGE_SHIFT), int(vma["vm_end"]), (first | ((1 << (PAGE_SHIFT + int(m.config[0]["bits"]))) - 1)) + 1)
    prot, done, found = page_prot(m, int(vma["vm_flags"])), 0, False
    at = first
    while at < end:
        pgoff = int(vma["vm_pgoff"]) + ((at - int(vma["vm_start"])) >> PAGE_SHIFT)
        i = table_index(m, at, 1)
        if pgoff < int(s.file[file]["pages"]) and int(m.entry[table, i]) == 0:
            pfn = int(s.cache[cache_slot(s, file, pgoff)])
            if pfn >= 0:
                get_page(s, pfn)
                add_rss(s, mm, pfn, 1)
                m.entry[table, i] = (pfn << PAGE_SHIFT) | prot
                done += 1
                found = found or at == address & -(1 << PAGE_SHIFT)
        at += 1 << PAGE_SHIFT
    count_writes(m, done)
    return found


@routine
def do_fault(h: int, cpu: int, row: int, mm: int, pmd: int, address: int, write: bool) -> int:
    """``do_fault``: a page of a file that is not mapped yet. A PTE table is made when it turns out to be needed: for a private write, behind the copy."""
    m, s = tables_and_users(h)
    vma, flags = s.vma[row], int(s.vma[row]["vm_flags"])
    file, page = int(vma["vm_file"]), address & -(1 << PAGE_SHIFT)
    pgoff = int(vma["vm_pgoff"]) + ((page - int(vma["vm_start"])) >> PAGE_SHIFT)
    if int(s.file[file]["kind"]) == FILE_SPECIAL:
        table = user_table(h, cpu, mm, address, 1)
        if table < 0:
            return table
        set_entry(m, table, table_index(m, address, 1), int(s.config[0]["zero_pfn"]), page_prot(m, flags))
        return 0
    if not write:
        if int(s.config[0]["fault_around"]) > 1:
            table = user_table(h, cpu, mm, address, 1)
            if table < 0:
                return table
            if filemap_map_pages(h, row, mm, table, file, address):
                return 0
        pfn = filemap_fault(h, cpu, row, mm, file, pgoff)
        if pfn < 0:
            return pfn
        table = user_table(h, cpu, mm, address, 1)
        if table < 0:
            return table
        get_page(s, pfn)
        add_rss(s, mm, pfn, 1)
        set_entry(m, table, table_index(m, address, 1), pfn, page_prot(m, flags))
        return 0
    if not flags & VM_SHARED:
        if int(vma["anon_vma"]) == NIL:
            return FAULT_ANON_VMA
        copy = take_page(h, cpu, 0, GFP_ANON)
        if copy < 0:
            return copy
        new_anon_page(s, copy, row, address, 1)
        pfn = filemap_fault(h, cpu, row, mm, file, pgoff)
        table = user_table(h, cpu, mm, address, 1) if pfn >= 0 else pfn
        if table < 0:
            put_page(h, cpu, copy)
            return table
        s.config[0]["source"], s.config[0]["target"] = pfn, copy
        s.mm[mm]["rss_anon"] = int(s.mm[mm]["rss_anon"]) + 1
        lru_cache_add(h, cpu, copy, 0)
        set_entry(m, table, table_index(m, address, 1), copy, writable(page_prot(m, flags), flags))
        s.config[0]["cow"] = int(s.config[0]["cow"]) + 1
        return 0
    pfn = filemap_fault(h, cpu, row, mm, file, pgoff)
    if pfn < 0:
        return pfn
    table = user_table(h, cpu, mm, address, 1)
    if table < 0:
        return table
    get_page(s, pfn)
    add_rss(s, mm, pfn, 1)
    set_entry(m, table, table_index(m, address, 1), pfn, writable(page_prot(m, flags), flags))
    set_flags(s, pfn, PG_DIRTY, 0)
    return 0


# The fault


@inner
def count_fault(s: Any, mm: int) -> None:
    """``min_flt``."""
    s.mm[mm]["min_flt"] = int(s.mm[mm]["min_flt"]) + 1


@inner
def access_error(flags: int, access: int) -> bool:
    """``access_error``: whether an area's rights forbid an access; PF_PROT: the page was there, and did not allow it."""
    if access & WRITE:
        return not flags & VM_WRITE
    return access & PF_PROT != 0 or flags & (VM_READ | VM_WRITE | VM_EXEC) == 0


@routine
def area_of(h: int, mm: int, address: int) -> int:
    """`find_vma`."""
    return find_vma(users_state(h), mm, address)


@routine
def handle_mm_fault(h: int, cpu: int, mm: int, address: int, access: int) -> int:
    """``do_user_addr_fault`` and ``handle_mm_fault``.

    :param access: the error code: WRITE, EXEC, PF_PROT.
    """
    m, s = tables_and_users(h)
    row = area_of(h, mm, address)
    if row == NIL:
        return FAULT_MAPERR
    vma = s.vma[row]
    if int(vma["vm_start"]) > address:
        return FAULT_STACK if int(vma["vm_flags"]) & VM_GROWSDOWN else FAULT_MAPERR
    flags, write = int(vma["vm_flags"]), access & WRITE != 0
    if access_error(flags, access):
        return FAULT_ACCERR
    pmd, top = int(s.mm[mm]["pgd"]), int(m.config[0]["levels"])
    level = top
    while level > 2:
        i = table_index(m, address, level)
        if not int(m.entry[pmd, i]) & PAGE_PRESENT:
            pmd = user_table(h, cpu, mm, address, 2)
            if pmd < 0:
                return pmd
            break
        pmd = int(m.child[pmd, i])
        level -= 1
    i = table_index(m, address, 2)
    entry = int(m.entry[pmd, i])
    if is_huge(entry):
        if not write or entry & PAGE_RW:
            return 0
        if do_huge_pmd_wp_page(h, row, mm, pmd, i, address) == 0:
            count_fault(s, mm)
            return 0
        entry = int(m.entry[pmd, i])
    elif entry == 0 and thp_allowed(s, row, flags):
        done = do_huge_pmd_anonymous_page(h, cpu, row, mm, pmd, i, address, write)
        if done <= 0:
            if done == 0:
                count_fault(s, mm)
            return done
    anonymous, majors = int(vma["vm_file"]) < 0, int(s.mm[mm]["maj_flt"])
    table, k, old = -1, table_index(m, address, 1), 0
    if entry & PAGE_PRESENT:
        table = int(m.child[pmd, i])
        old = int(m.entry[table, k])
    if old & PRESENT:
        if not write or old & PAGE_RW:
            return 0  # somebody else's fault, or a stale TLB
        done = do_wp_page(h, cpu, row, mm, table, k, address)
    elif old:
        done = do_swap_page(h, cpu, row, mm, table, k, address, write)
        if done == 0 and write and not int(m.entry[table, k]) & PAGE_RW:
            done = do_wp_page(h, cpu, row, mm, table, k, address)
    elif anonymous:
        if table < 0:
            table = user_table(h, cpu, mm, address, 1)
            if table < 0:
                return table
        done = do_anonymous_page(h, cpu, row, mm, table, k, address, write)
    else:
        done = do_fault(h, cpu, row, mm, pmd, address, write)
    if done == 0 and int(s.mm[mm]["maj_flt"]) == majors:
        count_fault(s, mm)
    return done


# fork


@routine
def copy_ptes(h: int, mm: int, flags: int, source: int, target: int, first: int, n: int) -> None:
    """``copy_pte_range`` with both tables: pages of a private area become read-only in both processes."""
    m, s = tables_and_users(h)
    private = flags & VM_SHARED == 0
    for k in range(first, first + n):
        entry = int(m.entry[source, k])
        if int(m.entry[target, k]):  # copied before the request for a page table had to wait
            continue
        if entry & PRESENT == 0:
            if entry:  # copy_nonpresent_pte
                swap_duplicate(s, entry_slot(m, s, entry))
                s.mm[mm]["rss_swap"] = int(s.mm[mm]["rss_swap"]) + 1
                entry &= ~SWP_EXCLUSIVE
                m.entry[source, k] = entry
                m.entry[target, k] = entry
            continue
        pfn = (entry & PFN_BITS) >> PAGE_SHIFT
        if not is_zero_page(s, pfn):
            get_page(s, pfn)
            if int(s.frame[pfn]) & TAIL:
                s.frame[pfn] = int(s.frame[pfn]) + REF
            if int(s.frame[compound_head(s, pfn)]) & ANON:
                s.frame[pfn] = int(s.frame[pfn]) & ~EXCLUSIVE
            add_rss(s, mm, pfn, 1)
        if private and entry & PAGE_RW:
            entry &= ~PAGE_RW
            m.entry[source, k] = entry
            count_writes(m, 1)
        elif not private:
            entry &= ~PAGE_DIRTY
        m.entry[target, k] = entry & ~PAGE_ACCESSED
        count_writes(m, 1)


@routine
def copy_page_range(h: int, cpu: int, row: int, parent: int) -> int:
    """``copy_page_range``: tables for the child where the parent has some, from the top down, and the same pages: 0 or a negative error.

    An area without an anon_vma has nothing that a fault could not bring back.
    """
    m, s = tables_and_users(h)
    mm, source, flags = int(s.vma[row]["vm_mm"]), int(s.vma[parent]["vm_mm"]), int(s.vma[parent]["vm_flags"])
    if int(s.vma[parent]["anon_vma"]) == NIL:
        return 0
    pgd, address, end = int(s.mm[source]["pgd"]), int(s.vma[parent]["vm_start"]), int(s.vma[parent]["vm_end"])
    bits = int(m.config[0]["bits"])
    while address < end:
        table, level = pgd, int(m.config[0]["levels"])
        while level > 1:
            i = table_index(m, address, level)
            entry = int(m.entry[table, i])
            if level == 2 and is_huge(entry):
                error = copy_huge_pmd(h, cpu, mm, table, i, address)
                if error:
                    return error
                break
            if not entry & PAGE_PRESENT:
                break
            made = user_table(h, cpu, mm, address, level - 1)
            if made < 0:
                return made
            table = int(m.child[table, i])
            level -= 1
        size = 1 << (PAGE_SHIFT + (max(level, 2) - 1) * bits)
        stop = min((address + size) & -size, end)
        if level == 1:
            target = user_table(h, cpu, mm, address, 1)
            if target < 0:
                return target
            copy_ptes(h, mm, flags, table, target, table_index(m, address, 1), (stop - address) >> PAGE_SHIFT)
        address = stop
    flush_tlb_range(m, pgd, int(s.vma[parent]["vm_start"]), end)
    return 0


@routine
def copy_huge_pmd(h: int, cpu: int, mm: int, pmd: int, i: int, address: int) -> int:
    """``copy_huge_pmd``: a table in reserve, and the same huge page, read-only in both."""
    m, s = tables_and_users(h)
    target = pmd_of(m, int(s.mm[mm]["pgd"]), address)
    if target >= 0 and int(m.entry[target, i]):
        return 0
    spare = new_user_table(h, cpu, 1)
    if spare < 0:
        return spare
    target = user_table(h, cpu, mm, address, 2)
    if target < 0:
        free_user_table(h, cpu, spare)
        return target
    entry = int(m.entry[pmd, i])
    pfn = huge_pfn(entry)
    if pfn == int(s.config[0]["huge_zero_pfn"]):
        if not int(s.mm[mm]["huge_zero"]):
            s.mm[mm]["huge_zero"] = 1
            s.config[0]["huge_zero_refcount"] = int(s.config[0]["huge_zero_refcount"]) + 1
    else:
        s.frame[pfn] = (int(s.frame[pfn]) + REF) & ~EXCLUSIVE
        s.folio[pfn]["mapcount"] = int(s.folio[pfn]["mapcount"]) + HPAGE_PMD_NR
        s.mm[mm]["rss_anon"] = int(s.mm[mm]["rss_anon"]) + HPAGE_PMD_NR
    entry &= ~PAGE_RW
    m.entry[pmd, i] = entry
    m.entry[target, i] = entry & ~PAGE_ACCESSED
    count_writes(m, 2)
    deposit(m, target, spare)
    s.mm[mm]["pgtables"] = int(s.mm[mm]["pgtables"]) + 1
    return 0
