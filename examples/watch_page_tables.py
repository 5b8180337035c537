"""Watches the page tables: kmalloc needs none, vmalloc writes an entry for each page, vfree takes them away, and the TLB remembers for a while.

python examples/watch_page_tables.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # pictures.py is beside this file
import pictures

import mmtwin
from mmtwin import GFP_KERNEL


def main() -> None:
    m = mmtwin.boot("linux-6.1", ram="256MiB", cpus=2)
    m.stale_tlb = True  # a processor remembers translations that nobody has flushed; by default mmtwin reports such a use at once

    def written() -> str:
        counters = m.mmu_counters()
        return (
            f"entries that map pages: {counters['pte_writes']}, entries that lead to tables: {counters['table_writes']}, tables made: {counters['table_pages']}"
        )

    print(f"At boot:        {written()}")
    p = m.kmalloc(100)
    print(f"kmalloc(100):   {written()}\n\nIts address was mapped before it was asked for, with all of memory:\n")
    print(pictures.walk(m, p))

    taken = [m.alloc_pages(0, GFP_KERNEL) for _ in range(64)]  # somebody else's pages
    for pfn in taken[::2]:
        m.free_pages(pfn, 0)
    v = m.vmalloc(16 * 4096)
    print(f"\nvmalloc(64 KiB): {written()}\n\nIts first page:\n")
    print(pictures.walk(m, v))
    pages = m.phys_pages(v)
    print(f"\nThe 16 pages, in the order of their addresses, lie in frames {pictures.runs(pages)}:\n")
    print(f"  frames 0x{min(taken):x} to 0x{max(taken):x}: {pictures.frames(range(min(taken), max(taken) + 1), pages)}")

    m.write(v, b"still here")
    print(f"\nCPU 0 writes {m.read(v, 10)!r} there, and its TLB keeps the translation. Then vfree:\n")
    m.vfree(v)
    print(pictures.walk(m, v))
    print(f"\n  CPU 0 still reads {m.read(v, 10)!r}: nothing has flushed its TLB yet.")
    for what, cpu in (("CPU 1, which never looked", 1), ("CPU 0 after the purge", 0)):
        if cpu == 0:
            m.vm_unmap_aliases()
        try:
            m.read(v, 1, cpu=cpu)
        except mmtwin.PageFault as error:
            print(f"\n  {what}:\n")
            print("\n".join("    " + line for line in error.report.strip().splitlines()))


if __name__ == "__main__":
    main()
