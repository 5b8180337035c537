"""Invariants of the virtual-area allocator's tables, and a digest of what they say.

Vectorised as `validate`: lists and trees are followed by pointer doubling or level by level, so the cost is a few dozen passes over the areas.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmtwin.errors import InvariantError
from mmtwin.mm.vmap_tables import (
    AREA_BUSY,
    AREA_FREE,
    AREA_HELD,
    AREA_LAZY,
    AREA_POOL,
    AREA_PRELOAD,
    AREA_UNUSED,
    MAX_VA_SIZE_PAGES,
    NIL,
    RB_BLACK,
    RB_RED,
    TREE_BUSY,
    VM_STRUCT,
    VMAP_AREA,
    VMAP_BLOCK,
    VMAP_CONFIG,
    VMAP_CPU,
    VMAP_FREED,
    VMAP_TREE,
    ZERO_BYTES,
    Vmalloc,
    unbias,
    vmap_nodes,
)
from mmtwin.units import PAGE_SHIFT, PAGE_SIZE

Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

KINDS = ("free", "busy", "lazy", "purge", "local", "pool")
FREE, BUSY, LAZY, PURGE, LOCAL, POOL = range(6)
STATE_OF = {FREE: AREA_FREE, BUSY: AREA_BUSY, LAZY: AREA_LAZY, PURGE: AREA_LAZY, LOCAL: AREA_HELD, POOL: AREA_POOL}
DEEPEST = 128
"""No path of a red-black tree of 2**31 nodes is longer."""


class Listed(NamedTuple):
    """Every area on a list, sorted by list and position.

    :param row: in the table of areas.
    :param head: row of the head of its list: the number of its tree.
    :param kind: FREE to POOL.
    :param node: the vmap node of that list.
    """

    row: Int
    head: Int
    kind: Int
    node: Int


def _first(bad: Bool, message: Any) -> None:
    if bad.any():
        raise InvariantError(message(int(bad.argmax())))


def _column(table: npt.NDArray[np.void], name: str) -> Int:
    column: Int = table[name].astype(np.int64)
    return column


def check_indices(state: Vmalloc) -> None:
    """Checks everything that compiled code uses as an index: after this, tables from outside can at worst give wrong answers or go round in circles.

    :raises InvariantError: naming the first bad one.
    """
    for name, table, dtype in zip(Vmalloc._fields, state, (VMAP_AREA, VM_STRUCT, VMAP_TREE, VMAP_CPU, VMAP_BLOCK, VMAP_FREED, VMAP_CONFIG), strict=True):
        if table.dtype != dtype or table.ndim != 1:
            raise InvariantError(f"{name} has type {table.dtype} and shape {table.shape}")
    if len(state.config) != 1:
        raise InvariantError(f"config has {len(state.config)} rows; expected one")
    config = {name: int(state.config[0][name]) for name in VMAP_CONFIG.names or ()}
    cpus, nodes, version = config["nr_cpus"], config["nr_nodes"], config["version"]
    if cpus < 1 or not 0 <= config["online_cpus"] <= cpus or len(state.cpu) != cpus:
        raise InvariantError(f"config: {config['online_cpus']} of {cpus} CPUs online, {len(state.cpu)} rows of CPUs")
    if nodes not in (1, vmap_nodes(version, config["bits_per_long"], cpus)):
        raise InvariantError(f"config.nr_nodes is {nodes}; expected 1 or {vmap_nodes(version, config['bits_per_long'], cpus)}")
    pool_base = TREE_BUSY + 3 * nodes + 1
    expected = {
        "zone_shift": 16 if nodes > 1 else 0,
        "lazy_tree": TREE_BUSY + nodes,
        "purge_tree": TREE_BUSY + 2 * nodes,
        "local_tree": TREE_BUSY + 3 * nodes,
        "pool_base": pool_base,
        "heads": pool_base + (nodes * MAX_VA_SIZE_PAGES if version >= 609 else 0),
        "block_heads": cpus + 1,
    }
    for name, value in expected.items():
        if config[name] != value:
            raise InvariantError(f"config.{name} is {config[name]}; expected {value}")
    heads, rows, blocks, vms = config["heads"], len(state.area), len(state.block), len(state.vm)
    if len(state.tree) != heads or rows < heads or blocks < cpus + 1 or vms < 1:
        raise InvariantError(f"{len(state.tree)} trees, {rows} areas, {blocks} blocks, {vms} vms; expected at least {heads}, {heads}, {cpus + 1}, 1")
    for name, low, high in (("areas", heads, rows), ("blocks", cpus + 1, blocks), ("vms", 1, vms), ("freed", 0, len(state.freed))):
        if not low <= config[name] <= high:
            raise InvariantError(f"config.{name} is {config[name]}; expected {low} to {high}")
    for name, high in (("free_area", rows), ("free_block", blocks), ("free_vm", vms)):
        if not 0 <= config[name] < high:
            raise InvariantError(f"config.{name} is {config[name]}; the table has {high} rows")
    pages = config["block_pages"]
    if pages < 1 or pages & (pages - 1) or pages > 1024:
        raise InvariantError(f"config.block_pages is {pages}; expected a power of two up to 1024")

    def inside(what: str, table: npt.NDArray[np.void], names: tuple[str, ...], low: int, high: int) -> None:
        for name in names:
            values = table[name]
            bad = (values < low) | (values >= high)
            _first(bad, lambda i, name=name, values=values: f"{what}[{i}].{name} is {values[i]}; expected {low} to {high - 1}")

    inside("area", state.area, ("rb_left", "rb_right", "rb_parent", "next", "prev"), 0, rows)
    inside("area", state.area, ("vm",), 1 - blocks, vms)
    inside("area", state.area, ("rb_color",), 0, 2)
    inside("area", state.area, ("state",), AREA_UNUSED, AREA_PRELOAD + 1)
    inside("tree", state.tree, ("rb_root",), 0, rows)
    inside("cpu", state.cpu, ("ne_fit_preload_node",), 0, rows)
    inside("cpu", state.cpu, ("deferred",), 0, vms)
    inside("vm", state.vm, ("area",), 0, rows)
    inside("vm", state.vm, ("deferred",), 0, vms)
    inside("block", state.block, ("next", "prev", "xa_next", "xa_prev", "purge"), 0, blocks)
    inside("block", state.block, ("area",), 0, rows)
    inside("block", state.block, ("cpu",), 0, cpus)
    inside("block", state.block, ("free", "dirty", "dirty_min", "dirty_max"), 0, pages + 1)
    head = state.area[0]
    if int(head["rb_color"]) != RB_BLACK or int(head["subtree_max_size"]) != ZERO_BYTES:
        raise InvariantError("area[0], the leaf of all trees, is not black, or not 0 bytes")


def listed(state: Vmalloc) -> Listed:
    """All areas on lists, given that `check_indices` found nothing.

    :raises InvariantError: a list is broken, or areas are in a ring without a head.
    """
    config = state.config[0]
    heads, last, nodes = int(config["heads"]), int(config["areas"]), int(config["nr_nodes"])
    states = state.area["state"][:last]
    on = np.isin(states, (AREA_FREE, AREA_BUSY, AREA_LAZY, AREA_POOL))
    on[:heads] = True
    local = int(config["local_tree"])
    if int(state.area["next"][local]) != local or int(state.tree[local]["rb_root"]) or int(state.tree[local]["nr"]):
        raise InvariantError(f"tree {local} is for use within a function and not empty")
    after, before = _column(state.area, "next")[:last], _column(state.area, "prev")[:last]
    row = np.flatnonzero(on)
    for name, there, back in (("next", after, before), ("prev", before, after)):
        to = there[row]
        bad = to >= last
        bad |= ~on[np.where(bad, 0, to)]
        _first(bad, lambda i, name=name, to=to: f"area[{row[i]}].{name} is {to[i]}, which is on no list")
        _first(back[to] != row, lambda i, name=name, to=to: f"area[{row[i]}].{name} is {to[i]}, which does not point back")
    jump = np.arange(last)
    jump[row] = before[row]
    jump[:heads] = np.arange(heads)
    distance = np.zeros(last, dtype=np.int64)
    distance[row] = 1
    distance[:heads] = 0
    for _ in range(max(last, 2).bit_length() + 1):
        distance += distance[jump]
        jump = jump[jump]
    row = row[row >= heads]
    _first(jump[row] >= heads, lambda i: f"area[{row[i]}] is on a list without a head")
    head = jump[row]
    order = np.lexsort((distance[row], head))
    row, head = row[order], head[order]
    kind = np.full(len(head), POOL)
    node = (head - int(config["pool_base"])) // MAX_VA_SIZE_PAGES
    for k, first in ((LOCAL, local), (PURGE, local - nodes), (LAZY, local - 2 * nodes), (BUSY, TREE_BUSY), (FREE, 0)):
        inside = head < first + (1 if k in (LOCAL, FREE) else nodes)
        kind[inside], node[inside] = k, head[inside] - first
    return Listed(row, head, kind, node)


def _where(state: Vmalloc, row: int) -> str:
    entry = state.area[row]
    return f"area[{row}] ({unbias(entry['va_start']):#x}-{unbias(entry['va_end']):#x})"


def _check_areas(state: Vmalloc, found: Listed) -> None:
    config = state.config[0]
    start, end = _column(state.area, "va_start")[found.row], _column(state.area, "va_end")[found.row]
    states = state.area["state"][found.row]
    lowest, highest = ZERO_BYTES + 1, int(config["ulong_max"])

    def named(what: str) -> Callable[[int], str]:
        return lambda i: f"{_where(state, int(found.row[i]))}, on a {KINDS[found.kind[i]]} list: {what}"

    _first((start < lowest) | (end > highest) | (start >= end), named("not between 1 and ULONG_MAX, or no bytes"))
    odd = ((start & (PAGE_SIZE - 1)) != 0) & (start != lowest) | ((end & (PAGE_SIZE - 1)) != 0) & (end != highest)
    _first(odd, named("not whole pages"))
    _first(states != np.array([STATE_OF[k] for k in range(6)])[found.kind], lambda i: named(f"its state is {states[i]}")(i))
    same = found.head[1:] == found.head[:-1]
    tree = found.kind[1:] != POOL
    _first(same & tree & (end[:-1] > start[1:]), lambda i: named(f"in front of {_where(state, int(found.row[i + 1]))}")(i))
    merges = (found.kind[1:] == FREE) | ((found.kind[1:] == LAZY) & (int(config["version"]) < 609))
    _first(same & merges & (end[:-1] == start[1:]), named("not joined with the one behind it"))
    count = np.bincount(found.head, minlength=len(state.tree))
    _first(count != state.tree["nr"], lambda t: f"tree[{t}].nr is {state.tree['nr'][t]}; there are {count[t]} areas on its list")
    lazy = (found.kind == LAZY) | (found.kind == PURGE)
    pages = int(((end - start)[lazy] >> PAGE_SHIFT).sum())
    if pages != int(config["lazy_nr"]):
        raise InvariantError(f"config.lazy_nr is {int(config['lazy_nr'])}; lazily freed areas have {pages} pages")
    if int(config["version"]) < 609:
        return
    nodes, shift = int(config["nr_nodes"]), int(config["zone_shift"])
    place = ((start >> shift) + np.int64((1 << (63 - shift)) % nodes if shift else 0)) % nodes
    asked = (_column(state.area, "flags")[found.row] >> 8) - 1
    asked = np.where((asked >= 0) & (asked < nodes), asked, place)
    _first((found.kind == BUSY) & (found.node != place), lambda i: named(f"in node {found.node[i]}, begins in {place[i]}")(i))
    _first(lazy & (found.node != asked), lambda i: named(f"in node {found.node[i]}, belongs to {asked[i]}")(i))
    pool = int(config["pool_base"]) + asked * MAX_VA_SIZE_PAGES + ((end - start - 1) >> PAGE_SHIFT)
    _first((found.kind == POOL) & (found.head != pool), lambda i: named("not the pool of its node and size")(i))


def _check_trees(state: Vmalloc, found: Listed) -> None:
    """Order, parents, colours, black heights, maxima: level by level, from the bottom up."""
    keep = np.isin(found.kind, (FREE, BUSY, LAZY))
    row, head = found.row[keep], found.head[keep]
    area = state.area
    of = np.zeros(len(area), dtype=np.int64)
    of[row] = head + 1
    left, right, parent = (_column(area, name) for name in ("rb_left", "rb_right", "rb_parent"))
    for name, child in (("rb_left", left[row]), ("rb_right", right[row])):
        bad = (child != NIL) & ((of[child] != head + 1) | (parent[child] != row))
        _first(bad, lambda i, name=name, child=child: f"{_where(state, int(row[i]))}: its {name} {child[i]} is not of its tree, or has another parent")
    up = parent[row]
    roots = state.tree["rb_root"][head]
    bad = np.where(up == NIL, roots != row, (left[up] != row) == (right[up] != row))
    _first(bad, lambda i: f"{_where(state, int(row[i]))}: its parent {up[i]} has it as no child or as both, or it is not the root that it seems to be")
    color = area["rb_color"]
    _first((up == NIL) & (color[row] != RB_BLACK), lambda i: f"{_where(state, int(row[i]))}: a red root")
    _first((color[row] == RB_RED) & (color[up] == RB_RED), lambda i: f"{_where(state, int(row[i]))}: red below red")
    heads = np.arange(len(state.tree))
    empty = np.bincount(head, minlength=len(heads)) == 0
    _first(empty & (state.tree["rb_root"] != NIL), lambda t: f"tree[{t}] has a root and no areas")
    levels, level = [], row[up == NIL]
    while len(level):
        levels.append(level)
        if len(levels) > DEEPEST:
            raise InvariantError(f"tree[{int(of[level[0]]) - 1}] is deeper than {DEEPEST}")
        below = np.concatenate([left[level], right[level]])
        level = below[below != NIL]
    reached = sum(len(level) for level in levels)
    if reached != len(row):
        raise InvariantError(f"{reached} of {len(row)} areas are reached from the roots of their trees")
    start, end = _column(area, "va_start"), _column(area, "va_end")
    low, high, black = start.copy(), end.copy(), np.zeros(len(area), dtype=np.int64)
    largest = np.full(len(area), ZERO_BYTES)
    for level in reversed(levels):
        a, b = left[level], right[level]
        _first((a != NIL) & (high[a] > start[level]), lambda i, level=level: f"{_where(state, int(level[i]))}: its left subtree reaches above it")
        _first((b != NIL) & (low[b] < end[level]), lambda i, level=level: f"{_where(state, int(level[i]))}: its right subtree reaches below it")
        _first(black[a] != black[b], lambda i, level=level: f"{_where(state, int(level[i]))}: black heights differ")
        low[level], high[level] = np.where(a != NIL, low[a], start[level]), np.where(b != NIL, high[b], end[level])
        black[level] = black[a] + (color[level] == RB_BLACK)
        size = end[level] - start[level] + ZERO_BYTES  # of a free area it may be above 2**63: both wrap, as the kernel's unsigned numbers do not have to
        largest[level] = np.maximum(size, np.maximum(largest[a], largest[b]))
    free = row[head == 0]
    wrong = area["subtree_max_size"][free] != largest[free]
    _first(
        wrong, lambda i: f"{_where(state, int(free[i]))}: subtree_max_size is {unbias(area['subtree_max_size'][free[i]]):#x}, not {unbias(largest[free[i]]):#x}"
    )


def _check_space(state: Vmalloc, found: Listed) -> None:
    """Every byte from 1 to ULONG_MAX is in one area."""
    start, end = _column(state.area, "va_start")[found.row], _column(state.area, "va_end")[found.row]
    order = np.argsort(start, kind="stable")
    start, end, row = start[order], end[order], found.row[order]
    edges = np.append(start, int(state.config[0]["ulong_max"]))
    ends = np.concatenate([[ZERO_BYTES + 1], end])
    bad = edges != ends

    def message(i: int) -> str:
        behind = "ULONG_MAX" if i == len(row) else _where(state, int(row[i]))
        before = "1" if i == 0 else _where(state, int(row[i - 1]))
        return f"{behind} does not follow {before}: {'a gap' if edges[i] > ends[i] else 'an overlap'}"

    _first(bad, message)


def _chain(table: npt.NDArray[np.void], name: str, first: int, what: str) -> list[int]:
    """The rows of a chain of unused ones."""
    rows: list[int] = []
    links = table[name].tolist()
    while first != NIL:
        rows.append(first)
        if len(rows) > len(table):
            raise InvariantError(f"the chain of unused {what} is a ring")
        first = links[first]
    return rows


def _check_rows(state: Vmalloc, allow_in_flight: bool) -> None:
    """Who uses which row: unused ones, CPUs' spares, vms."""
    config = state.config[0]
    heads, last = int(config["heads"]), int(config["areas"])
    states = state.area["state"][:last]
    _first(states[:heads] != AREA_UNUSED, lambda i: f"area[{i}].state is {states[i]}; it is the head of a list")
    unused = _chain(state.area, "next", int(config["free_area"]), "areas")
    expected = np.flatnonzero(states == AREA_UNUSED)
    if sorted(unused) != expected[expected >= heads].tolist():
        raise InvariantError(f"{len(unused)} areas are in the chain of unused ones; {int((expected >= heads).sum())} are marked so")
    if int(config["areas_in_use"]) != last - heads - len(unused):
        raise InvariantError(f"config.areas_in_use is {int(config['areas_in_use'])}; expected {last - heads - len(unused)}")
    held = np.flatnonzero(states == AREA_HELD)
    if len(held) and not allow_in_flight:
        raise InvariantError(f"area[{held[0]}] is held by a request")
    spares = state.cpu["ne_fit_preload_node"]
    spares = np.sort(spares[spares != NIL])
    if spares.tolist() != np.flatnonzero(states == AREA_PRELOAD).tolist():
        raise InvariantError(f"the CPUs' spares are {spares.tolist()}; {np.flatnonzero(states == AREA_PRELOAD).tolist()} are marked so")
    live = np.flatnonzero(state.vm["live"][: int(config["vms"])] == 1)
    unused_vms = _chain(state.vm, "deferred", int(config["free_vm"]), "vms")
    if int(config["vms_in_use"]) != len(live) or len(live) + len(unused_vms) != int(config["vms"]) - 1 or (state.vm["live"][unused_vms] != 0).any():
        raise InvariantError(f"config.vms_in_use is {int(config['vms_in_use'])}; {len(live)} are live, {len(unused_vms)} unused of {int(config['vms']) - 1}")
    area = state.vm["area"][live]
    bound = area != NIL
    _first(bound & (state.area["vm"][area] != live), lambda i: f"vm[{live[i]}].area is {area[i]}, whose vm is {state.area['vm'][area[i]]}")
    _first(bound & (state.area["state"][area] != AREA_BUSY), lambda i: f"vm[{live[i]}].area is {area[i]}, which is not busy")
    of = _column(state.area, "vm")[:last]
    busy = np.flatnonzero((states == AREA_BUSY) & (of > 0))
    _first(state.vm["area"][of[busy]] != busy, lambda i: f"{_where(state, int(busy[i]))}: its vm {of[busy[i]]} has another area")


def _check_blocks(state: Vmalloc) -> None:
    config = state.config[0]
    pages, everyone = int(config["block_pages"]), int(config["block_heads"]) - 1
    unused = _chain(state.block, "next", int(config["free_block"]), "blocks")
    count = int(config["blocks"]) - int(config["block_heads"]) - len(unused)
    if int(config["blocks_in_use"]) != count:
        raise InvariantError(f"config.blocks_in_use is {int(config['blocks_in_use'])}; expected {count}")

    def ring(head: int, after: str, before: str) -> list[int]:
        rows = list[int]()
        at, last = int(state.block[head][after]), head
        while True:
            if int(state.block[at][before]) != last:
                raise InvariantError(f"block[{at}].{before} is {int(state.block[at][before])}; it comes after {last}")
            if at == head:
                return rows
            rows.append(at)
            if len(rows) > count:
                raise InvariantError(f"the list of blocks of head {head} does not end")
            last, at = at, int(state.block[at][after])

    blocks = ring(everyone, "xa_next", "xa_prev")
    if len(blocks) != count or set(blocks) & set(unused):
        raise InvariantError(f"{len(blocks)} blocks are listed by address; {count} are in use")
    queued = {block: cpu for cpu in range(int(config["nr_cpus"])) for block in ring(cpu, "next", "prev")}
    lowest = ZERO_BYTES
    for block in blocks:
        entry, row = state.block[block], int(state.block[block]["area"])
        area, what = state.area[row], f"block[{block}]"
        if int(area["vm"]) != -block or int(area["state"]) != AREA_BUSY or int(area["va_end"]) - int(area["va_start"]) != pages << PAGE_SHIFT:
            raise InvariantError(f"{what}: {_where(state, row)} is not its area")
        if int(area["va_start"]) < lowest:
            raise InvariantError(f"{what} is not in the order of addresses")
        lowest = int(area["va_end"])
        free, dirty = int(entry["free"]), int(entry["dirty"])
        if free + dirty > pages or dirty == pages:
            raise InvariantError(f"{what}: {free} pages free and {dirty} dirty of {pages}")
        state_of = 1 if block in queued else 2
        if int(entry["state"]) != state_of or (free == 0) != (state_of == 2) or queued.get(block, int(entry["cpu"])) != int(entry["cpu"]):
            raise InvariantError(f"{what}: state {int(entry['state'])}, CPU {int(entry['cpu'])}, {free} pages free; on the queue of CPU {queued.get(block)}")
    if len(queued) != sum(int(state.block[block]["state"]) == 1 for block in blocks):
        raise InvariantError("a block is on a queue and not in use")


def validate_vmalloc(state: Vmalloc, allow_in_flight: bool = False, whole_space: bool = True) -> None:
    """Checks that the tables are consistent, as the kernel's own structures always are between two sections of its requests.

    Checked, in this order: indices; rows in nobody's use, spares and vms; lists; areas (bounds, places, neighbours joined, counters, nodes); trees (parents, order, colours,
    black heights, maxima); that the areas fill the address space; vm_map_ram's blocks.

    :param allow_in_flight: accept areas that a request holds, which are in no list.
    :param whole_space: free, busy, lazy and pool areas fill the space from 1 to ULONG_MAX.
    :raises InvariantError: naming the first broken invariant, with rows and addresses.
    """
    check_indices(state)
    _check_rows(state, allow_in_flight)
    found = listed(state)
    _check_areas(state, found)
    _check_trees(state, found)
    if whole_space and not allow_in_flight:
        _check_space(state, found)
    _check_blocks(state)


def digest(state: Vmalloc) -> str:
    """SHA-256 of everything the tables say, whatever rows it is kept in: two states with the same digest answer every request alike."""
    check_indices(state)
    found = listed(state)
    area = state.area[found.row]
    result = hashlib.sha256()
    up = state.area["va_start"][area["rb_parent"]]
    tree = np.isin(found.kind, (FREE, BUSY, LAZY))
    columns = [found.head, area["va_start"], area["va_end"], area["flags"] * (found.kind != FREE), area["object"]]
    columns += [
        np.where(tree & (area["rb_parent"] != NIL), up, 0),
        np.where(tree, area["rb_color"], 0),
        np.where(found.kind == FREE, area["subtree_max_size"], 0),
    ]
    for column in columns:
        result.update(np.ascontiguousarray(column, dtype=np.int64).tobytes())
    vm = state.vm[np.maximum(area["vm"], 0)]
    for name in ("addr", "size", "flags", "pages", "nr_pages", "phys_addr", "caller", "requested_size", "object", "page_order"):
        result.update(np.ascontiguousarray(np.where((area["vm"] > 0) & (found.kind == BUSY), vm[name], 0), dtype=np.int64).tobytes())
    spares = state.cpu["ne_fit_preload_node"]
    result.update(np.ascontiguousarray(np.where(spares != NIL, state.area["object"][spares] + 1, 0)).tobytes())
    for cpu in range(int(state.config[0]["nr_cpus"]) + 1):
        after = "xa_next" if cpu == int(state.config[0]["nr_cpus"]) else "next"
        at = int(state.block[cpu][after])
        for _ in range(len(state.block)):
            if at == cpu:
                break
            entry = state.block[at]
            result.update(
                repr(
                    (cpu, int(state.area[int(entry["area"])]["va_start"]), *(int(entry[n]) for n in ("free", "dirty", "dirty_min", "dirty_max", "object")))
                ).encode()
            )
            at = int(entry[after])
    result.update(repr([int(state.config[0][name]) for name in ("version", "lazy_nr", "nr_vmalloc_pages", "online_cpus", "drain")]).encode())
    return result.hexdigest()
