"""Slab caches under other settings: their geometry anew, and what they hold at the start packed into slabs of it.

A machine that was booted with the setting has other slabs from its first minute. What it would hold then is not recorded, but the recorded machine's slabs tell most of it: an
old slab is cut where the new ones end, so that live objects keep their neighbours; small slabs go together in the order of their page frames. They go where the old one was: to the
CPU, its partial list, or the node's; those that come out empty are given back where the kernel would (`kept`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmtwin.mm.list import list_add_tail
from mmtwin.mm.slab_tables import ALLOCATED, END, MAX_CACHES, SLAB_LIVE, Slub, reserve
from mmtwin.mm.slub import SLOT_BITS, free_row, new_row
from mmtwin.mm.tables import PG_ALLOCATED, PG_SLAB, Pgdat
from mmtwin.replay import free_run
from mmtwin.replay.free_run import Start
from mmtwin.replay.requests import FLAG_MEMALLOC, PAGES_ALLOC, PAGES_FREE, REQUEST, Requests

GFP_KERNEL = 0xCC0
NOWHERE, ON_CPU, ON_CPU_PARTIAL, ON_NODE = range(4)


def ask(pages: Pgdat, slub: Slub, freed: Iterable[tuple[int, int]], wanted: Iterable[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """Gives blocks back (first page frame, order), then takes blocks (order, gfp); returns the first page frames of these, -1 where there was none."""
    gone, new = list(freed), list(wanted)
    table = np.zeros(len(gone) + len(new), dtype=REQUEST)
    table["id"] = np.arange(len(table))
    table["op"] = np.repeat([PAGES_FREE, PAGES_ALLOC], [len(gone), len(new)])
    table["order"] = [order for _, order in gone] + [order for order, _ in new]
    table["gfp"][len(gone) :] = [gfp for _, gfp in new]
    table["flag"][len(gone) :] = FLAG_MEMALLOC
    nothing = np.zeros((0, 2), dtype=np.int64)
    old = np.array([(i, pfn) for i, (pfn, _) in enumerate(gone)], dtype=np.int64).reshape(-1, 2)
    requests = Requests(table, np.zeros(0, np.int64), 0, len(table), nothing, nothing, pages, slub, [])
    found = free_run.run(Start(pages, slub, table, nothing, old), requests).blocks[len(gone) :].copy()
    config = pages.config[0]  # nothing of this has happened: kswapd begins rested
    config["kswapd_failures"], config["kswapd_pending"], config["kswapd_order"], config["kswapd_highest_zoneidx"] = 0, 0, 0, -1
    return found


@dataclass
class Piece:
    """A new slab: which of its objects live, from where they come, and where it goes."""

    live: npt.NDArray[np.bool_]
    source: npt.NDArray[np.int64]  # old slab and slot of each object, -1 for those beyond the old ones
    place: int = NOWHERE
    cpu: int = 0


class Moved:
    """Where objects are now: old slab and slot in one number to new."""

    def __init__(self) -> None:
        self.to: dict[int, int] = {}

    def follow(self, start: Start) -> Start:
        """The start with its objects where they have been moved to."""
        objects = start.objects.copy()
        for i, packed in enumerate(objects[:, 1].tolist()):
            objects[i, 1] = self.to.get(packed, packed)
        return Start(start.pages, start.slub, start.table, objects, start.blocks, start.fixed)


def rows_of(slub: Slub, c: int) -> npt.NDArray[np.int64]:
    """The cache's slabs in the order of their page frames."""
    used = slub.slab[MAX_CACHES : int(slub.config[0]["slabs"])]
    rows = MAX_CACHES + np.flatnonzero((used["state"] == SLAB_LIVE) & (used["cache"] == c))
    return rows[np.argsort(slub.slab["pfn"][rows])]


def places(slub: Slub, c: int) -> dict[int, tuple[int, int]]:
    """Of each slab that is on a list: which, and whose."""
    found: dict[int, tuple[int, int]] = {}
    cpus = int(slub.config[0]["nr_cpus"])
    for cpu in range(cpus):
        k = slub.cpu[c * cpus + cpu]
        if int(k["slab"]) != END:
            found[int(k["slab"])] = ON_CPU, cpu
        row = int(k["partial"])
        while row != END:
            found[row] = ON_CPU_PARTIAL, cpu
            row = int(slub.slab[row]["next"])
    return found


def cut(slub: Slub, c: int, objects: int, rows: npt.NDArray[np.int64]) -> list[Piece]:
    """The cache's objects, slab after slab, cut into pieces of `objects`."""
    if not len(rows):
        return []
    where = places(slub, c)
    sizes = slub.slab["objects"][rows].astype(np.int64)
    owner = np.repeat(rows, sizes)
    slot = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    live = slub.slot[slub.slab["slots"][owner] + slot] == ALLOCATED
    source = owner << SLOT_BITS | slot
    pieces = []
    for first in range(0, len(owner), objects):
        part = slice(first, first + objects)
        piece = Piece(live[part], source[part])
        place = [where.get(int(row), (ON_NODE, 0)) for row in np.unique(owner[part])]
        piece.place, piece.cpu = min(place)
        pieces.append(piece)
    return pieces


def kept(slub: Slub, c: int, pieces: list[Piece]) -> list[Piece]:
    """Without the empty slabs that the kernel would have given back: one stays on its CPU's partial list while that has room (put_cpu_partial), or on the node's while that has
    fewer than min_partial (__unfreeze_partials, __slab_free). What is empty of a CPU's own slab need not have been handed out yet: it goes."""
    cache, objects = slub.cache[c], int(slub.cache[c]["objects"])
    most, least = int(cache["cpu_partial_slabs"]), int(cache["min_partial"])
    counts: dict[tuple[int, int], int] = {}
    for piece in pieces:
        if piece.live.any() and int(piece.live.sum()) < objects:
            counts[piece.place, piece.cpu] = counts.get((piece.place, piece.cpu), 0) + 1
    found = []
    for piece in pieces:
        if piece.live.any():
            found.append(piece)
        elif piece.place in (ON_CPU_PARTIAL, ON_NODE):
            at, room = (piece.place, piece.cpu), most if piece.place == ON_CPU_PARTIAL else least
            if counts.get(at, 0) >= room and piece.place == ON_CPU_PARTIAL:
                at, room, piece.place, piece.cpu = (ON_NODE, 0), least, ON_NODE, 0
            if counts.get(at, 0) < room:
                counts[at] = counts.get(at, 0) + 1
                found.append(piece)
    return found


def remove(slub: Slub, c: int, rows: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Takes all slabs of a cache away; returns their blocks."""
    cpus = int(slub.config[0]["nr_cpus"])
    slub.slab[c]["next"] = slub.slab[c]["prev"] = c
    slub.cpu["slab"][c * cpus : (c + 1) * cpus] = slub.cpu["freelist"][c * cpus : (c + 1) * cpus] = slub.cpu["partial"][c * cpus : (c + 1) * cpus] = END
    for name in ("nr_partial", "nr_slabs", "total_objects"):
        slub.cache[c][name] = 0
    blocks = [(int(slub.slab[row]["pfn"]), int(slub.slab[row]["order"])) for row in rows.tolist()]
    for row in rows.tolist():
        free_row(slub, row)
    return blocks


def set_geometry(slub: Slub, c: int, order: int, objects: int, min_order: int, min_objects: int) -> Slub:
    """Other slabs for a cache; its permutation for fresh ones is drawn anew (the kernel's would be another too)."""
    cache = slub.cache[c]
    cache["order"], cache["objects"], cache["min_order"], cache["min_objects"] = order, objects, min_order, min_objects
    cache["allocflags"] = int(cache["allocflags"]) & ~0x40000 | (0x40000 if order else 0)
    cache["cpu_partial_slabs"] = -(-2 * int(cache["cpu_partial"]) // max(objects, 1))
    if int(cache["random_seq"]) >= 0:
        cache["random_seq"] = len(slub.random)
        order_of = np.random.default_rng(c).permutation(objects).astype(np.int32)
        slub = slub._replace(random=np.concatenate([slub.random, order_of]))
    return slub


def fill(pages: Pgdat, slub: Slub, c: int, pieces: list[Piece], frames: Iterable[int], moved: Moved) -> None:
    """Makes slabs of pieces (the tables must have room). A CPU has one slab at most; lists that are full overflow to the node's."""
    cache = slub.cache[c]
    cpus = int(slub.config[0]["nr_cpus"])
    order, objects = int(cache["order"]), int(cache["objects"])
    on_partial = [0] * cpus
    most = sorted(range(len(pieces)), key=lambda i: (int(pieces[i].live.sum()), i))
    chosen: dict[int, int] = {}
    for i in most:
        piece = pieces[i]
        if piece.place == ON_CPU and int(piece.live.sum()) < objects:
            chosen.setdefault(piece.cpu, i)
    for i, (piece, pfn) in enumerate(zip(pieces, frames, strict=True)):
        row = new_row(slub, c, pfn, order, objects)
        pages.page["flags"][pfn : pfn + (1 << order)] |= PG_SLAB
        pages.page["next"][pfn : pfn + (1 << order)] = row
        pages.page["flags"][pfn] |= PG_ALLOCATED
        pages.page["order"][pfn] = order
        slab = slub.slab[row]
        cache["nr_slabs"] += 1
        cache["total_objects"] += objects
        slab["inuse"] = int(piece.live.sum())
        free = np.ones(objects, dtype=bool)
        free[: len(piece.live)] = ~piece.live
        slots = np.flatnonzero(free)
        first = int(slab["slots"])
        slub.slot[first + slots] = np.append(slots[1:], END)
        head = int(slots[0]) if len(slots) else END
        for slot in np.flatnonzero(piece.live).tolist():
            moved.to[int(piece.source[slot])] = row << SLOT_BITS | slot
        slab["freelist"] = head
        if head == END:
            continue
        cpu = min(piece.cpu, cpus - 1)
        k = slub.cpu[c * cpus + cpu]
        if chosen.get(piece.cpu) == i and int(k["slab"]) == END:
            k["slab"], k["freelist"] = row, head
            slab["freelist"], slab["inuse"], slab["frozen"] = END, objects, 1
        elif piece.place in (ON_CPU, ON_CPU_PARTIAL) and on_partial[cpu] < int(cache["cpu_partial_slabs"]):
            on_partial[cpu] += 1
            slab["next"], slab["slabs"], slab["frozen"], slab["on_list"] = int(k["partial"]), on_partial[cpu], 1, 2
            k["partial"] = row
        else:
            list_add_tail(slub.slab, row, c)
            slab["on_list"] = 1
            cache["nr_partial"] += 1


def page_flags(slub: Slub, c: int) -> int:
    """GFP flags with which a cache's start slabs are taken."""
    return GFP_KERNEL | int(slub.cache[c]["allocflags"])


def recut(start: Start, changed: dict[int, tuple[int, int, int, int]]) -> Start:
    """Gives caches other slabs: order, objects, minimum order and its objects by cache."""
    pages, slub, moved = start.pages, start.slub, Moved()
    freed: list[tuple[int, int]] = []
    pieces: dict[int, list[Piece]] = {}
    for c, geometry in changed.items():
        rows = rows_of(slub, c)
        parts = cut(slub, c, geometry[1], rows)
        freed += remove(slub, c, rows)
        slub = set_geometry(slub, c, *geometry)
        pieces[c] = kept(slub, c, parts)
    wanted = [(int(slub.cache[c]["order"]), page_flags(slub, c)) for c in changed for _ in pieces[c]]
    frames = ask(pages, slub, freed, wanted)
    slub = reserve(slub, len(frames) + 1, (len(frames) + 1) << max(int(objects - 1).bit_length() for _, objects, _, _ in changed.values()))
    at = 0
    for c in changed:
        mine = frames[at : at + len(pieces[c])]
        at += len(pieces[c])
        fill(pages, slub, c, [p for p, f in zip(pieces[c], mine, strict=True) if f >= 0], [int(f) for f in mine if f >= 0], moved)
    return moved.follow(Start(pages, slub, start.table, start.objects, start.blocks, start.fixed))
