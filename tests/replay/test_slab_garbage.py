"""Garbage in the slab's events: what the checks of a recording let through must not make the replay leave its tables or run for ever.

Runs in the interpreter (in a process of its own) over tables that refuse negative indices, which numpy and compiled code would take from the end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmtwin.recording.model import Recording

PROGRAM = """
import json, re, sys, traceback
import numpy as np
import polars as pl
from mmtwin.errors import RecordingError
from mmtwin.mm.slab_tables import Slub
from mmtwin.mm.tables import Pgdat
from mmtwin.recording import slab_state, store, validate
from mmtwin.recording.state import restore
from mmtwin.replay import engine, placement
from mmtwin.replay.slab_names import slab_names

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
    return tables._replace(**{n: getattr(tables, n).view(Checked) for n in tables._fields if n not in ("lowmem_reserve",)})

recording = store.load(sys.argv[1])
all_kinds = recording.events["kind"].cast(pl.String)
rows = np.flatnonzero(all_kinds.str.starts_with("slab_").to_numpy())
first, tries = max(int(rows[int(float(sys.argv[2]) * len(rows))]) - 500, 0), int(sys.argv[3])
some = recording.events.slice(first, 2500)
kinds = some["kind"].cast(pl.String)
slab = np.flatnonzero((kinds.str.starts_with("slab_") | kinds.is_in(["kmalloc", "kfree", "kmem_cache_alloc", "kmem_cache_free"])).to_numpy())
pages = restore(recording.before)
slub, names = slab_state.restore(recording.before, pages, int(pages.config[0]["nr_cpus"]))
addresses = recording.before.caches["address"].to_list() + recording.before.caches["cpu_slab"].to_list()
offset = recording.before.scalars["page_offset_base"]
signed = lambda v: v - (1 << 64) if v >= 1 << 63 else v
refused, replayed, broken = 0, 0, []
for seed in range(first, first + tries):
    rng = np.random.default_rng(seed)
    columns = {name: some[name].to_numpy().copy() for name in ("ptr", "arg", "gfp", "bytes_req", "bytes_alloc", "node", "pfn", "call_site")}
    names_of = some["kind"].cast(pl.String).to_list()
    for row in rng.choice(slab, size=60).tolist():
        what = rng.integers(5)
        if what == 0:
            names_of[row] = str(rng.choice([k for k in validate.KINDS if k.startswith("slab_")]))
        name = str(rng.choice(list(columns)))
        value = int(rng.choice(np.array([0, 1, 2, 63, 64, 65, 4095, 1 << 16, (1 << 31) - 1, -1, -2, 8], dtype=np.int64)))
        if name in ("ptr", "call_site"):
            value = signed(int(rng.choice(np.array(addresses, dtype=np.int64)))) if rng.integers(2) else signed((offset + int(rng.integers(-4096, 1 << 40))) & (1 << 64) - 1)
        columns[name][row] = value
    table = some.with_columns(**{n: pl.Series(v, dtype=some.schema[n]) for n, v in columns.items()}).with_columns(kind=pl.Series(names_of, dtype=some.schema["kind"]))
    while True:  # leave out what is refused, and go on
        try:
            validate.check_events(table, recording.provenance.cpus, recording.before)
            break
        except RecordingError as error:
            row = int(re.search(r"row (\\d+)", str(error)).group(1))
            table = table.filter(pl.int_range(pl.len()) != row)
            refused += 1
    state = Slub._make(t.copy() for t in slub)
    meanings, state = slab_names(table, recording.before, None, state, list(names))
    place = placement.place(table, recording.before, 5, meanings)
    fresh = int(np.count_nonzero(place.ops["op"] == placement.SLAB_NEW))
    state = engine.reserve(state, fresh, fresh << engine.slot_class(int(state.cache["objects"].max(initial=1))))
    state = engine.reserve(state, 1, 1)
    twin = checked(Pgdat._make(t.copy() for t in pages))
    r, q = engine.new_progress(place, twin), engine.new_slabs(place)
    q = q._replace(objects=q.objects.view(Checked), packed=q.packed.view(Checked), context=q.context.view(Checked))
    try:
        engine.replay_ops(twin, checked(state), r, q, place.ops)
        replayed += 1
    except Exception as error:
        broken.append([seed, repr(error), traceback.format_exc().splitlines()[-6:]])
print(json.dumps([refused, replayed, broken]))
"""


@pytest.mark.parametrize("first", [0.0, 0.3, 0.7])
def test_garbage_is_survived(real: dict[str, Recording], tmp_path: Path, first: float) -> None:
    from mmtwin.recording import store

    found = [r for r in real.values() if "slab_take0" in r.provenance.probes]
    assert found, "no recording has SLUB's marks; oracle/ makes them"
    store.save(max(found, key=lambda r: (r.provenance.cpus, -len(r.events))), tmp_path / "r.mmrec")
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "r.mmrec"), str(first), "8"],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    refused, replayed, broken = json.loads(done.stdout.splitlines()[-1])
    assert not broken, broken
    assert refused > 0 and replayed == 8
