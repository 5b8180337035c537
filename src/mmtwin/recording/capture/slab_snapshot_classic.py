"""The classic SLAB allocator's state in a memory dump: caches, arrays with their entries in order, every slab on its list, and its free objects in order.

Struct names, fields and offsets come from the kernel's own DWARF. `mmtwin.recording.slab_classic` says what is in the tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from mmtwin.errors import CaptureError
from mmtwin.recording.slab_classic import CLASSIC_TABLES, NUMBERS, PAGE_SHIFT, SHARED

try:
    import drgn
    from drgn.helpers.linux.list import list_for_each_entry
    from drgn.helpers.linux.percpu import per_cpu_ptr
except ImportError as error:  # an extra: pip install mmtwin[record]
    raise CaptureError("reading memory dumps needs drgn; install it with: pip install -e '.[record]' (in mmtwin's directory)") from error

MASK = (1 << 64) - 1


class ClassicLayout(NamedTuple):
    """Byte offsets that the probes need."""

    array_touched: int
    cache_cpu_cache: int
    node_next_reap: int
    node_free_touched: int


def is_classic(prog: Any) -> bool:
    """Whether the kernel's slab allocator is the classic SLAB."""
    try:
        return bool(prog.type("struct kmem_cache").has_member("cpu_cache"))
    except LookupError:
        return False


def classic_layout(vmlinux: Path) -> ClassicLayout:
    """Offsets in this kernel's structs.

    :raises CaptureError: the file has no DWARF, or is no kernel with SLAB.
    """
    prog = drgn.Program()
    try:
        prog.extra_module("vmlinux", 0, create=True).try_file(str(vmlinux), force=True)
        array, cache, node = (prog.type(f"struct {name}") for name in ("array_cache", "kmem_cache", "kmem_cache_node"))
        return ClassicLayout(
            int(drgn.offsetof(array, "touched")),
            int(drgn.offsetof(cache, "cpu_cache")),
            int(drgn.offsetof(node, "next_reap")),
            int(drgn.offsetof(node, "free_touched")),
        )
    except Exception as error:  # drgn raises several kinds
        reason = str(error).splitlines()[0]
        raise CaptureError(f"{vmlinux}: no debug information for the structs of SLAB ({reason}); build the kernel with oracle/slab-kernel.sh") from None


def classic_scalars(prog: Any) -> dict[str, int]:
    """Single values that decide what a slab looks like."""
    found = {"nr_cpu_ids": int(prog["nr_cpu_ids"]), "slab_max_order": int(prog["slab_max_order"]), "jiffies": int(prog["jiffies"])}
    return found | {"use_alien_caches": int(prog["use_alien_caches"])}


def classic_tables(prog: Any, cpus: list[int], pages: Any, page_offset: int) -> dict[str, pl.DataFrame]:
    """The tables of `CLASSIC_TABLES`.

    :param cpus: the online CPUs.
    :param pages: all of ``struct page`` (`mmtwin.recording.capture.snapshot.Pages`).
    :raises CaptureError: a broken list, a number that is none.
    """
    rows = _Reader(prog, cpus, pages, page_offset).read()
    return {name: pl.DataFrame(rows[name], schema=dict(schema), orient="row") for name, schema in CLASSIC_TABLES.items()}


class _Reader:
    def __init__(self, prog: Any, cpus: list[int], pages: Any, page_offset: int) -> None:
        self.prog, self.cpus, self.pages, self.page_offset = prog, cpus, pages, page_offset
        self.rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in CLASSIC_TABLES}

    def read(self) -> dict[str, list[tuple[Any, ...]]]:
        caches = list(list_for_each_entry("struct kmem_cache", self.prog["slab_caches"].address_of_(), "list"))
        for position, cache in enumerate(caches):
            number = len(caches) - 1 - position
            node = cache.node[0]
            self._cache(cache, node, number)
            for cpu in self.cpus:
                self._array(per_cpu_ptr(cache.cpu_cache, cpu), number, cpu)
            if node.shared:
                self._array(node.shared, number, SHARED)
            for which, name in enumerate(("slabs_full", "slabs_partial", "slabs_free")):
                for place, slab in enumerate(self._slabs(node, name)):
                    self._slab(slab, cache, number, which, place)
        return self.rows

    def _physical(self, address: int) -> int:
        found = (address & MASK) - self.page_offset
        if not 0 <= found < self.pages.count << PAGE_SHIFT:
            raise CaptureError(f"the dump has an object at {address:#x}, outside of its memory; was it taken while the machine ran?")
        return found

    def _cache(self, cache: Any, node: Any, number: int) -> None:
        row = {
            "id": number,
            "address": _signed(int(cache)),
            "cpu_cache": _signed(int(cache.cpu_cache)),
            "node": _signed(int(node)),
            "ctor": int(bool(cache.ctor)),
        }
        for field in NUMBERS:
            if field not in row:
                row[field] = int((cache if cache.type_.type.has_member(field) else node).member_(field))
        self.rows["classic_caches"].append((*(row[field] for field in NUMBERS), cache.name.string_().decode()))

    def _array(self, array: Any, cache: int, cpu: int) -> None:
        avail, limit = int(array.avail), int(array.limit)
        if not 0 <= avail <= limit:
            raise CaptureError(f"the dump has an array with {avail} objects of at most {limit}; was it taken while the machine ran?")
        batchcount = int(array.batchcount)
        self.rows["classic_arrays"].append((cache, cpu, _signed(int(array)), avail, limit, batchcount, int(array.touched)))
        entries = self.prog.read(int(array.entry.address_of_()), 8 * avail)
        found = (int.from_bytes(entries[i : i + 8], "little") for i in range(0, len(entries), 8))
        self.rows["classic_entries"] += [(cache, cpu, position, self._physical(address)) for position, address in enumerate(found)]

    def _slabs(self, node: Any, name: str) -> Iterator[Any]:
        for count, slab in enumerate(list_for_each_entry("struct slab", node.member_(name).address_of_(), "slab_list")):
            if count > self.pages.count:
                raise CaptureError(f"the dump has a list {name} without an end; was it taken while the machine ran?")
            yield slab

    def _slab(self, slab: Any, cache: Any, number: int, which: int, position: int) -> None:
        pfn, rest = divmod(int(slab) - self.pages.base, self.pages.size)
        num, active = int(cache.num), int(slab.active)
        if rest or not 0 <= pfn < self.pages.count or not 0 <= active <= num:
            raise CaptureError(f"the dump has a broken slab at {int(slab):#x}; was it taken while the machine ran?")
        freelist = int(slab.freelist)
        first = self._physical(int(slab.s_mem)) - (pfn << PAGE_SHIFT)
        self.rows["classic_slabs"].append((pfn, number, which, position, active, first, self._physical(freelist) if freelist else -1))
        numbers = self.prog.read(freelist + active, num - active) if freelist else b""
        if len(numbers) != num - active or any(n >= num for n in numbers):
            raise CaptureError(f"the dump has a slab at page frame {pfn:#x} with broken object numbers; was it taken while the machine ran?")
        self.rows["classic_indices"] += [(pfn, place, n) for place, n in enumerate(numbers)]


def _signed(value: int) -> int:
    value &= MASK
    return value - (1 << 64) if value >> 63 else value
