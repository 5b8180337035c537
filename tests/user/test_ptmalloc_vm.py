"""Where the kernel places mappings, and what becomes of the list of ranges."""

from __future__ import annotations

import random

from mmtwin.user import ptmalloc_vm as vm
from mmtwin.user.ptmalloc_tables import MMAP_BASE, START_BRK, Ptmalloc, new_ptmalloc

PAGE, MIB = 4096, 1 << 20


def process(**options: object) -> Ptmalloc:
    return new_ptmalloc(heap_limit=1 << 27, **{"maps": ((0x555555554000, 0x555555559000), (MMAP_BASE - 100 * PAGE, MMAP_BASE - 10 * PAGE)), **options})  # type: ignore[arg-type]


def ranges(m: Ptmalloc) -> list[tuple[int, int]]:
    return m.vma[: int(m.mp[0]["vmas"])].tolist()


def test_highest_gap_that_is_large_enough() -> None:
    m = process()
    assert vm.vm_mmap(m, 0, 4 * PAGE, 1) == MMAP_BASE - 4 * PAGE
    assert vm.vm_mmap(m, 0, 7 * PAGE, 1) == MMAP_BASE - 107 * PAGE
    assert vm.vm_mmap(m, 0, 6 * PAGE, 1) == MMAP_BASE - 10 * PAGE
    vm.vm_munmap(m, MMAP_BASE - 106 * PAGE, 2 * PAGE)
    assert vm.vm_mmap(m, 0, 2 * PAGE, 1) == MMAP_BASE - 106 * PAGE
    assert ranges(m)[-1] == (MMAP_BASE - 107 * PAGE, MMAP_BASE)


def test_huge_mappings_are_aligned_by_new_kernels() -> None:
    assert vm.vm_mmap(process(), 0, 4 * MIB, 1) == MMAP_BASE - 100 * PAGE - 4 * MIB
    m = process(thp_align=True)
    address = vm.vm_mmap(m, 0, 4 * MIB, 1)
    assert address % (2 * MIB) == 0 and address + 4 * MIB <= MMAP_BASE - 100 * PAGE < address + 6 * MIB
    assert vm.vm_mmap(m, 0, 4 * MIB + PAGE, 1) % (2 * MIB) != 0


def test_what_is_refused() -> None:
    m = process(commit_limit=1000)
    assert vm.vm_mmap(m, 0, 1001 * PAGE, 1) == 0 and vm.vm_mmap(m, 0, 1001 * PAGE, 0) != 0
    assert vm.vm_mmap(m, 0, 1 << 47, 0) == 0 and vm.vm_mmap(m, 0, 0, 0) == 0
    assert vm.morecore(m, 1001 * PAGE) == 0 and vm.morecore(m, 0) == START_BRK
    assert vm.morecore(m, 1 << 47) == 0
    for overcommit in (1, 2):
        assert vm.vm_mmap(process(commit_limit=1000, overcommit=overcommit), 0, 1001 * PAGE, 1) != 0


def test_mremap_grows_in_place_moves_and_shrinks() -> None:
    m = process()
    first = vm.vm_mmap(m, 0, 20 * PAGE, 1)
    second = vm.vm_mmap(m, 0, 20 * PAGE, 1)
    assert second == first - 20 * PAGE
    moved = vm.vm_mremap(m, second, 20 * PAGE, 30 * PAGE)
    assert moved == second - 30 * PAGE
    assert vm.vm_mremap(m, moved, 30 * PAGE, 45 * PAGE) == moved, "what it left is free now"
    assert vm.vm_mremap(m, moved, 45 * PAGE, 5 * PAGE) == moved
    assert vm.is_free(m, moved + 5 * PAGE, first)
    assert vm.vm_mremap(m, moved, 6 * PAGE, 7 * PAGE) == 0 and vm.vm_mremap(m, moved, 5 * PAGE, 1 << 47) == 0


def test_break() -> None:
    m = process()
    assert vm.morecore(m, 100) == START_BRK and vm.morecore(m, 0) == START_BRK + 100
    assert (START_BRK, START_BRK + PAGE) in ranges(m)
    assert vm.vm_brk(m, START_BRK - 1) == START_BRK + 100
    vm.insert_range(m, START_BRK + 10 * PAGE, START_BRK + 11 * PAGE)
    assert vm.morecore(m, 10 * PAGE) == 0, "a page stays free before the next mapping"
    assert vm.morecore(m, 8 * PAGE) == START_BRK + 100
    assert vm.morecore(m, -8 * PAGE - 100) == START_BRK + 8 * PAGE + 100
    assert all(start != START_BRK for start, _ in ranges(m))


def test_ranges_against_a_set_of_pages() -> None:
    r, m, mapped = random.Random(1), process(maps=()), set()
    for _ in range(3000):
        start, pages = r.randrange(200), r.randrange(1, 20)
        these = set(range(start, start + pages))
        low, high = 0x100000 + start * PAGE, 0x100000 + (start + pages) * PAGE
        assert bool(vm.is_free(m, low, high)) is not bool(these & mapped)
        if r.random() < 0.5:
            vm.remove_range(m, low, high)
            mapped -= these
        elif not these & mapped:
            vm.insert_range(m, low, high)
            mapped |= these
        found = [page for a, b in ranges(m) for page in range((a - 0x100000) // PAGE, (b - 0x100000) // PAGE)]
        assert found == sorted(mapped)
