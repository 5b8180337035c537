"""Replay of a real recording of one-page vmallocs and vfrees, again and again from its first snapshot, every address compared with the kernel's.

A *pair* is one alloc_vmap_area and one free_vmap_area_noflush with all of the recorder's marks of its sections: request, search, busy tree in and out, lazily freed
areas, and the purges of the whole recording.
"""

from __future__ import annotations

import time
from pathlib import Path

from bench.measure import ROOT, Figures, one_core, rates
from mmtwin.mm.vmap_tables import copy_vmalloc
from mmtwin.recording import store, vmap_state
from mmtwin.replay.vmap_ops import vmap_ops
from mmtwin.replay.vmaps import run_vmaps

RECORDING = ROOT / "tests" / "recordings" / "one-page-256m-1cpu.mmrec"
ROUNDS = 10
ABOUT = {
    "vmap_replay_areas": "areas of one pass over a recording of one-page vmallocs and vfrees",
    "vmap_replay_areas_unequal": "of them answered with another address than the kernel's",
    "vmap_replay_pairs_per_second": "pairs, one core, compiled replay with every address compared, median round",
    "vmap_replay_pairs_per_second_slowest": "slowest round",
    "vmap_replay_pairs_per_second_fastest": "fastest round",
}


def measure(wanted: int = 2_000_000, path: Path = RECORDING, rounds: int = ROUNDS) -> Figures:
    """Replays until `wanted` pairs are reached, in `rounds` rounds. Only the replay is timed, not the copying of the first state before each."""
    figures: Figures = dict.fromkeys(ABOUT)
    recording = store.load(path)
    assert recording.before is not None
    first = vmap_state.restore(recording.before, recording.provenance)
    ops, contexts = vmap_ops(recording.events)
    counted = run_vmaps(copy_vmalloc(first), ops, contexts).counters
    figures["vmap_replay_areas"] = counted["vmap_allocs"]
    figures["vmap_replay_areas_unequal"] = counted["vmap_allocs"] - counted["vmap_allocs_equal"]
    pairs = min(counted["vmap_allocs"], counted["vmap_frees"])
    passes = max(1, wanted // (pairs * rounds))
    seconds = []
    with one_core():
        for _ in range(rounds):
            spent = 0.0
            for _ in range(passes):
                state = copy_vmalloc(first)
                begun = time.perf_counter()
                run_vmaps(state, ops, contexts)
                spent += time.perf_counter() - begun
            seconds.append(spent)
    return figures | rates("vmap_replay_pairs_per_second", [pairs * passes] * rounds, seconds)
