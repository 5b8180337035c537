"""Why a request of a recording was refused, or whether one that was never made would be: the log's rules on the twin's tables, at any event.

The numbers are the kernel's own of that moment: the replay is the one that `mmtwin replay --check` compares. The rules are those of `zone_rules` and `page_verdict`, as for logs; beside them
the twin's allocator answers the same request on a copy of the tables, and both answers are told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin.diagnose import pins
from mmtwin.diagnose.explain import page_verdict
from mmtwin.diagnose.explain.alloc_failure import context
from mmtwin.diagnose.explain.common import asked
from mmtwin.diagnose.explain.kernel_version import Kernel, parse_release
from mmtwin.diagnose.explain.log_gfp import Flags, decode
from mmtwin.diagnose.explain.mem_info import ZONE_ORDER, Block, MemInfo, Zone
from mmtwin.diagnose.explain.model import DECIDED, VERDICTS, Remedy, Request, Verdict, size, zone_dict
from mmtwin.diagnose.explain.page_remedies import remedies
from mmtwin.diagnose.explain.zone_rules import Ask, ZoneVerdict
from mmtwin.errors import RequestError
from mmtwin.gfp import (
    ALLOC_MIN_RESERVE,
    ALLOC_NO_WATERMARKS,
    ALLOC_OOM,
    ALLOC_WMARK_MASK,
    ALLOC_WMARK_MIN,
    MIGRATE_TYPES,
    MIGRATETYPE_NAMES,
    gfp_to_alloc_flags,
)
from mmtwin.mm.buddy import page_zone
from mmtwin.mm.page_alloc import EINVAL, alloc_pages, get_page_from_freelist, highest_zone
from mmtwin.mm.tables import MAX_ORDER, NR_ORDERS, Pgdat, copy_pgdat
from mmtwin.notebook import Card, InNotebook, Table
from mmtwin.recording.model import Recording
from mmtwin.recording.symbols import Symbols
from mmtwin.replay.moments import Moment, moments
from mmtwin.replay.placement import context_ids
from mmtwin.units import PAGE_SIZE
from mmtwin.user.compact_rules import COMPACT_CONTINUE, COMPACT_SUCCESS, compaction_suitable

PAGE_KB = PAGE_SIZE >> 10
LETTERS = "UMEHI"
"""``show_migration_types`` of a kernel without CONFIG_CMA."""
RULES_6_1_Y = (6, 1, 157)
"""The stable kernel whose reserves the twin has (`zone_rules.NON_BLOCK` and what came after it)."""
GFP_ATOMIC_BIT = 0x200
BEST = 5
"""Ranges that are told per zone."""
SUITABLE = {COMPACT_SUCCESS: "not needed", COMPACT_CONTINUE: "worth trying"}


class Place(NamedTuple):
    """A request, and the moment at which it is judged.

    :param event: row of the recording's events; `judged` the row just before which the decisive test of the zones was made.
    :param flags: alloc_flags of that test as the kernel's walk had them; None where it is not recorded, or for a request that was never made.
    :param recorded: "refused", "served", or "" for a request that was never made.
    """

    event: int
    judged: int
    order: int
    gfp: int
    cpu: int
    pid: int | None
    flags: int | None
    recorded: str
    call_site: int = 0


class Twin(NamedTuple):
    """What the twin's allocator answers on a copy of the tables.

    :param pfn: the page frame, or -1.
    :param text: the same in words.
    """

    pfn: int
    text: str


@dataclass(frozen=True)
class Room:
    """Whether one zone could have held the request.

    :ivar order: of the aligned ranges: that of the request.
    :ivar compaction: "not needed", "worth trying", "too little free memory, or it is not in pieces" (compaction_suitable); "" for single pages.
    :ivar blocks: pageblocks that have such a range; `emptiable`: in which one is not pinned by any unmovable page; `cheapest` fewest pages to move in one of those (None: none), and
        `elsewhere` the zone's free pages outside it, which they would have to go to.
    :ivar best: the best ranges: first frame, migrate type of the pageblock, free, movable and pinned frames, and who pins them.
    """

    zone: str
    order: int
    compaction: str
    blocks: int
    emptiable: int
    cheapest: int | None
    elsewhere: int
    best: tuple[tuple[int, str, int, int, int, tuple[pins.Pin, ...]], ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = ("pfn", "block_type", "free", "movable", "pinned")
        return {
            "zone": self.zone, "order": self.order, "compaction": self.compaction, "pageblocks": self.blocks, "pageblocks_not_pinned": self.emptiable, "fewest_pages_to_move": self.cheapest,
            "free_elsewhere": self.elsewhere,
            "best": [dict(zip(names, row[:5], strict=True)) | {"pins": [pin.to_dict() for pin in row[5]]} for row in self.best],
        }  # fmt: skip


@dataclass(frozen=True)
class AtExplanation(InNotebook):
    """The answer.

    :ivar holders: per zone the request may use: what its frames are (`pins.WHAT`) and how many; `owners` who holds most of those that cannot be moved.
    :ivar agrees: whether the rules and the twin's allocator say the same.
    """

    place: Place
    time: int | None
    kernel: Kernel
    request: Request
    verdict: Verdict
    twin: Twin
    rooms: tuple[Room, ...]
    holders: dict[str, dict[str, int]]
    owners: tuple[pins.Pin, ...]

    @property
    def passes(self) -> bool:
        """What the rules say."""
        return self.verdict.code == "served"

    @property
    def agrees(self) -> bool:
        return self.passes == (self.twin.pfn >= 0)

    def _card(self) -> Card:
        v = self.verdict
        rows = [("verdict", f"{v.code}: {VERDICTS[v.code]}"), ("why", v.headline), ("the twin", self.twin.text)]
        rows += [("", sentence) for sentence in v.why]
        rows += [(f"remedy {rank} ({remedy.who})", remedy.what) for rank, remedy in enumerate(v.remedies, 1)]
        zones = [(z.zone.label, z.rule, f"{z.usable:,}", f"{z.least + z.reserve:,}", "" if z.fitting is None else f"{z.fitting:,}") for z in v.zones]
        pinned = [(pin.who, f"{pin.frames:,}") for pin in self.owners]
        recorded = {"refused": "a request that failed", "served": "a request that succeeded", "": "a request that was never made"}[self.place.recorded]
        tables = [
            Table(("zone", "rule", "usable pages", "must be above", "blocks large enough"), zones),
            Table(("holds what cannot be moved", "pages"), pinned),
        ]
        return Card(f"Event {self.place.event:,}: {recorded}", rows, tables, v.missing)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the fields of a log's report, and the moment's own."""
        v = self.verdict
        return {
            "schema": 1, "event": self.place.event, "judged_at": self.place.judged, "time": self.time, "recorded": self.place.recorded or None, "kernel": self.kernel.release,
            "verdict": v.code, "meaning": VERDICTS[v.code], "certainty": v.certainty, "headline": v.headline, "why": list(v.why), "request": self.request.to_dict(),
            "zones": [zone_dict(zone) for zone in v.zones], "missing": list(v.missing), "remedies": [{"rank": rank, "who": r.who, "what": r.what, "changes": r.changes} for rank, r in enumerate(v.remedies, 1)],
            "twin": {"pfn": self.twin.pfn, "answer": self.twin.text, "agrees": self.agrees}, "rooms": [room.to_dict() for room in self.rooms], "holders": self.holders,
            "owners": [pin.to_dict() for pin in self.owners],
        }  # fmt: skip


# Which event


def failures(recording: Recording) -> pl.DataFrame:
    """The requests that failed: row, time, cpu, pid, order, gfp."""
    return (
        recording.events.lazy()
        .select("time", "cpu", "pid", "kind", "pfn", "order", "gfp")
        .with_row_index("row")
        .filter((pl.col("kind") == "mm_page_alloc") & (pl.col("pfn") < 0))
        .select(pl.col("row").cast(pl.Int64), "time", "cpu", "pid", "order", "gfp")
        .collect()
    )


def event_of(recording: Recording, text: str) -> int:
    """The row that a user means.

    :param text: a row number, ``first-failure``, ``failure:N`` (1 is the first), ``last`` (the last failure), or ``end`` (behind the last event).
    :raises RequestError: there is no such event.
    """
    total = len(recording.events)
    word, _, number = text.partition(":")
    if text == "end":
        return total
    if text in ("first-failure", "last") or (word == "failure" and number.isdigit()):
        failed = failures(recording)["row"]
        if not len(failed):
            raise RequestError(f"--at {text}: none of the recording's page requests failed; give an event number, or end, with --order N --gfp FLAGS")
        wanted = 1 if text == "first-failure" else len(failed) if text == "last" else int(number)
        if not 1 <= wanted <= len(failed):
            raise RequestError(f"--at {text}: {len(failed):,} requests failed; expected failure:1 to failure:{len(failed)}")
        return int(failed[wanted - 1])
    digits = text.replace(",", "").replace("_", "")
    if not (digits.isascii() and digits.isdigit()) or int(digits) > total:
        raise RequestError(f"--at {text[:40]}: expected an event number from 0 to {total} (the end), first-failure, failure:N, last or end")
    return int(digits)


def place_of(recording: Recording, event: int) -> Place:
    """The request that an mm_page_alloc event answers, and the test of the zones that decided it.

    A request tests the zones again and again (fast path, slow path, after reclaim, before the OOM killer); what refuses it is the min watermark, so of a refused one the last test at that
    mark is taken, of a served one the last test.

    :raises RequestError: the event is none.
    """
    events = recording.events
    if event >= len(events) or events["kind"][event] != "mm_page_alloc":
        what = "is the end" if event >= len(events) else f"is {events['kind'][event]}, not a request for pages"
        raise RequestError(f"event {event} {what}: give --order N --gfp FLAGS to ask whether such a request would have been served there")
    row = events.row(event, named=True)
    served = row["pfn"] >= 0
    own = _walks(events, event, int(row["order"]))
    judged, flags = event, None
    if own:
        at_min = [pair for pair in own if pair[1] & ALLOC_WMARK_MASK == ALLOC_WMARK_MIN]
        judged, flags = own[-1] if served or not at_min else at_min[-1]
    return Place(
        event, judged, int(row["order"]), int(row["gfp"]), int(row["cpu"]), int(row["pid"]), flags, "served" if served else "refused", int(row["call_site"])
    )


LOOK_BACK = (1 << 12, 1 << 20)
"""Events in which a request's beginning is looked for: a request may reclaim for long."""


def _walks(events: pl.DataFrame, event: int, order: int) -> list[tuple[int, int]]:
    """Rows and alloc_flags of a request's walks over the zones, in order: those of its task or interrupt since the request before it."""
    for back in LOOK_BACK:
        first = max(0, event - back)
        some = events.slice(first, event - first + 1).select("pid", "cpu", "context", "kind", "order", "arg")
        ids, _ = context_ids(some, bool((some["kind"] == "pcp_free").any()))
        before = some.with_row_index("row").filter(pl.Series(ids == ids[-1]) & pl.col("kind").is_in(["walk", "mm_page_alloc"])).head(-1)
        requests = before.with_row_index("n").filter(pl.col("kind") == "mm_page_alloc")["n"]
        if len(requests) or not first:
            break
    own = before.slice(int(requests[-1]) + 1 if len(requests) else 0).filter(pl.col("order") == order)
    return [(first + int(row), int(flags)) for row, flags in own.select("row", "arg").iter_rows()]


def hypothetical(recording: Recording, event: int, order: int, gfp: int, cpu: int | None = None) -> Place:
    """A request that was never made, just before an event.

    :raises RequestError: the machine has no such CPU, or no kernel accepts such a request.
    """
    if not 0 <= order <= MAX_ORDER:
        raise RequestError(f"order {order}: the largest block is of order {MAX_ORDER}; no such request can ever succeed")
    cpus = recording.provenance.cpus
    if cpu is None:
        cpu = int(recording.events["cpu"][event]) if event < len(recording.events) else 0
    if not 0 <= cpu < cpus:
        raise RequestError(f"CPU {cpu}: the machine has CPUs 0 to {cpus - 1}")
    return Place(event, event, order, gfp, cpu, None, None, "")


# The twin's tables as the rules want them


def mem_info(state: Pgdat, names: list[str]) -> MemInfo:
    """The zones of the twin, as a kernel log would print them: kB, watermarks with their boost, free blocks with the letters of their types.

    :param names: of the zones, by index.
    """
    found = []
    for z, name in enumerate(names):
        zone = state.zone[z]
        if int(zone["present_pages"]) == 0:
            continue
        boost = int(zone["watermark_boost"])
        pages = {
            "free": int(zone["nr_free_pages"]), "boost": boost, "min": int(zone["wmark_min"]) + boost, "low": int(zone["wmark_low"]) + boost, "high": int(zone["wmark_high"]) + boost,
            "reserved_highatomic": int(zone["nr_reserved_highatomic"]), "present": int(zone["present_pages"]), "managed": int(zone["managed_pages"]), "free_cma": 0,
        }  # fmt: skip
        blocks = []
        for order in range(NR_ORDERS):
            head = int(state.config[0]["free_list_base"]) + (z * NR_ORDERS + order) * MIGRATE_TYPES
            types = "".join(letter for i, letter in enumerate(LETTERS) if int(state.page[head + i]["next"]) != head + i)
            blocks.append(Block(PAGE_KB << order, int(state.free_area[z * NR_ORDERS + order]["nr_free"]), types))
        reserve = tuple(int(state.lowmem_reserve[z, j]) for j in range(len(names)))
        found.append(Zone(None, name, {key: value * PAGE_KB for key, value in pages.items()}, reserve, tuple(blocks)))
    return MemInfo(tuple(found), frozenset(names), {}, {}, PAGE_KB, True)


def privileges(flags: Flags, alloc_flags: int | None) -> tuple[Flags, bool]:
    """The request's flags with what its task may do besides (PF_MEMALLOC, an OOM victim, a real-time task), which only the walk's flags say."""
    if alloc_flags is None:
        return flags, False
    names = set(flags.flags)
    if alloc_flags & ALLOC_NO_WATERMARKS:
        names = (names | {"MEMALLOC"}) - {"NOMEMALLOC"}
    if alloc_flags & ALLOC_MIN_RESERVE:
        names.add("HIGH")
    return replace(flags, flags=frozenset(names)), bool(alloc_flags & ALLOC_OOM)


def judge(place: Place, state: Pgdat, names: list[str], bits: int) -> tuple[Ask, MemInfo, page_verdict.Judged]:
    """The rules' answer. The main zone of a request that is served is the one it is served from."""
    flags, oom = privileges(decode(place.gfp & 0xFFFF_FFFF, "", (6, 1, 0)), place.flags)
    ask = Ask(place.order, flags, RULES_6_1_Y, bits, oom)
    info = mem_info(state, names)
    judged = page_verdict.judge_pages(ask, info, Request(order=place.order, flags=flags))
    if place.order == 0 and place.gfp & GFP_ATOMIC_BIT and any(z.boost_decides for z in judged.zones):
        # zone_watermark_fast tests such a request again without the boost
        plain = replace(info, zones=tuple(_unboosted(zone) for zone in info.zones))
        again = page_verdict.judge_pages(ask, plain, Request(order=place.order, flags=flags))
        if any(z.rule == "passes" for z in again.zones):
            info, judged = plain, again
    return ask, info, judged


def _unboosted(zone: Zone) -> Zone:
    boost = zone.fields["boost"]
    return replace(zone, fields=zone.fields | {"boost": 0} | {name: zone.fields[name] - boost for name in ("min", "low", "high")})


def twin_answer(place: Place, state: Pgdat, names: list[str]) -> Twin:
    """The twin's own allocator, on a copy.

    :raises RequestError: flags that no kernel accepts.
    """
    copy = copy_pgdat(state)
    top = highest_zone(copy, place.gfp)
    if top < 0 or place.gfp & 0x18 == 0x18:
        raise RequestError(f"gfp {place.gfp:#x}: no kernel accepts these zone or type flags together")
    if place.flags is not None:
        pfn = int(get_page_from_freelist(copy, place.cpu, place.order, place.gfp, top, place.flags, False))
        return Twin(pfn, f"page frame {pfn:#x} of {names[page_zone(state, pfn)]}" if pfn >= 0 else "no page, with the flags of the kernel's own test")
    pfn = int(alloc_pages(copy, place.cpu, place.order, place.gfp, False))
    if pfn == -EINVAL:
        raise RequestError(f"gfp {place.gfp:#x}: no kernel accepts these flags together")
    may_wait = "no page at once; it would go on to reclaim and compact, and what that frees decides" if place.gfp & 0x400 else "no page (-ENOMEM)"
    return Twin(max(pfn, -1), f"page frame {pfn:#x} of {names[page_zone(state, pfn)]}" if pfn >= 0 else may_wait)


# All of it


def explain_at(recording: Recording, place: Place, symbols: Symbols | None = None) -> AtExplanation:
    """Explains one request.

    :raises RecordingError: the recording has no snapshot of the page allocator.
    """
    return next(iter(explain_many(recording, [place], symbols)))


def explain_many(recording: Recording, places: Iterable[Place], symbols: Symbols | None = None, look: bool = True) -> Iterable[AtExplanation]:
    """Explains several requests in one replay, in the order of their moments.

    :param look: also who pins what; without it only the verdicts.
    """
    ordered = sorted(places, key=lambda place: place.judged)
    explainer = Explainer(recording, symbols, look)
    for place, moment in zip(ordered, moments(recording, [place.judged for place in ordered]), strict=True):
        yield explainer.at(moment, place)


class Explainer:
    """Explains requests of one recording at moments that somebody else's replay stops at.

    :param groups: `pins.owners` by call site, if the caller has them already.
    """

    def __init__(self, recording: Recording, symbols: Symbols | None = None, look: bool = True, groups: pins.Owners | None = None) -> None:
        self.recording, self.symbols = recording, symbols
        self.groups = groups or (pins.owners(recording, "callsite", symbols) if look else None)
        self._requests = pins.requests_of(recording.events) if look else None
        self._named = pins.slab_frames(recording) if look else None
        self._slab_events: pl.DataFrame | None = None

    def at(self, moment: Moment, place: Place) -> AtExplanation:
        """The answer.

        :param moment: just before `place.judged`.
        """
        recording = self.recording
        assert recording.before is not None
        names = [str(name) for name in recording.before.zones.sort("index")["name"].to_list()]
        bits = 32 if "HighMem" in names else 64
        ask, info, judged = judge(place, moment.state, names, bits)
        twin = twin_answer(place, moment.state, names)
        rooms: tuple[Room, ...] = ()
        holders: dict[str, dict[str, int]] = {}
        owners: tuple[pins.Pin, ...] = ()
        if self.groups is not None:
            frames = pins.frames_at(moment, recording, self._requests, self._named)
            if place.order:
                self._slab_events = pins.object_events(recording) if self._slab_events is None else self._slab_events
                rooms = _rooms(place, judged.zones, names, moment, frames, recording, self.groups, self.symbols, self._slab_events)
            holders, owners = _holders(judged.zones, names, moment, frames, recording, self.groups)
        return _explained(recording, place, ask, info, judged, twin, rooms, holders, owners, self.symbols)


def _explained(
    recording: Recording, place: Place, ask: Ask, info: MemInfo, judged: page_verdict.Judged, twin: Twin, rooms: tuple[Room, ...], holders: dict[str, dict[str, int]], owners: tuple[pins.Pin, ...],
    symbols: Symbols | None,
) -> AtExplanation:  # fmt: skip
    release = recording.provenance.kernel_release
    version = parse_release(release) if release[:1] in set("0123456789") else (6, 1, 0)
    site = pins.site_names(recording, symbols)(place.call_site) if place.call_site else ""
    request = Request(
        comm=f"pid {place.pid}" if place.pid else "", pid=place.pid, cpu=place.cpu, order=place.order,
        bytes=PAGE_SIZE << place.order, flags=decode(place.gfp & 0xFFFF_FFFF, "", (6, 1, 0)), highest_zone=judged.highest, zones=judged.allowed, caller=site,
    )  # fmt: skip
    passing = [z for z in judged.zones if z.rule == "passes"]
    why: list[str] = []
    fixes: tuple[Remedy, ...] = ()
    if passing:
        code, head = "served", _served(passing, ask)
    else:
        code, head = judged.code, page_verdict.headline(judged, ask, PAGE_KB)
        why += [*context(request, RULES_6_1_Y), *(note for note in judged.notes if "dump" not in note)]
        fixes = _remedies(judged, ask, request, info, rooms)
    why += _why(place, ask, rooms, judged)
    missing = list(judged.missing)
    if place.recorded and (place.recorded == "served") != bool(passing):
        missing.append(
            f"the kernel answered otherwise: it {place.recorded} the request; between this test and the event another CPU may have changed the zones"
        )
    if bool(passing) != (twin.pfn >= 0):
        missing.append(f"the twin's allocator says otherwise: {twin.text}")
    who = f"Pid {place.pid} asked for" if place.pid else "A request for" if place.pid is None else "The idle task or an interrupt asked for"
    text = f"{who} {asked(request)}. {head}"
    verdict = Verdict(code, DECIDED, text, tuple(why), judged.zones, tuple(missing), fixes)
    time = int(recording.events["time"][place.event]) if place.event < len(recording.events) else None
    return AtExplanation(place, time, Kernel(release, version, version[:2], ask.bits), request, verdict, twin, rooms, holders, owners)


def _served(passing: list[ZoneVerdict], ask: Ask) -> str:
    best = max(passing, key=lambda z: ZONE_ORDER.index(z.zone.name))
    blocks = f" and has {best.fitting:,} block{'s' * (best.fitting != 1)} of {size(PAGE_SIZE << ask.order)} or more" if ask.order and best.fitting else ""
    if ask.no_watermarks and best.margin <= 0:
        return f"It is served from {best.zone.label}, which is below its min watermark by {-best.margin} pages: its task may ignore watermarks (PF_MEMALLOC)."
    return f"It is served: {best.zone.label} is above the min watermark by {best.margin:,} pages{blocks}."


def _why(place: Place, ask: Ask, rooms: tuple[Room, ...], judged: page_verdict.Judged) -> list[str]:
    said = []
    if place.flags is not None and place.flags & ALLOC_NO_WATERMARKS:
        said.append("The task may ignore watermarks (ALLOC_NO_WATERMARKS in the flags of the kernel's test).")
    elif place.flags is not None and ask.oom:
        said.append("The task is a victim of the OOM killer and may use half of the min watermark's pages (ALLOC_OOM).")
    elif place.flags is not None and place.recorded == "refused" and place.flags & ALLOC_WMARK_MASK != ALLOC_WMARK_MIN:
        said.append(f"The kernel's own test was at the {('min', 'low', 'high')[place.flags & ALLOC_WMARK_MASK]} watermark; the numbers are those of min.")
    if not ask.order or any(z.rule == "passes" for z in judged.zones):
        return said
    rule = {z.zone.name: z for z in judged.zones}
    for room in rooms:
        said.append(_room_text(room, ask, rule[room.zone]))
    return said


def lacks_block(zone: ZoneVerdict) -> bool:
    """Whether it is a block that the zone lacks, rather than free pages."""
    return zone.rule in ("no_block", "highatomic_only", "isolated_only", "cma_only") or not zone.fitting


def _room_text(room: Room, ask: Ask, zone: ZoneVerdict) -> str:
    want = size(PAGE_SIZE << room.order)
    if not lacks_block(zone):
        return (
            f"{room.zone} has {zone.fitting:,} free block{'s' * (zone.fitting != 1)} of {want} or more: compaction would not help, only more free pages would."
        )
    if not room.blocks:
        return f"{room.zone} has no range of {want}."
    wait = "" if "DIRECT_RECLAIM" in ask.flags else " (this request could not wait for it)"
    if room.emptiable and room.cheapest is not None and room.cheapest > room.elsewhere:
        return (
            f"Compaction could not have made room in {room.zone}: {room.emptiable:,} of {room.blocks:,} pageblocks have a range of {want} that no unmovable page pins, but the cheapest needs "
            f"{room.cheapest:,} pages moved, and elsewhere only {room.elsewhere:,} are free."
        )
    if room.emptiable:
        text = f"{room.emptiable:,} of {room.blocks:,} pageblocks of {room.zone} have a range of {want} that no unmovable page pins; the cheapest needs {room.cheapest:,} pages moved, for which {room.elsewhere:,} are free elsewhere"
        return f"Compaction could have made room{wait}: {text}. The kernel's own test calls it {room.compaction}."
    fewest = min(row[4] for row in room.best)
    return f"Compaction could not have made room: each of the {room.blocks:,} pageblocks of {room.zone} has unmovable pages in every range of {want}; the best is pinned by {fewest:,}."


def _remedies(judged: page_verdict.Judged, ask: Ask, request: Request, info: MemInfo, rooms: tuple[Room, ...]) -> tuple[Remedy, ...]:
    """Those of a log, less compaction where nothing can be emptied."""
    found = remedies(judged, ask, request, PAGE_KB, info, RULES_6_1_Y)
    lacking = [room for room in rooms for zone in judged.zones if zone.zone.name == room.zone and lacks_block(zone)]
    if lacking and not any(room.emptiable for room in lacking):
        found = tuple(remedy for remedy in found if "compact_memory" not in remedy.what)
        pinned = [row for room in lacking for row in room.best if row[5]]
        if pinned:
            best = min(pinned, key=lambda row: row[4])
            holders = ", ".join(f"{pin.who} ({pin.frames})" for pin in best[5][:3])
            found += (
                Remedy("look", f"who pins the range at page frame {best[0]:#x}: {holders}", f"{best[4]} pages freed there would let compaction make a block"),
            )
    return found


def _rooms(
    place: Place, zones: tuple[ZoneVerdict, ...], names: list[str], moment: Moment, frames: pins.Frames, recording: Recording, groups: pins.Owners, symbols: Symbols | None,
    slab_events: pl.DataFrame,
) -> tuple[Room, ...]:  # fmt: skip
    """Where the request could have been, in each zone it may use."""
    found = []
    for zone in zones:
        if zone.eligible:
            row = moment.state.zone[names.index(zone.zone.name)]
            found.append((zone, pins.rooms(frames, place.order, int(row["start_pfn"]), int(row["end_pfn"]))))
    shown = [np.arange(room.pfn, room.pfn + (1 << place.order), dtype=np.int64) for _, rooms in found for room in rooms[:BEST]]
    shown = [held[frames.pinned[held]] for held in shown]
    slabs = [frame for held in shown for frame in held[frames.what[held] == pins.SLAB].tolist()]
    objects = pins.live_objects(recording, moment.event, slabs, slab_events)
    who = iter([tuple(pins.pins_in(frames, held, moment, recording, groups, symbols, objects)) if len(held) else () for held in shown])
    flags, top = gfp_to_alloc_flags(place.gfp, place.order), int(highest_zone(moment.state, place.gfp))
    told = []
    for zone, rooms in found:
        state = int(compaction_suitable(moment.state, names.index(zone.zone.name), place.order, flags, top))
        suitable = SUITABLE.get(state, "not worth trying: too little free memory, or it is not in pieces")
        best = tuple(
            (room.pfn, MIGRATETYPE_NAMES[int(moment.state.pageblock[room.block])], room.free, room.movable, room.pinned, next(who)) for room in rooms[:BEST]
        )
        emptiable = [room for room in rooms if not room.pinned]
        cheapest = min(emptiable, key=lambda room: room.movable, default=None)
        elsewhere = max(0, zone.free - (cheapest.free if cheapest else 0))
        told.append(Room(zone.zone.name, place.order, suitable, len(rooms), len(emptiable), cheapest.movable if cheapest else None, elsewhere, best))
    return tuple(told)


def _holders(
    zones: tuple[ZoneVerdict, ...], names: list[str], moment: Moment, frames: pins.Frames, recording: Recording, groups: pins.Owners
) -> tuple[dict[str, dict[str, int]], tuple[pins.Pin, ...]]:
    """What the frames of eligible zones are, and who holds those that cannot be moved."""
    found: dict[str, dict[str, int]] = {}
    inside: npt.NDArray[np.bool_] = np.zeros(len(frames.what), dtype=bool)
    for zone in zones:
        if zone.eligible:
            row = moment.state.zone[names.index(zone.zone.name)]
            part = slice(int(row["start_pfn"]), int(row["end_pfn"]))
            inside[part] = True
            counts = np.bincount(frames.what[part], minlength=len(pins.WHAT))
            found[zone.zone.name] = {pins.WHAT[i]: int(count) for i, count in enumerate(counts.tolist()) if count and i}
    return found, tuple(pins.pins_in(frames, np.flatnonzero(inside & frames.pinned), moment, recording, groups))
