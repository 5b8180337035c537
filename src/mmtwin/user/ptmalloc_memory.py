"""Reading and writing the process's memory: where an address is in the table, and chunk headers by glibc's names.

Functions that work on a chunk take its place in `Ptmalloc.word` (`i`, from `at`); headers and the pointers behind them are consecutive words, as a heap lies in one
piece in the table.
"""

from __future__ import annotations

from mmtwin._jit import inner, slow
from mmtwin.user.ptmalloc_tables import (
    AR_BINMAP,
    CHUNK_BK,
    CHUNK_FD,
    CHUNK_PREV_SIZE,
    CHUNK_SIZE,
    HEAP_AR_PTR,
    HEAP_MAX_SIZE,
    MIN_LARGE_SIZE,
    NON_MAIN_ARENA,
    NR_SEGMENTS,
    PREV_INUSE,
    SEGMENT_SHIFT,
    SEGMENT_WORDS,
    SIZE_BITS,
    UNSORTED,
    Ptmalloc,
)

SIGN = -(1 << 63)


@inner
def at(m: Ptmalloc, address: int) -> int:
    """Where the word of an address is; below `FAULT_WORDS`, and remembered in `mp`, if malloc has no memory there."""
    key = address >> SEGMENT_SHIFT
    if key < 0 or key >= NR_SEGMENTS:
        key = 0
    segment = int(m.segment[key])
    if segment == 0:
        m.mp[0]["fault"] = address
    return segment * SEGMENT_WORDS + ((address >> 3) & (SEGMENT_WORDS - 1))


@slow
def place(m: Ptmalloc, address: int) -> int:
    """`at`, for memory that was just mapped: gives it a place in the table if it has none."""
    key = address >> SEGMENT_SHIFT
    if int(m.segment[key]) == 0:
        m.segment[key] = m.mp[0]["next_segment"]
        m.mp[0]["next_segment"] += 1
    return int(m.segment[key]) * SEGMENT_WORDS + ((address >> 3) & (SEGMENT_WORDS - 1))


@slow
def clear(m: Ptmalloc, start: int, end: int) -> None:
    """The kernel took this memory back: whoever maps it again finds it zeroed."""
    if start < end:
        first = at(m, start)
        for i in range(first, first + ((end - start) >> 3)):
            if m.word[i] != 0:
                m.word[i] = 0


@slow
def forget_header(m: Ptmalloc, i: int) -> None:
    """As `clear`, for a chunk's header in a mapping that is going."""
    m.word[i] = m.word[i + CHUNK_SIZE] = 0


@slow
def memset(m: Ptmalloc, address: int, n: int) -> None:
    """What calloc clears. Nothing here: the words are malloc's own, what programs keep in their blocks is not. A process's malloc really clears (`process_heap`)."""


@slow
def memcpy(m: Ptmalloc, to: int, source: int, n: int) -> None:
    """What realloc copies; as `memset`."""


@inner
def protect_ptr(position: int, pointer: int) -> int:
    """``PROTECT_PTR``: how fastbins and the tcache keep the pointer that stands at `position` (safe-linking); its own inverse."""
    return (position >> 12) ^ pointer


@inner
def chunksize(m: Ptmalloc, i: int) -> int:
    """``chunksize``."""
    return int(m.word[i + CHUNK_SIZE]) & ~SIZE_BITS


@inner
def head(m: Ptmalloc, i: int) -> int:
    """``chunksize_nomask``."""
    return int(m.word[i + CHUNK_SIZE])


@inner
def set_head(m: Ptmalloc, i: int, value: int) -> None:
    """``set_head``."""
    m.word[i + CHUNK_SIZE] = value


@inner
def set_head_size(m: Ptmalloc, i: int, size: int) -> None:
    """``set_head_size``: the flags stay."""
    m.word[i + CHUNK_SIZE] = (int(m.word[i + CHUNK_SIZE]) & SIZE_BITS) | size


@inner
def prev_size(m: Ptmalloc, i: int) -> int:
    """``prev_size``."""
    return int(m.word[i + CHUNK_PREV_SIZE])


@inner
def set_foot(m: Ptmalloc, p: int, size: int) -> None:
    """``set_foot``: the size of a free chunk, in the chunk behind it."""
    m.word[at(m, p + size) + CHUNK_PREV_SIZE] = size


@inner
def inuse_bit_at_offset(m: Ptmalloc, p: int, size: int) -> int:
    """``inuse_bit_at_offset``."""
    return int(m.word[at(m, p + size) + CHUNK_SIZE]) & PREV_INUSE


@inner
def set_inuse_bit_at_offset(m: Ptmalloc, p: int, size: int) -> None:
    """``set_inuse_bit_at_offset``."""
    m.word[at(m, p + size) + CHUNK_SIZE] |= PREV_INUSE


@inner
def fd(m: Ptmalloc, i: int) -> int:
    """``p->fd``."""
    return int(m.word[i + CHUNK_FD])


@inner
def bk(m: Ptmalloc, i: int) -> int:
    """``p->bk``."""
    return int(m.word[i + CHUNK_BK])


@inner
def arena_for_chunk(m: Ptmalloc, p: int, flags: int) -> int:
    """``arena_for_chunk``: main_arena, or what the heap that holds the chunk says."""
    if flags & NON_MAIN_ARENA:
        return int(m.word[at(m, p & ~(HEAP_MAX_SIZE - 1)) + HEAP_AR_PTR])
    return int(m.mp[0]["main_arena"])


@inner
def bin_at(av: int, number: int) -> int:
    """``bin_at``: the address of a bin, looked at as a chunk."""
    return av + UNSORTED + (number - 1) * 16


@inner
def largebin_index(size: int) -> int:
    """``largebin_index_64``."""
    if (size >> 6) <= 48:
        return 48 + (size >> 6)
    if (size >> 9) <= 20:
        return 91 + (size >> 9)
    if (size >> 12) <= 10:
        return 110 + (size >> 12)
    if (size >> 15) <= 4:
        return 119 + (size >> 15)
    if (size >> 18) <= 2:
        return 124 + (size >> 18)
    return 126


@inner
def bin_index(size: int) -> int:
    """``bin_index``."""
    return size >> 4 if size < MIN_LARGE_SIZE else largebin_index(size)


@inner
def binmap(m: Ptmalloc, a: int, block: int) -> int:
    """``av->binmap[block]``: 32 bits."""
    return (int(m.word[a + AR_BINMAP + (block >> 1)]) >> (32 * (block & 1))) & 0xFFFFFFFF


@inner
def binmap_bit(number: int) -> int:
    """A bin's bit in its pair of maps, as a signed number."""
    return SIGN if number & 63 == 63 else 1 << (number & 63)


@inner
def mark_bin(m: Ptmalloc, a: int, number: int) -> None:
    """``mark_bin``."""
    i = a + AR_BINMAP + (number >> 6)
    m.word[i] = int(m.word[i]) | binmap_bit(number)


@inner
def unmark_bin(m: Ptmalloc, a: int, number: int) -> None:
    """``unmark_bin``."""
    i = a + AR_BINMAP + (number >> 6)
    m.word[i] = int(m.word[i]) & ~binmap_bit(number)
