"""The functions that programs call (malloc/malloc.c, glibc 2.36): malloc, free, calloc, realloc, memalign, mallopt, malloc_trim, and what a thread's end does.

Each takes the number of the calling thread, and returns an address (0 is NULL) or a negative code: `GROW`, `SEGV`, or an abort's. Sizes are as the
C functions take them; those of half the address space and more are handed over as `TOO_BIG`.
"""

from __future__ import annotations

from mmtwin._jit import inner, slow
from mmtwin.units import PAGE_SIZE
from mmtwin.user.ptmalloc_arena import arena_get, arena_get_retry, arena_thread_freeres
from mmtwin.user.ptmalloc_bins import csize2tidx, tcache_get, tcache_put
from mmtwin.user.ptmalloc_free import int_free, malloc_consolidate, munmap_chunk, systrim
from mmtwin.user.ptmalloc_malloc import int_malloc, request2size
from mmtwin.user.ptmalloc_memory import arena_for_chunk, at, bin_at, bin_index, bk, chunksize, head, protect_ptr
from mmtwin.user.ptmalloc_realloc import int_memalign, int_realloc, mremap_chunk
from mmtwin.user.ptmalloc_tables import (
    AR_NEXT,
    CHUNK_BK,
    CHUNK_HDR_SZ,
    DEFAULT_MMAP_THRESHOLD_MAX,
    FAULT_WORDS,
    GROW,
    IS_MMAPPED,
    MALLOC_ALIGNMENT,
    MAX_FAST_SIZE,
    MINSIZE,
    NBINS,
    REALLOC_POINTER,
    SEGMENT_WORDS,
    SEGV,
    SHUTDOWN_UNALIGNED,
    SIZE_BITS,
    TCACHE_BYTES,
    TCACHE_MAX_BINS,
    TOO_BIG,
    Ptmalloc,
)

RESERVE_SEGMENTS = 8
"""One call maps at most this many places: a heap, a mapping, a retry."""
M_MXFAST, M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_CHECK_ACTION, M_PERTURB, M_ARENA_TEST, M_ARENA_MAX = 1, -1, -2, -3, -4, -5, -6, -7, -8


@inner
def has_room(m: Ptmalloc, t: int) -> int:
    """Whether the tables have room for whatever one call may need."""
    mp = m.mp[0]
    return int(
        (int(mp["next_segment"]) + RESERVE_SEGMENTS) * SEGMENT_WORDS <= len(m.word) and int(mp["vmas"]) + RESERVE_SEGMENTS <= len(m.vma) and t < len(m.thread)
    )


@inner
def checked(m: Ptmalloc, result: int) -> int:
    """The result, unless malloc touched memory that is not there."""
    return result if int(m.mp[0]["fault"]) == 0 else SEGV


@slow
def tcache_init(m: Ptmalloc, t: int) -> int:
    """``tcache_init``: the thread's cache is itself allocated; 0, or what ends the process."""
    if int(m.thread[t]["shutting_down"]):
        return 0
    nb = request2size(TCACHE_BYTES)
    arena = arena_get(m, t, TCACHE_BYTES)
    victim = int_malloc(m, t, arena, nb)
    if victim == 0 and arena != 0:
        victim = int_malloc(m, t, arena_get_retry(m, t, arena, TCACHE_BYTES), nb)
    if victim < 0:
        return victim
    m.thread[t]["tcache"] = victim
    for row in range(t * TCACHE_MAX_BINS, (t + 1) * TCACHE_MAX_BINS):
        m.bin[row]["entries"] = 0
        m.bin[row]["counts"] = 0
    if victim != 0:  # memset clears what an earlier user of the memory left
        i = at(m, victim)
        for word in range(i, i + TCACHE_BYTES // 8):
            m.word[word] = 0
    return 0


@slow
def malloc_from_arena(m: Ptmalloc, t: int, size: int, nb: int) -> int:
    """What ``malloc`` and ``calloc`` do beyond the tcache."""
    if not int(m.mp[0]["multiple_threads"]):
        return checked(m, int_malloc(m, t, int(m.mp[0]["main_arena"]), nb))
    arena = arena_get(m, t, size)
    victim = int_malloc(m, t, arena, nb)
    if victim == 0 and arena != 0:
        victim = int_malloc(m, t, arena_get_retry(m, t, arena, size), nb)
    return checked(m, victim)


@inner
def malloc(m: Ptmalloc, t: int, size: int) -> int:
    """``malloc``."""
    if not 0 <= size < TOO_BIG:
        size = TOO_BIG
    nb = request2size(size)
    idx = csize2tidx(nb)
    if int(m.thread[t]["tcache"]) == 0:
        error = tcache_init(m, t)
        if error < 0:
            return error
    if idx < int(m.mp[0]["tcache_bins"]) and int(m.bin[t * TCACHE_MAX_BINS + idx]["counts"]) > 0 and int(m.thread[t]["tcache"]) != 0:
        return tcache_get(m, t, idx)
    return malloc_from_arena(m, t, size, nb)


@inner
def calloc(m: Ptmalloc, t: int, size: int) -> int:
    """``calloc``, of the product: it takes nothing from the tcache."""
    if not 0 <= size < TOO_BIG:
        size = TOO_BIG
    if int(m.thread[t]["tcache"]) == 0:
        error = tcache_init(m, t)
        if error < 0:
            return error
    return malloc_from_arena(m, t, size, request2size(size))


@inner
def head_at(m: Ptmalloc, p: int, i: int) -> int:
    """A chunk's size and flags; those of an address that is not aligned consist of bytes of two words."""
    shift = 8 * (p & 7)
    if shift == 0:
        return head(m, i)
    return ((head(m, i) >> shift) & ((1 << (64 - shift)) - 1)) | ((int(m.word[i + 2]) & ((1 << shift) - 1)) << (64 - shift))


@slow
def free_chunk(m: Ptmalloc, t: int, p: int, i: int) -> int:
    """``free`` of what does not simply go to the tcache. A mapped chunk raises the threshold from which on chunks are mapped."""
    mp = m.mp[0]
    flags = head_at(m, p, i)
    if flags & IS_MMAPPED:
        if not int(mp["no_dyn_threshold"]) and int(mp["mmap_threshold"]) < flags <= DEFAULT_MMAP_THRESHOLD_MAX:
            mp["mmap_threshold"] = chunksize(m, i)
            mp["trim_threshold"] = 2 * chunksize(m, i)
        return checked(m, munmap_chunk(m, p, i))
    if int(m.thread[t]["tcache"]) == 0:
        error = tcache_init(m, t)
        if error < 0:
            return error
    arena = arena_for_chunk(m, p, flags)
    if int(mp["fault"]) != 0:
        return SEGV
    return checked(m, int_free(m, t, arena, p, 0))


@inner
def free(m: Ptmalloc, t: int, address: int) -> int:
    """``free``."""
    if address == 0:
        return 0
    p = address - CHUNK_HDR_SZ
    i = at(m, p)
    if i < FAULT_WORDS:
        return SEGV
    size = int(m.word[i + 1])
    idx = csize2tidx(size & ~SIZE_BITS)
    if (
        not size & IS_MMAPPED
        and size >= MINSIZE
        and idx < int(m.mp[0]["tcache_bins"])
        and (size | address) & 8 == 0
        and address & 7 == 0
        and int(m.thread[t]["tcache"]) != 0
        and int(m.word[i + CHUNK_BK]) != int(m.mp[0]["tcache_key"])
        and int(m.bin[t * TCACHE_MAX_BINS + idx]["counts"]) < int(m.mp[0]["tcache_count"])
    ):
        tcache_put(m, t, p, i, idx)
        return 0
    return free_chunk(m, t, p, i)


@slow
def realloc(m: Ptmalloc, t: int, address: int, size: int) -> int:
    """``realloc``; of 0 bytes it frees and returns NULL."""
    if not 0 <= size < TOO_BIG:
        size = TOO_BIG
    if address == 0:
        return malloc(m, t, size)
    if size == 0:
        return free(m, t, address)
    p = address - CHUNK_HDR_SZ
    i = at(m, p)
    if i < FAULT_WORDS:
        return SEGV
    flags = head_at(m, p, i)
    oldsize = flags & ~SIZE_BITS
    arena = 0
    if not flags & IS_MMAPPED:
        if int(m.thread[t]["tcache"]) == 0:
            error = tcache_init(m, t)
            if error < 0:
                return error
        arena = arena_for_chunk(m, p, flags)
    if p & 15 or oldsize <= 0 or oldsize > TOO_BIG:
        return REALLOC_POINTER
    nb = request2size(size)
    if flags & IS_MMAPPED:
        moved = mremap_chunk(m, p, i, nb)
        if moved != 0:
            return checked(m, moved if moved < 0 else moved + CHUNK_HDR_SZ)
        if oldsize - 8 >= nb:
            return address
        new = malloc(m, t, size)
        if new > 0:
            error = munmap_chunk(m, p, i)
            if error < 0:
                return error
        return checked(m, new)
    new = int_realloc(m, t, arena, p, i, oldsize, nb)
    if new == 0 and int(m.mp[0]["multiple_threads"]):
        new = malloc(m, t, size)
        if new > 0:
            error = int_free(m, t, arena, p, 0)
            if error < 0:
                return error
    return checked(m, new)


@slow
def memalign(m: Ptmalloc, t: int, alignment: int, size: int) -> int:
    """``memalign``, and so ``aligned_alloc``, ``valloc`` and the second part of ``posix_memalign``: any alignment is raised to a power of two."""
    if not 0 <= size < TOO_BIG:
        size = TOO_BIG
    if 0 <= alignment <= MALLOC_ALIGNMENT:
        return malloc(m, t, size)
    if not 0 <= alignment <= TOO_BIG:
        return 0
    power = MINSIZE
    while power < alignment:
        power <<= 1
    nb = request2size(size)
    if nb >= TOO_BIG or power >= TOO_BIG:
        nb, power = TOO_BIG >> 1, TOO_BIG >> 2
    if not int(m.mp[0]["multiple_threads"]):
        return checked(m, int_memalign(m, t, int(m.mp[0]["main_arena"]), power, nb))
    arena = arena_get(m, t, size + power + MINSIZE)
    address = int_memalign(m, t, arena, power, nb)
    if address == 0 and arena != 0:
        address = int_memalign(m, t, arena_get_retry(m, t, arena, size), power, nb)
    return checked(m, address)


@slow
def thread_exit(m: Ptmalloc, t: int) -> int:
    """``__malloc_arena_thread_freeres``: the thread's cache goes back to the arenas, then its arena may be used by another thread."""
    m.thread[t]["shutting_down"] = 1
    m.thread[t]["state"] = 2
    tcache = int(m.thread[t]["tcache"])
    m.thread[t]["tcache"] = 0
    if tcache != 0:
        for row in range(t * TCACHE_MAX_BINS, (t + 1) * TCACHE_MAX_BINS):
            while int(m.bin[row]["entries"]) != 0:
                e = int(m.bin[row]["entries"])
                if e & 15:
                    return SHUTDOWN_UNALIGNED
                m.bin[row]["entries"] = protect_ptr(e, int(m.word[at(m, e)]))
                m.bin[row]["counts"] -= 1
                error = free(m, t, e)
                if error < 0:
                    return error
        error = free(m, t, tcache)
        if error < 0:
            return error
    arena_thread_freeres(m, t)
    return checked(m, 0)


@slow
def malloc_trim(m: Ptmalloc, pad: int) -> int:
    """``malloc_trim``: consolidates every arena, tells the kernel that whole pages of free chunks are not needed, and lowers the heap's end; 1 if there was something."""
    if not 0 <= pad < TOO_BIG:
        pad = TOO_BIG
    main = int(m.mp[0]["main_arena"])
    result = 0
    arena = main
    while True:
        error = malloc_consolidate(m, arena)
        if error < 0:
            return error
        for number in range(1, NBINS):
            if number == 1 or number >= bin_index(PAGE_SIZE):
                header = bin_at(arena, number)
                p = bk(m, at(m, header))
                while p != header:
                    i = at(m, p)
                    size = chunksize(m, i)
                    first = (p + 48 + PAGE_SIZE - 1) & -PAGE_SIZE
                    if size > PAGE_SIZE - 1 + 48 and size - (first - p) > PAGE_SIZE - 1:
                        result = 1
                    p = bk(m, i)
                    if int(m.mp[0]["fault"]) != 0:
                        return SEGV
        if arena == main:
            result |= systrim(m, main, pad)
        arena = int(m.word[at(m, arena) + AR_NEXT])
        if arena == main:
            return checked(m, result)


@slow
def mallopt(m: Ptmalloc, parameter: int, value: int) -> int:
    """``mallopt``: 1, or 0 if the value is refused. The fastbins are emptied first, whatever is set."""
    mp = m.mp[0]
    error = malloc_consolidate(m, int(mp["main_arena"]))
    if error < 0:
        return error
    size = value if value >= 0 else TOO_BIG
    if parameter == M_MXFAST:
        if size > MAX_FAST_SIZE:
            return 0
        mp["global_max_fast"] = 16 if size <= 7 else (size + 8) & ~15
    elif parameter == M_TRIM_THRESHOLD:
        mp["trim_threshold"], mp["no_dyn_threshold"] = size, 1
    elif parameter == M_TOP_PAD:
        mp["top_pad"], mp["no_dyn_threshold"] = size, 1
    elif parameter == M_MMAP_THRESHOLD:
        mp["mmap_threshold"], mp["no_dyn_threshold"] = size, 1
    elif parameter == M_MMAP_MAX:
        mp["n_mmaps_max"], mp["no_dyn_threshold"] = value, 1
    elif parameter == M_ARENA_TEST and value > 0:
        mp["arena_test"] = value
    elif parameter == M_ARENA_MAX and value > 0:
        mp["arena_max"] = value
    return 1


@inner
def seen(m: Ptmalloc, t: int) -> int:
    """Notes a thread's first call; `GROW` if the tables are too small for a call."""
    if not has_room(m, t):
        return GROW
    if int(m.thread[t]["state"]) == 0:
        m.thread[t]["state"] = 1
        if t > 0:
            m.mp[0]["multiple_threads"] = 1
    return 0
