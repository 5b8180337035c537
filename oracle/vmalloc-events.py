#!/usr/bin/env python3
"""Takes out of a recording of workloads/vmalloc-sizes.sh (made with --slab --vmap) what each vmalloc and vfree does inside, in its order.

    vmalloc-events.py RECORDING.mmrec OUT.json

The document has "release", "memory", and "calls": each with "call" (vmalloc or vfree), "pages", "address", and "events": kind, gfp, bytes_req, bytes_alloc, order
(of pages), nr (pages asked of or got from a bulk request), size (of a virtual area with its guard page), times (so
often in a row, if more than once). Events are in the order in which the kernel printed them: an allocation after
its work, so the pages of a new slab come before the object. mm_page_alloc with gfp 0xdc0 and order 0 is a page table; with other flags it is a slab's page.
"""

import json
import sys
from pathlib import Path

import polars as pl

from mmtwin.recording import store

SIZES = (1, 2, 100, 101, 200, 201, 512, 513, 1200)
ROUNDS = 3
PAGE, POINTER = 4096, 8
PAGE_TABLE = 0xDC0
"""GFP_KERNEL | __GFP_ZERO."""
COLUMNS = {
    "kmalloc": ("gfp", "bytes_req", "bytes_alloc"), "kmem_cache_alloc": ("gfp", "bytes_req", "bytes_alloc"), "mm_page_alloc": ("gfp", "order"), "bulk": ("gfp", "arg"),
    "bulk_ret": ("arg",), "vmap_request": ("gfp", "size"), "vmap_busy": (), "vmap_unlink": (), "vmap_lazy": (), "kfree": (), "kmem_cache_free": ("name",),
    "mm_page_free": ("order",), "mm_page_free_batched": (),
}  # fmt: skip
NAMES = {"arg": "nr"}


def events_of(task: list[dict]) -> list[dict]:
    found = []
    for event in task:
        values = {"size": event["bytes_req"]} | event
        one = {"kind": event["kind"]} | {NAMES.get(c, c): values[c] for c in COLUMNS[event["kind"]]}
        if found and {**found[-1], "times": 1} == {**one, "times": 1}:
            found[-1]["times"] = found[-1].get("times", 1) + 1
        else:
            found.append(one)
    return found


def main(path: str, out: str) -> None:
    recording = store.load(Path(path))
    requests = recording.events.filter((pl.col("kind") == "vmap_request") & (pl.col("bytes_req") == 1201 * PAGE))
    rows = recording.events.filter((pl.col("pid") == requests["pid"][0]) & (pl.col("context") == 0) & pl.col("kind").cast(pl.String).is_in(list(COLUMNS)))
    task = list(rows.iter_rows(named=True))
    calls, at = [], 0

    def ahead(i: int, kind: str) -> int:
        while task[i]["kind"] != kind:
            i += 1
        return i

    start = recording.before.scalars["VMALLOC_START"] - (1 << 64)
    for _ in range(ROUNDS):
        for pages in SIZES:
            request = at  # of the vmalloc range, so that the module's own areas are left out
            while task[request]["kind"] != "vmap_request" or task[request]["ptr"] != start or task[request]["bytes_req"] != (pages + 1) * PAGE:
                request += 1
            begin = at
            if not calls:
                begin = max(i for i in range(request) if task[i]["kind"] == "kmalloc")
                begin -= task[begin - 1]["kind"] == "mm_page_alloc"
            array = -(-pages * POINTER // PAGE) if pages * POINTER > PAGE else 0  # a page array above a page is a vmalloc of its own
            got, end = 0, request
            while got < pages + array:
                got += task[end]["arg"] if task[end]["kind"] == "bulk_ret" else 0
                end += 1
            while end < len(task) and task[end]["kind"] == "mm_page_alloc" and task[end]["gfp"] == PAGE_TABLE and task[end]["order"] == 0:
                end += 1
            address = task[ahead(request, "vmap_busy")]["ptr"] & (1 << 64) - 1
            calls.append({"call": "vmalloc", "pages": pages, "address": address, "events": events_of(task[begin:end])})
            at = end
        for pages in SIZES:
            begin, freed, end = at, 0, at
            while freed < (2 if pages * POINTER <= PAGE else 3):  # the page array, an array's own, the vm_struct
                freed += task[end]["kind"] == "kfree"
                end += 1
            assert task[begin]["kind"] == "vmap_unlink" and task[begin]["call_site"] - task[begin]["ptr"] == (pages + 1) * PAGE
            calls.append({"call": "vfree", "pages": pages, "address": task[begin]["ptr"] & (1 << 64) - 1, "events": events_of(task[begin:end])})
            at = end
    document = {"release": recording.provenance.kernel_release, "memory": recording.provenance.ram_bytes, "cpus": recording.provenance.cpus, "calls": calls}
    Path(out).write_text(json.dumps(document, indent=None, separators=(",", ":")).replace('{"call"', '\n{"call"') + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
