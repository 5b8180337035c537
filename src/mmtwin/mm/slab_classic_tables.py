"""The state of the classic SLAB allocator: flat tables whose columns are named after ``struct kmem_cache``, ``array_cache``, ``kmem_cache_node`` and ``slab``.

An object is known by its physical address (``pfn << 12 | offset``); its virtual address is that plus `SLAB_CONFIG.page_offset`. A page frame finds its
slab through `ClassicSlab.frame`. Each slab has an array of object numbers in `ClassicSlab.indices`: those from ``active`` on are free, in the order in which
they will be taken. (6.1 has just this array. The chains of 2.6.24 and 3.6 are stacks as well: the array says the same.)
"""

from __future__ import annotations

import mmap
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MAX_CACHES = 512
LISTS = 3
FULL, PARTIAL, FREE = 0, 1, 2
"""The node's lists of cache c: their heads are rows c * LISTS + FULL, PARTIAL and FREE of the slab table; a row is never 0 for a slab."""
HEADS = MAX_CACHES * LISTS
END = -1
"""No row."""
MASK = (1 << 64) - 1

V2_6_24, V3_6, V6_1 = 0, 1, 2
VARIANT_NUMBERS = {"2.6.24": V2_6_24, "3.6": V3_6, "6.1": V6_1}

SLAB_UNUSED, SLAB_LIVE, SLAB_DISCARDED = 0, 1, 2
"""States of a slab's row. The pages of a discarded one (SLAB_TYPESAFE_BY_RCU) come back after a grace period."""

CACHE = np.dtype(
    [
        ("flags", "i8"),  # SLAB_*
        ("size", "i4"),  # between objects
        ("object_size", "i4"),
        ("num", "i4"),  # objects per slab
        ("order", "i4"),
        ("colour", "i4"),
        ("colour_off", "i4"),
        ("header", "i4"),  # management data before the first object (older than 6.1)
        ("management", "i4"),  # slab_classic_geometry: ON_SLAB, OFF_SLAB, IN_OBJECT
        ("management_size", "i4"),
        ("management_cache", "i4"),  # where management data off the slab comes from, END if nowhere
        ("allocflags", "i4"),
        ("limit", "i4"),
        ("batchcount", "i4"),
        ("shared", "i4"),
        ("align", "i4"),
        ("live", "i4"),  # 1: the row is in use
        ("colour_next", "i4"),  # from here on struct kmem_cache_node
        ("free_objects", "i4"),
        ("free_limit", "i4"),
        ("free_touched", "i4"),
        ("total_slabs", "i4"),
        ("free_slabs", "i4"),
        ("unused_slab", "i4"),  # first row of destroyed slabs to use again, END if there is none (chained by `next`)
        ("ctor", "i4"),
        ("next_reap", "i8"),  # jiffies at which the node's lists are next looked at
    ]
)
ARRAY = np.dtype(
    [
        ("avail", "i4"),
        ("limit", "i4"),
        ("batchcount", "i4"),
        ("touched", "i4"),
        ("entry", "i8"),  # where its entries begin in `ClassicSlab.entry`
    ]
)
"""``struct array_cache``: CPU p of cache c is row c * (nr_cpus + 1) + p, the shared array is row c * (nr_cpus + 1) + nr_cpus (limit 0: there is none)."""
SLAB = np.dtype(
    [
        ("next", "i4"),
        ("prev", "i4"),
        ("pfn", "i8"),
        ("index", "i8"),  # where its object numbers begin in `ClassicSlab.indices`
        ("management", "i8"),  # physical address of management data off the slab, END if there is none
        ("first", "i4"),  # offset of the first object in the slab: colour and header
        ("cache", "i4"),
        ("active", "i4"),  # objects in use or in an array
        ("freelist", "i4"),  # IN_OBJECT: the free object that holds the numbers; END if the slab is full
        ("order", "i4"),
        ("state", "i4"),
    ]
)
SLAB_CONFIG = np.dtype(
    [
        ("variant", "i8"),
        ("nr_cpus", "i8"),
        ("caches", "i8"),
        ("slabs", "i8"),  # rows of `SLAB` ever used
        ("indices", "i8"),  # entries of `indices` ever used
        ("entries", "i8"),
        ("rcu", "i8"),  # first discarded slab that waits for its grace period (chained by `next`), END
        ("rcu_last", "i8"),
        ("hz", "i8"),
        ("numa", "i8"),  # 6.1 with CONFIG_NUMA: a slab is first tried from this node without reclaim
        ("page_offset", "i8"),
        ("pages", "i8"),  # page frames of all slabs
    ]
)
MAX_LIMIT = 1 << 14
"""Arrays larger than this are refused (slabinfo could ask for any size)."""


class ClassicSlab(NamedTuple):
    """The SLAB allocator of one machine.

    :param cache: `CACHE`, MAX_CACHES rows.
    :param array: `ARRAY`.
    :param slab: `SLAB`; the first HEADS rows are list heads. Grows (`reserve`).
    :param indices: object numbers of every slab. Grows.
    :param used: 1 where the object of that number (same places as `indices`) is handed out.
    :param entry: the arrays' entries: physical addresses.
    :param frame: the slab (its row) of each page frame, 0 for none.
    :param config: `SLAB_CONFIG`, one row.
    :param scratch: one number that a function hands to its caller besides its result.
    """

    cache: npt.NDArray[np.void]
    array: npt.NDArray[np.void]
    slab: npt.NDArray[np.void]
    indices: npt.NDArray[np.int16]
    used: npt.NDArray[np.int8]
    entry: npt.NDArray[np.int64]
    frame: npt.NDArray[np.int32]
    config: npt.NDArray[np.void]
    scratch: npt.NDArray[np.int64]


def _sparse(rows: int) -> npt.NDArray[np.int32]:
    """Zeros that take memory only where they are written."""
    if rows < 1 << 20:
        return np.zeros(rows, dtype=np.int32)
    memory = mmap.mmap(-1, rows * 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype=np.int32)


def new_slab(nr_frames: int, nr_cpus: int, variant: str = "6.1", page_offset: int = 0, numa: bool = True) -> ClassicSlab:
    """Empty tables: no cache, no slab.

    :param nr_frames: page frames of the machine.
    :param variant: "2.6.24", "3.6" or "6.1".
    :param page_offset: virtual address of page frame 0.
    """
    slab = np.zeros(HEADS + 1024, dtype=SLAB)
    slab["next"][:HEADS] = slab["prev"][:HEADS] = np.arange(HEADS, dtype=np.int32)
    config = np.zeros(1, dtype=SLAB_CONFIG)
    config["variant"], config["nr_cpus"], config["slabs"] = VARIANT_NUMBERS[variant], nr_cpus, HEADS
    config["rcu"] = config["rcu_last"] = END
    config["numa"], config["hz"] = int(numa), 250
    config["page_offset"] = np.array(page_offset & MASK, dtype=np.uint64).view(np.int64)
    return ClassicSlab(
        cache=np.zeros(MAX_CACHES, dtype=CACHE),
        array=np.zeros(MAX_CACHES * (nr_cpus + 1), dtype=ARRAY),
        slab=slab,
        indices=np.zeros(1 << 14, dtype=np.int16),
        used=np.zeros(1 << 14, dtype=np.int8),
        entry=np.zeros(0, dtype=np.int64),
        frame=_sparse(nr_frames),
        config=config,
        scratch=np.zeros(1, dtype=np.int64),
    )


def reserve(state: ClassicSlab, slabs: int, indices: int) -> ClassicSlab:
    """`state` with room for that many more slabs and objects: itself if it has it, else with larger tables (the old ones are then out of date)."""
    config = state.config[0]
    if int(config["slabs"]) + slabs > len(state.slab):
        more = np.zeros(max(slabs, len(state.slab)), dtype=SLAB)
        state = state._replace(slab=np.concatenate([state.slab, more]))
    if int(config["indices"]) + indices > len(state.indices):
        room = max(indices, len(state.indices))
        numbers = np.concatenate([state.indices, np.zeros(room, dtype=np.int16)])
        state = state._replace(indices=numbers, used=np.concatenate([state.used, np.zeros(room, dtype=np.int8)]))
    return state


def add_arrays(state: ClassicSlab, cache: int, limit: int, batchcount: int, shared: int) -> ClassicSlab:
    """``do_tune_cpucache``: gives a cache empty arrays for every CPU and, if `shared`, one for the node. What the old ones held is forgotten: drain them first.

    :raises ValueError: impossible limits.
    """
    if not 1 <= batchcount <= limit <= MAX_LIMIT or shared < 0 or shared * batchcount > MAX_LIMIT:
        raise ValueError(f"limit {limit}, batchcount {batchcount}, shared {shared}: 1 <= batchcount <= limit <= {MAX_LIMIT} and shared >= 0 are needed")
    config = state.config[0]
    nr_cpus = int(config["nr_cpus"])
    sizes = [limit] * nr_cpus + [shared * batchcount]
    at = len(state.entry)
    for i, size in enumerate(sizes):
        batch = batchcount if i < nr_cpus else 0xBAADF00D - (1 << 32)
        state.array[cache * (nr_cpus + 1) + i] = (0, size, batch, 0, at)
        at += size
    row = state.cache[cache]
    row["limit"], row["batchcount"], row["shared"] = limit, batchcount, shared
    return state._replace(entry=np.concatenate([state.entry, np.zeros(sum(sizes), dtype=np.int64)]))


def copy_slab(state: ClassicSlab) -> ClassicSlab:
    """An independent copy."""
    return ClassicSlab._make(table.copy() for table in state)
