"""Memory is free, and yet kmalloc fails: how that comes about, page by page, and why vmalloc does not mind.

python examples/fragmentation.py
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # pictures.py is beside this file
import pictures

import mmtwin
from mmtwin import GFP_KERNEL, AllocationFailure, Machine

WANTED = 256 << 10


def picture(m: Machine, when: str) -> None:
    print(f"\n{when}: {m.free * 4 / 1024:.0f} MiB free\n")
    print(pictures.memory_map(m, rows=6))
    print()
    print(pictures.free_lists(m))
    for call in ("kmalloc", "vmalloc"):
        try:
            getattr(m.copy(), call)(WANTED)
            print(f"  {call}(256 KiB): served")
        except AllocationFailure as error:
            print(f"  {call}(256 KiB): {error}")


def main() -> None:
    m = mmtwin.boot("linux-6.1", ram="128MiB", cpus=1)
    picture(m, "After boot")

    draw, taken = random.Random(1), []
    while m.free > 4000:
        taken.append(m.alloc_pages(0, GFP_KERNEL))
    picture(m, "Many single pages in use (unmovable ones, as slabs and page tables are)")

    draw.shuffle(taken)
    for pfn in taken[: len(taken) // 3]:
        m.free_pages(pfn, 0)
    m.drain()
    try:
        while True:
            m.alloc_pages(6, GFP_KERNEL)  # the large blocks that are left go to somebody else
    except AllocationFailure:
        pass
    picture(m, "A third of them given back, here and there, and the last large blocks taken")

    left = sorted(taken[len(taken) // 3 :])
    for pfn in left[: len(left) * 3 // 4]:
        m.free_pages(pfn, 0)
    m.drain()
    picture(m, "Three quarters of the rest given back: neighbours merge, and large blocks come back")


if __name__ == "__main__":
    main()
