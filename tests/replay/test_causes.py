"""Why decisions differ: when a locked section is over for certain, and whether kswapd slept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

from mmtwin.replay.causes import _went_to_sleep, section_ends
from mmtwin.replay.decisions import Differing
from mmtwin.replay.engine import NEAR
from mmtwin.replay.placement import context_ids


def drain(pid: int) -> tuple[str, dict[str, Any]]:
    return "mm_page_pcpu_drain", {"pfn": 8, "order": 0, "migratetype": 0, "pid": pid}


def test_a_section_ends_at_its_contexts_next_event(events: Callable[..., pl.DataFrame]) -> None:
    walk = "walk", {"pid": 2}
    table = events(drain(1), walk, drain(1), walk, drain(1), walk, ("mm_page_free", {"pid": 1}), *[walk] * 100, drain(1))
    contexts, _ = context_ids(table, True)
    ends = section_ends(table, contexts)
    assert ends[0] == ends[2] == ends[4] == 6, "the whole drain is open until the task shows its next event"
    assert ends[1] == 3
    assert ends[6] == 6 + NEAR, "what follows long after says little"
    assert ends[len(table) - 1] >= len(table)
    assert np.all(ends > np.arange(len(table)))


@pytest.mark.parametrize(
    ("kernel", "asleep", "after", "says"),
    [
        (True, False, (), "went to sleep"),
        (True, True, (), ""),
        (False, True, (("mm_vmscan_kswapd_wake", {"pid": 9}),), "getting up"),
        (False, True, (("mm_vmscan_wakeup_kswapd", {"pid": 8}), ("mm_vmscan_kswapd_wake", {"pid": 9})), "woken at event 1"),
        (False, True, (("walk", {}), ("walk", {}), ("mm_vmscan_wakeup_kswapd", {"pid": 8})), ""),
    ],
)
def test_kswapds_sleep(events: Callable[..., pl.DataFrame], kernel: bool, asleep: bool, after: tuple[tuple[str, dict[str, Any]], ...], says: str) -> None:
    table = events(("wakeup_kswapd", {"ptr": 1, "call_site": 2 if asleep else 1}), *after, ("walk", {}))
    contexts, _ = context_ids(table, True)
    cause = _went_to_sleep(table, contexts, Differing("wakeups", 0, 2, kernel, 0, 0xCC0, 1))
    assert (says in cause) if says else cause == ""
    assert _went_to_sleep(table, contexts, Differing("walks", 0, 2, kernel, 0, 0xCC0, 1)) == ""
