"""Between snapshots and the tables of the virtual-area allocator: `restore` makes a state from a snapshot, `areas`, `spares` and `blocks` say what a state holds as a snapshot does."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import polars as pl

from mmtwin.errors import RecordingError
from mmtwin.mm.vmap_tables import (
    AREA_BUSY,
    AREA_FREE,
    AREA_LAZY,
    AREA_POOL,
    AREA_PRELOAD,
    BIAS,
    MAX_VA_SIZE_PAGES,
    NIL,
    TREE_BUSY,
    TREE_FREE,
    Vmalloc,
    new_vmalloc,
)
from mmtwin.recording.model import Provenance, Snapshot
from mmtwin.recording.vmaps import AREA_TREES
from mmtwin.units import PAGE_SHIFT

STATES = {"free": AREA_FREE, "busy": AREA_BUSY, "lazy": AREA_LAZY, "pool": AREA_POOL, "preload": AREA_PRELOAD}
SIGN = -(1 << 63)
"""Exclusive-or with it turns an address in two's complement into a biased one, and back."""


def version_of(release: str) -> int:
    """A kernel's release as `mmtwin.mm.vmap_tables` wants it: 601 for 6.1."""
    found = re.match(r"(\d{1,3})\.(\d{1,2})\b", release)
    return int(found[1]) * 100 + int(found[2]) if found else 601


def restore(snapshot: Snapshot, provenance: Provenance, with_vms: bool = True) -> Vmalloc:
    """The virtual-area allocator's state that a snapshot holds.

    :param with_vms: also the areas' ``vm_struct``.
    :raises RecordingError: it has no tables of virtual areas, or of a machine with other vmap nodes than that kernel makes.
    """
    if snapshot.vmaps is None:
        raise RecordingError("the snapshot has no virtual areas; mmtwin record --vmap adds them")
    scalars, tables = snapshot.scalars, snapshot.vmaps
    possible, areas = int(scalars["possible_cpus"]), tables["areas"]
    state = new_vmalloc(
        possible,
        scalars["VMALLOC_START"],
        scalars["VMALLOC_END"],
        scalars["MODULES_VADDR"],
        scalars["MODULES_END"],
        version=version_of(provenance.kernel_release),
        bits_per_long=64 if scalars["VMALLOC_START"] >> 32 else 32,
        online_cpus=provenance.cpus,
        areas=max(1024, 2 * len(areas)),
        vms=max(256, 2 * len(tables["vms"])),
        blocks=max(64, 2 * len(tables["blocks"])),
    )
    config = state.config[0]
    if int(config["nr_nodes"]) != scalars["nr_vmap_nodes"]:
        raise RecordingError(f"the machine has {scalars['nr_vmap_nodes']} vmap nodes; {int(config['nr_nodes'])} were expected of {possible} possible CPUs")
    config["zone_shift"] = (scalars["vmap_zone_size"] - 1).bit_length()
    config["block_pages"], config["lazy_nr"] = scalars["vmap_bbmap_bits"], scalars["vmap_lazy_nr"]
    config["nr_vmalloc_pages"] = scalars["nr_vmalloc_pages"]
    _restore_areas(state, areas)
    if with_vms:
        _restore_vms(state, areas, tables["vms"])
    _restore_blocks(state, tables["blocks"])
    return state


def _restore_areas(state: Vmalloc, areas: pl.DataFrame) -> None:
    config = state.config[0]
    first, count = int(config["heads"]), len(areas)
    rows = slice(first, first + count)
    kind = np.array([AREA_TREES.index(t) for t in areas["tree"].to_list()], dtype=np.int64)
    column = {name: areas[name].cast(pl.Int64).to_numpy() for name in areas.columns if name != "tree"}
    table = state.area
    for name in ("va_start", "va_end", "subtree_max_size"):
        table[name][rows] = column[name] ^ SIGN
    for name, source in (("rb_left", "left"), ("rb_right", "right"), ("rb_parent", "parent")):
        table[name][rows] = np.where(column[source] >= 0, column[source] + first, NIL)
    table["rb_color"][rows], table["flags"][rows], table["object"][rows] = column["color"], column["flags"], column["object"]
    table["state"][rows] = np.array([STATES[name] for name in AREA_TREES])[kind]
    pages = (column["va_end"] - column["va_start"]) >> PAGE_SHIFT
    pool = int(config["pool_base"]) + column["node"] * MAX_VA_SIZE_PAGES + pages - 1
    head = np.select([kind == 0, kind == 1, kind == 2, kind == 3], [TREE_FREE, TREE_BUSY + column["node"], int(config["lazy_tree"]) + column["node"], pool], -1)
    listed = np.flatnonzero(head >= 0)
    listed = listed[np.lexsort((column["position"][listed], head[listed]))]
    heads, row = head[listed], listed + first
    if len(row):
        new, last = np.append(True, heads[1:] != heads[:-1]), np.append(heads[1:] != heads[:-1], True)
        table["next"][row] = np.where(last, heads, np.append(row[1:], 0))
        table["prev"][row] = np.where(new, heads, np.insert(row[:-1], 0, 0))
        table["next"][heads[new]], table["prev"][heads[last]] = row[new], row[last]
        state.tree["nr"][:] = np.bincount(heads, minlength=len(state.tree))
    roots = np.flatnonzero((kind <= 2) & (column["parent"] < 0))
    state.tree["rb_root"][head[roots]] = roots + first
    spare = np.flatnonzero(kind == 4)
    state.cpu["ne_fit_preload_node"][column["node"][spare]] = spare + first
    config["areas"], config["areas_in_use"] = first + count, count


def _restore_vms(state: Vmalloc, areas: pl.DataFrame, vms: pl.DataFrame) -> None:
    first, config = int(state.config[0]["heads"]), state.config[0]
    busy = areas.with_row_index("row").filter((pl.col("tree") == "busy") & (pl.col("vm") >= 0)).unique("vm", keep="first", maintain_order=True)
    at, row = busy["vm"].cast(pl.Int64).to_numpy(), busy["row"].cast(pl.Int64).to_numpy() + first
    mine = np.arange(len(at)) + 1
    table = state.vm
    for name in ("size", "flags", "pages", "nr_pages", "phys_addr", "caller", "requested_size", "object", "page_order"):
        table[name][mine] = vms[name].cast(pl.Int64).to_numpy()[at]
    table["addr"][mine] = vms["addr"].to_numpy()[at] ^ SIGN
    table["area"][mine], table["live"][mine] = row, 1
    state.area["vm"][row] = mine
    config["vms"], config["vms_in_use"] = len(at) + 1, len(at)


def _restore_blocks(state: Vmalloc, blocks: pl.DataFrame) -> None:
    """Blocks on their queues and in the list by address."""
    config, table = state.config[0], state.block
    first = int(config["block_heads"])
    area_of = {int(s): int(r) for r, s in enumerate(state.area["va_start"]) if state.area["state"][r] == AREA_BUSY}
    everyone = first - 1
    rows = list(blocks.iter_rows(named=True))
    for i, block in enumerate(rows):
        row, entry = first + i, table[first + i]
        for name in ("free", "dirty", "dirty_min", "dirty_max", "object"):
            entry[name] = block[name]
        area = area_of[block["va_start"] ^ SIGN]
        entry["area"], entry["state"] = area, 1 if block["cpu"] >= 0 else 2
        entry["cpu"] = block["cpu"] if block["cpu"] >= 0 else max(block["owner"], 0)
        state.area[area]["vm"] = -row
        if block["cpu"] >= 0:
            head = block["cpu"]
            last = int(table[head]["prev"])
            entry["next"], entry["prev"] = head, last
            table[last]["next"], table[head]["prev"] = row, row
    for i in sorted(range(len(rows)), key=lambda i: rows[i]["va_start"] ^ SIGN):
        row, last = first + i, int(table[everyone]["xa_prev"])
        table[row]["xa_next"], table[row]["xa_prev"] = everyone, last
        table[last]["xa_next"], table[everyone]["xa_prev"] = row, row
    config["blocks"], config["blocks_in_use"] = first + len(rows), len(rows)


def _listed(state: Vmalloc, head: int) -> list[int]:
    found, at = [], int(state.area[head]["next"])
    while at != head:
        found.append(at)
        at = int(state.area[at]["next"])
    return found


Area = tuple[int, ...]


def tree_areas(state: Vmalloc, tree: int, maxima: bool) -> list[Area]:
    """The areas of a tree in the order of its list: start, end (as addresses), start of the left, right and upper area (0: none), colour, largest size below (or 0)."""
    area = state.area

    def start(row: int) -> int:
        return int(area[row]["va_start"]) + BIAS if row != NIL else 0

    return [
        (
            start(row), int(area[row]["va_end"]) + BIAS, start(int(area[row]["rb_left"])), start(int(area[row]["rb_right"])), start(int(area[row]["rb_parent"])),
            int(area[row]["rb_color"]), int(area[row]["subtree_max_size"]) + BIAS if maxima else 0,
        )
        for row in _listed(state, tree)
    ]  # fmt: skip


def pool_areas(state: Vmalloc, node: int) -> dict[int, list[Area]]:
    """Start and end of the pooled areas of a node, by their pages, in the order of their lists."""
    base = int(state.config[0]["pool_base"]) + node * MAX_VA_SIZE_PAGES
    area = state.area
    found: dict[int, list[Area]] = {
        i + 1: [(int(area[row]["va_start"]) + BIAS, int(area[row]["va_end"]) + BIAS) for row in _listed(state, base + i)] for i in range(MAX_VA_SIZE_PAGES)
    }
    return {pages: areas for pages, areas in found.items() if areas}


def snapshot_trees(tables: Mapping[str, pl.DataFrame]) -> dict[tuple[str, int], list[Area]]:
    """The trees of a snapshot by kind and node, as `tree_areas` gives them."""
    rows = list(tables["areas"].iter_rows(named=True))
    mask = (1 << 64) - 1
    starts = [row["va_start"] & mask for row in rows]
    found: dict[tuple[str, int], list[Area]] = {}
    for row in sorted((r for r in rows if r["tree"] in ("free", "busy", "lazy")), key=lambda r: r["position"]):
        links = (starts[row[name]] if row[name] >= 0 else 0 for name in ("left", "right", "parent"))
        largest = row["subtree_max_size"] & mask if row["tree"] == "free" else 0
        found.setdefault((row["tree"], row["node"]), []).append((row["va_start"] & mask, row["va_end"] & mask, *links, row["color"], largest))
    return found


def snapshot_pools(tables: Mapping[str, pl.DataFrame], node: int) -> dict[int, list[Area]]:
    """The pools of a node in a snapshot, as `pool_areas` gives them."""
    mask, found = (1 << 64) - 1, dict[int, list[Area]]()
    pooled = tables["areas"].filter((pl.col("tree") == "pool") & (pl.col("node") == node)).sort("position")
    for start, end in pooled.select("va_start", "va_end").iter_rows():
        found.setdefault((end - start) >> PAGE_SHIFT, []).append((start & mask, end & mask))
    return found


def queued_blocks(state: Vmalloc) -> dict[int, list[Area]]:
    """vm_map_ram's blocks by CPU, in the order of their queues (CPU -1: those on none, by address): start, free, dirty, dirty_min, dirty_max."""
    everyone, found = int(state.config[0]["block_heads"]) - 1, dict[int, list[Area]]()

    def add(cpu: int, block: int) -> None:
        entry = state.block[block]
        start = int(state.area[int(entry["area"])]["va_start"]) + BIAS
        found.setdefault(cpu, []).append((start, *(int(entry[name]) for name in ("free", "dirty", "dirty_min", "dirty_max"))))

    for cpu in range(int(state.config[0]["nr_cpus"])):
        at = int(state.block[cpu]["next"])
        while at != cpu:
            add(cpu, at)
            at = int(state.block[at]["next"])
    at = int(state.block[everyone]["xa_next"])
    while at != everyone:
        if int(state.block[at]["state"]) != 1:
            add(-1, at)
        at = int(state.block[at]["xa_next"])
    return found


def snapshot_blocks(tables: Mapping[str, pl.DataFrame]) -> dict[int, list[Area]]:
    """The blocks of a snapshot, as `queued_blocks` gives them."""
    mask, found = (1 << 64) - 1, dict[int, list[Area]]()
    for row in sorted(tables["blocks"].iter_rows(named=True), key=lambda r: (r["position"], r["va_start"] & mask)):
        found.setdefault(row["cpu"], []).append((row["va_start"] & mask, *(row[name] for name in ("free", "dirty", "dirty_min", "dirty_max"))))
    return found
