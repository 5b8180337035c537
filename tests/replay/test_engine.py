"""One source, three ways to run it: compiled, with bounds checks, in the interpreter. All end in the same state, bit by bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmtwin.recording.model import Recording

EVENTS = 20_000
PROGRAM = f"""
import hashlib, json, sys
from mmtwin.recording import store
from mmtwin.recording.state import restore
from mmtwin.replay.engine import run
from mmtwin.replay.placement import place
recording = store.load(sys.argv[1])
placement = place(recording.events.head({EVENTS}), recording.before)
outcome = run(restore(recording.before), placement)
digest = hashlib.sha256()
for table in outcome.state:
    digest.update(table.tobytes())
print(json.dumps({{"digest": digest.hexdigest(), "counters": outcome.counters, "operations": len(placement.ops)}}))
"""
MODES = {"compiled": {}, "bounds-checked": {"NUMBA_BOUNDSCHECK": "1"}, "interpreted": {"NUMBA_DISABLE_JIT": "1"}}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, real: dict[str, Recording]) -> Path:
    """The recording with the most kinds of events: every branch of the loop."""
    from mmtwin.recording import store

    chosen = max(real.values(), key=lambda r: (r.events.head(EVENTS)["kind"].n_unique(), r.provenance.workload_name))
    target = tmp_path_factory.mktemp("digest") / "chosen.mmrec"
    store.save(chosen, target)
    return target


def test_one_digest(path: Path) -> None:
    found = {}
    for mode, settings in MODES.items():
        done = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], env={**os.environ, **settings}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (mode, done.stderr[-2000:])
        found[mode] = json.loads(done.stdout)
    assert found["compiled"] == found["bounds-checked"] == found["interpreted"]
    counters = found["compiled"]["counters"]
    assert counters["page_allocs_equal"] == counters["page_allocs"] > 500
