"""vmalloc and its family on a machine (mm/vmalloc.c, mm/util.c, arch/x86/kernel/module.c, arch/x86/mm/ioremap.c).

`VmallocAllocator` is the part of `Machine` that hands out virtual areas: memory that is contiguous for the kernel and scattered over page frames.
Each call does what the kernel does, in its order (`vmalloc_steps`); `Machine.events` shows it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mmtwin import procfs
from mmtwin.errors import AllocationFailure, BadFree, BadIoremap, BadVfree, KernelSilent, RequestError, VmallocFailure
from mmtwin.gfp import GFP_KERNEL, gfp_names
from mmtwin.mm import vmap_entry as entry
from mmtwin.mm.pgtable_tables import PAGE_KERNEL, PAGE_KERNEL_NOCACHE
from mmtwin.mm.vmalloc_pages import chain_pages_kernel
from mmtwin.mm.vmap_tables import (
    NIL,
    VM_ALLOC,
    VM_ALLOW_HUGE_VMAP,
    VM_FLUSH_RESET_PERMS,
    VM_IOREMAP,
    VM_MAP,
    VM_MAP_PUT_PAGES,
    VM_NO_GUARD,
    VM_UNINITIALIZED,
    VM_USERMAP,
    VMAP_RAM,
    bias,
    unbias,
)
from mmtwin.page_fault import Area
from mmtwin.units import PAGE_SHIFT, PAGE_SIZE
from mmtwin.vmalloc_steps import GFP_DIRECT_RECLAIM, GFP_DMA32, GFP_NOWARN, GFP_PGTABLE_KERNEL, GFP_ZERO, PMD_SHIFT, VmallocSteps, site, whole

if TYPE_CHECKING:
    from mmtwin.contexts import CpuContext
    from mmtwin.profiles.physical import Frames

GFP_RETRY_MAYFAIL, GFP_NOFAIL, GFP_NORETRY = 0x4000, 0x8000, 0x10000
INT_MAX = (1 << 31) - 1
COMPOUND_HEAD = 8
"""Of ``compound_head`` in ``struct page``."""


class VmallocAllocator(VmallocSteps):
    """Virtual areas.

    :ivar areas: the area allocator's tables (`mm.vmap_tables.Vmalloc`).
    :ivar mmu: page tables and TLBs (`mm.pgtable_tables.Mmu`).
    :ivar space: the address space (`profiles.layout.AddressSpace`).
    """

    ram: tuple[Frames, ...]

    if TYPE_CHECKING:  # of the machine's other parts
        read: Callable[..., bytes]
        write: Callable[..., None]
        is_vmalloc_addr: Callable[[int], bool]
        context: Callable[[int], CpuContext]
        _cpu: Callable[[int], int]
        _gfp: Callable[[int], int]
        _vunmap_context: Callable[[int], None]
        _vfree_context: Callable[..., bool]

    # vmalloc

    def vmalloc(self, size: int, gfp: int = GFP_KERNEL, cpu: int = 0, *, caller: str = "") -> int:
        """``vmalloc``, and with `gfp` ``__vmalloc``: `size` bytes, contiguous for the kernel only, rounded up to pages, with a guard page behind them.

        :param gfp: flags; all of them are for the pages, those about reclaim for the descriptors too. Page tables always take GFP_KERNEL.
        :param caller: who asks, as /proc/vmallocinfo shows it; "" is the Python function that called.
        :returns: the address, at a page's beginning.
        :raises VmallocFailure: Linux returns NULL; `.report` has its words.
        :raises KernelBug: in an interrupt. :raises SleepingInAtomic: elsewhere where sleeping is not allowed.
        :raises RequestError: a negative size, no such flags or CPU.
        """
        return self.vmalloc_node_range(size, gfp=gfp, cpu=cpu, caller=caller or site())

    def vzalloc(self, size: int, cpu: int = 0, *, caller: str = "") -> int:
        """``vzalloc``: `vmalloc` of zeroed memory."""
        return self.vmalloc_node_range(size, gfp=GFP_KERNEL | GFP_ZERO, cpu=cpu, caller=caller or site())

    def vmalloc_user(self, size: int, cpu: int = 0, *, caller: str = "") -> int:
        """``vmalloc_user``: zeroed memory that may be mapped into a process (remap_vmalloc_range)."""
        return self.vmalloc_node_range(size, gfp=GFP_KERNEL | GFP_ZERO, vm_flags=VM_USERMAP, cpu=cpu, caller=caller or site())

    def vmalloc_32(self, size: int, cpu: int = 0, *, caller: str = "") -> int:
        """``vmalloc_32``: memory whose frames a device with 32 address bits can reach: with __GFP_DMA32, which on i386 is the normal zone."""
        return self.vmalloc_node_range(size, gfp=GFP_KERNEL | GFP_DMA32, cpu=cpu, caller=caller or site())

    def vmalloc_huge(self, size: int, gfp: int = GFP_KERNEL, cpu: int = 0, *, caller: str = "") -> int:
        """``vmalloc_huge``: from 2 MiB on mapped with huge pages if there are any (x86-64), else as `vmalloc`."""
        return self.vmalloc_node_range(size, gfp=gfp, vm_flags=VM_ALLOW_HUGE_VMAP, cpu=cpu, caller=caller or site())

    def vmalloc_node_range(
        self,
        size: int,
        align: int = 1,
        start: int | None = None,
        end: int | None = None,
        gfp: int = GFP_KERNEL,
        prot: int = PAGE_KERNEL,
        vm_flags: int = 0,
        cpu: int = 0,
        *,
        caller: str = "",
    ) -> int:
        """``__vmalloc_node_range``: what all others call. `start` and `end` bound the address; None is the vmalloc space.

        :param align: a power of two; up to a page it changes nothing.
        :param prot: rights of the page-table entries (`mm.pgtable_tables`).
        :param vm_flags: VM_* of `mm.vmap_tables`.
        """
        size, gfp, cpu, align = whole(size, "size"), self._gfp(gfp), self._cpu(cpu), whole(align, "alignment")
        if size < 0 or align < 1 or align & align - 1:
            raise RequestError(f"vmalloc of {size} bytes aligned to {align}: expected a size of 0 or more and a power of two")
        start, end = self.space.vmalloc_start if start is None else start, self.space.vmalloc_end if end is None else end
        caller = caller or site()
        if not size:
            report = "WARNING: CPU: 0 PID: 0 at mm/vmalloc.c:3227 __vmalloc_node_range"
            raise VmallocFailure("vmalloc(0): Linux warns once and returns NULL; ask for at least 1 byte", -22, gfp, "size 0", report)
        if size >> PAGE_SHIFT > self._totalram():
            raise self._vmalloc_error(size, gfp, cpu, "exceeds total pages", -12)
        shift = PMD_SHIFT if vm_flags & VM_ALLOW_HUGE_VMAP and self.space.bits == 64 and size >= 1 << PMD_SHIFT else PAGE_SHIFT
        while True:
            try:
                vm = self._vmalloc_area(size, max(align, 1 << shift) if shift > PAGE_SHIFT else align, shift, start, end, gfp, prot, vm_flags, cpu, caller)
                break
            except AllocationFailure:
                if shift == PAGE_SHIFT:
                    raise
                shift = PAGE_SHIFT  # any failure with huge pages: once more with small ones
        row = self.areas.vm[vm]
        row["flags"] = int(row["flags"]) & ~VM_UNINITIALIZED
        return unbias(int(row["addr"]))

    def _vmalloc_area(
        self, size: int, align: int, shift: int, start: int, end: int, gfp: int, prot: int, vm_flags: int, cpu: int, caller: str
    ) -> int:  # fmt: skip
        try:
            vm = self._get_vm_area_node(size, align, shift, VM_ALLOC | VM_UNINITIALIZED | vm_flags, start, end, gfp, cpu, caller)
        except VmallocFailure as error:
            raise self._vmalloc_error(size, gfp, cpu, "vm_struct allocation failed", error.errno, error.report) from None
        self._area_node(vm, gfp, prot, shift, cpu)
        return vm

    def _vmalloc_error(self, size: int, gfp: int, cpu: int, why: str, errno: int, before: str = "") -> VmallocFailure:
        """``warn_alloc``'s first line behind what was printed already; with __GFP_NOWARN neither."""
        task = self.context(cpu).task.comm
        line = f"{task}: vmalloc error: size {size}, {why}, mode:0x{gfp:x}({gfp_names(gfp)}), nodemask=(null),cpuset=/,mems_allowed=0"
        report = "" if gfp & GFP_NOWARN else "\n".join(text for text in (before, line) if text)
        said = f" ({before})" if before else ""
        return VmallocFailure(f"vmalloc error: size {size}, {why}{said}; Linux returns NULL", errno, gfp, why, report)

    def _page_array(self, size: int, gfp: int, caller: str, cpu: int) -> int:
        return self.vmalloc_node_range(size, gfp=gfp, cpu=cpu, caller=caller) if size > PAGE_SIZE else self.kmalloc(size, gfp, cpu)

    def _free_array(self, address: int, cpu: int) -> None:
        self.kvfree(address, cpu)

    def vfree(self, address: int, cpu: int = 0) -> None:
        """``vfree``: gives an area of `vmalloc` and its family back. Its addresses are not used again before a purge. NULL is ignored.

        In an interrupt the work is left to a kernel worker (`run_work`). An address inside an area, or in its guard page, frees the whole area: Linux does
        so without a word, and so does mmtwin, with the warning `KernelSilent`.

        :raises BadVfree: no area is there, or the address is not that of a page; Linux warns and does nothing.
        :raises KernelBug: in an NMI. :raises SleepingInAtomic: elsewhere where sleeping is not allowed.
        """
        address, cpu = whole(address, "address"), self._cpu(cpu)
        deferred = self._vfree_context(cpu)
        if not address:
            return
        if deferred:
            self._defer_vfree(address)
        else:
            self._vunmap(address, cpu, True, "vfree")

    def vfree_atomic(self, address: int, cpu: int = 0) -> None:
        """``vfree_atomic``: as `vfree`, but always left to a kernel worker, which here runs at once where it may."""
        address, cpu = whole(address, "address"), self._cpu(cpu)
        self._vfree_context(cpu, "vfree_atomic")
        if address:
            self._defer_vfree(address)
            self._settle(cpu)

    def _defer_vfree(self, address: int) -> None:
        """``__vfree_deferred``: the newest is freed first, as the kernel's list is a stack."""
        self._work.insert(0, lambda worker: self._vunmap(address, worker, True, "vfree"))

    def run_work(self, cpu: int = 0) -> int:
        """Lets the kernel's workers do what was left to them (deferred vfrees, purges of lazily freed areas) on CPU `cpu`; returns how many jobs."""
        return self._run_work(self._cpu(cpu))

    # vmap, and areas without memory

    def get_vm_area(self, size: int, flags: int = VM_MAP, cpu: int = 0, *, caller: str = "") -> int:
        """``get_vm_area``: reserves addresses without memory behind them; `free_vm_area` gives them back."""
        size, cpu = whole(size, "size"), self._cpu(cpu)
        if size < 0:
            raise RequestError(f"get_vm_area of {size} bytes: expected 1 or more")
        return self._get_area(size, flags, cpu, caller or site())

    def _get_area(self, size: int, flags: int, cpu: int, caller: str) -> int:
        vm = self._get_vm_area_node(size, 1, PAGE_SHIFT, flags, self.space.vmalloc_start, self.space.vmalloc_end, GFP_KERNEL, cpu, caller)
        return unbias(int(self.areas.vm[vm]["addr"]))

    def free_vm_area(self, address: int, cpu: int = 0) -> None:
        """``free_vm_area``: what `get_vm_area` reserved. :raises BadVfree: it is no such area."""
        self._vunmap(whole(address, "address"), self._cpu(cpu), False, "free_vm_area")

    def vmap(self, pages: Sequence[int], flags: int = VM_MAP, prot: int = PAGE_KERNEL, cpu: int = 0, *, caller: str = "") -> int:
        """``vmap``: shows page frames, wherever they are, as one range of addresses. With VM_MAP_PUT_PAGES `vfree` gives them back too.

        :param pages: page frame numbers.
        :raises VmallocFailure: more pages than the machine has (Linux returns NULL without a word), or no addresses.
        """
        pfns, cpu = self._frames(pages), self._cpu(cpu)
        if self._contexts:
            self.might_sleep(cpu, "vmap", "vmap")
        if flags & VM_NO_GUARD:
            warnings.warn(
                "vmap with VM_NO_GUARD: Linux warns once (mm/vmalloc.c:2913) and puts a guard page behind it all the same", KernelSilent, stacklevel=2
            )
            flags &= ~VM_NO_GUARD
        if len(pfns) > self._totalram():
            raise VmallocFailure(
                f"vmap of {len(pfns)} pages: more than this machine has; Linux returns NULL without a word", -12, GFP_KERNEL, "exceeds total pages"
            )
        address = self._get_area(len(pfns) << PAGE_SHIFT, flags, cpu, caller or site())
        try:
            self._map_pages(address, pfns, prot, GFP_PGTABLE_KERNEL, PAGE_SHIFT, cpu)
        except AllocationFailure:
            self._vunmap(address, cpu, False, "vunmap")
            raise
        if flags & VM_MAP_PUT_PAGES:
            chain_pages_kernel(self.state, pfns)
            row = self.areas.vm[self._find_vm(address)]
            row["nr_pages"], row["first_pfn"] = len(pfns), int(pfns[0])
        return address

    def vunmap(self, address: int, cpu: int = 0) -> None:
        """``vunmap``: ends a `vmap`; the page frames stay the caller's. NULL is ignored.

        Of vmalloc's memory it takes the addresses and leaves the pages behind, lost: Linux does so without a word, and so does mmtwin, with the warning `KernelSilent`.

        :raises BadVfree: no area is there. :raises KernelBug: in an interrupt.
        """
        address, cpu = whole(address, "address"), self._cpu(cpu)
        self._vunmap_context(cpu)
        if not address:
            return
        vm = self._find_vm(address)
        if vm != NIL and int(self.areas.vm[vm]["nr_pages"]) and int(self.areas.vm[vm]["flags"]) & VM_ALLOC:
            text = f"vunmap(0x{self._hex(address)}) of vmalloc's memory: Linux loses its {int(self.areas.vm[vm]['nr_pages'])} pages without a word; use vfree"
            warnings.warn(text, KernelSilent, stacklevel=2)
        self._vunmap(address, cpu, False, "vunmap")

    # kvmalloc

    def kvmalloc(self, size: int, gfp: int = GFP_KERNEL, cpu: int = 0, *, caller: str = "") -> int:
        """``kvmalloc``: kmalloc if that is to be had easily, else vmalloc. Up to a page it is kmalloc alone.

        :raises AllocationFailure: neither; also above 2 GiB, and above a page with flags that do not allow sleeping.
        """
        size, gfp, cpu = whole(size, "size"), self._gfp(gfp), self._cpu(cpu)
        first = gfp
        if size > PAGE_SIZE:
            first = (first | GFP_NOWARN | (0 if gfp & GFP_RETRY_MAYFAIL else GFP_NORETRY)) & ~GFP_NOFAIL
        try:
            return self.kmalloc(size, first, cpu)
        except AllocationFailure:
            if size <= PAGE_SIZE or not gfp & GFP_DIRECT_RECLAIM:
                raise
        if size > INT_MAX:
            report = "" if gfp & GFP_NOWARN else "WARNING: CPU: 0 PID: 0 at mm/util.c:596 kvmalloc_node"
            raise VmallocFailure(f"kvmalloc({size}): above INT_MAX ({INT_MAX} bytes): Linux warns once and returns NULL", -12, gfp, "above INT_MAX", report)
        return self.vmalloc_node_range(size, gfp=gfp, vm_flags=VM_ALLOW_HUGE_VMAP, cpu=cpu, caller=caller or site())

    def kvzalloc(self, size: int, gfp: int = GFP_KERNEL, cpu: int = 0, *, caller: str = "") -> int:
        """``kvzalloc``: `kvmalloc` with __GFP_ZERO."""
        return self.kvmalloc(size, self._gfp(gfp) | GFP_ZERO, cpu, caller=caller or site())

    def kvfree(self, address: int, cpu: int = 0) -> None:
        """``kvfree``: `vfree` or `kfree`, as the address says."""
        if self.is_vmalloc_addr(address):
            self.vfree(address, cpu)
        else:
            self.kfree(address, cpu)

    def kvrealloc(self, address: int, old_size: int, new_size: int, gfp: int = GFP_KERNEL, cpu: int = 0, *, caller: str = "") -> int:
        """``kvrealloc`` of 6.1: the same address unless it must grow; else a new one, with the contents copied and the old one freed."""
        old_size, new_size = whole(old_size, "old size"), whole(new_size, "new size")
        if old_size >= new_size:
            return address
        new = self.kvmalloc(new_size, gfp, cpu, caller=caller or site())
        if old_size and self._watch is not None:
            self.write(new, self.read(address, old_size))
        self.kvfree(address, cpu)
        return new

    # Modules and devices

    def module_alloc(self, size: int, cpu: int = 0, *, caller: str = "") -> int:
        """``module_alloc``: memory for a module's code, from the module space (on i386 that is the vmalloc space).

        :raises VmallocFailure: larger than the module space (Linux says nothing), or no room.
        """
        size = whole(size, "size")
        if -(-size // PAGE_SIZE) * PAGE_SIZE > self.space.modules_end - self.space.modules_vaddr:
            raise VmallocFailure(f"module_alloc({size}): larger than the module space; Linux returns NULL without a word", -12, GFP_KERNEL, "module space")
        return self.vmalloc_node_range(
            size, PAGE_SIZE, self.space.modules_vaddr, self.space.modules_end, vm_flags=VM_FLUSH_RESET_PERMS, cpu=cpu, caller=caller or site()
        )

    def ioremap(self, physical: int, size: int, cpu: int = 0, *, caller: str = "") -> int:
        """``ioremap``: a device's registers as uncached memory, wherever they lie. The address keeps the offset in the page.

        :raises BadIoremap: ordinary memory. :raises VmallocFailure: size 0, beyond the processor's address bits, or no addresses.
        """
        physical, size, cpu = whole(physical, "physical address"), whole(size, "size"), self._cpu(cpu)
        last = physical + size - 1
        if physical < 0 or size < 0:
            raise RequestError(f"ioremap of {size} bytes at {physical:#x}: expected no negative numbers")
        if not size:
            raise VmallocFailure("ioremap of 0 bytes: Linux returns NULL without a word", -22, GFP_KERNEL, "size 0")
        if last >> self.space.phys_bits:
            text = f"ioremap: invalid physical address {physical:x}"
            raise VmallocFailure(f"{text}: addresses have {self.space.phys_bits} bits; Linux returns NULL", -22, GFP_KERNEL, "invalid physical address", text)
        if any(first << PAGE_SHIFT <= last and physical < stop << PAGE_SHIFT for first, stop in self.ram):
            text = f"ioremap on RAM at 0x{self._hex(physical)} - 0x{self._hex(last)}"
            raise BadIoremap(f"{text}: Linux warns and returns NULL; memory has an address already (phys_to_virt, or vmap)", text)
        offset = physical & PAGE_SIZE - 1
        first, stop = physical - offset, -(-(last + 1) // PAGE_SIZE) * PAGE_SIZE
        address = self._get_area(stop - first, VM_IOREMAP, cpu, caller or site())
        self.areas.vm[self._find_vm(address)]["phys_addr"] = first
        try:
            self._map_range(address, first, stop - first, PAGE_KERNEL_NOCACHE, cpu)
        except AllocationFailure:
            self._vunmap(address, cpu, False, "free_vm_area")
            raise
        return address + offset

    def iounmap(self, address: int, cpu: int = 0) -> None:
        """``iounmap``. Addresses outside of the vmalloc space are ignored, as early mappings have some."""
        page = whole(address, "address") & -PAGE_SIZE
        if self.is_vmalloc_addr(page):
            self.vunmap(page, cpu)

    def vm_map_ram(self, pages: Sequence[int], cpu: int = 0) -> int:
        """``vm_map_ram``: as `vmap`, for a short time: up to 64 pages (32 on 32 bits) come out of a block of addresses that the CPU keeps.

        :raises VmallocFailure: no addresses.
        """
        pfns, cpu = self._frames(pages), self._cpu(cpu)
        if not len(pfns):
            raise RequestError("vm_map_ram of 0 pages: expected at least one")
        if len(pfns) <= self.space.bits:
            address = self._vb_alloc(len(pfns), cpu)
        else:
            row = self._alloc_vmap_area(len(pfns) << PAGE_SHIFT, PAGE_SIZE, self.space.vmalloc_start, self.space.vmalloc_end, GFP_KERNEL, cpu, VMAP_RAM)
            address = unbias(int(self.areas.area[row]["va_start"]))
        try:
            self._map_pages(address, pfns, PAGE_KERNEL, GFP_PGTABLE_KERNEL, PAGE_SHIFT, cpu)
        except AllocationFailure:
            self.vm_unmap_ram(address, len(pfns), cpu)
            raise
        return address

    def vm_unmap_ram(self, address: int, count: int, cpu: int = 0) -> None:
        """``vm_unmap_ram``: with the address and the number of pages of a `vm_map_ram`.

        :raises BadVfree: nothing of vm_map_ram is there; the kernel crashes.
        """
        address, count, cpu = whole(address, "address"), whole(count, "count"), self._cpu(cpu)
        if self._contexts:
            self.might_sleep(cpu, "vm_unmap_ram", "vm_unmap_ram")
        if not self.is_vmalloc_addr(address) or address % PAGE_SIZE or count < 1:
            raise self._bad_ram(address, count)
        if count <= self.space.bits:
            if not self._vb_free(address, count, cpu):
                raise self._bad_ram(address, count)
            return
        row = int(entry.find_area_entry(self._vmap_handle, bias(address)))
        if row == NIL or int(self.areas.area[row]["vm"]) != NIL or unbias(int(self.areas.area[row]["va_start"])) != address:
            raise self._bad_ram(address, count)
        self._free_unmap(row, cpu)
        self._settle(cpu)

    def _bad_ram(self, address: int, count: int) -> BadVfree:
        return BadVfree(
            f"vm_unmap_ram(0x{self._hex(address)}, {count}): vm_map_ram has handed out nothing there; the kernel crashes (BUG_ON, or a NULL pointer)"
        )

    def vm_unmap_aliases(self, cpu: int = 0) -> None:
        """``vm_unmap_aliases``: purges every lazily freed area now, with one flush of the TLBs."""
        self._unmap_aliases((1 << self.space.bits) - 1, 0, False, self._cpu(cpu))

    def _bad_object(self, error: int, address: int, call: str) -> BadFree:
        """kfree and its like take any address for one of the direct map: of a vmalloc address they compute a ``struct page`` that does not exist.

        :raises PageFault: the kernel's oops when it looks at that (x86-64).
        """
        if self.space.bits == 64 and self.space.vmalloc_start <= address < self.space.vmalloc_end:
            page = self.space.vmemmap_start + (address - self.PAGE_OFFSET >> PAGE_SHIFT) * self.profile.struct_page_size
            self.read(page + COMPOUND_HEAD, 8)
        found: BadFree = super()._bad_object(error, address, call)  # type: ignore[misc]
        return found

    # State

    def find_vm_area(self, address: int) -> dict[str, int | str] | None:
        """``find_vm_area``: the area that an address lies in (also its guard page): columns of ``vm_struct`` and its caller's name; None if there is none."""
        vm = self._find_vm(whole(address, "address"))
        if vm == NIL:
            return None
        row = self.areas.vm[vm]
        found: dict[str, int | str] = {name: int(row[name]) for name in ("size", "flags", "nr_pages", "phys_addr", "page_order")}
        return {"addr": unbias(int(row["addr"])), **found, "caller": self._callers.get(int(row["caller"]), "")}

    def _area_at(self, address: int) -> Area | None:
        found = self.find_vm_area(address)
        if found is None:
            return None
        start = int(found["addr"])
        return Area(start, start + int(found["size"]), not int(found["flags"]) & VM_NO_GUARD)

    def phys_pages(self, address: int, n: int | None = None) -> list[int]:
        """The page frames behind `n` bytes of kernel memory, page by page; -1 where nothing is mapped.

        :param n: bytes; None: of the whole virtual area at the address, without its guard page.
        :raises RequestError: no `n`, and no area is there.
        """
        if n is None:
            vm = self._find_vm(whole(address, "address"))
            if vm == NIL:
                raise RequestError(f"address 0x{address:x}: no virtual area is there; say how many bytes")
            address, n = unbias(int(self.areas.vm[vm]["addr"])), self._area_pages(vm) << PAGE_SHIFT
        pages: list[int] = super().phys_pages(address, n)  # type: ignore[misc]
        return pages

    def vmallocinfo(self) -> str:
        """/proc/vmallocinfo, as a reader with CAP_SYSLOG sees it; callers are those of the recording, and Python functions."""
        return procfs.vmallocinfo(self.areas, self._callers, bool(self.profile.numa_stat_items))

    def vmalloc_used(self) -> int:
        """Bytes of memory behind all areas: VmallocUsed of /proc/meminfo."""
        return int(self.areas.config[0]["nr_vmalloc_pages"]) << PAGE_SHIFT
