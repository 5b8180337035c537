"""What each page frame holds at a moment: a number per frame that stands for one holder, such as a slab cache, a process's request or a free list.

A holder belongs to one of `CLASSES`, which are what the report's map and its chart of memory colour. Holders are few (caches, free lists, and the different
requests of different processes), frames are many: so the page keeps a number per frame, and each holder's description once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin.gfp import MIGRATETYPE_NAMES, RECLAIMABLE, gfp_migratetype, gfp_names
from mmtwin.mm.slab_tables import MAX_CACHES
from mmtwin.mm.tables import MAX_ORDER, PG_LRU, PG_SLAB
from mmtwin.mm.validate import FreeBlocks, PcpBlocks
from mmtwin.recording.model import Recording
from mmtwin.replay.moments import Moment
from mmtwin.units import PAGE_SHIFT

Int = npt.NDArray[np.int64]
Frames = npt.NDArray[np.int32]

CLASSES = (
    ("no_ram", "no memory", "addresses without memory, or memory that the firmware keeps"),
    ("free_large", "free, large blocks", "free in blocks that hold a whole huge page or more"),
    ("free_small", "free, small blocks", "free in blocks smaller than a huge page"),
    ("pcp", "free, per-CPU lists", "free, kept by a CPU for its next request; not in the buddy lists"),
    ("slab", "slabs", "pages of slab caches: kmalloc and kmem_cache_alloc"),
    ("movable", "movable", "processes' memory and cached files: requested as movable, or on an LRU list"),
    ("reclaimable", "reclaimable", "requested as reclaimable, and in no slab"),
    ("unmovable", "unmovable", "requested by the kernel for itself: page tables, stacks, buffers"),
    ("earlier", "in use, request not seen", "in use since before the recording (the kernel itself too), or taken without an event"),
)
"""Key, name and meaning of each class of page frames, by number."""
CLASS = {key: number for number, (key, _, _) in enumerate(CLASSES)}
NO_RAM, EARLIER, EARLIER_LRU, UNSEEN = range(4)
"""The holders that every report has, by number."""


@dataclass
class Holders:
    """All holders met so far.

    :ivar rows: each holder: its class and what is known of it, see `to_dict`.
    :ivar static: the holder of each frame of which nothing is known: no memory, or in use. It goes on to a multiple of the largest block.
    """

    static: Frames
    _in_use: npt.NDArray[np.bool_]
    requests: Frames
    request_rows: Int
    rows: list[dict[str, Any]]
    free: dict[tuple[int, int], int] = field(default_factory=dict)
    pcp: dict[int, int] = field(default_factory=dict)
    caches: dict[int, int] = field(default_factory=dict)
    pageblock_order: int = 9

    @classmethod
    def of(cls, recording: Recording, nr_frames: int, pageblock_order: int) -> Holders:
        """What holds the frames of a recording.

        :param nr_frames: page frames of the machine.
        :param pageblock_order: order of a huge page.
        """
        assert recording.before is not None
        static = np.full(-(-nr_frames >> MAX_ORDER) << MAX_ORDER, NO_RAM, dtype=np.int32)
        for start, size, kind in recording.before.memory_map.select("start", "size", "type").iter_rows():
            if kind == 1:
                static[-(-start >> PAGE_SHIFT) : min((start + size) >> PAGE_SHIFT, nr_frames)] = EARLIER
        rows: list[dict[str, Any]] = [
            {"class": CLASS["no_ram"], "text": "no memory here"},
            {"class": CLASS["earlier"], "text": "in use since before the recording"},
            {"class": CLASS["movable"], "text": "on an LRU list since before the recording"},
            {"class": CLASS["earlier"], "text": "in use, but no event says by whom (a bulk request, or moved by compaction)"},
        ]
        kind = pl.col("kind")
        asked = (
            recording.events.lazy()
            .with_row_index("row")
            .filter((kind == "mm_page_alloc") & (pl.col("pfn") >= 0))
            .select(pl.col("row").cast(pl.Int64), "pid", "order", "gfp")
            .collect()
        )
        different = asked.select("pid", "order", "gfp").unique(maintain_order=True).with_row_index("id", offset=len(rows))
        ids = asked.join(different, on=["pid", "order", "gfp"], how="left", maintain_order="left")["id"].cast(pl.Int64).to_numpy()
        for _, pid, order, gfp in different.iter_rows():
            rows.append({"class": request_class(gfp), "pid": pid, "order": order, "gfp": gfp_names(gfp)})
        return cls(static, static[:nr_frames] != NO_RAM, ids.astype(np.int32), asked["row"].to_numpy(), rows, pageblock_order=pageblock_order)

    def at(self, moment: Moment, free: FreeBlocks, pcp: PcpBlocks) -> tuple[Frames, Frames]:
        """The holder of each frame, and the event that handed the frame out (-1 where none did).

        :param free: the blocks on the buddy lists then.
        :param pcp: the blocks on the per-CPU lists then.
        """
        frames = len(moment.owner)
        flags, owner = moment.state.page["flags"][:frames], moment.owner
        holder, event = self.static.copy(), np.full(len(self.static), -1, dtype=np.int32)
        mine = holder[:frames]
        mine[self._in_use & (owner < -1)] = UNSEEN
        mine[self._in_use & (owner == -1) & (flags & PG_LRU != 0)] = EARLIER_LRU
        asked = np.flatnonzero(owner >= 0)
        mine[asked] = self.requests[np.searchsorted(self.request_rows, owner[asked])]
        event[asked] = owner[asked]
        if moment.slub is not None:
            slabs = np.flatnonzero((flags & PG_SLAB != 0) & (flags >= 0))
            cache = moment.slub.slab["cache"][np.maximum(moment.state.page["next"][slabs], MAX_CACHES)]
            numbers = np.unique(cache)
            known = np.array([self._cache(int(c), moment.cache_names) for c in numbers.tolist()], dtype=np.int32)
            if len(slabs):
                mine[slabs] = known[np.searchsorted(numbers, cache)]
        for pfn, order, ids in (
            (free.pfn, free.order, self._numbers(self.free, free.order * len(MIGRATETYPE_NAMES) + free.migratetype, self._free)),
            (pcp.pfn, pcp.order, self._numbers(self.pcp, pcp.cpu, self._pcp)),
        ):
            for one in np.unique(order).tolist():
                some = order == one
                holder.reshape(-1, 1 << one)[pfn[some] >> one] = ids[some, None]  # blocks begin at multiples of their size
                event.reshape(-1, 1 << one)[pfn[some] >> one] = -1
        return holder, event

    def classes(self) -> Int:
        """The class of each holder, by its number."""
        return np.array([row["class"] for row in self.rows], dtype=np.int64)

    def to_dict(self) -> dict[str, Any]:
        """The holders in columns, texts once each: class; text, or where it is -1 the request: pid, order and gfp."""
        texts: dict[str, int] = {}

        def number(text: str | None) -> int:
            return -1 if text is None else texts.setdefault(text, len(texts))

        columns: dict[str, Any] = {"class": [], "text": [], "pid": [], "order": [], "gfp": []}
        for row in self.rows:
            columns["class"].append(row["class"])
            columns["text"].append(number(row.get("text")))
            columns["pid"].append(row.get("pid", -1))
            columns["order"].append(row.get("order", -1))
            columns["gfp"].append(number(row.get("gfp")))
        return columns | {"texts": list(texts)}

    def _numbers(self, known: dict[Any, int], keys: Int, make: Any) -> Int:
        different, which = np.unique(keys, return_inverse=True)
        numbers = np.zeros(len(different), dtype=np.int64)
        for i, key in enumerate(different.tolist()):
            if key not in known:
                known[key] = len(self.rows)
                self.rows.append(make(key))
            numbers[i] = known[key]
        return numbers[which]

    def _free(self, key: int) -> dict[str, Any]:
        order, migratetype = divmod(key, len(MIGRATETYPE_NAMES))
        size = "free_large" if order >= self.pageblock_order else "free_small"
        return {"class": CLASS[size], "text": f"free, in a block of order {order}, list {MIGRATETYPE_NAMES[migratetype]}"}

    def _pcp(self, cpu: int) -> dict[str, Any]:
        return {"class": CLASS["pcp"], "text": f"free, on a list of CPU {cpu}"}

    def _cache(self, cache: int, names: list[str]) -> int:
        if cache not in self.caches:
            self.caches[cache] = len(self.rows)
            self.rows.append({"class": CLASS["slab"], "text": f"slab of {names[cache] if 0 <= cache < len(names) else 'an unknown cache'}"})
        return self.caches[cache]


def request_class(gfp: int) -> int:
    """The class of a page that was asked for with these flags."""
    migratetype = gfp_migratetype(gfp)
    return CLASS["unmovable"] if migratetype == 0 else CLASS["reclaimable"] if migratetype == RECLAIMABLE else CLASS["movable"]
