"""The same calls end in the same state compiled, with bounds checks, and in the interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mmtwin

DIGEST = """
import random
from mmtwin.user.heap import Heap
r, heap, live = random.Random(4), Heap(heap_limit=1 << 28), []
for i in range(6000):
    what, thread = r.random(), r.choice((0, 0, 0, 1, 2))
    size = int(r.expovariate(1 / r.choice((60, 600, 6000, 60000, 400000))))
    if what < 0.35:
        live.append(heap.malloc(size, thread=thread))
    elif what < 0.42:
        live.append(heap.calloc(1, size, thread=thread))
    elif what < 0.48:
        live.append(heap.memalign(1 << r.randrange(16), size, thread=thread))
    elif what < 0.6 and live:
        live.append(heap.realloc(live.pop(r.randrange(len(live))), size + 1, thread=thread))
    elif what < 0.995 and live:
        heap.free(live.pop(r.randrange(len(live))), thread=thread)
    elif what < 0.997:
        heap.malloc_trim(r.randrange(200000))
    elif what < 0.998:
        heap.mallopt(1, r.randrange(161))
    elif i % 3 == 0:
        short = 3 + i // 3
        heap.malloc(size, thread=short)
        heap.thread_exit(short)
heap.validate()
print(heap.digest(), len(live), heap.mallinfo2(), heap.state.mp[0].tolist())
"""


def test_same_state_compiled_checked_and_interpreted() -> None:
    source = os.pathsep.join([str(Path(mmtwin.__file__).parents[1]), str(Path(__file__).parents[2])])
    found = {}
    for mode in ({}, {"NUMBA_BOUNDSCHECK": "1"}, {"NUMBA_DISABLE_JIT": "1"}):
        clean = {name: value for name, value in os.environ.items() if name not in ("NUMBA_BOUNDSCHECK", "NUMBA_DISABLE_JIT")}
        run = subprocess.run([sys.executable, "-c", DIGEST], env=clean | {"PYTHONPATH": source} | mode, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        found[next(iter(mode), "compiled")] = run.stdout
    assert len(set(found.values())) == 1, found
