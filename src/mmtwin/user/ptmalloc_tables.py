"""The state of glibc 2.36's malloc (malloc/malloc.c, arena.c), x86-64: a process's memory as far as malloc itself writes to it, and a few small tables.

`Ptmalloc.word` is that memory, 8 bytes an entry: chunk headers, the pointers in free chunks, ``heap_info`` and ``malloc_state`` stand in it at their places, as the C
library writes them, so whatever a program may do to them (or look at) can be done here. `ptmalloc_memory.at` finds the entry of an address: the address space is cut
into segments of 64 MiB, and those that hold something malloc wrote have their place in the table. The table is as large as the address range, but its
pages exist only where something was written. What the program keeps in its memory is not there, unless it was written with `Heap.write`.

Every address is a real one (below 2**47, so a signed number does), and 0 is NULL.
"""

from __future__ import annotations

import mmap
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmtwin.errors import RequestError
from mmtwin.units import PAGE_SIZE

SIZE_SZ, MALLOC_ALIGNMENT, CHUNK_HDR_SZ, MINSIZE = 8, 16, 16, 32
PREV_INUSE, IS_MMAPPED, NON_MAIN_ARENA, SIZE_BITS = 1, 2, 4, 7
NBINS, NFASTBINS = 128, 10
MIN_LARGE_SIZE = 1024
"""Chunks below it are in small bins, one size each."""
MAX_FAST_SIZE, DEFAULT_MXFAST = 160, 128
FASTBIN_CONSOLIDATION_THRESHOLD = 65536
TCACHE_MAX_BINS, TCACHE_FILL_COUNT, TCACHE_BYTES = 64, 7, 64 * 2 + 64 * 8
MAX_TCACHE_SIZE, MAX_TCACHE_COUNT = 63 * 16 + 24, 65535
DEFAULT_MMAP_THRESHOLD, DEFAULT_MMAP_THRESHOLD_MAX, DEFAULT_MMAP_MAX = 128 * 1024, 4 * 1024 * 1024 * 8, 65536
DEFAULT_TRIM_THRESHOLD, DEFAULT_TOP_PAD = 128 * 1024, 131072  # top_pad: sysdeps/generic/malloc-machine.h
MMAP_AS_MORECORE_SIZE = 1024 * 1024
HEAP_MIN_SIZE, HEAP_MAX_SIZE = 32 * 1024, 2 * DEFAULT_MMAP_THRESHOLD_MAX
MAX_ITERS = 10000
NONCONTIGUOUS = 2 << 32
"""``NONCONTIGUOUS_BIT`` of ``flags``, which is the upper half of its word."""
TOO_BIG = 1 << 62
"""Any request from here on fails in the same way: no address space is that large."""

CHUNK_PREV_SIZE, CHUNK_SIZE, CHUNK_FD, CHUNK_BK, CHUNK_FD_NEXTSIZE, CHUNK_BK_NEXTSIZE = range(6)
"""``struct malloc_chunk`` in words."""
AR_FLAGS, AR_HAVE_FASTCHUNKS, AR_FASTBINS, AR_TOP, AR_LAST_REMAINDER, AR_BINS = 0, 1, 2, 12, 13, 14
AR_BINMAP, AR_NEXT, AR_NEXT_FREE, AR_ATTACHED_THREADS, AR_SYSTEM_MEM, AR_MAX_SYSTEM_MEM = 268, 270, 271, 272, 273, 274
AR_WORDS = 275
"""``struct malloc_state`` in words; ``flags`` shares the first one with the mutex, and two words of ``binmap`` share one."""
UNSORTED = 12 * 8
"""``unsorted_chunks(av) - av``: the bin, looked at as a chunk, whose fd is the first pointer of ``bins``."""
HEAP_AR_PTR, HEAP_PREV, HEAP_SIZE, HEAP_MPROTECT_SIZE, HEAP_PAGESIZE, HEAP_INFO_WORDS = range(6)
HEAP_INFO_BYTES, MALLOC_STATE_BYTES = 48, AR_WORDS * 8
"""``struct _heap_info`` in words, and its size with the padding."""

SEGMENT_SHIFT = 26
SEGMENT_WORDS = 1 << (SEGMENT_SHIFT - 3)
NR_SEGMENTS = 1 << (47 - SEGMENT_SHIFT)
FAULT_WORDS = SEGMENT_WORDS
"""The first segment stands for every address that has no place in the table."""

GROW = -2
"""A table is too small for what may come: nothing was done; the caller enlarges it and calls again."""
SEGV = -3
"""malloc itself touched memory that is not there: the process dies by SIGSEGV."""
FIRST_ABORT = -100
ABORTS = (
    "free(): invalid pointer",
    "free(): invalid size",
    "free(): too many chunks detected in tcache",
    "free(): unaligned chunk detected in tcache 2",
    "free(): double free detected in tcache 2",
    "free(): invalid next size (fast)",
    "double free or corruption (fasttop)",
    "invalid fastbin entry (free)",
    "double free or corruption (top)",
    "double free or corruption (out)",
    "double free or corruption (!prev)",
    "free(): invalid next size (normal)",
    "corrupted size vs. prev_size while consolidating",
    "free(): corrupted unsorted chunks",
    "corrupted size vs. prev_size",
    "corrupted double-linked list",
    "corrupted double-linked list (not small)",
    "malloc(): unaligned tcache chunk detected",
    "malloc(): unaligned fastbin chunk detected",
    "malloc(): unaligned fastbin chunk detected 2",
    "malloc(): unaligned fastbin chunk detected 3",
    "malloc(): memory corruption (fast)",
    "malloc(): smallbin double linked list corrupted",
    "malloc(): invalid size (unsorted)",
    "malloc(): invalid next size (unsorted)",
    "malloc(): mismatching next->prev_size (unsorted)",
    "malloc(): unsorted double linked list corrupted",
    "malloc(): invalid next->prev_inuse (unsorted)",
    "malloc(): corrupted unsorted chunks",
    "malloc(): corrupted unsorted chunks 2",
    "malloc(): corrupted unsorted chunks 3",
    "malloc(): largebin double linked list corrupted (nextsize)",
    "malloc(): largebin double linked list corrupted (bk)",
    "malloc(): corrupted top size",
    "malloc_consolidate(): unaligned fastbin chunk detected",
    "malloc_consolidate(): invalid chunk size",
    "corrupted size vs. prev_size in fastbins",
    "munmap_chunk(): invalid pointer",
    "mremap_chunk(): invalid pointer",
    "realloc(): invalid pointer",
    "realloc(): invalid old size",
    "realloc(): invalid next size",
    "break adjusted to free malloc space",
    "tcache_thread_shutdown(): unaligned tcache chunk detected",
    "Fatal glibc error: malloc assertion failure",
)  # fmt: skip
"""Everything that malloc says before it aborts; the code is `FIRST_ABORT` minus the place in this list."""
(
    FREE_INVALID_POINTER, FREE_INVALID_SIZE, TCACHE_TOO_MANY, TCACHE_UNALIGNED, TCACHE_DOUBLE_FREE, FREE_NEXT_SIZE_FAST, FASTTOP, FASTBIN_ENTRY,
    FREE_TOP, FREE_OUT, FREE_NOT_PREV, FREE_NEXT_SIZE_NORMAL, PREV_SIZE_CONSOLIDATING, FREE_UNSORTED, PREV_SIZE_MISMATCH, DOUBLE_LINKED, DOUBLE_LINKED_LARGE,
    MALLOC_TCACHE_UNALIGNED, FASTBIN_UNALIGNED, FASTBIN_UNALIGNED_2, FASTBIN_UNALIGNED_3, MALLOC_FAST, SMALLBIN_LIST, UNSORTED_SIZE, UNSORTED_NEXT_SIZE,
    UNSORTED_PREV_SIZE, UNSORTED_LIST, UNSORTED_PREV_INUSE, UNSORTED_CORRUPTED, UNSORTED_CORRUPTED_2, UNSORTED_CORRUPTED_3, LARGEBIN_NEXTSIZE, LARGEBIN_BK,
    TOP_SIZE, CONSOLIDATE_UNALIGNED, CONSOLIDATE_SIZE, PREV_SIZE_FASTBINS, MUNMAP_POINTER, MREMAP_POINTER, REALLOC_POINTER, REALLOC_OLD_SIZE,
    REALLOC_NEXT_SIZE, BREAK_ADJUSTED, SHUTDOWN_UNALIGNED, ASSERTION,
) = (FIRST_ABORT - number for number in range(len(ABORTS)))  # fmt: skip

TCACHE_BIN = np.dtype([("entries", "i8"), ("counts", "i8")])
"""``tcache_perthread_struct``, bin by bin; thread t's are the rows from ``t * TCACHE_MAX_BINS``."""
THREAD = np.dtype(
    [
        ("tcache", "i8"),  # address of the tcache_perthread_struct, 0 if there is none
        ("arena", "i8"),  # thread_arena
        ("shutting_down", "i8"),  # tcache_shutting_down
        ("state", "i8"),  # 0: not seen yet, 1: running, 2: ended
    ]
)
VMA = np.dtype([("start", "i8"), ("end", "i8")])
"""What is mapped, in the order of addresses, neighbours joined."""
MALLOC_PAR = np.dtype(
    [
        ("trim_threshold", "i8"),
        ("top_pad", "i8"),
        ("mmap_threshold", "i8"),
        ("arena_test", "i8"),
        ("arena_max", "i8"),
        ("n_mmaps", "i8"),
        ("n_mmaps_max", "i8"),
        ("max_n_mmaps", "i8"),
        ("no_dyn_threshold", "i8"),
        ("mmapped_mem", "i8"),
        ("max_mmapped_mem", "i8"),
        ("sbrk_base", "i8"),
        ("tcache_bins", "i8"),
        ("tcache_max_bytes", "i8"),
        ("tcache_count", "i8"),
        ("tcache_unsorted_limit", "i8"),
        # static variables beside struct malloc_par
        ("global_max_fast", "i8"),
        ("tcache_key", "i8"),
        ("narenas", "i8"),
        ("narenas_limit", "i8"),
        ("free_list", "i8"),
        ("next_to_use", "i8"),
        ("aligned_heap_area", "i8"),
        ("main_arena", "i8"),
        ("multiple_threads", "i8"),  # 1: SINGLE_THREAD_P no longer holds
        ("may_shrink_heap", "i8"),  # vm.overcommit_memory is 2
        ("nprocs", "i8"),
        # the kernel's side
        ("start_brk", "i8"),
        ("brk", "i8"),
        ("curbrk", "i8"),  # __curbrk: 0 until the first sbrk
        ("mmap_base", "i8"),
        ("thp_align", "i8"),  # 1: mappings of whole 2 MiB units are aligned to them (Linux 6.7 and later)
        ("commit_limit", "i8"),  # pages that one request may have at most (vm.overcommit_memory 0: RAM and swap)
        ("vmas", "i8"),  # rows of `VMA` in use
        # this model's own
        ("main_segments", "i8"),  # set aside for the main heap
        ("next_segment", "i8"),  # first unused one
        ("fault", "i8"),  # the last address that had no place, 0 if all had
        ("aborted", "i8"),  # what ended the process: an abort's code or SEGV; 0 while it lives
        ("unsorted_count", "i8"),  # tcache_unsorted_count, a variable of _int_malloc
        # counters
        ("brk_calls", "i8"),
        ("mmap_calls", "i8"),
        ("munmap_calls", "i8"),
        ("mremap_calls", "i8"),
        ("consolidations", "i8"),
        ("trims", "i8"),
    ]
)


class Ptmalloc(NamedTuple):
    """All tables.

    :ivar segment: for each 64 MiB of the address space, which 64 MiB of `word` they are; 0: malloc keeps nothing there.
    """

    word: npt.NDArray[np.int64]
    segment: npt.NDArray[np.int32]
    bin: npt.NDArray[np.void]
    thread: npt.NDArray[np.void]
    vma: npt.NDArray[np.void]
    mp: npt.NDArray[np.void]


SPARE_SEGMENTS = 64
START_BRK, MMAP_BASE, MAIN_ARENA = 0x55555555A000, 0x7FFFF7FFF000, 0x7FFFF7F9AC60
"""Where a small program without address space randomisation has its heap, its mappings and libc's main_arena."""
DEFAULT_MAPS = ((0x555555554000, 0x555555559000), (0x7FFFF7DC7000, 0x7FFFF7FB0000), (0x7FFFF7FBD000, MMAP_BASE))
"""The program; libc; the dynamic linker and what the kernel provides."""


def memory(words: int) -> npt.NDArray[np.int64]:
    """Words that are 0 and cost nothing until they are written."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        return np.frombuffer(mmap.mmap(-1, words * 8, flags=flags), dtype=np.int64)
    except (OSError, OverflowError) as error:
        raise RequestError(f"no {words * 8 >> 20} MiB of address space for the heap's words ({error}); ask for a smaller heap_limit") from None


def new_ptmalloc(
    *,
    start_brk: int = START_BRK,
    mmap_base: int = MMAP_BASE,
    main_arena: int = MAIN_ARENA,
    maps: Any = DEFAULT_MAPS,
    threads: int = 4,
    nprocs: int = 2,
    thp_align: bool = False,
    commit_limit: int = 1 << 36,
    overcommit: int = 0,
    heap_limit: int = 4 << 30,
    tcache_key: int = 0x5EED5EED5EED5EED,
) -> Ptmalloc:
    """The state of a process before its first malloc.

    :param maps: what is mapped, without the heap.
    :param commit_limit: pages of RAM and swap, which no single request may exceed.
    :param overcommit: vm.overcommit_memory.
    :param heap_limit: bytes of address space for the main heap; beyond it brk fails.
    """
    main_segments = (heap_limit >> SEGMENT_SHIFT) + 2
    mp = np.zeros(1, dtype=MALLOC_PAR)
    p = mp[0]
    p["trim_threshold"], p["top_pad"], p["mmap_threshold"] = DEFAULT_TRIM_THRESHOLD, DEFAULT_TOP_PAD, DEFAULT_MMAP_THRESHOLD
    p["arena_test"], p["n_mmaps_max"], p["narenas"] = 8, DEFAULT_MMAP_MAX, 1
    p["tcache_bins"], p["tcache_max_bytes"], p["tcache_count"] = TCACHE_MAX_BINS, MAX_TCACHE_SIZE, TCACHE_FILL_COUNT
    p["global_max_fast"], p["tcache_key"], p["main_arena"], p["nprocs"] = DEFAULT_MXFAST, tcache_key, main_arena, nprocs
    p["start_brk"], p["brk"], p["mmap_base"] = start_brk, start_brk, mmap_base
    p["thp_align"], p["may_shrink_heap"] = int(thp_align), int(overcommit == 2)
    p["commit_limit"] = commit_limit if overcommit == 0 else 1 << 50
    p["main_segments"], p["next_segment"] = main_segments, 1 + main_segments
    state = Ptmalloc(
        memory((1 + main_segments + SPARE_SEGMENTS) * SEGMENT_WORDS),
        np.zeros(NR_SEGMENTS, dtype=np.int32),
        np.zeros(threads * TCACHE_MAX_BINS, dtype=TCACHE_BIN),
        np.zeros(threads, dtype=THREAD),
        np.zeros(1024, dtype=VMA),
        mp,
    )
    first = start_brk >> SEGMENT_SHIFT
    last = min(first + main_segments, NR_SEGMENTS)
    state.segment[first:last] = np.arange(1, 1 + last - first)
    set_maps(state, maps)
    init_state(state, main_arena)
    state.thread[0]["arena"], state.thread[0]["state"] = main_arena, 1
    return state


def set_maps(state: Ptmalloc, maps: Any) -> None:
    """Replaces what is mapped; the heap is added."""
    start, end = int(state.mp[0]["start_brk"]), int(state.mp[0]["brk"])
    ranges = sorted([(int(a), int(b)) for a, b in maps if 0 <= int(a) < int(b) < 1 << 47] + [(start, -(-end // PAGE_SIZE) * PAGE_SIZE)] * (end > start))
    joined: list[tuple[int, int]] = []
    for low, high in ranges:
        if joined and low <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(high, joined[-1][1])
        else:
            joined.append((low, high))
    if len(joined) + 2 > len(state.vma):
        raise RequestError(f"{len(joined):,} mappings do not fit into the table of {len(state.vma):,}")
    state.vma[: len(joined)] = joined
    state.mp[0]["vmas"] = len(joined)


def init_state(state: Ptmalloc, arena: int) -> None:
    """``malloc_init_state`` of main_arena, and its place in memory."""
    key = arena >> SEGMENT_SHIFT
    if not state.segment[key]:
        state.segment[key] = state.mp[0]["next_segment"]
        state.mp[0]["next_segment"] += 1
    at = int(state.segment[key]) * SEGMENT_WORDS + ((arena >> 3) & (SEGMENT_WORDS - 1))
    for number in range(1, NBINS):
        place = at + AR_BINS + (number - 1) * 2
        state.word[place : place + 2] = arena + UNSORTED + (number - 1) * 16
    state.word[at + AR_TOP] = arena + UNSORTED
    state.word[at + AR_NEXT] = arena
    state.word[at + AR_ATTACHED_THREADS] = 1


def grown(state: Ptmalloc, threads: int = 0) -> Ptmalloc:
    """The same state in tables with room for more, wherever one is half full, and for `threads` threads."""
    word, segment, bins, thread, vma, mp = state
    used = int(mp[0]["next_segment"])
    if len(word) // SEGMENT_WORDS - used < SPARE_SEGMENTS // 2:
        larger = memory((used + max(SPARE_SEGMENTS, used)) * SEGMENT_WORDS)
        copy_written(word, larger, used * SEGMENT_WORDS)
        word = larger
    if threads > len(thread):
        more = max(threads, 2 * len(thread)) - len(thread)
        thread = np.concatenate([thread, np.zeros(more, dtype=THREAD)])
        bins = np.concatenate([bins, np.zeros(more * TCACHE_MAX_BINS, dtype=TCACHE_BIN)])
    if 2 * int(mp[0]["vmas"]) > len(vma):
        vma = np.concatenate([vma, np.zeros(len(vma), dtype=VMA)])
    return Ptmalloc(word, segment, bins, thread, vma, mp)


def copy_written(old: npt.NDArray[np.int64], new: npt.NDArray[np.int64], words: int) -> None:
    """Copies what is not 0, so that untouched pages stay untouched."""
    step = 1 << 16
    for start in range(0, words, step):
        block = old[start : min(start + step, words)]
        if block.any():
            new[start : start + len(block)] = block


def copied(state: Ptmalloc) -> Ptmalloc:
    """A state of its own."""
    word = memory(len(state.word))
    copy_written(state.word, word, int(state.mp[0]["next_segment"]) * SEGMENT_WORDS)
    return Ptmalloc(word, state.segment.copy(), state.bin.copy(), state.thread.copy(), state.vma.copy(), state.mp.copy())
