"""The virtual-area allocator with a caller that does what the kernel's callers do, for tests below the Machine's own interface. In the interpreter unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mmtwin.mm import vmap_entry as entry
from mmtwin.mm.validate_vmalloc import digest, validate_vmalloc
from mmtwin.mm.vmalloc import NO_SPARE, OVERFLOW, vmalloc_init
from mmtwin.mm.vmap_block import NO_BLOCK, block_bytes
from mmtwin.mm.vmap_tables import FREED_AREA, NIL, TREE_FREE, VMAP_BLOCK_FLAG, VMAP_RAM, Vmalloc, bias, new_vmalloc, reserve_areas, unbias
from mmtwin.mm.vmap_tree import NO_ROOM

VMALLOC_START, VMALLOC_END = 0xFFFFC90000000000, 0xFFFFE8FFFFFFFFFF
MODULES_VADDR, MODULES_END = 0xFFFFFFFFC0000000, 0xFFFFFFFFFF000000
PAGE = 4096


class VmallocMachine:
    """Addresses are plain here. Objects are numbered in the order in which they are allocated, from 1; `objects` holds the live ones."""

    def __init__(
        self,
        version: int = 601,
        cpus: int = 1,
        start: int = VMALLOC_START,
        end: int = VMALLOC_END,
        bits: int = 64,
        compiled: bool = False,
        early: tuple[tuple[int, int], ...] = (),
        areas: int = 64,
        **more: Any,
    ) -> None:
        modules = (MODULES_VADDR, MODULES_END) if bits == 64 else (start, end)
        self.v: Vmalloc = new_vmalloc(cpus, start, end, *modules, version=version, bits_per_long=bits, areas=areas, **more)
        self.compiled, self.cpus, self.start, self.end = compiled, cpus, start, end
        self.objects: set[int] = set()
        self.number = 0
        table = np.array([(bias(a), size) for a, size in early], dtype=np.int64).reshape(-1, 2)
        assert vmalloc_init(self.v, table) == 0
        heads, last = int(self.v.config[0]["heads"]), int(self.v.config[0]["areas"])
        for row in range(heads, last):
            self.v.area[row]["object"] = self.new_object()
        self.renew()

    def renew(self) -> None:
        """A new handle, for new tables."""
        self.table = entry.address_table(self.v)
        self.handle = int(self.table.ctypes.data)

    def call(self, function: Callable[..., Any], *arguments: Any) -> int:
        """One entry, and what it freed."""
        result = int((function if self.compiled else getattr(function, "py_func", function))(self.handle, *arguments) or 0)
        config = self.v.config[0]
        freed = self.v.freed[: int(config["freed"])]
        for kernel_object, kind in freed.tolist():
            if kind == FREED_AREA:
                self.objects.remove(kernel_object)
        self.log = freed.copy()
        config["freed"] = 0
        return result

    def new_object(self) -> int:
        self.number += 1
        self.objects.add(self.number)
        return self.number

    def area(self, size: int, align: int = 1, cpu: int = 0, start: int | None = None, end: int | None = None, flags: int = 0) -> int:
        """``alloc_vmap_area``: the busy area's row, or `OVERFLOW`."""
        vstart, vend = bias(self.start if start is None else start), bias(self.end if end is None else end)
        row = self.call(entry.pool_area_entry, cpu, size, align, vstart, vend, flags)
        if row:
            return row
        self.v, old = reserve_areas(self.v), self.v
        if self.v is not old:
            self.renew()
        kernel_object = self.new_object()
        for attempt in range(2):
            spare = entry.NO_OBJECT if int(self.v.cpu[cpu]["ne_fit_preload_node"]) else self.new_object()
            row = self.call(entry.alloc_area_entry, cpu, size, align, vstart, vend, flags, kernel_object, spare)
            assert row not in (NO_SPARE, NO_ROOM)
            if row > 0:
                return row
            if not attempt:
                self.call(entry.overflow_purge_entry)
        self.objects.remove(kernel_object)
        return OVERFLOW

    def alloc(self, size: int, align: int = 1, cpu: int = 0, start: int | None = None, end: int | None = None) -> int:
        """The address of a new area, 0 if there is no room."""
        row = self.area(size, align, cpu, start, end)
        return self.address(row) if row > 0 else 0

    def address(self, row: int) -> int:
        return unbias(int(self.v.area[row]["va_start"]))

    def find(self, address: int) -> int:
        return self.call(entry.find_area_entry, bias(address))

    def free(self, address: int, drain: bool = True) -> None:
        """``remove_vm_area``, and the drain work at once if it is scheduled."""
        row = self.find(address)
        assert row
        if self.call(entry.free_area_entry, row) and drain:
            self.drain()

    def drain(self) -> int:
        return self.call(entry.drain_entry)

    def map_ram(self, pages: int, cpu: int = 0) -> int:
        """``vb_alloc``: the address of a piece, 0 if there is no room."""
        order = (pages - 1).bit_length()
        address = self.call(entry.block_alloc_entry, cpu, order)
        if address == NO_BLOCK:
            self.v = reserve_areas(self.v, blocks=1)
            self.renew()
            size = block_bytes(self.v)
            row = self.area(size, size, cpu, flags=VMAP_RAM | VMAP_BLOCK_FLAG)
            if row < 0:
                return 0
            self.number += 1
            address = self.call(entry.new_block_entry, cpu, row, order, self.number)
        return unbias(address)

    def unmap_ram(self, address: int, pages: int) -> None:
        if self.call(entry.block_free_entry, bias(address), (pages - 1).bit_length()) == 1:
            self.drain()

    def unmap_aliases(self) -> int:
        return self.call(entry.unmap_aliases_entry, int(self.v.config[0]["ulong_max"]), bias(0), False)

    def on(self, head: int) -> list[tuple[int, int]]:
        """The areas of a list, in its order: plain start and end."""
        areas, at = [], int(self.v.area[head]["next"])
        while at != head:
            areas.append((self.address(at), unbias(int(self.v.area[at]["va_end"]))))
            at = int(self.v.area[at]["next"])
        return areas

    def free_areas(self) -> list[tuple[int, int]]:
        return self.on(TREE_FREE)

    def busy(self) -> list[tuple[int, int]]:
        nodes = int(self.v.config[0]["nr_nodes"])
        return sorted(area for node in range(nodes) for area in self.on(1 + node))

    def lazy(self) -> list[tuple[int, int]]:
        nodes = int(self.v.config[0]["nr_nodes"])
        return sorted(area for node in range(nodes) for area in self.on(1 + nodes + node))

    def pools(self) -> list[tuple[int, int]]:
        config = self.v.config[0]
        return [area for pool in range(int(config["pool_base"]), int(config["heads"])) for area in self.on(pool)]

    def validate(self) -> None:
        """The tables, and that the live objects are those of the areas."""
        validate_vmalloc(self.v)
        last = int(self.v.config[0]["areas"])
        used = self.v.area[:last][self.v.area["state"][:last] != 0]
        assert sorted(used["object"].tolist()) == sorted(self.objects)

    def digest(self) -> str:
        return digest(self.v)

    def shape(self, tree: int = TREE_FREE) -> tuple[Any, ...] | None:
        """The tree as nested tuples: start, end, colour, left, right."""

        def below(row: int) -> tuple[Any, ...] | None:
            if row == NIL:
                return None
            node = self.v.area[row]
            return (self.address(row), unbias(int(node["va_end"])), int(node["rb_color"]), below(int(node["rb_left"])), below(int(node["rb_right"])))

        return below(int(self.v.tree[tree]["rb_root"]))
