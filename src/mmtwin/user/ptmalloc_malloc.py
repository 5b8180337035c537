"""malloc: the order in which free memory is looked for (malloc/malloc.c: _int_malloc)."""

from __future__ import annotations

from mmtwin._jit import inner, slow
from mmtwin.user.ptmalloc_bins import csize2tidx, has_tcache, insert_unsorted, tcache_get, tcache_has_room, tcache_put, unlink_chunk
from mmtwin.user.ptmalloc_free import malloc_consolidate
from mmtwin.user.ptmalloc_memory import (
    at,
    bin_at,
    bin_index,
    binmap,
    bk,
    chunksize,
    fd,
    head,
    largebin_index,
    mark_bin,
    prev_size,
    protect_ptr,
    set_foot,
    set_head,
    set_inuse_bit_at_offset,
    unmark_bin,
)
from mmtwin.user.ptmalloc_sysmalloc import sysmalloc
from mmtwin.user.ptmalloc_tables import (
    AR_FASTBINS,
    AR_HAVE_FASTCHUNKS,
    AR_LAST_REMAINDER,
    AR_SYSTEM_MEM,
    AR_TOP,
    CHUNK_BK,
    CHUNK_BK_NEXTSIZE,
    CHUNK_FD,
    CHUNK_FD_NEXTSIZE,
    CHUNK_HDR_SZ,
    CHUNK_SIZE,
    FASTBIN_UNALIGNED,
    FASTBIN_UNALIGNED_2,
    FASTBIN_UNALIGNED_3,
    LARGEBIN_BK,
    LARGEBIN_NEXTSIZE,
    MALLOC_FAST,
    MAX_ITERS,
    MIN_LARGE_SIZE,
    MINSIZE,
    NBINS,
    NON_MAIN_ARENA,
    PREV_INUSE,
    SEGV,
    SIZE_BITS,
    SMALLBIN_LIST,
    TOP_SIZE,
    UNSORTED,
    UNSORTED_CORRUPTED,
    UNSORTED_CORRUPTED_2,
    UNSORTED_LIST,
    UNSORTED_NEXT_SIZE,
    UNSORTED_PREV_INUSE,
    UNSORTED_PREV_SIZE,
    UNSORTED_SIZE,
    Ptmalloc,
)

KEEP_LOOKING = 0


@inner
def request2size(size: int) -> int:
    """``request2size``: the chunk for a request."""
    return MINSIZE if size + 23 < MINSIZE else (size + 23) & ~15


@inner
def from_fastbin(m: Ptmalloc, t: int, a: int, nb: int) -> int:
    """The newest chunk of the request's fastbin; the others go to the tcache while it has room."""
    word = m.word
    idx = (nb >> 4) - 2
    bin_ = a + AR_FASTBINS + idx
    victim = int(word[bin_])
    if victim == 0:
        return KEEP_LOOKING
    if victim & 15:
        return FASTBIN_UNALIGNED_2
    v = at(m, victim)
    following = protect_ptr(victim + 16, fd(m, v))
    if following & 15 and int(m.mp[0]["multiple_threads"]):
        return FASTBIN_UNALIGNED
    word[bin_] = following
    if (chunksize(m, v) >> 4) - 2 != idx:
        return MALLOC_FAST
    tidx = csize2tidx(nb)
    if has_tcache(m, t, tidx):
        while tcache_has_room(m, t, tidx) and int(word[bin_]) != 0:
            other = int(word[bin_])
            if other & 15:
                return FASTBIN_UNALIGNED_3
            i = at(m, other)
            following = protect_ptr(other + 16, fd(m, i))
            if following & 15 and int(m.mp[0]["multiple_threads"]):
                return FASTBIN_UNALIGNED
            word[bin_] = following
            tcache_put(m, t, other, i, tidx)
            if int(m.mp[0]["fault"]) != 0:
                return SEGV
    return victim + CHUNK_HDR_SZ


@inner
def from_smallbin(m: Ptmalloc, t: int, av: int, a: int, nb: int, non_main: int) -> int:
    """The oldest chunk of the request's small bin; the others, oldest first, go to the tcache while it has room."""
    word = m.word
    bin_address = bin_at(av, nb >> 4)
    b = a + (UNSORTED >> 3) + ((nb >> 4) - 1) * 2
    victim = bk(m, b)
    if victim == bin_address:
        return KEEP_LOOKING
    v = at(m, victim)
    back = bk(m, v)
    k = at(m, back)
    if fd(m, k) != victim:
        return SMALLBIN_LIST
    set_inuse_bit_at_offset(m, victim, nb)
    word[b + CHUNK_BK] = back
    word[k + CHUNK_FD] = bin_address
    if non_main:
        word[v + CHUNK_SIZE] |= non_main
    tidx = csize2tidx(nb)
    if has_tcache(m, t, tidx):
        while tcache_has_room(m, t, tidx) and bk(m, b) != bin_address:
            other = bk(m, b)
            i = at(m, other)
            back = bk(m, i)
            set_inuse_bit_at_offset(m, other, nb)
            if non_main:
                word[i + CHUNK_SIZE] |= non_main
            word[b + CHUNK_BK] = back
            word[at(m, back) + CHUNK_FD] = bin_address
            tcache_put(m, t, other, i, tidx)
            if int(m.mp[0]["fault"]) != 0:
                return SEGV
    return victim + CHUNK_HDR_SZ


@inner
def split(m: Ptmalloc, av: int, a: int, victim: int, v: int, size: int, nb: int, non_main: int, remember: int) -> int:
    """Hands out the lower part of a chunk that is on no list; what remains goes to the front of the unsorted bin. 1 if that list is broken."""
    rest = size - nb
    if rest < MINSIZE:
        set_inuse_bit_at_offset(m, victim, size)
        if non_main:
            m.word[v + CHUNK_SIZE] |= non_main
        return 0
    remainder = victim + nb
    r = at(m, remainder)
    if insert_unsorted(m, av, a, remainder, r, rest):
        return 1
    if remember:
        m.word[a + AR_LAST_REMAINDER] = remainder
    set_head(m, v, nb | PREV_INUSE | non_main)
    set_head(m, r, rest | PREV_INUSE)
    set_foot(m, remainder, rest)
    return 0


@inner
def file_chunk(m: Ptmalloc, av: int, a: int, victim: int, v: int, size: int) -> int:
    """Puts a chunk into its small bin (at the front) or its large one (by size, behind the first of its size); 0 or an abort."""
    word = m.word
    number = bin_index(size)
    back = bin_at(av, number)
    k = a + (UNSORTED >> 3) + (number - 1) * 2
    forward = fd(m, k)
    f = at(m, forward)
    if size >= MIN_LARGE_SIZE:
        if forward != back:
            last = at(m, bk(m, k))
            if size | PREV_INUSE < head(m, last):
                # smaller than the smallest: at the end; f is the largest one
                word[v + CHUNK_FD_NEXTSIZE] = forward
                word[v + CHUNK_BK_NEXTSIZE] = larger = int(word[f + CHUNK_BK_NEXTSIZE])
                word[f + CHUNK_BK_NEXTSIZE] = victim
                word[at(m, larger) + CHUNK_FD_NEXTSIZE] = victim
                forward, f = back, k
                back = bk(m, k)
                k = last
            else:
                while size | PREV_INUSE < head(m, f):
                    forward = int(word[f + CHUNK_FD_NEXTSIZE])
                    f = at(m, forward)
                    if int(m.mp[0]["fault"]) != 0:
                        return SEGV
                if size | PREV_INUSE == head(m, f):
                    forward = fd(m, f)
                    f = at(m, forward)
                else:
                    larger = int(word[f + CHUNK_BK_NEXTSIZE])
                    g = at(m, larger)
                    word[v + CHUNK_FD_NEXTSIZE] = forward
                    word[v + CHUNK_BK_NEXTSIZE] = larger
                    if int(word[g + CHUNK_FD_NEXTSIZE]) != forward:
                        return LARGEBIN_NEXTSIZE
                    word[f + CHUNK_BK_NEXTSIZE] = victim
                    word[g + CHUNK_FD_NEXTSIZE] = victim
                back = bk(m, f)
                k = at(m, back)
                if fd(m, k) != forward:
                    return LARGEBIN_BK
        else:
            word[v + CHUNK_FD_NEXTSIZE] = word[v + CHUNK_BK_NEXTSIZE] = victim
    mark_bin(m, a, number)
    word[v + CHUNK_BK] = back
    word[v + CHUNK_FD] = forward
    word[f + CHUNK_BK] = victim
    word[k + CHUNK_FD] = victim
    return 0


@inner
def sort_unsorted(m: Ptmalloc, t: int, av: int, a: int, nb: int, non_main: int) -> int:
    """Works through the unsorted bin, oldest first: an address if something fits, else every chunk is in its bin."""
    word, mp = m.word, m.mp[0]
    bin_address = av + UNSORTED
    u = a + (UNSORTED >> 3)
    system_mem = int(word[a + AR_SYSTEM_MEM])
    tidx = csize2tidx(nb)
    caches = has_tcache(m, t, tidx)
    cached, iterations = 0, 0
    while bk(m, u) != bin_address:
        victim = bk(m, u)
        v = at(m, victim)
        back = bk(m, v)
        k = at(m, back)
        size = chunksize(m, v)
        if size <= CHUNK_HDR_SZ or size > system_mem:
            return UNSORTED_SIZE
        n = at(m, victim + size)
        if head(m, n) < CHUNK_HDR_SZ or head(m, n) > system_mem:
            return UNSORTED_NEXT_SIZE
        if prev_size(m, n) & ~SIZE_BITS != size:
            return UNSORTED_PREV_SIZE
        if fd(m, k) != victim or fd(m, v) != bin_address:
            return UNSORTED_LIST
        if head(m, n) & PREV_INUSE:
            return UNSORTED_PREV_INUSE
        if nb < MIN_LARGE_SIZE and back == bin_address and victim == int(word[a + AR_LAST_REMAINDER]) and size > nb + MINSIZE:
            rest = size - nb
            remainder = victim + nb
            r = at(m, remainder)
            word[u + CHUNK_BK] = word[u + CHUNK_FD] = remainder
            word[a + AR_LAST_REMAINDER] = remainder
            word[r + CHUNK_BK] = word[r + CHUNK_FD] = bin_address
            if rest >= MIN_LARGE_SIZE:
                word[r + CHUNK_FD_NEXTSIZE] = word[r + CHUNK_BK_NEXTSIZE] = 0
            set_head(m, v, nb | PREV_INUSE | non_main)
            set_head(m, r, rest | PREV_INUSE)
            set_foot(m, remainder, rest)
            return victim + CHUNK_HDR_SZ
        word[u + CHUNK_BK] = back
        word[k + CHUNK_FD] = bin_address
        if size == nb:
            word[n + CHUNK_SIZE] |= PREV_INUSE
            if non_main:
                word[v + CHUNK_SIZE] |= non_main
            if caches and tcache_has_room(m, t, tidx):
                tcache_put(m, t, victim, v, tidx)
                cached = 1
                continue
            return victim + CHUNK_HDR_SZ
        error = file_chunk(m, av, a, victim, v, size)
        if error < 0:
            return error
        mp["unsorted_count"] += 1
        if cached and 0 < int(mp["tcache_unsorted_limit"]) < int(mp["unsorted_count"]):
            return tcache_get(m, t, tidx)
        iterations += 1
        if iterations >= MAX_ITERS:
            break
    return tcache_get(m, t, tidx) if cached else KEEP_LOOKING


@inner
def from_largebin(m: Ptmalloc, av: int, a: int, nb: int, number: int, non_main: int) -> int:
    """The smallest chunk of the request's large bin that is large enough; of several of its size the second."""
    bin_address = bin_at(av, number)
    b = a + (UNSORTED >> 3) + (number - 1) * 2
    victim = fd(m, b)
    if victim == bin_address:
        return KEEP_LOOKING
    v = at(m, victim)
    if head(m, v) < nb:
        return KEEP_LOOKING
    victim = int(m.word[v + CHUNK_BK_NEXTSIZE])
    v = at(m, victim)
    size = chunksize(m, v)
    while size < nb:
        victim = int(m.word[v + CHUNK_BK_NEXTSIZE])
        v = at(m, victim)
        size = chunksize(m, v)
        if int(m.mp[0]["fault"]) != 0:
            return SEGV
    if victim != bk(m, b) and head(m, v) == head(m, at(m, fd(m, v))):
        victim = fd(m, v)
        v = at(m, victim)
    error = unlink_chunk(m, victim, v)
    if error < 0:
        return error
    if split(m, av, a, victim, v, size, nb, non_main, 0):
        return UNSORTED_CORRUPTED
    return victim + CHUNK_HDR_SZ


@inner
def from_larger_bin(m: Ptmalloc, av: int, a: int, nb: int, number: int, non_main: int) -> int:
    """The last chunk of the next larger bin that is not empty, found by the bin map; bits of empty bins are cleared on the way."""
    number += 1
    while number < NBINS:
        bits = binmap(m, a, number >> 5) >> (number & 31)
        if bits == 0:
            number = (number | 31) + 1
            continue
        while bits & 1 == 0:
            bits >>= 1
            number += 1
        b = a + (UNSORTED >> 3) + (number - 1) * 2
        victim = bk(m, b)
        if victim == bin_at(av, number):
            unmark_bin(m, a, number)
            number += 1
            continue
        v = at(m, victim)
        size = chunksize(m, v)
        error = unlink_chunk(m, victim, v)
        if error < 0:
            return error
        if split(m, av, a, victim, v, size, nb, non_main, int(nb < MIN_LARGE_SIZE)):
            return UNSORTED_CORRUPTED_2
        return victim + CHUNK_HDR_SZ
    return KEEP_LOOKING


@slow
def int_malloc(m: Ptmalloc, t: int, av: int, nb: int) -> int:
    """``_int_malloc`` of a chunk of `nb` bytes: the address for the caller, 0 if there is no memory, or what ends the process."""
    if av == 0:
        return sysmalloc(m, t, 0, nb)
    word = m.word
    a = at(m, av)
    non_main = 0 if av == int(m.mp[0]["main_arena"]) else NON_MAIN_ARENA
    if nb <= int(m.mp[0]["global_max_fast"]):
        found = from_fastbin(m, t, a, nb)
        if found != KEEP_LOOKING:
            return found
    if nb < MIN_LARGE_SIZE:
        number = nb >> 4
        found = from_smallbin(m, t, av, a, nb, non_main)
        if found != KEEP_LOOKING:
            return found
    else:
        number = largebin_index(nb)
        if int(word[a + AR_HAVE_FASTCHUNKS]):
            error = malloc_consolidate(m, av)
            if error < 0:
                return error
    m.mp[0]["unsorted_count"] = 0
    while True:
        found = sort_unsorted(m, t, av, a, nb, non_main)
        if found == KEEP_LOOKING and nb >= MIN_LARGE_SIZE:
            found = from_largebin(m, av, a, nb, number, non_main)
        if found == KEEP_LOOKING:
            found = from_larger_bin(m, av, a, nb, number, non_main)
        if found != KEEP_LOOKING:
            return found
        top = int(word[a + AR_TOP])
        i = at(m, top)
        size = chunksize(m, i)
        if size > int(word[a + AR_SYSTEM_MEM]) or size < 0:  # as unsigned numbers
            return TOP_SIZE
        if size >= nb + MINSIZE:
            word[a + AR_TOP] = top + nb
            set_head(m, i, nb | PREV_INUSE | non_main)
            set_head(m, at(m, top + nb), (size - nb) | PREV_INUSE)
            return top + CHUNK_HDR_SZ
        if not int(word[a + AR_HAVE_FASTCHUNKS]):
            return sysmalloc(m, t, av, nb)
        error = malloc_consolidate(m, av)
        if error < 0:
            return error
