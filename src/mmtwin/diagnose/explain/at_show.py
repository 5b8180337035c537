"""An explanation of a recording's moment for a terminal: the answer first, then the numbers, then the places and who pins them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import polars as pl

from mmtwin.diagnose.explain.at import AtExplanation, Room, lacks_block
from mmtwin.diagnose.explain.model import VERDICTS, size
from mmtwin.diagnose.explain.show import _fill, _reasons, _remedies, _request_lines, _wrapped, _zone
from mmtwin.diagnose.pins import Pin
from mmtwin.gfp import gfp_names
from mmtwin.units import PAGE_SIZE

PINS_SHOWN, OWNERS_SHOWN = 3, 6
Lines = Iterator[tuple[str, str]]


def at_lines(result: AtExplanation, total: int, width: int) -> Lines:
    """All of it, as lines and their styles.

    :param total: events of the recording.
    """
    place, v = result.place, result.verdict
    said = {"refused": "a request that failed", "served": "a request that succeeded", "": "a request that was never made"}[place.recorded]
    when = f", tested at event {place.judged:,}" if place.judged != place.event else ""
    yield from ((line, "dim") for line in _fill(f"Event {place.event:,} of {total:,}{when}: {said}. {result.kernel}.", width))
    yield "", ""
    yield from ((line, "bold") for line in _fill(v.headline, width))
    yield "", ""
    yield from _wrapped("verdict", f"{v.code}: {VERDICTS[v.code]}", width, "bold")
    twin = f"{result.twin.text}; " + ("the rules and the allocator agree" if result.agrees else "which is not what the rules say")
    yield from _wrapped("the twin", twin, width, "" if result.agrees else "warn")
    if place.pid is not None:
        task = f"pid {place.pid}" if place.pid else "the idle task or an interrupt"
        yield from _wrapped("task", f"{task} on CPU {place.cpu}", width, "")
    yield from _request_lines(replace(result.request, comm=""), width)
    yield "", ""
    yield f"Zone by zone, in pages of {PAGE_SIZE >> 10} kB:", "bold"
    for zone in v.zones:
        yield from _zone(zone, width)
    yield from _reasons(v, width)
    if not result.passes:
        lacking = {zone.zone.name for zone in v.zones if lacks_block(zone)}
        for room in result.rooms:
            if room.zone in lacking:
                yield from _room(room, width)
    yield from _memory(result, width)
    yield from _remedies(v, width)


def _room(room: Room, width: int) -> Lines:
    if not room.best:
        return
    yield "", ""
    yield f"Where {size(PAGE_SIZE << room.order)} could have been in {room.zone} (the best range of each pageblock, {room.blocks:,} in all):", "bold"
    for row in room.best:
        who = row[5]
        yield from _wrapped(f"{row[0]:#x}", range_text(row), width, "", 10)
        for pin in who[:PINS_SHOWN]:
            yield from _wrapped("", f"{pin_text(pin)}", width, "dim", 14)
        if len(who) > PINS_SHOWN:
            yield f"{'':16}and {len(who) - PINS_SHOWN} more", "dim"


def range_text(row: tuple[int, str, int, int, int, tuple[Pin, ...]]) -> str:
    """One of a room's best ranges in words."""
    _, kind, free, movable, pinned, _ = row
    text = f"{free:,} free, {movable:,} movable, {pinned:,} pinned" + ("" if pinned else ": nothing pins it" if movable else ": it is free")
    return f"{kind} block: {text}"


def pin_text(pin: Pin) -> str:
    """Who pins how much, in words."""
    text = f"{pin.who}: {pin.frames:,} page{'s' * (pin.frames != 1)}"
    if pin.pids:
        shown = ", ".join(map(str, pin.pids[:4])) + (", ..." if len(pin.pids) > 4 else "")
        text += f", asked for by pid{'s' * (len(pin.pids) != 1)} {shown}"
    if pin.oldest is not None:
        text += f", the oldest {pin.oldest:,} events ago"
    if pin.sites:
        text += "; live objects from " + ", ".join(f"{site} ({count})" for site, count in pin.sites)
    return text


def _memory(result: AtExplanation, width: int) -> Lines:
    if not result.holders:
        return
    yield "", ""
    yield "What holds the memory of the zones it may use, in pages:", "bold"
    for zone, counts in result.holders.items():
        yield from _wrapped(zone, ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda item: -item[1])), width, "")
    label = "not movable"
    for pin in result.owners[:OWNERS_SHOWN]:
        yield from _wrapped(label, pin_text(pin), width, "dim")
        label = ""


def failure_lines(failed: pl.DataFrame, requests: int, name: str, width: int, kinds: int = 20) -> Lines:
    """The failed requests of a recording, alike ones together, and what to type to have one explained."""
    if not requests:
        yield from ((line, "bold") for line in _fill(f"{name} holds no requests for pages: mm_page_alloc was not recorded.", width))
        return
    if not len(failed):
        yield from ((line, "bold") for line in _fill(f"None of the {requests:,} page requests of {name} failed.", width))
        yield "", ""
        yield from ((line, "") for line in _fill("A request that was never made can be asked for at any event:", width))
        yield f"  mmtwin explain {name} --at EVENT --order 4 --gfp GFP_KERNEL", ""
        yield "EVENT is an event number, or end.", ""
        return
    yield from ((line, "bold") for line in _fill(f"{len(failed):,} of {requests:,} page requests of {name} failed. To have one explained:", width))
    yield f"  mmtwin explain {name} --at first-failure      (or last, failure:N, an event number)", ""
    yield "", ""
    yield f"{'first event':>12} {'failure':>8} {'times':>6}  {'order':>5}  {'pid':>6}  flags", "bold"
    alike = (
        failed.with_row_index("n", offset=1)
        .group_by("order", "gfp", "pid")
        .agg(pl.col("row").min(), pl.col("n").min(), pl.len().alias("times"))
        .sort("times", "row", descending=[True, False])
    )
    for row in alike.head(kinds).iter_rows(named=True):
        yield f"{row['row']:>12,} {row['n']:>8,} {row['times']:>6,}  {row['order']:>5}  {row['pid']:>6}  {gfp_names(row['gfp'] & 0xFFFF_FFFF)}", ""
    if len(alike) > kinds:
        yield f"... and {len(alike) - kinds:,} more kinds (--json lists every failure)", ""
