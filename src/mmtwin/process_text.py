"""/proc/PID/maps, smaps and status in the kernel's formats (fs/proc/task_mmu.c, fs/proc/array.c of Linux 6.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mmtwin.mm.pgtable_tables import PAGE_ACCESSED, PAGE_DIRTY, PAGE_PRESENT, PAGE_PSE, PFN_BITS, Mmu
from mmtwin.units import PAGE_SHIFT, PAGE_SIZE
from mmtwin.user.huge import PAGE_PROTNONE, PMD_SIZE
from mmtwin.user.mm_tables import (
    ANON,
    FILE_SPECIAL,
    PG_DIRTY,
    PG_SWAPBACKED,
    SHMEM,
    VM_EXEC,
    VM_HUGEPAGE,
    VM_LOCKED,
    VM_MAYSHARE,
    VM_NO_KHUGEPAGED,
    VM_NOHUGEPAGE,
    VM_READ,
    VM_WRITE,
    Users,
    areas_of,
)
from mmtwin.user.swap import entry_slot

if TYPE_CHECKING:
    from mmtwin.process import Process

PRESENT = PAGE_PRESENT | PAGE_PROTNONE
PSS_SHIFT = 12
FLAG_NAMES = (
    (0x1, "rd"), (0x2, "wr"), (0x4, "ex"), (0x8, "sh"), (0x10, "mr"), (0x20, "mw"), (0x40, "me"), (0x80, "ms"), (0x100, "gd"), (0x400, "pf"),
    (0x2000, "lo"), (0x4000, "io"), (0x8000, "sr"), (0x10000, "rr"), (0x20000, "dc"), (0x40000, "de"), (0x100000, "ac"), (0x200000, "nr"),
    (0x400000, "ht"), (0x800000, "sf"), (0x2000000, "wf"), (0x4000000, "dd"), (0x8000000, "sd"), (0x10000000, "mm"), (0x20000000, "hg"),
    (0x40000000, "nh"), (0x80000000, "mg"),
)  # fmt: skip
"""``show_smap_vma_flags``, in the order of the bits."""


class FileName(NamedTuple):
    """What maps shows of a file."""

    path: str
    inode: int
    device: tuple[int, int]


def maps_line(process: Process, row: int, files: Mapping[int, FileName]) -> str:
    """``show_map_vma``: a line of maps, without its end."""
    vma, mm = process.users.vma[row], process.users.mm[process.mm]
    start, end, flags, file = int(vma["vm_start"]), int(vma["vm_end"]), int(vma["vm_flags"]), int(vma["vm_file"])
    shown = files.get(file)
    special = file >= 0 and int(process.users.file[file]["kind"]) == FILE_SPECIAL
    named = shown is not None and not special
    pgoff = int(vma["vm_pgoff"]) << PAGE_SHIFT if named else 0
    device, inode = (shown.device, shown.inode) if named and shown else ((0, 0), 0)
    rights = "".join(letter if flags & bit else "-" for bit, letter in ((VM_READ, "r"), (VM_WRITE, "w"), (VM_EXEC, "x"))) + (
        "s" if flags & VM_MAYSHARE else "p"
    )
    text = f"{start:08x}-{end:08x} {rights} {pgoff:08x} {device[0]:02x}:{device[1]:02x} {inode} "
    name = ""
    if shown:
        name = shown.path
    elif start <= int(mm["brk"]) and end >= int(mm["start_brk"]) and file < 0:
        name = "[heap]"
    elif start <= int(mm["start_stack"]) <= end:
        name = "[stack]"
    return text + (" " * max(25 + 6 * process.word - 1 - len(text), 0) + " " + name if name else "")


class PageCount(NamedTuple):
    """What smaps counts of an area, in bytes; the proportional ones shifted by PSS_SHIFT."""

    rss: int = 0
    pss: int = 0
    pss_dirty: int = 0
    shared_clean: int = 0
    shared_dirty: int = 0
    private_clean: int = 0
    private_dirty: int = 0
    referenced: int = 0
    anonymous: int = 0
    lazyfree: int = 0
    huge: int = 0
    locked: int = 0


def user_entries(m: Mmu, pgd: int) -> dict[int, tuple[int, int]]:
    """Every entry below a PGD that maps memory of the process: address -> entry, level."""
    bits, found = int(m.config[0]["bits"]), dict[int, tuple[int, int]]()
    top = int(m.config[0]["levels"])
    todo = [(pgd, top, 0)]
    while todo:
        row, level, base = todo.pop()
        entries = m.entry[row]
        if level == top:
            entries = entries[: int(m.config[0]["kernel_index"])]
        for i in np.flatnonzero(entries & PRESENT).tolist():
            entry, address = int(entries[i]), base + (i << (PAGE_SHIFT + (level - 1) * bits))
            if level == 1 or entry & PAGE_PSE:
                found[address] = (entry, level)
            elif entry & PAGE_PRESENT:
                todo.append((int(m.child[row, i]), level - 1, address))
    return found


def swap_entries(m: Mmu, s: Users, mm: int) -> dict[int, int]:
    """A process's pages that are swapped out: address -> slot."""
    bits, top, found = int(m.config[0]["bits"]), int(m.config[0]["levels"]), dict[int, int]()
    todo = [(int(s.mm[mm]["pgd"]), top, 0)]
    while todo:
        row, level, base = todo.pop()
        entries = m.entry[row] if level < top else m.entry[row][: int(m.config[0]["kernel_index"])]
        for i in np.flatnonzero(entries).tolist():
            entry, address = int(entries[i]), base + (i << (PAGE_SHIFT + (level - 1) * bits))
            if level > 1 and entry & PAGE_PRESENT and not entry & PAGE_PSE:
                todo.append((int(m.child[row, i]), level - 1, address))
            elif level == 1 and not entry & PRESENT:
                found[address] = int(entry_slot(m, s, entry))
    return found


def mapcounts(m: Mmu, s: Users) -> Counter[int]:
    """``page_mapcount`` of every frame that a process maps; all frames of a huge page."""
    counts = Counter[int]()
    for mm in np.flatnonzero(s.mm["used"]):
        for entry, level in user_entries(m, int(s.mm[mm]["pgd"])).values():
            pfn = (entry & PFN_BITS) >> PAGE_SHIFT
            if level == 1:
                counts[pfn] += 1
            else:
                counts.update(range(pfn & ~1, (pfn & ~1) + 512))
    return counts


def count_pages(process: Process, row: int, entries: Mapping[int, tuple[int, int]], counts: Mapping[int, int]) -> PageCount:
    """``smap_gather_stats``."""
    s = process.users
    start, end, flags = int(s.vma[row]["vm_start"]), int(s.vma[row]["vm_end"]), int(s.vma[row]["vm_flags"])
    total = dict.fromkeys(PageCount._fields, 0)
    zero, huge_zero = int(s.config[0]["zero_pfn"]), int(s.config[0]["huge_zero_pfn"])
    for address, (entry, level) in entries.items():
        if not start <= address < end:
            continue
        pfn = (entry & PFN_BITS) >> PAGE_SHIFT
        pfn = pfn & ~1 if level > 1 else pfn
        if pfn in (zero, huge_zero):
            continue
        dirty, young = bool(entry & PAGE_DIRTY or int(s.folio[pfn]["flags"]) & PG_DIRTY), bool(entry & PAGE_ACCESSED)
        for frame in range(pfn, pfn + (PMD_SIZE >> PAGE_SHIFT if level > 1 else 1)):
            head = frame & ~511 if int(s.frame[frame]) & 4 else frame
            mapped = max(counts.get(frame, 1), 1)
            share = (PAGE_SIZE << PSS_SHIFT) // mapped
            total["rss"] += PAGE_SIZE
            total["pss"] += share
            total["pss_dirty"] += share if dirty else 0
            total[("private_" if mapped < 2 else "shared_") + ("dirty" if dirty else "clean")] += PAGE_SIZE
            total["referenced"] += PAGE_SIZE if young else 0
            if int(s.frame[head]) & ANON:
                total["anonymous"] += PAGE_SIZE
                total["lazyfree"] += PAGE_SIZE if not dirty and not int(s.folio[head]["flags"]) & PG_SWAPBACKED else 0
                total["huge"] += PAGE_SIZE if level > 1 else 0
            total["locked"] += share if flags & VM_LOCKED else 0
    return PageCount(**total)


def smaps_text(process: Process, row: int, files: Mapping[int, FileName], count: PageCount) -> str:
    """``show_smap``: an area's lines."""
    vma, s = process.users.vma[row], process.users
    flags = int(vma["vm_flags"])
    kib = {
        "Size": (int(vma["vm_end"]) - int(vma["vm_start"])) >> 10,
        "KernelPageSize": 4,
        "MMUPageSize": 4,
        "Rss": count.rss >> 10,
        "Pss": count.pss >> (10 + PSS_SHIFT),
        "Pss_Dirty": count.pss_dirty >> (10 + PSS_SHIFT),
        "Shared_Clean": count.shared_clean >> 10,
        "Shared_Dirty": count.shared_dirty >> 10,
        "Private_Clean": count.private_clean >> 10,
        "Private_Dirty": count.private_dirty >> 10,
        "Referenced": count.referenced >> 10,
        "Anonymous": count.anonymous >> 10,
        "LazyFree": count.lazyfree >> 10,
        "AnonHugePages": count.huge >> 10,
        "ShmemPmdMapped": 0,
        "FilePmdMapped": 0,
        "Shared_Hugetlb": 0,
        "Private_Hugetlb": 0,
        "Swap": 0,
        "SwapPss": 0,
        "Locked": count.locked >> (10 + PSS_SHIFT),
    }
    lines = [maps_line(process, row, files), *(f"{name + ':':<15}{value:>{8 if name == 'Private_Hugetlb' else 9}} kB" for name, value in kib.items())]
    lines.append(f"THPeligible:{thp_eligible(s, row, flags):>5}")
    if process.protection_keys:
        lines.append("ProtectionKey:         0")
    lines.append("VmFlags: " + "".join(f"{name} " for bit, name in FLAG_NAMES if flags & bit))
    return "\n".join(lines) + "\n"


def thp_eligible(s: Users, row: int, flags: int) -> int:
    """``hugepage_vma_check`` for smaps: an aligned huge page fits into the area, and may be there."""
    mode, start, end = int(s.config[0]["thp"]), int(s.vma[row]["vm_start"]), int(s.vma[row]["vm_end"])
    last = (end - PMD_SIZE) & -PMD_SIZE
    file = int(s.vma[row]["vm_file"])
    if mode == 0 or file >= 0 or flags & (VM_NOHUGEPAGE | VM_NO_KHUGEPAGED) or not (last >= start and last + PMD_SIZE <= end):
        return 0
    return int(mode == 2 or flags & VM_HUGEPAGE != 0)


def status_text(process: Process) -> str:
    """The memory lines of /proc/PID/status (``task_mem``), after the name and the numbers."""
    s = process.users
    mm = s.mm[process.mm]
    rss = int(mm["rss_anon"]) + int(mm["rss_file"]) + int(mm["rss_shmem"])
    top_vm, top_rss = max(int(mm["hiwater_vm"]), int(mm["total_vm"])), max(int(mm["hiwater_rss"]), rss)
    text = (int(mm["end_code"]) + PAGE_SIZE - 1 & -PAGE_SIZE) - (int(mm["start_code"]) & -PAGE_SIZE)
    text = min(text, int(mm["exec_vm"]) << PAGE_SHIFT)
    lib = (int(mm["exec_vm"]) << PAGE_SHIFT) - text
    pages = {
        "VmPeak": top_vm,
        "VmSize": int(mm["total_vm"]),
        "VmLck": int(mm["locked_vm"]),
        "VmPin": 0,
        "VmHWM": top_rss,
        "VmRSS": rss,
        "RssAnon": int(mm["rss_anon"]),
        "RssFile": int(mm["rss_file"]),
        "RssShmem": int(mm["rss_shmem"]),
        "VmData": int(mm["data_vm"]),
        "VmStk": int(mm["stack_vm"]),
    }
    lines = [f"Name:\t{process.name}", f"Tgid:\t{process.pid}", f"Pid:\t{process.pid}", f"PPid:\t{process.parent}"]
    lines += [f"{name}:\t{value * 4:>8} kB" for name, value in pages.items()]
    lines += [
        f"VmExe:\t{text >> 10:>8} kB",
        f"VmLib:\t{lib >> 10:>8} kB",
        f"VmPTE:\t{process.table_bytes >> 10:>8} kB",
        f"VmSwap:\t{int(mm['rss_swap']) * 4:>8} kB",
    ]
    return "\n".join(lines) + "\n"


def all_smaps(process: Process, m: Mmu, files: Mapping[int, FileName]) -> str:
    """/proc/PID/smaps."""
    s = process.users
    entries, counts = user_entries(m, int(s.mm[process.mm]["pgd"])), mapcounts(m, s)
    return "".join(smaps_text(process, row, files, count_pages(process, row, entries, counts)) for row in areas_of(s, process.mm))


__all__ = ("SHMEM", "FileName", "PageCount", "all_smaps", "count_pages", "mapcounts", "maps_line", "smaps_text", "status_text", "thp_eligible", "user_entries")
