"""Refused requests: the kernel refused them, so at the moment of the test no zone may pass; and what is said of them is what explain --at says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from mmtwin.diagnose.explain.at import explain_many, place_of
from mmtwin.recording import store
from mmtwin.report import failures
from mmtwin.report.document import document
from mmtwin.report.page import OF_EACH, OPEN_FAILURES, SHOWN_FAILURES, html, shown_failures

from .conftest import PRESSURE, Made


def test_the_kernel_is_the_judge(refusing: Made) -> None:
    found = refusing.data["failures"]
    assert (found["total"], found["explained"], len(found["oom_kills"])) == (380, failures.LOOKED_AT, 2)
    explained = [row["explained"] for row in found["requests"] if row["explained"]]
    assert len(explained) == failures.LOOKED_AT
    assert "passes" not in {zone["rule"] for why in explained for zone in why["zones"]}
    assert all(why["twin"]["agrees"] and why["twin"]["pfn"] == -1 and why["certainty"] == "decided" for why in explained)
    assert sum(reason["count"] for reason in found["reasons"]) == failures.LOOKED_AT
    assert sum(kind["count"] for kind in found["kinds"]) == 380


def test_two_cpus_and_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "LOOKED_AT", 20)
    path = PRESSURE / "swap-128m-2cpu.mmrec"
    found = document(store.load(path), path, steps=2)["failures"]
    assert found["total"] == 89
    rules = [zone["rule"] for row in found["requests"] if row["explained"] for zone in row["explained"]["zones"]]
    assert rules and "passes" not in rules


def test_it_says_what_explain_at_says(refusing: Made) -> None:
    """Word for word and number for number, though both look in replays of their own."""
    explained = {row["event"]: row["explained"] for row in refusing.data["failures"]["requests"] if row["explained"]}
    some = [*list(explained)[::12], *(event for event, why in explained.items() if why["ranges"])][:12]
    assert any(explained[event]["ranges"] for event in some)
    for result in explain_many(refusing.recording, [place_of(refusing.recording, event) for event in some]):
        told, why = result.to_dict(), explained[result.place.event]
        for key in ("verdict", "certainty", "headline", "judged_at", "why", "missing", "twin", "holders"):
            assert why[key] == told[key], key
        assert why["reason"] == told["meaning"] and told["headline"].endswith(f". {why['answer']}") and why["answer"]
        assert [(zone["zone"], zone["rule"], zone["free"], zone["margin"], zone["steps"]) for zone in why["zones"]] == [
            (zone["zone"], zone["rule"], zone["free"], zone["margin"], zone["steps"]) for zone in told["zones"]
        ]
        assert [(remedy["what"], remedy["changes"]) for remedy in why["remedies"]] == [(remedy["what"], remedy["changes"]) for remedy in told["remedies"]]
        for text, owner in zip(why["owners"], told["owners"], strict=False):
            assert text.startswith(f"{owner['who']}: {owner['frames']:,} page")
        for place in why["ranges"]:
            (room,) = [room for room in told["rooms"] if room["zone"] == place["zone"]]
            assert place["pfn"] in [row["pfn"] for row in room["best"]]


def test_the_request_is_the_events(refusing: Made) -> None:
    for row in refusing.data["failures"]["requests"][:20]:
        event = refusing.recording.events.row(row["event"], named=True)
        assert (event["kind"], event["pfn"], event["pid"], event["order"], event["time"]) == ("mm_page_alloc", -1, row["pid"], row["order"], row["time"])
        if row["explained"]:
            tested = refusing.recording.events.row(row["explained"]["judged_at"], named=True)
            assert (tested["kind"], tested["pid"], tested["order"]) == ("walk", row["pid"], row["order"])


def test_another_explanation(refusing: Made) -> None:
    """What explains can be replaced."""
    asked: list[int] = []

    def mine(moment: Any, place: Any) -> dict[str, Any]:
        assert moment.event == place.judged
        asked.append(place.event)
        return {"reason": "mine", "headline": f"order {place.order}"}

    found = document(refusing.recording, refusing.path, steps=2, explain=mine)["failures"]
    assert len(asked) == failures.LOOKED_AT and found["reasons"] == [{"text": "mine", "count": len(asked)}]
    assert {row["event"] for row in found["requests"] if row["explained"]} == set(asked)


def test_what_cannot_be_explained(refusing: Made) -> None:
    """A damaged request has no explanation, but the report is made."""
    broken = pl.when((pl.col("kind") == "mm_page_alloc") & (pl.col("pfn") < 0)).then(pl.col("gfp") | 0x18).otherwise("gfp")
    made = document(replace(refusing.recording, events=refusing.recording.events.with_columns(broken.alias("gfp"))), refusing.path, steps=2)
    assert {reason["text"] for reason in made["failures"]["reasons"]} == {"not explained"}
    assert "no kernel accepts" in html(made)


def test_rare_reasons_are_seen(refusing: Made) -> None:
    rows = [dict(row) for row in refusing.data["failures"]["requests"]]
    explained = [row for row in rows if row["explained"]]
    for row in explained[-4:]:
        row["explained"] = row["explained"] | {"reason": "a rare one"}
    shown = shown_failures(rows)
    assert len(shown) == SHOWN_FAILURES and all(row["explained"] for row in shown)
    assert [row["explained"]["reason"] for row in shown[:OPEN_FAILURES]].count("a rare one") == OF_EACH
    for part in (shown[:OPEN_FAILURES], shown[OPEN_FAILURES:]):
        assert [row["event"] for row in part] == sorted(row["event"] for row in part)
    assert len({row["event"] for row in shown}) == SHOWN_FAILURES
    assert shown_failures(rows[:3]) == rows[:3] and shown_failures([]) == []


def test_nothing_refused(demo: Made) -> None:
    assert demo.data["failures"]["total"] == 0 and demo.data["failures"]["requests"] == []
    assert len(failures.looked_at(failures.refused(demo.recording))) == 0


def test_long_lists_are_cut(refusing: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "LISTED", 7)
    rows = failures.refused(refusing.recording)
    found = failures.failures(rows, {}, replace(refusing.recording, events=refusing.recording.events.filter(pl.col("kind") == "mark_victim")))
    assert (len(found["requests"]), found["not_listed"], found["total"]) == (7, 373, 380)
