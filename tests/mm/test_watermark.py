"""Watermarks, batches and reserves: worked examples computed by hand from the formulas, and what real kernels had."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmtwin import profiles
from mmtwin.gfp import ALLOC_HIGHATOMIC, ALLOC_MIN_RESERVE, ALLOC_NON_BLOCK, ALLOC_OOM, HIGHATOMIC, MOVABLE
from mmtwin.machine import Machine, boot
from mmtwin.mm.tables import Pgdat
from mmtwin.mm.watermark import int_sqrt, zone_batchsize, zone_watermark_fast, zone_watermark_ok
from mmtwin.recording.model import Recording
from mmtwin.recording.state import restore

MARKS = ("wmark_min", "wmark_low", "wmark_high", "wmark_promo")
TABLE = [
    # managed pages, CPUs, THP, min_free_kbytes, per zone: marks, batch, high, threshold
    ((3840, 27000), 1, False, 1404, [((43, 53, 63, 73), 1, 53, 2), ((307, 383, 459, 535), 7, 383, 2)]),
    ((3840, 56000), 2, False, 1956, [((31, 38, 45, 52), 1, 19, 4), ((457, 571, 685, 799), 15, 285, 8)]),
    ((3840, 118000), 1, False, 2792, [((21, 26, 31, 36), 1, 26, 2), ((676, 845, 1014, 1183), 31, 845, 6)]),
    ((3840, 118000), 1, True, 24156, [((190, 237, 284, 331), 1, 237, 2), ((5848, 7310, 8772, 10234), 31, 7310, 6)]),
    ((3840, 250000), 2, True, 45056, [((170, 212, 254, 296), 1, 106, 4), ((11093, 13866, 16639, 19412), 63, 6933, 16)]),
    ((3840, 505000), 4, True, 45056, [((85, 106, 127, 148), 1, 26, 6), ((11178, 13972, 16766, 19560), 63, 3493, 30)]),
    (
        (3840, 750000, 1280000), 4, True, 67584,
        [((31, 38, 45, 52), 1, 9, 6), ((6230, 7787, 9344, 10901), 63, 1946, 36), ((10633, 13291, 15949, 18607), 63, 3322, 42)],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("managed", "cpus", "thp", "min_free_kbytes", "expected"), TABLE)
def test_worked_examples(
    zones: Callable[..., Pgdat], managed: tuple[int, ...], cpus: int, thp: bool, min_free_kbytes: int, expected: list[tuple[tuple[int, ...], int, int, int]]
) -> None:
    state = zones(*managed, cpus=cpus, thp=thp)
    assert state.config[0]["min_free_kbytes"] == min_free_kbytes
    for z, (marks, batch, high, threshold) in enumerate(expected):
        assert tuple(int(state.zone[z][name]) for name in MARKS) == marks
        for row in state.pcp[z * cpus : (z + 1) * cpus]:
            assert (int(row["batch"]), int(row["high"]), int(row["stat_threshold"])) == (batch, high, threshold)


def test_lowmem_reserve(zones: Callable[..., Pgdat]) -> None:
    state = zones(3840, 750000, 1280000, cpus=4, thp=True)
    assert state.lowmem_reserve.tolist() == [[0, 2929, 7929, 7929, 7929], [0, 0, 5000, 5000, 5000], [0] * 5, [0] * 5, [0] * 5]
    assert zones(3840, 118000).lowmem_reserve.tolist() == [[0, 460, 460, 460, 460], [0] * 5, [0] * 5, [0] * 5, [0] * 5]


def test_totalreserve(zones: Callable[..., Pgdat]) -> None:
    state = zones(3840, 118000)
    assert state.config[0]["totalreserve_pages"] == 31 + 460 + 1014


@pytest.mark.parametrize(
    ("managed", "batch"), [(1, 1), (12287, 1), (12288, 3), (24576, 7), (45055, 7), (45056, 15), (90112, 31), (176127, 31), (176128, 63), (1 << 30, 63)]
)
def test_batch_steps(managed: int, batch: int) -> None:
    assert zone_batchsize(managed) == batch


@given(st.integers(0, 1 << 60))
def test_int_sqrt(x: int) -> None:
    assert int_sqrt(x) == math.isqrt(x)


def ok(state: Pgdat, free: int, order: int = 0, flags: int = 0, highest: int = 1, mark: int = 307) -> bool:
    return bool(zone_watermark_ok(state, 1, order, mark, highest, flags, free))


def test_mark_must_be_exceeded(zones: Callable[..., Pgdat]) -> None:
    state = zones(3840, 27000)
    assert not ok(state, 307) and ok(state, 308)


def test_reserves(zones: Callable[..., Pgdat]) -> None:
    state = zones(3840, 27000)
    half = 307 - 307 // 2
    assert not ok(state, half, flags=ALLOC_MIN_RESERVE) and ok(state, half + 1, flags=ALLOC_MIN_RESERVE)
    less = half - half // 4
    assert not ok(state, less, flags=ALLOC_MIN_RESERVE | ALLOC_NON_BLOCK) and ok(state, less + 1, flags=ALLOC_MIN_RESERVE | ALLOC_NON_BLOCK)
    assert not ok(state, 307, flags=ALLOC_NON_BLOCK)  # alone it lowers nothing
    assert ok(state, half + 1, flags=ALLOC_OOM)
    state.zone[1]["nr_reserved_highatomic"] = 512
    assert not ok(state, 308 + 511) and ok(state, 308 + 512) and ok(state, 308, flags=ALLOC_NON_BLOCK)


def test_lowmem_reserve_counts(zones: Callable[..., Pgdat]) -> None:
    state = zones(3840, 118000)
    assert zone_watermark_ok(state, 0, 0, 21, 0, 0, 22)
    assert not zone_watermark_ok(state, 0, 0, 21, 3, 0, 21 + 460) and zone_watermark_ok(state, 0, 0, 21, 3, 0, 21 + 461)


def test_high_orders_need_a_block(bare: Callable[..., Machine]) -> None:
    state = bare("64MiB").state
    for o in range(11):
        state.free_area[11 + o]["nr_free"] = 0
    assert not ok(state, 10000, order=3)
    assert ok(bare("64MiB").state, 10000, order=3)


def test_highatomic_blocks_are_for_atomic_requests(bare: Callable[..., Machine]) -> None:
    machine = bare("64MiB")
    state = machine.state
    base = int(state.config[0]["free_list_base"])
    for order in range(11):  # everything movable becomes HIGHATOMIC
        rows = (base + (11 + order) * 5 + MOVABLE, base + (11 + order) * 5 + HIGHATOMIC)
        first, last = int(state.page[rows[0]]["next"]), int(state.page[rows[0]]["prev"])
        if first == rows[0]:
            continue
        state.page[rows[1]]["next"], state.page[rows[1]]["prev"] = first, last
        state.page[first]["prev"] = state.page[last]["next"] = rows[1]
        state.page[rows[0]]["next"] = state.page[rows[0]]["prev"] = rows[0]
    assert not ok(state, 10000, order=3) and not ok(state, 10000, order=3, flags=ALLOC_NON_BLOCK)
    assert ok(state, 10000, order=3, flags=ALLOC_HIGHATOMIC) and ok(state, 10000, order=3, flags=ALLOC_OOM)


def test_boost_is_ignored_for_atomic_order_0(zones: Callable[..., Pgdat]) -> None:
    state = zones(3840, 27000)
    state.zone[1]["nr_free_pages"], state.zone[1]["watermark_boost"] = 400, 512
    mark = 307 + 512
    assert not zone_watermark_fast(state, 1, 0, mark, 1, 0, 0x800)
    assert zone_watermark_fast(state, 1, 0, mark, 1, 0, 0xA20)
    assert not zone_watermark_fast(state, 1, 1, mark, 1, 0, 0xA20)


ZONE_CONSTANTS = ("is_highmem", "start_pfn", "end_pfn", "present_pages", "managed_pages", "percpu_drift_mark", *MARKS)


def test_real_constants(real: dict[str, Recording]) -> None:
    """Every constant of every recorded machine follows from its RAM, its CPUs and the size of its initial RAM disk. (Boosted marks cannot be compared.)"""
    compared = 0
    for name, recording in real.items():
        assert recording.before is not None
        want = restore(recording.before)
        if not want.zone["watermark_boost"].any():
            assert _explains(recording, want, -(-recording.provenance.initrd_bytes // 4096)), name
            compared += 1
    assert compared


def _explains(recording: Recording, want: Pgdat, initrd_pages: int) -> bool:
    thp = False if "transparent_hugepage=never" in recording.provenance.cmdline else None
    kernel = profiles.for_release(recording.provenance.kernel_release)
    zones = len(kernel.zone_names)
    state = boot(kernel, ram=recording.provenance.ram_bytes, cpus=recording.provenance.cpus, initrd=initrd_pages * 4096, thp=thp).state
    return (
        np.array_equal(state.lowmem_reserve[:zones, :zones], want.lowmem_reserve[:zones, :zones])
        and all(np.array_equal(state.zone[name], want.zone[name]) for name in ZONE_CONSTANTS)
        and all(np.array_equal(state.pcp[name], want.pcp[name]) for name in ("high", "batch", "stat_threshold"))
        and np.array_equal(state.config, want.config)
    )
