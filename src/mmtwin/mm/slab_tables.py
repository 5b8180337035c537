"""The state of SLUB: flat tables whose columns are named after ``struct kmem_cache``, ``kmem_cache_cpu``, ``kmem_cache_node`` and ``struct slab``.

An object is known by its slab (a row of `SLAB`) and its slot (its number in the slab); its address is
``page_address(slab.pfn) + slot * size + red_left_pad``. Free lists chain slots: `Slub.slot` holds for each slot the next free one, the end of a
list, or that the object is allocated. A page frame finds its slab through the page table: PG_SLAB is set and `next` is the slab's row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MAX_CACHES = 1024
"""Rows 0 to 1023 of the slab table are list heads: row c is the head of cache c's node partial list."""
END = -1
"""End of a free list; also: no list, no slab."""
ALLOCATED = -2
"""In `Slub.slot`: this object is handed out."""
MAX_OBJS_PER_PAGE = 32767

MASK = (1 << 64) - 1

SLAB_UNUSED, SLAB_LIVE, SLAB_DISCARDED = 0, 1, 2
"""States of a slab's row. A discarded slab's pages go to the page allocator at once, or after an RCU grace period (SLAB_TYPESAFE_BY_RCU)."""

KMEM_CACHE = np.dtype(
    [
        ("flags", "i8"),  # SLAB_*
        ("size", "i4"),  # of a slot, with metadata
        ("object_size", "i4"),
        ("inuse", "i4"),  # offset to metadata
        ("offset", "i4"),  # of the free pointer
        ("align", "i4"),
        ("red_left_pad", "i4"),
        ("order", "i4"),  # oo: the order tried first, and its objects
        ("objects", "i4"),
        ("min_order", "i4"),  # min: what is fallen back to
        ("min_objects", "i4"),
        ("allocflags", "i4"),
        ("min_partial", "i4"),
        ("cpu_partial", "i4"),  # in objects
        ("cpu_partial_slabs", "i4"),
        ("refcount", "i4"),
        ("usersize", "i4"),
        ("ctor", "i4"),  # 1: has a constructor
        ("nr_partial", "i4"),  # kmem_cache_node: slabs on the partial list
        ("nr_slabs", "i4"),
        ("live", "i4"),  # 1: the row is in use
        ("total_objects", "i8"),
        ("random_seq", "i8"),  # where its permutation begins in `Slub.random`, -1 without SLAB_FREELIST_RANDOM
    ]
)
KMEM_CACHE_CPU = np.dtype(
    [
        ("slab", "i4"),  # row of the CPU slab, END if there is none
        ("freelist", "i4"),  # slot in that slab, END if empty
        ("partial", "i4"),  # first slab of the CPU's partial list, END if empty
        ("unused", "i4"),
    ]
)
"""Row cache * nr_cpus + cpu."""
SLAB = np.dtype(
    [
        ("next", "i4"),  # on the node's partial list (a circular list, head is row `cache`), or on a CPU's (singly linked, END ends it)
        ("prev", "i4"),
        ("pfn", "i8"),
        ("slots", "i8"),  # where its slots begin in `Slub.slot`
        ("cache", "i4"),
        ("freelist", "i4"),  # first free slot of the slab's own list
        ("inuse", "i4"),
        ("objects", "i4"),
        ("slabs", "i4"),  # on a CPU's partial list: how many slabs the list had when this one was added, itself included
        ("frozen", "i1"),
        ("order", "i1"),
        ("state", "i1"),
        ("on_list", "i1"),  # 1: on the node's partial list, 2: on a CPU's
    ]
)
SLUB_CONFIG = np.dtype(
    [
        ("nr_cpus", "i8"),
        ("caches", "i8"),  # rows of `KMEM_CACHE` in use (also destroyed ones)
        ("slabs", "i8"),  # rows of `SLAB` ever used
        ("slots", "i8"),  # slots ever used
        ("random_state", "i8"),  # the machine's own random numbers
        ("page_offset", "i8"),  # where the direct map begins: the address of page frame 0, as a signed number
        ("pages", "i8"),  # page frames of all slabs
    ]
)
SLOT_CLASSES = 16
"""A slab's slots are a run of 2^k; `Slub.free_rows[k]` is the first unused row that has such a run (chained by `next`), END if there is none."""
KMALLOC_TYPES, KMALLOC_INDEXES = 4, 14
"""``enum kmalloc_cache_type`` (NORMAL, CGROUP, RECLAIM, DMA) and the size indexes of ``kmalloc_caches``."""


class Slub(NamedTuple):
    """The slab allocator of one machine.

    :param cache: `KMEM_CACHE`, MAX_CACHES rows.
    :param cpu: `KMEM_CACHE_CPU`.
    :param slab: `SLAB`; the first MAX_CACHES rows are list heads. Grows (`reserve`).
    :param slot: next free slot of each slot, END or ALLOCATED. Grows.
    :param random: the caches' permutations (``random_seq``), one behind the other.
    :param free_rows: rows to use again, by the number of their slots; see SLOT_CLASSES.
    :param kmalloc: ``kmalloc_caches``: the cache of type t and index i at t * KMALLOC_INDEXES + i, -1 if there is none.
    :param config: `SLUB_CONFIG`, one row.
    """

    cache: npt.NDArray[np.void]
    cpu: npt.NDArray[np.void]
    slab: npt.NDArray[np.void]
    slot: npt.NDArray[np.int16]
    random: npt.NDArray[np.int32]
    free_rows: npt.NDArray[np.int64]
    kmalloc: npt.NDArray[np.int64]
    config: npt.NDArray[np.void]


def new_slub(nr_cpus: int, page_offset: int, slabs: int = 1024, slots: int = 1 << 16) -> Slub:
    """Empty tables with room for `slabs` slabs and `slots` objects."""
    slab = np.zeros(MAX_CACHES + slabs, dtype=SLAB)
    heads = np.arange(MAX_CACHES, dtype=np.int32)
    slab["next"][:MAX_CACHES] = slab["prev"][:MAX_CACHES] = heads
    cpu = np.zeros(MAX_CACHES * nr_cpus, dtype=KMEM_CACHE_CPU)
    cpu["slab"] = cpu["freelist"] = cpu["partial"] = END
    config = np.zeros(1, dtype=SLUB_CONFIG)
    config["nr_cpus"], config["slabs"] = nr_cpus, MAX_CACHES
    config["page_offset"] = np.array(page_offset & MASK, dtype=np.uint64).view(np.int64)
    config["random_state"] = 1
    return Slub(
        cache=np.zeros(MAX_CACHES, dtype=KMEM_CACHE),
        cpu=cpu,
        slab=slab,
        slot=np.full(slots, ALLOCATED, dtype=np.int16),
        random=np.zeros(0, dtype=np.int32),
        free_rows=np.full(SLOT_CLASSES, END, dtype=np.int64),
        kmalloc=np.full(KMALLOC_TYPES * KMALLOC_INDEXES, -1, dtype=np.int64),
        config=config,
    )


def reserve(state: Slub, slabs: int, slots: int) -> Slub:
    """`state` with room for that many more slabs and slots: itself if it has it, else with larger tables (the old ones are then out of date)."""
    config = state.config[0]
    if int(config["slabs"]) + slabs > len(state.slab):
        more = np.zeros(max(slabs, len(state.slab)), dtype=SLAB)
        state = state._replace(slab=np.concatenate([state.slab, more]))
    if int(config["slots"]) + slots > len(state.slot):
        room = np.full(max(slots, len(state.slot)), ALLOCATED, dtype=np.int16)
        state = state._replace(slot=np.concatenate([state.slot, room]))
    return state


def copy_slub(state: Slub) -> Slub:
    """An independent copy."""
    return Slub._make(table.copy() for table in state)
