"""The probes that a recording needs besides the kernel's own tracepoints, and where in this kernel they go.

``mm_page_alloc`` is printed after its work, ``mm_page_free`` before, both outside every lock. On several CPUs, and on one under
preemption, their order is therefore not the order in which the free lists changed. Each probe here fires *inside* the lock
that protects what is about to change (or, for an unlock, has just changed); `replay.placement` puts the requests in that order.

=============== ============================================ ================================================================
probe           where                                        what it says
=============== ============================================ ================================================================
walk            get_page_from_freelist                       the zones are about to be tested, with these allocation flags
steal           steal_suitable_fallback                      a block of another type is about to be taken (and the watermark boosted)
pcp_alloc       get_page_from_freelist, its pcp unlock       a page was taken from this CPU's list (rmqueue_pcplist is inlined)
pcp_free        free_unref_page_commit                       a page is being put on this CPU's list
buddy_free      calls of __free_one_page but for the drain's a block goes straight to the buddy lists (the function itself is
                                                             inline by declaration, so tracefs takes no probe on it)
bulk, bulk_end  __alloc_pages_bulk, its pcp unlocks, return  pages that no mm_page_alloc announces
drain_zone      drain_pages_zone                             somebody empties a CPU's lists
isolate         __isolate_free_page                          compaction takes a free block
move_block      move_freepages_block, not from the steal     HIGHATOMIC (un)reserves a pageblock
fold            refresh_cpu_vm_stats                         a CPU's counter differences are added to the zone's
wmarks          setup_per_zone_wmarks                        watermarks are set anew
balance         balance_pgdat and its return                 kswapd runs: ZONE_RECLAIM_ACTIVE
unboost         balance_pgdat, its unlock of zone->lock      kswapd has taken the watermark boost it worked for off a zone
thresholds      set_pgdat_percpu_threshold                   kswapd changes the size of the counter differences
rotate          compaction's unlocks of zone->lock           compaction has turned a free list so that it begins elsewhere
pageset         __zone_set_pageset_high_and_batch            a zone's per-CPU lists get another size (sysctl, a CPU comes or goes)
stat_thresholds refresh_zone_stat_thresholds                 thresholds for another number of CPUs
cpu_fold        cpu_vm_stats_fold                            a CPU that goes leaves its counter differences
wakeup_kswapd   wakeup_kswapd                                a request asks for kswapd; whether that sleeps, and its rounds without success
swap_in         swap_readpage                                a page is read back from swap
=============== ============================================ ================================================================

Every probe is a breakpoint on an instruction (never ftrace at a function's first bytes, never a return trampoline, never optimised into a jump):
a breakpoint's handler runs with interrupts off. With interrupts on, a soft interrupt could come while a probe is handled inside the per-CPU lock,
and the probes that it runs into would be skipped, just when it finds the lock taken and goes to the buddy lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmtwin.errors import CaptureError

try:
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection
except ImportError as error:  # an extra: pip install mmtwin[record]
    raise CaptureError("recording needs pyelftools; install it with: pip install -e '.[record]' (in mmtwin's directory)") from error

GROUP = "mmtwin"
CALL, JUMP = 0xE8, 0xE9
LOW_REGISTERS = {0: "ax", 1: "cx", 2: "dx", 3: "bx", 5: "bp", 6: "si", 7: "di"}
HIGH_REGISTERS = {0: "r8", 1: "r9", 2: "r10", 3: "r11", 5: "r13", 6: "r14", 7: "r15"}
ZONE_RECLAIM_ACTIVE = 1
"""Bit number in ``enum zone_flags``."""
ENDBR64, NOP5 = b"\xf3\x0f\x1e\xfa", b"\x0f\x1f\x44\x00\x00"


@dataclass(frozen=True)
class Abi:
    """How functions of a kernel get their arguments, in the words of kprobe definitions.

    :param registers: of the first arguments; the others are on the stack.
    :param word: bytes of a pointer and of ``unsigned long``.
    """

    registers: tuple[str, ...]
    word: int

    @property
    def pointer(self) -> str:
        """Type of an address."""
        return f"x{8 * self.word}"

    @property
    def long(self) -> str:
        """Type of a ``long``."""
        return f"s{8 * self.word}"

    @property
    def ulong(self) -> str:
        """Type of an ``unsigned long``."""
        return f"u{8 * self.word}"

    def argument(self, number: int, at_call: bool = False) -> str:
        """Where argument `number` (from 0) is at a function's entry, or before the call: there the return address is not yet on the stack."""
        if number < len(self.registers):
            return f"%{self.registers[number]}"
        return f"$stack{number - len(self.registers) + (not at_call)}"


X86_64 = Abi(("di", "si", "dx", "cx", "r8", "r9"), 8)
I386 = Abi(("ax", "dx", "cx"), 4)
"""The kernel is compiled with -mregparm=3."""


@dataclass(frozen=True)
class Probe:
    """One kprobe.

    :param name: name of the event in group ``mmtwin``.
    :param definition: the line for tracefs' ``kprobe_events``.
    :param filter: event filter, or "".
    """

    name: str
    definition: str
    filter: str = ""


class Symbols:
    """Function addresses and code of a ``vmlinux``."""

    abi: Abi = X86_64
    _functions: dict[str, tuple[int, int]]
    _objects: dict[str, int]

    def __init__(self, vmlinux: Path) -> None:
        with open(vmlinux, "rb") as file:
            try:
                elf = ELFFile(file)
            except ELFError as error:
                raise CaptureError(f"{vmlinux}: not an ELF file ({error}); take the vmlinux of linux-image-*-dbg") from None
            table = elf.get_section_by_name(".symtab")
            if not isinstance(table, SymbolTableSection):
                raise CaptureError(f"{vmlinux}: no symbol table; a vmlinux with debug symbols is needed (Debian: linux-image-*-dbg)")
            self._functions, self._objects = {}, {}
            for s in table.iter_symbols():
                if s["st_info"]["type"] in ("STT_FUNC", "STT_NOTYPE"):
                    self._functions[s.name] = (s["st_value"], s["st_size"])
                elif s["st_info"]["type"] == "STT_OBJECT":
                    self._objects[s.name] = s["st_value"]
            text = elf.get_section_by_name(".text")
            if text is None:
                raise CaptureError(f"{vmlinux}: no code; a vmlinux is needed, not its debug information alone")
            self._start, self._text = text["sh_addr"], text.data()
            self.abi = I386 if elf["e_machine"] == "EM_386" else X86_64

    def range(self, name: str) -> tuple[int, int] | None:
        """First address and the one after the last of a function, or None if this kernel has it inlined."""
        if name not in self._functions:
            return None
        address, size = self._functions[name]
        return address, address + size

    def names(self, prefix: str) -> list[str]:
        """Functions whose names begin so."""
        return sorted(name for name in self._functions if name.startswith(prefix))

    def address(self, variable: str) -> int | None:
        """Address of a variable, or None if this kernel has none of that name."""
        return self._objects.get(variable)

    def variable(self, name: str) -> str:
        """A variable in a probe's arguments: by name, on i386 by its address, as Debian's kernels have no CONFIG_KALLSYMS_ALL there."""
        if self.abi.word == 8:
            return f"@{name}"
        if name not in self._objects:
            raise CaptureError(f"this kernel has no variable {name}; mmtwin records Linux 6.1 x86 kernels of Debian")
        return f"@{self._objects[name]:#x}"

    def code(self, function: str) -> bytes:
        """The bytes of a function; none if this kernel has it inlined."""
        found = self.range(function)
        return b"" if found is None else self._code(found)

    def callers(self, callee: str) -> Iterator[tuple[str, int]]:
        """Every function that calls `callee`, with the offset of each call."""
        target = self.range(callee)
        if target is None:
            return
        code = np.frombuffer(self._text, dtype=np.uint8)
        at = np.flatnonzero(code[:-4] == CALL)
        displacement = np.ascontiguousarray(code[at[:, None] + np.arange(1, 5)]).view("<i4").ravel().astype(np.int64)
        for address in (self._start + offset for offset in at[at + 5 + displacement == target[0] - self._start].tolist()):
            for name, (start, size) in self._functions.items():
                if start <= address < start + size:
                    yield name, address - start
                    break

    def jumps(self, function: str, target: str, opcode: int = CALL) -> Iterator[int]:
        """Offsets in `function` of the instructions that call or jump to `target` (opcode and a 32-bit displacement on x86-64)."""
        found, goal = self.range(function), self.range(target)
        if found is None or goal is None:
            return
        code = self._code(found)
        at = code.find(opcode)
        while 0 <= at <= len(code) - 5:
            if found[0] + at + 5 + int.from_bytes(code[at + 1 : at + 5], "little", signed=True) == goal[0]:
                yield at
            at = code.find(opcode, at + 1)

    def bit_changes(self, function: str, offset: int, bit: int) -> Iterator[tuple[int, str, bool]]:
        """Where `function` sets or clears a bit of a field `offset` bytes into a struct: offset of the instruction, the register that
        holds the struct's address, and whether it sets (``lock orb`` and ``lock andb`` with a 32-bit displacement)."""
        found = self.range(function)
        if found is None:
            return
        code = self._code(found)
        for value, extension, operand in ((True, 0x88, 1 << bit), (False, 0xA0, ~(1 << bit) & 0xFF)):
            tail = offset.to_bytes(4, "little") + bytes([operand])
            encodings = ((b"\xf0\x80", LOW_REGISTERS), (b"\xf0\x41\x80", HIGH_REGISTERS))
            for prefix, names in encodings if self.abi.word == 8 else encodings[:1]:
                for number, name in names.items():
                    pattern = prefix + bytes([extension + number]) + tail
                    at = code.find(pattern)
                    while at >= 0:
                        yield at, name, value
                        at = code.find(pattern, at + 1)

    def entry(self, function: str) -> int:
        """Offset of the first instruction of its own: after ``endbr64`` and ftrace's five bytes. The arguments are still in their registers there."""
        found = self.range(function)
        assert found is not None
        code = self._code(found)
        at = 4 if code.startswith(ENDBR64) else 0
        traced = code[at : at + 5] == NOP5 or at in self.jumps(function, "__fentry__")
        return at + 5 if traced else 0

    def returns(self, function: str) -> list[int]:
        """Offsets of the instructions that leave a function: jumps to the return thunk, or where the kernel has none plain returns."""
        thunk = list(self.jumps(function, "__x86_return_thunk", JUMP))
        if thunk or self.abi.word == 8:
            return thunk
        from mmtwin.recording.capture.slab_probes import Code

        return Code(self, function).at(Code(self, function).returns(-1))

    def _code(self, bounds: tuple[int, int]) -> bytes:
        return self._text[bounds[0] - self._start : bounds[1] - self._start]


class ZoneLayout(NamedTuple):
    """Byte offsets in ``struct zone`` that a probe's arguments need (`snapshot.zone_layout` reads them from the DWARF)."""

    lock: int
    flags: int
    free_area: int
    free_area_size: int
    list_head_size: int = 16
    pgdat: int = -1
    """Of ``zone_pgdat``; -1: unknown, then `kswapd_wait` and `kswapd_failures` are not read."""
    kswapd_wait: int = -1
    """Of ``kswapd_wait.head.next`` in ``struct pglist_data``."""
    kswapd_failures: int = -1


class SlabLayout(NamedTuple):
    """Byte offsets that the probes' arguments need (`slab_snapshot.slab_layout` reads them from the DWARF)."""

    cache_cpu_slab: int
    cache_flags: int
    cache_min_partial: int
    cache_size: int
    cache_object_size: int
    cache_inuse: int
    cache_align: int
    cache_oo: int
    cache_refcount: int
    cache_name: int
    cache_random_seq: int
    """-1: the kernel has no SLAB_FREELIST_RANDOM."""
    cpu_tid: int
    cpu_slab: int
    cpu_partial: int
    slab_freelist: int
    flush_cache: int
    """Of ``s`` in ``struct slub_flush_work``."""
    irq_disable: int
    """Of ``irq.irq_disable`` in ``struct paravirt_patch_template``; -1: no paravirtual calls, interrupts are switched off by ``cli``."""
    nr_cpus: int
    """CONFIG_NR_CPUS: the step of a transaction number (``tid``) is the power of two that is not less."""
    word: int = 8
    """Bytes of a pointer."""


def probes(symbols: Symbols, layout: ZoneLayout) -> list[Probe]:
    """The probes of Linux 6.1 on x86 for this very build of the kernel.

    :raises CaptureError: when a function that must be probed is not there: then the order of events could not be known.
    """
    found: list[Probe] = []
    abi, arg = symbols.abi, symbols.abi.argument

    def at_call(number: int) -> str:
        return arg(number, True)

    def add(name: str, function: str, offset: int, arguments: str = "", filter: str = "") -> None:
        found.append(Probe(name, f"p:{GROUP}/{name} {function}+{offset} {arguments}".strip(), filter))

    def enter(name: str, function: str, arguments: str = "", filter: str = "", needed: bool = True) -> None:
        if symbols.range(function):
            add(name, function, symbols.entry(function), arguments, filter)
        elif needed:
            raise CaptureError(f"this kernel has no function {function} to probe; mmtwin records Linux 6.1 x86 kernels of Debian")

    def at_calls(name: str, sites: Iterable[tuple[str, int]], arguments: str) -> None:
        for i, (function, offset) in enumerate(sites):
            add(f"{name}{i}", function, offset, arguments)

    def leave(name: str, function: str, arguments: str = "") -> None:
        for i, offset in enumerate(symbols.returns(function)):
            add(f"{name}{i}", function, offset, arguments)

    unlocks = list(symbols.jumps("get_page_from_freelist", "_raw_spin_unlock"))
    if len(unlocks) != 1:
        raise CaptureError(
            f"get_page_from_freelist unlocks {len(unlocks)} per-CPU lists in this kernel, 1 was expected; mmtwin records Linux 6.1 x86 kernels of Debian"
        )
    enter("walk", "get_page_from_freelist", f"gfp={arg(0)}:x32 order={arg(1)}:s32 alloc_flags={arg(2)}:x32")
    enter("steal", "steal_suitable_fallback")
    add("pcp_alloc", "get_page_from_freelist", unlocks[0])
    commits = list(symbols.callers("free_unref_page_commit"))
    buddy_frees = [c for c in symbols.callers("__free_one_page") if not c[0].startswith("free_pcppages_bulk")]
    if not commits or not buddy_frees:
        raise CaptureError(
            "this kernel has free_unref_page_commit or __free_one_page inlined, so frees cannot be put in order; mmtwin records Linux 6.1 x86 kernels of Debian"
        )
    at_calls("pcp_free", commits, f"page={at_call(2)}:{abi.pointer} migratetype={at_call(3)}:s32 order={at_call(4)}:s32")
    at_calls("buddy_free", buddy_frees, f"pfn={at_call(1)}:{abi.pointer} order={at_call(3)}:s32 migratetype={at_call(4)}:s32 fpi={at_call(5)}:s32")
    enter("bulk", "__alloc_pages_bulk", f"gfp={arg(0)}:x32 nr={arg(3)}:s32")
    at_calls("bulk_end", (("__alloc_pages_bulk", o) for o in symbols.jumps("__alloc_pages_bulk", "_raw_spin_unlock")), "")
    leave("bulk_ret", "__alloc_pages_bulk", f"got=%ax:{abi.long}")
    enter("drain_zone", "drain_pages_zone", f"cpu={arg(0)}:s32 zone={arg(1)}:{abi.pointer}")
    enter("isolate", "__isolate_free_page", f"page={arg(0)}:{abi.pointer} order={arg(1)}:s32")
    leave("isolate_ret", "__isolate_free_page", "got=%ax:s32")
    steal = symbols.range("steal_suitable_fallback")
    moved = f"page={arg(1)}:{abi.pointer} migratetype={arg(2)}:s32 ra=+0($stack):{abi.pointer}"
    enter("move_block", "move_freepages_block", moved, f"ra < {steal[0]:#x} || ra > {steal[1]:#x}" if steal else "")
    fold = "refresh_cpu_vm_stats"
    enter("fold", next((n for n in symbols.names(fold) if n.startswith(f"{fold}.constprop") and ".cold" not in n), fold))
    sysctls = {"min_free_kbytes": "min_free_kbytes", "scale": "watermark_scale_factor", "fraction": "percpu_pagelist_high_fraction"}
    enter("wmarks", "setup_per_zone_wmarks", " ".join(f"{name}={symbols.variable(sysctl)}:s32" for name, sysctl in sysctls.items()))
    enter("balance", "balance_pgdat", f"order={arg(1)}:s32 highest={arg(2)}:s32")
    at_calls("unboost", (("balance_pgdat", o) for o in symbols.jumps("balance_pgdat", "_raw_spin_unlock_irqrestore")), f"lock={at_call(0)}:{abi.pointer}")
    for i, (offset, register, value) in enumerate(symbols.bit_changes("balance_pgdat", layout.flags, ZONE_RECLAIM_ACTIVE)):
        add(f"{'reclaim_set' if value else 'reclaim_clear'}{i}", "balance_pgdat", offset, f"zone=%{register}:{abi.pointer}")
    enter("thresholds", "set_pgdat_percpu_threshold", f"calculate={arg(1)}:{abi.pointer}", needed=False)
    heads = [layout.free_area - layout.lock + order * layout.free_area_size + layout.list_head_size for order in range(11)]  # free_list[MIGRATE_MOVABLE].next
    turned = ((f, o) for f in ("compaction_alloc", "compact_zone") for o in symbols.jumps(f, "_raw_spin_unlock_irqrestore"))
    lock, kind = at_call(0), abi.pointer
    at_calls("rotate", turned, f"lock={lock}:{kind} " + " ".join(f"h{order}={at:+d}({lock}):{kind}" for order, at in enumerate(heads)))
    sizes = f"zone={arg(0)}:{kind} high={arg(1)}:{abi.ulong} batch={arg(2)}:{abi.ulong}"
    enter("pageset", "__zone_set_pageset_high_and_batch", sizes, needed=False)
    enter("stat_thresholds", "refresh_zone_stat_thresholds", f"online={symbols.variable('__num_online_cpus')}:s32")
    enter("cpu_fold", "cpu_vm_stats_fold", f"cpu={arg(0)}:s32", needed=False)
    if layout.pgdat >= 0:
        node = f"+{layout.pgdat}({arg(0)})"
        queue = f"+{layout.kswapd_wait}({node})"
        sleeps = f"first={queue}:{abi.pointer} second=+0({queue}):{abi.pointer} failures=+{layout.kswapd_failures}({node}):s32"
        enter("wakeup_kswapd", "wakeup_kswapd", f"gfp={arg(1)}:x32 order={arg(2)}:s32 highest={arg(3)}:s32 {sleeps}")
    enter("swap_in", "swap_readpage", f"page={arg(0)}:{abi.pointer}", needed=False)
    return found


TRACEPOINTS = {
    "kmem": ("mm_page_alloc", "mm_page_free", "mm_page_free_batched", "mm_page_alloc_zone_locked", "mm_page_pcpu_drain", "mm_page_alloc_extfrag"),
    "pagemap": ("mm_lru_insertion",),
    "vmscan": (
        "mm_vmscan_wakeup_kswapd", "mm_vmscan_kswapd_wake", "mm_vmscan_kswapd_sleep", "mm_vmscan_direct_reclaim_begin", "mm_vmscan_direct_reclaim_end",
        "mm_vmscan_write_folio",
    ),
    "compaction": ("mm_compaction_begin", "mm_compaction_end", "mm_compaction_try_to_compact_pages"),
    "oom": ("mark_victim", "reclaim_retry_zone", "compact_retry"),
}  # fmt: skip
"""Tracepoints of every recording: the page allocator's, the one that says when a page becomes movable (PG_lru), and those of memory pressure,
which are silent while memory is plentiful."""

SLAB_TRACEPOINTS = {"kmem": ("kmalloc", "kfree", "kmem_cache_alloc", "kmem_cache_free")}
