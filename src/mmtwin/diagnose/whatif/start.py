"""From a recording's start to the one a machine with other settings would have had: each setting's own step, one after the other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mmtwin import profiles
from mmtwin.diagnose.whatif.caches import recut, rows_of
from mmtwin.diagnose.whatif.machine import user_set_min_free, with_cpus, with_ram
from mmtwin.diagnose.whatif.pageblocks import with_pageblocks
from mmtwin.diagnose.whatif.settings import Settings
from mmtwin.errors import RequestError
from mmtwin.mm.list import list_add_tail
from mmtwin.mm.slab_common import (
    KMALLOC_CLASSES,
    SLAB_DEBUG_FLAGS,
    SlubConfig,
    calculate_cpu_partial,
    calculate_min_partial,
    calculate_order,
    find_mergeable,
    slub_cpus,
)  # fmt: skip
from mmtwin.mm.slab_tables import END, KMALLOC_INDEXES, KMALLOC_TYPES, MAX_CACHES, Slub
from mmtwin.mm.watermark import setup_per_zone_wmarks
from mmtwin.recording.model import Recording
from mmtwin.replay.free_run import Start, start_of
from mmtwin.replay.requests import FLAG_KMALLOC, OBJECT_ALLOC, Requests
from mmtwin.units import get_order

PREFIXES = ("kmalloc-", "kmalloc-cg-", "kmalloc-rcl-", "dma-kmalloc-")


def start_under(
    recording: Recording, requests: Requests, settings: Settings, size_class: Callable[[int, int, int], int] | None = None
) -> tuple[Start, list[str], list[str]]:
    """The start under other settings, the caches' names there, and notes on what had to be assumed.

    :param size_class: gives for a kmalloc of so many bytes, with these flags, from this call site, the size of the slot it gets.
    :raises RequestError: a setting that cannot be made of this recording.
    """
    start, names, notes = start_of(requests), list(requests.names), list[str]()
    had = recording.provenance.cpus
    cpus = settings.cpus or had
    target = None if settings.profile is None else profiles.get(settings.profile)
    own = profiles.for_release(recording.provenance.kernel_release)
    target = None if target == own else target
    if settings.ram is not None or target is not None:
        user = user_set_min_free(recording) and settings.min_free_kbytes is None
        start = with_ram(start, recording, requests.old_blocks, settings.ram or recording.provenance.ram_bytes, had, user, target)
        notes.append("RAM: the kernel's own memory and its zones are derived as at boot; what was in use keeps its place where that exists, else it is moved")
    if target is not None:
        notes.append(f"profile: only memory is {target.name}'s (zones, pageblocks, watermarks, its own pages); objects keep the sizes and slabs of {own.name}")
    if cpus != had:
        start = with_cpus(start, cpus)
        notes.append("CPUs: tasks are dealt out in the order they appear, each stays on its CPU; nothing runs faster, and no lock is contended that was not")
    if settings.pageblock_order is not None:
        start = with_pageblocks(start, recording, settings.pageblock_order, target or own)
        notes.append("pageblocks: a smaller one has its old one's type, a larger one that of most of its pages; what is in use stays where it is")
    if _sets_watermarks(settings):
        start = _watermarks(start, settings)
    needs_slabs = (
        settings.slab_geometry
        or settings.cpu_partial is not None
        or settings.merge is not None
        or settings.size_classes
        or size_class
        or settings.allocator == "slab"
    )
    if needs_slabs and not requests.names:
        raise RequestError("settings of slabs need a recording with slab events: mmtwin record --vm --slab")
    if requests.names and (settings.slab_geometry or cpus != had):
        start = _geometry(start, recording, settings, cpus)
    if settings.cpu_partial is not None:
        _cpu_partial(start.slub, settings.cpu_partial)
    if settings.merge is not None:
        start = (_merged if settings.merge else _split)(start, names, notes)
    if settings.size_classes or size_class is not None:
        start = _sizes(start, names, recording, settings, cpus, size_class)
        notes.append("size classes: objects that are older than the recording stay in the caches they were in")
    return start, names, notes


def _sets_watermarks(settings: Settings) -> bool:
    return any(
        v is not None
        for v in (settings.min_free_kbytes, settings.watermark_scale_factor, settings.watermark_boost_factor, settings.percpu_pagelist_high_fraction)
    )


def _watermarks(start: Start, settings: Settings) -> Start:
    """The sysctls as they would be before the first request."""
    config = start.pages.config[0]
    fixed = list(start.fixed)
    for name in ("min_free_kbytes", "watermark_scale_factor", "watermark_boost_factor", "percpu_pagelist_high_fraction"):
        value = getattr(settings, name)
        if value is not None:
            config[name] = value
    fixed[0] |= settings.min_free_kbytes is not None
    fixed[1] |= settings.watermark_scale_factor is not None
    boost = start.pages.zone["watermark_boost"].copy()
    setup_per_zone_wmarks(start.pages)
    start.pages.zone["watermark_boost"] = boost if settings.watermark_boost_factor != 0 else 0
    return Start(start.pages, start.slub, start.table, start.objects, start.blocks, (fixed[0], fixed[1], fixed[2]))


def slub_config(recording: Recording, settings: Settings, cpus: int) -> SlubConfig:
    """The options a machine with these settings would have been booted with."""
    config = SlubConfig.from_cmdline(recording.provenance.cmdline, slub_cpus(cpus, cpus))
    changes = {name: getattr(settings, f"slub_{name}") for name in ("min_order", "max_order", "min_objects") if getattr(settings, f"slub_{name}") is not None}
    return config._replace(**changes)


def _geometry(start: Start, recording: Recording, settings: Settings, cpus: int) -> Start:
    """Slabs of the orders that these options give."""
    config = slub_config(recording, settings, cpus)
    changed: dict[int, tuple[int, int, int, int]] = {}
    for c in range(int(start.slub.config[0]["caches"])):
        cache = start.slub.cache[c]
        size = int(cache["size"])
        if size < 1 or int(cache["flags"]) & SLAB_DEBUG_FLAGS:
            continue
        order = calculate_order(size, config.cpus, config.min_order, config.max_order, config.min_objects)
        if order < 0 or order == int(cache["order"]):
            continue
        least = get_order(size)
        changed[c] = order, (4096 << order) // size, least, (4096 << least) // size
    return recut(start, changed) if changed else start


def _cpu_partial(slub: Slub, objects: int) -> None:
    """``cpu_partial`` of all caches that have such lists; what is on them already stays until they are next looked at."""
    for cache in slub.cache[: int(slub.config[0]["caches"])]:
        if int(cache["size"]) and not int(cache["flags"]) & SLAB_DEBUG_FLAGS:
            cache["cpu_partial"] = objects
            cache["cpu_partial_slabs"] = -(-2 * objects // max(int(cache["objects"]), 1))


def _copy_cache(slub: Slub, c: int) -> int:
    """A further, empty cache like `c`."""
    new = int(slub.config[0]["caches"])
    if new >= MAX_CACHES:
        raise RequestError(f"more than {MAX_CACHES} slab caches; merge=off and size_classes make further ones")
    slub.config[0]["caches"] = new + 1
    slub.cache[new] = slub.cache[c]
    for name in ("nr_partial", "nr_slabs", "total_objects"):
        slub.cache[new][name] = 0
    slub.cache[new]["refcount"] = 1
    return new


def _split(start: Start, names: list[str], notes: list[str]) -> Start:
    """``slab_nomerge``: no events say which of the merged caches' names a request was for, but its call site tells them apart."""
    table, slub, made = start.table.copy(), start.slub, 0
    wanted = table["op"] == OBJECT_ALLOC
    for c in range(len(names)):
        aliases = int(slub.cache[c]["refcount"])
        mine = np.flatnonzero(wanted & (table["arg"] == c) & (table["flag"] & FLAG_KMALLOC == 0))
        if aliases < 2 or not len(mine):
            continue
        sites, counts = np.unique(table["site"][mine], return_counts=True)
        order = np.argsort(-counts, kind="stable")
        for site in sites[order][1:aliases].tolist():
            new = _copy_cache(slub, c)
            names.append(f"{names[c]} (from {site & (1 << 64) - 1:#x})")
            table["arg"][mine[table["site"][mine] == site]] = new
            made += 1
    notes.append(f"merge=off: requests to merged caches are told apart by call site ({made} further caches); what is older than the recording stays together")
    return Start(start.pages, slub, table, start.objects, start.blocks, start.fixed)


def _merged(start: Start, names: list[str], notes: list[str]) -> Start:
    """Merging on: each cache that would have become an alias of an older one gives it its slabs and its requests."""
    slub, table = start.slub, start.table.copy()
    keep: list[int] = []
    merged = 0
    for c in range(len(names)):
        cache = slub.cache[c]
        if int(cache["size"]) < 1 or c < 2 or int(cache["usersize"]) or int(cache["ctor"]):
            keep.append(c)
            continue
        candidates = [_Candidate(slub.cache[k]) for k in keep]
        found = find_mergeable(candidates, int(cache["object_size"]), int(cache["align"]), int(cache["flags"]) & ~0xC0000000, names[c])
        if found is None or int(cache["refcount"]) < 0:
            keep.append(c)
            continue
        _join(slub, c, keep[found])
        objects = np.isin(table["op"], (OBJECT_ALLOC,)) | (table["op"] == 3)
        table["arg"][objects & (table["arg"] == c)] = keep[found]
        merged += 1
    notes.append(f"merge=on: {merged} caches become aliases")
    return Start(start.pages, slub, table, start.objects, start.blocks, start.fixed)


class _Candidate:
    """A cache as merging sees it."""

    def __init__(self, cache: np.void) -> None:
        self.flags, self.size, self.ctor = int(cache["flags"]), int(cache["size"]), int(cache["ctor"])
        self.usersize, self.refcount = int(cache["usersize"]), int(cache["refcount"])


def _join(slub: Slub, c: int, to: int) -> None:
    """Cache `c` becomes an alias of `to`: its slabs are that one's, those of its CPUs go to the node's list."""
    cpus = int(slub.config[0]["nr_cpus"])
    rows = rows_of(slub, c)
    for cpu in range(cpus):
        k = slub.cpu[c * cpus + cpu]
        if int(k["slab"]) != END:
            slab, first = slub.slab[int(k["slab"])], int(slub.slab[int(k["slab"])]["slots"])
            at, last, count = int(k["freelist"]), END, 0
            while at >= 0:
                last, at, count = at, int(slub.slot[first + at]), count + 1
            if last != END:
                slub.slot[first + last], slab["freelist"] = int(slab["freelist"]), int(k["freelist"])
                slab["inuse"] = int(slab["inuse"]) - count
        k["slab"] = k["freelist"] = k["partial"] = END
    slub.slab[c]["next"] = slub.slab[c]["prev"] = c
    target = slub.cache[to]
    for row in rows.tolist():
        slab = slub.slab[row]
        slab["cache"], slab["frozen"], slab["on_list"], slab["next"] = to, 0, 0, END
        if int(slab["freelist"]) != END:
            list_add_tail(slub.slab, row, to)
            slab["on_list"] = 1
            target["nr_partial"] += 1
    target["nr_slabs"] += int(slub.cache[c]["nr_slabs"])
    target["total_objects"] += int(slub.cache[c]["total_objects"])
    target["object_size"] = max(int(target["object_size"]), int(slub.cache[c]["object_size"]))
    target["refcount"] += 1
    for name in ("nr_partial", "nr_slabs", "total_objects", "live"):
        slub.cache[c][name] = 0


def _sizes(start: Start, names: list[str], recording: Recording, settings: Settings, cpus: int, size_class: Callable[[int, int, int], int] | None) -> Start:
    """Each kmalloc goes to the smallest of the kernel's size classes and the further ones; or to what the user's function says."""
    table, slub = start.table.copy(), start.slub
    config = slub_config(recording, settings, cpus)
    sizes = sorted({k.size for k in KMALLOC_CLASSES[1:]} | set(settings.size_classes))
    kinds = {int(slub.kmalloc[i]): i // KMALLOC_INDEXES for i in range(KMALLOC_TYPES * KMALLOC_INDEXES - 1, -1, -1) if int(slub.kmalloc[i]) >= 0}
    mine = np.flatnonzero((table["op"] == OBJECT_ALLOC) & (table["flag"] & FLAG_KMALLOC != 0))
    known = {(kinds[c], int(slub.cache[c]["object_size"])): c for c in kinds}
    answers: dict[tuple[int, int, int], int] = {}
    for at in mine.tolist():
        row = table[at]
        c, size = int(row["arg"]), int(row["arg2"])
        if c not in kinds or not size:
            continue
        key = size, int(row["gfp"]), int(row["site"])
        if key not in answers:
            answers[key] = _class_of(key, sizes, size_class)
        wanted = kinds[c], answers[key]
        if wanted not in known:
            known[wanted] = _new_class(slub, c, wanted[1], config)
            names.append(f"{PREFIXES[wanted[0]]}{wanted[1]}")
        table["arg"][at] = known[wanted]
    return Start(start.pages, slub, table, start.objects, start.blocks, start.fixed)


def _class_of(key: tuple[int, int, int], sizes: list[int], size_class: Callable[[int, int, int], int] | None) -> int:
    """:raises RequestError: the user's function gave what cannot hold the object."""
    if size_class is None:
        return next(s for s in sizes if s >= key[0])
    answer = int(size_class(*key))
    if not key[0] <= answer <= 1 << 15:
        raise RequestError(
            f"size_class({key[0]}, {key[1]:#x}, {key[2] & (1 << 64) - 1:#x}) is {answer}; expected at least the {key[0]} bytes asked for, and at most 32768"
        )
    return answer


def _new_class(slub: Slub, like: int, size: int, config: SlubConfig) -> int:
    """A further kmalloc cache."""
    new = _copy_cache(slub, like)
    cache = slub.cache[new]
    slot = -(-size // 8) * 8
    order = calculate_order(slot, config.cpus, config.min_order, config.max_order, config.min_objects)
    least = get_order(slot)
    cache["size"], cache["object_size"], cache["inuse"] = slot, size, slot
    cache["order"], cache["objects"], cache["min_order"], cache["min_objects"] = order, (4096 << order) // slot, least, (4096 << least) // slot
    cache["allocflags"] = int(cache["allocflags"]) & ~0x40000 | (0x40000 if order else 0)
    cache["min_partial"], cache["cpu_partial"], cache["random_seq"] = calculate_min_partial(slot), calculate_cpu_partial(slot), -1
    cache["cpu_partial_slabs"] = -(-2 * int(cache["cpu_partial"]) // int(cache["objects"]))
    return new
