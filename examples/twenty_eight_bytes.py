"""The 28-byte experiment: kmalloc(28) and vmalloc(28) on a 32-bit machine with 2 GiB, until there is no more.

    python examples/twenty_eight_bytes.py

A real Linux 6.1 did the same (oracle/module/exhaust28.c): vmalloc ended after 15,308 requests, kmalloc after 25,585,524.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # pictures.py is beside this file
import pictures

import mmtwin

BYTES = 28


def main() -> None:
    m = mmtwin.boot("linux-6.1-i386", ram="2GiB", cpus=1)
    room = m.space.vmalloc_limit - m.space.vmalloc_start
    print(f"A 32-bit machine with 2 GiB, {m.free * 4 // 1024} MiB of them free. For vmalloc there are {room >> 20} MiB of addresses.\n")
    print(m.layout(picture=True))

    few = [m.kmalloc(BYTES) for _ in range(512)]
    pages = sorted({m.virt_to_phys(p) // 4096 for p in few})
    print(f"\n512 times kmalloc(28): {m.ksize(few[0])} bytes each, {len(pages)} pages (frames {pictures.runs(pages)}), no page-table entry.")

    areas = [m.vmalloc(BYTES) for _ in range(4)]
    print("\n4 times vmalloc(28): a page of memory each, and behind it an unmapped guard page:\n")
    for line in m.vmallocinfo().splitlines():
        print(f"  {line}")
    print("\n  addresses: " + " ".join(f"[28 of 4096 at {v:#x}][guard]" for v in areas[:2]) + " ...\n")

    before, count, steps = m.free, len(areas), 0
    try:
        while m.vmalloc(BYTES):
            count += 1
            if count % 1024 == 0:
                steps += 1
                print(f"  {count:>6} objects, {count * BYTES >> 10:>4} KiB asked for: {'#' * (count * 8192 * 48 // room):<48}|", flush=True)
    except mmtwin.VmallocFailure as error:
        print(f"\n  vmalloc number {count + 1} returns NULL:\n")
        for line in error.report.splitlines():
            print(f"    {line}")
    print(
        f"\n{count:,} objects of 28 bytes, {count * BYTES / 1024:.0f} KiB, have used up {room >> 20} MiB of addresses and {(before - m.free) * 4 // 1024} MiB of memory."
    )
    print(f"{m.free * 4 // 1024} MiB are still free, and kmalloc goes on: kmalloc(28) = {m.kmalloc(BYTES):#x}.")
    objects = (int(m.state.zone["managed_pages"][:2].sum())) * (4096 // 32)
    print(f"There is room for about {objects / 1e6:.0f} million of them in the {int(m.state.zone['managed_pages'][:2].sum()) // 256} MiB of the direct map.")


if __name__ == "__main__":
    main()
