"""Virtual areas of real kernels: every address predicted, every tree equal at the end; a wrong answer or a missing mark is noticed, and survived."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmtwin.mm.validate_vmalloc import validate_vmalloc
from mmtwin.recording import store, vmap_state
from mmtwin.recording.model import Recording
from mmtwin.replay import vmaps
from mmtwin.replay.check import replay
from mmtwin.replay.vmap_check import replay_vmaps
from mmtwin.replay.vmap_ops import vmap_ops


def test_every_recording_is_equal(areas: dict[str, Recording]) -> None:
    """All addresses, and at the end every tree with its shape, colours and maxima, every pool, block and counter. Page frames and slabs too."""
    for name, recording in areas.items():
        result, _ = replay(recording)
        assert result.vmap_allocs_equal == result.vmap_allocs > 800, name
        assert result.equal and result.final_state_equal, (name, result.differences, [p for p in result.parts if p.equal != p.total])
        assert (result.lost_events, result.missed_probes) == (0, 0), name
        for what in ("failed", "pieces", "merges", "purged", "blocks"):
            assert result.vmap[f"vmap_{what}_equal"] == result.vmap[f"vmap_{what}"], (name, what)
        assert not any(result.vmap[f"vmap_{what}"] for what in ("unknown_frees", "unplaced", "spares_missing")), name
        assert result.cpus > 1 or not any(result.vmap[f"vmap_{what}"] for what in ("migrated", "pool_paths")), (name, "one CPU has no races")


def test_the_recordings_are_varied(areas: dict[str, Recording]) -> None:
    counted = {name: replay_vmaps(r).counters for name, r in areas.items()}
    assert all(c["vmap_pieces"] and c["vmap_purges"] for c in counted.values())
    assert any(c["vmap_failed"] for c in counted.values())
    assert any(c["vmap_percpu_areas"] for c in counted.values())
    pooled = [r.after.vmaps["areas"].filter(pl.col("tree") == "pool") for r in areas.values() if r.after and r.after.vmaps]
    assert any(len(table) > 50 for table in pooled)
    assert any(len(r.after.vmaps["areas"].filter(pl.col("tree") == "lazy")) > 20 for r in areas.values() if r.after and r.after.vmaps)
    assert any((r.events["kind"] == "slab_take").any() for r in areas.values())


def test_the_twin_is_sound_at_the_end(areas: dict[str, Recording]) -> None:
    for recording in areas.values():
        validate_vmalloc(replay_vmaps(recording).state, allow_in_flight=True)


@pytest.fixture(params=["areas-256m-1cpu", "areas-6.12-4cpu"])
def some(request: pytest.FixtureRequest, areas: dict[str, Recording]) -> Recording:
    return areas[request.param]


def rows_of(recording: Recording, kind: str) -> list[int]:
    return np.flatnonzero((recording.events["kind"] == kind).to_numpy()).tolist()


def test_a_wrong_answer_in_the_recording_is_found(some: Recording) -> None:
    """The twin must not look at the answers: one altered answer is a difference at that event, and it is named."""
    at = rows_of(some, "vmap_busy")[100]
    start = int(some.events["ptr"][at])
    row = pl.int_range(pl.len()) == at
    altered = some.events.with_columns(pl.when(row).then(pl.col(name) + 4096).otherwise(name).alias(name) for name in ("ptr", "call_site"))
    result = replay_vmaps(replace(some, events=altered))
    assert result.counters["vmap_allocs_equal"] < result.counters["vmap_allocs"]
    first = result.differences[0]
    assert (first["event"], first["what"], first["predicted"], first["expected"]) == (at, "virtual area", start & (1 << 64) - 1, start + 4096 & (1 << 64) - 1)


@pytest.mark.parametrize("kind", ["vmap_search", "vmap_busy", "vmap_unlink", "vmap_lazy", "vmap_detach", "vmap_offer", "vmap_block_take", "vmap_block_free"])
def test_a_missing_mark_is_survived(some: Recording, kind: str) -> None:
    """One event lost in the middle costs answers at most, not a sound state."""
    rows = rows_of(some, kind)
    at = rows[len(rows) // 2]
    result = replay_vmaps(replace(some, events=some.events.filter(pl.int_range(pl.len()) != at)))
    assert 0 < result.counters["vmap_allocs_equal"] <= result.counters["vmap_allocs"]
    validate_vmalloc(result.state, allow_in_flight=True, whole_space=False)


def test_a_wrong_rule_is_noticed(some: Recording) -> None:
    """Areas in the lazy tree that were free already would be found by the next search: the twin would answer otherwise."""
    assert some.before is not None
    state = vmap_state.restore(some.before, some.provenance, with_vms=False)
    state.config["lazy_nr"] += 1 << 20  # the drain would always be due
    ops, contexts = vmap_ops(some.events)
    outcome = vmaps.run_vmaps(state, ops, contexts)
    assert int(outcome.state.config[0]["drain"]) == 1


PROGRAM = """
import json, re, sys, traceback
import numpy as np
import polars as pl
from mmtwin.errors import RecordingError
from mmtwin.mm.vmap_tables import Vmalloc, reserve_areas
from mmtwin.recording import store, validate, vmap_state
from mmtwin.recording.vmaps import VMAP_KINDS
from mmtwin.replay import vmaps
from mmtwin.replay.vmap_ops import new_vmaps, vmap_ops

class Checked(np.ndarray):
    def __getitem__(self, key):
        if isinstance(key, (int, np.integer)) and key < 0:
            raise IndexError(f"index {key} of a table of {len(self)} rows")
        return super().__getitem__(key)
    def __setitem__(self, key, value):
        if isinstance(key, (int, np.integer)) and key < 0:
            raise IndexError(f"index {key} of a table of {len(self)} rows")
        super().__setitem__(key, value)

def checked(tables):
    return tables._replace(**{n: getattr(tables, n).view(Checked) for n in tables._fields})

recording = store.load(sys.argv[1])
equal = vmaps.run_vmaps(vmap_state.restore(recording.before, recording.provenance, with_vms=False), *vmap_ops(recording.events)).counters
events = recording.events.filter(pl.col("kind").cast(pl.String).is_in(VMAP_KINDS))
begin = vmap_state.restore(recording.before, recording.provenance, with_vms=False)
starts = events.filter(pl.col("kind") == "vmap_busy")["ptr"].to_list()
refused, replayed, broken = 0, 0, []
for seed in range(int(sys.argv[2])):
    rng = np.random.default_rng(seed)
    first = int(rng.integers(0, max(len(events) - 2500, 1)))
    some = events.slice(first, 2500)
    names_of = some["kind"].cast(pl.String).to_list()
    columns = {name: some[name].to_numpy().copy() for name in ("ptr", "call_site", "arg", "bytes_req", "bytes_alloc", "node", "pid", "cpu")}
    for row in rng.integers(0, len(some), 120).tolist():
        if rng.integers(4) == 0:
            names_of[row] = str(rng.choice(VMAP_KINDS))
        name = str(rng.choice(list(columns)))
        value = int(rng.choice(np.array([0, 1, 2, 63, 64, 4096, 8192, 1 << 20, (1 << 31) - 1, -1, -2], dtype=np.int64)))
        if name in ("ptr", "call_site"):
            value = int(rng.choice(starts)) + 4096 * int(rng.integers(-2, 40)) if rng.integers(3) else int(rng.integers(-(1 << 63), 1 << 63, dtype=np.int64))
        columns[name][row] = value if columns[name].dtype.itemsize > 2 else value & 1
    table = some.with_columns(**{n: pl.Series(v, dtype=some.schema[n]) for n, v in columns.items()}).with_columns(kind=pl.Series(names_of, dtype=some.schema["kind"]))
    while True:  # leave out what is refused, and go on
        try:
            validate.check_events(table, recording.provenance.cpus, recording.before)
            break
        except RecordingError as error:
            row = int(re.search(r"row (\\d+)", str(error)).group(1))
            table = table.filter(pl.int_range(pl.len()) != row)
            refused += 1
    ops, contexts = vmap_ops(table)
    state = checked(reserve_areas(Vmalloc._make(t.copy() for t in begin), areas=12000, blocks=4000))
    q = checked(new_vmaps(state, contexts))
    try:
        vmaps.replay_vmap_ops(state, q, ops)
        replayed += 1
    except Exception as error:
        broken.append([seed, repr(error), traceback.format_exc().splitlines()[-6:]])
print(json.dumps([equal, refused, replayed, broken]))
"""


def test_the_interpreter_agrees_and_garbage_is_survived(some: Recording, tmp_path: Path) -> None:
    """What the checks of a recording let through must not make the replay leave its tables or run for ever; and plain Python counts the same."""
    store.save(some, tmp_path / "r.mmrec")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "r.mmrec"), "12"],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    equal, refused, replayed, broken = json.loads(done.stdout.splitlines()[-1])
    assert not broken, broken
    assert refused > 0 and replayed == 12
    assert equal == replay_vmaps(some).counters
