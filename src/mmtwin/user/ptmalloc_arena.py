"""Arenas and their heaps (malloc/arena.c): which arena a thread uses, how many there may be, and where heaps lie.

As in the recordings, one call is finished before the next one begins, so that no arena is ever found locked.
"""

from __future__ import annotations

from mmtwin._jit import slow
from mmtwin.units import PAGE_SIZE
from mmtwin.user.ptmalloc_memory import at, place, set_head
from mmtwin.user.ptmalloc_tables import (
    AR_ATTACHED_THREADS,
    AR_BINS,
    AR_FLAGS,
    AR_MAX_SYSTEM_MEM,
    AR_NEXT,
    AR_NEXT_FREE,
    AR_SYSTEM_MEM,
    AR_TOP,
    HEAP_AR_PTR,
    HEAP_INFO_BYTES,
    HEAP_MAX_SIZE,
    HEAP_MIN_SIZE,
    HEAP_MPROTECT_SIZE,
    HEAP_PAGESIZE,
    HEAP_SIZE,
    MALLOC_STATE_BYTES,
    NBINS,
    NONCONTIGUOUS,
    PREV_INUSE,
    UNSORTED,
    Ptmalloc,
)
from mmtwin.user.ptmalloc_vm import page_align, vm_mmap, vm_mprotect, vm_munmap


@slow
def new_heap(m: Ptmalloc, size: int, top_pad: int) -> int:
    """``new_heap``: 64 MiB of address space, aligned to its size, of which the first pages can be used; 0 if it is not to be had.

    The kernel is asked for twice as much and keeps what is aligned. If that happens to be the first half, the second one is remembered for the next heap.
    """
    if size > HEAP_MAX_SIZE:
        return 0
    if size + top_pad < HEAP_MIN_SIZE:
        size = HEAP_MIN_SIZE
    elif size + top_pad <= HEAP_MAX_SIZE:
        size += top_pad
    else:
        size = HEAP_MAX_SIZE
    size = page_align(size)
    heap = 0
    area = int(m.mp[0]["aligned_heap_area"])
    if area != 0:
        heap = vm_mmap(m, area, HEAP_MAX_SIZE, 0)
        m.mp[0]["aligned_heap_area"] = 0
        if heap & (HEAP_MAX_SIZE - 1):
            vm_munmap(m, heap, HEAP_MAX_SIZE)
            heap = 0
    if heap == 0:
        first = vm_mmap(m, 0, HEAP_MAX_SIZE << 1, 0)
        if first != 0:
            heap = (first + HEAP_MAX_SIZE - 1) & -HEAP_MAX_SIZE
            lead = heap - first
            if lead:
                vm_munmap(m, first, lead)
            else:
                m.mp[0]["aligned_heap_area"] = heap + HEAP_MAX_SIZE
            vm_munmap(m, heap + HEAP_MAX_SIZE, HEAP_MAX_SIZE - lead)
        else:
            heap = vm_mmap(m, 0, HEAP_MAX_SIZE, 0)
            if heap == 0:
                return 0
            if heap & (HEAP_MAX_SIZE - 1):
                vm_munmap(m, heap, HEAP_MAX_SIZE)
                return 0
    if vm_mprotect(m, heap, size) < 0:
        vm_munmap(m, heap, HEAP_MAX_SIZE)
        return 0
    i = place(m, heap)
    m.word[i + HEAP_SIZE] = size
    m.word[i + HEAP_MPROTECT_SIZE] = size
    m.word[i + HEAP_PAGESIZE] = PAGE_SIZE
    return heap


@slow
def grow_heap(m: Ptmalloc, heap: int, h: int, diff: int) -> int:
    """``grow_heap``: makes more of a heap's pages usable; -1 if it would become too large, -2 if the kernel refuses."""
    size = int(m.word[h + HEAP_SIZE]) + page_align(diff)
    if size > HEAP_MAX_SIZE:
        return -1
    usable = int(m.word[h + HEAP_MPROTECT_SIZE])
    if size > usable:
        if vm_mprotect(m, heap + usable, size - usable) < 0:
            return -2
        m.word[h + HEAP_MPROTECT_SIZE] = size
    m.word[h + HEAP_SIZE] = size
    return 0


@slow
def detach_arena(m: Ptmalloc, arena: int) -> None:
    """``detach_arena``."""
    if arena != 0:
        m.word[at(m, arena) + AR_ATTACHED_THREADS] -= 1


@slow
def int_new_arena(m: Ptmalloc, t: int, size: int) -> int:
    """``_int_new_arena``: an arena in a heap of its own becomes the thread's."""
    word = m.word
    overhead = HEAP_INFO_BYTES + MALLOC_STATE_BYTES + 16
    heap = new_heap(m, size + overhead, int(m.mp[0]["top_pad"]))
    if heap == 0:  # perhaps the request is too large for a heap: then it will get a mapping of its own
        heap = new_heap(m, overhead, int(m.mp[0]["top_pad"]))
        if heap == 0:
            return 0
    h = at(m, heap)
    arena = heap + HEAP_INFO_BYTES
    word[h + HEAP_AR_PTR] = arena
    a = at(m, arena)
    for number in range(1, NBINS):
        i = a + AR_BINS + (number - 1) * 2
        word[i] = word[i + 1] = arena + UNSORTED + (number - 1) * 16
    word[a + AR_FLAGS] = NONCONTIGUOUS
    word[a + AR_ATTACHED_THREADS] = 1
    heap_size = int(word[h + HEAP_SIZE])
    word[a + AR_SYSTEM_MEM] = word[a + AR_MAX_SYSTEM_MEM] = heap_size
    top = (arena + MALLOC_STATE_BYTES + 15) & -16
    word[a + AR_TOP] = top
    set_head(m, at(m, top), (heap + heap_size - top) | PREV_INUSE)
    replaced = int(m.thread[t]["arena"])
    m.thread[t]["arena"] = arena
    main = at(m, int(m.mp[0]["main_arena"]))
    word[a + AR_NEXT] = word[main + AR_NEXT]
    word[main + AR_NEXT] = arena
    detach_arena(m, replaced)
    return arena


@slow
def get_free_list(m: Ptmalloc, t: int) -> int:
    """``get_free_list``: an arena that no thread uses any more."""
    arena = int(m.mp[0]["free_list"])
    if arena != 0:
        a = at(m, arena)
        m.mp[0]["free_list"] = m.word[a + AR_NEXT_FREE]
        m.word[a + AR_ATTACHED_THREADS] = 1
        detach_arena(m, int(m.thread[t]["arena"]))
        m.thread[t]["arena"] = arena
    return arena


@slow
def reused_arena(m: Ptmalloc, t: int, avoid: int) -> int:
    """``reused_arena``: the next one in turn, when there are as many as there may be; `avoid` is the one that is locked as it could not help."""
    word = m.word
    if int(m.mp[0]["next_to_use"]) == 0:
        m.mp[0]["next_to_use"] = m.mp[0]["main_arena"]
    arena = int(m.mp[0]["next_to_use"])
    if arena == avoid:
        arena = int(word[at(m, arena) + AR_NEXT])
    a = at(m, arena)
    detach_arena(m, int(m.thread[t]["arena"]))
    listed = int(m.mp[0]["free_list"])
    if listed == arena:
        m.mp[0]["free_list"] = word[a + AR_NEXT_FREE]
    while listed != 0:
        i = at(m, listed)
        listed = int(word[i + AR_NEXT_FREE])
        if listed == arena:
            word[i + AR_NEXT_FREE] = word[a + AR_NEXT_FREE]
            break
    word[a + AR_ATTACHED_THREADS] += 1
    m.thread[t]["arena"] = arena
    m.mp[0]["next_to_use"] = word[a + AR_NEXT]
    return arena


@slow
def arena_get2(m: Ptmalloc, t: int, size: int, avoid: int) -> int:
    """``arena_get2``: an arena for a thread that has none, or whose own could not help."""
    mp = m.mp[0]
    arena = get_free_list(m, t)
    if arena != 0:
        return arena
    if int(mp["narenas_limit"]) == 0:
        if int(mp["arena_max"]) != 0:
            mp["narenas_limit"] = mp["arena_max"]
        elif int(mp["narenas"]) > int(mp["arena_test"]):
            mp["narenas_limit"] = 8 * int(mp["nprocs"])
    limit = int(mp["narenas_limit"])
    if limit == 0 or int(mp["narenas"]) <= limit - 1:
        mp["narenas"] += 1
        arena = int_new_arena(m, t, size)
        if arena == 0:
            mp["narenas"] -= 1
        return arena
    return reused_arena(m, t, avoid)


@slow
def arena_get(m: Ptmalloc, t: int, size: int) -> int:
    """``arena_get``."""
    arena = int(m.thread[t]["arena"])
    return arena if arena != 0 else arena_get2(m, t, size, 0)


@slow
def arena_get_retry(m: Ptmalloc, t: int, arena: int, size: int) -> int:
    """``arena_get_retry``: another arena after a failure."""
    main = int(m.mp[0]["main_arena"])
    return main if arena != main else arena_get2(m, t, size, main)


@slow
def arena_thread_freeres(m: Ptmalloc, t: int) -> None:
    """The second part of ``__malloc_arena_thread_freeres``: a thread's arena, if it was the last to use it, waits for another thread."""
    arena = int(m.thread[t]["arena"])
    m.thread[t]["arena"] = 0
    if arena != 0:
        a = at(m, arena)
        m.word[a + AR_ATTACHED_THREADS] -= 1
        if int(m.word[a + AR_ATTACHED_THREADS]) == 0:
            m.word[a + AR_NEXT_FREE] = m.mp[0]["free_list"]
            m.mp[0]["free_list"] = arena
