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


@claim(
    "malloc's memory can be swapped out.",
    says="{pages} pages were touched, 64 MiB more than there was memory for; on the disk then: {out}; contents afterwards {contents}",
    more="; {swapped} pages were out",
    compared=("out", "contents"),
    about={"swapped": 0.25},
    holds=lambda f: f["out"] == "yes" and f["contents"] == "intact",
    truth="Where there is swap space. The page comes back with the next access, from a fault that takes as long as the disk.",
)
def malloc_swapped(m: Machine) -> dict[str, Any]:
    m.swapon(256 << 20)
    task, pages = m.spawn("app"), m.free + (64 << 20) // 4096
    a = (task.malloc((pages + 1) * 4096) + 4095) & -4096
    task.madvise(a, pages * 4096, MADV_NOHUGEPAGE)
    marked = range(0, pages, 997)
    for n in marked:
        task.write(a + 4096 * n, b"page %d" % n)
    task.touch(a, pages * 4096)
    swapped = task.swapped()
    intact = all(task.read(a + 4096 * n, 12).rstrip(b"\0") == b"page %d" % n for n in marked)
    return {"pages": pages, "out": "yes" if swapped else "no", "swapped": swapped, "contents": "intact" if intact else "lost"}
