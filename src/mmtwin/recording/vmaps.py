"""What a recording of virtual areas has besides the page allocator's data: tables of its snapshots, kinds of events, and checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin.errors import RecordingError

VMAP_COLUMNS: Mapping[str, Mapping[str, str]] = {
    # the kernel's tracepoints since 6.3, by their own names (include/trace/events/vmalloc.h)
    "alloc_vmap_area": {"addr": "ptr", "size": "bytes_req", "align": "bytes_alloc", "vend": "call_site", "failed": "arg"},
    "free_vmap_area_noflush": {"va_start": "ptr", "nr_lazy": "arg", "nr_lazy_max": "bytes_req"},
    "purge_vmap_area_lazy": {"start": "ptr", "end": "call_site", "npurged": "arg"},
    # the recorder's probes
    "vmap_request": {"vstart": "ptr", "vend": "call_site", "size": "bytes_req", "align": "bytes_alloc", "gfp": "gfp", "flags": "arg"},
    "vmap_offer": {},
    "vmap_search": {},
    "vmap_pool_take": {"lock": "vmap_node"},
    "vmap_busy": {"start": "ptr", "end": "call_site", "flags": "arg", "root": "vmap_node"},
    "vmap_result": {"ret": "ptr"},
    "vmap_unlink": {"start": "ptr", "end": "call_site"},
    "vmap_lazy": {"start": "ptr", "root": "vmap_node"},
    "vmap_detach": {"lock": "vmap_node"},
    "vmap_merge": {"nr": "arg"},
    "vmap_decay": {"vn": "vmap_node", "full": "arg"},
    "vmap_pool_out": {"head": "vmap_pool"},
    "vmap_pool_back": {"lock": "vmap_node"},
    "vmap_purge_node": {"work": "vmap_node"},
    "vmap_pool_add": {"lock": "vmap_node"},
    "vmap_lazy_sub": {"nr": "arg"},
    "vmap_reclaim": {},
    "vmap_percpu": {"size": "bytes_req", "align": "bytes_alloc", "nr": "arg"},
    "vmap_percpu_search": {},
    "vmap_ram": {"count": "arg"},
    "vmap_ram_result": {"ret": "ptr"},
    "vmap_unram": {"addr": "ptr", "count": "arg"},
    "vmap_block_take": {"start": "ptr", "free": "arg", "dirty": "bytes_req", "lock": "vmap_lock"},
    "vmap_block_free": {"start": "ptr", "free": "arg", "dirty": "bytes_req", "lock": "vmap_lock"},
    "vmap_block_purge": {"start": "ptr", "free": "arg", "dirty": "bytes_req", "lock": "vmap_lock"},
    "vmap_block_flush": {"start": "ptr", "free": "arg", "dirty": "bytes_req", "lock": "vmap_lock"},
}
"""For each kind of event: which field of the kernel's record goes to which column (as `mmtwin.recording.convert.COLUMNS`; kernels that lack a field
leave its column empty). ptr is the first address of an area and call_site the one behind it (in vmap_request and alloc_vmap_area: the end of the range that is
allowed). "vmap_node" is the pointer to something of a ``struct vmap_node``, of which column node gets the number; "vmap_pool" one to the head of a pool: node,
and the pool's number in arg. "vmap_lock" is the lock that is let go: node is -1 for a block's, a CPU for that of its queue of blocks, and other locks make no row."""
VMAP_KINDS = tuple(VMAP_COLUMNS)
VMAP_TARGETS = ("vmap_node", "vmap_pool", "vmap_lock")
NO_ROW = -(1 << 31)
"""In column node while records are converted: an event of no interest."""
IMAGE = 0xFFFF_FFFF_8000_0000
"""Static variables of the kernel lie from here on; on i386 the scalars image_start and image_end say where."""

AREA_TREES = ("free", "busy", "lazy", "pool", "preload")
"""Where an area is: in the free tree; in the busy or lazy tree of a node; in a pool of a node; or a CPU's spare object (node is the CPU then)."""
VMAP_TABLES: Mapping[str, Mapping[str, Any]] = {
    "areas": {
        "tree": pl.String, "node": pl.Int16, "position": pl.Int32, "va_start": pl.Int64, "va_end": pl.Int64, "left": pl.Int32, "right": pl.Int32,
        "parent": pl.Int32, "color": pl.Int8, "subtree_max_size": pl.Int64, "flags": pl.Int64, "vm": pl.Int32, "object": pl.Int64,
    },
    "vms": {
        "object": pl.Int64, "addr": pl.Int64, "size": pl.Int64, "flags": pl.Int64, "pages": pl.Int64, "nr_pages": pl.Int64, "phys_addr": pl.Int64,
        "caller": pl.Int64, "page_order": pl.Int8, "requested_size": pl.Int64,
    },
    "cpus": {"cpu": pl.Int16, "preload": pl.Int64},
    "blocks": {
        "object": pl.Int64, "cpu": pl.Int16, "position": pl.Int32, "va_start": pl.Int64, "free": pl.Int32, "dirty": pl.Int32, "dirty_min": pl.Int32,
        "dirty_max": pl.Int32, "owner": pl.Int16,
    },
    "page_tables": {"level": pl.Int8, "pfn": pl.Int64, "index": pl.Int16, "value": pl.Int64},
}  # fmt: skip
"""A snapshot's tables of virtual areas (`mmtwin.recording.model.Snapshot`, vmaps) and their columns. Addresses, page-table entries and sizes are 64 bits kept
in a signed integer.

- areas: ``struct vmap_area``: tree (`AREA_TREES`), node (of the busy and lazy tree and the pool; 0 before 6.9), position (in the address-ordered list,
  or in the pool's), left, right, parent (row numbers of this table, -1 for none), color (0 red, 1 black), subtree_max_size (of the free tree, else 0), flags (since 6.9),
  vm (row of vms, -1 for none), object (its address). What a column does not apply to is -1 (rows) or 0.
- vms: ``struct vm_struct``; size is with the guard page; requested_size is 0 before 6.12.
- cpus: of each possible CPU the spare ``vmap_area`` for splits, 0 if it has none.
- blocks: ``struct vmap_block`` of vm_map_ram: cpu (whose queue it is on, -1: on none), position in that queue, owner (``vb->cpu`` since 6.12, else -1).
- page_tables: entries that are not 0 of the page tables above the lowest level, for the vmalloc and module ranges: level (5 is the highest of five, 2 points to
  the lowest tables or is a huge page), pfn of the table, index in it, the entry.
"""
VMAP_SCALARS = (
    "vmap_lazy_nr",
    "nr_vmalloc_pages",
    "nr_vmap_nodes",
    "vmap_zone_size",
    "VMALLOC_START",
    "VMALLOC_END",
    "MODULES_VADDR",
    "MODULES_END",
    "vmap_bbmap_bits",
)
"""Scalars that a snapshot with these tables must have."""

MAX_AREAS, MAX_NODES, MAX_POOLS = 1 << 22, 128, 256
Int = npt.NDArray[np.int64]
MASK = (1 << 64) - 1


def vmap_column(target: str, pointers: Int, scalars: Mapping[str, int]) -> dict[str, Int]:
    """What pointers of trace records say, by column: see `VMAP_COLUMNS`."""
    address = unsigned(pointers)
    if target == "vmap_lock":
        node = np.full(len(pointers), -1, dtype=np.int64)
        node[(address >= np.uint64(scalars.get("image_start", IMAGE))) & (address < np.uint64(scalars.get("image_end", MASK)))] = NO_ROW
        for cpu in range(scalars.get("possible_cpus", 1)):
            lock = scalars.get(f"vmap_queue_lock_{cpu}", 0)
            node[(address >= np.uint64(lock)) & (address < np.uint64(lock + scalars.get("vmap_queue_size", 0)))] = NO_ROW  # the xarray's lock
            node[address == np.uint64(lock)] = cpu
        return {"node": node}
    if "vmap_nodes_address" not in scalars:
        return {}
    inside = (address - np.uint64(scalars["vmap_nodes_address"])).astype(np.int64)
    node = inside // scalars["vmap_node_size"]
    if target == "vmap_node":
        return {"node": node}
    return {"node": node, "arg": inside % scalars["vmap_node_size"] // scalars["vmap_pool_size"]}


def unsigned(values: Int) -> npt.NDArray[np.uint64]:
    """64-bit addresses as they are ordered."""
    return values.astype(np.int64).view(np.uint64)


def check_vmaps(tables: Mapping[str, pl.DataFrame], scalars: Mapping[str, int], cpus: int, label: str) -> None:
    """Checks that the tables are possible: trees are red-black trees in the order of their addresses, and whatever is used as an index is in range.

    :param cpus: the machine's CPUs that were online.
    :raises RecordingError: naming the first table and what is wrong with it.
    """
    if set(tables) != set(VMAP_TABLES):
        raise RecordingError(f"{label}: tables {sorted(tables)}; expected {sorted(VMAP_TABLES)}")
    for name in VMAP_SCALARS:
        if name not in scalars:
            raise RecordingError(f"{label}: no scalar {name}, but tables of virtual areas")
    for name, schema in VMAP_TABLES.items():
        if dict(tables[name].schema) != dict(schema) or any(tables[name].null_count().row(0)):
            raise RecordingError(f"{label}.{name}: columns or types are not the expected ones, or values are missing")
    nodes, bits = scalars["nr_vmap_nodes"], scalars["vmap_bbmap_bits"]

    def need(good: npt.NDArray[np.bool_] | bool, table: str, what: str) -> None:
        if not np.all(good):
            raise RecordingError(f"{label}.{table}: {what}")

    need(1 <= nodes <= MAX_NODES, "areas", f"nr_vmap_nodes is {nodes}; expected 1 to {MAX_NODES}")
    zone = scalars["vmap_zone_size"]
    need(0 < zone < 1 << 40 and zone & (zone - 1) == 0, "areas", f"vmap_zone_size is {zone}; expected a power of two")
    need(1 <= bits <= 1024, "blocks", f"vmap_bbmap_bits is {bits}; expected 1 to 1024")
    need(0 <= scalars["vmap_lazy_nr"] < 1 << 52, "areas", "vmap_lazy_nr is impossible")
    possible = scalars.get("possible_cpus", cpus)
    need(cpus <= possible <= 8192, "cpus", f"possible_cpus is {possible}, with {cpus} CPUs online")
    per_cpu = tables["cpus"]["cpu"].cast(pl.Int64).to_numpy()
    need(
        (per_cpu >= 0) & (per_cpu < possible) & (np.bincount(np.clip(per_cpu, 0, possible - 1), minlength=1).max(initial=0) <= 1),
        "cpus",
        "cpu: impossible, or twice",
    )
    _check_areas(tables["areas"], len(tables["vms"]), nodes, possible, need)
    sizes = tables["vms"].select("size", "nr_pages").to_numpy()
    need((sizes >= 0) & (sizes < 1 << 57), "vms", "size or nr_pages is impossible")
    block = {name: tables["blocks"][name].cast(pl.Int64).to_numpy() for name in VMAP_TABLES["blocks"]}
    need(
        (block["cpu"] >= -1) & (block["cpu"] < possible) & (block["owner"] >= -1) & (block["owner"] < possible), "blocks", f"cpu: expected -1 to {possible - 1}"
    )
    for name in ("free", "dirty", "dirty_min", "dirty_max"):
        need((block[name] >= 0) & (block[name] <= bits), "blocks", f"{name}: expected 0 to {bits}")
    busy = set(tables["areas"].filter(pl.col("tree") == "busy")["va_start"].to_list())
    starts = block["va_start"].tolist()
    need(len(set(starts)) == len(starts) and set(starts) <= busy, "blocks", "va_start: not the beginning of a busy area, or twice")
    listed = tables["blocks"].filter(pl.col("cpu") >= 0)
    need((listed.select(pl.int_range(pl.len()).over("cpu")).to_series() == listed["position"]).to_numpy(), "blocks", "position: expected 0, 1, 2 in each queue")
    entry = {name: tables["page_tables"][name].cast(pl.Int64).to_numpy() for name in VMAP_TABLES["page_tables"]}
    need((entry["level"] >= 2) & (entry["level"] <= 5), "page_tables", "level: expected 2 to 5")
    need((entry["index"] >= 0) & (entry["index"] < 1024), "page_tables", "index: expected 0 to 1023")
    need((entry["pfn"] >= 0) & (entry["pfn"] < scalars["max_pfn"]), "page_tables", "pfn: outside the machine")


def _check_areas(table: pl.DataFrame, vms: int, nodes: int, cpus: int, need: Any) -> None:
    where = "areas"
    need(len(table) <= MAX_AREAS, where, f"{len(table)} rows; expected {MAX_AREAS} at most")
    names = {name: i for i, name in enumerate(AREA_TREES)}
    need(set(table["tree"].unique().to_list()) <= set(names), where, f"tree: expected one of {', '.join(AREA_TREES)}")
    kind = table["tree"].replace_strict(names, return_dtype=pl.Int64).to_numpy() if len(table) else np.zeros(0, np.int64)
    column: dict[str, Int] = {name: table[name].cast(pl.Int64).to_numpy() for name in VMAP_TABLES["areas"] if name != "tree"}
    column["kind"] = kind
    node = column["node"]
    need((node >= 0) & (node < np.where(kind == 4, cpus, np.where(kind == 0, 1, nodes))), where, "node: there is no such node or CPU")
    need((column["vm"] >= -1) & (column["vm"] < vms), where, "vm: there is no such row")
    need((column["flags"] >= 0) & (column["flags"] < 1 << 31), where, "flags: impossible")
    start, end = unsigned(column["va_start"]), unsigned(column["va_end"])
    placed = kind != 4
    need((start < end)[placed], where, "va_end: not behind va_start")
    need((column["color"] == 0) | (column["color"] == 1), where, "color: expected 0 or 1")
    links = {name: column[name] for name in ("left", "right", "parent")}
    rows = np.arange(len(table))
    group = kind * max(nodes, cpus, 1) + node
    for name, value in links.items():
        need((value >= -1) & (value < len(table)), where, f"{name}: there is no such row")
        linked = value >= 0
        need(group[value[linked]] == group[linked], where, f"{name}: a row of another tree")
        need(value[kind > 2] == -1, where, f"{name}: only areas in a tree have one")
    for name in ("left", "right"):
        has = links[name] >= 0
        need(links["parent"][links[name][has]] == rows[has], where, f"{name}: that row has another parent")
    children = np.concatenate([links[name][links[name] >= 0] for name in ("left", "right")])
    need(len(np.unique(children)) == len(children), where, "left, right: a row twice")
    child = np.zeros(len(table), dtype=bool)
    child[children] = True
    need((links["parent"] >= 0) == child, where, "parent: not the one that points to the row")
    in_tree = kind <= 2
    roots = rows[in_tree & (links["parent"] < 0)]
    need(len(np.unique(group[roots])) == len(roots), where, "parent: a tree with two roots")
    order = _check_shape(links, column, roots, need)
    need(len(order) == int(in_tree.sum()), where, "parent: rows that no root leads to")
    # `order` is each tree from its lowest address to its highest
    position = np.concatenate([np.arange(n) for n in np.unique(group[order], return_counts=True)[1]]) if len(order) else np.zeros(0, np.int64)
    by_tree = order[np.argsort(group[order], kind="stable")]
    need(column["position"][by_tree] == position, where, "position: not the order of the tree")
    same = group[by_tree][1:] == group[by_tree][:-1]
    need((end[by_tree][:-1] <= start[by_tree][1:])[same], where, "va_start: before the end of the area before")
    busy_or_free = rows[(kind <= 3)]
    in_space = busy_or_free[np.argsort(start[busy_or_free], kind="stable")]
    need(end[in_space][:-1] <= start[in_space][1:], where, "va_start: areas overlap")
    spare = rows[kind == 4]
    need(len(np.unique(node[spare])) == len(spare), where, "node: a CPU with two spare areas")
    pool = rows[kind == 3]
    pages = (end[pool] - start[pool]) >> np.uint64(12)
    need((pages >= 1) & (pages <= MAX_POOLS), where, "va_end: no pool has areas of that size")
    key = node[pool] * (MAX_POOLS + 1) + pages.astype(np.int64)
    sort = np.lexsort((column["position"][pool], key))
    first = np.concatenate(([True], key[sort][1:] != key[sort][:-1])) if len(sort) else np.zeros(0, dtype=bool)
    starts = np.flatnonzero(first)
    expected = np.arange(len(sort)) - np.repeat(starts, np.diff(np.append(starts, len(sort))))
    need(column["position"][pool][sort] == expected, where, "position: expected 0, 1, 2 in each pool")


def _check_shape(links: Mapping[str, Int], column: Mapping[str, Int], roots: Int, need: Any) -> Int:
    """Walks all trees level by level: no circle, colours and maxima as they must be. Returns the rows, one tree after the other, each in its own order.

    Row -1, which stands for no child, has no areas below it; the arrays have one more element for it.
    """
    where, color = "areas", column["color"]
    need(color[roots] == 1, where, "color: a root is black")
    levels, seen = [roots], len(roots)
    while len(levels[-1]):
        level = levels[-1]
        below = np.concatenate([links[name][level] for name in ("left", "right")])
        below = below[below >= 0]
        need((color[below] == 1) | (color[links["parent"][below]] == 1), where, "color: a red area under a red one")
        seen += len(below)
        need(seen <= len(color), where, "left, right: a circle")
        levels.append(below)
    size = (unsigned(column["va_end"]) - unsigned(column["va_start"])).astype(np.uint64)
    total = len(color)
    count, black, largest = np.zeros(total + 1, np.int64), np.zeros(total + 1, np.int64), np.zeros(total + 1, np.uint64)
    for level in reversed(levels):
        left, right = links["left"][level], links["right"][level]
        need(black[left] == black[right], where, "color: paths with different numbers of black areas")
        count[level] = 1 + count[left] + count[right]
        black[level] = black[left] + color[level]
        largest[level] = np.maximum(size[level], np.maximum(largest[left], largest[right]))
    free = np.concatenate(levels)
    free = free[column["kind"][free] == 0]
    need(largest[free] == unsigned(column["subtree_max_size"])[free], where, "subtree_max_size: not the largest of the subtree")
    place = np.zeros(total + 1, np.int64)
    offset = 0
    for root in roots.tolist():
        place[root] = offset
        offset += int(count[root])
    out = np.zeros(offset, dtype=np.int64)
    for level in levels:
        left, right = links["left"][level], links["right"][level]
        at = place[level] + count[left]
        out[at] = level
        place[left[left >= 0]] = place[level][left >= 0]
        place[right[right >= 0]] = at[right >= 0] + 1
    return out
