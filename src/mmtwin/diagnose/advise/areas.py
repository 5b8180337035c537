"""Small areas of vmalloc, as /proc/vmallocinfo of a recording lists them: kmalloc gives the same for less.

No event of 6.1 says who calls vmalloc with how many bytes, so there is no traffic to look at, only what was there at the end.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import polars as pl

from mmtwin.diagnose.advise.rules import THRESHOLDS, Suggestion, Thresholds, Way
from mmtwin.gfp import GFP_KERNEL
from mmtwin.recording.model import Recording
from mmtwin.units import PAGE_SIZE

AREA = re.compile(r"^0x[0-9a-f]+-0x[0-9a-f]+ +\d+ (\S+)\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[\w+\])? pages=1 vmalloc", re.M)
"""One page of memory (``s_show``, mm/vmalloc.c)."""
EXECUTABLE = ("module", "insn", "bpf", "text", "trampoline")
"""Parts of the names of functions whose memory is run as code, which kmalloc's is not."""


def suggestions(recording: Recording, limits: Thresholds = THRESHOLDS) -> Iterator[Suggestion]:
    """One for each user of one-page areas, the one with most of them first."""
    counted = Counter(AREA.findall(recording.provenance.procfs.get("vmallocinfo", "")))
    for caller, number in sorted(counted.items(), key=lambda item: (-item[1], item[0])):
        if number < limits.small_areas or any(word in caller for word in EXECUTABLE):
            continue
        yield Suggestion(
            "small-vmalloc", "cost", f"{caller}: vmalloc of a page", "kmalloc and kfree, or kvmalloc if larger ones occur",
            f"{number:,} areas of one page at the end of the recording: each also has addresses of its own for two pages, a descriptor, an entry in two trees and in a page table",
            f"{limits.small_areas} areas of one page", ("the bytes asked for: /proc/vmallocinfo shows whole pages", "whether user space maps it, which needs whole pages"),
            now=Way("vmalloc"), then=Way("kmalloc"), weight=number,
        )  # fmt: skip


def requests(number: int) -> pl.DataFrame:
    """`number` allocations of a page that nobody frees, for `trial.run`."""
    names = ("row", "then", "bytes_req", "gfp", "cpu", "context", "then_cpu")
    return pl.DataFrame(
        [dict(zip(names, (row, -1, PAGE_SIZE, GFP_KERNEL, 0, 0, 0), strict=True)) for row in range(number)], schema=dict.fromkeys(names, pl.Int64)
    )
