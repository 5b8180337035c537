from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmtwin.mm.validate import validate
from mmtwin.mm.validate_slub import validate_slub
from mmtwin.recording import store
from mmtwin.recording.model import Recording
from mmtwin.replay.check import compare
from mmtwin.replay.free_run import Outcome, run, start_of
from mmtwin.replay.free_run_pages import GONE
from mmtwin.replay.requests import PAGES_ALLOC, Requests, requests

RECORDINGS = Path(__file__).parents[1] / "recordings"
INTERPRETED = os.environ.get("NUMBA_DISABLE_JIT") == "1"
whole = pytest.mark.skipif(INTERPRETED, reason="a whole recording takes a minute in the interpreter; test_same_digest runs a part of it there")
DIGEST = """
import hashlib, json, sys
from dataclasses import replace
from mmtwin.recording import store
from mmtwin.replay.free_run import run, start_of
from mmtwin.replay.requests import requests
recording = store.load(sys.argv[1])
asked = requests(replace(recording, events=recording.events.head(6000)))
outcome = run(start_of(asked), asked)
digest = hashlib.sha256()
for table in (*outcome.pages, *outcome.slub):
    digest.update(table.tobytes())
print(json.dumps({"digest": digest.hexdigest(), "counters": outcome.counters, "requests": len(asked)}))
"""


@pytest.fixture(scope="module")
def pipes() -> Recording:
    return store.load(RECORDINGS / "pipes-512m-1cpu-slab.mmrec")


@pytest.fixture(scope="module")
def asked(pipes: Recording) -> Requests:
    return requests(pipes)


@pytest.fixture(scope="module")
def free(asked: Requests) -> Outcome:
    return run(start_of(asked), asked)


@whole
def test_ends_as_the_kernel_did(pipes: Recording, free: Outcome) -> None:
    """Under the recording's own settings, on one CPU without reclaim, nothing is left to chance but where fresh slabs begin."""
    assert pipes.after is not None and pipes.after.slabs is not None
    parts = list(compare(free.pages, pipes.after))
    assert [p for p in parts if p.equal != p.total] == []
    assert int(free.slub.config[0]["pages"]) == int((1 << pipes.after.slabs["order"].to_numpy().astype(np.int64)).sum())
    assert free.counters["new_failures"] == free.counters["page_failures"] == free.counters["reclaim_waits"] == 0


@whole
def test_every_block_is_where_the_kernel_put_it(asked: Requests, free: Outcome) -> None:
    rows = asked.table[asked.table["op"] == PAGES_ALLOC]
    assert (free.blocks[rows["id"]] == rows["arg2"]).all()


@whole
def test_the_state_is_sound(free: Outcome) -> None:
    validate(free.pages, True)
    validate_slub(free.slub, free.pages)


@whole
def test_the_start_is_not_touched(asked: Requests, free: Outcome) -> None:
    again = run(start_of(asked), asked)
    assert again.looks == free.looks and again.counters == free.counters


@whole
def test_failures_are_followed(asked: Requests) -> None:
    """With a minimum above all memory, whatever may not reclaim is refused, and its free passed over."""
    start = start_of(asked)
    start.pages.zone["wmark_min"] = start.pages.zone["wmark_low"] = start.pages.zone["wmark_high"] = start.pages.zone["wmark_promo"] = 1 << 30
    outcome = run(start, asked)
    c = outcome.counters
    assert c["new_failures"] == c["page_failures"] == sum(outcome.failed) > 0
    assert c["reclaim_waits"] > 0 and c["skipped_frees"] > 0 and (outcome.blocks == GONE).any()
    validate(outcome.pages, True)


@whole
def test_part_of_the_requests(asked: Requests) -> None:
    start = start_of(asked)
    outcome = run(replace(start, table=start.table[:100]), asked)
    assert outcome.looks[-1].request == 100


def test_same_digest() -> None:
    """Compiled and interpreted, a run ends in the same state."""
    found = []
    for mode in ({}, {"NUMBA_DISABLE_JIT": "1"}):
        clean = {name: value for name, value in os.environ.items() if name not in ("NUMBA_BOUNDSCHECK", "NUMBA_DISABLE_JIT")}
        path = RECORDINGS / "pipes-512m-1cpu-slab.mmrec"
        done = subprocess.run([sys.executable, "-c", DIGEST, str(path)], env=clean | mode, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    assert found[0] == found[1] and found[0]["requests"] > 1000 and found[0]["counters"]["slab_slow_paths"] > 0
