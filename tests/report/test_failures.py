"""Refused requests: the kernel refused them, so at the moment of the test no zone may pass by the report's arithmetic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from mmtwin.recording import store
from mmtwin.report import failures
from mmtwin.report.document import document

from .conftest import PRESSURE, Made


def test_the_kernel_is_the_judge(refusing: Made) -> None:
    found = refusing.data["failures"]
    assert (found["total"], found["explained"], len(found["oom_kills"])) == (380, failures.LOOKED_AT, 2)
    rules = [zone["rule"] for row in found["requests"] if row["explained"] for zone in row["explained"]["zones"]]
    assert len(rules) >= failures.LOOKED_AT and "would pass" not in rules
    assert sum(reason["count"] for reason in found["reasons"]) == failures.LOOKED_AT
    assert sum(kind["count"] for kind in found["kinds"]) == 380


def test_two_cpus_and_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "LOOKED_AT", 20)
    path = PRESSURE / "swap-128m-2cpu.mmrec"
    found = document(store.load(path), path, steps=2)["failures"]
    assert found["total"] == 89
    rules = [zone["rule"] for row in found["requests"] if row["explained"] for zone in row["explained"]["zones"]]
    assert rules and "would pass" not in rules


def test_the_request_is_the_events(refusing: Made) -> None:
    for row in refusing.data["failures"]["requests"][:20]:
        event = refusing.recording.events.row(row["event"], named=True)
        assert (event["kind"], event["pfn"], event["pid"], event["order"], event["time"]) == ("mm_page_alloc", -1, row["pid"], row["order"], row["time"])
        if row["explained"]:
            tested = refusing.recording.events.row(row["explained"]["at"], named=True)
            assert (tested["kind"], tested["pid"], tested["order"]) == ("walk", row["pid"], row["order"])


def test_another_explanation(refusing: Made) -> None:
    """What explains can be replaced."""
    asked: list[int] = []

    def mine(moment: Any, request: dict[str, Any], zones: list[str]) -> dict[str, Any]:
        asked.append(moment.event)
        return {"reason": "mine", "text": f"order {request['order']}", "zones": []}

    found = document(refusing.recording, refusing.path, steps=2, explain=mine)["failures"]
    assert len(asked) == failures.LOOKED_AT and found["reasons"] == [{"text": "mine", "count": len(asked)}]


def test_reasons() -> None:
    zone = {
        "zone": "Normal",
        "free_pages": 1000,
        "needs_more_than": 500,
        "kept_highatomic": 0,
        "watermark": "min",
        "watermark_boost": 0,
        "blocks_large_enough": 0,
        "largest_free_order": 3,
    }
    assert failures._why([{**zone, "rule": "no free block of order 4"}], 4) == (
        "fragmentation: no block large enough",
        "3.9 MiB were free, but no block of 64 KiB in one piece; the largest was 32 KiB.",
    )
    assert failures._why([{**zone, "rule": "too few free pages", "free_pages": 400}], 0)[0] == "too little memory (min watermark)"
    boosted = {**zone, "rule": "too few free pages", "needs_more_than": 1400, "watermark_boost": 900}
    assert failures._why([boosted], 0)[0] == "raised watermark (boost)"
    assert failures._why([{**boosted, "kept_highatomic": 600}], 0)[0] == "too little memory (min watermark)"
    assert failures._why([boosted], 4)[0] == "too little memory (min watermark)"
    assert failures._why([{**zone, "rule": "would pass"}], 0)[0] == "not seen in the zones"


def test_nothing_refused(demo: Made) -> None:
    assert demo.data["failures"]["total"] == 0 and demo.data["failures"]["requests"] == []
    assert len(failures.looked_at(failures.refused(demo.recording))) == 0


def test_long_lists_are_cut(refusing: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "LISTED", 7)
    rows = failures.refused(refusing.recording)
    found = failures.failures(rows, {}, replace(refusing.recording, events=refusing.recording.events.filter(pl.col("kind") == "mark_victim")))
    assert (len(found["requests"]), found["not_listed"], found["total"]) == (7, 373, 380)
