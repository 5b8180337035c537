"""SLUB's state in a memory dump: caches, CPU slabs, every slab and every free object in the order of its list.

Struct names, fields and offsets come from the kernel's own DWARF; slabs are found by their page flag (full ones are on no list), and free lists are
followed in copies of whole slabs, because following them through drgn costs 50 times as long.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mmtwin.errors import CaptureError
from mmtwin.recording.capture.probes import SlabLayout
from mmtwin.recording.validate import SLAB_TABLES

try:
    import drgn
    from drgn.helpers.linux.cpumask import for_each_present_cpu
    from drgn.helpers.linux.list import list_for_each_entry
    from drgn.helpers.linux.percpu import per_cpu_ptr
except ImportError as error:  # an extra: pip install mmtwin[record]
    raise CaptureError("reading memory dumps needs drgn; install it with: pip install -e '.[record]' (in mmtwin's directory)") from error

MASK, PAGE = (1 << 64) - 1, 4096
CPU, CPU_PARTIAL, NODE_PARTIAL, DISCARDED = 1, 2, 3, 4
"""Values of ``where`` (`mmtwin.recording.model.SLAB_PLACES`)."""


def slab_layout(vmlinux: Path, nr_cpus: int) -> SlabLayout:
    """Offsets in this kernel's slab structs.

    :param nr_cpus: the kernel's CONFIG_NR_CPUS.
    :raises CaptureError: the file has no DWARF, or is no kernel with SLUB.
    """
    prog = drgn.Program()
    try:
        prog.extra_module("vmlinux", 0, create=True).try_file(str(vmlinux), force=True)
        cache, cpu, slab = (prog.type(f"struct {name}") for name in ("kmem_cache", "kmem_cache_cpu", "slab"))
        fields = ("cpu_slab", "flags", "min_partial", "size", "object_size", "inuse", "align", "oo", "refcount", "name")
        offsets = {f"cache_{name}": int(drgn.offsetof(cache, name)) for name in fields}
        try:
            irq_disable = int(drgn.offsetof(prog.type("struct paravirt_patch_template"), "irq.irq_disable"))
        except LookupError:
            irq_disable = -1
        return SlabLayout(
            **offsets,
            cache_random_seq=int(drgn.offsetof(cache, "random_seq")) if _has(cache, "random_seq") else -1,
            cpu_tid=int(drgn.offsetof(cpu, "tid")),
            cpu_slab=int(drgn.offsetof(cpu, "slab")),
            cpu_partial=int(drgn.offsetof(cpu, "partial")) if _has(cpu, "partial") else -1,
            slab_freelist=int(drgn.offsetof(slab, "freelist")),
            flush_cache=int(drgn.offsetof(prog.type("struct slub_flush_work"), "s")),
            irq_disable=irq_disable,
            word=int(drgn.offsetof(cpu, "tid")),
            nr_cpus=nr_cpus,
        )
    except Exception as error:  # drgn raises several kinds
        reason = str(error).splitlines()[0]
        raise CaptureError(f"{vmlinux}: no debug information for the structs of SLUB ({reason}); take the vmlinux of linux-image-*-dbg") from None


def _has(kind: Any, member: str) -> bool:
    return any(m.name == member for m in kind.members) or bool(kind.has_member(member))


def is_slub(prog: Any) -> bool:
    """Whether the kernel's slab allocator is SLUB with the structs read here (classic SLAB has no CPU slabs; later kernels have no page flag for slabs)."""
    try:
        prog.constant("PG_slab")
        return bool(prog.type("struct kmem_cache").has_member("cpu_slab")) and bool(prog.type("struct slab").has_member("freelist"))
    except LookupError:
        return False


def slab_scalars(prog: Any) -> dict[str, int]:
    """Single values that decide what a slab looks like and what a request may do."""
    found = {"gfp_allowed_mask": int(prog["gfp_allowed_mask"]), "present_cpus": len(list(for_each_present_cpu(prog))), "nr_cpu_ids": int(prog["nr_cpu_ids"])}
    for name in ("slub_min_order", "slub_max_order", "slub_min_objects"):
        found[name] = int(prog[name])
    try:
        found["memcg_kmem_enabled"] = int(prog["memcg_kmem_enabled_key"].key.enabled.counter > 0)
    except LookupError:
        found["memcg_kmem_enabled"] = 0
    return found


def slab_tables(prog: Any, cpus: list[int], pages: Any, page_offset: int) -> dict[str, pl.DataFrame]:
    """The five tables of `mmtwin.recording.model.Snapshot`.

    :param cpus: the online CPUs.
    :param pages: all of ``struct page`` (`mmtwin.recording.capture.snapshot.Pages`).
    :raises CaptureError: a broken list.
    """
    reader = _Reader(prog, cpus, pages, page_offset)
    return {name: pl.DataFrame(rows, schema=SLAB_TABLES[name], orient="row") for name, rows in reader.read().items()}


class _Reader:
    def __init__(self, prog: Any, cpus: list[int], pages: Any, page_offset: int) -> None:
        self.prog, self.cpus, self.pages, self.page_offset = prog, cpus, pages, page_offset
        self.type = prog.type("struct slab")
        self.rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in SLAB_TABLES}

    def read(self) -> dict[str, list[tuple[Any, ...]]]:
        caches = list(list_for_each_entry("struct kmem_cache", self.prog["slab_caches"].address_of_(), "list"))
        self.geometry = {}
        for position, cache in enumerate(caches):
            row = _cache(cache, len(caches) - 1 - position)
            self.rows["caches"].append(tuple(row[name] for name in SLAB_TABLES["caches"]))
            secret = int(cache.random) if cache.type_.type.has_member("random") else None
            self.geometry[row["address"] & MASK] = (row["id"], row["size"], row["red_left_pad"], row["offset"], secret)
        self._slabs()
        self._lists(caches)
        for pfn, slab in self.slabs.items():
            self._free_objects(pfn, slab["freelist"], 0)
        for pfn, freelist in self.cpu_freelists:
            self._free_objects(pfn, freelist, 1)
        columns = list(SLAB_TABLES["slabs"])
        self.rows["slabs"] += [tuple(slab[name] for name in columns) for _, slab in sorted(self.slabs.items())]
        return self.rows

    def _slabs(self) -> None:
        """Every page with PG_slab, with what ``struct slab`` says."""
        prog, raw = self.prog, self.pages.raw
        flags = self.pages.words(0)
        found = np.flatnonzero(flags & np.uint64(1 << int(prog.constant("PG_slab"))))
        offset = {name: int(drgn.offsetof(self.type, name)) for name in ("slab_cache", "freelist", "counters", "slabs")}
        word = {name: self.pages.words(at)[found] for name, at in offset.items()}
        head = (flags[found] & np.uint64(1 << int(prog.constant("PG_head")))).astype(bool)
        following = raw[np.minimum(found + 1, len(raw) - 1), int(drgn.offsetof(prog.type("struct page"), "compound_order"))]
        order = np.where(head, following, 0)
        self.slabs: dict[int, dict[str, int]] = {}
        for i, pfn in enumerate(found.tolist()):
            counters, owner = int(word["counters"][i]), int(word["slab_cache"][i])
            known = self.geometry.get(owner)
            inuse, objects = counters & 0xFFFF, counters >> 16 & 0x7FFF
            self.slabs[pfn] = {
                "pfn": pfn, "cache": known[0] if known else -1, "order": int(order[i]), "objects": objects, "inuse": inuse, "frozen": counters >> 31 & 1,
                # a full slab is on no list either, but it has objects in use; only a discarded one has none
                "where": DISCARDED if not inuse or not known else 0, "cpu": -1, "position": -1, "slabs": 0,
                "freelist": int(word["freelist"][i]), "owner": owner, "count": int(word["slabs"][i]) & 0xFFFFFFFF,
            }  # fmt: skip

    def _pfn(self, slab: int) -> int:
        pfn, rest = divmod(slab - self.pages.base, self.pages.size)
        if rest or pfn not in self.slabs:
            raise CaptureError(f"the dump has a broken list of slabs at {slab:#x}; was it taken while the machine ran?")
        return int(pfn)

    def _place(self, slab: int, cache: int, where: int, cpu: int, position: int) -> int:
        pfn = self._pfn(slab)
        one = self.slabs[pfn]
        if one["cache"] != cache or one["where"] not in (0, DISCARDED):
            raise CaptureError(f"the dump has the slab at page frame {pfn} on two lists, or on another cache's; was it taken while the machine ran?")
        one |= {"where": where, "cpu": cpu, "position": position, "slabs": one["count"] if where == CPU_PARTIAL else 0}
        return pfn

    def _lists(self, caches: list[Any]) -> None:
        """Which slab is where."""
        self.cpu_freelists: list[tuple[int, int]] = []
        following, linked = int(drgn.offsetof(self.type, "next")), int(drgn.offsetof(self.type, "slab_list"))
        partial = self.prog.type("struct kmem_cache_cpu").has_member("partial")
        for number, cache in zip(range(len(caches) - 1, -1, -1), caches, strict=True):
            for cpu in self.cpus:
                own = per_cpu_ptr(cache.cpu_slab, cpu)
                slab, freelist = int(own.slab), int(own.freelist)
                pfn = self._place(slab, number, CPU, cpu, 0) if slab else -1
                first = self._object(pfn, freelist) if freelist and slab else -1
                if freelist and slab:
                    self.cpu_freelists.append((pfn, freelist))
                self.rows["cache_cpus"].append((number, cpu, pfn, first))
                at, position = int(own.partial) if partial else 0, 0
                while at:
                    self._place(at, number, CPU_PARTIAL, cpu, position)
                    at, position = self._link(at, following), position + 1
            end = int(cache.node[0].partial.address_of_())
            at, position = int(cache.node[0].partial.next), 0
            while at != end:
                self._place(at - linked, number, NODE_PARTIAL, -1, position)
                at, position = self._link(at - linked, linked), position + 1
            if cache.type_.type.has_member("random_seq") and cache.random_seq:
                count, size = int(cache.oo.x) & 0xFFFF, int(cache.size)
                offsets = struct.unpack(f"<{count}I", self.prog.read(int(cache.random_seq), 4 * count))
                self.rows["random_seq"] += [(number, i, offset // size) for i, offset in enumerate(offsets)]

    def _link(self, slab: int, offset: int) -> int:
        return int.from_bytes(self.pages.raw[self._pfn(slab), offset : offset + self.pages.word].tobytes(), "little")

    def _base(self, pfn: int) -> int:
        return self.page_offset + pfn * PAGE

    def _object(self, pfn: int, address: int) -> int:
        """Number of an object in its slab."""
        slab = self.slabs[pfn]
        _, size, pad, _, _ = self.geometry[slab["owner"]]
        number, rest = divmod(address - self._base(pfn) - pad, size)
        if rest or not 0 <= number < slab["objects"]:
            raise CaptureError(f"the dump has a broken free list: {address:#x} is no object of the slab at page frame {pfn}")
        return int(number)

    def _free_objects(self, pfn: int, first: int, which: int) -> None:
        if not first or self.slabs[pfn]["owner"] not in self.geometry:
            return
        slab, rows = self.slabs[pfn], self.rows["free_objects"]
        base, (_, _, _, offset, secret) = self._base(pfn), self.geometry[slab["owner"]]
        data = self.prog.read(base, PAGE << slab["order"])
        address, position = first, 0
        for position, address in enumerate(_walk(first, data, base, offset, secret, self.pages.word)):
            if position >= slab["objects"]:
                raise CaptureError(f"the dump has a free list without end in the slab at page frame {pfn}; was it taken while the machine ran?")
            rows.append((pfn, which, position, self._object(pfn, address)))


def _walk(first: int, data: bytes, base: int, offset: int, secret: int | None, word: int) -> Iterator[int]:
    """Addresses of the free objects. SLAB_FREELIST_HARDENED stores the next one's address exclusive-or'ed with the cache's secret and with the byte-swapped
    address of the place it is stored at (``freelist_ptr``)."""
    address = first
    while address:
        yield address
        place = address + offset
        stored = int.from_bytes(data[place - base : place - base + word], "little")
        address = stored if secret is None else stored ^ secret ^ int.from_bytes(place.to_bytes(word, "little"), "big")


def _cache(cache: Any, number: int) -> dict[str, Any]:
    node = cache.node[0]
    members = {m.name for m in cache.type_.type.members}
    row: dict[str, Any] = {
        "id": number,
        "address": _signed(int(cache)),
        "cpu_slab": _signed(int(cache.cpu_slab)),
        "name": cache.name.string_().decode(errors="replace"),
    }
    plain = ("flags", "size", "object_size", "inuse", "offset", "align", "red_left_pad", "allocflags", "min_partial", "refcount")
    optional = ("cpu_partial", "cpu_partial_slabs", "usersize", "useroffset")
    row |= {name: int(cache.member_(name)) for name in plain} | {name: int(cache.member_(name)) if name in members else 0 for name in optional}
    for prefix, packed in (("", int(cache.oo.x)), ("min_", int(cache.min.x))):
        row |= {f"{prefix}order": packed >> 16, f"{prefix}objects": packed & 0xFFFF}
    row |= {"ctor": int(bool(cache.ctor)), "nr_partial": int(node.nr_partial)}
    counted = node.type_.type.has_member("nr_slabs")
    return row | {name: int(node.member_(name).counter) if counted else 0 for name in ("nr_slabs", "total_objects")}


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
