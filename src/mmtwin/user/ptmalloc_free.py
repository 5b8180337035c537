"""free: the tcache, fastbins, joining neighbours, and giving memory back to the kernel (malloc/malloc.c: _int_free, malloc_consolidate, systrim, munmap_chunk;
arena.c: heap_trim).

Everything returns 0, or a negative code for what ends the process.
"""

from __future__ import annotations

from mmtwin._jit import inner, slow
from mmtwin.units import PAGE_SIZE
from mmtwin.user.ptmalloc_bins import csize2tidx, has_tcache, insert_unsorted, tcache_has_room, tcache_put, unlink_chunk
from mmtwin.user.ptmalloc_memory import (
    at,
    chunksize,
    clear,
    forget_header,
    head,
    inuse_bit_at_offset,
    prev_size,
    protect_ptr,
    set_foot,
    set_head,
)
from mmtwin.user.ptmalloc_tables import (
    AR_FASTBINS,
    AR_FLAGS,
    AR_HAVE_FASTCHUNKS,
    AR_SYSTEM_MEM,
    AR_TOP,
    ASSERTION,
    CHUNK_BK,
    CHUNK_FD,
    CHUNK_HDR_SZ,
    CHUNK_SIZE,
    CONSOLIDATE_SIZE,
    CONSOLIDATE_UNALIGNED,
    FASTBIN_CONSOLIDATION_THRESHOLD,
    FASTBIN_ENTRY,
    FASTTOP,
    FREE_INVALID_POINTER,
    FREE_INVALID_SIZE,
    FREE_NEXT_SIZE_FAST,
    FREE_NEXT_SIZE_NORMAL,
    FREE_NOT_PREV,
    FREE_OUT,
    FREE_TOP,
    FREE_UNSORTED,
    HEAP_AR_PTR,
    HEAP_INFO_BYTES,
    HEAP_MAX_SIZE,
    HEAP_MPROTECT_SIZE,
    HEAP_PREV,
    HEAP_SIZE,
    IS_MMAPPED,
    MINSIZE,
    MUNMAP_POINTER,
    NFASTBINS,
    NONCONTIGUOUS,
    PREV_INUSE,
    PREV_SIZE_CONSOLIDATING,
    PREV_SIZE_FASTBINS,
    SEGV,
    TCACHE_DOUBLE_FREE,
    TCACHE_MAX_BINS,
    TCACHE_TOO_MANY,
    TCACHE_UNALIGNED,
    TOO_BIG,
    Ptmalloc,
)
from mmtwin.user.ptmalloc_vm import morecore, remove_range, vm_dontneed, vm_munmap, vm_revoke


@slow
def malloc_consolidate(m: Ptmalloc, av: int) -> int:
    """``malloc_consolidate``: empties the fastbins, joining each chunk with its free neighbours."""
    word = m.word
    a = at(m, av)
    word[a + AR_HAVE_FASTCHUNKS] = 0
    m.mp[0]["consolidations"] += 1
    for fastbin in range(NFASTBINS):
        p = int(word[a + AR_FASTBINS + fastbin])
        word[a + AR_FASTBINS + fastbin] = 0
        while p != 0:
            if p & 15:
                return CONSOLIDATE_UNALIGNED
            i = at(m, p)
            size = chunksize(m, i)
            if (size >> 4) - 2 != fastbin:
                return CONSOLIDATE_SIZE
            following = protect_ptr(p + 16, int(word[i + CHUNK_FD]))
            nextchunk = p + size
            n = at(m, nextchunk)
            nextsize = chunksize(m, n)
            if not head(m, i) & PREV_INUSE:
                prevsize = prev_size(m, i)
                size += prevsize
                p -= prevsize
                i = at(m, p)
                if chunksize(m, i) != prevsize:
                    return PREV_SIZE_FASTBINS
                error = unlink_chunk(m, p, i)
                if error < 0:
                    return error
            if nextchunk != int(word[a + AR_TOP]):
                if not inuse_bit_at_offset(m, nextchunk, nextsize):
                    size += nextsize
                    error = unlink_chunk(m, nextchunk, n)
                    if error < 0:
                        return error
                else:
                    word[n + CHUNK_SIZE] &= ~PREV_INUSE
                insert_unsorted(m, av, a, p, i, size)
                set_head(m, i, size | PREV_INUSE)
                set_foot(m, p, size)
            else:
                size += nextsize
                set_head(m, i, size | PREV_INUSE)
                word[a + AR_TOP] = p
            p = following
            if int(m.mp[0]["fault"]) != 0:
                return SEGV
    return 0


@slow
def systrim(m: Ptmalloc, av: int, pad: int) -> int:
    """``systrim``: lowers the end of the heap if it is where malloc set it; 1 if it moved.

    `top_area` is compared as an unsigned number, so of a top of just 32 bytes it is huge, and the heap grows by a page.
    """
    a = at(m, av)
    top = int(m.word[a + AR_TOP])
    i = at(m, top)
    top_size = chunksize(m, i)
    top_area = top_size - MINSIZE - 1
    if 0 <= top_area <= pad:
        return 0
    extra = (top_area - pad) & -PAGE_SIZE
    if extra == 0:
        return 0
    current = morecore(m, 0)
    if current != top + top_size:
        return 0
    morecore(m, -extra)
    released = current - morecore(m, 0)
    if released == 0:
        return 0
    m.mp[0]["trims"] += 1
    m.word[a + AR_SYSTEM_MEM] -= released
    set_head(m, i, (top_size - released) | PREV_INUSE)
    return 1


@slow
def heap_trim(m: Ptmalloc, heap: int, pad: int) -> int:
    """``heap_trim``: unmaps the last heaps of an arena that are quite free, then gives back the end of the one before; 0 or an abort."""
    word = m.word
    h = at(m, heap)
    a = at(m, int(word[h + HEAP_AR_PTR]))
    top = int(word[a + AR_TOP])
    while top == heap + HEAP_INFO_BYTES:
        prev_heap = int(word[h + HEAP_PREV])
        v = at(m, prev_heap)
        fence = prev_heap + int(word[v + HEAP_SIZE]) - (MINSIZE - 16)
        misalign = fence & 15
        fence -= misalign
        f = at(m, fence)
        if head(m, f) != PREV_INUSE:
            return ASSERTION
        p = fence - prev_size(m, f)
        i = at(m, p)
        new_size = chunksize(m, i) + (MINSIZE - 16) + misalign
        if not 0 < new_size < 2 * MINSIZE:
            return ASSERTION
        if not head(m, i) & PREV_INUSE:
            new_size += prev_size(m, i)
        if not 0 < new_size < HEAP_MAX_SIZE:
            return ASSERTION
        if new_size + (HEAP_MAX_SIZE - int(word[v + HEAP_SIZE])) < pad + MINSIZE + PAGE_SIZE:
            break
        word[a + AR_SYSTEM_MEM] -= int(word[h + HEAP_SIZE])
        if heap + HEAP_MAX_SIZE == int(m.mp[0]["aligned_heap_area"]):
            m.mp[0]["aligned_heap_area"] = 0
        clear(m, heap, heap + int(word[h + HEAP_MPROTECT_SIZE]))
        vm_munmap(m, heap, HEAP_MAX_SIZE)
        heap, h = prev_heap, v
        if not head(m, i) & PREV_INUSE:
            p -= prev_size(m, i)
            i = at(m, p)
            error = unlink_chunk(m, p, i)
            if error < 0:
                return error
        if p + new_size != heap + int(word[h + HEAP_SIZE]):
            return ASSERTION
        top = p
        word[a + AR_TOP] = top
        set_head(m, i, new_size | PREV_INUSE)
    i = at(m, top)
    top_size = chunksize(m, i)
    if top_size < int(m.mp[0]["trim_threshold"]):
        return 0
    top_area = top_size - MINSIZE - 1
    if top_area < 0 or top_area <= pad:
        return 0
    extra = (top_area - pad) & -PAGE_SIZE
    if extra == 0:
        return 0
    new_size = int(word[h + HEAP_SIZE]) - extra
    if new_size < HEAP_INFO_BYTES:
        return 0
    if int(m.mp[0]["may_shrink_heap"]):
        if vm_revoke(m, heap + new_size, extra) < 0:
            return 0
        word[h + HEAP_MPROTECT_SIZE] = new_size
    else:
        vm_dontneed(m, heap + new_size, extra)
    word[h + HEAP_SIZE] = new_size
    m.mp[0]["trims"] += 1
    word[a + AR_SYSTEM_MEM] -= extra
    set_head(m, i, (top_size - extra) | PREV_INUSE)
    return 0


@slow
def munmap_chunk(m: Ptmalloc, p: int, i: int) -> int:
    """``munmap_chunk``."""
    before = prev_size(m, i)
    block, total = p - before, before + chunksize(m, i)
    offset = (p + 16) & (PAGE_SIZE - 1)
    if (block | total) & (PAGE_SIZE - 1) or offset & (offset - 1):
        return MUNMAP_POINTER
    m.mp[0]["n_mmaps"] -= 1
    m.mp[0]["mmapped_mem"] -= total
    m.mp[0]["munmap_calls"] += 1
    forget_header(m, i)
    forget_header(m, at(m, block))
    remove_range(m, block, block + total)
    return 0


@slow
def find_in_tcache(m: Ptmalloc, t: int, e: int, idx: int) -> int:
    """The search that follows when a chunk to be freed bears the tcache's key: the double free, or 0 if it was a coincidence."""
    entry = int(m.bin[t * TCACHE_MAX_BINS + idx]["entries"])
    count = 0
    while entry != 0:
        if count >= int(m.mp[0]["tcache_count"]):
            return TCACHE_TOO_MANY
        if entry & 15:
            return TCACHE_UNALIGNED
        if entry == e:
            return TCACHE_DOUBLE_FREE
        entry = protect_ptr(entry, int(m.word[at(m, entry)]))
        if int(m.mp[0]["fault"]) != 0:
            return SEGV
        count += 1
    return 0


@inner
def merge_and_insert(m: Ptmalloc, av: int, a: int, p: int, i: int, size: int) -> int:
    """The last part of ``_int_free``: joins a chunk with its free neighbours, and trims what has become large."""
    word = m.word
    nextchunk = p + size
    n = at(m, nextchunk)
    top = int(word[a + AR_TOP])
    if p == top:
        return FREE_TOP
    if not int(word[a + AR_FLAGS]) & NONCONTIGUOUS and nextchunk >= top + chunksize(m, at(m, top)):
        return FREE_OUT
    if not head(m, n) & PREV_INUSE:
        return FREE_NOT_PREV
    nextsize = chunksize(m, n)
    if head(m, n) <= CHUNK_HDR_SZ or nextsize >= int(word[a + AR_SYSTEM_MEM]):
        return FREE_NEXT_SIZE_NORMAL
    if not head(m, i) & PREV_INUSE:
        prevsize = prev_size(m, i)
        size += prevsize
        p -= prevsize
        i = at(m, p)
        if chunksize(m, i) != prevsize:
            return PREV_SIZE_CONSOLIDATING
        error = unlink_chunk(m, p, i)
        if error < 0:
            return error
    if nextchunk != top:
        if not inuse_bit_at_offset(m, nextchunk, nextsize):
            error = unlink_chunk(m, nextchunk, n)
            if error < 0:
                return error
            size += nextsize
        else:
            word[n + CHUNK_SIZE] &= ~PREV_INUSE
        if insert_unsorted(m, av, a, p, i, size):
            return FREE_UNSORTED
        set_head(m, i, size | PREV_INUSE)
        set_foot(m, p, size)
    else:
        size += nextsize
        set_head(m, i, size | PREV_INUSE)
        word[a + AR_TOP] = p
    if size >= FASTBIN_CONSOLIDATION_THRESHOLD:
        if int(word[a + AR_HAVE_FASTCHUNKS]):
            error = malloc_consolidate(m, av)
            if error < 0:
                return error
        top = int(word[a + AR_TOP])
        if av == int(m.mp[0]["main_arena"]):
            if chunksize(m, at(m, top)) >= int(m.mp[0]["trim_threshold"]):
                systrim(m, av, int(m.mp[0]["top_pad"]))
        else:
            return heap_trim(m, top & ~(HEAP_MAX_SIZE - 1), int(m.mp[0]["top_pad"]))
    return 0


@slow
def int_free(m: Ptmalloc, t: int, av: int, p: int, have_lock: int) -> int:
    """``_int_free``."""
    word = m.word
    i = at(m, p)
    size = chunksize(m, i)
    if p & 15 or size <= 0:  # of no size: the address is beyond -size
        return FREE_INVALID_POINTER
    if size < MINSIZE or size & 15:
        return FREE_INVALID_SIZE
    if size > TOO_BIG:
        return FREE_OUT
    idx = csize2tidx(size)
    if has_tcache(m, t, idx):
        if int(word[i + CHUNK_BK]) == int(m.mp[0]["tcache_key"]):
            error = find_in_tcache(m, t, p + 16, idx)
            if error < 0:
                return error
        if tcache_has_room(m, t, idx):
            tcache_put(m, t, p, i, idx)
            return 0
    a = at(m, av)
    if size <= int(m.mp[0]["global_max_fast"]):
        n = at(m, p + size)
        if head(m, n) <= CHUNK_HDR_SZ or chunksize(m, n) >= int(word[a + AR_SYSTEM_MEM]):
            return FREE_NEXT_SIZE_FAST
        word[a + AR_HAVE_FASTCHUNKS] = 1
        fastbin = a + AR_FASTBINS + (size >> 4) - 2
        old = int(word[fastbin])
        if old == p:
            return FASTTOP
        word[i + CHUNK_FD] = protect_ptr(p + 16, old)
        word[fastbin] = p
        if have_lock and old != 0 and chunksize(m, at(m, old)) >> 4 != size >> 4:
            return FASTBIN_ENTRY
        return 0
    if head(m, i) & IS_MMAPPED:
        return munmap_chunk(m, p, i)
    return merge_and_insert(m, av, a, p, i, size)
