"""The node's balance: one zone above its high watermark is enough, a boost is not balanced away, and the test is exact below the drift mark."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmtwin.machine import Machine
from mmtwin.mm.kswapd import BOOSTED, UNBALANCED, node_needs_kswapd, zone_free_pages_exact
from mmtwin.mm.tables import Pgdat


@pytest.fixture
def state(bare: Callable[..., Machine]) -> Pgdat:
    made = bare("64MiB", cpus=2).state
    made.zone["percpu_drift_mark"] = 0
    made.zone[0]["nr_free_pages"] = 0
    return made


def test_one_zone_is_enough(state: Pgdat) -> None:
    high = int(state.zone[1]["wmark_high"])
    state.zone[1]["nr_free_pages"] = high + 1
    assert node_needs_kswapd(state, 0, 2) == 0
    assert node_needs_kswapd(state, 0, 0) == UNBALANCED, "a request that may use the first zone only"
    state.zone[1]["nr_free_pages"] = high
    assert node_needs_kswapd(state, 0, 2) == UNBALANCED


def test_a_boost(state: Pgdat) -> None:
    state.zone[1]["nr_free_pages"] = int(state.zone[1]["wmark_high"]) + 100
    state.zone[1]["watermark_boost"] = 99
    assert node_needs_kswapd(state, 0, 2) == BOOSTED
    state.zone[1]["watermark_boost"] = 100
    assert node_needs_kswapd(state, 0, 2) == BOOSTED | UNBALANCED
    assert node_needs_kswapd(state, 0, 0) == UNBALANCED


def test_the_test_is_exact_below_the_drift_mark(state: Pgdat) -> None:
    high = int(state.zone[1]["wmark_high"])
    state.zone[1]["nr_free_pages"] = high + 10
    state.pcp[1 * 2 + 1]["nr_free_pages_diff"] = -10
    assert zone_free_pages_exact(state, 1) == high
    assert node_needs_kswapd(state, 0, 2) == 0
    state.zone[1]["percpu_drift_mark"] = high + 11
    assert node_needs_kswapd(state, 0, 2) == UNBALANCED


def test_nothing_to_balance(state: Pgdat) -> None:
    state.zone["managed_pages"] = 0
    assert node_needs_kswapd(state, 0, 2) == 0
