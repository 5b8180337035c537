"""Who fragments, who grows, who leaks, who wastes: one recording, four answers.

Cost: one replay for the moments (some million events a second, 12 bytes per page frame), and for the lives of objects and pages some 200 bytes per event while they are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from mmtwin.diagnose import pins
from mmtwin.diagnose.blame import wastes as waste
from mmtwin.diagnose.blame.fragments import Fragments, Sample, fragments, sample
from mmtwin.diagnose.blame.grows import Grows, caches_over_time, grows
from mmtwin.diagnose.blame.leaks import Leaks, leaks
from mmtwin.diagnose.blame.lives import BY, by_cache, object_lives, page_lives
from mmtwin.diagnose.blame.steps import STEPS, Steps, cut
from mmtwin.diagnose.blame.wastes import Wastes
from mmtwin.diagnose.stat import LIVE, check_choice, reading_notes
from mmtwin.errors import RecordingError, RequestError
from mmtwin.notebook import Card, InNotebook, Table
from mmtwin.recording.model import Recording
from mmtwin.recording.symbols import Symbols
from mmtwin.replay.moments import Moment, moments

SECTIONS = {"fragments": "who fragments", "grows": "who grows", "leaks": "who leaks", "wastes": "who wastes"}
"""The questions."""


@dataclass(frozen=True)
class Blame(InNotebook):
    """The answers; None and () for what was not asked, or what the recording does not tell (`untold` says why).

    :ivar by: what objects are added up by; pages are by pid where that is pid, else by who holds them (`pins.BY`).
    """

    by: str
    steps: Steps
    sections: tuple[str, ...]
    fragments: Fragments | None = None
    grows: tuple[Grows, ...] = ()
    leaks: tuple[Leaks, ...] = ()
    wastes: Wastes | None = None
    untold: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    def _card(self) -> Card:
        from mmtwin.diagnose.blame.headlines import headlines
        from mmtwin.diagnose.explain.model import size

        tables = []
        if self.fragments is not None and self.fragments.samples:
            held = self.fragments.rows.filter(pl.col("pages") > 0)
            tables.append(Table(("holds unmovable pages in movable blocks", "pages", "blocks"), [(r[0], f"{r[1]:,}", f"{r[2]:,}") for r in held.iter_rows()]))
        for growing in self.grows:
            rows = growing.rows.filter(pl.col("slope") > 0).select("label", "slope", "live_end").iter_rows()
            tables.append(
                Table((f"grows ({growing.what})", f"per {self.steps.unit}", "live"), [(who, size(round(slope)), size(live)) for who, slope, live in rows])
            )
        for leak in self.leaks:
            late = leak.rows.filter(pl.col("overdue") > 0).select("label", "verdict", "overdue", "overdue_bytes").iter_rows()
            tables.append(Table((f"may leak ({leak.what})", "verdict", "overdue", "bytes"), [(who, why, f"{n:,}", size(held)) for who, why, n, held in late]))
        return Card(f"Blame by {self.by}", list(headlines(self)), tables, [*self.untold, *self.notes])

    def to_dict(self, lines: int = 0) -> dict[str, Any]:
        """Plain data; `lines` limits the rows of each table, 0 means all."""

        def rows(table: pl.DataFrame) -> dict[str, Any]:
            return {"rows_total": len(table), "rows": (table.head(lines) if lines else table).to_dicts()}

        return {
            "by": self.by, "clock": self.steps.clock, "from": self.steps.start, "to": self.steps.end, "steps": len(self.steps.times) - 1, "times": self.steps.times.tolist(),
            "events_at": self.steps.rows.tolist(), "slope_per": self.steps.unit, "sections": list(self.sections),
            "fragments": self.fragments.to_dict(lines) if self.fragments is not None else None,
            "grows": {one.what: rows(one.rows) for one in self.grows}, "leaks": {one.what: rows(one.rows) for one in self.leaks},
            "wastes": self.wastes.to_dict(lines) if self.wastes is not None else None, "untold": list(self.untold), "notes": self.notes,
        }  # fmt: skip


def blame(
    recording: Recording,
    by: str = "callsite",
    *,
    sections: Sequence[str] = tuple(SECTIONS),
    steps: int = STEPS,
    window: tuple[int | None, int | None] = (None, None),
    symbols: Symbols | None = None,
    watch: Watch | None = None,
) -> Blame:
    """Answers the questions.

    :param by: one of `lives.BY`.
    :param sections: of `SECTIONS`.
    :param steps: equal steps on the trace clock into which the recording is cut.
    :param window: first and last time; what is live is told of the last one.
    :param symbols: names for call sites that are addresses.
    :param watch: one that has looked at all its moments, by call site or cache and without a window; `steps` and `window` are then its own.
    :raises RequestError: an unknown group or section, no events, none in the window, or a program's calls of malloc.
    """
    if recording.provenance.how == "malloc":
        raise RequestError("these are a program's calls of malloc; blame is about the kernel's allocators (mmtwin stat sums up both)")
    check_choice("group", by, BY)
    for section in sections:
        check_choice("section", section, SECTIONS)
    when = cut(recording, steps, window) if watch is None else watch.when
    notes, untold = reading_notes(recording), []
    groups = pins.owners(recording, "pid" if by == "pid" else "callsite", symbols) if watch is None else watch.groups
    state = watch or Watch(recording, when, groups, "fragments" in sections, bool({"grows", "wastes"} & set(sections))).run()
    if state.why:
        untold.append(state.why)
    to_the_end = window[1] is None
    wanted_lives = bool({"grows", "leaks"} & set(sections))
    objects = object_lives(recording, by, when.end, symbols, notes, to_the_end) if wanted_lives else None
    caches = None
    if "wastes" in sections:
        caches = (
            by_cache(objects, recording)
            if objects is not None
            else object_lives(recording, "cache", when.end, symbols, notes if not wanted_lives else [], to_the_end)
        )
    pages = page_lives(recording, groups, when.end) if wanted_lives or "wastes" in sections else None
    if (wanted_lives or "wastes" in sections) and objects is None and caches is None:
        untold.append("no slab events were recorded: nothing is told of objects and their callers (mmtwin record --slab records them)")
    if (wanted_lives or "wastes" in sections) and pages is None:
        untold.append("no page events were recorded: nothing is told of pages")
    for what, lives in (("objects", objects), ("pages", pages)):
        if lives is not None and lives.unmatched and wanted_lives:
            notes.append(
                f"{lives.unmatched:,} freed {what} are older than the recording, or were allocated silently: they are in no sum by {'caller' if what == 'objects' else 'request'}"
            )
    both = [(what, lives) for what, lives in (("objects", objects), ("pages", pages)) if lives is not None]
    growing = [grows(what, lives, when) for what, lives in both] if "grows" in sections else []
    if "grows" in sections and state.caches:
        growing.insert(1 if objects is not None else 0, caches_over_time("caches", state.caches, when))
    wasted = None
    if "wastes" in sections:
        slabs, at = (state.slabs, "at the last moment") if state.slabs is not None else (None, "")
        if slabs is None and to_the_end and recording.after is not None:
            slabs = waste.slabs_of_snapshot(recording.after)
            at = "in the second memory dump" if slabs is not None else ""
        tables = None
        if pages is not None:
            requests = pins.requests_of(recording.events)
            mine = pages.table.filter((pl.col("fate") == LIVE) & pl.Series(requests.what[pages.table["row"].to_numpy()] == pins.PAGE_TABLE))
            tables = waste.page_tables(mine.select("pid", "pages"))
        wasted = Wastes(
            waste.size_classes(caches, when) if caches is not None else None, slabs, waste.guard_pages(recording.after) if to_the_end else None, tables, at,
        )  # fmt: skip
    return Blame(
        by, when, tuple(sections), fragments(recording, state.samples, groups, when) if "fragments" in sections else None, tuple(growing),
        tuple(leaks(what, lives, when) for what, lives in both) if "leaks" in sections else (), wasted, tuple(untold), notes,
    )  # fmt: skip


class Watch:
    """What the twin's tables say at each of blame's moments, whoever runs the replay.

    :ivar caches: bytes in live objects by cache; empty without SLUB's tables. `slabs`: the last moment's.
    :ivar why: why there is nothing; "".
    """

    def __init__(self, recording: Recording, when: Steps, groups: pins.Owners, frames: bool = True, slabs: bool = True) -> None:
        self.recording, self.when, self.groups = recording, when, groups
        self.samples: list[Sample] = []
        self.caches: list[Mapping[str, int]] = []
        self.slabs: pl.DataFrame | None = None
        self.why = ""
        self._frames, self._slabs = frames, slabs
        self._requests: pins.Requests | None = None
        self._named: pins.SlabFrames | None = None

    def look(self, moment: Moment) -> None:
        """One moment; they come in order."""
        if self._frames:
            if self._requests is None:
                self._requests, self._named = pins.requests_of(self.recording.events), pins.slab_frames(self.recording)
            self.samples.append(sample(pins.frames_at(moment, self.recording, self._requests, self._named), self.groups))
        if self._slabs and moment.slub is not None:
            self.slabs = waste.slabs_of_tables(moment.slub, moment.cache_names)
            self.caches.append(waste.in_use_bytes(self.slabs))

    def run(self) -> Watch:
        """All moments, in a replay of its own."""
        before = self.recording.before
        if before is None or not before.has_pages:
            self.why = "no memory dump to start from: where pages lie, and so who pins movable blocks, cannot be told; only the events are added up"
        elif self._frames or self._slabs:
            try:
                for moment in moments(self.recording, self.when.rows.tolist()):
                    self.look(moment)
            except RecordingError as error:
                self.samples, self.caches, self.slabs, self.why = [], [], None, str(error)
        return self
