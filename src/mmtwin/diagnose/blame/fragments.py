"""Who fragments: pages that cannot be moved in pageblocks of movable type, over time, and the requests that took them from there.

A request that finds no block of its own type takes one of another (`__rmqueue_fallback`, mm/page_alloc.c); the kernel prints mm_page_alloc_extfrag. Where the pageblock keeps its type
(change_ownership=0), an unmovable page now pins a block that compaction could have emptied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from mmtwin.diagnose.blame.steps import Steps
from mmtwin.diagnose.pins import FREE_LIST, GFP_MOVABLE, PCP_LIST, Frames, Owners
from mmtwin.gfp import MIGRATETYPE_NAMES, MOVABLE, RECLAIMABLE
from mmtwin.recording.model import Recording
from mmtwin.replay.placement import context_ids

Schema = dict[str, pl.DataType | type[pl.DataType]]
FEW = (1, 8, 64)
"""Blocks are counted by how few frames pin them: exactly 1, up to 8, up to 64."""


@dataclass(frozen=True)
class Sample:
    """One moment's count.

    :ivar pinned: frames that cannot be moved, in pageblocks of movable type; `by_group` whose they are.
    :ivar blocks: movable pageblocks with RAM; `mixed`: those that such frames pin; `few`: pinned by so few (`FEW`, cumulative).
    :ivar whole: pageblocks that are all free. `free`: free frames.
    """

    pinned: int
    by_group: dict[int, tuple[int, int]]
    blocks: int
    mixed: int
    few: tuple[int, ...]
    whole: int
    free: int


@dataclass(frozen=True)
class Fragments:
    """Fragmentation over time.

    :ivar samples: one for each moment; empty where the recording has no snapshot to replay from.
    :ivar rows: who holds unmovable pages in movable blocks: label, pages (at the end), blocks, pages_start, series.
    :ivar reserved: pages that were never given to the page allocator (present less managed: the kernel's image, its table of page frames); most lie in movable blocks, as all blocks begin
        so, and none can ever be moved. None without a snapshot.
    :ivar fallbacks: label, wanted and got (migrate types), order, events, taken_over (the block changed its type), series (events in each step).
    """

    samples: tuple[Sample, ...]
    rows: pl.DataFrame
    fallbacks: pl.DataFrame
    reserved: int | None = None

    @property
    def events(self) -> int:
        """Fallback events."""
        return int(self.fallbacks["events"].sum())

    def to_dict(self, lines: int) -> dict[str, Any]:
        """For JSON."""
        names = ("pinned", "blocks", "mixed", "whole", "free")
        few = {f"blocks_pinned_by_up_to_{limit}": [sample.few[i] for sample in self.samples] for i, limit in enumerate(FEW)}
        return {
            "unmovable_in_movable": self.samples[-1].pinned if self.samples else None,
            "reserved_at_boot": self.reserved, "over_time": {name: [getattr(sample, name) for sample in self.samples] for name in names} | few,
            "rows_total": len(self.rows), "rows": (self.rows.head(lines) if lines else self.rows).to_dicts(),
            "fallback_events": self.events, "fallbacks": (self.fallbacks.head(lines) if lines else self.fallbacks).to_dicts(),
        }  # fmt: skip


def sample(frames: Frames, groups: Owners) -> Sample:
    """Counts one moment."""
    n = len(frames.blocks)
    movable = frames.blocks == MOVABLE
    mine = np.flatnonzero(frames.pinned & frames.in_blocks_of(MOVABLE))
    per_block = np.bincount(frames.block[mine], minlength=n)
    usable = np.bincount(frames.block[frames.what > 0], minlength=n)
    free = (frames.what == FREE_LIST) | (frames.what == PCP_LIST)
    free_in = np.bincount(frames.block[frames.what == FREE_LIST], minlength=n)
    group = groups.groups(frames, mine)
    pairs = np.unique(np.stack([group, frames.block[mine]]), axis=1)
    held, blocks = np.bincount(group, minlength=len(groups.names)), np.bincount(pairs[0], minlength=len(groups.names))
    by_group = {int(g): (int(held[g]), int(blocks[g])) for g in np.flatnonzero(held)}
    mixed = per_block[movable & (per_block > 0)]
    few = tuple(int((mixed <= limit).sum()) for limit in FEW)
    whole = int(((free_in == usable) & (usable == usable.max(initial=0)) & (usable > 0)).sum())
    return Sample(len(mine), by_group, int((movable & (usable > 0)).sum()), len(mixed), few, whole, int(free.sum()))


def fragments(recording: Recording, samples: Sequence[Sample], groups: Owners, steps: Steps) -> Fragments:
    """Puts the samples together, and adds the fallback events."""
    rows = []
    for number in sorted({number for one in samples for number in one.by_group}):
        series = [one.by_group.get(number, (0, 0))[0] for one in samples]
        rows.append((groups.names[number], series[-1], samples[-1].by_group.get(number, (0, 0))[1], series[0], series))
    schema: Schema = {"label": pl.String, "pages": pl.Int64, "blocks": pl.Int64, "pages_start": pl.Int64, "series": pl.List(pl.Int64)}
    table = pl.DataFrame(rows, schema=schema, orient="row").sort("pages", "label", descending=[True, False])
    before = recording.before
    reserved = int((before.zones["present_pages"] - before.zones["managed_pages"]).sum()) if before is not None and before.has_pages else None
    return Fragments(tuple(samples), table, fallbacks(recording, groups, steps), reserved)


def fallbacks(recording: Recording, groups: Owners, steps: Steps) -> pl.DataFrame:
    """mm_page_alloc_extfrag events by who asked, what was wanted and what was taken.

    The event comes under the zone's lock; the request is the mm_page_alloc that the same task or interrupt prints next (a refill of a per-CPU list takes more pages than that one).
    """
    schema: Schema = {
        "label": pl.String,
        "wanted": pl.String,
        "got": pl.String,
        "order": pl.Int64,
        "events": pl.Int64,
        "taken_over": pl.Int64,
        "series": pl.List(pl.Int64),
    }
    events = recording.events
    kind = events["kind"]
    if not (kind == "mm_page_alloc_extfrag").any():
        return pl.DataFrame(schema=schema)
    context, _ = context_ids(events, bool((kind == "pcp_free").any()))
    some = (
        events.lazy()
        .select("time", "kind", "order", "migratetype", "bytes_req", "bytes_alloc")
        .with_columns(pl.Series("context", context))
        .with_row_index("row")
        .filter(pl.col("kind").is_in(["mm_page_alloc", "mm_page_alloc_extfrag"]))
        .with_columns(pl.when(pl.col("kind") == "mm_page_alloc").then("row").backward_fill().over("context").alias("request"))
        .filter((pl.col("kind") == "mm_page_alloc_extfrag") & pl.col("time").is_between(steps.start, steps.end))
        .collect()
    )
    group = np.where(some["request"].is_not_null().to_numpy(), groups.of_row[some["request"].fill_null(0).to_numpy()], groups.number("(unknown)"))
    step = np.clip(np.searchsorted(steps.times, some["time"].to_numpy(), side="left") - 1, 0, len(steps.times) - 2)
    table = some.with_columns(pl.Series("group", group.astype(np.int64)), pl.Series("step", step.astype(np.int64)))
    types = _types(events)
    rows = []
    for key, part in table.group_by("group", "migratetype", "bytes_req", "order"):
        number, wanted, got, order = key
        series = np.bincount(part["step"].to_numpy(), minlength=len(steps.times) - 1).tolist()
        rows.append((groups.names[int(number)], types(wanted), types(got), order, len(part), int(part["bytes_alloc"].sum()), series))
    return pl.DataFrame(rows, schema=schema, orient="row").sort("events", "label", "order", "wanted", "got", descending=[True, False, False, False, False])


def _types(events: pl.DataFrame) -> Callable[[Any], str]:
    """Names of migrate types. Linux before 4.4 numbered two of them the other way round, which the requests' flags show."""
    movable = events.filter((pl.col("kind") == "mm_page_alloc") & (pl.col("gfp") & 0x18 == GFP_MOVABLE))["migratetype"]
    old = int((movable == RECLAIMABLE).sum()) > int((movable == MOVABLE).sum())
    names = ("Unmovable", "Reclaimable", "Movable", "Reserve") if old else MIGRATETYPE_NAMES
    return lambda number: names[number] if 0 <= number < len(names) else f"type {number}"
