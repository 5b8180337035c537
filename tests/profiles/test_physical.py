"""Memory maps, zones, and what a boot reserves: computed, and as real machines had them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmtwin.profiles import for_release, get, physical
from mmtwin.profiles.physical import (
    MemoryRange,
    boot_reserve,
    clip,
    count,
    first_deferred,
    hash_table_pages,
    join,
    qemu_pc_memory_map,
    ram_frames,
    sections,
    subtract,
    take_top,
    zone_spans,
)
from mmtwin.recording.model import Recording

KERNEL = get("linux-6.1")
MIB, GIB = 1 << 20, 1 << 30
RANGES = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)).map(lambda pair: (min(pair), max(pair))), max_size=8)


def frames_in(ranges: list[tuple[int, int]]) -> set[int]:
    return {pfn for start, end in ranges for pfn in range(start, end)}


@given(RANGES, RANGES)
def test_range_arithmetic(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    assert frames_in(join(a)) == frames_in(a)
    assert frames_in(subtract(a, b)) == frames_in(a) - frames_in(b)
    assert frames_in(clip(join(a), 50, 100)) == frames_in(a) & set(range(50, 100))
    assert count(join(a)) == len(frames_in(a))
    joined = join(a)
    assert all(x[1] < y[0] for x, y in pairwise(joined))


@given(RANGES, st.integers(0, 400))
def test_take_top(a: list[tuple[int, int]], pages: int) -> None:
    assert sorted(frames_in(take_top(join(a), pages))) == sorted(frames_in(a))[max(0, len(frames_in(a)) - pages) :]


@pytest.mark.parametrize(
    ("ram", "low", "high"),
    [
        (256 * MIB, 256 * MIB, 0),
        (3 * GIB, 3 * GIB, 0),
        (0xE0000000 - 4096, 0xE0000000 - 4096, 0),
        (0xE0000000, 3 * GIB, GIB // 2),
        (4 * GIB, 3 * GIB, GIB),
        (1 << 40, 3 * GIB, (1 << 40) - 3 * GIB),
    ],
)
def test_memory_map(ram: int, low: int, high: int) -> None:
    found = qemu_pc_memory_map(ram)
    assert all(a.start + a.size <= b.start for a, b in pairwise(found))
    assert sum(r.size for r in found if r.start >= 4 * GIB and r.type == physical.RAM) == high
    assert max(r.start + r.size for r in found if r.start < low) == low


def test_zones_of_256_mib() -> None:
    spans = zone_spans(ram_frames(qemu_pc_memory_map(256 * MIB)), KERNEL.zone_limits, 5)
    assert spans == [(1, 4096, 3998), (4096, 65504, 61408), (0, 0, 0), (0, 0, 0), (0, 0, 0)]


def test_zones_of_4_gib_span_the_hole() -> None:
    spans = zone_spans(ram_frames(qemu_pc_memory_map(4 * GIB)), KERNEL.zone_limits, 5)
    assert spans[1] == (4096, 1 << 20, 782304) and spans[2] == (1 << 20, 1310720, 262144)


def test_zones_without_memory() -> None:
    assert zone_spans([], KERNEL.zone_limits, 5) == [(0, 0, 0)] * 5
    assert zone_spans([(1 << 20, (1 << 20) + 5)], KERNEL.zone_limits, 5)[2] == (1 << 20, (1 << 20) + 5, 5)


def test_partial_pages_are_no_memory() -> None:
    assert ram_frames([MemoryRange(100, 4096, 1), MemoryRange(8192, 4095, 1), MemoryRange(1 << 20, 4096, 2)]) == []


def test_sections() -> None:
    assert sections([(1, 5), (40000, 40001), (1 << 20, (1 << 20) + 1)], 15) == [(0, 1 << 16), (1 << 20, (1 << 20) + (1 << 15))]


def test_hash_tables() -> None:
    """dmesg of a 256 MiB guest: dentry 32768 entries, inode 16384."""
    assert hash_table_pages(60000, 13) == 64 and hash_table_pages(60000, 14) == 32


def test_deferred_init_starts_at_a_section() -> None:
    assert first_deferred([(1 << 20, (1 << 20) + (1 << 18))], 1 << 20, 15) == (1 << 20) + (1 << 15)
    assert first_deferred([(1, 131040)], 4096, 15) == 1 << 16
    assert first_deferred([(1, 65504)], 4096, 15) is None


def test_real_memory_maps_zones_and_managed_pages(real: dict[str, Recording]) -> None:
    for name, recording in real.items():
        snapshot = recording.before
        assert snapshot is not None
        found = qemu_pc_memory_map(recording.provenance.ram_bytes)
        assert [tuple(row) for row in snapshot.memory_map.select("start", "size", "type").iter_rows()] == list(found), name
        kernel = for_release(recording.provenance.kernel_release)
        ram = clip(ram_frames(found), 0, kernel.max_frames)
        spans = zone_spans(ram, kernel.zone_limits, len(kernel.zone_names))
        zones = snapshot.zones
        assert [(s.start, s.end - s.start, s.present) for s in spans] == list(
            zip(zones["start_pfn"], zones["spanned_pages"], zones["present_pages"], strict=True)
        ), name
        free = subtract(ram, boot_reserve(kernel, ram, spans, recording.provenance.cpus).kept)
        assert [count(clip(free, s.start, s.end)) for s in spans] == zones["managed_pages"].to_list(), name
