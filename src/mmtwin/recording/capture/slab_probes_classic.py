"""The probes that say in which order the classic SLAB allocator's arrays and lists changed, and where in this build of the kernel they go.

The kernel's own slab tracepoints are printed after an allocation and before a free, with interrupts on. Everything that changes an array or a list runs
with interrupts off, so on one CPU one mark inside each such section gives the true order:

=================== ==================================== ========================================================================================
probe               where                                what it says
=================== ==================================== ========================================================================================
cslab_alloc         each inlined ____cache_alloc         an object is about to be taken from a CPU's array (ptr: the array)
cslab_bulk_alloc    the same in kmem_cache_alloc_bulk    the same, but no tracepoint will tell the object
cslab_free          ___cache_free                        an object is about to be put into this CPU's array (ptr: the object, arg: its cache)
cslab_grow_end      cache_grow_end                       a new slab (its page; none: there was no memory) comes on its list
cslab_node_alloc    ____cache_alloc_node                 an object is about to be taken straight from the node's slabs
cslab_untouch       drain_array                          the periodic pass clears an array's mark (ptr: the array)
cslab_drain         drain_array_locked                   an array gives entries back (arg: 1 for all of them)
cslab_node_reap     cache_reap                           the node's lists had their turn (ptr: the node, arg: when the next one comes)
cslab_free_untouch  cache_reap                           its mark ``free_touched`` is cleared
cslab_drain_free    drain_freelist, list_lock held       the last free slab is about to leave the node
cslab_do_drain      do_drain                             a CPU's array is emptied (a cache shrinks)
cslab_tune          do_tune_cpucache                     a cache gets other arrays
cslab_create        __kmem_cache_create                  a cache is made
=================== ==================================== ========================================================================================

Every probe is a breakpoint, for the reasons told in `probes`. The kernel must be one of oracle/slab-kernel.sh: other builds may have some of these
functions inlined. With several CPUs the marks of frees and allocations come before the node's lock is taken, so their order is only nearly the true one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmtwin.errors import CaptureError
from mmtwin.recording.capture.probes import GROUP, Probe, Symbols
from mmtwin.recording.capture.slab_probes import Code, family, is_memory, name
from mmtwin.recording.capture.slab_snapshot_classic import ClassicLayout

try:
    from capstone import x86_const as x86
except ImportError as error:  # an extra: pip install mmtwin[record]
    raise CaptureError("recording slab events needs capstone; install it with: pip install -e '.[record]' (in mmtwin's directory)") from error

ALLOCATIONS = ("kmem_cache_alloc", "kmem_cache_alloc_lru", "kmem_cache_alloc_node", "__kmem_cache_alloc_node")
BULK = "kmem_cache_alloc_bulk"


def missing(what: str) -> CaptureError:
    return CaptureError(f"this kernel {what}; mmtwin records SLAB events of kernels that oracle/slab-kernel.sh builds")


def array_loads(code: Code, layout: ClassicLayout, this_cpu: int) -> Iterator[tuple[int, str]]:
    """Where ``cpu_cache_get`` is done: offset of the instruction behind it, and the register with the array's address.

    It is ``mov cpu_cache(cache),reg; add %gs:this_cpu_off,reg``; the compiler may put others in between.
    """
    for i, add in enumerate(code.instructions[:-1]):
        if add.id != x86.X86_INS_ADD or not _is_this_cpu_off(add, this_cpu):
            continue
        register = add.operands[0].reg
        for load in reversed(code.instructions[max(0, i - 4) : i]):
            if load.id == x86.X86_INS_MOV and load.operands[0].type == x86.X86_OP_REG and load.operands[0].reg == register:
                if is_memory(load.operands[1], layout.cache_cpu_cache):
                    yield code.offset(code.instructions[i + 1]), family(name(add, register))
                break


def _is_this_cpu_off(add: Any, this_cpu: int) -> bool:
    source = add.operands[1]
    if source.type != x86.X86_OP_MEM or source.mem.segment != x86.X86_REG_GS:
        return False
    base = int(add.address) + int(add.size) if source.mem.base == x86.X86_REG_RIP else 0
    return (base + int(source.mem.disp)) & ((1 << 64) - 1) == this_cpu


def _stores(code: Code, offset: int, zero: bool) -> Iterator[tuple[int, str, str]]:
    """Stores to a field: offset of the instruction, the struct's register, the stored register ("" for a constant 0)."""
    for one in code.instructions:
        if one.id != x86.X86_INS_MOV or len(one.operands) != 2 or not is_memory(one.operands[0], offset):
            continue
        value = one.operands[1]
        base = family(name(one, one.operands[0].mem.base))
        if zero and value.type == x86.X86_OP_IMM and value.imm == 0:
            yield code.offset(one), base, ""
        if not zero and value.type == x86.X86_OP_REG:
            yield code.offset(one), base, family(name(one, value.reg))


def classic_probes(symbols: Symbols, layout: ClassicLayout) -> list[Probe]:
    """The probes for SLAB of Linux 6.1 on x86-64 in this very build of the kernel.

    :raises CaptureError: when a place that must be probed is not there: then the order of events could not be known.
    """
    found: list[Probe] = []

    def add(event: str, function: str, offset: int, arguments: str) -> None:
        found.append(Probe(event, f"p:{GROUP}/{event} {function}+{offset} {arguments}"))

    def enter(kind: str, function: str, arguments: str) -> None:
        names = [n for n in symbols.names(function) if n == function or (n.startswith(f"{function}.") and ".cold" not in n)]
        if len(names) != 1:
            raise missing(f"has {len(names)} functions {function}")
        add(kind, names[0], symbols.entry(names[0]), arguments)

    def only(kind: str, sites: list[tuple[str, int, str]], what: str) -> None:
        if len(sites) != 1:
            raise missing(f"has {len(sites)} places where {what}, 1 was expected")
        add(kind, *sites[0])

    this_cpu = symbols.address("this_cpu_off")
    if this_cpu is None:
        raise missing("has no this_cpu_off")
    for kind, functions in (("cslab_alloc", ALLOCATIONS), ("cslab_bulk_alloc", (BULK,))):
        number = 0
        for function in functions:
            loads = list(array_loads(Code(symbols, function), layout, this_cpu))
            if not loads:
                raise missing(f"takes no object from an array in {function}")
            for offset, register in loads:
                add(f"{kind}{number}", function, offset, f"ptr=%{register}:x64")
                number += 1
    enter("cslab_free", "___cache_free", "ptr=%si:x64 cache=%di:x64")
    enter("cslab_grow_end", "cache_grow_end", "ptr=%di:x64 page=%si:x64")
    enter("cslab_node_alloc", "____cache_alloc_node", "ptr=%di:x64")
    enter("cslab_drain", "drain_array_locked", "ptr=%si:x64 all=%cx:u8")
    enter("cslab_do_drain", "do_drain", "ptr=%di:x64")
    enter("cslab_tune", "do_tune_cpucache", "ptr=%di:x64 limit=%si:s32 batchcount=%dx:s32 shared=%cx:s32")
    enter("cslab_create", "__kmem_cache_create", "ptr=%di:x64")
    drain = [("drain_array", o, f"ptr=%{b}:x64") for o, b, _ in _stores(Code(symbols, "drain_array"), layout.array_touched, True)]
    only("cslab_untouch", drain, "drain_array clears an array's mark")
    reap = Code(symbols, "cache_reap")
    turns = [("cache_reap", o, f"ptr=%{b}:x64 next=%{r}:x64") for o, b, r in _stores(reap, layout.node_next_reap, False)]
    only("cslab_node_reap", turns, "cache_reap sets the next turn")
    clears = [("cache_reap", o, f"ptr=%{b}:x64") for o, b, _ in _stores(reap, layout.node_free_touched, True)]
    only("cslab_free_untouch", clears, "cache_reap clears the node's mark")
    only("cslab_drain_free", list(_locked_drain(symbols)), "drain_freelist takes the node's lock")
    return found


def _locked_drain(symbols: Symbols) -> Iterator[tuple[str, int, str]]:
    """Behind the lock in drain_freelist; the node is in the register that was copied to the call's argument."""
    lock = symbols.range("_raw_spin_lock_irq")
    for function in symbols.names("drain_freelist"):
        code = Code(symbols, function)
        for i in code.calls(lock[0] if lock else -1):
            move = code.instructions[i - 1]
            if move.id == x86.X86_INS_MOV and move.operands[1].type == x86.X86_OP_REG and family(name(move, move.operands[0].reg)) == "di":
                yield function, code.offset(code.instructions[i + 1]), f"ptr=%{family(name(move, move.operands[1].reg))}:x64"
