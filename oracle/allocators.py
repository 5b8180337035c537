"""SLUB's requests answered by SLAB, beside a kernel that has SLAB: what mmtwin whatif --set allocator=slab says of a recording, and what a recording of the same workload on the same
kernel with SLAB says (oracle/whatif.sh MMTWIN KERNEL_DIR DIR allocators, once for each of the two kernels of oracle/slab-kernel.sh).

    python oracle/allocators.py DIR                     DIR has base-a.mmrec, base-b.mmrec (SLUB), slab.mmrec, slab-b.mmrec (SLAB); prints JSON
    python oracle/allocators.py DIR --predict           of base-a.mmrec alone
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mmtwin.diagnose.whatif import parse_settings, whatif
from mmtwin.diagnose.whatif.whatif import Case, kernel_case
from mmtwin.recording import store
from mmtwin.recording.model import Recording, Snapshot
from mmtwin.replay.requests import requests
from mmtwin.replay.slab_classic import replay_classic

CACHES = 40
"""Caches that are written down, the largest first."""


def twins(base: Recording) -> dict[str, Any]:
    """The kernel's SLUB, the twin's, and what SLAB would have made of it."""
    asked = requests(base)
    result = whatif(base, [parse_settings(["allocator=slab"])], asked=asked)
    _, own, slab = result.cases
    return {"kernel": _numbers(kernel_case(base, asked)), "twin": _numbers(own), "predicted": _numbers(slab)}


def _numbers(case: Case) -> dict[str, Any]:
    largest = sorted(case.caches.items(), key=lambda pair: -pair[1])[:CACHES]
    start = {"slab pages at the start": case.looks[0].slab_pages} if case.looks else {}
    return {
        **start,
        "slab pages": case.slab_pages,
        "slabs made": case.slabs_made,
        "refused": case.failures,
        "free pages": case.free_pages,
        "caches": dict(largest),
    }


def real(path: Path) -> dict[str, Any]:
    """What the kernel with SLAB did; its replay is checked, so that the recording can be believed."""
    recording = store.load(path)
    before, after = recording.before, recording.after
    assert before is not None
    assert after is not None
    result, _ = replay_classic(recording)
    refused = int((recording.events["kind"].cast(pl.String) == "mm_page_alloc").to_numpy()[recording.events["pfn"].to_numpy() < 0].sum())
    ends = _pages(after)
    largest = dict(sorted(ends.items(), key=lambda pair: -pair[1])[:CACHES])
    return {
        "replay equal": result.equal, "slab pages at the start": sum(_pages(before).values()), "slab pages": sum(ends.values()), "slabs made": result.slabs_made, "refused": refused,
        "free pages": kernel_case(recording, requests(recording)).free_pages, "caches": largest,
    }  # fmt: skip


def _pages(snapshot: Snapshot) -> dict[str, int]:
    """Pages of each cache."""
    assert snapshot.classic is not None
    caches = snapshot.classic["classic_caches"]
    names = dict(zip(caches["id"].to_list(), caches["name"].to_list(), strict=True))
    order = dict(zip(caches["id"].to_list(), caches["gfporder"].to_list(), strict=True))
    found: dict[str, int] = {}
    ids, counts = np.unique(snapshot.classic["classic_slabs"]["cache"].to_numpy(), return_counts=True)
    for cache, count in zip(ids.tolist(), counts.tolist(), strict=True):
        found[names[cache]] = found.get(names[cache], 0) + (count << order[cache])
    return found


def main() -> None:
    where = Path(sys.argv[1])
    found = twins(store.load(where / "base-a.mmrec"))
    if "--predict" not in sys.argv:
        again = store.load(where / "base-b.mmrec")
        found["kernel, again"] = _numbers(kernel_case(again, requests(again)))
        found["real"], found["real, again"] = real(where / "slab.mmrec"), real(where / "slab-b.mmrec")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
