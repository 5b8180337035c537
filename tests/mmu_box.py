"""A small machine with any kind of page tables, for tests of what is in `mm.pgtable`, `mm.mmu`, `address_space`."""

from __future__ import annotations

from mmtwin.address_space import AddressSpaces
from mmtwin.machine import Machine, boot
from mmtwin.mm.mmu import map_page_entry, pgd_alloc_entry, switch_mm_entry, unmap_range_entry
from mmtwin.mm.pgtable_tables import PAGE_KERNEL, reserve_tables, signed
from mmtwin.profiles.layout import AddressSpace, Bases, address_space
from mmtwin.slub_debug import Watch

KINDS = {"4-level": ("linux-6.1", False), "5-level": ("linux-6.1", True), "i386": ("linux-6.1-686", False), "i386-pae": ("linux-6.1-686-pae", False)}


def space_of(kind: str, machine: Machine, cmdline: str = "") -> AddressSpace:
    """The address space of a kind, for the memory of a machine."""
    name, la57 = KINDS[kind]
    bases: Bases | None = None
    return address_space(name, machine.ram, cmdline, la57, bases)


class Box(AddressSpaces):
    """The mixin alone, over the page allocator of an ordinary machine; high memory is what the address space does not reach."""

    def __init__(self, kind: str = "4-level", ram: str = "64MiB", cpus: int = 2, cmdline: str = "", contents: bool = True) -> None:
        self.machine = boot(ram=ram, cpus=cpus)
        self.state, self.profile, self.cpus = self.machine.state, self.machine.profile, cpus
        self.ram, self.reserved = self.machine.ram, self.machine.reserved
        space = space_of(kind, self.machine, cmdline)
        self.PAGE_OFFSET = space.page_offset
        self._watch: Watch | None = None
        for row in range(int(self.machine.mmu.config[0]["tables"])):  # the box has page tables of its own
            pfn = int(self.machine.mmu.table[row]["pfn"])
            if pfn < int(self.state.config[0]["nr_frames"]):
                self.state.page[pfn]["flags"] = 0
        self._set_address_space(space)

    def _cpu(self, cpu: int) -> int:
        return self.machine._cpu(cpu)

    def _watched(self, kasan: bool = False) -> Watch:
        if self._watch is None:
            self._watch = Watch(self.machine)
        return self._watch

    def map(self, address: int, pfn: int, prot: int = PAGE_KERNEL, root: int | None = None, cpu: int = 0) -> None:
        """Maps a page."""
        self.mmu = reserve_tables(self.mmu, 1)
        row = int(self.mmu.config[0]["root"]) if root is None else root
        assert map_page_entry(self.state, self.mmu, cpu, row, signed(address), pfn, signed(prot)) == 0

    def unmap(self, start: int, end: int) -> int:
        """Unmaps a range."""
        return int(unmap_range_entry(self.mmu, signed(start), signed(end)))

    def process(self) -> int:
        """A PGD of a process."""
        self.mmu = reserve_tables(self.mmu, 1)
        return int(pgd_alloc_entry(self.state, self.mmu, 0))

    def switch(self, root: int, cpu: int = 0) -> None:
        """The CPU runs the process now."""
        switch_mm_entry(self.mmu, cpu, root)

    def frame(self) -> int:
        """A page frame of low memory."""
        return self.machine.alloc_pages(0, 0xCC1)
