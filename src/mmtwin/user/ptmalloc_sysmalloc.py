"""When no free chunk is large enough: a mapping of its own, a longer heap, or a new one (malloc/malloc.c: sysmalloc)."""

from __future__ import annotations

from mmtwin._jit import slow
from mmtwin.user.ptmalloc_arena import grow_heap, new_heap
from mmtwin.user.ptmalloc_free import int_free
from mmtwin.user.ptmalloc_memory import at, chunksize, place, set_foot, set_head
from mmtwin.user.ptmalloc_tables import (
    AR_FLAGS,
    AR_MAX_SYSTEM_MEM,
    AR_SYSTEM_MEM,
    AR_TOP,
    ASSERTION,
    BREAK_ADJUSTED,
    CHUNK_HDR_SZ,
    HEAP_AR_PTR,
    HEAP_INFO_BYTES,
    HEAP_MAX_SIZE,
    HEAP_PREV,
    HEAP_SIZE,
    IS_MMAPPED,
    MINSIZE,
    MMAP_AS_MORECORE_SIZE,
    NON_MAIN_ARENA,
    NONCONTIGUOUS,
    PREV_INUSE,
    SIZE_SZ,
    UNSORTED,
    Ptmalloc,
)
from mmtwin.user.ptmalloc_vm import morecore, page_align, vm_mmap


@slow
def sysmalloc_mmap(m: Ptmalloc, nb: int) -> int:
    """``sysmalloc_mmap``: a chunk that is a mapping of its own; 0 if the kernel refuses."""
    mp = m.mp[0]
    size = page_align(nb + SIZE_SZ)
    p = vm_mmap(m, 0, size, 1)
    if p == 0:
        return 0
    i = place(m, p)
    m.word[i] = 0
    set_head(m, i, size | IS_MMAPPED)
    mp["n_mmaps"] += 1
    mp["max_n_mmaps"] = max(int(mp["max_n_mmaps"]), int(mp["n_mmaps"]))
    mp["mmapped_mem"] += size
    mp["max_mmapped_mem"] = max(int(mp["max_mmapped_mem"]), int(mp["mmapped_mem"]))
    return p + CHUNK_HDR_SZ


@slow
def extend_heap(m: Ptmalloc, t: int, av: int, a: int, nb: int, tried_mmap: int) -> int:
    """The part of ``sysmalloc`` for other arenas than main_arena: 0 if top may do now, a chunk's address, or an abort."""
    word = m.word
    old_top = int(word[a + AR_TOP])
    o = at(m, old_top)
    old_size = chunksize(m, o)
    old_heap = old_top & ~(HEAP_MAX_SIZE - 1)
    h = at(m, old_heap)
    before = int(word[h + HEAP_SIZE])
    if MINSIZE + nb - old_size > 0 and grow_heap(m, old_heap, h, MINSIZE + nb - old_size) == 0:
        word[a + AR_SYSTEM_MEM] += int(word[h + HEAP_SIZE]) - before
        set_head(m, o, (old_heap + int(word[h + HEAP_SIZE]) - old_top) | PREV_INUSE)
        return 0
    heap = new_heap(m, nb + MINSIZE + HEAP_INFO_BYTES, int(m.mp[0]["top_pad"]))
    if heap != 0:
        n = at(m, heap)
        word[n + HEAP_AR_PTR] = av
        word[n + HEAP_PREV] = old_heap
        size = int(word[n + HEAP_SIZE])
        word[a + AR_SYSTEM_MEM] += size
        top = heap + HEAP_INFO_BYTES
        word[a + AR_TOP] = top
        set_head(m, at(m, top), (size - HEAP_INFO_BYTES) | PREV_INUSE)
        # the old top is freed, but for two fenceposts at its end
        old_size = (old_size - MINSIZE) & ~15
        set_head(m, at(m, old_top + old_size + CHUNK_HDR_SZ), PREV_INUSE)
        if old_size >= MINSIZE:
            set_head(m, at(m, old_top + old_size), CHUNK_HDR_SZ | PREV_INUSE)
            set_foot(m, old_top + old_size, CHUNK_HDR_SZ)
            set_head(m, o, old_size | PREV_INUSE | NON_MAIN_ARENA)
            return int_free(m, t, av, old_top, 1)
        set_head(m, o, (old_size + CHUNK_HDR_SZ) | PREV_INUSE)
        set_foot(m, old_top, old_size + CHUNK_HDR_SZ)
        return 0
    return 0 if tried_mmap else sysmalloc_mmap(m, nb)


@slow
def extend_main(m: Ptmalloc, t: int, av: int, a: int, nb: int) -> int:
    """The part of ``sysmalloc`` for main_arena: more memory from brk, or from mmap where brk fails; 0 or an abort."""
    word, mp = m.word, m.mp[0]
    old_top = int(word[a + AR_TOP])
    o = at(m, old_top)
    old_size = chunksize(m, o)
    old_end = old_top + old_size
    contiguous = not int(word[a + AR_FLAGS]) & NONCONTIGUOUS
    size = nb + int(mp["top_pad"]) + MINSIZE
    if contiguous:
        size -= old_size
    size = page_align(size)
    brk, snd_brk = 0, 0
    if size > 0:
        brk = morecore(m, size)
    if brk == 0:
        if contiguous:  # glibc 2.36 swaps two arguments here: the first piece is rounded up to MiB, later ones are as small as may be
            size = (size + old_size + MMAP_AS_MORECORE_SIZE - 1) & -MMAP_AS_MORECORE_SIZE
        if size <= nb:
            return 0
        brk = vm_mmap(m, 0, size, 1)
        if brk == 0:
            return 0
        place(m, brk)
        place(m, brk + size - 1)
        word[a + AR_FLAGS] = int(word[a + AR_FLAGS]) | NONCONTIGUOUS
        contiguous = False
        snd_brk = brk + size
    if int(mp["sbrk_base"]) == 0:
        mp["sbrk_base"] = brk
    word[a + AR_SYSTEM_MEM] += size
    if brk == old_end and snd_brk == 0:
        set_head(m, o, (size + old_size) | PREV_INUSE)
        return 0
    if contiguous and old_size and brk < old_end:
        return BREAK_ADJUSTED
    correction, aligned_brk = 0, brk
    if contiguous:
        if old_size:  # somebody else moved the break: what lies between counts as malloc's, too
            word[a + AR_SYSTEM_MEM] += brk - old_end
        misalign = (brk + CHUNK_HDR_SZ) & 15
        if misalign:
            correction = 16 - misalign
            aligned_brk += correction
        correction += old_size
        end = brk + size + correction
        correction += page_align(end) - end
        snd_brk = morecore(m, correction)
        if snd_brk == 0:
            correction = 0
            snd_brk = morecore(m, 0)
    elif snd_brk == 0:
        snd_brk = morecore(m, 0)
    if snd_brk != 0:
        word[a + AR_TOP] = aligned_brk
        set_head(m, at(m, aligned_brk), (snd_brk - aligned_brk + correction) | PREV_INUSE)
        word[a + AR_SYSTEM_MEM] += correction
        if old_size:  # two fenceposts, so that nothing is joined across memory of others
            old_size = (old_size - 2 * CHUNK_HDR_SZ) & ~15
            set_head(m, o, old_size | PREV_INUSE)
            set_head(m, at(m, old_top + old_size), CHUNK_HDR_SZ | PREV_INUSE)
            set_head(m, at(m, old_top + old_size + CHUNK_HDR_SZ), CHUNK_HDR_SZ | PREV_INUSE)
            if old_size >= MINSIZE:
                return int_free(m, t, av, old_top, 1)
    return 0


@slow
def sysmalloc(m: Ptmalloc, t: int, av: int, nb: int) -> int:
    """``sysmalloc``: the address for the caller, 0 if there is no memory, or an abort. `av` 0: there is no usable arena."""
    word, mp = m.word, m.mp[0]
    tried_mmap = 0
    if av == 0 or (nb >= int(mp["mmap_threshold"]) and int(mp["n_mmaps"]) < int(mp["n_mmaps_max"])):
        address = sysmalloc_mmap(m, nb)
        if address != 0:
            return address
        tried_mmap = 1
    if av == 0:
        return 0
    a = at(m, av)
    top = int(word[a + AR_TOP])
    i = at(m, top)
    size = chunksize(m, i)
    fresh = top == av + UNSORTED and size == 0
    if not fresh and (size < MINSIZE or not int(word[i + 1]) & PREV_INUSE or (top + size) & 4095):
        return ASSERTION
    if av != int(mp["main_arena"]):
        found = extend_heap(m, t, av, a, nb, tried_mmap)
    else:
        found = extend_main(m, t, av, a, nb)
    if found != 0:
        return found
    if int(word[a + AR_SYSTEM_MEM]) > int(word[a + AR_MAX_SYSTEM_MEM]):
        word[a + AR_MAX_SYSTEM_MEM] = word[a + AR_SYSTEM_MEM]
    p = int(word[a + AR_TOP])
    i = at(m, p)
    size = chunksize(m, i)
    if size < nb + MINSIZE:
        return 0
    word[a + AR_TOP] = p + nb
    set_head(m, i, nb | PREV_INUSE | (NON_MAIN_ARENA if av != int(mp["main_arena"]) else 0))
    set_head(m, at(m, p + nb), (size - nb) | PREV_INUSE)
    return p + CHUNK_HDR_SZ
