"""What malloc asks of the kernel: brk, mmap, munmap and mremap of anonymous memory, with addresses as Linux chooses them on x86-64 (mm/mmap.c, mm/mremap.c).

Mappings are placed top-down: the highest gap below mmap_base that is large enough, and its upper end. Kernels since 6.7 move mappings whose length is a multiple
of 2 MiB to such a boundary (``thp_get_unmapped_area``). Only addresses matter here, so what is mapped is a list of ranges in which neighbours are one.
"""

from __future__ import annotations

from mmtwin._jit import inner, slow
from mmtwin.units import PAGE_SIZE
from mmtwin.user.ptmalloc_memory import clear
from mmtwin.user.ptmalloc_tables import SEGMENT_SHIFT, Ptmalloc

PMD_SIZE = 1 << 21
LOWEST = 1 << 16
"""vm.mmap_min_addr."""


@inner
def page_align(size: int) -> int:
    """``PAGE_ALIGN``."""
    return (size + PAGE_SIZE - 1) & -PAGE_SIZE


@slow
def first_ending_above(m: Ptmalloc, address: int) -> int:
    """``find_vma``: the first range that ends above an address; the number of ranges if there is none."""
    low, high = 0, int(m.mp[0]["vmas"])
    while low < high:
        middle = (low + high) >> 1
        if int(m.vma[middle]["end"]) > address:
            high = middle
        else:
            low = middle + 1
    return low


@slow
def is_free(m: Ptmalloc, start: int, end: int) -> int:
    """1 if nothing is mapped between two addresses."""
    row = first_ending_above(m, start)
    return int(row == int(m.mp[0]["vmas"]) or int(m.vma[row]["start"]) >= end)


@slow
def insert_range(m: Ptmalloc, start: int, end: int) -> None:
    """Adds a range in which nothing is mapped."""
    vma = m.vma
    count = int(m.mp[0]["vmas"])
    row = first_ending_above(m, start)
    joins_before = row > 0 and int(vma[row - 1]["end"]) == start
    joins_behind = row < count and int(vma[row]["start"]) == end
    if joins_before and joins_behind:
        vma[row - 1]["end"] = vma[row]["end"]
        for i in range(row, count - 1):
            vma[i]["start"], vma[i]["end"] = vma[i + 1]["start"], vma[i + 1]["end"]
        m.mp[0]["vmas"] = count - 1
    elif joins_before:
        vma[row - 1]["end"] = end
    elif joins_behind:
        vma[row]["start"] = start
    else:
        for i in range(count, row, -1):
            vma[i]["start"], vma[i]["end"] = vma[i - 1]["start"], vma[i - 1]["end"]
        vma[row]["start"], vma[row]["end"] = start, end
        m.mp[0]["vmas"] = count + 1


@slow
def remove_range(m: Ptmalloc, start: int, end: int) -> None:
    """Unmaps whatever is between two addresses."""
    vma = m.vma
    row = first_ending_above(m, start)
    while row < int(m.mp[0]["vmas"]) and int(vma[row]["start"]) < end:
        count = int(m.mp[0]["vmas"])
        low, high = int(vma[row]["start"]), int(vma[row]["end"])
        if low < start and high > end:
            for i in range(count, row + 1, -1):
                vma[i]["start"], vma[i]["end"] = vma[i - 1]["start"], vma[i - 1]["end"]
            vma[row]["end"] = start
            vma[row + 1]["start"], vma[row + 1]["end"] = end, high
            m.mp[0]["vmas"] = count + 1
            return
        if low < start:
            vma[row]["end"] = start
            row += 1
        elif high > end:
            vma[row]["start"] = end
            return
        else:
            for i in range(row, count - 1):
                vma[i]["start"], vma[i]["end"] = vma[i + 1]["start"], vma[i + 1]["end"]
            m.mp[0]["vmas"] = count - 1


@slow
def highest_gap(m: Ptmalloc, length: int) -> int:
    """``vm_unmapped_area`` top-down: where a mapping of this length goes; 0 if it fits nowhere."""
    vma = m.vma
    ceiling = int(m.mp[0]["mmap_base"])
    row = first_ending_above(m, ceiling - 1) - 1
    if row + 1 < int(m.mp[0]["vmas"]) and int(vma[row + 1]["start"]) < ceiling:
        ceiling = int(vma[row + 1]["start"])
    while True:
        floor = int(vma[row]["end"]) if row >= 0 else LOWEST
        if ceiling - floor >= length:
            return ceiling - length
        if row < 0:
            return 0
        ceiling = int(vma[row]["start"])
        row -= 1


@slow
def get_unmapped_area(m: Ptmalloc, length: int) -> int:
    """``__get_unmapped_area`` of an anonymous mapping without a hint; 0 if there is no room."""
    if int(m.mp[0]["thp_align"]) and length & (PMD_SIZE - 1) == 0:
        found = highest_gap(m, length + PMD_SIZE)
        if found:
            lead = -found & (PMD_SIZE - 1)
            return found + (lead if lead else PMD_SIZE)
    return highest_gap(m, length)


@inner
def may_commit(m: Ptmalloc, length: int) -> int:
    """``__vm_enough_memory`` with vm.overcommit_memory 0: only a request larger than RAM and swap together is refused."""
    return int(length // PAGE_SIZE <= int(m.mp[0]["commit_limit"]))


@slow
def vm_mmap(m: Ptmalloc, hint: int, length: int, accounted: int) -> int:
    """``mmap(hint, length, ..., MAP_PRIVATE | MAP_ANONYMOUS)``: the address; 0 if it fails.

    :param accounted: 0 for memory without access or with MAP_NORESERVE.
    """
    m.mp[0]["mmap_calls"] += 1
    if length <= 0 or length >= 1 << 47 or (accounted and not may_commit(m, length)):
        return 0
    address = hint if hint and hint + length <= 1 << 47 and is_free(m, hint, hint + length) else get_unmapped_area(m, length)
    if address:
        insert_range(m, address, address + length)
    return address


@slow
def vm_mprotect(m: Ptmalloc, start: int, length: int) -> int:
    """``mprotect(start, length, PROT_READ | PROT_WRITE)``: 0, or -1 if it fails. Only a process has limits that can make it fail."""
    return 0


@slow
def vm_dontneed(m: Ptmalloc, start: int, length: int) -> None:
    """``madvise(start, length, MADV_DONTNEED)``."""
    clear(m, start, start + length)


@slow
def vm_revoke(m: Ptmalloc, start: int, length: int) -> int:
    """``mmap(start, length, PROT_NONE, MAP_FIXED)`` over memory that is not needed now: 0, or -1 if it fails."""
    clear(m, start, start + length)
    return 0


@slow
def vm_munmap(m: Ptmalloc, start: int, length: int) -> None:
    """``munmap``."""
    m.mp[0]["munmap_calls"] += 1
    remove_range(m, start, start + length)


@slow
def vm_mremap(m: Ptmalloc, old: int, old_length: int, new_length: int) -> int:
    """``mremap(..., MREMAP_MAYMOVE)``: the address; 0 if it fails. What is behind a mapping may be free: then it grows in place."""
    m.mp[0]["mremap_calls"] += 1
    if new_length >= 1 << 47:
        return 0
    if new_length <= old_length:
        remove_range(m, old + new_length, old + old_length)
        return old
    row = first_ending_above(m, old)
    if row == int(m.mp[0]["vmas"]) or int(m.vma[row]["start"]) > old or int(m.vma[row]["end"]) < old + old_length:
        return 0
    if not may_commit(m, new_length - old_length):
        return 0
    if int(m.vma[row]["end"]) == old + old_length and old + new_length <= 1 << 47 and is_free(m, old + old_length, old + new_length):
        insert_range(m, old + old_length, old + new_length)
        return old
    if not may_commit(m, new_length):
        return 0
    address = get_unmapped_area(m, new_length)
    if address:
        insert_range(m, address, address + new_length)
        remove_range(m, old, old + old_length)
    return address


@slow
def vm_brk(m: Ptmalloc, to: int) -> int:
    """The system call brk: sets the end of the heap if it can, and returns where it is."""
    mp = m.mp[0]
    mp["brk_calls"] += 1
    now = int(mp["brk"])
    start = int(mp["start_brk"])
    if to < start:
        return now
    old_end, new_end = page_align(now), page_align(to)
    if to <= now:
        if new_end < old_end:
            remove_range(m, new_end, old_end)
            clear(m, new_end, old_end)
    elif new_end > old_end:
        limit = (start & -(1 << SEGMENT_SHIFT)) + ((int(mp["main_segments"]) - 1) << SEGMENT_SHIFT)
        if new_end > limit or not may_commit(m, new_end - old_end) or not is_free(m, old_end, new_end + PAGE_SIZE):
            return now
        insert_range(m, old_end, new_end)
    mp["brk"] = to
    return to


@slow
def morecore(m: Ptmalloc, increment: int) -> int:
    """``__glibc_morecore``, so ``sbrk``: the old end of the heap; 0 if it fails."""
    mp = m.mp[0]
    if int(mp["curbrk"]) == 0:
        mp["curbrk"] = int(mp["brk"])
    old = int(mp["curbrk"])
    if increment == 0:
        return old
    if increment >= 1 << 47 or old + increment < 0:
        return 0
    mp["curbrk"] = vm_brk(m, old + increment)
    return 0 if int(mp["curbrk"]) < old + increment else old
