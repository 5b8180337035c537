"""Addresses of a machine: which physical address is behind a virtual one, and reading and writing through the page tables.

`AddressSpaces` is the part of `Machine` that the processor's memory management unit is in. Every access is translated, page by page, by the TLB or a walk of the
tables; what they do not allow raises the fault with the kernel's report. Bytes are kept by page frame (`memory.Memory`), and only for frames that were written.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mmtwin.errors import KmapError, NotDirectMapped, ReportedError, RequestError
from mmtwin.mm.highmem import HighMem, copy_highmem, kmap_high, kmap_local_pfn, kunmap_high, kunmap_local, new_highmem, page_address_high
from mmtwin.mm.init_mm import boot_frames, new_mmu
from mmtwin.mm.mmu import EXEC, READ, TABLE_MARK, WRITE, mmu_handle, translate_entry, translate_pages, walk_entry
from mmtwin.mm.pgtable import entry_pfn, level_shift
from mmtwin.mm.pgtable_tables import PAGE_PRESENT, Mmu, copy_mmu, counters
from mmtwin.mm.tables import PG_TABLE, Pgdat
from mmtwin.page_fault import Area, fault_error
from mmtwin.profiles import Profile, physical
from mmtwin.profiles.layout import AddressSpace
from mmtwin.profiles.layout_text import layout_picture, layout_text
from mmtwin.profiles.physical import Frames
from mmtwin.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from mmtwin.slub_debug import Watch

TOP_64 = 1 << 64
ACCESSES = {"read": READ, "write": WRITE, "exec": EXEC}


def _whole(value: int, what: str) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise RequestError(f"{what} {value!r}: expected a whole number") from None


class Readable(Protocol):
    """What has memory at addresses: a machine, a process."""

    def read(self, address: int, n: int, cpu: int = 0) -> bytes: ...

    def write(self, address: int, data: bytes | bytearray | memoryview, cpu: int = 0) -> None: ...


class MemoryBuffer:
    """A range of a machine's virtual memory as a buffer of bytes: indexing and slicing read and write through the page tables, at the time it is done.

    :ivar address: its first byte's address.
    """

    def __init__(self, spaces: Readable, address: int, n: int, cpu: int = 0) -> None:
        self._spaces, self.address, self._n, self._cpu = spaces, address, n, cpu

    def __len__(self) -> int:
        return self._n

    def __repr__(self) -> str:
        return f"<{self._n} bytes of memory at 0x{self.address:x}>"

    def _index(self, at: int) -> int:
        at = operator.index(at)
        if not -self._n <= at < self._n:
            raise IndexError(f"byte {at} of {self._n}")
        return self.address + at % self._n

    def __getitem__(self, at: int | slice) -> int | bytes:
        if isinstance(at, slice):
            start, stop, step = at.indices(self._n)
            if step == 1:
                return self._spaces.read(self.address + start, max(stop - start, 0), self._cpu)
            return bytes(self)[at]
        return self._spaces.read(self._index(at), 1, self._cpu)[0]

    def __setitem__(self, at: int | slice, value: int | bytes | bytearray | memoryview) -> None:
        if not isinstance(at, slice):
            self._spaces.write(self._index(at), bytes((operator.index(value),)), self._cpu)  # type: ignore[arg-type]
            return
        start, stop, step = at.indices(self._n)
        data = bytes(value)
        if len(data) != len(range(start, stop, step)):
            raise ValueError(f"{len(data)} bytes for {len(range(start, stop, step))}: memory does not change its size")
        if step == 1:
            self._spaces.write(self.address + start, data, self._cpu)
        else:
            for i, byte in zip(range(start, stop, step), data, strict=True):
                self._spaces.write(self.address + i, bytes((byte,)), self._cpu)

    def __bytes__(self) -> bytes:
        return self._spaces.read(self.address, self._n, self._cpu)

    tobytes = __bytes__

    def __iter__(self) -> Iterator[int]:
        return iter(bytes(self))

    def __eq__(self, other: object) -> bool:
        return bytes(self) == bytes(other) if isinstance(other, bytes | bytearray | memoryview | MemoryBuffer) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def hex(self, sep: str = "") -> str:
        """As ``bytes.hex``."""
        return bytes(self).hex(sep) if sep else bytes(self).hex()


class AddressSpaces:
    """Addresses, page tables and contents; mixed into `Machine`.

    :ivar space: the kernel's address space (`profiles.layout.AddressSpace`).
    :ivar mmu: page tables and TLBs (`mm.pgtable_tables.Mmu`). A table that replaces it is found by itself.
    :ivar highmem: temporary mappings of high memory (`mm.highmem.HighMem`).
    """

    state: Pgdat
    profile: Profile
    cpus: int
    ram: tuple[Frames, ...]
    reserved: tuple[Frames, ...]
    PAGE_OFFSET: int
    space: AddressSpace
    mmu: Mmu
    highmem: HighMem
    _watch: Watch | None
    _oopses: int

    def _set_address_space(self, space: AddressSpace, mmu: Mmu | None = None, highmem: HighMem | None = None) -> None:
        """Makes the boot's page tables, or takes those of another machine's copy."""
        self.space, self._oopses = space, 0
        self.highmem = new_highmem(space, self.cpus) if highmem is None else highmem
        if mmu is None:
            mmu = new_mmu(space, self.ram, self.cpus, boot_frames(self.reserved), self.profile.image.kept if space.bits == 64 else ())
            for row in range(int(mmu.config[0]["tables"])):
                pfn = int(mmu.table[row]["pfn"])
                if pfn < int(self.state.config[0]["nr_frames"]) and not int(self.state.page[pfn]["flags"]):
                    self.state.page[pfn]["flags"], self.state.page[pfn]["next"] = PG_TABLE, row
        self.mmu = mmu
        self._bind_mmu()

    def _bind_mmu(self) -> None:
        self._mmu_table = mmu_handle(self.state, self.mmu)
        self._mmu_handle, self._bound_mmu = self._mmu_table.ctypes.data, self.mmu
        self._memory_end = int(self.state.config[0]["nr_frames"]) << PAGE_SHIFT

    def __getstate__(self) -> dict[str, object]:
        """Without addresses of memory, which mean nothing to an unpickled machine."""
        return {name: value for name, value in super().__getstate__().items() if name not in ("_mmu_table", "_mmu_handle", "_bound_mmu")}  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        self._bind_mmu()

    def _mmu_state(self) -> tuple[Mmu, HighMem]:
        """Copies, for a copy of the machine."""
        return copy_mmu(self.mmu), copy_highmem(self.highmem)

    def mmu_counters(self) -> dict[str, int]:
        """Page tables' and TLBs' counters: entries written, tables allocated, walks, hits, misses, flushes (`mm.pgtable_tables.counters`)."""
        return counters(self.mmu)

    def layout(self, picture: bool = False) -> str:
        """The map of the kernel's address space, as its boot log had it (i386) or its documentation has it (x86-64).

        :param picture: boxes to a log scale instead; `profiles.layout_text.layout_svg` gives them as SVG.
        """
        return layout_picture(self.space) if picture else layout_text(self.space)

    # Translation

    def translate(self, address: int, access: str = "read", cpu: int = 0) -> int:
        """The physical address that `cpu` reaches at `address`, as a "read", "write" or "exec" (an instruction fetch) would.

        :raises PageFault: the page tables (or a stale entry of the TLB) do not allow it; subclasses say why, `.report` is the kernel's Oops.
        :raises GeneralProtection: the address is not canonical.
        """
        if access not in ACCESSES:
            raise RequestError(f"access {access!r}: expected one of {', '.join(ACCESSES)}")
        return self._translate(self._address(address), ACCESSES[access], cpu) & ~TABLE_MARK

    def _translate(self, address: int, access: int, cpu: int) -> int:
        if self._bound_mmu is not self.mmu:
            self._bind_mmu()
        if not (cpu.__class__ is int and 0 <= cpu < self.cpus):
            cpu = self._cpu(cpu)
        found = int(translate_entry(self._mmu_handle, cpu, address if address < 1 << 63 else address - TOP_64, access))
        if found < 0:
            raise self._fault(address, found, cpu)
        return found

    def _fault(self, address: int, result: int, cpu: int) -> ReportedError:
        self._oopses += 1
        return fault_error(self.mmu, self.space, cpu, address, result, self._oopses, self._area_at)

    def _area_at(self, address: int) -> Area | None:
        """The virtual area that holds an address, its guard page included."""
        return None

    def _cpu(self, cpu: int) -> int:
        raise NotImplementedError

    def _address(self, address: int) -> int:
        address = _whole(address, "address")
        if not 0 <= address < self.space.top:
            raise RequestError(f"address 0x{address:x}: expected 0 to 0x{self.space.top - 1:x}, the addresses of {self.space.bits} bits")
        return address

    # What an address is

    def _direct_bytes(self) -> int:
        return min(self.space.max_low_pfn, int(self.state.config[0]["nr_frames"])) << PAGE_SHIFT

    def virt_to_phys(self, address: int) -> int:
        """``virt_to_phys``: a constant offset from the virtual address (two on x86-64: the kernel image has its own).

        :raises NotDirectMapped: the address is neither in the direct map nor in the image: Linux computes a wrong address (with CONFIG_DEBUG_VIRTUAL: BUG).
        """
        address = _whole(address, "address")
        if not 0 <= address < self.space.top:
            raise NotDirectMapped(f"address 0x{address:x}: not in the direct map, and no address of {self.space.bits} bits")
        found = address - self.PAGE_OFFSET
        if 0 <= found < self._direct_bytes():
            return found
        space = self.space
        if space.bits == 64 and space.kernel_map <= address < space.text_end:
            return address - space.kernel_map
        wrong = found % space.top
        shown = f"virt_to_phys(0x{address:x})"
        if self.is_vmalloc_or_module_addr(address):
            raise NotDirectMapped(
                f"{shown}: not in the direct map, which begins at 0x{self.PAGE_OFFSET:x}: a vmalloc address, whose frames are anywhere; "
                f"use vmalloc_to_pfn for each page (Linux computes 0x{wrong:x}, which is wrong; kernel BUG with CONFIG_DEBUG_VIRTUAL)",
                wrong,
            )
        end = self.PAGE_OFFSET + self._direct_bytes()
        raise NotDirectMapped(f"{shown}: not in the direct map, 0x{self.PAGE_OFFSET:x} to 0x{end:x}; it is in: {space.region(address).note}", wrong)

    def phys_to_virt(self, physical: int) -> int:
        """``phys_to_virt``: the address in the direct map.

        :raises NotDirectMapped: high memory, which is not in the direct map: use `kmap`.
        :raises RequestError: it is not below the end of memory.
        """
        physical = _whole(physical, "physical address")
        end = int(self.state.config[0]["nr_frames"]) * PAGE_SIZE
        if not 0 <= physical < end:
            raise RequestError(f"physical address 0x{physical:x}: this machine's memory ends at 0x{end:x}")
        if physical >= self._direct_bytes():
            wrong = (physical + self.PAGE_OFFSET) % self.space.top
            raise NotDirectMapped(
                f"physical address 0x{physical:x}: high memory, which is not in the direct map (it ends at 0x{self._direct_bytes():x}); use kmap", wrong
            )
        return physical + self.PAGE_OFFSET

    def virt_to_page(self, address: int) -> int:
        """``virt_to_page``: the page frame of an address of the direct map. :raises NotDirectMapped: as `virt_to_phys`."""
        return self.virt_to_phys(address) >> PAGE_SHIFT

    def page_address(self, pfn: int) -> int:
        """``page_address``: the address of a page frame; 0 for high memory that `kmap` has not mapped."""
        pfn = self._frame(pfn)
        if pfn < self._direct_bytes() >> PAGE_SHIFT:
            return (pfn << PAGE_SHIFT) + self.PAGE_OFFSET
        return int(page_address_high(self.highmem, pfn))

    def is_vmalloc_addr(self, address: int) -> bool:
        """``is_vmalloc_addr``: between VMALLOC_START and VMALLOC_END, mapped or not."""
        return self.space.vmalloc_start <= self._address(address) < self.space.vmalloc_end

    def is_vmalloc_or_module_addr(self, address: int) -> bool:
        """``is_vmalloc_or_module_addr``: also where modules are."""
        return self.is_vmalloc_addr(address) or self.space.modules_vaddr <= address < self.space.modules_end

    def virt_addr_valid(self, address: int) -> bool:
        """``virt_addr_valid``: whether `virt_to_page` gives a page that has a ``struct page``; it need not be memory (there are holes)."""
        address, space = self._address(address), self.space
        if space.bits == 64:
            if address >= space.kernel_map:
                if address - space.kernel_map >= space.text_end - space.kernel_map:
                    return False
                return self._pfn_valid(address - space.kernel_map >> PAGE_SHIFT)
            at = address - self.PAGE_OFFSET
            return 0 <= at < 1 << space.phys_bits and self._pfn_valid(at >> PAGE_SHIFT)
        if address < self.PAGE_OFFSET or self.is_vmalloc_addr(address) or address >= space.fixaddr_start:
            return False
        return self._pfn_valid(address - self.PAGE_OFFSET >> PAGE_SHIFT)

    def _pfn_valid(self, pfn: int) -> bool:
        """``pfn_valid``: in a section of the memory map (x86-64), or below the end of memory (the flat map of i386)."""
        if self.space.bits == 32:
            return pfn < self.space.max_pfn
        return any(start <= pfn < end for start, end in physical.sections(self.ram, self.profile.section_order))

    def vmalloc_to_pfn(self, address: int) -> int:
        """``vmalloc_to_pfn``: the page frame behind a mapped address of the vmalloc or module space, found by walking the kernel's page tables.

        :raises RequestError: not such an address, or nothing is mapped there (``vmalloc_to_page`` gives NULL).
        """
        address = self._address(address)
        if not self.is_vmalloc_or_module_addr(address):
            raise RequestError(f"vmalloc_to_pfn(0x{address:x}): no vmalloc address; use virt_to_phys (VIRTUAL_BUG_ON with CONFIG_DEBUG_VIRTUAL)")
        pfn = self._walk(address)
        if pfn < 0:
            raise RequestError(f"vmalloc_to_pfn(0x{address:x}): nothing is mapped there (vmalloc_to_page gives NULL)")
        return pfn

    vmalloc_to_page = vmalloc_to_pfn

    def _walk(self, address: int) -> int:
        """The frame that init_mm's tables have for an address, -1: none."""
        if self._bound_mmu is not self.mmu:
            self._bind_mmu()
        entry, level, _, _ = walk_entry(self._mmu_handle, int(self.mmu.config[0]["root"]), address if address < 1 << 63 else address - TOP_64)
        if not entry & PAGE_PRESENT:
            return -1
        return entry_pfn(int(entry), int(level)) + ((address & (1 << level_shift(self.mmu, int(level))) - 1) >> PAGE_SHIFT)

    def _frame(self, pfn: int) -> int:
        pfn = _whole(pfn, "page frame")
        if not 0 <= pfn < int(self.state.config[0]["nr_frames"]):
            raise RequestError(f"page frame {pfn}: this machine has {int(self.state.config[0]['nr_frames'])}")
        return pfn

    # High memory

    def kmap(self, pfn: int, cpu: int = 0) -> int:
        """``kmap``: an address for a page frame; high memory gets one of the LAST_PKMAP places of the pkmap area until `kunmap`.

        :raises KmapError: all places are in use: Linux sleeps until somebody calls kunmap.
        """
        pfn, cpu = self._frame(pfn), self._cpu(cpu)
        if pfn < self._direct_bytes() >> PAGE_SHIFT:
            return self.page_address(pfn)
        found = int(kmap_high(self.state, self.mmu, self.highmem, cpu, pfn))
        if found < 0:
            raise KmapError(f"kmap of page frame {pfn}: all {self.space.last_pkmap} places are in use; Linux would sleep until someone calls kunmap")
        return found

    def kunmap(self, pfn: int) -> None:
        """``kunmap``: the page stays mapped until `kmap` has used up all places behind it.

        :raises KmapError: it was not mapped (a BUG in Linux).
        """
        pfn = self._frame(pfn)
        if pfn >= self._direct_bytes() >> PAGE_SHIFT and kunmap_high(self.highmem, pfn):
            raise KmapError(f"kernel BUG at mm/highmem.c: kunmap of page frame {pfn}, which nobody has mapped")

    def kmap_local_page(self, pfn: int, cpu: int = 0) -> int:
        """``kmap_local_page``: an address that only `cpu` may use; high memory gets one of 16 slots, to be given back in reverse order.

        :raises KmapError: the CPU has no slot left (a BUG in Linux).
        """
        pfn, cpu = self._frame(pfn), self._cpu(cpu)
        if pfn < self._direct_bytes() >> PAGE_SHIFT:
            return self.page_address(pfn)
        found = int(kmap_local_pfn(self.state, self.mmu, self.highmem, cpu, pfn))
        if found < 0:
            raise KmapError(f"kmap_local_page of page frame {pfn}: kernel BUG at mm/highmem.c: CPU {cpu} has no slot left")
        return found

    def kunmap_local(self, address: int, cpu: int = 0) -> None:
        """``kunmap_local``: unmaps at once. :raises KmapError: not the newest mapping of `cpu` (Linux warns)."""
        address, cpu = self._address(address), self._cpu(cpu)
        if self.PAGE_OFFSET <= address < self.PAGE_OFFSET + self._direct_bytes():
            return
        if kunmap_local(self.state, self.mmu, self.highmem, cpu, address):
            raise KmapError(f"kunmap_local(0x{address:x}): not the newest mapping of CPU {cpu}; they are given back in reverse order")

    # Contents

    def read(self, address: int, n: int, cpu: int = 0) -> bytes:
        """`n` bytes of memory, through `cpu`'s TLB and the page tables; what was never written reads as zeros.

        :raises PageFault: nothing is mapped there, or not for reading (`.report`: the kernel's Oops).
        :raises GeneralProtection: the address is not canonical.
        :raises KasanError: with KASAN, some of the bytes belong to no object in use.
        :raises RequestError: no address of this machine, or a negative length.
        """
        if not (address.__class__ is int and n.__class__ is int and 0 < n <= PAGE_SIZE - (address & PAGE_SIZE - 1) and 0 <= address < self.space.top):
            address, n = self._range(address, n)
            if n == 0:
                return b""
            if n > PAGE_SIZE - (address & PAGE_SIZE - 1):
                return self._read_pages(address, n, cpu)
        return self._load(self._translate(address, READ, cpu), n)

    def write(self, address: int, data: bytes | bytearray | memoryview, cpu: int = 0) -> None:
        """Puts `data` into memory. From the first write on the machine keeps contents: __GFP_ZERO clears, krealloc copies.

        :raises PageFault: as `read`, or read-only; what is in the pages before the fault was written.
        :raises KasanError: with KASAN, some of the bytes belong to no object in use; they were written all the same.
        """
        data = bytes(data)
        address, n = self._range(address, len(data))
        watch = self._watched()
        if n == 0:
            return
        if n <= PAGE_SIZE - (address & PAGE_SIZE - 1):
            self._store(watch, self._translate(address, WRITE, cpu), data)
            return
        found: ReportedError | None = None
        try:
            for at, where, length in self._runs(address, n, WRITE, cpu):
                try:
                    self._store(watch, where, data[at : at + length])
                except ReportedError as error:
                    found = found or error
        except ReportedError as error:
            raise found or error from None
        if found is not None:
            raise found

    def memory(self, address: int, n: int, cpu: int = 0) -> MemoryBuffer:
        """A buffer of `n` bytes at an address: ``m.memory(p, 16)[4:8] = b"abcd"``. Each use goes through the page tables anew."""
        address, n = self._range(address, n)
        return MemoryBuffer(self, address, n, self._cpu(cpu))

    def phys_pages(self, address: int, n: int) -> list[int]:
        """The page frames behind `n` bytes of kernel memory, page by page; -1 where nothing is mapped."""
        address, n = self._range(address, n)
        return [self._walk(at) for at in range(address & -PAGE_SIZE, address + n, PAGE_SIZE)]

    def _range(self, address: int, n: int) -> tuple[int, int]:
        address, n = self._address(address), _whole(n, "length")
        if not 0 <= n <= self.space.top - address:
            raise RequestError(f"{n} bytes at address 0x{address:x}: expected 0 to {self.space.top - address}, where the addresses end")
        return address, n

    def _runs(self, address: int, n: int, access: int, cpu: int) -> Iterator[tuple[int, int, int]]:
        """Pieces that are physically contiguous: offset, physical address, length. :raises ReportedError: behind those before the fault."""
        if self._bound_mmu is not self.mmu:
            self._bind_mmu()
        cpu = self._cpu(cpu)
        pages = (address + n - 1 >> PAGE_SHIFT) - (address >> PAGE_SHIFT) + 1
        out = np.zeros(pages, dtype=np.int64)
        good = int(translate_pages(self._mmu_handle, cpu, address if address < 1 << 63 else address - TOP_64, access, out))
        found: list[int] = out[:good].tolist()
        fault = found.pop() if found[-1] < 0 else 0
        at, where, length = 0, 0, 0
        for i, physical_address in enumerate(found):
            piece = min(n - at - length, PAGE_SIZE - (physical_address & PAGE_SIZE - 1))
            if i and physical_address == where + length and not physical_address & TABLE_MARK:
                length += piece
                continue
            if length:
                yield at, where, length
            at, where, length = at + length, physical_address, piece
        if length:
            yield at, where, length
        if fault:
            raise self._fault(address if not found else (address & -PAGE_SIZE) + len(found) * PAGE_SIZE, fault, cpu)

    def _read_pages(self, address: int, n: int, cpu: int) -> bytes:
        return b"".join([self._load(where, length) for _, where, length in self._runs(address, n, READ, cpu)])

    def _load(self, where: int, n: int) -> bytes:
        if where >= self._memory_end:
            return self._load_special(where, n)
        return bytes(n) if self._watch is None else self._watch.read(where, n)

    def _store(self, watch: Watch, where: int, data: bytes) -> None:
        if where >= self._memory_end:
            self._store_special(where, data)
        else:
            watch.write(where, data)

    def _load_special(self, where: int, n: int) -> bytes:
        """A page table's entries; behind the end of memory, where nobody answers, all bits are 1."""
        if not where & TABLE_MARK:
            return b"\xff" * n
        at = where & PAGE_SIZE - 1
        return self._table_bytes(self._table_row(where))[at : at + n]

    def _table_row(self, where: int) -> int:
        return int(self.state.page[(where & ~TABLE_MARK) >> PAGE_SHIFT]["next"])

    def _table_bytes(self, row: int) -> bytes:
        kind = "<u4" if self.space.levels == 2 else "<u8"
        return bytes(self.mmu.entry[row].astype(kind).tobytes())

    def _store_special(self, where: int, data: bytes) -> None:
        if not where & TABLE_MARK:
            return
        row, at = self._table_row(where), where & PAGE_SIZE - 1
        level = int(self.mmu.table[row]["level"])
        if level > 1:
            raise RequestError(f"page frame {(where & ~TABLE_MARK) >> PAGE_SHIFT} is a page table of level {level}: only PTEs can be written by address")
        image = bytearray(self._table_bytes(row))
        image[at : at + len(data)] = data
        self.mmu.entry[row] = np.frombuffer(bytes(image), dtype="<u4" if self.space.levels == 2 else "<u8").astype(np.uint64).view(np.int64)

    def _watched(self, kasan: bool = False) -> Watch:
        raise NotImplementedError
