"""Reading and writing the process's memory: where an address is in the table, and chunk headers by glibc's names.

Functions that work on a chunk take its place in `Ptmalloc.word` (`i`, from `at`); headers and the pointers behind them are consecutive words, as a heap lies in one
piece in the table.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

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
    NO_SEGMENT,
    NON_MAIN_ARENA,
    PREV_INUSE,
    SEGMENT_SHIFT,
    SEGMENT_WORDS,
    SIZE_BITS,
    UNSORTED,
    Ptmalloc,
)

FAULT = 0
SIGN = -(1 << 63)


@slow
def at_collision(segment: npt.NDArray[np.void], mp: npt.NDArray[np.void], address: int) -> int:
    """`at`, where another segment has the first row that this one could have."""
    mask = len(segment) - 1
    key = address >> SEGMENT_SHIFT
    row = key & mask
    while int(segment[row]["key"]) != key:
        if int(segment[row]["key"]) == NO_SEGMENT:
            if int(mp[0]["fault"]) == 0:
                mp[0]["fault"] = address
            return FAULT
        row = (row + 1) & mask
    return (address >> 3) + int(segment[row]["delta"])


@inner
def at(m: Ptmalloc, address: int) -> int:
    """Where the word of an address is; `FAULT`, remembered in `mp`, if malloc has no memory there."""
    key = address >> SEGMENT_SHIFT
    row = key & (len(m.segment) - 1)
    if int(m.segment[row]["key"]) == key:
        return (address >> 3) + int(m.segment[row]["delta"])
    return at_collision(m.segment, m.mp, address)


@slow
def place(m: Ptmalloc, address: int) -> int:
    """`at`, for memory that was just mapped: gives it a place in the table if it has none."""
    mask = len(m.segment) - 1
    key = address >> SEGMENT_SHIFT
    row = key & mask
    while int(m.segment[row]["key"]) != key:
        if int(m.segment[row]["key"]) == NO_SEGMENT:
            m.segment[row]["key"] = key
            m.segment[row]["delta"] = int(m.mp[0]["next_segment"]) - (key << (SEGMENT_SHIFT - 3))
            m.mp[0]["next_segment"] += SEGMENT_WORDS
            m.mp[0]["segments"] += 1
            break
        row = (row + 1) & mask
    return (address >> 3) + int(m.segment[row]["delta"])


@slow
def clear(m: Ptmalloc, start: int, end: int) -> None:
    """The kernel took this memory back: whoever maps it again finds it zeroed."""
    if start < end:
        first = at(m, start)
        for i in range(first, first + ((end - start) >> 3)):
            if m.word[i] != 0:
                m.word[i] = 0


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
