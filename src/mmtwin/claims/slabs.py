"""Rows: slabs, alignment, colours, and the 28 bytes."""

from __future__ import annotations

from bisect import bisect
from itertools import pairwise
from typing import Any

from mmtwin.claims.table import claim
from mmtwin.claims.tools import frames
from mmtwin.errors import VmallocFailure
from mmtwin.machine import Machine
from mmtwin.mm.slab_classic_geometry import colour_offsets, slab_geometry


@claim(
    "kmalloc rests on slabs.",
    says="in a slab: 100 bytes {small}, 8,192 bytes {largest}, 8,193 bytes {large}",
    compared=("small", "largest", "large"),
    holds=lambda f: f["small"] == "yes",
    truth="Up to 8 KiB; what is larger comes from the page allocator itself.",
)
def kmalloc_slabs(m: Machine) -> dict[str, Any]:
    addresses = {size: m.kmalloc(size) for size in (100, 8192, 8193)}
    handed_out = set(m.frame("objects")["address"])
    small, largest, large = ("yes" if p in handed_out else "no" for p in addresses.values())
    return {"small": small, "largest": largest, "large": large}


@claim(
    "kmalloc's objects are aligned to their size.",
    says="16 objects of each power of two from 8 bytes to {largest:size}, all aligned: {aligned}",
    compared=("largest", "aligned"),
    holds=lambda f: f["aligned"] == "yes",
    truth="Powers of two are (promised since 5.4); 96 and 192 bytes are only aligned to 8.",
)
def kmalloc_aligned(m: Machine) -> dict[str, Any]:
    sizes = [8 << n for n in range(18)]
    aligned = all(m.kmalloc(size) % size == 0 for size in sizes for _ in range(16))
    return {"largest": sizes[-1], "aligned": "yes" if aligned else "no"}


@claim(
    "Slabs are coloured: they begin at different offsets, so that their objects do not share cache lines.",
    says="600-byte objects begin at {slub} offset in SLUB's slabs, at {slab} offsets in the classic SLAB's ({offsets})",
    compared=("slub", "slab", "offsets"),
    holds=lambda f: f["slub"] > 1,
    then="with the classic SLAB, up to Linux 6.7",
    truth="SLUB has no colours; it is the only slab allocator since 6.8.",
)
def slab_colours(m: Machine) -> dict[str, Any]:
    cache = m.kmem_cache_create("claims", 600, ctor=lambda address: None)
    objects = sorted(m.kmem_cache_alloc(cache) for _ in range(600))
    stride = min(b - a for a, b in pairwise(objects))
    slabs = sorted(m.frame("slabs")["pfn"])
    begins = {(m.virt_to_phys(p) - 4096 * slabs[bisect(slabs, m.virt_to_phys(p) // 4096) - 1]) % stride for p in objects}
    offsets = sorted(set(colour_offsets(slab_geometry(600, 8, ctor=True), 100)))
    return {"slub": len(begins), "slab": len(offsets), "offsets": ", ".join(map(str, offsets))}


@claim(
    "28 bytes belong in kmalloc.",
    says="28 bytes of kmalloc take {each} bytes, {per_page} objects share a page",
    compared=("each", "per_page"),
    holds=lambda f: f["per_page"] > 100,
    truth="A small object costs little more than its size.",
)
def kmalloc_28_bytes(m: Machine) -> dict[str, Any]:
    addresses = [m.kmalloc(28) for _ in range(2048)]
    pages: dict[int, int] = {}
    for p in addresses:
        pages[m.virt_to_phys(p) // 4096] = pages.get(m.virt_to_phys(p) // 4096, 0) + 1
    return {"each": m.ksize(addresses[0]), "per_page": max(pages.values())}


@claim(
    "With vmalloc each 28 bytes take a whole page.",
    says="{objects} requests took {pages} pages, and {each:size} of addresses each",
    compared=("objects", "pages", "each"),
    holds=lambda f: f["pages"] == f["objects"],
    truth="A page of memory, and behind it a page of addresses as a guard.",
)
def vmalloc_28_bytes(m: Machine) -> dict[str, Any]:
    addresses = sorted(m.vmalloc(28) for _ in range(64))
    each = min(b - a for a, b in pairwise(addresses))
    return {"objects": 64, "pages": len({frames(m, v, 28)[0] for v in addresses}), "each": each}


@claim(
    "With vmalloc(28) a 32-bit machine is soon out of space.",
    says="out of addresses after {count} requests ({bytes} bytes), with {free_mib} of 2,048 MiB free; the kernel's words: {words}",
    more="; kmalloc(28) went on to {kmalloc_count}",
    compared=("words",),
    about={"count": 0.01, "free_mib": 0.01},
    holds=lambda f: f["bytes"] < 1 << 20 and f["free_mib"] > 1800,
    machine=("linux-6.1-i386", "2GiB"),
    truth="After 420 KiB of objects. kmalloc(28) ends only with the memory of the direct map, after some 680 MiB of them.",
)
def vmalloc_28_bytes_to_the_end(m: Machine) -> dict[str, Any]:
    count, words = 0, ""
    try:
        while m.vmalloc(28):
            count += 1
    except VmallocFailure as error:
        words = error.report.splitlines()[0]
    return {"count": count, "bytes": count * 28, "free_mib": m.free * 4096 >> 20, "words": words}
