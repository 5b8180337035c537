"""Replays a recording and compares: every allocation on the way, and at the end the whole state with the second dump."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import polars as pl

from mmtwin.errors import RecordingError
from mmtwin.gfp import MIGRATETYPE_NAMES, gfp_names
from mmtwin.mm.tables import NR_ORDERS, NR_PCP_LISTS, Pgdat, new_pgdat
from mmtwin.notebook import Card, InNotebook, Table
from mmtwin.recording import constants, slab_state
from mmtwin.recording.model import Recording, Snapshot
from mmtwin.recording.state import PCP_COLUMNS, ZONE_COLUMNS, ZONE_FLAGS, free_lists, pcp_pages
from mmtwin.replay.causes import explain
from mmtwin.replay.decisions import Decisions, decisions, frames_before, reclaim_begins, recorded
from mmtwin.replay.engine import Outcome, run
from mmtwin.replay.part import Part
from mmtwin.replay.placement import ALLOC, ALLOC_FAILED, ISOLATED, OP, ROTATE, Placement
from mmtwin.replay.slab_check import compare_slabs, compare_texts
from mmtwin.replay.slab_classic import ClassicResult, replay_classic
from mmtwin.replay.slabs import SLAB_COUNTERS, WHATS
from mmtwin.replay.start import first_state, start
from mmtwin.replay.vmap_check import VmapResult, has_vmaps, no_vmaps, replay_vmaps

SHOWN = 20
"""Differences listed in a result."""


@dataclass(frozen=True)
class Result(InNotebook):
    """What a replay found. The fields up to `events_per_second` are the command line's contract; more may be added, none removed.

    :param events: rows of the recording.
    :param page_allocs: allocations the kernel satisfied; the silent bulk pages are counted apart.
    :param failed_allocs: allocations the kernel refused.
    :param final_state_equal: every list in order, every pageblock and every counter equals the second dump; None if there is none.
    :param inferred_events: sum of `inferred`.
    :param vmap_allocs: virtual areas (vmalloc, vmap, ioremap, modules, stacks, per-CPU chunks, blocks of vm_map_ram).
    :param decisions: under memory pressure: for each of `mmtwin.replay.decisions.DECISIONS` how often the kernel decided so, NAME_equal how often the twin did at
        the same place, NAME_twin how often the twin did; empty for recordings without these events.
    :param decision_differences: the first decisions that differ, each with its cause; those of a race (raced) count as learnt, not as unequal.
    :param inferred: what is not in the events as such, by kind; see docs/replay.md.
    :param seconds: of the replay itself, without reading, placing and compiling.
    """

    cpus: int
    events: int
    page_allocs: int
    page_allocs_equal: int
    slab_allocs: int
    slab_allocs_equal: int
    vmap_allocs: int
    vmap_allocs_equal: int
    final_state_equal: bool | None
    differences: list[dict[str, Any]]
    inferred_events: int
    seconds: float
    events_per_second: float
    failed_allocs: int
    failed_allocs_equal: int
    bulk_pages: int
    frees: int
    lost_events: int
    missed_probes: int
    inferred: dict[str, int]
    slab: dict[str, int] = field(default_factory=dict)
    vmap: dict[str, int] = field(default_factory=dict)
    decisions: dict[str, int] = field(default_factory=dict)
    decision_differences: list[dict[str, Any]] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether the twin answered all requests as the kernel did and ended in the same state."""
        requests = self.page_allocs_equal == self.page_allocs and self.failed_allocs_equal == self.failed_allocs and self.slab_allocs_equal == self.slab_allocs
        requests = requests and self.vmap_allocs_equal == self.vmap_allocs and not self.vmap.get("vmap_unknown_frees")
        requests = requests and not self.decisions.get("unexplained") and not self.decisions.get("unfollowed")
        return requests and not self.differences and not self.slab.get("wrong_frees") and all(p.equal == p.total for p in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data, for JSON."""
        return {"schema": 1, "equal": self.equal, **asdict(self)}

    def _card(self) -> Card:
        compared = [
            ("page frames", self.page_allocs_equal, self.page_allocs),
            ("requests refused", self.failed_allocs_equal, self.failed_allocs),
            ("slab objects", self.slab_allocs_equal, self.slab_allocs),
            ("virtual areas", self.vmap_allocs_equal, self.vmap_allocs),
            *((part.name, part.equal, part.total) for part in self.parts),
        ]
        rows = [(name, f"{equal:,}", f"{total:,}") for name, equal, total in compared if total]
        state = {None: "not compared", True: "equal", False: "different"}[self.final_state_equal]
        about = [("events", f"{self.events:,}"), ("CPUs", str(self.cpus)), ("final state", state), ("inferred events", f"{self.inferred_events:,}")]
        notes = [f"{self.lost_events:,} events were lost: what follows the first loss cannot be trusted"] if self.lost_events else []
        return Card(f"Replay: {'equal to the kernel' if self.equal else 'different from the kernel'}", about, [Table(("compared", "equal", "of"), rows)], notes)


def replay(recording: Recording, *, check: bool = True, progress: Callable[[int, int], None] = lambda done, total: None) -> tuple[Result, Pgdat]:
    """Replays a recording from its first snapshot.

    :param check: compare the final state with the second snapshot.
    :param progress: called with the operations done and their total.
    :returns: the result and the twin's state at the end.
    :raises RecordingError: the recording has no snapshot to start from.
    """
    if recording.before is None:
        raise RecordingError(
            "the recording has no snapshots (it was imported from trace text), so there is no state to start from; make one with mmtwin record --vm"
        )
    before = recording.before
    if not before.has_pages:
        return _replay_areas_only(recording, check, progress)
    state, slub, names, meanings, placement = start(recording)
    warm_up()
    began = time.perf_counter()
    outcome = run(state, placement, lambda done: progress(done, len(placement.ops)), slub)
    seconds = max(time.perf_counter() - began, 1e-9)
    decided: tuple[dict[str, int], list[dict[str, Any]]] = ({}, [])
    if recorded(recording.provenance.probes):
        decided = _decided(recording, placement, state, decisions(recording.events, placement, state), outcome)
    parts = list(compare(state, recording.after)) if check and recording.after is not None else []
    if check and meanings is not None and slab_state.has_slabs(recording.after):
        assert recording.after is not None and recording.after.caches is not None
        addresses = np.array([_signed(a) for a in recording.after.caches["address"].to_list()], dtype=np.int64)
        twin = meanings.caches.look_up(addresses, np.full(len(addresses), len(recording.events)))
        ids = dict(zip(recording.after.caches["id"].to_list(), twin.tolist(), strict=True))
        parts += compare_slabs(outcome.slub, names, ids, recording.after)
        parts += compare_texts(outcome.slub, names, recording.provenance)
        parts += _counted(outcome.counters)
    classic = None
    if before.classic is not None and any(p.startswith("cslab_") for p in recording.provenance.probes):
        classic, _ = replay_classic(recording, check=check)
        parts += classic.parts
    vmaps = None
    if has_vmaps(recording):
        vmaps = replay_vmaps(recording, check=check)
        parts += vmaps.parts
    if check:
        parts.append(_values("derived constants", list(constants.compare(before, recording.provenance))))
    return _result(recording, placement, outcome, parts, seconds, names, classic, vmaps, decided), state


def _decided(recording: Recording, placement: Placement, state: Pgdat, found: Decisions, outcome: Outcome) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """The decisions as plain data: counters, and the differences with their causes."""
    fresh = first_state(recording) if found.differing else state
    listed = list(explain(fresh, placement, recording.events, found.differing))
    first = reclaim_begins(recording.events)
    frames, equal = frames_before(placement.ops, outcome.differences, first)
    counters = {"requests": found.requests}
    for name, tally in found.tallies.items():
        counters |= {name: tally.kernel, f"{name}_equal": tally.both, f"{name}_twin": tally.twin}
    raced = sum(d["raced"] for d in listed)
    counters |= {"raced": raced, "unexplained": found.differences - raced, "unfollowed": found.unfollowed, "first_reclaim_event": first}
    return counters | {"frames_before_reclaim": frames, "frames_before_reclaim_equal": equal}, listed


def _replay_areas_only(recording: Recording, check: bool, progress: Callable[[int, int], None]) -> tuple[Result, Pgdat]:
    """A recording of virtual areas alone (of a kernel whose page allocator is not modelled)."""
    if not has_vmaps(recording):
        raise RecordingError("the recording has virtual areas in its snapshots but no events of them; make one with mmtwin record --vm --vmap")
    vmaps = replay_vmaps(recording, check=check, progress=progress)
    state, nothing = new_pgdat(1, 1), no_operations()
    return _result(recording, nothing, run(state, nothing), vmaps.parts, vmaps.seconds, [], None, vmaps), state


def _counted(c: Mapping[str, int]) -> list[Part]:
    """What is compared on the way, besides the addresses."""
    pairs = (
        ("slab page requests", "slab_page_requests_equal", "slab_page_requests"),
        ("slab pages freed", "slab_page_frees_equal", "slab_page_frees"),
        ("silent slab objects", "slab_bulk_equal", "slab_bulk_objects"),
        ("bytes_alloc of kmalloc", "slab_sizes_equal", "slab_kmallocs"),
    )
    return [Part(name, c[equal], c[total]) for name, equal, total in pairs]


def _signed(address: int) -> int:
    return address - (1 << 64) if address >= 1 << 63 else address


def warm_up() -> None:
    """Loads (the first time: compiles) the replay loop, so that it is not counted as time of a replay."""
    run(new_pgdat(512, 1), no_operations()._replace(ops=np.zeros(1, dtype=OP)))


def no_operations() -> Placement:
    """The placement of a recording without page events."""
    return Placement(np.zeros(0, dtype=OP), 0, 0, 0, 0, np.zeros(0, np.int64), 0, np.zeros(0, np.int64))


def _result(
    recording: Recording,
    placement: Placement,
    outcome: Outcome,
    parts: list[Part],
    seconds: float,
    names: list[str],
    classic: ClassicResult | None,
    vmaps: VmapResult | None,
    decided: tuple[dict[str, int], list[dict[str, Any]]] = ({}, []),
) -> Result:
    c, ops = outcome.counters, placement.ops["op"]
    areas = no_vmaps() if vmaps is None else vmaps.counters
    inferred = {
        "late_allocations": placement.late,
        "unplaced_allocations": placement.unplaced,
        "silent_bulk_pages": c["bulk_pages"],
        "contended_lists": c["contended"],
        "retyped_frees": c["retyped_frees"],
        "isolated_blocks": int(np.count_nonzero(ops == ISOLATED)),
        "turned_lists": int(np.count_nonzero(ops == ROTATE)),
        "highatomic_moves": c["highatomic_moves"],
        "zones_learnt": c["zones_learnt"],
        "limits_learnt": c["limits_learnt"],
        "ownership_learnt": c["ownership_learnt"],
        "reserves_learnt": c["reserve_learnt"],
        "decisions_learnt": decided[0].get("raced", 0),
        "first_of_fresh_slabs": c["slab_learnt"],
        "silent_slab_objects": c["slab_bulk_objects"],
        "slab_failed_exchanges": placement.retried,
        "vmap_migrated": areas["vmap_migrated"],
        "vmap_pool_paths": areas["vmap_pool_paths"],
    }
    return Result(
        cpus=recording.provenance.cpus,
        events=len(recording.events),
        page_allocs=c["page_allocs"],
        page_allocs_equal=c["page_allocs_equal"],
        slab_allocs=c["slab_allocs"] if classic is None else classic.slab_allocs,
        slab_allocs_equal=c["slab_allocs_equal"] if classic is None else classic.slab_allocs_equal,
        slab={name: c[name] for name in SLAB_COUNTERS} if classic is None else {"wrong_frees": classic.wrong_frees, "unmatched": classic.unmatched},
        vmap=areas,
        decisions=decided[0],
        decision_differences=decided[1][:SHOWN],
        vmap_allocs=areas["vmap_allocs"],
        vmap_allocs_equal=areas["vmap_allocs_equal"],
        final_state_equal=all(p.equal == p.total for p in parts if p.name != "derived constants") if recording.after is not None and parts else None,
        differences=[
            *[_describe(recording, d) for d in outcome.differences],
            *[_describe_slab(recording, d, names) for d in outcome.slab_differences],
            *(vmaps.differences if vmaps is not None else []),
        ][:SHOWN],
        inferred_events=sum(inferred.values()),
        seconds=round(seconds, 6),
        events_per_second=round(len(recording.events) / seconds),
        failed_allocs=c["failed_allocs"],
        failed_allocs_equal=c["failed_allocs_equal"],
        bulk_pages=c["bulk_pages"],
        frees=c["frees"],
        lost_events=recording.provenance.lost_events,
        missed_probes=recording.provenance.missed_probes,
        inferred=inferred,
        parts=parts,
    )


def _describe(recording: Recording, difference: Any) -> dict[str, Any]:
    """A difference as plain data, with what its event says."""
    event = recording.events.row(int(difference["event"]), named=True)
    what = {ALLOC: "allocation", ALLOC_FAILED: "failed allocation", ISOLATED: "isolated block", ROTATE: "turned list"}.get(int(difference["what"]), "free")
    return {
        "event": int(difference["event"]),
        "what": what,
        "expected": int(difference["expected"]),
        "predicted": int(difference["predicted"]),
        "order": int(difference["order"]),
        "gfp": gfp_names(int(difference["gfp"])) if what.endswith("allocation") else "",
        "cpu": int(event["cpu"]),
        "pid": int(event["pid"]),
        "time": int(event["time"]),
    }


def _describe_slab(recording: Recording, difference: Any, names: list[str]) -> dict[str, Any]:
    """A slab's difference as plain data."""
    at, cache = int(difference["event"]) - 1, int(difference["cache"])
    event = recording.events.row(at, named=True)
    return {
        "event": at,
        "what": WHATS[int(difference["what"])],
        "expected": int(difference["expected"]),
        "predicted": int(difference["predicted"]),
        "cache": names[cache] if 0 <= cache < len(names) else "",
        "cpu": int(event["cpu"]),
        "pid": int(event["pid"]),
        "time": int(event["time"]),
    }


def compare(state: Pgdat, after: Snapshot) -> Iterator[Part]:
    """Compares a state with a snapshot, part by part."""
    names = {int(i): str(n) for i, n in after.zones.filter(pl.col("present_pages") > 0).select("index", "name").iter_rows()}
    cpus = sorted(after.pcp["cpu"].unique().to_list())
    keys = [(z, o, m) for z in names for o in range(NR_ORDERS) for m in range(len(MIGRATETYPE_NAMES))]
    yield _lists(
        "free lists, in order",
        free_lists(state),
        after.free,
        ("zone", "order", "migratetype"),
        keys,
        lambda k: f"{names[k[0]]} order {k[1]} {MIGRATETYPE_NAMES[k[2]]}",
    )
    keys = [(z, c, i) for z in names for c in cpus for i in range(NR_PCP_LISTS)]
    yield _lists("per-CPU lists, in order", pcp_pages(state), after.pcp_pages, ("zone", "cpu", "list"), keys, lambda k: f"{names[k[0]]} CPU {k[1]} list {k[2]}")
    differ = np.flatnonzero(state.pageblock != after.pageblocks)
    yield Part(
        "pageblock types",
        len(state.pageblock) - len(differ),
        len(state.pageblock),
        f"pageblock {differ[0]}: {state.pageblock[differ[0]]}, the kernel's is {after.pageblocks[differ[0]]}" if len(differ) else "",
    )
    pairs = []
    for row in after.zones.iter_rows(named=True):
        zone = state.zone[row["index"]]
        pairs += [(f"{row['name']} {c}", int(zone[c]), int(row[c])) for c in ZONE_COLUMNS] + [
            (f"{row['name']} flags", int(zone["flags"]), int(row["flags"]) & ZONE_FLAGS)
        ]
        pairs += [
            (f"{row['name']} lowmem_reserve[{j}]", int(state.lowmem_reserve[row["index"], j]), int(row[f"lowmem_reserve_{j}"])) for j in range(len(after.zones))
        ]
    yield _values("zone counters and watermarks", pairs)
    nr_cpus = int(state.config[0]["nr_cpus"])
    rows = after.pcp.iter_rows(named=True)
    yield _values(
        "per-CPU counters",
        [
            (f"{names.get(r['zone'], r['zone'])} CPU {r['cpu']} {c}", int(state.pcp[r["zone"] * nr_cpus + r["cpu"]][c]), int(r[c]))
            for r in rows
            for c in PCP_COLUMNS
        ],
    )
    yield _values(
        "sysctls",
        [
            (k, int(state.config[0][k]), after.scalars[k])
            for k in ("min_free_kbytes", "watermark_scale_factor", "percpu_pagelist_high_fraction", "totalreserve_pages")
        ],
    )


def _lists(
    name: str, mine: pl.DataFrame, theirs: pl.DataFrame, by: tuple[str, ...], keys: Sequence[tuple[int, ...]], label: Callable[[tuple[int, ...]], str]
) -> Part:
    a, b = (_grouped(t, by) for t in (mine, theirs))
    differ = [k for k in keys if a.get(k, []) != b.get(k, [])]
    first = f"{label(differ[0])}: {len(a.get(differ[0], []))} blocks, the kernel has {len(b.get(differ[0], []))}" if differ else ""
    return Part(name, len(keys) - len(differ), len(keys), first)


def _grouped(table: pl.DataFrame, by: tuple[str, ...]) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
    rest = [c for c in table.columns if c not in by and c != "position"]
    found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for row in table.sort(*by, "position").select(*by, *rest).iter_rows():
        found.setdefault(row[: len(by)], []).append(row[len(by) :])
    return found


def _values(name: str, pairs: list[tuple[str, int, int]]) -> Part:
    differ = [p for p in pairs if p[1] != p[2]]
    return Part(name, len(pairs) - len(differ), len(pairs), f"{differ[0][0]}: {differ[0][1]}, the kernel's is {differ[0][2]}" if differ else "")
