"""The virtual-area allocator's state in a memory dump: trees with their shape, lazy and pooled areas, spare objects, vm_map_ram blocks, upper page tables.

Struct names, fields and offsets come from the kernel's own DWARF. 6.1 has one tree each for free, busy and lazy areas; since 6.9 the busy and lazy ones
are in ``struct vmap_node``, which also has pools of free areas by size.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from mmtwin.errors import CaptureError
from mmtwin.recording.capture.vmap_probes import VmapLayout
from mmtwin.recording.vmaps import MAX_AREAS, VMAP_TABLES

try:
    import drgn
    from drgn.helpers.linux.cpumask import for_each_possible_cpu
    from drgn.helpers.linux.percpu import per_cpu
except ImportError as error:  # an extra: pip install mmtwin[record]
    raise CaptureError("reading memory dumps needs drgn; install it with: pip install -e '.[record]' (in mmtwin's directory)") from error

PAGE_SHIFT, PAGE_SIZE = 12, 4096
VMALLOC_OFFSET = 8 << 20
"""i386: what is left free between the direct map and the vmalloc space."""
PRESENT, HUGE = 1, 0x80
ADDRESS = 0x000F_FFFF_FFFF_F000
"""Bits of a page-table entry: present, leaf above the lowest level, physical address."""
VMALLOC_TIB = {4: 32, 5: 12800}
"""Size of the vmalloc space by page-table levels (arch/x86/include/asm/pgtable_64_types.h, VMALLOC_SIZE_TB_L4 and _L5)."""
MODULES_END = 0xFFFF_FFFF_FF00_0000
KERNEL_IMAGE = {True: 0xFFFF_FFFF_C000_0000, False: 0xFFFF_FFFF_A000_0000}
"""MODULES_VADDR with and without CONFIG_RANDOMIZE_BASE (arch/x86/include/asm/page_64_types.h, KERNEL_IMAGE_SIZE)."""


def vmap_layout(vmlinux: Path) -> VmapLayout:
    """Offsets in this kernel's structs of virtual areas.

    :raises CaptureError: the file has no DWARF.
    """
    prog = drgn.Program()
    try:
        prog.extra_module("vmlinux", 0, create=True).try_file(str(vmlinux), force=True)
        area, block = prog.type("struct vmap_area"), prog.type("struct vmap_block")
        return VmapLayout(
            area_start=int(drgn.offsetof(area, "va_start")),
            area_end=int(drgn.offsetof(area, "va_end")),
            area_node=int(drgn.offsetof(area, "rb_node")),
            area_flags=int(drgn.offsetof(area, "flags")) if area.has_member("flags") else -1,
            block_area=int(drgn.offsetof(block, "va")),
            block_free=int(drgn.offsetof(block, "free")),
            block_dirty=int(drgn.offsetof(block, "dirty")),
            nodes=_has_nodes(prog),
        )
    except Exception as error:  # drgn raises several kinds
        reason = str(error).splitlines()[0]
        raise CaptureError(f"{vmlinux}: no debug information for virtual areas ({reason}); take the vmlinux of linux-image-*-dbg") from None


def _has_nodes(prog: Any) -> bool:
    try:
        prog.type("struct vmap_node")
    except LookupError:
        return False
    return True


def has_vmaps(prog: Any) -> bool:
    """Whether this kernel's virtual areas can be read: a tree of free areas (5.2 and later), on x86-64 or i386."""
    try:
        prog["free_vmap_area_root"], prog["max_low_pfn" if word_size(prog) == 4 else "vmalloc_base"]
    except KeyError:
        return False
    return True


def vmap_scalars(prog: Any) -> dict[str, int]:
    """Single values: counters, the space's limits, and where the locks and nodes are whose addresses events name."""
    nodes = _has_nodes(prog)
    found = {
        "vmap_lazy_nr": int(prog["vmap_lazy_nr"].counter),
        "nr_vmalloc_pages": int(prog["nr_vmalloc_pages"].counter),
        "nr_vmap_nodes": int(prog["nr_vmap_nodes"]) if nodes else 1,
        "vmap_zone_size": int(prog["vmap_zone_size"]) if nodes else 1,
        "vmap_bbmap_bits": block_pages(prog),
        **(_space_i386(prog) if word_size(prog) == 4 else _space(prog)),
        "vmap_blocks_address": int(prog["vmap_blocks"].address_of_()) if not nodes else 0,
    }
    if nodes:
        node = prog.type("struct vmap_node")
        found |= {
            "vmap_nodes_address": int(prog["vmap_nodes"]),
            "vmap_node_size": int(node.size),
            "vmap_pool_size": int(prog.type("struct vmap_pool").size),
        }
    offset = int(drgn.offsetof(prog.type("struct vmap_block_queue"), "lock"))
    for cpu in for_each_possible_cpu(prog):
        found[f"vmap_queue_lock_{cpu}"] = int(per_cpu(prog["vmap_block_queue"], cpu).address_of_()) + offset
    found["vmap_queue_size"] = int(prog.type("struct vmap_block_queue").size)
    return found


def _space(prog: Any) -> dict[str, int]:
    """The limits of x86-64's vmalloc space and modules."""
    start, levels = int(prog["vmalloc_base"]), page_table_levels(prog)
    return {
        "VMALLOC_START": start,
        "VMALLOC_END": start + (VMALLOC_TIB[levels] << 40) - 1,
        "MODULES_VADDR": KERNEL_IMAGE[_has_symbol(prog, "module_load_offset") or _has_symbol(prog, "kaslr_enabled")],
        "MODULES_END": MODULES_END,
        "page_table_levels": levels,
    }


def _space_i386(prog: Any) -> dict[str, int]:
    """The same of i386, where modules lie among the other areas (arch/x86/include/asm/pgtable_32_areas.h).

    The space begins 8 MiB behind the direct map and ends two pages before the window of kmap; above that are the local descriptor tables, the CPUs' entry
    areas and the fixed mappings, each from what one entry of the page table's upper level maps on.
    """
    levels = page_table_levels(prog)
    step = 1 << (21 if levels == 3 else 22)
    fixed = int(prog["__FIXADDR_TOP"]) - int(prog.constant("__end_of_fixed_addresses")) * PAGE_SIZE
    entry_pages = len(prog["__per_cpu_offset"]) * -(-prog.type("struct cpu_entry_area").size // PAGE_SIZE)
    entry_areas = (fixed - PAGE_SIZE * (entry_pages + 1)) & -step
    descriptors = (entry_areas - PAGE_SIZE) & -step
    pkmap = (descriptors - PAGE_SIZE) & -step
    start, end = int(prog["high_memory"]) + VMALLOC_OFFSET, pkmap - 2 * PAGE_SIZE
    return {
        "VMALLOC_START": start,
        "VMALLOC_END": end,
        "MODULES_VADDR": start,
        "MODULES_END": end,
        "page_table_levels": levels,
        "image_start": int(prog.symbol("_text").address),
        "image_end": int(prog.symbol("_end").address),
    }


def word_size(prog: Any) -> int:
    """Bytes of an ``unsigned long``."""
    return int(drgn.sizeof(prog.type("unsigned long")))


def page_table_levels(prog: Any) -> int:
    """4 or 5, as the booted machine has it; on i386 2, with PAE 3."""
    if word_size(prog) == 4:
        return 3 if drgn.sizeof(prog.type("pte_t")) == 8 else 2
    try:
        return 5 if int(prog["__pgtable_l5_enabled"]) else 4
    except KeyError:
        return 4


def _has_symbol(prog: Any, name: str) -> bool:
    try:
        prog.symbol(name)
    except LookupError:
        return False
    return True


def block_pages(prog: Any) -> int:
    """``VMAP_BBMAP_BITS``, which only the compiler knows: by its formula (mm/vmalloc.c) from the bits of a CPU mask, CONFIG_NR_CPUS rounded up."""
    bits = int(prog.type("struct cpumask").size) * 8
    cpus = 1 << (bits - 1).bit_length()
    space = (128 << 30 if word_size(prog) == 8 else 128 << 20) >> PAGE_SHIFT
    return min(1024, max(16 * word_size(prog), int(space // cpus // 16)))


def vmap_tables(prog: Any, page_offset: int) -> dict[str, pl.DataFrame]:
    """The tables of `mmtwin.recording.vmaps.VMAP_TABLES`.

    :raises CaptureError: a broken tree or list.
    """
    rows = _Reader(prog, page_offset).read()
    return {name: pl.DataFrame(rows[name], schema=schema, orient="row") for name, schema in VMAP_TABLES.items()}


class _Reader:
    def __init__(self, prog: Any, page_offset: int) -> None:
        self.prog, self.page_offset = prog, page_offset
        self.size = word_size(prog)
        self.area = prog.type("struct vmap_area")
        self.offset = {name: int(drgn.offsetof(self.area, name)) for name in ("va_start", "va_end", "rb_node", "list", "vm", "subtree_max_size")}
        self.offset["flags"] = int(drgn.offsetof(self.area, "flags")) if self.area.has_member("flags") else -1
        self.areas: list[dict[str, Any]] = []
        self.row_of: dict[int, int] = {}
        self.vms: dict[int, int] = {}
        self.rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in VMAP_TABLES}

    def read(self) -> dict[str, list[tuple[Any, ...]]]:
        prog = self.prog
        self._tree("free", 0, prog["free_vmap_area_root"], prog["free_vmap_area_list"])
        if _has_nodes(prog):
            for number in range(int(prog["nr_vmap_nodes"])):
                node = prog["vmap_nodes"][number]
                self._tree("busy", number, node.busy.root, node.busy.head)
                self._tree("lazy", number, node.lazy.root, node.lazy.head)
                for pool in range(len(node.pool)):
                    for position, at in enumerate(self._list(node.pool[pool].head)):
                        self._area("pool", number, position, at)
        else:
            self._tree("busy", 0, prog["vmap_area_root"], prog["vmap_area_list"])
            self._tree("lazy", 0, prog["purge_vmap_area_root"], prog["purge_vmap_area_list"])
        for cpu in for_each_possible_cpu(prog):
            spare = int(per_cpu(prog["ne_fit_preload_node"], cpu))
            if spare:
                self._area("preload", cpu, 0, spare)
            self.rows["cpus"].append((cpu, _signed(spare)))
        for area in self.areas:
            for name in ("left", "right", "parent"):
                area[name] = self.row_of.get(area[name], -1) if area[name] else -1
        self.rows["areas"] = [tuple(area[name] for name in VMAP_TABLES["areas"]) for area in self.areas]
        self._blocks()
        self._page_tables()
        return self.rows

    def _word(self, address: int) -> int:
        return int(self.prog.read_u64(address) if self.size == 8 else self.prog.read_u32(address))

    def _list(self, head: Any) -> Iterator[int]:
        """Addresses of the ``vmap_area`` objects on a list."""
        end, at, count = int(head.address_of_()), int(head.next), 0
        while at != end:
            yield at - self.offset["list"]
            at, count = self._word(at), count + 1
            if count > MAX_AREAS:
                raise CaptureError("the dump has a list of virtual areas without end; was it taken while the machine ran?")

    def _tree(self, tree: str, node: int, root: Any, head: Any) -> None:
        """The areas of a tree, in the order of its list; the shape is in the nodes themselves."""
        first = len(self.areas)
        for position, address in enumerate(self._list(head)):
            area = self._area(tree, node, position, address)
            links = self.prog.read(address + self.offset["rb_node"], 3 * self.size)
            parent_color, right, left = struct.unpack("<QQQ" if self.size == 8 else "<III", links)
            area |= {"color": parent_color & 1, "parent": parent_color & ~3, "right": right, "left": left}
            self.row_of[address + self.offset["rb_node"]] = first + position
        top = int(root.rb_node)
        if bool(top) != (len(self.areas) > first) or (top and not first <= self.row_of.get(top, -1) < len(self.areas)):
            raise CaptureError(f"the dump has a {tree} tree of virtual areas that is not its list; was it taken while the machine ran?")

    def _area(self, tree: str, node: int, position: int, address: int) -> dict[str, Any]:
        raw = self.prog.read(address, self.area.size)

        def word(name: str) -> int:
            return int.from_bytes(raw[self.offset[name] : self.offset[name] + self.size], "little")

        spare = tree == "preload"
        area = {
            "tree": tree, "node": node, "position": position, "va_start": 0 if spare else _signed(word("va_start")), "va_end": 0 if spare else _signed(word("va_end")),
            "left": 0, "right": 0, "parent": 0, "color": 0, "subtree_max_size": _signed(word("subtree_max_size")) if tree == "free" else 0,
            "flags": word("flags") if self.offset["flags"] >= 0 and tree in ("busy", "lazy", "pool") else 0,
            "vm": self._vm(word("vm")) if tree == "busy" else -1, "object": _signed(address),
        }  # fmt: skip
        self.areas.append(area)
        return area

    def _vm(self, address: int) -> int:
        """Row of a ``struct vm_struct``; -1 without one, and for vm_map_ram's areas, where the word may hold something else."""
        if not address:
            return -1
        if address not in self.vms:
            try:
                vm = drgn.Object(self.prog, "struct vm_struct", address=address)
                members = {m.name for m in vm.type_.members}
                row = (
                    _signed(address), _signed(int(vm.addr)), int(vm.size), int(vm.flags), _signed(int(vm.pages)), int(vm.nr_pages), _signed(int(vm.phys_addr)),
                    _signed(int(vm.caller)), int(vm.page_order) if "page_order" in members else 0, int(vm.requested_size) if "requested_size" in members else 0,
                )  # fmt: skip
            except drgn.FaultError:
                return -1
            if not 0 <= row[2] < 1 << 57:
                return -1
            self.vms[address] = len(self.rows["vms"])
            self.rows["vms"].append(row)
        return self.vms[address]

    def _blocks(self) -> None:
        prog = self.prog
        kind = prog.type("struct vmap_block")
        link = int(drgn.offsetof(kind, "free_list"))
        queued: dict[int, tuple[int, int]] = {}
        arrays = []
        for cpu in for_each_possible_cpu(prog):
            queue = per_cpu(prog["vmap_block_queue"], cpu)
            end, at, position = int(queue.free.address_of_()), int(queue.free.next), 0
            while at != end:
                queued[at - link] = (cpu, position)
                at, position = self._word(at), position + 1
                if position > MAX_AREAS:
                    raise CaptureError("the dump has a queue of vmap blocks without end; was it taken while the machine ran?")
            if queue.type_.has_member("vmap_blocks"):
                arrays.append(queue.vmap_blocks)
        if not arrays:
            arrays.append(prog["vmap_blocks"])
        from drgn.helpers.linux.xarray import xa_for_each

        found = {int(entry): None for array in arrays for _, entry in xa_for_each(array.address_of_())}
        rows = []
        for address in found:
            block = drgn.Object(prog, kind, address=address)
            cpu, position = queued.get(address, (-1, 0))
            values = [int(block.member_(name)) for name in ("free", "dirty", "dirty_min", "dirty_max")]
            owner = int(block.cpu) if kind.has_member("cpu") else -1
            rows.append((_signed(address), cpu, position, _signed(int(block.va.va_start)), *values, owner))
        self.rows["blocks"] = sorted(rows, key=lambda row: (row[1] < 0, row[1], row[2], row[3]))

    def _page_tables(self) -> None:
        """Entries above the lowest level for the two ranges, table by table from the top; shared tables once."""
        prog = self.prog
        levels = page_table_levels(prog)
        top = _physical(prog, int(prog["init_mm"].pgd), self.page_offset)
        scalars = vmap_scalars(prog)
        self.entry = 4 if levels == 2 else 8
        self.index_bits = 10 if levels == 2 else 9
        seen: set[tuple[int, int]] = set()
        for low, high in ((scalars["VMALLOC_START"], scalars["VMALLOC_END"]), (scalars["MODULES_VADDR"], scalars["MODULES_END"] - 1)):
            self._table(top, levels, low, high, seen)

    def _physical_bytes(self, physical: int, size: int) -> bytes:
        """Bytes of a page table; on i386 they all lie in the direct map (only those of processes may be in HighMem)."""
        read: bytes = self.prog.read(physical, size, True) if self.size == 8 else self.prog.read(physical + self.page_offset, size)
        return read

    def _table(self, physical: int, level: int, low: int, high: int, seen: set[tuple[int, int]]) -> None:
        shift = PAGE_SHIFT + self.index_bits * (level - 1)
        count = 4 if self.size == 4 and level == 3 else 1 << self.index_bits  # PAE's highest table has four entries
        entries = struct.unpack(f"<{count}{'Q' if self.entry == 8 else 'I'}", self._physical_bytes(physical, self.entry * count))
        first, last = low >> shift & (count - 1), high >> shift & (count - 1)
        base = low >> (shift + self.index_bits) << (shift + self.index_bits)
        for index in range(first, last + 1):
            entry = entries[index]
            if not entry or (physical, index) in seen:
                continue
            seen.add((physical, index))
            self.rows["page_tables"].append((level, physical >> PAGE_SHIFT, index, _signed(entry)))
            if level > 2 and entry & PRESENT and not entry & HUGE:
                begin = base + (index << shift)
                self._table(entry & ADDRESS, level - 1, max(low, begin), min(high, begin + (1 << shift) - 1), seen)


def _physical(prog: Any, address: int, page_offset: int) -> int:
    """Physical address of something in the kernel's image or the direct map."""
    if word_size(prog) == 4:
        return address - page_offset
    image = 0xFFFF_FFFF_8000_0000
    return address - image + int(prog.read_u64(prog.symbol("phys_base").address)) if address >= image else address - page_offset


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
