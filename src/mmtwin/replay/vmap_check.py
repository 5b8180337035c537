"""Replays the virtual areas of a recording and compares: every address on the way, and at the end every tree, pool, block and counter with the second dump."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmtwin.mm.vmalloc import OVERFLOW
from mmtwin.mm.vmap_tables import NIL, TREE_BUSY, TREE_FREE, Vmalloc, new_vmalloc, unbias
from mmtwin.recording import vmap_state
from mmtwin.recording.model import Recording, Snapshot
from mmtwin.replay.part import Part
from mmtwin.replay.vmap_ops import D_BLOCK, D_MERGE, NOTHING, VMAP_COUNTERS, VMAP_OP, WHATS, vmap_ops
from mmtwin.replay.vmaps import run_vmaps

COUNTS = (D_MERGE, D_BLOCK)
"""Differences whose values are no addresses: pages or areas purged; pages of a block that are free (times 65536) and dirty."""
NO_ADDRESS = (NOTHING, OVERFLOW)


@dataclass(frozen=True)
class VmapResult:
    """What a replay of virtual areas found.

    :param counters: by `mmtwin.replay.vmaps.VMAP_COUNTERS`.
    :param differences: as plain data, the first ones.
    :param state: the twin's, at the end.
    """

    counters: dict[str, int]
    differences: list[dict[str, Any]]
    parts: list[Part]
    seconds: float
    state: Vmalloc


def has_vmaps(recording: Recording) -> bool:
    """Whether a recording has all that a replay of virtual areas needs."""
    return recording.before is not None and recording.before.vmaps is not None and any(p.startswith("vmap_request") for p in recording.provenance.probes)


def warm_up() -> None:
    """Loads (the first time: compiles) the loop, so that it is not counted as time of a replay."""
    run_vmaps(new_vmalloc(1, 1 << 63, (1 << 63) + 4095, 1 << 63, 1 << 63, areas=16, vms=1, blocks=1), np.zeros(1, dtype=VMAP_OP), 1)


def replay_vmaps(recording: Recording, *, check: bool = True, progress: Callable[[int, int], None] = lambda done, total: None) -> VmapResult:
    """Replays the virtual areas of a recording that has them (`has_vmaps`).

    :param check: compare the final state with the second snapshot.
    :raises RecordingError: see `mmtwin.recording.vmap_state.restore`.
    """
    assert recording.before is not None
    state = vmap_state.restore(recording.before, recording.provenance, with_vms=False)
    ops, contexts = vmap_ops(recording.events)
    warm_up()
    start = time.perf_counter()
    outcome = run_vmaps(state, ops, contexts, lambda done: progress(done, len(ops)))
    seconds = max(time.perf_counter() - start, 1e-9)
    parts = list(_counted(outcome.counters))
    if check and recording.after is not None and recording.after.vmaps is not None:
        parts += compare_vmaps(outcome.state, recording.after)
    return VmapResult(outcome.counters, [_describe(recording, d) for d in outcome.differences], parts, seconds, outcome.state)


def no_vmaps() -> dict[str, int]:
    """The counters of a recording without virtual areas."""
    return dict.fromkeys(VMAP_COUNTERS, 0)


def _counted(c: Mapping[str, int]) -> Iterator[Part]:
    """What is compared on the way, besides the areas' addresses."""
    for name, equal, total in (
        ("refused virtual areas", "vmap_failed_equal", "vmap_failed"),
        ("vm_map_ram pieces", "vmap_pieces_equal", "vmap_pieces"),
        ("changes of vm_map_ram blocks", "vmap_blocks_equal", "vmap_blocks"),
        ("areas purged one by one", "vmap_merges_equal", "vmap_merges"),
        ("areas of each purge", "vmap_purged_equal", "vmap_purged"),
    ):
        if c[total]:
            yield Part(name, c[equal], c[total])


def compare_vmaps(state: Vmalloc, after: Snapshot) -> Iterator[Part]:
    """Compares a state with a snapshot, part by part. Trees are compared with their shape and colours, the free one with its maxima."""
    assert after.vmaps is not None
    config, nodes = state.config[0], int(state.config[0]["nr_nodes"])
    theirs = vmap_state.snapshot_trees(after.vmaps)
    yield _areas("free areas, as a tree", [(vmap_state.tree_areas(state, TREE_FREE, True), theirs.get(("free", 0), []))])
    for kind, first in (("busy", TREE_BUSY), ("lazy", int(config["lazy_tree"]))):
        pairs = [(vmap_state.tree_areas(state, first + node, False), theirs.get((kind, node), [])) for node in range(nodes)]
        yield _areas(f"{kind} areas, as {'trees' if nodes > 1 else 'a tree'}", pairs)
    if int(config["version"]) >= 609:
        pairs = []
        for node in range(nodes):
            mine, kernel = vmap_state.pool_areas(state, node), vmap_state.snapshot_pools(after.vmaps, node)
            pairs += [(mine.get(pages, []), kernel.get(pages, [])) for pages in sorted(mine.keys() | kernel.keys())]
        yield _areas("pooled areas, in order", pairs)
    queued, blocks = vmap_state.queued_blocks(state), vmap_state.snapshot_blocks(after.vmaps)
    yield _areas("vm_map_ram blocks, in order", [(queued.get(cpu, []), blocks.get(cpu, [])) for cpu in sorted(queued.keys() | blocks.keys())])
    spares = [(int(row["cpu"]), int(row["preload"] != 0)) for row in after.vmaps["cpus"].iter_rows(named=True)]
    counters = [("vmap_lazy_nr", int(config["lazy_nr"]), after.scalars["vmap_lazy_nr"]), ("drain work that did not run", int(config["drain"]), 0)]
    counters += [(f"spare area of CPU {cpu}", int(state.cpu[cpu]["ne_fit_preload_node"] != NIL), has) for cpu, has in spares]
    differ = [c for c in counters if c[1] != c[2]]
    named = f"{differ[0][0]}: {differ[0][1]}, the kernel's is {differ[0][2]}" if differ else ""
    yield Part("counters and spares of virtual areas", len(counters) - len(differ), len(counters), named)


def _areas(name: str, pairs: Sequence[tuple[Sequence[tuple[int, ...]], Sequence[tuple[int, ...]]]]) -> Part:
    """Equal rows of lists that belong together; a row is equal if it is the same at the same place."""
    total = sum(max(len(mine), len(theirs)) for mine, theirs in pairs)
    equal, first = 0, ""
    for mine, theirs in pairs:
        for i in range(max(len(mine), len(theirs))):
            a, b = (rows[i] if i < len(rows) else () for rows in (mine, theirs))
            equal += a == b
            if a != b and not first:
                first = f"{_name(a)}, the kernel's is {_name(b)}"
    return Part(name, equal, total, first)


def _name(area: tuple[int, ...]) -> str:
    return f"{area[0]:#x} {tuple(area[1:])}" if area else "none"


def _describe(recording: Recording, difference: Any) -> dict[str, Any]:
    """A difference as plain data, with what its event says. Addresses are plain numbers, 0 for none."""
    event, what = int(difference["event"]) - 1, int(difference["what"])
    row = recording.events.row(event, named=True)
    values = {}
    for name in ("expected", "predicted"):
        value = int(difference[name])
        values[name] = value if what in COUNTS else 0 if value in NO_ADDRESS else unbias(value)
    return {
        "event": event,
        "what": WHATS[what],
        **values,
        "addresses": what not in COUNTS,
        "size": int(difference["size"]),
        "align": int(difference["align"]),
        "cpu": int(row["cpu"]),
        "pid": int(row["pid"]),
        "time": int(row["time"]),
    }
