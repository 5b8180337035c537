"""pcpu_get_vm_areas: against a search by brute force, and its undoing."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmtwin.mm.vmalloc import NO_SPARE, OVERFLOW
from mmtwin.mm.vmap_entry import GIVE_UP, NO_OBJECT, percpu_areas_entry
from mmtwin.mm.vmap_tables import reserve_areas, unbias
from tests.vmalloc_machine import PAGE, VMALLOC_END, VMALLOC_START, VmallocMachine

ALIGN = 8 * PAGE


def chunk(machine: VmallocMachine, offsets: list[int], sizes: list[int], spares: bool = True) -> list[int]:
    """A chunk of the per-CPU allocator, with the caller's retries: the addresses, none if there is no room."""
    o, s = np.array(offsets, dtype=np.int64) * ALIGN, np.array(sizes, dtype=np.int64) * ALIGN
    progress, objects = np.zeros(2, dtype=np.int64), np.array([machine.new_object() for _ in offsets], dtype=np.int64)
    machine.v = reserve_areas(machine.v, 2 * len(offsets) + 1)
    machine.renew()
    result = machine.call(percpu_areas_entry, 0, o, s, ALIGN, objects, NO_OBJECT, progress)
    while result == NO_SPARE:
        result = machine.call(percpu_areas_entry, 0, o, s, ALIGN, objects, machine.new_object() if spares else GIVE_UP, progress)
    if result == OVERFLOW:
        for kernel_object in objects.tolist():
            if kernel_object != NO_OBJECT:
                machine.objects.remove(kernel_object)
        return []
    assert [machine.address(row) for row in objects.tolist()] == [unbias(result) + int(offset) for offset in o]
    return [machine.address(row) for row in objects.tolist()]


def highest_base(machine: VmallocMachine, offsets: list[int], sizes: list[int]) -> int:
    """Every aligned base from the top, 0 if none fits."""
    free = machine.free_areas()
    base = machine.end // ALIGN * ALIGN
    while base >= -(-machine.start // ALIGN) * ALIGN:
        spans = [(base + o * ALIGN, base + (o + s) * ALIGN) for o, s in zip(offsets, sizes, strict=True)]
        if all(end <= machine.end // ALIGN * ALIGN and any(f[0] <= start and end <= f[1] for f in free) for start, end in spans):
            return base
        base -= ALIGN
    return 0


def test_first_chunk_is_at_the_top() -> None:
    machine = VmallocMachine()
    top = VMALLOC_END // ALIGN * ALIGN
    assert chunk(machine, [0, 5], [2, 2]) == [top - 7 * ALIGN, top - 2 * ALIGN]
    machine.validate()
    assert chunk(machine, [0, 5], [2, 2]) == [top - 9 * ALIGN, top - 4 * ALIGN]  # both fit below their likes
    assert chunk(machine, [0, 5], [2, 2]) == [top - 16 * ALIGN, top - 11 * ALIGN]
    machine.validate()
    assert machine.alloc(PAGE) == VMALLOC_START


@given(
    st.lists(st.tuples(st.integers(0, 24), st.integers(1, 12)), max_size=12),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=4),
    st.integers(0, 200),
    st.randoms(),
    st.sampled_from([601, 612]),
)
def test_highest_base(holes: list[tuple[int, int]], areas: list[tuple[int, int]], shift: int, random: object, version: int) -> None:
    start = VMALLOC_START + shift * PAGE
    machine = VmallocMachine(version, 2, start=start, end=start + 64 * ALIGN - 1)
    kept = []
    for gap, size in holes:
        kept += [(machine.alloc(pages * PAGE), keep) for pages, keep in ((gap + 1, False), (size * 4, True))]
    for address, keep in kept:
        if address and not keep:
            machine.free(address)
    machine.drain()
    offsets, sizes, at = [], [], 0
    for gap, size in areas:
        offsets.append(at + gap)
        sizes.append(size)
        at += gap + size
    order = sorted(range(len(areas)), key=lambda i: (i * 7919) % 5)
    offsets, sizes = [offsets[i] - min(offsets) for i in order], [sizes[i] for i in order]
    expected = highest_base(machine, offsets, sizes)
    found = chunk(machine, offsets, sizes)
    assert found == ([expected + offset * ALIGN for offset in offsets] if expected else [])
    machine.validate()


def test_giving_up_undoes_everything() -> None:
    machine = VmallocMachine()
    before = machine.free_areas()
    assert chunk(machine, [0, 4], [1, 1], spares=False) == []
    assert machine.free_areas() == before
    machine.validate()
    wall = machine.alloc(PAGE, start=VMALLOC_END // ALIGN * ALIGN - ALIGN)
    spare = machine.v.cpu[0]["ne_fit_preload_node"]
    assert wall and not spare
    machine.alloc(PAGE)
    free = machine.free_areas()
    assert chunk(machine, [0, 2], [1, 1], spares=False) == []  # the first area took something, and gave it back
    assert machine.free_areas() == free
    machine.validate()


def test_no_room() -> None:
    machine = VmallocMachine(end=VMALLOC_START + 4 * ALIGN - 1)
    assert chunk(machine, [0, 4], [1, 1]) == []
    assert len(chunk(machine, [0], [2])) == 1
    assert machine.v.config[0]["overflows"] == 1
    machine.validate()
