"""Rows: who gets which memory, how contiguous it is, how large it may be."""

from __future__ import annotations

from typing import Any

from mmtwin.claims.table import claim
from mmtwin.claims.tools import frames, region, runs, served, user_may
from mmtwin.gfp import GFP_KERNEL
from mmtwin.machine import Machine


@claim(
    "kmalloc gives kernel memory.",
    says="an address in the {region}; a process may touch it: {user}",
    compared=("region", "user"),
    holds=lambda f: f["region"] == "direct map" and f["user"] == "no",
    truth="It lies in the direct map, whose page tables allow no process.",
)
def kmalloc_kernel_memory(m: Machine) -> dict[str, Any]:
    p = m.kmalloc(100)
    return {"region": region(m, p), "user": "yes" if user_may(m, p) else "no"}


@claim(
    "vmalloc gives kernel memory.",
    says="an address in the {region} space; a process may touch it: {user}",
    compared=("region", "user"),
    holds=lambda f: f["region"] == "vmalloc" and f["user"] == "no",
    truth="It lies in the vmalloc space, which is the kernel's. A driver can show it to a process (vmalloc_user and remap_vmalloc_range).",
)
def vmalloc_kernel_memory(m: Machine) -> dict[str, Any]:
    v = m.vmalloc(100)
    return {"region": region(m, v), "user": "yes" if user_may(m, v) else "no"}


@claim(
    "kmalloc's memory is physically contiguous.",
    says="{bytes:size} in {runs} stretch of adjacent page frames",
    compared=("bytes", "runs"),
    holds=lambda f: f["runs"] == 1,
    truth="Always, up to its largest size.",
)
def kmalloc_contiguous(m: Machine) -> dict[str, Any]:
    p = m.kmalloc(4 << 20)
    return {"bytes": 4 << 20, "runs": runs(frames(m, p, 4 << 20))}


@claim(
    "vmalloc's memory is contiguous in its addresses only.",
    says="{pages} pages in a row, behind them {runs} stretches of adjacent page frames",
    compared=("pages", "runs"),
    holds=lambda f: f["runs"] > 1,
    truth="Its pages are taken one by one, wherever they are: here the pages that lie between others that are in use.",
)
def vmalloc_scattered(m: Machine) -> dict[str, Any]:
    taken = [m.alloc_pages(0, GFP_KERNEL) for _ in range(512)]
    for pfn in taken[1::2]:
        m.free_pages(pfn, 0)
    v = m.vmalloc(64 * 4096)
    return {"pages": 64, "runs": runs(frames(m, v, 64 * 4096))}


@claim(
    "kmalloc is limited in size; what vmalloc gives can be large.",
    says="kmalloc gives up to {largest:size}, and not a byte more; vmalloc of {bytes:size}: {large}",
    compared=("largest", "bytes", "large"),
    holds=lambda f: f["large"] == "served" and f["largest"] < f["bytes"],
    truth="kmalloc ends where the page allocator's blocks do (order 10), if there still is a free block of that size.",
)
def kmalloc_limited(m: Machine) -> dict[str, Any]:
    low, high = 1 << 20, 64 << 20
    while high - low > 1:
        size = (low + high) // 2
        low, high = (size, high) if served(m.kmalloc, size) else (low, size)
    return {"largest": low, "bytes": 64 << 20, "large": "served" if served(m.vmalloc, 64 << 20) else "NULL"}


@claim(
    "kmalloc gives 128 KiB at most (less 16 bytes in the oldest kernels).",
    says="kmalloc of one byte more than 128 KiB: {more}, {usable:size} usable",
    compared=("more", "usable"),
    holds=lambda f: f["more"] == "NULL",
    then="up to Linux 2.6.21; 2.0 kept 16 bytes of each block for itself",
    truth="4 MiB now: above 8 KiB kmalloc is the page allocator, and takes a power of two of pages.",
)
def kmalloc_128_kib(m: Machine) -> dict[str, Any]:
    if not served(m.kmalloc, 128 * 1024 + 1):
        return {"more": "NULL", "usable": 0}
    return {"more": "served", "usable": m.ksize(m.kmalloc(128 * 1024 + 1))}


@claim(
    "kmalloc's smallest object has 32 bytes.",
    says="1 byte takes {one}, 28 bytes take {twenty_eight}",
    compared=("one", "twenty_eight"),
    holds=lambda f: f["one"] == 32,
    then="with the classic SLAB and 4 KiB pages",
    truth="SLUB begins with 8 bytes.",
)
def kmalloc_32_bytes(m: Machine) -> dict[str, Any]:
    return {"one": m.ksize(m.kmalloc(1)), "twenty_eight": m.ksize(m.kmalloc(28))}


@claim(
    "kmalloc rounds a size up to a power of two.",
    says="100 bytes take {a}, 129 take {b}, 193 take {c}, 4,097 take {d}",
    compared=("a", "b", "c", "d"),
    holds=lambda f: all(f[name] & f[name] - 1 == 0 for name in "abcd"),
    then="up to Linux 2.4",
    truth="To the next size class: the powers of two from 8 bytes, and 96 and 192 between them; above 8 KiB a power of two of pages.",
)
def kmalloc_powers_of_two(m: Machine) -> dict[str, Any]:
    a, b, c, d = (m.ksize(m.kmalloc(size)) for size in (100, 129, 193, 4097))
    return {"a": a, "b": b, "c": c, "d": d}


@claim(
    "vmalloc's memory can be as large as one likes.",
    says="a page more than the machine has: {all}",
    compared=("all",),
    holds=lambda f: f["all"] == "served",
    truth="Every page of it is a page of RAM from the start, so there cannot be more than the machine has; on 32 bits there is less room for addresses than that.",
)
def vmalloc_without_limit(m: Machine) -> dict[str, Any]:
    return {"all": "served" if served(m.vmalloc, m.managed * 4096 + 4096) else "NULL"}


@claim(
    "On a 32-bit machine vmalloc's addresses are scarce.",
    says="{room:size} for all areas, with {memory:size} of memory",
    compared=("room", "memory"),
    holds=lambda f: f["room"] * 8 < f["memory"],
    machine=("linux-6.1-i386", "2GiB"),
    truth="120 MiB unless the command line says otherwise (vmalloc=), each MiB of which is one less for kmalloc. On 64 bits there are 32 TiB.",
)
def vmalloc_room_32_bits(m: Machine) -> dict[str, Any]:
    return {"room": m.space.vmalloc_limit - m.space.vmalloc_start, "memory": 2 << 30}
