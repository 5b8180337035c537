"""What oom.sh recorded of a real kernel's OOM killer, and show_mem's text taken apart."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

from mmtwin.show_mem import GLOBAL_ITEMS, NODE_ITEMS, MemInfo, ZoneInfo

GUESTS: list[dict[str, Any]] = json.loads(gzip.decompress((Path(__file__).parent / "data" / "oom-6.1.json.gz").read_bytes()))["guests"]
STRIKES = [(guest, strike) for guest in GUESTS for strike in guest["strikes"]]
NAMES = [f"{guest['mem_mib']}m-{guest['cpus']}cpu-{strike['scenario']}-{i}" for i, (guest, strike) in enumerate(STRIKES)]


def memory_part(report: str) -> str:
    """The lines of show_mem in a report."""
    return re.search(r"^Mem-Info:\n.*?pages reserved\n", report, re.M | re.S).group()  # type: ignore[union-attr]


def parse(text: str) -> MemInfo:
    """The counts in show_mem's text."""
    total = {name: int(re.search(rf"^ ?(?:\w+:\d+ )*{re.escape(name)}:(\d+)(?!\d*kB)", text, re.M).group(1)) for names in GLOBAL_ITEMS for name in names}  # type: ignore[union-attr]
    line = re.search(r"^Node 0 active_anon.*", text, re.M).group()  # type: ignore[union-attr]
    node = {name: int(re.search(rf" {re.escape(label)}(\d+)kB", line).group(1)) >> (0 if name.endswith("_kb") else 2) for name, label in NODE_ITEMS}  # type: ignore[union-attr]
    zones = []
    for name, rest in re.findall(r"^Node 0 (\w+) (free:.*)", text, re.M):
        pages = {key: int(value) >> 2 for key, value in re.findall(r"(\w+):(\d+)[kK]B", rest)}
        reserve = text.split(rest)[1].splitlines()[1].split()[1:]
        blocks = re.search(rf"^Node 0 {name}: (.*) = ", text, re.M).group(1)  # type: ignore[union-attr]
        cells = re.findall(r"(\d+)\*\d+kB(?: \((\w+)\))?", blocks)
        zones.append(ZoneInfo(name, pages, [int(value) for value in reserve], [(int(n), letters) for n, letters in cells]))
    huge = [
        (int(a), int(b), int(c), int(d))
        for a, b, c, d in re.findall(r"hugepages_total=(\d+) hugepages_free=(\d+) hugepages_surp=(\d+) hugepages_size=(\d+)kB", text)
    ]

    def number(pattern: str) -> int:
        return int(re.search(pattern, text, re.M).group(1))  # type: ignore[union-attr]

    return MemInfo(
        node, total, zones, huge, number(r"^(\d+) total pagecache"), number(r"^(\d+) pages in swap"), (number(r"^Free swap  = (\d+)"), number(r"^Total swap = (\d+)")),
        (number(r"^(\d+) pages RAM"), number(r"^(\d+) pages HighMem"), number(r"^(\d+) pages reserved")), "all_unreclaimable? yes" in text,
    )  # fmt: skip
