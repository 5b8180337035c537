"""Address spaces: which virtual address means what, as x86 kernels lay them out (x86-64 with 4 and 5 levels of page tables, i386 with 3 GiB for
processes and 1 GiB for the kernel, with and without PAE).

Every number is computed from what the kernel computes it from: the end of memory, a few words of its command line, and the constants of its
configuration in `Rules`. The sources are arch/x86/include/asm/{page,pgtable}_{32,64}_types.h, pgtable_32_areas.h and fixmap.h,
arch/x86/mm/{init_32,pgtable_32,kaslr}.c and Documentation/x86/x86_64/mm.rst.

Addresses are unsigned; ends are exclusive unless they are called last.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from mmtwin.errors import ProfileError
from mmtwin.profiles.physical import DMA32_END, DMA_END, Frames
from mmtwin.profiles.profile import Profile
from mmtwin.units import PAGE_SHIFT, PAGE_SIZE

__all__ = ("AddressSpace", "Bases", "Region", "Rules", "address_space", "end_of_ram", "i386_space", "memparse", "rules_for", "words", "x86_64_space")

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
TOP_32, TOP_64 = 1 << 32, 1 << 64
VMALLOC_OFFSET = 8 * MIB
"""Hole between the direct map of i386 and its vmalloc space."""
VMALLOC_RESERVE = 128 * MIB
"""What i386 keeps for vmalloc and all above it, unless ``vmalloc=`` says otherwise (__VMALLOC_RESERVE)."""
LOWMEM_MIN = 64 * MIB
"""``highmem=`` must leave this much low memory (lowmem_pfn_init)."""
START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
MODULES_END_64 = 0xFFFF_FFFF_FF00_0000
VSYSCALL_ADDR = 0xFFFF_FFFF_FF60_0000
FIXADDR_TOP_64 = 0xFFFF_FFFF_FF7F_F000
FIXADDR_TOP_32 = 0xFFFF_F000
P4D_SIZE = 1 << 39
PUD_SIZE = 1 << 30


class Region(NamedTuple):
    """A part of an address space.

    :param name: short, such as "vmalloc".
    :param start: first address.
    :param end: the address behind it.
    :param note: what is there, as the kernel's documentation says it.
    """

    name: str
    start: int
    end: int
    note: str

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


class Bases(NamedTuple):
    """What address randomisation of x86-64 draws (CONFIG_RANDOMIZE_MEMORY); what is kept fixed are their order and sizes.

    :param page_offset: start of the direct map (page_offset_base).
    :param vmalloc: start of the vmalloc space (vmalloc_base).
    :param vmemmap: start of the array of ``struct page`` (vmemmap_base).
    """

    page_offset: int
    vmalloc: int
    vmemmap: int


@dataclass(frozen=True)
class Rules:
    """What decides about a kernel's address space.

    :param name: the kernel, as a profile is called.
    :param aliases: other names.
    :param bits: 64 or 32.
    :param version: (major, minor, patch) whose formulas are used: (2, 6, 24), (3, 6, 0), (6, 1, 0) and (6, 12, 0) are known.
    :param nr_cpus: CONFIG_NR_CPUS.
    :param fixed: slots of the fixmap that every CPU shares, hole and APICs included (fixmap.h up to FIX_KMAP_BEGIN, and what comes behind the kmaps).
    :param kmaps: slots of the fixmap for temporary mappings, per CPU (KM_TYPE_NR, KM_MAX_IDX).
    :param early: slots of the fixmap for early_ioremap (TOTAL_FIX_BTMAPS).
    :param late_fixed: slots of the fixmap behind those.
    :param entry_area_pages: pages of ``struct cpu_entry_area`` (i386; there the area's size moves what is below it).
    :param page_offset: CONFIG_PAGE_OFFSET (i386).
    :param pae: CONFIG_X86_PAE.
    :param highmem: CONFIG_HIGHMEM.
    :param struct_page_size: bytes of ``struct page``, for the size of vmemmap.
    :param image_size: KERNEL_IMAGE_SIZE: 1 GiB with CONFIG_RANDOMIZE_BASE, else 512 MiB.
    :param five_level: CONFIG_X86_5LEVEL.
    """

    name: str
    aliases: tuple[str, ...]
    bits: int
    version: tuple[int, int, int]
    nr_cpus: int
    fixed: int
    late_fixed: int
    kmaps: int = 0
    early: int = 512
    entry_area_pages: int = 0
    page_offset: int = 0xC000_0000
    pae: bool = False
    highmem: bool = False
    struct_page_size: int = 64
    image_size: int = GIB
    five_level: bool = False

    @property
    def ptrs_per_pte(self) -> int:
        """Entries of a page table."""
        return 512 if self.bits == 64 or self.pae else 1024

    @property
    def pmd_size(self) -> int:
        """What an entry above the last level maps."""
        return self.ptrs_per_pte * PAGE_SIZE

    @property
    def permanent_slots(self) -> int:
        """__end_of_permanent_fixed_addresses."""
        return self.fixed + self.kmaps * self.nr_cpus

    @property
    def all_slots(self) -> int:
        """__end_of_fixed_addresses: the early mappings follow the permanent ones, moved to where one page table holds them all."""
        permanent = self.permanent_slots
        begin = permanent
        if self.version >= (2, 6, 25) and (permanent ^ (permanent + self.early - 1)) & -self.ptrs_per_pte:
            begin = permanent + self.early - (permanent & (self.early - 1))
        return begin + self.early + self.late_fixed


X86_64_FIXED = 511 + 1 + 2 + 1 + 128 + 1 + 2
"""Slots down to the vsyscall page and the page itself, two early consoles, the local APIC, 128 I/O APICs, Xen's boot map, two for GHES."""
I386_FIXED = 1 + 2 + 1 + 64 + 1 + 2
"""A hole, two early consoles, the local APIC, 64 I/O APICs, PCI MMCONFIG, two for GHES."""
I386_3_6_FIXED = 2 + 2 + 1 + 64 + 1 + 1 + 2
"""A hole and the vDSO, two early consoles, the local APIC, 64 I/O APICs, PCI MMCONFIG, a paravirtual boot map, two for text_poke."""
I386_2_6_24_FIXED = 2 + 2 + 1 + 64 + 1 + 4 + 1 + 1
"""A hole and the vDSO, two early consoles, the local APIC, 64 I/O APICs, the IDT (for processors with the F00F bug, which have no PAE), four for ACPI, PCI MMCONFIG, a paravirtual boot map."""

_DEBIAN_686 = Rules(
    "linux-6.1-i386", ("linux-6.1-686", "6.1-i386", "6.1-686", "i386"), 32, (6, 1, 0), 32, I386_FIXED, 1,
    kmaps=16, entry_area_pages=43, highmem=True, image_size=GIB // 2,
)  # fmt: skip
_OLD = Rules("linux-3.6-i386", ("3.6-i386",), 32, (3, 6, 0), 8, I386_3_6_FIXED, 1, kmaps=20, early=256, highmem=True, image_size=GIB // 2)
RULES = (
    Rules("linux-6.1", ("6.1", "linux-6.1-x86_64", "linux-6.1-cloud-amd64"), 64, (6, 1, 0), 8192, X86_64_FIXED, 1, five_level=True),
    Rules("linux-6.12", ("6.12", "linux-6.12-x86_64", "linux-6.12-cloud-amd64"), 64, (6, 12, 0), 8192, X86_64_FIXED, 1, five_level=True),
    _DEBIAN_686,
    replace(_DEBIAN_686, name="linux-6.1-i386-pae", aliases=("linux-6.1-686-pae", "6.1-i386-pae", "6.1-686-pae", "i386-pae"), pae=True),
    _OLD,
    replace(_OLD, name="linux-3.6-i386-pae", aliases=("3.6-i386-pae",), pae=True),
    replace(_OLD, name="linux-2.6.24-i386", aliases=("2.6.24-i386",), version=(2, 6, 24), fixed=I386_2_6_24_FIXED, kmaps=13, early=16),
    replace(_OLD, name="linux-2.6.24-i386-pae", aliases=("2.6.24-i386-pae",), version=(2, 6, 24), fixed=I386_2_6_24_FIXED - 1, kmaps=13, early=16, pae=True),
)
"""The 6.1 and 6.12 ones are Debian's: the constants are counted from the headers with their configurations and compared with modules built for
them. The older ones are as distributions built them for 8 CPUs, compared with boot logs."""


@dataclass(frozen=True)
class AddressSpace:
    """Where a booted kernel has what.

    :param name: the kernel's name.
    :param bits: of an address: 64 or 32.
    :param levels: levels of page tables.
    :param page_offset: address of page frame 0 (PAGE_OFFSET).
    :param high_memory: the address behind the direct map.
    :param max_low_pfn: the page frame behind the last one that is in the direct map.
    :param max_pfn: the page frame behind the last one that the kernel uses.
    :param vmalloc_start: VMALLOC_START.
    :param vmalloc_end: VMALLOC_END as the macro says: the last address on x86-64, the one behind it on i386. See `vmalloc_limit`.
    :param modules_vaddr: MODULES_VADDR.
    :param modules_end: MODULES_END, exclusive.
    :param vmemmap_start: VMEMMAP_START; 0 on i386, where the memory map is no region of its own.
    :param pkmap_base: PKMAP_BASE, where ``kmap`` maps; 0 without high memory support.
    :param last_pkmap: LAST_PKMAP, how many pages ``kmap`` can map at a time.
    :param fixaddr_start: FIXADDR_START.
    :param fixaddr_top: FIXADDR_TOP.
    :param cpu_entry_area: CPU_ENTRY_AREA_BASE; 0 where there is none.
    :param ldt_base: LDT_BASE_ADDR; 0 where there is none.
    :param user_end: the address behind the last of a process (TASK_SIZE_MAX).
    :param kernel_map: where the kernel image's own mapping begins (__START_KERNEL_map).
    :param text_end: where the mapping of the kernel image ends at the latest.
    :param phys_bits: of a physical address in the direct map's design (MAX_PHYSMEM_BITS).
    :param vmalloc_reserve: __VMALLOC_RESERVE; 0 on x86-64.
    :param regions: all of it, ascending, without gaps.
    :param messages: what the kernel says while it decides, line by line.
    """

    name: str
    bits: int
    levels: int
    page_offset: int
    high_memory: int
    max_low_pfn: int
    max_pfn: int
    vmalloc_start: int
    vmalloc_end: int
    modules_vaddr: int
    modules_end: int
    vmemmap_start: int
    pkmap_base: int
    last_pkmap: int
    fixaddr_start: int
    fixaddr_top: int
    cpu_entry_area: int
    ldt_base: int
    user_end: int
    kernel_map: int
    text_end: int
    phys_bits: int
    vmalloc_reserve: int
    regions: tuple[Region, ...]
    messages: tuple[str, ...] = ()

    @property
    def vmalloc_limit(self) -> int:
        """The address behind the vmalloc space."""
        return self.vmalloc_end + 1 if self.bits == 64 else self.vmalloc_end

    @property
    def vmalloc_total(self) -> int:
        """VMALLOC_TOTAL, ``VmallocTotal`` of /proc/meminfo, in bytes. On x86-64 it is a byte short, and /proc/meminfo rounds it down to kB."""
        return self.vmalloc_end - self.vmalloc_start

    @property
    def zone_limits(self) -> tuple[int, int, int]:
        """The page frames at which the zones made of the memory map end (zone_sizes_init): DMA, then DMA32 and Normal, or Normal and HighMem."""
        if self.bits == 64:
            return DMA_END, DMA32_END, self.max_low_pfn
        return DMA_END, self.max_low_pfn, self.max_pfn

    @property
    def top(self) -> int:
        """The address behind the last."""
        return TOP_64 if self.bits == 64 else TOP_32

    def region(self, address: int) -> Region:
        """The region an address is in.

        :raises ProfileError: the address has more bits than this machine's.
        """
        for region in self.regions:
            if region.start <= address < region.end:
                return region
        raise ProfileError(f"{address:#x} is no address of {self.bits} bits")


def address_space(profile: Profile | str, ram_frames: Sequence[Frames], cmdline: str = "", la57: bool = False, bases: Bases | None = None) -> AddressSpace:
    """The address space of a kernel on a machine with this memory.

    :param profile: a kernel profile or its name.
    :param ram_frames: the memory, in page frames (`physical.ram_frames`).
    :param cmdline: the kernel's command line; ``vmalloc=``, ``highmem=`` and ``reservetop=`` matter on i386, ``no5lvl`` on x86-64.
    :param la57: the processor can walk five levels.
    :param bases: what address randomisation drew (x86-64); None for ``nokaslr``.
    :raises ProfileError: no rules for that kernel, or a machine it does not boot on.
    """
    rules = rules_for(profile)
    if rules.bits == 32:
        if bases is not None:
            raise ProfileError(f"{rules.name}: an i386 kernel's regions are not randomised, only its image is; leave out bases")
        return i386_space(rules, end_of_ram(ram_frames, 36 if rules.pae else 32), cmdline)
    five_level = la57 and rules.five_level and "no5lvl" not in words(cmdline)
    return x86_64_space(rules, end_of_ram(ram_frames, 52 if five_level else 46), five_level, bases)


def end_of_ram(ram_frames: Sequence[Frames], bits: int) -> int:
    """max_pfn as ``e820__end_of_ram_pfn`` finds it: the page frame behind the last of memory that has a physical address of so many bits."""
    limit = 1 << (bits - PAGE_SHIFT)
    return max((min(end, limit) for start, end in ram_frames if start < limit), default=0)


def rules_for(profile: Profile | str) -> Rules:
    """The rules for a kernel.

    :raises ProfileError: there are none; the message lists what is known.
    """
    names = (profile.name, *profile.aliases) if isinstance(profile, Profile) else (str(profile).strip().lower(),)
    for name in names:
        for rules in RULES:
            if name == rules.name or name in rules.aliases:
                return rules
    raise ProfileError(f"no address space for {names[0]!r}; known: {', '.join(rules.name for rules in RULES)}")


def words(cmdline: str) -> dict[str, str]:
    """The words of a command line with their values; of a repeated word the last counts, as the kernel's parser overwrites."""
    found = {}
    for word in re.findall(r'(?:[^\s"]|"[^"]*")+', cmdline):
        name, _, value = word.replace('"', "").partition("=")
        found[name.replace("-", "_")] = value
    return found


def memparse(text: str) -> int:
    """A number as the kernel's ``memparse`` reads it (lib/cmdline.c): 0x is hexadecimal, 0 octal, then one of K M G T P E; what follows is ignored."""
    found = re.match(r"(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9]\d*)([kKmMgGtTpPeE]?)", text)
    if not found:
        return 0
    digits, suffix = found[1], found[2].upper()
    base = 16 if digits[:2].lower() == "0x" else 8 if digits[0] == "0" else 10
    return (int(digits, base) << (10 * (" KMGTPE".index(suffix) if suffix else 0))) % TOP_64


def x86_64_space(rules: Rules, max_pfn: int, five_level: bool = False, bases: Bases | None = None) -> AddressSpace:
    """The address space of x86-64.

    :param rules: of the kernel.
    :param max_pfn: the page frame behind the last of memory.
    :param five_level: five levels of page tables: the processor has LA57, the kernel CONFIG_X86_5LEVEL.
    :param bases: what address randomisation drew; None without.
    """
    phys_bits = 52 if five_level else 46
    vmalloc_size = (12800 if five_level else 32) * TIB
    fixed = Bases(0xFF11 << 48, 0xFFA0 << 48, 0xFFD4 << 48) if five_level else Bases(0xFFFF_8880 << 32, 0xFFFF_C900 << 32, 0xFFFF_EA00 << 32)
    at = bases if bases is not None else fixed
    direct_size = 1 << phys_bits  # what randomisation gives each, with CONFIG_ZONE_DEVICE
    vmemmap_size = -(-(direct_size >> PAGE_SHIFT) * rules.struct_page_size // TIB) * TIB
    entry_area = TOP_64 - 4 * P4D_SIZE
    if bases is None and five_level:  # without it mm.rst leaves room for 55 bits
        direct_size, vmemmap_size = 32 << 50, 512 * TIB
    _check_bases(rules, at, fixed, (direct_size, vmalloc_size, vmemmap_size), entry_area)
    pgdir_size = P4D_SIZE << 9 if five_level else P4D_SIZE
    user_end = (1 << (56 if five_level else 47)) - PAGE_SIZE
    kernel_half = TOP_64 - 256 * pgdir_size
    ldt = TOP_64 - 240 * pgdir_size
    fixaddr_start = FIXADDR_TOP_64 - rules.permanent_slots * PAGE_SIZE
    modules = START_KERNEL_MAP + rules.image_size
    known = [
        Region("user", 0, user_end + PAGE_SIZE, "user-space virtual memory, different per mm"),
        Region("guard", kernel_half, kernel_half + 16 * pgdir_size, "guard hole, also reserved for hypervisor"),
        Region("ldt", ldt, ldt + pgdir_size, "LDT remap for PTI"),
        Region("direct", at.page_offset, at.page_offset + direct_size, "direct mapping of all physical memory (page_offset_base)"),
        Region("vmalloc", at.vmalloc, at.vmalloc + vmalloc_size, "vmalloc/ioremap space (vmalloc_base)"),
        Region("vmemmap", at.vmemmap, at.vmemmap + vmemmap_size, "virtual memory map (vmemmap_base)"),
        Region("cpu_entry_area", entry_area, entry_area + P4D_SIZE, "cpu_entry_area mapping"),
        Region("espfix", TOP_64 - 2 * P4D_SIZE, TOP_64 - P4D_SIZE, "%esp fixup stacks"),
        Region("efi", TOP_64 - 68 * GIB, TOP_64 - 4 * GIB, "EFI region mapping space"),
        Region("text", START_KERNEL_MAP, modules, "kernel text mapping, mapped to physical address 0"),
        Region("modules", modules, MODULES_END_64, "module mapping space"),
        Region("fixmap", fixaddr_start, VSYSCALL_ADDR, "kernel-internal fixmap range"),
        Region("vsyscall", VSYSCALL_ADDR, VSYSCALL_ADDR + PAGE_SIZE, "legacy vsyscall ABI"),
    ]  # fmt: skip
    if bases is None:
        shadow = 0xFFDF << 48 if five_level else 0xFFFF_EC00 << 32
        known.append(Region("kasan", shadow, 0xFFFF_FC00 << 32, "KASAN shadow memory"))
    return AddressSpace(
        name=rules.name,
        bits=64,
        levels=5 if five_level else 4,
        page_offset=at.page_offset,
        high_memory=at.page_offset + (max_pfn << PAGE_SHIFT),
        max_low_pfn=max_pfn,
        max_pfn=max_pfn,
        vmalloc_start=at.vmalloc,
        vmalloc_end=at.vmalloc + vmalloc_size - 1,
        modules_vaddr=modules,
        modules_end=MODULES_END_64,
        vmemmap_start=at.vmemmap,
        pkmap_base=0,
        last_pkmap=0,
        fixaddr_start=fixaddr_start,
        fixaddr_top=FIXADDR_TOP_64,
        cpu_entry_area=entry_area,
        ldt_base=ldt,
        user_end=user_end,
        kernel_map=START_KERNEL_MAP,
        text_end=modules,
        phys_bits=phys_bits,
        vmalloc_reserve=0,
        regions=_fill(known, TOP_64),
    )


def _check_bases(rules: Rules, at: Bases, fixed: Bases, sizes: tuple[int, int, int], limit: int) -> None:
    """That bases are such as ``kernel_randomize_memory`` draws: in order, apart, whole GiB, below the CPU entry area."""
    ends = [base + size for base, size in zip(at, sizes, strict=True)]
    wrong = any(base % PUD_SIZE for base in at) or at.page_offset < fixed.page_offset or ends[0] > at.vmalloc or ends[1] > at.vmemmap or ends[2] > limit
    if wrong:
        raise ProfileError(f"{rules.name}: bases {', '.join(f'{base:#x}' for base in at)} are none the kernel draws: whole GiB, in this order, regions apart")


def i386_space(rules: Rules, max_pfn: int, cmdline: str = "") -> AddressSpace:
    """The address space of i386.

    :param rules: of the kernel.
    :param max_pfn: the page frame behind the last of memory.
    :param cmdline: ``vmalloc=``, ``highmem=`` and ``reservetop=`` matter.
    :raises ProfileError: the kernel does not boot with these: no room for low memory or for vmalloc.
    """
    given = words(cmdline)
    messages: list[str] = []
    fixaddr_top = FIXADDR_TOP_32
    if "reservetop" in given:
        asked = TOP_32 - memparse(given["reservetop"]) % TOP_32
        fixaddr_top = asked // rules.pmd_size * rules.pmd_size - PAGE_SIZE
        messages.append(f"Reserving virtual address space above 0x{asked:08x} (rounded to 0x{fixaddr_top + PAGE_SIZE:08x})")
    reserve = VMALLOC_RESERVE
    if "vmalloc" in given:
        reserve = (memparse(given["vmalloc"]) + (0 if rules.version < (2, 6, 25) else VMALLOC_OFFSET)) % TOP_32
    fixaddr_start = fixaddr_top - rules.permanent_slots * PAGE_SIZE
    below = fixaddr_top - rules.all_slots * PAGE_SIZE
    last_pkmap = 0 if not rules.highmem else 512 if rules.pae else 1024
    entry_area = ldt = 0
    if rules.entry_area_pages:
        entry_area = (below - PAGE_SIZE * (rules.nr_cpus * rules.entry_area_pages + 1)) // rules.pmd_size * rules.pmd_size
        ldt = (entry_area - PAGE_SIZE) // rules.pmd_size * rules.pmd_size
        pkmap = (ldt - PAGE_SIZE) // rules.pmd_size * rules.pmd_size
        upper = ldt
    else:  # until 4.14 there was neither, and pkmap came right below the fixmap
        pkmap = (below - PAGE_SIZE * (last_pkmap + 1)) // rules.pmd_size * rules.pmd_size
        upper = fixaddr_start
    vmalloc_end = (pkmap if rules.highmem else upper) - 2 * PAGE_SIZE
    most = TOP_32 if rules.version < (2, 6, 28) else vmalloc_end
    most = (most - rules.page_offset - reserve) % TOP_32  # MAXMEM; more than there is wraps, and then all memory is low
    max_low_pfn, max_pfn = _low_pfn_range(rules, max_pfn, most >> PAGE_SHIFT, given.get("highmem"), messages)
    messages.append(f"{max_pfn - max_low_pfn >> 8}MB HIGHMEM available.")
    messages.append(f"{max_low_pfn >> 8}MB LOWMEM available.")
    if rules.version >= (2, 6, 25):
        messages += [f"  mapped low ram: 0 - {max_low_pfn << PAGE_SHIFT:08x}", f"  low ram: 0 - {max_low_pfn << PAGE_SHIFT:08x}"]
    high_memory = rules.page_offset + (max_low_pfn << PAGE_SHIFT)
    if rules.version < (2, 6, 28):
        vmalloc_start = (high_memory + 2 * VMALLOC_OFFSET - 1) // VMALLOC_OFFSET * VMALLOC_OFFSET
    else:
        vmalloc_start = high_memory + VMALLOC_OFFSET
    if vmalloc_start >= vmalloc_end:
        raise ProfileError(f"{rules.name} does not boot: low memory ends at {high_memory:#x}, so there is no room for vmalloc, which ends at {vmalloc_end:#x}")
    known = [
        Region("user", 0, rules.page_offset, "user-space virtual memory, different per mm"),
        Region("direct", rules.page_offset, high_memory, "direct mapping of low memory"),
        Region("vmalloc", vmalloc_start, vmalloc_end, "vmalloc/ioremap space, modules too"),
        Region("fixmap", fixaddr_start, fixaddr_top, "kernel-internal fixmap range"),
        Region("early_ioremap", below, fixaddr_start, "early_ioremap, while booting only"),
    ]
    if last_pkmap:
        known.append(Region("pkmap", pkmap, pkmap + last_pkmap * PAGE_SIZE, "kmap of high memory"))
    if ldt:
        known.append(Region("ldt", ldt, ldt + rules.pmd_size, "LDT remap for PTI"))
        known.append(Region("cpu_entry_area", entry_area, entry_area + PAGE_SIZE * (rules.nr_cpus * rules.entry_area_pages + 1), "cpu_entry_area mapping"))
    return AddressSpace(
        name=rules.name,
        bits=32,
        levels=3 if rules.pae else 2,
        page_offset=rules.page_offset,
        high_memory=high_memory,
        max_low_pfn=max_low_pfn,
        max_pfn=max_pfn,
        vmalloc_start=vmalloc_start,
        vmalloc_end=vmalloc_end,
        modules_vaddr=vmalloc_start,
        modules_end=vmalloc_end,
        vmemmap_start=0,
        pkmap_base=pkmap if last_pkmap else 0,
        last_pkmap=last_pkmap,
        fixaddr_start=fixaddr_start,
        fixaddr_top=fixaddr_top,
        cpu_entry_area=entry_area,
        ldt_base=ldt,
        user_end=rules.page_offset,
        kernel_map=rules.page_offset,
        text_end=high_memory,
        phys_bits=36 if rules.pae else 32,
        vmalloc_reserve=reserve,
        regions=_fill(known, TOP_32),
        messages=tuple(messages),
    )


def _low_pfn_range(rules: Rules, max_pfn: int, maxmem_pfn: int, highmem: str | None, messages: list[str]) -> tuple[int, int]:
    """max_low_pfn and max_pfn as ``find_low_pfn_range`` leaves them: what of the memory is low, and what is left out.

    :param highmem: the value of ``highmem=``, or None.
    :param messages: what the kernel says is added here.
    """
    asked = None if highmem is None else memparse(highmem) >> PAGE_SHIFT
    if max_pfn <= maxmem_pfn:  # all of it fits; highmem= can make some of it high nonetheless
        if not asked or not rules.highmem:
            return max_pfn, max_pfn
        if asked >= max_pfn:
            messages.append(f"highmem size ({asked >> 8}MB) is bigger than pages available ({max_pfn >> 8}MB)!")
            return max_pfn, max_pfn
        if max_pfn - asked < LOWMEM_MIN >> PAGE_SHIFT:
            messages.append(f"highmem size ({asked >> 8}MB) results in <64MB lowmem, ignoring it!")
            return max_pfn, max_pfn
        return max_pfn - asked, max_pfn
    if not rules.highmem:
        return maxmem_pfn, maxmem_pfn
    if asked is not None and asked + maxmem_pfn < max_pfn:
        max_pfn = maxmem_pfn + asked
    if asked is not None and asked + maxmem_pfn > max_pfn:
        messages.append(f"only {max_pfn - maxmem_pfn >> 8}MB highmem pages available, ignoring highmem size of {asked >> 8}MB!")
    return maxmem_pfn, max_pfn


def _fill(known: list[Region], top: int) -> tuple[Region, ...]:
    """The regions in order, what overlaps the one before cut, and holes in between."""
    found: list[Region] = []
    at = 0
    for region in sorted(known, key=lambda region: region.start):
        if region.start > at:
            found.append(_hole(at, region.start))
        elif region.start < at:
            region = region._replace(start=at)
        found.append(region)
        at = region.end
    if at < top:
        found.append(_hole(at, top))
    return tuple(found)


def _hole(start: int, end: int) -> Region:
    if start < TOP_64 >> 1 < end:
        return Region("non-canonical", start, end, "huge hole of non-canonical virtual memory addresses")
    return Region("hole", start, end, "unused hole")
