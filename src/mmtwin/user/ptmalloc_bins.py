"""Lists of free chunks, and the tcache: what other parts of malloc do to them (malloc/malloc.c: unlink_chunk, tcache_put, tcache_get)."""

from __future__ import annotations

from mmtwin._jit import inner
from mmtwin.user.ptmalloc_memory import at, bk, chunksize, fd, head, prev_size, protect_ptr
from mmtwin.user.ptmalloc_tables import (
    CHUNK_BK,
    CHUNK_BK_NEXTSIZE,
    CHUNK_FD,
    CHUNK_FD_NEXTSIZE,
    DOUBLE_LINKED,
    DOUBLE_LINKED_LARGE,
    FAULT_WORDS,
    MALLOC_TCACHE_UNALIGNED,
    MIN_LARGE_SIZE,
    PREV_SIZE_MISMATCH,
    SEGV,
    TCACHE_MAX_BINS,
    UNSORTED,
    Ptmalloc,
)


@inner
def unlink_chunk(m: Ptmalloc, p: int, i: int) -> int:
    """``unlink_chunk``: takes a chunk off its bin; 0, or what aborts the process.

    A large bin's chunks are chained a second time, one for each size, largest first and in a circle (fd_nextsize, bk_nextsize); the others have 0 there.
    """
    word = m.word
    if chunksize(m, i) != prev_size(m, at(m, p + chunksize(m, i))):
        return PREV_SIZE_MISMATCH
    forward, backward = fd(m, i), bk(m, i)
    f, b = at(m, forward), at(m, backward)
    if bk(m, f) != p or fd(m, b) != p:
        return DOUBLE_LINKED
    word[f + CHUNK_BK] = backward
    word[b + CHUNK_FD] = forward
    if head(m, i) >= MIN_LARGE_SIZE and int(word[i + CHUNK_FD_NEXTSIZE]) != 0:
        smaller, larger = int(word[i + CHUNK_FD_NEXTSIZE]), int(word[i + CHUNK_BK_NEXTSIZE])
        s, g = at(m, smaller), at(m, larger)
        if int(word[s + CHUNK_BK_NEXTSIZE]) != p or int(word[g + CHUNK_FD_NEXTSIZE]) != p:
            return DOUBLE_LINKED_LARGE
        if int(word[f + CHUNK_FD_NEXTSIZE]) == 0:  # the next one has the same size: it represents it now
            if smaller == p:
                word[f + CHUNK_FD_NEXTSIZE] = word[f + CHUNK_BK_NEXTSIZE] = forward
            else:
                word[f + CHUNK_FD_NEXTSIZE] = smaller
                word[f + CHUNK_BK_NEXTSIZE] = larger
                word[s + CHUNK_BK_NEXTSIZE] = forward
                word[g + CHUNK_FD_NEXTSIZE] = forward
        else:
            word[s + CHUNK_BK_NEXTSIZE] = larger
            word[g + CHUNK_FD_NEXTSIZE] = smaller
    return 0


@inner
def insert_unsorted(m: Ptmalloc, av: int, a: int, p: int, i: int, size: int) -> int:
    """Puts a free chunk at the front of the unsorted bin; 1 if that list is broken."""
    word = m.word
    bin_address = av + UNSORTED
    u = a + (UNSORTED >> 3)
    first = fd(m, u)
    f = at(m, first)
    if bk(m, f) != bin_address:
        return 1
    word[i + CHUNK_BK] = bin_address
    word[i + CHUNK_FD] = first
    word[u + CHUNK_FD] = p
    word[f + CHUNK_BK] = p
    if size >= MIN_LARGE_SIZE:
        word[i + CHUNK_FD_NEXTSIZE] = 0
        word[i + CHUNK_BK_NEXTSIZE] = 0
    return 0


@inner
def csize2tidx(size: int) -> int:
    """``csize2tidx``: the tcache bin of a chunk size; negative sizes are not chunks."""
    return (size - 17) >> 4


@inner
def has_tcache(m: Ptmalloc, t: int, idx: int) -> int:
    """Whether this thread keeps chunks of that bin."""
    return int(int(m.thread[t]["tcache"]) != 0 and idx < int(m.mp[0]["tcache_bins"]))


@inner
def tcache_has_room(m: Ptmalloc, t: int, idx: int) -> int:
    """``tcache->counts[idx] < mp_.tcache_count``."""
    return int(int(m.bin[t * TCACHE_MAX_BINS + idx]["counts"]) < int(m.mp[0]["tcache_count"]))


@inner
def tcache_put(m: Ptmalloc, t: int, p: int, i: int, idx: int) -> None:
    """``tcache_put``: the key behind the pointer tells a double free."""
    row = t * TCACHE_MAX_BINS + idx
    e = p + 16
    m.word[i + CHUNK_BK] = m.mp[0]["tcache_key"]
    m.word[i + CHUNK_FD] = protect_ptr(e, int(m.bin[row]["entries"]))
    m.bin[row]["entries"] = e
    m.bin[row]["counts"] += 1


@inner
def tcache_get(m: Ptmalloc, t: int, idx: int) -> int:
    """``tcache_get``: the address for the caller, or what ends the process."""
    row = t * TCACHE_MAX_BINS + idx
    e = int(m.bin[row]["entries"])
    if e & 15:
        return MALLOC_TCACHE_UNALIGNED
    i = at(m, e)
    if i < FAULT_WORDS:
        return SEGV
    m.bin[row]["entries"] = protect_ptr(e, int(m.word[i]))
    m.bin[row]["counts"] -= 1
    m.word[i + 1] = 0
    return e
