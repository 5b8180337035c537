"""Patterns with their first words find what the patterns alone find."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmtwin.diagnose.explain import kernel_version, mem_info, segments
from mmtwin.diagnose.explain.anchored import Anchored, places

LOGS = sorted((Path(__file__).parents[1] / "data" / "kernel-logs").glob("*.txt"))
ALL = {"header": segments.HEADERS, "zone": mem_info.HEAD, "blocks": mem_info.LIST, "empty": mem_info.EMPTY, "reserve": mem_info.RESERVE, "counter": mem_info.COUNTER,
       "node": mem_info.NODE_LINE, "release": kernel_version.RELEASE}  # fmt: skip


def test_places_are_in_order_and_once() -> None:
    assert places("Node DMA DMA32 Node", ("DMA", "Node", "DMA32")) == [0, 5, 9, 15]
    assert places("DMA DMA", ("DMA",), 1, 6) == []


def test_matches_do_not_overlap() -> None:
    two = Anchored(re.compile("aba"), "a")
    assert [match.start() for match in two.finditer("ababa aba")] == [0, 6]
    assert two.search("xx") is None


@pytest.mark.parametrize("name", ALL)
def test_as_the_pattern_alone(name: str) -> None:
    one, found = ALL[name], 0
    for log in LOGS:
        text = log.read_text("utf-8", "replace")[:60_000]
        expected = [(match.span(), match.groups()) for match in one.pattern.finditer(text)]
        assert [(match.span(), match.groups()) for match in one.finditer(text)] == expected, log.name
        found += len(expected)
    assert found
