"""Rows: malloc, the third of the three: memory of a process."""

from __future__ import annotations

from typing import Any

from mmtwin.claims.table import claim
from mmtwin.claims.tools import present, runs
from mmtwin.machine import Machine
from mmtwin.process import MADV_NOHUGEPAGE


@claim(
    "malloc gives a user process memory.",
    says="an address in the process's [{region}]; in the kernel's half of the addresses: {kernel}",
    compared=("region", "kernel"),
    holds=lambda f: f["region"] == "heap" and f["kernel"] == "no",
    truth="Of its own address space, which no other process sees; what is large comes from a mapping of its own (mmap).",
)
def malloc_user_memory(m: Machine) -> dict[str, Any]:
    task = m.spawn("app")
    a = task.malloc(100)
    line = next(line for line in task.maps().splitlines() if (ends := [int(x, 16) for x in line.split()[0].split("-")])[0] <= a < ends[1])
    return {"region": line.split()[-1].strip("[]"), "kernel": "yes" if a >= m.PAGE_OFFSET else "no"}


@claim(
    "malloc's memory is there when malloc returns.",
    says="malloc of {bytes:size}: {before} of its pages had memory; after {touched} were touched: {after}",
    compared=("bytes", "before", "touched", "after"),
    holds=lambda f: f["before"] > 0,
    truth="malloc gives addresses. A page of memory comes with the first access to it, from a page fault.",
)
def malloc_lazy(m: Machine) -> dict[str, Any]:
    task = m.spawn("app")
    a = task.malloc(64 << 20)
    task.madvise(a & -4096, 64 << 20, MADV_NOHUGEPAGE)
    pages = [(a & -4096) + 4096 * n for n in range(1, 16383)]

    before = len(present(task, pages))
    for n in range(256):  # in no order, as programs do
        task.write(pages[n * 97 % 256], b"\1")
    return {"bytes": 64 << 20, "before": before, "touched": 256, "after": len(present(task, pages))}


@claim(
    "malloc's memory is contiguous in its addresses only.",
    says="{pages} pages in a row, behind them {runs} stretches of adjacent page frames",
    compared=("pages",),
    about={"runs": 0.05},
    holds=lambda f: f["runs"] > 1,
    truth="Each page is the one that was free when it was touched first.",
)
def malloc_scattered(m: Machine) -> dict[str, Any]:
    task = m.spawn("app")
    a = task.malloc(64 << 20)
    task.madvise(a & -4096, 64 << 20, MADV_NOHUGEPAGE)
    pages = [(a & -4096) + 4096 * n for n in range(1, 257)]
    for n in range(256):  # in no order, as programs do
        task.write(pages[n * 97 % 256], b"\1")
    return {"pages": 256, "runs": runs([task.translate(page) // 4096 for page in pages])}
