"""Requests that the kernel refused, and processes it killed: what was asked for, and why there was none, as ``mmtwin explain --at`` says it.

`explainer` makes what says why one request was refused, by the twin's state at the moment of the test that decided. It is a plain function of a moment and a request, so another
explanation can take its place: give it to `mmtwin.report.document.document` as `explain`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import polars as pl

from mmtwin.diagnose import pins
from mmtwin.diagnose.explain import at
from mmtwin.diagnose.explain.at_show import OWNERS_SHOWN, PINS_SHOWN, pin_text, range_text
from mmtwin.diagnose.explain.common import asked
from mmtwin.diagnose.explain.model import VERDICTS, size
from mmtwin.diagnose.explain.show import RULES, WHO
from mmtwin.errors import RequestError
from mmtwin.gfp import gfp_names
from mmtwin.recording.model import Recording
from mmtwin.recording.symbols import Symbols
from mmtwin.replay.moments import Moment
from mmtwin.report.timeline import Look
from mmtwin.units import PAGE_SIZE

LOOKED_AT = 100
"""Refused requests that are explained; each costs as much as a step or two."""
LISTED = 1000
RANGES = 2
"""Ranges told of each zone that lacks a block."""

Explain = Callable[[Moment, at.Place], dict[str, Any]]
"""Takes the moment and the refused request; returns at least `reason` (a few words, the same for the same reason) and `headline`."""


def refused(recording: Recording) -> pl.DataFrame:
    """The requests for pages that failed: event (its row), time, cpu, pid, order, gfp."""
    return at.failures(recording).rename({"row": "event"}).with_columns(pl.col("cpu", "pid", "order").cast(pl.Int64))


def looked_at(rows: pl.DataFrame) -> pl.DataFrame:
    """Which of the refused requests are looked at: all, or as many as possible, equally far apart, the first and the last among them."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), LOOKED_AT)).round().astype(np.int64))] if len(rows) else rows


def looks(recording: Recording, explain: Explain, into: dict[int, dict[str, Any]]) -> Iterator[tuple[int, Look]]:
    """Where to stop, and what to do there.

    :param into: gets what `explain` says, by the event of the request.
    """
    for event in looked_at(refused(recording))["event"]:
        place = at.place_of(recording, event)
        yield place.judged, _look(place, explain, into)


def _look(place: at.Place, explain: Explain, into: dict[int, dict[str, Any]]) -> Look:
    def look(moment: Moment) -> None:
        try:
            into[place.event] = explain(moment, place)
        except RequestError as error:  # flags that no kernel accepts: the recording is damaged, which is no reason to have no report
            into[place.event] = {"reason": "not explained", "headline": str(error)}

    return look


def explainer(recording: Recording, symbols: Symbols | None = None, groups: pins.Owners | None = None) -> Explain:
    """Says what ``mmtwin explain --at`` says.

    :param groups: `pins.owners` by call site.
    """
    found = at.Explainer(recording, symbols, groups=groups)
    return lambda moment, place: plain(found.at(moment, place))


def plain(result: at.AtExplanation) -> dict[str, Any]:
    """An explanation as the report has it: the fields of ``mmtwin explain --at --json``, less what can be looked up there; places and holders in the words of its text."""
    told = result.to_dict()
    lacking = {zone.zone.name for zone in result.verdict.zones if at.lacks_block(zone)}
    zones = [
        {key: zone[key] for key in ("zone", "eligible", "why_not", "rule", "free", "margin", "steps")} | {"says": RULES.get(zone["rule"], zone["rule"])}
        for zone in told["zones"]
    ]
    return {
        "reason": VERDICTS[told["verdict"]], "answer": told["headline"].partition(f"{asked(result.request)}. ")[2], **{key: told[key] for key in ("verdict", "certainty", "headline", "judged_at", "why", "missing", "twin")}, "zones": zones,
        "remedies": [{"who": WHO[remedy["who"]], "what": remedy["what"], "changes": remedy["changes"]} for remedy in told["remedies"]],
        "ranges": [
            {"zone": room.zone, "size": size(PAGE_SIZE << room.order), "pfn": row[0], "text": range_text(row), "pins": [pin_text(pin) for pin in row[5][:PINS_SHOWN]], "more_pins": max(0, len(row[5]) - PINS_SHOWN)}
            for room in result.rooms if room.zone in lacking for row in room.best[:RANGES]
        ],
        "holders": told["holders"], "owners": [pin_text(pin) for pin in result.owners[:OWNERS_SHOWN]],
    }  # fmt: skip


def failures(rows: pl.DataFrame, explained: dict[int, dict[str, Any]], recording: Recording) -> dict[str, Any]:
    """The section's data.

    :param rows: of `refused`.
    :param explained: what `looks` got.
    """
    listed = []
    for row in rows.head(LISTED).iter_rows(named=True):
        listed.append({**row, "gfp": gfp_names(row["gfp"] & 0xFFFF_FFFF), "bytes": PAGE_SIZE << max(row["order"], 0), "explained": explained.get(row["event"])})
    victims = (
        recording.events.lazy()
        .with_row_index("event")
        .filter(pl.col("kind") == "mark_victim")
        .select(pl.col("event").cast(pl.Int64), "time", pl.col("arg").alias("pid"), pl.col("name").fill_null("").alias("comm"))
        .collect()
    )
    by_kind = rows.group_by("order", "gfp").len().sort("len", "order", "gfp", descending=[True, False, False])
    kinds = [{"order": order, "gfp": gfp_names(gfp & 0xFFFF_FFFF), "count": count} for order, gfp, count in by_kind.iter_rows()]
    reasons = Counter(row["reason"] for row in explained.values())
    return {
        "total": len(rows), "kinds": kinds, "reasons": [{"text": text, "count": count} for text, count in reasons.most_common()], "requests": listed,
        "not_listed": max(len(rows) - LISTED, 0), "explained": len(explained), "oom_kills": victims.to_dicts(),
    }  # fmt: skip
