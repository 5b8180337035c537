"""What vmalloc and its family do inside, step by step and in the kernel's order (mm/vmalloc.c). `vmalloc_api` is what a caller sees.

The allocators under it are the machine's own: descriptors, areas and page arrays are slab objects, data pages and page tables come from the page allocator. So one vmalloc leaves
the same traces in all of them as the kernel's does.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmtwin.errors import AllocationFailure, BadVfree, KernelSilent, RequestError, VmallocFailure
from mmtwin.gfp import GFP_NOWAIT, gfp_names
from mmtwin.mm import vmap_entry as entry
from mmtwin.mm.page_alloc import EAGAIN, ENOMEM
from mmtwin.mm.pgtable_tables import NO_ROOM as NO_TABLES
from mmtwin.mm.pgtable_tables import reserve_tables
from mmtwin.mm.vmalloc import NO_SPARE, vmalloc_init
from mmtwin.mm.vmalloc_map import (
    flush_tlb_kernel_range_entry,
    map_huge_pages_entry,
    map_pages_entry,
    map_range_entry,
    unmap_range_entry,
    vmalloc_to_pfn_entry,
)
from mmtwin.mm.vmalloc_pages import area_pages_kernel, chain_pages_kernel, free_area_pages_kernel, vm_area_alloc_pages_kernel
from mmtwin.mm.vmap_block import NO_BLOCK
from mmtwin.mm.vmap_tables import (
    FREED_AREA,
    NIL,
    VM_FLUSH_RESET_PERMS,
    VM_IOREMAP,
    VM_MAP_PUT_PAGES,
    VM_NO_GUARD,
    VMAP_BLOCK_FLAG,
    VMAP_RAM,
    Vmalloc,
    bias,
    new_vmalloc,
    reserve_areas,
    unbias,
)
from mmtwin.page_fault import Area
from mmtwin.profiles.layout import AddressSpace, rules_for
from mmtwin.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from mmtwin.mm.pgtable_tables import Mmu
    from mmtwin.mm.tables import Pgdat
    from mmtwin.profiles import Profile
    from mmtwin.slab_api import KmemCache
    from mmtwin.slub_debug import Watch
    from mmtwin.tracing import Tracer

GFP_DMA, GFP_HIGHMEM, GFP_DMA32, GFP_IO, GFP_FS = 0x1, 0x2, 0x4, 0x40, 0x80
GFP_ZERO, GFP_DIRECT_RECLAIM, GFP_NOWARN = 0x100, 0x400, 0x2000
GFP_RECLAIM_MASK = 0xBEEE0
"""What descriptors and page arrays keep of the caller's flags (mm/internal.h)."""
GFP_PGTABLE_KERNEL = 0xDC0
PMD_SHIFT = 21


class Sizes(NamedTuple):
    """Bytes of the kernel's own objects: ``vm_struct``, ``vmap_area``, ``vmap_block``, and a pointer."""

    vm_struct: int
    vmap_area: int
    vmap_block: int
    pointer: int


SIZES = {("6.1", 64): Sizes(64, 64, 96, 8), ("6.12", 64): Sizes(72, 72, 136, 8), ("6.1", 32): Sizes(32, 36, 48, 4)}
"""By release and address bits (include/linux/vmalloc.h, with Debian's configurations)."""


def signed(address: int) -> int:
    """An address as the tables keep it in ``object`` and ``pages``."""
    return address - ((address >> 63) << 64)


def unsigned(address: int) -> int:
    """The address that `signed` was given."""
    return int(address) & (1 << 64) - 1


def whole(value: int, what: str) -> int:
    """`value` as an int. :raises RequestError: it is no whole number."""
    try:
        return value.__index__()
    except AttributeError:
        raise RequestError(f"{what} {value!r}: expected a whole number") from None


def site() -> str:
    """The Python function that called mmtwin, as ``name (file:line)``."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == "mmtwin":
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_name}+{frame.f_lineno - frame.f_code.co_firstlineno}"


def free_space(space: AddressSpace, cpus: int, profile: Profile) -> Vmalloc:
    """``vmalloc_init`` of a kernel without early areas: all addresses are free."""
    major, minor = (int(part) for part in profile.release.split("."))
    made = new_vmalloc(
        cpus,
        space.vmalloc_start,
        space.vmalloc_end,
        space.modules_vaddr,
        space.modules_end,
        version=major * 100 + minor,
        bits_per_long=space.bits,
        config_nr_cpus=rules_for(space.name).nr_cpus,
    )
    vmalloc_init(made, np.zeros((0, 2), dtype=np.int64))
    return made


class VmallocSteps:
    """The steps, over `areas`, `mmu` (page tables) and the machine's other allocators; mixed into `Machine` through `vmalloc_api`."""

    areas: Vmalloc
    mmu: Mmu
    space: AddressSpace
    state: Pgdat
    profile: Profile
    cpus: int
    PAGE_OFFSET: int
    _handle: int
    _mmu_handle: int
    _bound_mmu: Mmu
    _contexts: int
    _watch: Watch | None
    _tracer: Tracer | None = None
    stale_tlb = False
    """vfree clears page-table entries but flushes no TLB before the purge, so a real processor may go on reading a freed area (mmtwin's does with True).
    With False the TLB forgets the area at once, and every use after free is a fault."""

    if TYPE_CHECKING:  # of the machine's other parts
        kmalloc: Callable[..., int]
        kfree: Callable[..., None]
        kmem_cache_alloc: Callable[..., int]
        kmem_cache_free: Callable[..., None]
        kmem_caches: Callable[[], dict[str, KmemCache]]
        kmem_cache_create: Callable[..., KmemCache]
        in_interrupt: Callable[[int], bool]
        might_sleep: Callable[..., None]
        _vmalloc_context: Callable[..., None]
        _bind_mmu: Callable[[], None]
        wait_for_memory: Callable[[int, int, Callable[[], int]], int]

    def _set_vmalloc(self, vmap: Vmalloc, callers: Mapping[int, str] | None = None) -> None:
        """:param callers: what /proc/vmallocinfo calls the callers of areas that are there already, by ``vm_struct.caller``."""
        self._callers: dict[int, str] = {} if callers is None else dict(callers)
        self._caller_ids = {name: number for number, name in self._callers.items()}
        self._sizes = SIZES[self.profile.release, self.space.bits]
        self._area_cache: KmemCache | None = None
        self._work: list[Callable[[int], None]] = []
        self._working = False
        self._set_vmap(vmap)

    def _set_vmap(self, vmap: Vmalloc) -> None:
        """Takes tables, perhaps larger ones, and their handle."""
        self.areas = vmap
        self._vmap_table = entry.address_table(vmap)
        self._vmap_handle = self._vmap_table.ctypes.data

    def _room(self) -> None:
        """Room for what one call can need: two areas of its own, two for a nested page array, a block."""
        vmap = reserve_areas(self.areas, 6, 3, 1)
        if vmap is not self.areas:
            self._set_vmap(vmap)

    def _note(self, kind: str, **what: Any) -> None:
        if self._tracer is not None:
            self._tracer.note(kind, **what)

    def _totalram(self) -> int:
        """``totalram_pages()``."""
        return int(self.state.zone["managed_pages"].sum())

    def _hex(self, address: int) -> str:
        return f"{address:0{self.space.bits // 4}x}"

    # Areas

    def _get_vm_area_node(self, size: int, align: int, shift: int, flags: int, start: int, end: int, gfp: int, cpu: int, caller: str) -> int:
        """``__get_vm_area_node``: row of a new ``vm_struct`` with its busy area."""
        self._vmalloc_context(cpu)
        size = -(-size >> shift) << shift
        if not size:
            raise VmallocFailure("an area of 0 bytes: Linux returns NULL without a word; ask for at least 1 byte", -22, gfp, "size 0")
        if flags & VM_IOREMAP:
            most = 30 if self.space.bits == 64 else 22 if self.space.levels == 2 else 21  # IOREMAP_MAX_ORDER: PUD_SHIFT, on 32 bits PMD_SHIFT
            align = 1 << min(max((size - 1).bit_length(), PAGE_SHIFT), most)
        descriptor = self.kmalloc(self._sizes.vm_struct, gfp & GFP_RECLAIM_MASK | GFP_ZERO, cpu)
        if not flags & VM_NO_GUARD:
            size += PAGE_SIZE
        try:
            row = self._alloc_vmap_area(size, align, start, end, gfp, cpu)
        except AllocationFailure:
            self.kfree(descriptor, cpu)
            raise
        vm = int(entry.bind_vm_entry(self._vmap_handle, row, signed(descriptor), flags, self._caller(caller)))
        self.areas.vm[vm]["first_pfn"] = -1
        return vm

    def __getstate__(self) -> dict[str, object]:
        """Without addresses of memory, which mean nothing to an unpickled machine."""
        return {name: value for name, value in super().__getstate__().items() if name not in ("_vmap_table", "_vmap_handle")}  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        self._set_vmap(self.areas)

    def _caller(self, name: str) -> int:
        """A number for ``vm_struct.caller``; those of Python functions are below 0, where no kernel has code."""
        number = self._caller_ids.get(name)
        if number is None:
            number = self._caller_ids[name] = -(1 << 62) - len(self._caller_ids)
            self._callers[number] = name
        return number

    def _vmap_area_cache(self) -> KmemCache:
        """``vmap_area_cachep``."""
        if self._area_cache is None:
            self._area_cache = self.kmem_caches().get("vmap_area") or self.kmem_cache_create("vmap_area", self._sizes.vmap_area)
        return self._area_cache

    def _alloc_vmap_area(self, size: int, align: int, start: int, end: int, gfp: int, cpu: int, va_flags: int = 0) -> int:
        """``alloc_vmap_area``: row of a busy area. :raises VmallocFailure: no addresses, also after a purge."""
        if self._contexts:
            self.might_sleep(cpu, "alloc_vmap_area", "vmalloc")
        self._room()
        gfp &= GFP_RECLAIM_MASK
        request = (size, align, bias(start), bias(end), va_flags)
        row = int(entry.pool_area_entry(self._vmap_handle, cpu, *request))
        if row == NIL:
            row = self._new_vmap_area(request, gfp, cpu)
        self._note("alloc_vmap_area", address=unbias(int(self.areas.area[row]["va_start"])), bytes_req=size)
        return row

    def _new_vmap_area(self, request: tuple[int, int, int, int, int], gfp: int, cpu: int) -> int:
        cache = self._vmap_area_cache()
        mine = self.kmem_cache_alloc(cache, gfp, cpu)
        spare_gfp, purged = gfp, False
        while True:
            spare = entry.NO_OBJECT
            if int(self.areas.cpu[cpu]["ne_fit_preload_node"]) == NIL:
                spare = signed(self.kmem_cache_alloc(cache, spare_gfp, cpu))
            row = int(entry.alloc_area_entry(self._vmap_handle, cpu, *request, signed(mine), spare))
            self._drain_freed(cpu)
            if row > 0:
                return row
            if row == NO_SPARE:
                spare_gfp = GFP_NOWAIT
                continue
            if purged:
                break
            purged = True
            entry.overflow_purge_entry(self._vmap_handle)
            self._drain_freed(cpu)
            self._flush_purged()
        self.kmem_cache_free(cache, mine, cpu)
        words = f"vmap allocation for size {request[0]} failed: use vmalloc=<size> to increase size"
        raise VmallocFailure(f"{words}: no {request[0]} bytes of addresses in one piece are free, guard page included", -16, gfp, "no addresses", words)

    def _drain_freed(self, cpu: int) -> None:
        """Objects of areas that were joined with others go back to their cache, blocks to kmalloc's (the kernel does that after a grace period)."""
        config = self.areas.config[0]
        count = int(config["freed"])
        if not count:
            return
        freed = self.areas.freed[:count].copy()
        config["freed"] = 0
        for item in freed:
            where = unsigned(int(item["object"]))
            if where and int(item["kind"]) == FREED_AREA:
                self.kmem_cache_free(self._vmap_area_cache(), where, cpu)
            elif where:
                self.kfree(where, cpu)

    def _flush_purged(self) -> None:
        """The flush that a purge begins with: the range is known when the areas are taken off their list."""
        config = self.areas.config[0]
        start, end = int(config["flush_start"]), int(config["flush_end"])
        if start < end:
            flush_tlb_kernel_range_entry(self._mmu_handle, start, end)
            self._note("flush_tlb_kernel_range", address=unbias(start), bytes_req=end - start)
        config["flush_start"], config["flush_end"] = 0, 0

    def _unmap_aliases(self, start: int, end: int, flush: bool, cpu: int) -> None:
        """``_vm_unmap_aliases``."""
        if self._contexts:
            self.might_sleep(cpu, "vm_unmap_aliases", "vm_unmap_aliases")
        entry.unmap_aliases_entry(self._vmap_handle, bias(start), bias(end), flush)
        self._drain_freed(cpu)
        self._flush_purged()

    # Pages and page tables

    def _area_node(self, vm: int, gfp: int, prot: int, shift: int, cpu: int) -> None:
        """``__vmalloc_area_node``: the page array, the pages, the page tables."""
        row = self.areas.vm[vm]
        address, pages = unbias(int(row["addr"])), self._area_pages(vm)
        nested = gfp & GFP_RECLAIM_MASK | GFP_ZERO
        gfp |= GFP_NOWARN
        if not gfp & (GFP_DMA | GFP_DMA32):
            gfp |= GFP_HIGHMEM
        try:
            array = self._page_array(pages * self._sizes.pointer, nested, self._callers[int(row["caller"])], cpu)
        except AllocationFailure as error:
            self._vunmap(address, cpu, False, "free_vm_area")
            raise self._beside_pages(pages, f"failed to allocated page array size {pages * self._sizes.pointer}", gfp, error) from error
        row = self.areas.vm[vm]  # a nested area may have moved the table
        row["pages"], row["page_order"] = signed(array), shift - PAGE_SHIFT
        pfns = np.zeros(pages, dtype=np.int64)
        got = self._take_pages(cpu, gfp, shift - PAGE_SHIFT, pfns)
        self._note_pages(pfns[:got], gfp, shift - PAGE_SHIFT)
        row["nr_pages"], row["first_pfn"] = got, int(pfns[0]) if got else -1
        self.areas.config[0]["nr_vmalloc_pages"] += got
        if got < pages:
            self._vunmap(address, cpu, True, "vfree")
            words = f"vmalloc error: size {got << PAGE_SHIFT}, page order {shift - PAGE_SHIFT}, failed to allocate pages"
            text = f"{words}: {got} of {pages} pages, mode:0x{gfp:x}({gfp_names(gfp)}); Linux gives them back and returns NULL"
            waits = gfp & GFP_DIRECT_RECLAIM
            raise VmallocFailure(text, -11 if waits else -12, gfp, "needs reclaim" if waits else "failed")
        if gfp & GFP_ZERO:
            self._clear_frames(pfns)
        try:
            self._map_pages(address, pfns, prot, self._page_table_gfp(gfp), shift, cpu)
        except AllocationFailure as error:
            self._vunmap(address, cpu, True, "vfree")
            raise self._beside_pages(pages, "failed to map pages", gfp, error) from error

    @staticmethod
    def _beside_pages(pages: int, why: str, gfp: int, error: AllocationFailure) -> VmallocFailure:
        """The area's own failure, for what it needs beside its pages. Linux prints nothing more: the flags have __GFP_NOWARN by then."""
        return VmallocFailure(f"vmalloc error: size {pages << PAGE_SHIFT}, {why}: {error}; Linux returns NULL", error.errno, gfp, error.status)

    def _take_pages(self, cpu: int, gfp: int, order: int, pfns: npt.NDArray[np.int64]) -> int:
        """``vm_area_alloc_pages``; where it falls short, the request waits for memory. Returns how many pages it got."""
        got = int(vm_area_alloc_pages_kernel(self.state, cpu, gfp, order, pfns))
        if got == len(pfns):
            return got
        short = -EAGAIN if gfp & GFP_DIRECT_RECLAIM else -ENOMEM
        while got < len(pfns):
            rest = pfns[got:]
            more = self.wait_for_memory(short, cpu, lambda rest=rest: int(vm_area_alloc_pages_kernel(self.state, cpu, gfp, order, rest)) or short)  # type: ignore[misc]
            if more < 0:
                break
            got += more
        chain_pages_kernel(self.state, pfns[:got])
        return got

    def _page_array(self, size: int, gfp: int, caller: str, cpu: int) -> int:
        """The array of page pointers; above a page it is an area of its own. A seam for the public class, which has `vmalloc`."""
        raise NotImplementedError

    @staticmethod
    def _page_table_gfp(gfp: int) -> int:
        """Page tables take GFP_KERNEL whatever the caller's flags, but in a scope that forbids what these forbid (memalloc_nofs_save, memalloc_noio_save)."""
        if gfp & (GFP_FS | GFP_IO) == GFP_IO:
            return GFP_PGTABLE_KERNEL & ~GFP_FS
        return GFP_PGTABLE_KERNEL if gfp & GFP_FS else GFP_PGTABLE_KERNEL & ~(GFP_FS | GFP_IO)

    def _area_pages(self, vm: int) -> int:
        """``get_vm_area_size``, in pages."""
        row = self.areas.vm[vm]
        return (int(row["size"]) >> PAGE_SHIFT) - (0 if int(row["flags"]) & VM_NO_GUARD else 1)

    def _note_pages(self, pfns: npt.NDArray[np.int64], gfp: int, order: int) -> None:
        """The requests behind an area's pages: bulks of at most 100, of which the kernel says nothing, single pages and blocks, which have their event."""
        if self._tracer is None:
            return
        step = 100 if order == 0 else 1 << order
        for at in range(0, len(pfns), step):
            count = min(step, len(pfns) - at)
            kind = "mm_page_alloc" if order or count == 1 else "alloc_pages_bulk"
            self._tracer.note(kind, address=int(pfns[at]), gfp=gfp, order=order if kind == "mm_page_alloc" else count)

    def _map_pages(self, address: int, pfns: npt.NDArray[np.int64], prot: int, gfp: int, shift: int, cpu: int) -> None:
        """``vmap_pages_range``."""
        self._set_mmu_room(len(pfns))
        before, frames = int(self.mmu.config[0]["table_pages"]), int(self.mmu.config[0]["tables"])
        call = map_pages_entry if shift == PAGE_SHIFT else map_huge_pages_entry
        error = int(call(self._handle, self._mmu_handle, cpu, bias(address), pfns, prot, gfp))
        if error == -EAGAIN:  # a page table has to wait for memory: what is mapped already is mapped again

            def again() -> int:
                unmap_range_entry(self._mmu_handle, bias(address), bias(address) + (len(pfns) << PAGE_SHIFT), True)
                return int(call(self._handle, self._mmu_handle, cpu, bias(address), pfns, prot, gfp))

            error = self.wait_for_memory(error, cpu, again)
        self._note_tables(before, frames, gfp)
        self._note("set_pte", address=address, order=len(pfns) >> (shift - PAGE_SHIFT))
        self._mapped(error, address, gfp)

    def _map_range(self, address: int, physical: int, size: int, prot: int, cpu: int) -> None:
        """``ioremap_page_range``: with the largest entries that fit."""
        self._set_mmu_room(size >> PAGE_SHIFT)
        before, frames = int(self.mmu.config[0]["table_pages"]), int(self.mmu.config[0]["tables"])
        most = 3 if self.space.bits == 64 else 2 if self.space.levels == 3 else 1
        error = int(map_range_entry(self._handle, self._mmu_handle, cpu, bias(address), bias(address) + size, physical, prot, most))
        self._note_tables(before, frames, GFP_PGTABLE_KERNEL)
        self._note("set_pte", address=address, order=size >> PAGE_SHIFT)
        self._mapped(error, address, GFP_PGTABLE_KERNEL)

    def _set_mmu_room(self, pages: int) -> None:
        self.mmu = reserve_tables(self.mmu, pages)
        if self._bound_mmu is not self.mmu:
            self._bind_mmu()

    def _note_tables(self, before: int, first: int, gfp: int) -> None:
        if self._tracer is not None:
            for row in range(first, first + int(self.mmu.config[0]["table_pages"]) - before):
                self._tracer.note("mm_page_alloc", address=int(self.mmu.table[row]["pfn"]), gfp=gfp)

    def _mapped(self, error: int, address: int, gfp: int) -> None:
        if error == NO_TABLES:
            raise RequestError(f"address 0x{self._hex(address)}: more page tables than this machine has room for")
        if error < 0:
            raise VmallocFailure(f"no page for a page table of 0x{self._hex(address)}; Linux gives the pages back and returns NULL", error, gfp, "failed")

    def _clear_frames(self, pfns: npt.NDArray[np.int64]) -> None:
        """__GFP_ZERO, where contents are kept."""
        if self._watch is not None:
            for pfn in pfns.tolist():
                self._watch.memory.fill(pfn << PAGE_SHIFT, PAGE_SIZE)

    # Freeing

    def _area_at(self, address: int) -> Area | None:
        """The busy area, its guard page included, that holds an address: for reports of faults."""
        if not 0 <= address < 1 << self.space.bits:
            return None
        row = int(entry.find_area_entry(self._vmap_handle, bias(address)))
        if row == NIL:
            return None
        area = self.areas.area[row]
        vm = int(area["vm"])
        guard = vm > NIL and not int(self.areas.vm[vm]["flags"]) & VM_NO_GUARD
        return Area(unbias(int(area["va_start"])), unbias(int(area["va_end"])), guard)

    def _find_vm(self, address: int) -> int:
        """``find_vm_area``: row of the ``vm_struct`` whose area (guard page included) holds an address, NIL if there is none."""
        if not 0 <= address < 1 << self.space.bits:
            return NIL
        row = int(entry.find_area_entry(self._vmap_handle, bias(address)))
        return max(int(self.areas.area[row]["vm"]), NIL) if row != NIL else NIL

    def _vunmap(self, address: int, cpu: int, deallocate: bool, call: str) -> None:
        """``__vunmap``."""
        if address % PAGE_SIZE:
            text = f"Trying to vfree() bad address ({self._hex(address)})"
            raise BadVfree(f"{text}: {call} of an address inside a page; Linux warns and does nothing; pass what vmalloc returned", text)
        vm = self._find_vm(address)
        if vm == NIL:
            text = f"Trying to vfree() nonexistent vm area ({self._hex(address)})"
            raise BadVfree(f"{text}: {call}: {self._no_area(address)}; Linux warns and does nothing", text)
        row = self.areas.vm[vm]
        start, size, flags = unbias(int(row["addr"])), int(row["size"]), int(row["flags"])
        if start != address:
            text = f"{call}(0x{self._hex(address)}): Linux frees the whole area 0x{self._hex(start)}-0x{self._hex(start + size)} without a word; pass its first address"
            warnings.warn(text, KernelSilent, stacklevel=3)
        count, first = int(row["nr_pages"]), int(row["first_pfn"])
        if deallocate and count and first < 0:
            raise RequestError(
                f"{call}(0x{self._hex(address)}): this area was there when the machine was recorded, and a recording does not hold its page frames"
            )
        array, descriptor = unsigned(int(row["pages"])), unsigned(int(row["object"]))
        self._free_unmap(int(row["area"]), cpu)
        if flags & VM_FLUSH_RESET_PERMS:
            self._reset_permissions(first, count if deallocate else 0, cpu)
        entry.free_vm_entry(self._vmap_handle, vm)
        if deallocate and count:
            self._note("mm_page_free", address=first, order=count)
            free_area_pages_kernel(self.state, cpu, first, count)
            if not flags & VM_MAP_PUT_PAGES:
                self.areas.config[0]["nr_vmalloc_pages"] -= count
        if deallocate and array:
            self._free_array(array, cpu)
        if descriptor:
            self.kfree(descriptor, cpu)
        self._settle(cpu)

    def _free_array(self, address: int, cpu: int) -> None:
        """``kvfree(area->pages)``: a seam for the public class, which has `kvfree`."""
        raise NotImplementedError

    def _no_area(self, address: int) -> str:
        if self.PAGE_OFFSET <= address < self.space.high_memory:
            return "an address of the direct map (kmalloc's); kfree or kvfree frees it"
        if self.space.vmalloc_start <= address < self.space.vmalloc_end:
            return "nothing is there (any more): freed twice, or never handed out"
        return "outside of the vmalloc space"

    def _free_unmap(self, area: int, cpu: int) -> None:
        """``free_unmap_vmap_area``: page-table entries are cleared now, the addresses are free again at the next purge."""
        row = self.areas.area[area]
        start, end = int(row["va_start"]), int(row["va_end"])
        unmap_range_entry(self._mmu_handle, start, end, not self.stale_tlb)
        self._note("clear_pte", address=unbias(start), order=(end - start) >> PAGE_SHIFT)
        if entry.free_area_entry(self._vmap_handle, area):
            self._defer(self._drain_vmap_area_work)
        self._drain_freed(cpu)

    def _reset_permissions(self, first: int, count: int, cpu: int) -> None:
        """``vm_remove_mappings`` of a module's area: aliases are purged, and the direct map of its pages is flushed with them."""
        start, end = (1 << self.space.bits) - 1, 0
        if count and first >= 0:
            pfns = np.zeros(count, dtype=np.int64)
            pfns = pfns[: area_pages_kernel(self.state, first, pfns)]
            low = pfns[pfns < self.space.max_low_pfn]
            if len(low):
                start, end = self.PAGE_OFFSET + (int(low.min()) << PAGE_SHIFT), self.PAGE_OFFSET + ((int(low.max()) + 1) << PAGE_SHIFT)
        self._unmap_aliases(start, end, end > 0, cpu)

    # Work for the kernel's workers

    def _defer(self, job: Callable[[int], None]) -> None:
        if job not in self._work:
            self._work.append(job)

    def _settle(self, cpu: int) -> None:
        """A worker runs as soon as the caller is done, unless an interrupt's context holds the CPU."""
        if self._work and not self._working and not (self._contexts and self.in_interrupt(cpu)):
            self._run_work(cpu)

    def _run_work(self, cpu: int) -> int:
        done, self._working = 0, True
        try:
            while self._work:
                self._work.pop(0)(cpu)
                done += 1
        finally:
            self._working = False
        return done

    def _drain_vmap_area_work(self, cpu: int) -> None:
        """``drain_vmap_area_work``."""
        entry.drain_entry(self._vmap_handle)
        self._drain_freed(cpu)
        self._flush_purged()

    # Blocks of vm_map_ram

    def _vb_alloc(self, count: int, cpu: int) -> int:
        """``vb_alloc``: a piece of a block; a new block if no block of the CPU's has room."""
        order = (count - 1).bit_length()
        found = int(entry.block_alloc_entry(self._vmap_handle, cpu, order))
        if found != NO_BLOCK:
            return unbias(found)
        block = self.kmalloc(self._sizes.vmap_block, 0xCC0, cpu)
        size = int(self.areas.config[0]["block_pages"]) << PAGE_SHIFT
        try:
            row = self._alloc_vmap_area(size, size, self.space.vmalloc_start, self.space.vmalloc_end, 0xCC0, cpu, VMAP_RAM | VMAP_BLOCK_FLAG)
        except AllocationFailure:
            self.kfree(block, cpu)
            raise
        return unbias(int(entry.new_block_entry(self._vmap_handle, cpu, row, order, signed(block))))

    def _vb_free(self, address: int, count: int, cpu: int) -> bool:
        """``vb_free``; false if no block is there."""
        unmap_range_entry(self._mmu_handle, bias(address), bias(address) + (count << PAGE_SHIFT), not self.stale_tlb)
        self._note("clear_pte", address=address, order=count)
        done = int(entry.block_free_entry(self._vmap_handle, bias(address), (count - 1).bit_length()))
        if done == NO_BLOCK:
            return False
        if done:
            self._defer(self._drain_vmap_area_work)
        self._drain_freed(cpu)
        self._settle(cpu)
        return True

    # Small helpers of the public class

    def _pfn_behind(self, address: int) -> int:
        return int(vmalloc_to_pfn_entry(self._mmu_handle, bias(address)))

    def _frames(self, pages: Iterable[int]) -> npt.NDArray[np.int64]:
        """Page frame numbers that are memory. :raises RequestError: one is not (the kernel warns, pfn_valid)."""
        try:
            pfns = np.array([whole(p, "page frame") for p in pages], dtype=np.int64)
        except (TypeError, OverflowError):
            raise RequestError(f"pages {pages!r}: expected page frame numbers") from None
        nr = int(self.state.config[0]["nr_frames"])
        if len(pfns) and not (pfns.min() >= 0 and pfns.max() < nr):
            raise RequestError(f"page frames {pfns.min():#x} to {pfns.max():#x}: this machine has 0 to {nr - 1:#x}")
        return pfns
