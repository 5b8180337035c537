"""Invariants of malloc's chunks and lists, as ``do_check_malloc_state`` has them and a few more; for tests and `Heap.validate`.

A heap is walked from its first chunk to top; fenceposts end a walk, where somebody else moved the break or a heap was full.
"""

from __future__ import annotations

from itertools import pairwise

from mmtwin.errors import InvariantError
from mmtwin.user.ptmalloc_info import arenas, bins, fastbins, heaps, size_of, tcache, word
from mmtwin.user.ptmalloc_memory import at, bin_at, bin_index, binmap, binmap_bit
from mmtwin.user.ptmalloc_tables import (
    AR_BINMAP,
    AR_HAVE_FASTCHUNKS,
    AR_SYSTEM_MEM,
    AR_TOP,
    CHUNK_BK,
    CHUNK_BK_NEXTSIZE,
    CHUNK_FD_NEXTSIZE,
    CHUNK_SIZE,
    HEAP_INFO_BYTES,
    HEAP_MAX_SIZE,
    HEAP_SIZE,
    MALLOC_STATE_BYTES,
    MIN_LARGE_SIZE,
    MINSIZE,
    PREV_INUSE,
    TCACHE_MAX_BINS,
    UNSORTED,
    Ptmalloc,
)


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise InvariantError(message)


def validate_ptmalloc(m: Ptmalloc) -> None:
    """:raises InvariantError: the first invariant that is broken."""
    free: dict[int, int] = {}
    fast: set[int] = set()
    for arena in arenas(m):
        _check_bins(m, arena, free)
        for size, chunks in fastbins(m, arena).items():
            _check(bool(word(m, arena, AR_HAVE_FASTCHUNKS)), f"arena 0x{arena:x}: chunks in fastbins, but have_fastchunks is not set")
            for p in chunks:
                _check(size_of(m, p) == size and p not in fast, f"chunk 0x{p:x}: of size {size_of(m, p)} in the fastbin for {size}, or there twice")
                fast.add(p)
    for thread in range(len(m.thread)):
        for size, blocks in tcache(m, thread).items():
            counted = int(m.bin[thread * TCACHE_MAX_BINS + (size - 32) // 16]["counts"])
            _check(counted == len(blocks), f"thread {thread}: {len(blocks)} blocks of {size} in the tcache, counted {counted}")
            for block in blocks:
                _check(size_of(m, block - 16) == size and block - 16 not in fast, f"block 0x{block:x}: of another size than {size}, or there twice")
                fast.add(block - 16)
    walked: set[int] = set()
    for arena in arenas(m):
        _walk_arena(m, arena, free, walked)
    _check(not (fast & free.keys()), "a chunk is both in a bin and cached")
    if int(m.mp[0]["sbrk_base"]):
        lost = [p for p in free if p not in walked]
        _check(not lost or _has_gaps(m), f"chunk 0x{lost[0] if lost else 0:x}: in a bin, but in no heap")
    _check_ranges(m)


def _has_gaps(m: Ptmalloc) -> bool:
    """Whether main_arena is in several pieces, of which a walk finds only the first and the last."""
    main = int(m.mp[0]["main_arena"])
    top = word(m, main, AR_TOP)
    return top == main + UNSORTED or int(m.mp[0]["sbrk_base"]) + word(m, main, AR_SYSTEM_MEM) != top + size_of(m, top) or _gap_found(m, main)


def _gap_found(m: Ptmalloc, arena: int) -> bool:
    p, top = int(m.mp[0]["sbrk_base"]), word(m, arena, AR_TOP)
    while p < top:
        if size_of(m, p) < MINSIZE:
            return True
        p += size_of(m, p)
    return False


def _check_bins(m: Ptmalloc, arena: int, free: dict[int, int]) -> None:
    """Lists are linked both ways, hold the right sizes, and large ones are sorted, with the chain of sizes."""
    for number, chunks in bins(m, arena).items():
        header = bin_at(arena, number)
        before = header
        for p in [*chunks, header]:
            _check(word(m, p, CHUNK_BK) == before, f"bin {number}: bk of 0x{p:x} is not 0x{before:x}")
            before = p
        sizes = [size_of(m, p) for p in chunks]
        for p, size in zip(chunks, sizes, strict=True):
            _check(size >= MINSIZE and size % 16 == 0, f"chunk 0x{p:x}: free with size {size}")
            _check(word(m, p + size) == size, f"chunk 0x{p:x}: its size is {size}, the one behind it says {word(m, p + size)}")
            _check(not word(m, p + size, CHUNK_SIZE) & PREV_INUSE, f"chunk 0x{p:x}: free, but the one behind it says it is used")
            _check(p not in free, f"chunk 0x{p:x}: in two bins")
            free[p] = number
            _check(number == 1 or bin_index(size) == number, f"chunk 0x{p:x}: of size {size} in bin {number}")
        if number > 1:
            bits = binmap(m, at(m, arena), number >> 5) >> (number & 31)
            _check(bool(bits & 1), f"arena 0x{arena:x}: bin {number} is not empty, but its bit {binmap_bit(number):x} in word {AR_BINMAP} is not set")
            _check(sizes == sorted(sizes, reverse=True), f"bin {number}: its chunks are not in the order of their sizes")
            if sizes[0] >= MIN_LARGE_SIZE:
                _check_nextsize(m, number, chunks, sizes)


def _check_nextsize(m: Ptmalloc, number: int, chunks: list[int], sizes: list[int]) -> None:
    first = [p for i, p in enumerate(chunks) if i == 0 or sizes[i] != sizes[i - 1]]
    for i, p in enumerate(first):
        following = first[(i + 1) % len(first)]
        _check(word(m, p, CHUNK_FD_NEXTSIZE) == following, f"bin {number}: fd_nextsize of 0x{p:x} is not 0x{following:x}")
        _check(word(m, following, CHUNK_BK_NEXTSIZE) == p, f"bin {number}: bk_nextsize of 0x{following:x} is not 0x{p:x}")
    for p in set(chunks) - set(first):
        _check(word(m, p, CHUNK_FD_NEXTSIZE) == 0, f"bin {number}: fd_nextsize of 0x{p:x} is not 0, though it is not the first of its size")


def _walk_arena(m: Ptmalloc, arena: int, free: dict[int, int], walked: set[int]) -> None:
    top = word(m, arena, AR_TOP)
    if top == arena + UNSORTED:
        return
    _check(
        bool(word(m, top, CHUNK_SIZE) & PREV_INUSE) and size_of(m, top) >= MINSIZE,
        f"arena 0x{arena:x}: top 0x{top:x} has the header {word(m, top, CHUNK_SIZE):x}",
    )
    areas = heaps(m, arena)
    for heap in areas:
        start = heap + HEAP_INFO_BYTES
        if start == arena:
            start = (start + MALLOC_STATE_BYTES + 15) & -16
        end = heap + word(m, heap, HEAP_SIZE)
        _walk(m, start, top if heap == areas[0] else end, free, walked)
    if areas:
        _check(top + size_of(m, top) == areas[0] + word(m, areas[0], HEAP_SIZE), f"arena 0x{arena:x}: top does not end where its heap does")
        total = sum(word(m, heap, HEAP_SIZE) for heap in areas)
        _check(total == word(m, arena, AR_SYSTEM_MEM), f"arena 0x{arena:x}: system_mem is {word(m, arena, AR_SYSTEM_MEM)}, its heaps have {total}")
        _check(all(heap % HEAP_MAX_SIZE == 0 for heap in areas), f"arena 0x{arena:x}: a heap is not aligned")
    else:
        _walk(m, (int(m.mp[0]["sbrk_base"]) + 15) & -16, top, free, walked)


def _walk(m: Ptmalloc, p: int, end: int, free: dict[int, int], walked: set[int]) -> None:
    """From chunk to chunk: a chunk says that the one before is free exactly if it is in a bin, and no two free ones are neighbours."""
    before_free = False
    while p < end:
        size = size_of(m, p)
        in_bin = p in free
        _check(bool(word(m, p, CHUNK_SIZE) & PREV_INUSE) != before_free, f"chunk 0x{p:x}: what it says about the chunk before it is wrong")
        if size < MINSIZE:
            return
        _check(size % 16 == 0, f"chunk 0x{p:x}: size {size}")
        _check(not (in_bin and before_free), f"chunk 0x{p:x}: free beside a free one")
        walked.add(p)
        before_free = in_bin
        p += size
    _check(p == end, f"chunk 0x{p:x}: begins behind 0x{end:x}")


def _check_ranges(m: Ptmalloc) -> None:
    """What is mapped is in order and apart."""
    ranges = m.vma[: int(m.mp[0]["vmas"])].tolist()
    for (start, end), (following, _) in pairwise([*ranges, (1 << 62, 0)]):
        _check(start < end < following, f"mapping 0x{start:x}-0x{end:x}: empty, or not before 0x{following:x}")
