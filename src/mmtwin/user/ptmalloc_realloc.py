"""realloc and memalign (malloc/malloc.c: _int_realloc, mremap_chunk, _int_memalign)."""

from __future__ import annotations

from mmtwin._jit import inner, slow
from mmtwin.units import PAGE_SIZE
from mmtwin.user.ptmalloc_bins import unlink_chunk
from mmtwin.user.ptmalloc_free import int_free
from mmtwin.user.ptmalloc_memory import (
    at,
    chunksize,
    forget_header,
    head,
    inuse_bit_at_offset,
    place,
    prev_size,
    set_head,
    set_head_size,
    set_inuse_bit_at_offset,
)
from mmtwin.user.ptmalloc_tables import (
    AR_SYSTEM_MEM,
    AR_TOP,
    ASSERTION,
    CHUNK_HDR_SZ,
    IS_MMAPPED,
    MINSIZE,
    MREMAP_POINTER,
    NON_MAIN_ARENA,
    PREV_INUSE,
    REALLOC_NEXT_SIZE,
    REALLOC_OLD_SIZE,
    SIZE_SZ,
    Ptmalloc,
)
from mmtwin.user.ptmalloc_vm import page_align, vm_mremap

MUST_MOVE = 0


@slow
def mremap_chunk(m: Ptmalloc, p: int, i: int, nb: int) -> int:
    """``mremap_chunk``: a mapped chunk's new place, 0 if the kernel refuses, or an abort."""
    mp = m.mp[0]
    offset = prev_size(m, i)
    block, total = p - offset, offset + chunksize(m, i)
    inside = (p + CHUNK_HDR_SZ) & (PAGE_SIZE - 1)
    if (block | total) & (PAGE_SIZE - 1) or inside & (inside - 1):
        return MREMAP_POINTER
    size = page_align(nb + offset + SIZE_SZ)
    if total == size:
        return p
    moved = vm_mremap(m, block, total, size)
    if moved == 0:
        return 0
    if moved != block:
        forget_header(m, i)
        p = moved + offset
        i = place(m, p)
        m.word[i] = offset
    set_head(m, i, (size - offset) | IS_MMAPPED)
    mp["mmapped_mem"] += size - total
    mp["max_mmapped_mem"] = max(int(mp["max_mmapped_mem"]), int(mp["mmapped_mem"]))
    return p


@slow
def finish_resize(m: Ptmalloc, t: int, av: int, p: int, i: int, newsize: int, nb: int) -> int:
    """The end of ``_int_realloc``: a chunk of `newsize` keeps `nb` bytes and gives the rest back; the address, or an abort."""
    flag = 0 if av == int(m.mp[0]["main_arena"]) else NON_MAIN_ARENA
    rest = newsize - nb
    if rest < MINSIZE:
        set_head_size(m, i, newsize | flag)
        set_inuse_bit_at_offset(m, p, newsize)
        return p + CHUNK_HDR_SZ
    remainder = p + nb
    set_head_size(m, i, nb | flag)
    set_head(m, at(m, remainder), rest | PREV_INUSE | flag)
    set_inuse_bit_at_offset(m, remainder, rest)
    error = int_free(m, t, av, remainder, 1)
    return error if error < 0 else p + CHUNK_HDR_SZ


@slow
def resize(m: Ptmalloc, t: int, av: int, p: int, i: int, oldsize: int, nb: int) -> int:
    """``_int_realloc`` as far as it works in place: if the chunk is large enough, or what follows is top or free and large enough.

    The address, `MUST_MOVE`, or an abort.
    """
    word = m.word
    a = at(m, av)
    flag = 0 if av == int(m.mp[0]["main_arena"]) else NON_MAIN_ARENA
    system_mem = int(word[a + AR_SYSTEM_MEM])
    if head(m, i) <= CHUNK_HDR_SZ or oldsize >= system_mem:
        return REALLOC_OLD_SIZE
    following = p + oldsize
    n = at(m, following)
    nextsize = chunksize(m, n)
    if head(m, n) <= CHUNK_HDR_SZ or nextsize >= system_mem:
        return REALLOC_NEXT_SIZE
    newsize = oldsize
    if oldsize < nb:
        top = int(word[a + AR_TOP])
        newsize = oldsize + nextsize
        if following == top and newsize >= nb + MINSIZE:
            set_head_size(m, i, nb | flag)
            word[a + AR_TOP] = p + nb
            set_head(m, at(m, p + nb), (newsize - nb) | PREV_INUSE)
            return p + CHUNK_HDR_SZ
        if following == top or inuse_bit_at_offset(m, following, nextsize) or newsize < nb:
            return MUST_MOVE
        error = unlink_chunk(m, following, n)
        if error < 0:
            return error
    return finish_resize(m, t, av, p, i, newsize, nb)


@inner
def lead_of(p: int, alignment: int) -> int:
    """How much of a chunk lies before the first place in it that is aligned and leaves room for a free chunk in front; 0 if it is aligned itself."""
    address = p + CHUNK_HDR_SZ
    if address % alignment == 0:
        return 0
    lead = ((address + alignment - 1) & -alignment) - address
    return lead if lead >= MINSIZE else lead + alignment


@slow
def cut_aligned(m: Ptmalloc, t: int, av: int, address: int, alignment: int, nb: int) -> int:
    """The second part of ``_int_memalign``: gives both ends of a larger chunk back; the aligned address, or an abort."""
    flag = 0 if av == int(m.mp[0]["main_arena"]) else NON_MAIN_ARENA
    p = address - CHUNK_HDR_SZ
    i = at(m, p)
    lead = lead_of(p, alignment)
    if lead:
        new = p + lead
        newsize = chunksize(m, i) - lead
        if head(m, i) & IS_MMAPPED:
            n = place(m, new)
            m.word[n] = prev_size(m, i) + lead
            set_head(m, n, newsize | IS_MMAPPED)
            return new + CHUNK_HDR_SZ
        n = at(m, new)
        set_head(m, n, newsize | PREV_INUSE | flag)
        set_inuse_bit_at_offset(m, new, newsize)
        set_head_size(m, i, lead | flag)
        error = int_free(m, t, av, p, 1)
        if error < 0:
            return error
        if newsize < nb:
            return ASSERTION
        p, i = new, n
    if not head(m, i) & IS_MMAPPED:
        size = chunksize(m, i)
        if size > nb + MINSIZE:
            remainder = p + nb
            set_head(m, at(m, remainder), (size - nb) | PREV_INUSE | flag)
            set_head_size(m, i, nb)
            error = int_free(m, t, av, remainder, 1)
            if error < 0:
                return error
    return p + CHUNK_HDR_SZ
