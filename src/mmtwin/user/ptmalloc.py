"""The functions that programs call (malloc/malloc.c, glibc 2.36): malloc, free, calloc, realloc, memalign, mallopt, malloc_trim, and what a thread's end does.

`tcache_malloc` and `tcache_free` are the frequent cases; everything else is in `heap_call`, one function, because each layer above the search for memory costs
as much time to compile as all below it. Calls take the number of the calling thread and return an address (0 is NULL) or a negative code: `SEGV`, or an abort's. Sizes are
as the C functions take them; whatever is not below `TOO_BIG` is that.
"""

from __future__ import annotations

from mmtwin._jit import inner, slow
from mmtwin.units import PAGE_SIZE
from mmtwin.user.ptmalloc_arena import arena_get, arena_get_retry, arena_thread_freeres
from mmtwin.user.ptmalloc_bins import csize2tidx, has_tcache, tcache_get, tcache_put
from mmtwin.user.ptmalloc_free import int_free, malloc_consolidate, munmap_chunk, systrim
from mmtwin.user.ptmalloc_malloc import int_malloc, request2size
from mmtwin.user.ptmalloc_memory import arena_for_chunk, at, bin_at, bin_index, bk, chunksize, head, memcpy, memset, protect_ptr
from mmtwin.user.ptmalloc_realloc import MUST_MOVE, cut_aligned, finish_resize, mremap_chunk, resize
from mmtwin.user.ptmalloc_tables import (
    AR_NEXT,
    AR_TOP,
    CHUNK_BK,
    CHUNK_HDR_SZ,
    DEFAULT_MMAP_THRESHOLD_MAX,
    FAULT_WORDS,
    GROW,
    HEAP_MAX_SIZE,
    HEAP_MPROTECT_SIZE,
    IS_MMAPPED,
    MALLOC_ALIGNMENT,
    MAX_FAST_SIZE,
    MAX_TCACHE_SIZE,
    MINSIZE,
    NBINS,
    REALLOC_POINTER,
    SEGMENT_WORDS,
    SEGV,
    SHUTDOWN_UNALIGNED,
    SIZE_BITS,
    SIZE_SZ,
    TCACHE_BYTES,
    TCACHE_MAX_BINS,
    TOO_BIG,
    Ptmalloc,
)
from mmtwin.user.ptmalloc_vm import vm_dontneed

CALL_MALLOC, CALL_FREE, CALL_CALLOC, CALL_REALLOC, CALL_MEMALIGN, CALL_POSIX_MEMALIGN, CALL_VALLOC, CALL_PVALLOC = range(1, 9)
CALL_MALLOPT, CALL_TRIM, CALL_THREAD_EXIT, CALL_MAPS, CALL_BRK, CALL_THREAD_CREATE = range(9, 15)
"""Kinds of calls, as the recorder numbers them (oracle/malloc/recorder.c)."""
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


@inner
def head_at(m: Ptmalloc, p: int, i: int) -> int:
    """A chunk's size and flags; those of an address that is not aligned consist of bytes of two words."""
    shift = 8 * (p & 7)
    if shift == 0:
        return head(m, i)
    return ((head(m, i) >> shift) & ((1 << (64 - shift)) - 1)) | ((int(m.word[i + 2]) & ((1 << shift) - 1)) << (64 - shift))


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
                error = int_free(m, t, arena_for_chunk(m, e - CHUNK_HDR_SZ, head(m, at(m, e - CHUNK_HDR_SZ))), e - CHUNK_HDR_SZ, 0)
                if error < 0:
                    return error
        error = int_free(m, t, arena_for_chunk(m, tcache - CHUNK_HDR_SZ, head(m, at(m, tcache - CHUNK_HDR_SZ))), tcache - CHUNK_HDR_SZ, 0)
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
                        vm_dontneed(m, first, (size - (first - p)) & -PAGE_SIZE)
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


@inner
def tcache_malloc(m: Ptmalloc, t: int, size: int) -> int:
    """``malloc`` from the thread's cache; 0 if it has nothing (`heap_call` then)."""
    if not 0 <= size <= MAX_TCACHE_SIZE:
        return 0
    idx = csize2tidx(request2size(size))
    if int(m.bin[t * TCACHE_MAX_BINS + idx]["counts"]) == 0 or not has_tcache(m, t, idx):
        return 0
    return tcache_get(m, t, idx)


@inner
def tcache_free(m: Ptmalloc, t: int, address: int) -> int:
    """``free`` to the thread's cache: 1 if it could take the block, else 0 (`heap_call` then)."""
    p = address - CHUNK_HDR_SZ
    if address & 15 or address == 0:
        return 0
    i = at(m, p)
    size = head(m, i)
    idx = csize2tidx(size & ~SIZE_BITS)
    if (
        size & (IS_MMAPPED | 8)
        or size < MINSIZE
        or idx >= int(m.mp[0]["tcache_bins"])
        or int(m.thread[t]["tcache"]) == 0
        or int(m.word[i + CHUNK_BK]) == int(m.mp[0]["tcache_key"])
        or int(m.bin[t * TCACHE_MAX_BINS + idx]["counts"]) >= int(m.mp[0]["tcache_count"])
        or i < FAULT_WORDS
    ):
        return 0
    tcache_put(m, t, p, i, idx)
    return 1


@slow
def used_of_top(m: Ptmalloc, av: int, top: int) -> int:
    """How much of top may have been in use before, so that calloc has to clear it: the rest is as the kernel gave it.

    A break that went down and up again counts as new (MORECORE_CLEARS is 2 on Linux), pages of another arena that were usable once do not.
    """
    size = chunksize(m, at(m, top))
    if av == int(m.mp[0]["main_arena"]):
        return size
    heap = top & ~(HEAP_MAX_SIZE - 1)
    return max(size, heap + int(m.word[at(m, heap) + HEAP_MPROTECT_SIZE]) - top)


@slow
def clear_block(m: Ptmalloc, victim: int, top: int, used: int) -> None:
    """The end of ``__libc_calloc``: clears a block that is not fresh from the kernel.

    :param top: the arena's top before, and `used`, how much of it was not fresh (`used_of_top`).
    """
    p = victim - CHUNK_HDR_SZ
    i = at(m, p)
    if head(m, i) & IS_MMAPPED:
        return
    size = chunksize(m, i)
    if p == top and size > used:
        size = used
    memset(m, victim, size - SIZE_SZ)


@slow
def raised(alignment: int) -> int:
    """What ``_mid_memalign`` makes of an alignment above 16: a power of two."""
    power = MINSIZE
    while power < alignment:
        power <<= 1
    return power


@slow
def heap_call(m: Ptmalloc, t: int, kind: int, a: int, b: int) -> int:
    """Any call: ``__libc_malloc``, ``__libc_free``, ``__libc_calloc``, ``__libc_realloc``, ``_mid_memalign`` and ``tcache_init``, one after the other.

    :param b: of calloc the product of its arguments, -1 if that overflows.
    """
    mp = m.mp[0]
    if kind == CALL_MALLOPT:
        return mallopt(m, a, b)
    if kind == CALL_TRIM:
        return malloc_trim(m, a)
    if kind == CALL_THREAD_EXIT:
        return thread_exit(m, t)
    if kind == CALL_THREAD_CREATE:
        mp["multiple_threads"] = 1
        return 0
    size, alignment, old = a, 0, 0
    if kind == CALL_FREE:
        size, old = 0, a
        if a == 0:
            return 0
    elif kind == CALL_CALLOC:
        size = b
        if b < 0:
            return 0
    elif kind == CALL_REALLOC:
        size, old = b, a
        if a == 0:
            kind = CALL_MALLOC
        elif b == 0:
            kind = CALL_FREE
    elif kind == CALL_MEMALIGN or kind == CALL_POSIX_MEMALIGN:
        size, alignment = b, a
        if not 0 <= a <= TOO_BIG:
            return 0
    elif kind == CALL_VALLOC or kind == CALL_PVALLOC:
        alignment = PAGE_SIZE
        if kind == CALL_PVALLOC:
            if not 0 <= a < TOO_BIG:
                return 0
            size = (a + PAGE_SIZE - 1) & -(PAGE_SIZE - 1)  # the C library's rounding: the lowest bit stays
    if not 0 <= size < TOO_BIG:
        size = TOO_BIG
    nb = request2size(size)
    if alignment <= MALLOC_ALIGNMENT:
        if alignment > 0 or kind == CALL_MEMALIGN:
            kind, alignment = CALL_MALLOC, 0
    else:
        alignment = raised(alignment)
        if nb >= TOO_BIG or alignment >= TOO_BIG:
            nb, alignment = TOO_BIG >> 1, TOO_BIG >> 2
    p, i, flags = 0, 0, 0
    if old != 0:
        p = old - CHUNK_HDR_SZ
        i = at(m, p)
        if i < FAULT_WORDS:
            return SEGV
        flags = head_at(m, p, i)
    multiple = int(mp["multiple_threads"])
    main = int(mp["main_arena"])

    if alignment == 0 and not flags & IS_MMAPPED and int(m.thread[t]["tcache"]) == 0 and not int(m.thread[t]["shutting_down"]):
        arena = arena_get(m, t, TCACHE_BYTES)
        victim = int_malloc(m, t, arena, request2size(TCACHE_BYTES))
        if victim == 0 and arena != 0:
            victim = int_malloc(m, t, arena_get_retry(m, t, arena, TCACHE_BYTES), request2size(TCACHE_BYTES))
        if victim < 0:
            return victim
        start_tcache(m, t, victim)

    if kind == CALL_FREE:
        if not flags & IS_MMAPPED:
            arena = arena_for_chunk(m, p, flags)
            return checked(m, int_free(m, t, arena, p, 0))
        if not int(mp["no_dyn_threshold"]) and int(mp["mmap_threshold"]) < flags <= DEFAULT_MMAP_THRESHOLD_MAX:
            mp["mmap_threshold"] = flags & ~SIZE_BITS
            mp["trim_threshold"] = 2 * (flags & ~SIZE_BITS)
        return checked(m, munmap_chunk(m, p, i))

    oldsize, own = flags & ~SIZE_BITS, 0
    if kind == CALL_REALLOC:
        if p & 15 or oldsize <= 0 or oldsize > TOO_BIG:
            return REALLOC_POINTER
        if flags & IS_MMAPPED:
            moved = mremap_chunk(m, p, i, nb)
            if moved != 0:
                return checked(m, moved if moved < 0 else moved + CHUNK_HDR_SZ)
            if oldsize - 8 >= nb:
                return old
        else:
            own = arena_for_chunk(m, p, flags)
            found = resize(m, t, own, p, i, oldsize, nb)
            if found != MUST_MOVE:
                return checked(m, found)

    victim, arena, top, used = 0, own, 0, 0
    if own != 0:
        victim = int_malloc(m, t, own, nb)
        if victim == p + oldsize + CHUNK_HDR_SZ:  # the chunk behind it: no need to move
            return checked(m, finish_resize(m, t, own, p, i, oldsize + chunksize(m, at(m, victim - CHUNK_HDR_SZ)), nb))
        if victim > 0:
            memcpy(m, victim, old, oldsize - SIZE_SZ)
            error = int_free(m, t, own, p, 1)
            return checked(m, error if error < 0 else victim)
        if victim < 0 or not multiple:
            return checked(m, victim)
    if kind == CALL_MALLOC or kind == CALL_REALLOC:
        victim = tcache_malloc(m, t, size)
    if victim == 0:
        arena = arena_get(m, t, size + alignment + MINSIZE if alignment else size) if multiple else main
        want = request2size(nb + alignment + MINSIZE) if alignment else nb
        if kind == CALL_CALLOC and arena != 0:
            top = int(m.word[at(m, arena) + AR_TOP])
            used = used_of_top(m, arena, top)
        victim = int_malloc(m, t, arena, want)
        if victim == 0 and multiple and arena != 0:
            arena = arena_get_retry(m, t, arena, size)
            victim = int_malloc(m, t, arena, want)
    if victim <= 0:
        return checked(m, victim)
    if alignment:
        return checked(m, cut_aligned(m, t, arena, victim, alignment, nb))
    if kind == CALL_CALLOC:
        clear_block(m, victim, top, used)
    if old != 0:
        memcpy(m, victim, old, oldsize - (SIZE_SZ if own != 0 else CHUNK_HDR_SZ))
        error = int_free(m, t, own, p, 0) if own != 0 else munmap_chunk(m, p, i)
        if error < 0:
            return error
    return checked(m, victim)


@slow
def start_tcache(m: Ptmalloc, t: int, victim: int) -> None:
    """The end of ``tcache_init``: clears the memory, whatever an earlier user left in it."""
    m.thread[t]["tcache"] = victim
    for row in range(t * TCACHE_MAX_BINS, (t + 1) * TCACHE_MAX_BINS):
        m.bin[row]["entries"] = 0
        m.bin[row]["counts"] = 0
    if victim != 0:
        i = at(m, victim)
        for word in range(i, i + TCACHE_BYTES // 8):
            m.word[word] = 0
