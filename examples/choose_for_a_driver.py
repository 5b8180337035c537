"""kmalloc, vmalloc or kvmalloc? What a driver gets from each for several sizes, on a fresh machine and on one whose memory is fragmented.

python examples/choose_for_a_driver.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # pictures.py is beside this file
import itertools

import pictures

import mmtwin
from mmtwin import GFP_KERNEL, AllocationFailure, DmaError, Machine

SIZES = [28, 2000, 4096, 16 << 10, 128 << 10, 1 << 20, 4 << 20, 8 << 20]


def show(size: int) -> str:
    return f"{size >> 20} MiB" if size >> 20 else f"{size >> 10} KiB" if size >> 10 and not size % 1024 else f"{size} B"


def describe(m: Machine, call: str, size: int) -> str:
    """One line: what it cost, where it is, whether a device could use it."""
    before = m.steps()
    try:
        p = getattr(m, call)(size)
    except AllocationFailure as error:
        return f"NULL ({str(error).split(': ', 1)[-1].split(';')[0][:60]})"
    cost = {name: count - before[name] for name, count in m.steps().items()}
    virtual = m.is_vmalloc_addr(p)
    pages = m.phys_pages(p, size)
    stretches = 1 + sum(b != a + 1 for a, b in itertools.pairwise(pages))
    device = m.device("nic", dma_mask=32)
    try:
        device.dma_map_single(p, size)
        dma = "yes"
    except DmaError:
        dma = "page by page"
    place = "vmalloc" if virtual else "direct map"
    return f"{place:<11} {stretches:>4} stretch{'es' if stretches > 1 else '  '} {cost['page_table_writes']:>5} entries   DMA: {dma}"


def fragment(m: Machine) -> None:
    """Takes nearly all memory page by page, and gives every second page back."""
    taken = []
    try:
        while m.free > 6000:
            taken.append(m.alloc_pages(0, GFP_KERNEL))
    except AllocationFailure:
        pass
    for pfn in taken[1::2]:
        m.free_pages(pfn, 0)
    try:
        while True:
            m.alloc_pages(3, GFP_KERNEL | 0x12000)  # __GFP_NORETRY | __GFP_NOWARN: blocks that were left
    except AllocationFailure:
        pass


def table(m: Machine) -> None:
    for size in SIZES:
        print(f"\n  {show(size)}")
        for call in ("kmalloc", "vmalloc", "kvmalloc"):
            print(f"    {call:<9} {describe(m.copy(), call, size)}")


def main() -> None:
    m = mmtwin.boot("linux-6.1", ram="256MiB", cpus=1)
    print("A freshly booted machine with 256 MiB. Its page frames, the darker the fuller:\n")
    print(pictures.memory_map(m, rows=4))
    table(m)
    fragment(m)
    print("\n\nThe same machine with its memory fragmented: every second page in use.\n")
    print(pictures.memory_map(m, rows=4))
    print("\nIts free lists:\n")
    print(pictures.free_lists(m))
    table(m)
    print(
        """
So: what a device reads or writes, and what is small, from kmalloc: contiguous, no page tables, mapped for DMA in one piece. Above a page or two it may fail when
memory is fragmented. Large tables that only the driver reads: kvmalloc, which takes the cheap way if there is one and vmalloc's if not; free with kvfree.
vmalloc itself when you know that it will be megabytes. (kvmalloc of 8 MiB needs so few entries on the fresh machine because it may map huge pages.)"""
    )


if __name__ == "__main__":
    main()
