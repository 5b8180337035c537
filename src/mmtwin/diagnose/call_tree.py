"""Requests as trees: objects by cache, function and call site; pages by migrate type, flags and process (their events name no caller).

The sums are those of `stat` and `page_stat`, of the same pairs of allocation and free; a tree only groups them by several things at once.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from mmtwin.diagnose import page_stat, stat
from mmtwin.diagnose.stat import StatResult
from mmtwin.recording.model import Recording
from mmtwin.recording.symbols import Symbols

MEASURES = ("bytes", "live_bytes", "waste_bytes", "hits")
"""What a node holds: bytes handed out, those of them live at the end, those nobody asked for, and how often."""


def object_tree(recording: Recording, symbols: Symbols | None = None) -> tuple[StatResult, pl.DataFrame]:
    """Slab objects (of a process: blocks of malloc).

    :returns: what `stat` by call site returns, and the tree's leaves: cache, function, site, `MEASURES`.
    :raises RequestError: as `stat`.
    """
    result, table = stat.by_cache_and_site(recording, symbols)
    leaves = table.group_by("cache", "function", "site").agg(pl.col(MEASURES).sum()).sort("bytes", "cache", "site", descending=[True, False, False])
    return result, leaves


def page_tree(recording: Recording) -> tuple[StatResult, pl.DataFrame]:
    """Pages.

    :returns: what `page_stat` returns, and the tree's leaves: type, gfp, process, `MEASURES`.
    :raises RequestError: as `page_stat`.
    """
    result, table = page_stat.by_kind_and_pid(recording)
    leaves = table.group_by("type", "gfp", "process").agg(pl.col(MEASURES).sum()).sort("bytes", "gfp", "process", descending=[True, False, False])
    return result, leaves


def nested(leaves: pl.DataFrame, levels: tuple[str, ...], least: float = 0.0005, most: int = 60) -> list[dict[str, Any]]:
    """A tree as plain data: nodes with name, `MEASURES` and children, the largest first. What is small in every measure is put together in one node.

    :param least: the share of the whole, in any measure, from which a node is shown by itself.
    :param most: children of one node.
    """
    totals = {name: max(int(leaves[name].sum()), 1) for name in MEASURES}
    return _nodes(leaves, levels, totals, least, most)


def _nodes(leaves: pl.DataFrame, levels: tuple[str, ...], totals: dict[str, int], least: float, most: int) -> list[dict[str, Any]]:
    level, deeper = levels[0], levels[1:]
    sums = leaves.group_by(level).agg(pl.col(MEASURES).sum()).sort("bytes", level, descending=[True, False])
    large = pl.any_horizontal([pl.col(name) >= least * totals[name] for name in MEASURES])
    shown = sums.filter(large).head(most)
    nodes = []
    for row in shown.iter_rows(named=True):
        node = {"name": row[level], **{name: int(row[name]) for name in MEASURES}}
        if deeper:
            below = _nodes(leaves.filter(pl.col(level) == row[level]), deeper, totals, least, most)
            if [child["name"] for child in below] != [row[level]]:  # without symbols a function is its call site
                node["children"] = below
        nodes.append(node)
    rest = len(sums) - len(shown)
    if rest:
        others = sums.join(shown, on=level, how="anti").select(pl.col(MEASURES).sum()).row(0, named=True)
        nodes.append({"name": f"({rest:,} others)", **{name: int(others[name]) for name in MEASURES}})
    return nodes
