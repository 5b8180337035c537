"""Rows: what an address is, page tables and what they cost, the layout of a 32-bit kernel."""

from __future__ import annotations

from typing import Any

from mmtwin.claims.table import claim
from mmtwin.claims.tools import page_table_entries
from mmtwin.machine import Machine


@claim(
    "kmalloc's address is the physical one plus a constant.",
    says="{different} different offset for sizes from 8 bytes to 4 MiB: {offset:x}",
    compared=("different", "offset"),
    holds=lambda f: f["different"] == 1,
    truth="The constant is PAGE_OFFSET (with address randomisation one of a boot's own).",
)
def kmalloc_constant_offset(m: Machine) -> dict[str, Any]:
    addresses = [m.kmalloc(8 << n) for n in range(20)]
    offsets = {p - m.virt_to_phys(p) for p in addresses}
    return {"different": len(offsets), "offset": min(offsets)}


@claim(
    "kmalloc changes no page table.",
    says="{sizes} requests from 8 bytes to 4 MiB changed {entries} entries",
    compared=("sizes", "entries"),
    holds=lambda f: f["entries"] == 0,
    truth="The direct map has mapped all memory since boot.",
)
def kmalloc_no_page_tables(m: Machine) -> dict[str, Any]:
    before = page_table_entries(m)
    for n in range(20):
        m.kfree(m.kmalloc(8 << n))
    return {"sizes": 20, "entries": page_table_entries(m) - before}


@claim(
    "vmalloc sets page tables in each allocation.",
    says="vmalloc of {pages} pages set {set} entries that map pages, and vfree took {cleared} away",
    compared=("pages", "set", "cleared"),
    holds=lambda f: f["set"] == f["pages"] == f["cleared"],
    truth="One for each page; the tables themselves stay when the area goes.",
)
def vmalloc_page_tables(m: Machine) -> dict[str, Any]:
    m.vfree(m.vmalloc(100 * 4096))  # the tables themselves, if they are new
    before = page_table_entries(m)
    v = m.vmalloc(100 * 4096)
    between = page_table_entries(m)
    mapped = sum(pfn >= 0 for pfn in m.phys_pages(v))
    m.vfree(v)
    return {"pages": 100, "set": between - before, "cleared": mapped}


@claim(
    "vmalloc is slower than kmalloc.",
    says="4 KiB from vmalloc took {objects} slab objects, {pages} page from the page allocator and {entries} page-table entry; from kmalloc a slab object and {kmalloc_entries} entries",
    more=". Instructions of a pair of calls: {kmalloc_instructions} for kmalloc, {vmalloc_instructions} for vmalloc",
    compared=("objects", "pages", "entries", "kmalloc_entries"),
    holds=lambda f: f["objects"] > 1 and f["entries"] > f["kmalloc_entries"],
    truth="12 to 15 times slower for small objects, 3 to 16 times for large ones (docs/vmalloc-cost.md).",
)
def vmalloc_slower(m: Machine) -> dict[str, Any]:
    for _ in range(8):  # as in a kernel that has been running: tables and spare descriptors are there
        m.vmalloc(4096), m.kmalloc(4096)
    before = m.steps()["pages_taken"]
    with m.events() as log:
        m.vmalloc(4096)
    pages = m.steps()["pages_taken"] - before
    written = page_table_entries(m)
    m.kmalloc(4096)
    kinds = [e.kind for e in log]
    return {
        "objects": kinds.count("kmalloc") + kinds.count("kmem_cache_alloc"),
        "pages": pages,
        "entries": sum(e.order for e in log if e.kind == "set_pte"),
        "kmalloc_entries": page_table_entries(m) - written,
    }


@claim(
    "The kernel has the addresses from 0xC0000000 to 0xFFFFFFFF, a process those below.",
    says="32-bit kernel: direct map from {page_offset:x}, the last address {last:x}, processes below {user_end:x}; kmalloc gave one behind {page_offset:x}: {inside}",
    compared=("page_offset", "last", "user_end", "inside"),
    holds=lambda f: f["page_offset"] == f["user_end"] == 0xC0000000 and f["last"] == 0xFFFFFFFF and f["inside"] == "yes",
    machine=("linux-6.1-i386", "2GiB"),
    truth="On 32-bit x86 as it is usually configured, still today.",
)
def layout_32_bits(m: Machine) -> dict[str, Any]:
    p, space = m.kmalloc(100), m.space
    return {"page_offset": space.page_offset, "last": (1 << space.bits) - 1, "user_end": space.user_end, "inside": "yes" if p >= space.page_offset else "no"}


@claim(
    "vmalloc's addresses begin at VMALLOC_START, a hole behind the direct map.",
    says="direct map up to {high_memory:x}, then a hole of {hole:size}, VMALLOC_START {vmalloc_start:x}, VMALLOC_END {vmalloc_end:x}",
    compared=("high_memory", "hole", "vmalloc_start", "vmalloc_end"),
    holds=lambda f: f["vmalloc_start"] == f["high_memory"] + f["hole"] and f["hole"] > 0,
    machine=("linux-6.1-i386", "2GiB"),
    truth="The hole of 8 MiB catches what runs past the end of the direct map.",
)
def vmalloc_start(m: Machine) -> dict[str, Any]:
    space = m.space
    return {
        "high_memory": space.high_memory,
        "hole": space.vmalloc_start - space.high_memory,
        "vmalloc_start": space.vmalloc_start,
        "vmalloc_end": space.vmalloc_end,
    }


@claim(
    "The kernel begins at 0xC0000000.",
    says="x86-64: direct map from {page_offset:x}, vmalloc from {vmalloc_start:x} with {room} TiB",
    compared=("page_offset", "vmalloc_start", "room"),
    holds=lambda f: f["page_offset"] == 0xC0000000,
    then="on 32-bit machines",
    truth="With 64 bits the kernel has the upper half of all addresses, and vmalloc does not run out of them.",
)
def layout_64_bits(m: Machine) -> dict[str, Any]:
    space = m.space
    return {"page_offset": space.page_offset, "vmalloc_start": space.vmalloc_start, "room": space.vmalloc_limit - space.vmalloc_start >> 40}
