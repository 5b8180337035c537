"""What the kernel says to an access that the page tables do not allow (arch/x86/mm/fault.c and arch/x86/kernel/traps.c of Linux 6.1).

A report has the lines that a kernel prints before registers, stack and modules, and the CR2 that it repeats at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mmtwin import errors
from mmtwin.errors import GeneralProtection, PageFault
from mmtwin.mm.mmu import EXEC, GENERAL_PROTECTION, PF_PROT, USER, WRITE
from mmtwin.mm.pgtable import entry_pfn, table_index
from mmtwin.mm.pgtable_tables import PAGE_NX, PAGE_PRESENT, PAGE_PSE, PAGE_USER, Mmu
from mmtwin.profiles.layout import AddressSpace
from mmtwin.units import PAGE_SIZE

MASK_64 = (1 << 64) - 1
LEVEL_NAMES = {5: "PGD", 4: "P4D", 3: "PUD", 2: "PMD", 1: "PTE"}


@dataclass(frozen=True)
class Area:
    """A virtual area near a fault.

    :ivar start: its first address.
    :ivar end: the address behind it and its guard page.
    :ivar guard: whether its last page is a guard page.
    """

    start: int
    end: int
    guard: bool = True


def entries_to(m: Mmu, root: int, address: int) -> list[tuple[int, int]]:
    """Level and entry of each table on the way to an address, the PGD's first; the last is a PTE, a huge entry or one that is not present."""
    found, row, level = list[tuple[int, int]](), root, int(m.config[0]["levels"])
    while True:
        i = table_index(m, address, level)
        entry = int(m.entry[row, i])
        found.append((level, entry))
        if level == 1 or not entry & PAGE_PRESENT or entry & PAGE_PSE:
            return found
        row, level = int(m.child[row, i]), level - 1


def dump_pagetable(m: Mmu, space: AddressSpace, root: int, address: int) -> str:
    """``dump_pagetable``: the line with the entries on the way to an address, as it stands in the log (with its blank at the end)."""
    entries = entries_to(m, root, address)
    if space.bits == 64:
        words = [f"{LEVEL_NAMES[level]} {entry & MASK_64:x}" for level, entry in entries]
        if space.levels == 4:  # the P4D is folded into the PGD: the same entry, and the PGD always counts as present
            words.insert(0, f"PGD {entries[0][1] & MASK_64:x}")
        return " ".join(words) + ("" if entries[-1][0] == 1 else " ")
    width = 8 if space.levels == 2 else 16
    line = ""
    if space.levels == 3:
        line, entries = f"*pdpt = {entries[0][1] & MASK_64:016x} ", entries[1:]
        if not entries:
            return line
    line += f"*pde = {entries[0][1] & MASK_64:0{width}x} "
    if len(entries) > 1 and entry_pfn(entries[0][1], 1) < space.max_low_pfn:
        line += f"*pte = {entries[1][1] & MASK_64:0{width}x} "
    return line


def die_header(what: str, code: int, space: AddressSpace, count: int) -> str:
    """``__die_header`` of a Debian kernel: preemptible, for several CPUs; with page table isolation built in (all but i386 without PAE), but not needed."""
    return f"{what}: {code:04x} [#{count}] PREEMPT SMP{' NOPTI' if space.levels > 2 else ''}"


def access_words(code: int) -> str:
    """Who wanted what, as the second line says it."""
    kind = "instruction fetch" if code & EXEC else "write access" if code & WRITE else "read access"
    return f"{'user' if code & USER else 'supervisor'} {kind}"


def show_fault_oops(m: Mmu, space: AddressSpace, root: int, address: int, code: int, count: int) -> str:
    """The report of a page fault.

    :param address: unsigned.
    :param code: the error code.
    :param count: oopses so far, this one included.
    """
    lines = []
    entries = entries_to(m, root, address)
    if code & EXEC and entries[-1][1] & PAGE_PRESENT:
        if entries[-1][1] & PAGE_NX:
            lines.append("kernel tried to execute NX-protected page - exploit attempt? (uid: 0)")
        elif entries[0][1] & PAGE_USER and int(m.config[0]["smep"]):  # never with PAE, whose PGD entries have no such bit
            lines.append("unable to execute userspace code (SMEP?) (uid: 0)")
    text = f"{address:0{space.bits // 4}x}"
    lines.append(f"BUG: kernel NULL pointer dereference, address: {text}" if address < PAGE_SIZE else f"BUG: unable to handle page fault for address: {text}")
    lines.append(f"#PF: {access_words(code)} in kernel mode")
    lines.append(f"#PF: error_code(0x{code:04x}) - {'permissions violation' if code & PF_PROT else 'not-present page'}")
    lines.append(dump_pagetable(m, space, root, address))
    lines.append(die_header("Oops", code, space, count))
    lines.append(f"CR2: {address:016x}")
    return "\n".join(lines) + "\n"


def fault_error(
    m: Mmu, space: AddressSpace, cpu: int, address: int, result: int, count: int, area_at: Callable[[int], Area | None]
) -> PageFault | GeneralProtection:
    """The error for a fault that `mm.mmu.translate` returned.

    :param address: unsigned.
    :param result: what it returned.
    :param area_at: finds the virtual area that holds an address, guard page included.
    """
    shown = f"{address:0{space.bits // 4}x}"
    if result == GENERAL_PROTECTION:
        header = die_header(f"general protection fault, probably for non-canonical address 0x{address:x}", 0, space, count)
        bits = 47 if space.levels == 4 else 56
        return GeneralProtection(f"{header.partition(':')[0]}: bits {bits} to 63 of an address must be equal", header + "\n")
    code = -1 - result
    report = show_fault_oops(m, space, int(m.cpu[cpu]["root"]), address, code, count)
    kind, why = _kind(m, space, int(m.cpu[cpu]["root"]), address, code, area_at)
    what = "kernel NULL pointer dereference, address" if address < PAGE_SIZE else "unable to handle page fault for address"
    return kind(f"BUG: {what}: {shown}: {access_words(code)}: {why}", report, address, code)


def _kind(m: Mmu, space: AddressSpace, root: int, address: int, code: int, area_at: Callable[[int], Area | None]) -> tuple[type[PageFault], str]:
    """The type of a page fault, and the reason in words."""
    if code & PF_PROT:
        entries = entries_to(m, root, address)
        if not code & USER and all(entry & PAGE_USER for level, entry in entries if space.levels != 3 or level < 3):
            guard = "SMEP" if code & EXEC else "SMAP"
            if not (code & EXEC and entries[-1][1] & PAGE_NX):
                return errors.UserAccess, f"permissions violation: {guard}: the kernel may not {'execute' if code & EXEC else 'touch'} a process's page"
        if code & EXEC:
            return errors.NotExecutable, "permissions violation: the page is not executable (NX)"
        if code & WRITE:
            return errors.WriteToReadOnly, "permissions violation: the page is read-only"
        return errors.ProtectionFault, "permissions violation"
    if address < PAGE_SIZE:
        return errors.NullPointerDereference, "not-present page: a NULL pointer, or a field of a structure at NULL"
    if space.vmalloc_start <= address < space.vmalloc_limit or space.modules_vaddr <= address < space.modules_end:
        area = area_at(address)
        if area is None:
            return errors.UnmappedArea, "not-present page: no virtual area is there (never, or not any more)"
        if area.guard and address >= area.end - PAGE_SIZE:
            return errors.GuardPage, f"not-present page: the guard page behind the area 0x{area.start:x}-0x{area.end - PAGE_SIZE:x}"
        return errors.NotPresent, f"not-present page: not mapped, though the area 0x{area.start:x}-0x{area.end:x} is there"
    if address < space.user_end:
        return errors.NotPresent, "not-present page: an address of a process, of which this context has none"
    return errors.NotPresent, f"not-present page: nothing is mapped there ({space.region(address).note})"
