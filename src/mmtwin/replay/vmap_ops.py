"""What a replay of virtual areas works on: its operations, made of a recording's events, and what it carries from one to the next."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin._jit import slow
from mmtwin.mm.vmap_tables import NIL, Vmalloc
from mmtwin.recording.vmaps import VMAP_KINDS

(
    K_TRACE_ALLOC, K_TRACE_FREE, K_TRACE_PURGE, K_REQUEST, K_OFFER, K_SEARCH, K_POOL_TAKE, K_BUSY, K_RESULT, K_UNLINK, K_LAZY, K_DETACH, K_MERGE, K_DECAY,
    K_POOL_OUT, K_POOL_BACK, K_PURGE_NODE, K_POOL_ADD, K_LAZY_SUB, K_RECLAIM, K_PERCPU, K_PERCPU_SEARCH, K_RAM, K_RAM_RESULT, K_UNRAM, K_BLOCK_TAKE, K_BLOCK_FREE,
    K_BLOCK_PURGE, K_BLOCK_FLUSH,
) = range(29)  # fmt: skip
"""Operations: the events' kinds, numbered as in `mmtwin.recording.vmaps.VMAP_KINDS`."""

VMAP_OP = np.dtype(
    [
        ("event", "i8"),  # row of the recording
        ("ptr", "i8"),  # biased where it is an address
        ("end", "i8"),  # biased
        ("size", "i8"), ("align", "i8"), ("arg", "i8"),
        ("context", "i4"), ("node", "i4"),
        ("kind", "i2"), ("cpu", "i2"),
    ],
    align=True,
)  # fmt: skip
VMAP_CONTEXT = np.dtype(
    [
        ("size", "i8"), ("align", "i8"), ("vstart", "i8"), ("vend", "i8"), ("flags", "i8"),  # what alloc_vmap_area was asked for
        ("asking", "i8"),  # 1: in alloc_vmap_area, 2: in pcpu_get_vm_areas
        ("address", "i8"),  # what the twin found, or OVERFLOW
        ("row", "i8"),  # the area from a pool, or per-CPU area, that the twin found
        ("mark", "i8"),  # whose node asked
        ("pooled", "i8"),  # 1: the twin expects the kernel to look into a pool
        ("freed", "i8"),  # area on its way from the busy to the lazy tree
        ("purging", "i8"),  # node whose areas are being purged, -1 for none
        ("order", "i8"),  # of vm_map_ram's piece, -1: not in it
        ("piece", "i8"), ("cut", "i8"),  # its address, and whether there is one
        ("block_area", "i8"),  # area of a new block that is not on its queue yet
        ("returned", "i8"), ("returned_order", "i8"),  # piece that vm_unmap_ram is given, order -1: not in it
        ("cleared", "i8"),  # 1: its lock is taken once more before, for the bitmap (6.12)
    ]
)  # fmt: skip
"""What is going on in one task."""

VMAP_COUNTERS = (
    "vmap_allocs", "vmap_allocs_equal", "vmap_failed", "vmap_failed_equal", "vmap_frees", "vmap_unknown_frees", "vmap_pieces", "vmap_pieces_equal",
    "vmap_merges", "vmap_merges_equal", "vmap_purges", "vmap_purged", "vmap_purged_equal", "vmap_blocks", "vmap_blocks_equal", "vmap_percpu_areas", "vmap_migrated",
    "vmap_pool_paths", "vmap_unplaced", "vmap_spares_missing",
)  # fmt: skip
(
    V_ALLOCS, V_EQUAL, V_FAILED, V_FAILED_EQUAL, V_FREES, V_UNKNOWN, V_PIECES, V_PIECES_EQUAL, V_MERGES, V_MERGES_EQUAL, V_PURGES, V_PURGED, V_PURGED_EQUAL,
    V_BLOCKS, V_BLOCKS_EQUAL, V_PERCPU, V_MIGRATED, V_PATHS, V_UNPLACED, V_SPARES,
) = range(len(VMAP_COUNTERS))  # fmt: skip

VMAP_DIFFERENCE = np.dtype([("event", "i8"), ("expected", "i8"), ("predicted", "i8"), ("size", "i8"), ("align", "i8"), ("cpu", "i8"), ("what", "i8")])
D_AREA, D_FREE, D_PIECE, D_MERGE, D_BLOCK, D_FAILED = range(6)
WHATS = ("virtual area", "freed area", "vm_map_ram piece", "purged area", "vm_map_ram block", "refused area")
KEPT = 100
NOTHING = -(1 << 62)
"""No address."""
NODES = 609
"""Vmap nodes and pools came with Linux 6.9."""
ERRORS = 4095
"""Pointers of the last page are error numbers (MAX_ERRNO)."""
SIGN = -(1 << 63)


class Vmaps(NamedTuple):
    """What the loop carries.

    :param local: for each node the chain of areas that a purge gives back to the free tree, last first (linked by `next`).
    :param hidden: for each node the row of the pool that a purge has taken away for the moment, `NIL` for none.
    :param percpu: for calls of pcpu_get_vm_areas: offset, size, row, and its two numbers of progress, in arrays of their own.
    :param purged: areas that the purge at hand has taken away.
    """

    counters: npt.NDArray[np.int64]
    differences: npt.NDArray[np.void]
    context: npt.NDArray[np.void]
    local: npt.NDArray[np.int64]
    hidden: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    progress: npt.NDArray[np.int64]
    purged: npt.NDArray[np.int64]


@slow
def differ_area(q: Any, op: Any, what: int, expected: int, predicted: int) -> None:
    """Keeps a difference while there is room."""
    k = 0
    while k < len(q.differences) and int(q.differences[k]["event"]):
        k += 1
    if k < len(q.differences):
        d = q.differences[k]
        x = q.context[int(op["context"])]
        d["event"] = int(op["event"]) + 1
        d["expected"] = expected
        d["predicted"] = predicted
        d["size"] = int(x["size"])
        d["align"] = int(x["align"])
        d["cpu"] = int(op["cpu"])
        d["what"] = what


ADDRESSES = tuple(VMAP_KINDS.index(kind) for kind in ("vmap_request", "vmap_busy", "vmap_unlink", "vmap_ram_result", "vmap_unram")) + tuple(
    i for i, kind in enumerate(VMAP_KINDS) if kind.startswith("vmap_block_")
)
"""Kinds whose ptr is an address; vmap_result's is an object or an error, which is put into arg (as is vm_map_ram's answer, to tell whether it is one)."""


def vmap_ops(events: pl.DataFrame) -> tuple[npt.NDArray[np.void], int]:
    """The operations of a recording in their order, and the number of contexts."""
    wanted = events.with_row_index("event").filter(pl.col("kind").cast(pl.String).is_in(VMAP_KINDS))
    number = {kind: i for i, kind in enumerate(VMAP_KINDS)}
    ops = np.zeros(len(wanted), dtype=VMAP_OP)
    kind = np.array([number[k] for k in wanted["kind"].to_list()], dtype=np.int64)
    for name, source in (
        ("event", "event"),
        ("ptr", "ptr"),
        ("end", "call_site"),
        ("size", "bytes_req"),
        ("align", "bytes_alloc"),
        ("arg", "arg"),
        ("node", "node"),
        ("cpu", "cpu"),
    ):
        ops[name] = wanted[source].to_numpy()
    answers = np.isin(kind, (K_RESULT, K_RAM_RESULT))
    ops["arg"][answers] = ops["ptr"][answers]
    addresses = np.isin(kind, ADDRESSES)
    ops["ptr"][addresses] ^= SIGN
    ops["end"] ^= SIGN
    ops["kind"] = kind
    tasks, context = np.unique(wanted["pid"].to_numpy(), return_inverse=True)
    ops["context"] = context
    return ops, len(tasks)


def new_vmaps(state: Vmalloc, contexts: int) -> Vmaps:
    """The loop's state before the first operation."""
    context = np.zeros(max(contexts, 1), dtype=VMAP_CONTEXT)
    context["purging"], context["order"], context["returned_order"], context["address"] = -1, -1, -1, NOTHING
    nodes = int(state.config[0]["nr_nodes"])
    return Vmaps(
        np.zeros(len(VMAP_COUNTERS), np.int64),
        np.zeros(KEPT, VMAP_DIFFERENCE),
        context,
        np.full(nodes, NIL, np.int64),
        np.full(nodes, NIL, np.int64),
        np.zeros(1, np.int64),
        np.zeros(1, np.int64),
        np.zeros(1, np.int64),
        np.zeros(2, np.int64),
        np.zeros(1, np.int64),
    )
