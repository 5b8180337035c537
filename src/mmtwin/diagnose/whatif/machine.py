"""The recorded machine with another number of CPUs or another amount of memory, before the recording's requests begin.

CPUs: tables are laid out anew; what the per-CPU lists of pages and of slabs held is dealt out among the CPUs there are.

Memory: frames that are no longer there, or hold what the kernel keeps for itself on a machine of the new size (`profiles.physical`), leave the free lists, and the blocks in use
there move elsewhere; frames that are new come free, at the lists' tails, in movable pageblocks. Zones, watermarks and list sizes are derived as at boot.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin import profiles
from mmtwin.diagnose.whatif.caches import ask
from mmtwin.errors import RequestError
from mmtwin.gfp import HIGHATOMIC, MOVABLE, RECLAIMABLE, UNMOVABLE
from mmtwin.machine import derive_constants
from mmtwin.mm.buddy import del_page_from_free_list, free_one_page
from mmtwin.mm.list import list_del
from mmtwin.mm.slab_tables import END, MAX_CACHES, Slub, new_slub
from mmtwin.mm.tables import MAX_ORDER, NR_PCP_LISTS, PG_ALLOCATED, PG_BUDDY, PG_LRU, PG_PCP, PG_SLAB, Pgdat, new_pgdat, pageblock_rows
from mmtwin.mm.vmstat import refresh_zone_stat_thresholds
from mmtwin.mm.watermark import setup_per_zone_wmarks
from mmtwin.profiles import Profile, physical
from mmtwin.recording.model import Recording
from mmtwin.recording.state import _link, free_lists, pcp_pages
from mmtwin.replay.free_run import Start
from mmtwin.replay.free_run_pages import GONE
from mmtwin.replay.requests import FLAG_SOFT, FOLD

RANK = {UNMOVABLE: 3, RECLAIMABLE: 2, MOVABLE: 1}
"""Migrate types, by how readily the kernel moves what is in them; where two have as many pages of a pageblock, the higher one counts."""


def user_set_min_free(recording: Recording) -> bool:
    """Whether somebody had set min_free_kbytes on the recorded machine."""
    return recording.before is not None and recording.before.scalars.get("user_min_free_kbytes", -1) != -1


def with_cpus(start: Start, cpus: int) -> Start:
    """The machine with `cpus` CPUs, all online. Tasks are dealt out in the order in which they appear; interrupts stay where they were, if that CPU is there."""
    old = start.pages
    had = int(old.config[0]["nr_cpus"])
    frames, base = int(old.config[0]["nr_frames"]), int(old.config[0]["pcp_list_base"])
    listed = pcp_pages(old)
    pages = new_pgdat(frames, cpus, tuple(int(z) for z in old.gfp_zone), int(old.config[0]["pageblock_order"]), int(old.config[0]["pageblock_split"]))
    pages.page[:base] = old.page[:base]
    for name in ("pageblock", "zone", "lowmem_reserve", "free_area"):
        getattr(pages, name)[:] = getattr(old, name)
    kept = {name: pages.config[0][name] for name in ("nr_cpus", "pcp_list_base", "lru_base")}
    pages.config[0] = old.config[0]
    for name, value in kept.items():
        pages.config[0][name] = value
    pages.config[0]["online_cpus"] = cpus
    if len(listed):
        deal = listed.with_columns(((pl.col("cpu") + pl.col("position") * had) % cpus).alias("to")).sort(
            "zone", "to", "list", "position", "cpu", maintain_order=True
        )
        zone, to, index = (deal[c].cast(pl.Int64).to_numpy() for c in ("zone", "to", "list"))
        pfns = deal["pfn"].to_numpy()
        _link(pages, int(pages.config[0]["pcp_list_base"]) + (zone * cpus + to) * NR_PCP_LISTS + index, pfns)
        counts = np.bincount(zone * cpus + to, weights=1 << pages.page["order"][pfns].astype(np.int64), minlength=len(pages.pcp))
        pages.pcp["count"][: len(counts)] = counts[: len(pages.pcp)].astype(np.int32)
    for z in range(len(pages.zone)):
        pages.zone[z]["nr_free_pages"] += int(old.pcp["nr_free_pages_diff"][z * had : (z + 1) * had].sum())
    setup_per_zone_wmarks(pages)
    refresh_zone_stat_thresholds(pages)
    return Start(pages, _slub_with_cpus(start, cpus), _tasks(start.table, cpus), start.objects, start.blocks, (*start.fixed[:2], 1))


def _slub_with_cpus(start: Start, cpus: int) -> Slub:
    """SLUB's tables for so many CPUs. A slab that was a CPU's stays one; further CPUs get slabs from the cache's partial lists; those of CPUs that are gone go to a partial list."""
    old, had = start.slub, int(start.slub.config[0]["nr_cpus"])
    slub = new_slub(cpus, 0, slabs=0, slots=0)._replace(
        **{name: getattr(old, name) for name in ("cache", "slab", "slot", "random", "free_rows", "kmalloc", "config")}
    )
    slub.config[0]["nr_cpus"] = cpus
    for c in np.flatnonzero(slub.cache["live"][:MAX_CACHES]).tolist():
        partial: list[int] = []
        loose: list[tuple[int, int]] = []
        for cpu in range(had):
            k = old.cpu[c * had + cpu]
            row = int(k["partial"])
            while row != END:
                partial.append(row)
                row = int(slub.slab[row]["next"])
            if int(k["slab"]) != END:
                loose.append((int(k["slab"]), int(k["freelist"])))
        for row, _ in loose[cpus:]:
            partial.append(row)
        for cpu, (row, head) in enumerate(loose[:cpus]):
            slub.cpu[c * cpus + cpu]["slab"], slub.cpu[c * cpus + cpu]["freelist"] = row, head
        for row, head in loose[cpus:]:  # its CPU's free list is the slab's own now
            slab, first = slub.slab[row], int(slub.slab[row]["slots"])
            count, at, last = 0, head, END
            while at >= 0:
                count, last, at = count + 1, at, int(slub.slot[first + at])
            if last != END:
                slub.slot[first + last] = int(slab["freelist"])
                slab["freelist"] = head
            slab["inuse"] = int(slab["inuse"]) - count
        partial = [row for row in partial if int(slub.slab[row]["freelist"]) != END]
        for i, row in enumerate(partial):
            k, slab = slub.cpu[c * cpus + i % cpus], slub.slab[row]
            before = int(k["partial"])
            slab["next"], slab["frozen"], slab["on_list"] = before, 1, 2
            slab["slabs"] = 1 + (int(slub.slab[before]["slabs"]) if before != END else 0)
            k["partial"] = row
    return slub


def _tasks(table: npt.NDArray[np.void], cpus: int) -> npt.NDArray[np.void]:
    """Each task on one CPU."""
    table = table.copy()
    _, first, where = np.unique(table["pid"], return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    tasks = rank[where] % cpus
    soft = table["flag"] & FLAG_SOFT != 0
    table["cpu"] = np.where(soft | (table["op"] == FOLD), table["cpu"] % cpus, tasks)
    return table


def with_ram(
    start: Start, recording: Recording, old_blocks: npt.NDArray[np.int64], ram: int, cpus: int, min_free_kbytes: bool, target: Profile | None = None
) -> Start:
    """The machine with another amount of memory, or with another kernel's zones.

    :param old_blocks: blocks that are older than the recording and freed in it (`Requests.old_blocks`).
    :param target: the kernel whose zones, pageblocks and own memory the machine has; None for the recorded one.
    :param min_free_kbytes: the recorded machine's own value was set by somebody and stays.
    :raises RequestError: the recording's machine is not a guest of QEMU's, or what is in use does not fit.
    """
    provenance, before = recording.provenance, recording.before
    assert before is not None
    own = profiles.for_release(provenance.kernel_release)
    if provenance.how != "vm" or own.word_bits == 32:
        raise RequestError(
            f"--set {'ram' if target is None else 'profile'}: only for recordings of 64-bit guests (mmtwin record --vm): of other machines the memory map at the other size is not known"
        )
    kernel = target or own
    initrd = -(-provenance.initrd_bytes // 4096)
    both = (own, kernel)
    maps = [
        physical.clip(physical.ram_frames(physical.qemu_pc_memory_map(size)), 0, k.max_frames)
        for size, k in zip((provenance.ram_bytes, ram), both, strict=True)
    ]
    spans = [physical.zone_spans(m, k.zone_limits, len(k.zone_names)) for m, k in zip(maps, both, strict=True)]
    reserves = [physical.boot_reserve(k, m, s, cpus, initrd) for k, m, s in zip(both, maps, spans, strict=True)]
    kept = [reserve.kept for reserve in reserves]
    usable = [_mask(m, k, max(maps[0][-1][1], maps[1][-1][1])) for m, k in zip(maps, kept, strict=True)]
    old = start.pages
    had, frames = int(old.config[0]["nr_frames"]), maps[1][-1][1]
    gone = (usable[0] & ~usable[1])[:had]
    gone[frames:] = True
    new = usable[1] & ~usable[0]  # the model's place of what the kernel keeps is not exact: what is free already is not new
    idle = _inside_free(old, had)
    new[:had] &= ~idle & (old.page["flags"][:had] & (PG_SLAB | PG_LRU) == 0)
    new[[pfn + i for _, pfn, order in old_blocks.tolist() for i in range(1 << order)]] = False
    _take_free(old, gone)
    blocks, slub = start.blocks.copy(), start.slub
    busy = gone & usable[0][:had] & ~idle
    lent = np.zeros(had, dtype=bool)  # frames whose content must go, because it is the kernel's and they are outside the direct map now
    if kernel.highmem_zone >= 0 and spans[1][kernel.highmem_zone].present:
        lent[spans[1][kernel.highmem_zone].start :] = True
        lent &= ~gone & ~idle & usable[0][:had] & (old.page["flags"][:had] & PG_LRU == 0)
    slabs = [(int(slub.slab[r]["pfn"]), int(slub.slab[r]["order"])) for r in _slab_rows(slub)]
    used = _used(busy | lent, gone | lent, slabs, old_blocks)
    pages = _resized(old, frames)
    if target is None:
        for z, span in enumerate(spans[1]):
            zone = pages.zone[z]
            pages_there = int(zone["managed_pages"]) + _count(usable[1], span) - _count(usable[0], spans[0][z])
            zone["start_pfn"], zone["end_pfn"], zone["present_pages"], zone["managed_pages"] = span.start, span.end, span.present, max(pages_there, 0)
    else:
        pages = _rezoned(pages, kernel, spans[1], usable[1])
    _give_free(pages, new[:frames])
    minimum = int(pages.config[0]["min_free_kbytes"])
    managed = pages.zone["managed_pages"].copy()
    for z, span in enumerate(spans[1]):  # what is freed late did not yet count
        pages.zone[z]["managed_pages"] -= min(int(managed[z]), physical.count(physical.clip(reserves[1].freed, span.start, span.end)))
    pages.zone["wmark_high"] = 0  # as when the kernel first counts the pages above it
    derive_constants(pages, kernel)
    pages.zone["managed_pages"] = managed
    if min_free_kbytes:
        pages.config[0]["min_free_kbytes"] = minimum
        setup_per_zone_wmarks(pages)
    found = ask(pages, slub, [], [(order, 0xCC0) for _, order in used])
    if len(found) and found.min() < 0:
        raise RequestError(
            f"--set {f'ram={ram >> 20}M' if target is None else f'profile={kernel.name}'}: what the recorded machine has in use at its start does not fit into that"
        )
    _move(pages, slub, old, blocks, used, found)
    left = np.zeros(frames, dtype=bool)
    for pfn, order in used:
        left[pfn : pfn + (1 << order)] = lent[pfn : min(pfn + (1 << order), frames)]
    _give_free(pages, left)
    return Start(pages, slub, start.table, start.objects, blocks, start.fixed)


def _mask(ram: list[tuple[int, int]], kept: list[tuple[int, int]], frames: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros(frames, dtype=bool)
    for first, last in physical.subtract(ram, kept):
        mask[first:last] = True
    return mask


def _count(usable: npt.NDArray[np.bool_], span: physical.ZoneSpan) -> int:
    return int(np.count_nonzero(usable[span.start : span.end]))


def _slab_rows(slub: Slub) -> list[int]:
    used = slub.slab[MAX_CACHES : int(slub.config[0]["slabs"])]
    return (MAX_CACHES + np.flatnonzero(used["state"] != 0)).tolist()


def _take_free(pages: Pgdat, gone: npt.NDArray[np.bool_]) -> None:
    """Frames leave the lists; the rest of a block that is only partly gone is free in pieces."""
    frames = len(gone)
    flags = pages.page["flags"][:frames]
    whose = {pfn: zone * int(pages.config[0]["nr_cpus"]) + cpu for zone, cpu, pfn in pcp_pages(pages).select("zone", "cpu", "pfn").iter_rows()}
    rest = np.zeros(frames, dtype=bool)
    for pfn in np.flatnonzero(flags & (PG_BUDDY | PG_PCP)).tolist():
        order = int(pages.page[pfn]["order"])
        part = gone[pfn : pfn + (1 << order)]
        if not part.any():
            continue
        z = next(z for z in range(len(pages.zone)) if int(pages.zone[z]["start_pfn"]) <= pfn < int(pages.zone[z]["end_pfn"]))
        if int(pages.page[pfn]["flags"]) & PG_PCP:
            list_del(pages.page, pfn)
            pages.page[pfn]["flags"] = 0
            pages.pcp[whose[pfn]]["count"] -= 1 << order
        else:
            del_page_from_free_list(pages, pfn, z, order)
            pages.zone[z]["nr_free_pages"] -= 1 << order
        rest[pfn : pfn + (1 << order)] = ~part
    _give_free(pages, rest)


def _give_free(pages: Pgdat, new: npt.NDArray[np.bool_]) -> None:
    """Frames come free in their largest aligned blocks, at the lists' tails, under their pageblocks' types."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], new.astype(np.int8), [0]])))
    for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        _give_range(pages, first, last)


def _give_range(pages: Pgdat, first: int, last: int) -> None:
    """One run of frames comes free; it may reach over the end of a zone."""
    at = first
    while at < last:
        z = next(z for z in range(len(pages.zone)) if int(pages.zone[z]["start_pfn"]) <= at < int(pages.zone[z]["end_pfn"]))
        room = min(last, int(pages.zone[z]["end_pfn"])) - at
        order = min(MAX_ORDER, (at & -at).bit_length() - 1 if at else MAX_ORDER, room.bit_length() - 1)
        pages.page["flags"][at : at + (1 << order)] = 0
        kind = int(pages.pageblock[int(pageblock_rows(pages, np.array([at]))[0])])
        free_one_page(pages, at, z, 0, order, kind, True)
        at += 1 << order


def _used(busy: npt.NDArray[np.bool_], gone: npt.NDArray[np.bool_], slabs: list[tuple[int, int]], old: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Blocks in use (first page frame, order) in frames that go: slabs and blocks that will be freed as they are, all else page by page."""
    blocks = slabs + [(pfn, order) for _, pfn, order in old.tolist()]
    found = [(pfn, order) for pfn, order in dict.fromkeys(blocks) if gone[pfn : pfn + (1 << order)].any()]
    for pfn, order in found:
        busy[pfn : pfn + (1 << order)] = False
    return found + [(int(pfn), 0) for pfn in np.flatnonzero(busy)]


def _inside_free(pages: Pgdat, frames: int) -> npt.NDArray[np.bool_]:
    """Frames inside a free or listed block."""
    mask = np.zeros(frames + 1, dtype=np.int32)
    heads = np.flatnonzero(pages.page["flags"][:frames] & (PG_BUDDY | PG_PCP))
    np.add.at(mask, heads, 1)
    np.add.at(mask, np.minimum(heads + (1 << pages.page["order"][heads].astype(np.int64)), frames), -1)
    return np.cumsum(mask[:-1]) > 0


def _resized(old: Pgdat, frames: int) -> Pgdat:
    """The tables for so many frames; links to list heads follow these."""
    had, config = int(old.config[0]["nr_frames"]), old.config[0].copy()
    pages = new_pgdat(frames, int(config["nr_cpus"]), tuple(int(z) for z in old.gfp_zone), int(config["pageblock_order"]))
    kept = min(had, frames)
    pages.page[:kept] = old.page[:kept]
    pages.page[frames:] = old.page[had:]
    listed = np.concatenate([np.flatnonzero(pages.page["flags"][:kept] & (PG_BUDDY | PG_PCP)), np.arange(frames, len(pages.page))])
    for name in ("next", "prev"):
        link = pages.page[name][listed]
        pages.page[name][listed] = np.where(link >= had, link + (frames - had), link)
    common = min(len(pages.pageblock), len(old.pageblock))
    pages.pageblock[:] = MOVABLE
    pages.pageblock[:common] = old.pageblock[:common]
    for name in ("zone", "lowmem_reserve", "free_area", "pcp"):
        getattr(pages, name)[:] = getattr(old, name)
    mine = {name: int(pages.config[0][name]) for name in ("nr_frames", "free_list_base", "pcp_list_base", "lru_base", "pageblock_split")}
    pages.config[0] = config
    for name, value in mine.items():
        pages.config[0][name] = value
    return pages


def _rezoned(old: Pgdat, kernel: Profile, spans: list[physical.ZoneSpan], usable: npt.NDArray[np.bool_]) -> Pgdat:
    """The tables with another kernel's zones and pageblocks. What was on per-CPU lists is free; a HIGHATOMIC reserve is Movable."""
    frames, cpus = int(old.config[0]["nr_frames"]), int(old.config[0]["nr_cpus"])
    split = kernel.pageblock_split(spans[kernel.highmem_zone].start) if kernel.highmem_zone >= 0 else 0
    pages = new_pgdat(frames, cpus, kernel.gfp_zones, kernel.pageblock_order, split)
    kept = {name: int(pages.config[0][name]) for name in ("pageblock_order", "pageblock_split")}
    pages.config[0] = old.config[0]
    for name, value in kept.items():
        pages.config[0][name] = value
    pages.config[0]["nofragment_zone"] = kernel.nofragment_zone
    pages.page[:frames] = old.page[:frames]
    for z, (span, high) in enumerate(zip(spans, physical.is_highmem(kernel, spans), strict=True)):
        zone = pages.zone[z]
        zone["start_pfn"], zone["end_pfn"], zone["present_pages"] = span
        zone["managed_pages"], zone["is_highmem"] = _count(usable, span), high
    types = old.pageblock[pageblock_rows(old, np.arange(frames))].astype(np.int64)
    types[types == HIGHATOMIC] = MOVABLE
    retype(pages, types)
    order = np.concatenate([free_lists(old)["pfn"].to_numpy(), pcp_pages(old)["pfn"].to_numpy()])
    for pfn, size in zip(order.tolist(), (1 << old.page["order"][order].astype(np.int64)).tolist(), strict=True):
        pages.page["flags"][pfn] = 0
        _give_range(pages, pfn, pfn + size)
    return pages


def retype(pages: Pgdat, types: npt.NDArray[np.int64]) -> None:
    """Each pageblock's type, from those of its page frames (those in no zone do not count)."""
    frames = np.arange(len(types))
    present = np.zeros(len(types), dtype=bool)
    for zone in pages.zone:
        present[int(zone["start_pfn"]) : int(zone["end_pfn"])] = True
    votes = np.zeros((len(pages.pageblock), 3), dtype=np.int64)
    np.add.at(votes, (pageblock_rows(pages, frames)[present], np.minimum(types[present], 2)), 1)
    scaled = votes * 4 + np.array([RANK[kind] for kind in range(3)]) * (votes > 0)
    known = votes.any(axis=1)
    pages.pageblock[known] = np.argmax(scaled[known], axis=1)


def _move(pages: Pgdat, slub: Slub, old: Pgdat, blocks: npt.NDArray[np.int64], used: list[tuple[int, int]], found: npt.NDArray[np.int64]) -> None:
    """Blocks in use are elsewhere now."""
    to = {pfn + i: int(new) + i for (pfn, order), new in zip(used, found, strict=True) for i in range(1 << order)}
    frames = int(pages.config[0]["nr_frames"])
    for (pfn, order), new in zip(used, found.tolist(), strict=True):
        flags = int(old.page[pfn]["flags"])
        if flags & PG_SLAB:
            row = int(old.page[pfn]["next"])
            pages.page["flags"][new : new + (1 << order)] |= PG_SLAB
            pages.page["next"][new : new + (1 << order)] = row
            slub.slab[row]["pfn"] = new
        else:
            pages.page[new]["flags"] = flags | PG_ALLOCATED
        if pfn < frames:
            pages.page["flags"][pfn : min(pfn + (1 << order), frames)] = 0
    for i, pfn in enumerate(blocks[:, 1].tolist()):
        blocks[i, 1] = to.get(pfn, pfn if pfn < frames else GONE)
