"""Counters that CPUs hold back."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from mmtwin.mm.tables import Pgdat, new_pgdat
from mmtwin.mm.vmstat import (
    calculate_pressure_threshold,
    fls,
    mod_zone_free_pages,
    refresh_cpu_vm_stats,
    refresh_zone_stat_thresholds,
    set_pgdat_percpu_threshold,
)


def test_folded_when_above_the_threshold() -> None:
    state = new_pgdat(16, 2)
    state.pcp["stat_threshold"] = 4
    mod_zone_free_pages(state, 1, 1, 4)
    assert (state.zone[1]["nr_free_pages"], state.pcp[3]["nr_free_pages_diff"]) == (0, 4)
    mod_zone_free_pages(state, 1, 1, 1)
    assert (state.zone[1]["nr_free_pages"], state.pcp[3]["nr_free_pages_diff"]) == (5, 0)
    mod_zone_free_pages(state, 1, 0, -4)
    assert (state.zone[1]["nr_free_pages"], state.pcp[2]["nr_free_pages_diff"]) == (5, -4)
    refresh_cpu_vm_stats(state, 0)
    assert (state.zone[1]["nr_free_pages"], state.pcp[2]["nr_free_pages_diff"]) == (1, 0)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-100, 100)), max_size=50), st.integers(0, 125))
def test_nothing_is_lost(changes: list[tuple[int, int]], threshold: int) -> None:
    state = new_pgdat(16, 3)
    state.pcp["stat_threshold"] = threshold
    for cpu, delta in changes:
        mod_zone_free_pages(state, 0, cpu, delta)
        assert abs(state.pcp["nr_free_pages_diff"]).max() <= threshold
    assert int(state.zone[0]["nr_free_pages"]) + int(state.pcp["nr_free_pages_diff"].sum()) == sum(delta for _, delta in changes)


def test_drift_mark_is_never_cleared(zones: Callable[..., Pgdat]) -> None:
    state = zones(3840, 116048, cpus=4)
    assert state.zone[0]["percpu_drift_mark"] == int(state.zone[0]["wmark_high"]) + 4 * 6
    assert state.zone[1]["percpu_drift_mark"] == 0  # 72 pages of drift are fewer than lie between low and min
    state.zone[1]["percpu_drift_mark"] = 48
    refresh_zone_stat_thresholds(state)
    assert state.zone[1]["percpu_drift_mark"] == 48


def test_pressure_thresholds_only_with_a_drift_mark(zones: Callable[..., Pgdat]) -> None:
    state = zones(3840, 116048, cpus=4)
    set_pgdat_percpu_threshold(state, True)
    assert calculate_pressure_threshold(state, 0) == max(1, (int(state.zone[0]["wmark_low"]) - int(state.zone[0]["wmark_min"])) // 4) == 1
    assert state.pcp["stat_threshold"].tolist()[:8] == [1] * 4 + [18] * 4
    set_pgdat_percpu_threshold(state, False)
    assert state.pcp["stat_threshold"].tolist()[:8] == [6] * 4 + [18] * 4


@given(st.integers(0, 1 << 62))
def test_fls(x: int) -> None:
    assert fls(x) == x.bit_length()
