"""GFP flags: names, zones, types and allocation flags of Linux 6.1."""

from __future__ import annotations

import pytest

from mmtwin import gfp
from mmtwin.gfp import ALLOC_CPUSET, ALLOC_HIGHATOMIC, ALLOC_KSWAPD, ALLOC_MIN_RESERVE, ALLOC_NON_BLOCK, GFP, gfp_migratetype, gfp_names, gfp_to_alloc_flags
from mmtwin.profiles import get


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (0, "none"),
        (0xCC0, "GFP_KERNEL"),
        (0xA20, "GFP_ATOMIC"),
        (0x40CC0, "GFP_KERNEL|__GFP_COMP"),
        (0x140DCA, "GFP_HIGHUSER_MOVABLE|__GFP_COMP|__GFP_ZERO"),
        (0x400DC0, "GFP_KERNEL_ACCOUNT|__GFP_ZERO"),
        (0x1, "GFP_DMA"),
        (0x2000000, "0x2000000"),
    ],
)
def test_names(flags: int, text: str) -> None:
    assert gfp_names(flags) == text


def test_every_flag_has_a_name() -> None:
    named = 0
    for _, mask in gfp.GFP_NAMES:
        named |= mask
    assert all(flag & named for flag in GFP)


def test_composites() -> None:
    assert gfp.GFP_KERNEL == GFP.DIRECT_RECLAIM | GFP.KSWAPD_RECLAIM | GFP.IO | GFP.FS
    assert gfp.GFP_ATOMIC == GFP.HIGH | GFP.ATOMIC | GFP.KSWAPD_RECLAIM
    assert gfp.GFP_HIGHUSER_MOVABLE == gfp.GFP_KERNEL | GFP.HARDWALL | GFP.HIGHMEM | GFP.MOVABLE


def test_zones_equal_the_profile() -> None:
    assert get("linux-6.1").gfp_zones == gfp.GFP_ZONES
    assert get("linux-6.1").migratetypes == gfp.MIGRATETYPE_NAMES


def test_migratetypes() -> None:
    assert [gfp_migratetype(flags) for flags in (0xCC0, 0x100CCA, 0xCD0)] == [gfp.UNMOVABLE, gfp.MOVABLE, gfp.RECLAIMABLE]


@pytest.mark.parametrize(
    ("flags", "order", "expected"),
    [
        (0xCC0, 0, ALLOC_CPUSET | ALLOC_KSWAPD),
        (0x800, 0, ALLOC_CPUSET | ALLOC_KSWAPD | ALLOC_NON_BLOCK),  # GFP_NOWAIT: since 6.1.y
        (0xA20, 0, ALLOC_KSWAPD | ALLOC_MIN_RESERVE | ALLOC_NON_BLOCK),
        (0xA20, 1, ALLOC_KSWAPD | ALLOC_MIN_RESERVE | ALLOC_NON_BLOCK | ALLOC_HIGHATOMIC),
        (0x80A20, 1, ALLOC_KSWAPD | ALLOC_MIN_RESERVE),  # __GFP_NOMEMALLOC
        (0xCE0, 2, ALLOC_CPUSET | ALLOC_KSWAPD | ALLOC_MIN_RESERVE),  # __GFP_HIGH, but it may wait
    ],
)
def test_alloc_flags(flags: int, order: int, expected: int) -> None:
    assert gfp_to_alloc_flags(flags, order) == expected
