"""What a kmalloc and kfree, and a vmalloc and vfree, do on the twin, counted: the last columns of docs/vmalloc-cost.md.

    python docs/vmalloc_twin.py    docs/vmalloc-cost-twin.json, which docs/vmalloc_cost.py puts into its tables

As in the guest: one CPU, 1 GiB, address space that has page tables; the flush that a purge needs is shared by all areas that it purges.
"""

import json
from collections import Counter
from pathlib import Path

import mmtwin

TWIN = Path(__file__).parent / "vmalloc-cost-twin.json"
MACHINES = {"x86_64": "linux-6.1", "i686": "linux-6.1-i386"}
COLUMNS = ["twin: slab objects", "pages", "tree and list steps", "page-table writes", "flushes in 1,000 pairs"]
SIZES = [1 << k for k in range(3, 23)]
PAIRS = 1000


def counted(m: mmtwin.Machine, size: int, kind: str) -> list[float]:
    """Per pair: slab objects taken and given, pages likewise, steps in the trees and lists of areas, page-table entries written; and flushes in 1,000 pairs."""
    take, give = (m.kmalloc, m.kfree) if kind == "kmalloc" else (m.vmalloc, m.vfree)
    give(take(size))
    with m.events() as log:  # it sees calls of the machine's attributes, which is why they are looked up here
        getattr(m, give.__name__)(getattr(m, take.__name__)(size))
    kinds = Counter(e.kind for e in log)
    objects = kinds["kmem_cache_alloc"] + kinds["kmem_cache_free"]
    objects += 2 * sum(e.kind == "kmalloc" and e.bytes_alloc <= 8192 for e in log)  # each has its kfree
    before = m.steps()
    for _ in range(PAIRS):
        give(take(size))
    now = m.steps()
    change = {name: (now[name] - before[name]) / PAIRS for name in now}
    return [
        objects,
        change["pages_taken"] + change["pages_given"],
        change["tree_steps"] + change["list_steps"] + change["rotations"],
        change["page_table_writes"],
        change["tlb_flushes"] * PAIRS,
    ]


def main() -> None:
    """Writes the table's columns for every machine that mmtwin can boot."""
    made = {}
    for name, profile in MACHINES.items():
        m = mmtwin.boot(profile, ram="1GiB", cpus=1)
        spread = [m.vmalloc(4096) for _ in range(8)]  # the areas of a kernel that has been running
        rows = {}
        for size in SIZES:
            small, large = counted(m, size, "kmalloc"), counted(m, size, "vmalloc")
            rows[str(size)] = [f"{a:,.0f} / {b:,.0f}" for a, b in zip(small, large, strict=True)]
        for address in spread:
            m.vfree(address)
        made[name] = {"columns": COLUMNS, "rows": rows}
    TWIN.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
