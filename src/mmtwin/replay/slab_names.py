"""Which slab cache an address in the events means: caches come and go while a recording runs, and their addresses are used again."""

from __future__ import annotations

import numpy as np
import polars as pl

from mmtwin.mm.slab_tables import MAX_CACHES, Slub
from mmtwin.recording.model import Snapshot
from mmtwin.recording.slab_state import GEOMETRY
from mmtwin.replay.placement import Names, SlabNames


def slab_names(events: pl.DataFrame, before: Snapshot, after: Snapshot | None, state: Slub, names: list[str]) -> tuple[SlabNames, Slub]:
    """The meaning of all addresses; caches that are created on the way get rows in `state` (not live yet) and are appended to `names`."""
    assert before.caches is not None
    caches: list[tuple[int, int, int]] = []
    cpu_slabs: list[tuple[int, int, int]] = []
    for row in before.caches.iter_rows(named=True):
        caches.append((_signed(row["address"]), 0, row["id"]))
        cpu_slabs.append((_signed(row["cpu_slab"]), 0, row["id"]))
    created = events.with_row_index("at").filter(pl.col("kind") == "slab_create")
    known = {} if after is None or after.caches is None else {row["address"]: row for row in after.caches.iter_rows(named=True)}
    random = [state.random]
    count = int(state.random.shape[0])
    for event in created.iter_rows(named=True):
        cache = int(state.config[0]["caches"])
        if cache == MAX_CACHES:
            break
        state.config[0]["caches"] = cache + 1
        names.append(event["name"] or "")
        row = state.cache[cache]
        _describe(row, event, known.get(event["ptr"]) or known.get(event["ptr"] & 0xFFFFFFFFFFFFFFFF))
        sequence = _sequence(events, event["at"], int(row["size"]))
        if sorted(sequence.tolist()) != list(range(int(row["objects"]))):
            sequence = sequence[:0]  # cut off, or none: objects in ascending order
        row["random_seq"] = count if len(sequence) else -1
        random.append(sequence)
        count += len(sequence)
        caches.append((event["ptr"], event["at"], cache))
        cpu_slabs.append((event["call_site"], event["at"], cache))
    return SlabNames(_names(caches), _names(cpu_slabs)), state._replace(random=np.concatenate(random))


def _describe(row: np.void, event: dict[str, int], after: dict[str, int] | None) -> None:
    """What a new cache is: as its creation says; what that leaves out, as the second snapshot does (if it lives as long)."""
    from mmtwin.mm.slab_common import calculate_sizes

    size, oo = max(int(event["bytes_alloc"]), 8), max(int(event["arg"]), 1)
    row["flags"], row["size"], row["object_size"], row["align"] = event["gfp"], size, event["bytes_req"], event["node"]
    row["order"], row["objects"], row["min_partial"], row["refcount"] = oo >> 16, oo & 0xFFFF, event["pfn"], 1
    if after is not None and after["name"] == event["name"]:
        for name in GEOMETRY:
            row[name] = after[name]
        return
    align = int(event["node"])
    geometry = calculate_sizes(max(int(event["bytes_req"]), 1), align if align > 0 and align & (align - 1) == 0 else 8, int(event["gfp"]), False, 1)
    if geometry is None:
        return
    for name in ("inuse", "offset", "red_left_pad", "min_order", "min_objects", "allocflags", "cpu_partial", "cpu_partial_slabs"):
        row[name] = getattr(geometry, name)
    row["cpu_partial_slabs"] = -(-int(row["cpu_partial"]) * 2 // max(int(row["objects"]), 1))
    row["allocflags"] = int(row["allocflags"]) & ~0x40000 | (0x40000 if int(row["order"]) else 0)


def _sequence(events: pl.DataFrame, at: int, size: int) -> np.ndarray:
    """The permutation of a new cache: the rows behind its creation."""
    kinds = events["kind"].slice(at + 1, 1 << 15).cast(pl.String)
    others = (kinds != "slab_random").arg_true()
    length = int(others[0]) if len(others) else len(kinds)
    values = events["ptr"].slice(at + 1, length).to_numpy()
    return (values // size).astype(np.int32)


def _names(found: list[tuple[int, int, int]]) -> Names:
    table = np.array(sorted(found), dtype=np.int64).reshape(-1, 3)
    return Names(table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy())


def _signed(address: int) -> int:
    return address - (1 << 64) if address >= 1 << 63 else address
