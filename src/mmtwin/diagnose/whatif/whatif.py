"""What would have happened to a recording's requests under other settings, beside what did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from mmtwin.diagnose.whatif import slab
from mmtwin.diagnose.whatif.settings import Settings
from mmtwin.diagnose.whatif.start import start_under
from mmtwin.errors import InvariantError, RequestError
from mmtwin.mm.pcp import drain_pages_zone
from mmtwin.mm.slab_classic_tables import ClassicSlab
from mmtwin.mm.slab_tables import ALLOCATED, SLAB_LIVE
from mmtwin.mm.tables import NR_ORDERS
from mmtwin.mm.validate import validate
from mmtwin.mm.validate_slub import validate_slub
from mmtwin.notebook import Card, InNotebook, Table
from mmtwin.recording import slab_state
from mmtwin.recording.model import Recording
from mmtwin.recording.state import restore
from mmtwin.replay.free_run import Look, Outcome, Policy, Start, look, run
from mmtwin.replay.requests import FLAG_REFUSED, PAGES_ALLOC, PAGES_BULK, PAGES_FREE, Requests, requests

UNUSABLE_ORDERS = (1, 3, 5, 9)
"""Orders whose unusable free space is told."""
KERNEL, RECORDED = "kernel", "twin"
"""Names of the columns: what the kernel did, and the twin with the recording's own settings (the two show how far a free run can be trusted)."""


@dataclass(frozen=True)
class Case:
    """One run.

    :param name: the settings in words.
    :param failures: page requests refused; `failures_by_order` the same by order.
    :param new_failures: refused here and granted by the kernel; `new_successes` the other way round; both 0 for the kernel itself.
    :param slab_failures: slab objects refused.
    :param reclaim_waits: requests that would have entered direct reclaim beyond what the recording's own reclaim freed; None where that is not known.
    :param free_blocks: at the end, by order, all zones together.
    :param unusable: at the end, by order (`UNUSABLE_ORDERS`): the share of free memory in blocks too small for it.
    :param used_pages: at the end: managed pages that are neither on free nor on per-CPU lists; `used_pages_peak` the most at any moment looked at.
    :param slow_paths: slab requests that left the fast path, allocations and frees.
    :param slab_object_bytes: of objects handed out at the end, each as large as its cache says: the rest of the slab pages is free objects and waste.
    :param caches: pages of each slab cache at the end, by name.
    :param broken: the first invariant that the state broke; "" if it is sound.
    """

    name: str
    page_requests: int
    failures: int
    failures_by_order: tuple[int, ...]
    new_failures: int
    new_successes: int
    slab_failures: int
    reclaim_waits: int | None
    extfrag: int
    free_pages: int
    listed_pages: int
    free_blocks: tuple[int, ...]
    unusable: dict[int, float]
    slab_pages: int
    slab_pages_peak: int | None
    used_pages: int
    used_pages_peak: int | None
    slabs_made: int
    slabs_freed: int | None
    slow_paths: int | None
    small_slabs: int | None
    seconds: float
    slab_object_bytes: int | None = None
    caches: dict[str, int] = field(default_factory=dict)
    looks: list[Look] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    broken: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        plain = {k: v for k, v in self.__dict__.items() if k not in ("looks", "unusable")}
        looks = [{"request": k.request, "free_blocks": k.free_blocks, "listed_pages": k.listed_pages, "slab_pages": k.slab_pages, "extfrag": k.extfrag,
                  "failures": k.page_failures, "unusable": {str(o): round(k.unusable(o), 6) for o in UNUSABLE_ORDERS}} for k in self.looks]  # fmt: skip
        return plain | {"unusable": {str(k): round(v, 6) for k, v in self.unusable.items()}, "looks": looks}


@dataclass(frozen=True)
class WhatIf(InNotebook):
    """What `whatif` returns: the kernel, the twin with the recording's settings, and each case asked for.

    :param requests: how many there were; `unknown` what could not be known of them.
    """

    requests: int
    unknown: dict[str, int]
    cases: list[Case]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {"schema": 1, "requests": self.requests, "unknown": self.unknown, "cases": [case.to_dict() for case in self.cases]}

    def _card(self) -> Card:
        """The figures that most look for, a column for each case."""
        cases = self.cases
        rows = [
            ["refused", *(f"{c.failures:,}" for c in cases)], ["blocks stolen", *(f"{c.extfrag:,}" for c in cases)],
            *([f"unusable for order {o}", *(f"{c.unusable[o]:.1%}" for c in cases)] for o in UNUSABLE_ORDERS),
            ["free pages", *(f"{c.free_pages:,}" for c in cases)], ["pages in use", *(f"{c.used_pages:,}" for c in cases)],
            ["slab pages", *(f"{c.slab_pages:,}" for c in cases)], ["slabs made", *(f"{c.slabs_made:,}" for c in cases)],
        ]  # fmt: skip
        notes = [note for case in cases for note in case.notes] + [f"{case.name}: broken: {case.broken}" for case in cases if case.broken]
        return Card(f"What if: {self.requests:,} requests", tables=[Table(["", *(c.name for c in cases)], rows)], notes=list(dict.fromkeys(notes)))

    def frame(self) -> pl.DataFrame:
        """One row per case; the free blocks and failures of each order are columns of their own."""
        rows = []
        for case in self.cases:
            row = {k: v for k, v in case.__dict__.items() if isinstance(v, int | float | str) or v is None}
            row |= {f"free_order_{o}": n for o, n in enumerate(case.free_blocks)} | {f"failures_order_{o}": n for o, n in enumerate(case.failures_by_order)}
            rows.append(row | {f"unusable_order_{o}": v for o, v in case.unusable.items()})
        return pl.DataFrame(rows, infer_schema_length=None)


def whatif(
    recording: Recording,
    cases: Sequence[Settings] = (),
    *,
    policy: Any = None,
    progress: Callable[[str], None] = lambda text: None,
    asked: Requests | None = None,
) -> WhatIf:
    """Runs a recording's requests under other settings.

    :param policy: the user's functions (`mmtwin.diagnose.whatif.policy.load`); they are used in every case that was asked for, and in one of their own if there is none.
    :param progress: called with what is being done.
    :param asked: the requests, if they have been made already.
    :raises RecordingError: the recording has no state to start from, or no events to know requests by.
    :raises RequestError: a setting that cannot be made of this recording.
    """
    asked = requests(recording, progress) if asked is None else asked
    found = [] if recording.after is None else [kernel_case(recording, asked)]
    progress("the recording's own settings")
    found.append(_case(recording, asked, Settings(), RECORDED, None))
    wanted = list(cases) or ([Settings()] if policy is not None else [])
    for settings in wanted:
        name = str(settings) if policy is None else policy.name if settings == Settings() else f"{settings} {policy.name}"
        progress(name)
        found.append(_case(recording, asked, settings, name, policy))
    return WhatIf(len(asked), asked.unknown, found)


def _case(recording: Recording, asked: Requests, settings: Settings, name: str, policy: Any) -> Case:
    outcome, names, notes, slab = _run(recording, asked, settings, policy)
    if settings.kvmalloc is not None:
        again, moved = _kvmalloc(asked, outcome, settings.kvmalloc)
        outcome, names, notes, slab = _run(recording, again, settings, policy)
        notes.append(f"kvmalloc: {moved} large kmallocs that were refused take single pages instead (their vmap areas and page tables are not counted)")
    return _of(outcome, name, names, notes, slab)


def _run(recording: Recording, asked: Requests, settings: Settings, policy: Any) -> tuple[Outcome, list[str], list[str], ClassicSlab | None]:
    """The free run, the caches' names, what had to be assumed, and SLAB's tables if that was the allocator."""
    start, names, notes = start_under(recording, asked, settings, None if policy is None else policy.size_class)
    pages_policy: Policy | None = None if policy is None else policy.pages
    if pages_policy is not None:
        _drain(start)
    if settings.allocator != "slab":
        return run(start, asked, pages_policy), names, notes, None
    begin = slab.start_with_slab(start, recording, names, notes)
    outcome, state = slab.run_with_slab(begin, asked, pages_policy)
    used, there = slab.colours(state)
    notes.append(f"SLAB: of the {there:,} colours of caches that have slabs, {there - used:,} are those of no slab at the end")
    return outcome, begin.names, notes, state


def _drain(start: Start) -> None:
    """A policy may have no per-CPU lists: what is on the kernel's goes to the buddy lists first."""
    for z in range(len(start.pages.zone)):
        for cpu in range(int(start.pages.config[0]["nr_cpus"])):
            drain_pages_zone(start.pages, z, cpu, cpu)


def _of(outcome: Outcome, name: str, names: list[str], notes: list[str], classic: ClassicSlab | None) -> Case:
    counters, last = outcome.counters, outcome.looks[-1]
    managed = int(outcome.pages.zone["managed_pages"].sum())
    used = [managed - k.free_pages - k.listed_pages for k in outcome.looks]
    return Case(
        name=name, page_requests=counters["page_requests"], failures=counters["page_failures"], failures_by_order=outcome.failed,
        new_failures=counters["new_failures"], new_successes=counters["new_successes"], slab_failures=counters["slab_failures"],
        reclaim_waits=counters["reclaim_waits"], extfrag=last.extfrag, free_pages=last.free_pages, listed_pages=last.listed_pages,
        free_blocks=last.free_blocks, unusable={o: last.unusable(o) for o in UNUSABLE_ORDERS}, slab_pages=last.slab_pages,
        slab_pages_peak=max(k.slab_pages for k in outcome.looks), used_pages=used[-1], used_pages_peak=max(used), slabs_made=counters["slabs_made"],
        slabs_freed=counters["slabs_freed"], slow_paths=counters["slab_slow_paths"], small_slabs=counters["small_slabs"], seconds=outcome.seconds,
        caches=_caches(outcome.slub, names) if classic is None else slab.pages_of(classic, names), looks=outcome.looks, notes=notes, broken=_broken(outcome, classic),
        slab_object_bytes=_object_bytes(outcome.slub) if classic is None else slab.object_bytes(classic),
    )  # fmt: skip


def _caches(slub: Any, names: list[str]) -> dict[str, int]:
    """Pages of each cache that has some."""
    used = slub.slab[1024 : int(slub.config[0]["slabs"])]
    live = used[used["state"] != 0]
    pages = np.bincount(live["cache"], weights=1 << live["order"].astype(np.int64), minlength=len(names)).astype(int)
    found: dict[str, int] = {}
    for c in np.flatnonzero(pages).tolist():
        if c < len(names):
            found[names[c]] = found.get(names[c], 0) + int(pages[c])
    return found


def _object_bytes(slub: Any) -> int:
    """Bytes of all objects that are handed out, each as large as its cache says."""
    used = slub.slab[1024 : int(slub.config[0]["slabs"])]
    total = 0
    for one in used[used["state"] == SLAB_LIVE]:
        first = int(one["slots"])
        live = np.count_nonzero(slub.slot[first : first + int(one["objects"])] == ALLOCATED)
        total += int(live) * int(slub.cache[int(one["cache"])]["object_size"])
    return total


def _broken(outcome: Outcome, classic: ClassicSlab | None) -> str:
    try:
        validate(outcome.pages, True)
        if classic is not None:
            slab.check(classic, outcome.pages)
        elif int(outcome.slub.config[0]["caches"]):
            validate_slub(outcome.slub, outcome.pages)
    except InvariantError as error:
        return str(error)
    return ""


def kernel_case(recording: Recording, asked: Requests) -> Case:
    """What the kernel itself did, from the recording's events and its second snapshot."""
    after = recording.after
    assert after is not None
    config = recording.provenance.kernel_config
    pages = restore(after, int(config.get("PCP_BATCH_SCALE_MAX", 5)), config.get("TRANSPARENT_HUGEPAGE", "y") == "y", recording.provenance.cpus)
    slub, names = asked.slub, list[str]()
    if slab_state.has_slabs(after):
        slub, names = slab_state.restore(after, pages, int(pages.config[0]["nr_cpus"]))
    refused = asked.table[(asked.table["op"] == PAGES_ALLOC) & (asked.table["flag"] & FLAG_REFUSED != 0)]
    by_order = np.bincount(refused["order"].astype(np.int64), minlength=NR_ORDERS)[:NR_ORDERS]
    kinds = recording.events["kind"].cast(pl.String)
    end = look(pages, slub, len(asked), len(refused))
    made = recording.events.filter((kinds == "slab_new") & (pl.col("pfn") >= 0)) if len(names) else recording.events.head(0)
    return Case(
        name=KERNEL, page_requests=int(np.count_nonzero(asked.table["op"] == PAGES_ALLOC)), failures=len(refused), failures_by_order=tuple(by_order.tolist()),
        new_failures=0, new_successes=0, slab_failures=0, reclaim_waits=None, extfrag=int((kinds == "mm_page_alloc_extfrag").sum()), free_pages=end.free_pages,
        listed_pages=end.listed_pages, free_blocks=end.free_blocks, unusable={o: end.unusable(o) for o in UNUSABLE_ORDERS}, slab_pages=end.slab_pages if names else 0,
        slab_pages_peak=None, used_pages=int(pages.zone["managed_pages"].sum()) - end.free_pages - end.listed_pages, used_pages_peak=None, slabs_made=len(made),
        slabs_freed=None, slow_paths=None, small_slabs=None, seconds=0.0, caches=_caches(slub, names) if names else {},
        slab_object_bytes=_object_bytes(slub) if names else None,
    )  # fmt: skip


def _kvmalloc(asked: Requests, outcome: Outcome, sites: tuple[int, ...]) -> tuple[Requests, int]:
    """The requests with those large kmallocs that were refused, from these call sites (none given: all), turned into single pages."""
    table = asked.table
    large = (table["op"] == PAGES_ALLOC) & (table["site"] != 0)
    if sites:
        if not np.isin(sites, table["site"][large]).any():
            raise RequestError("--set kvmalloc: no large kmalloc in the recording comes from these call sites; mmtwin stat --by callsite lists them")
        large &= np.isin(table["site"], sites)
    asked_for = np.flatnonzero(large)
    failed = asked_for[outcome.blocks[table["id"][asked_for]] < 0]
    kept = np.ones(len(table), dtype=bool)
    blocks, where, rows = asked.blocks, [], []
    for at in failed.tolist():
        count = 1 << int(table["order"][at])
        row = table[at].copy()
        row["op"], row["id"], row["arg"], row["order"], row["gfp"] = PAGES_BULK, blocks, count, 0, int(row["gfp"]) | 0x2
        where.append(at)
        rows.append(row)
        kept[at] = False
        for free in np.flatnonzero((table["op"] == PAGES_FREE) & (table["id"] == table["id"][at])).tolist():
            kept[free] = False
            part = int(table["arg2"][free])
            for i in range(part, part + (1 << int(table["order"][free]))):
                single = table[free].copy()
                single["id"], single["order"], single["arg2"] = blocks + i, 0, 0
                where.append(free)
                rows.append(single)
        blocks += count
    if not rows:
        return asked, 0
    order = np.argsort(where, kind="stable")
    both = np.insert(table, np.array(where)[order], np.array(rows, dtype=table.dtype)[order])
    keep = np.insert(kept, np.array(where)[order], True)
    changed = {"table": both[keep], "blocks": blocks}
    return Requests(**(asked.__dict__ | changed)), len(failed)
