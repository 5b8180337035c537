"""The probes that say in which order SLUB's lists changed, and where in this build of the kernel they go.

The kernel's own slab tracepoints are printed after an allocation and before a free, outside of every lock. What changes a list fires here:

================== ==================================== =========================================================================================
probe              where                                what it says
================== ==================================== =========================================================================================
slab_take          the allocations' cmpxchg16b          the first object of a CPU's free list is about to be taken
slab_give          the frees' cmpxchg16b                an object (or a chain of them) is about to be put on a CPU's free list
slab_slow          ___slab_alloc                        the CPU's free list had nothing to give
slab_refill        ___slab_alloc, irqs off              the CPU slab's own free list is looked at (or the CPU's, if it has been filled since)
slab_cpu_partial   ___slab_alloc, irqs off              the first slab of the CPU partial list becomes the CPU slab
slab_deactivate    ___slab_alloc, irqs off              the CPU slab does not suit the request and is put away
slab_load          ___slab_alloc, irqs off              a slab (new, or from the node's list) becomes the CPU slab
slab_node_partial  get_partial_node, list_lock held     slabs are taken off the node's partial list
slab_new           allocate_slab, its return            a slab was made; its first free object says where its random order begins
slab_cmpxchg       calls of cmpxchg_double_slab         a slab's free list and counters are exchanged (a free past the CPU, a slab put away)
slab_put_partial   put_cpu_partial, irqs off            a slab comes on the CPU partial list
slab_unfreeze      __unfreeze_partials, list_lock held  slabs of a CPU partial list go to the node's
slab_bulk_*        kmem_cache_{alloc,free}_bulk         objects that no tracepoint announces
slab_flush*        flush_cpu_slab                       a CPU's slab and partial list are given up
slab_shrink*       __kmem_cache_do_shrink               empty slabs are discarded, the node's partial list is sorted
slab_create        sysfs_slab_add                       a cache was made (its random_seq becomes rows slab_random)
slab_alias         __kmem_cache_alias, its return       an existing cache is used for one more name
slab_destroy       __kmem_cache_shutdown                a cache goes
slab_shutdown_lock the same, list_lock held             its empty slabs are discarded
slab_dead_cpu      slub_cpu_dead                        the caches' slabs of a CPU that is gone are given up
================== ==================================== =========================================================================================

Every probe is a breakpoint, for the reasons told in `probes`. On a free list's cmpxchg16b the mark and the exchange are one: the breakpoint's handler runs
with interrupts off, and the kernel single-steps the instruction itself before it lets anything else run on this CPU; nobody else touches this CPU's
list. (An exchange that fails because the task was moved or interrupted between its look and the breakpoint is tried again, with another mark: the last mark counts.)

cmpxchg_double_slab is inline by declaration, so tracefs takes no probe on it; where the compiler made a function of it all the same, its calls are probed.
That is as good as the exchange: it succeeds only if the slab is still as it was before the call, so nothing that matters comes between.

Where the file has a call of this_cpu_cmpxchg16b_emu, preceded by the ``lea`` of its argument, the running kernel has ``cmpxchg16b %gs:(reg)`` from the
``lea``'s first byte on (an alternative; see arch/x86/include/asm/percpu.h). The paravirtual calls that switch interrupts off are patched to ``cli`` and
no-operations of the same length, so the instruction behind them stays where it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from mmtwin.errors import CaptureError
from mmtwin.recording.capture.probes import GROUP, Probe, SlabLayout, Symbols

try:
    import capstone
    from capstone import x86_const as x86
except ImportError as error:  # an extra: pip install mmtwin[record]
    raise CaptureError("recording slab events needs capstone; install it with: pip install -e '.[record]' (in mmtwin's directory)") from error

MASK = (1 << 64) - 1
CHUNK = 64
"""Pointers in one trace event: the kernel's MAX_ARRAY_LEN of a probe's array argument."""
FREE_CHUNKS = 8
"""kfree_rcu frees up to a page of pointers at once (KVFREE_BULK_MAX_ENTR, about 510)."""
RANDOM_CHUNKS = 8
"""A permutation has at most 512 entries: objects of 8 bytes in a page (larger slabs of such objects are never the first choice)."""
FREES = ("kmem_cache_free", "__kmem_cache_free", "___cache_free", "kfree")
"""Functions whose exchange puts objects on a list, also with a suffix of the compiler's; every other caller takes."""
TAKES = ("kmem_cache_alloc", "__kmem_cache_alloc")
"""Beginnings of the names of functions whose exchange takes (where they are not found as callers)."""
ARGUMENTS = {8: (x86.X86_REG_RDI, x86.X86_REG_RSI, x86.X86_REG_RDX), 4: (x86.X86_REG_EAX, x86.X86_REG_EDX, x86.X86_REG_ECX)}
"""The registers of the first three arguments by the size of a word."""


class Code:
    """One function's instructions."""

    def __init__(self, symbols: Symbols, name: str) -> None:
        bounds = symbols.range(name)
        if bounds is None:
            raise missing(f"has no function {name} to probe")
        machine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64 if symbols.abi.word == 8 else capstone.CS_MODE_32)
        machine.detail = True
        self.name, self.start, self.mask = name, bounds[0], (1 << 8 * symbols.abi.word) - 1
        self.instructions: list[Any] = list(machine.disasm(symbols.code(name), bounds[0]))

    def offset(self, instruction: Any) -> int:
        return int(instruction.address) - self.start

    def number(self, address: int) -> int:
        """Number of the instruction at an address; the last one's successor if there is none."""
        return next((i for i, one in enumerate(self.instructions) if int(one.address) == address), len(self.instructions))

    def calls(self, target: int) -> Iterator[int]:
        """Numbers of the instructions that call an address."""
        for i, instruction in enumerate(self.instructions):
            if instruction.id == x86.X86_INS_CALL and destination(instruction) == target:
                yield i

    def returns(self, thunk: int) -> Iterator[int]:
        """Numbers of the instructions that return (or jump to the return thunk)."""
        for i, instruction in enumerate(self.instructions):
            if instruction.id == x86.X86_INS_RET or (instruction.id == x86.X86_INS_JMP and destination(instruction) == thunk):
                yield i

    def after_irqs_off(self, slot: int | None) -> Iterator[int]:
        """Numbers of the instructions behind those that switch interrupts off: a call through the pointer at `slot`, or ``cli``."""
        for i, instruction in enumerate(self.instructions[:-1]):
            if instruction.id == x86.X86_INS_CLI or (slot is not None and instruction.id == x86.X86_INS_CALL and pointer(instruction) & self.mask == slot):
                yield i + 1

    def exchanges(self, offset: int) -> Iterator[int]:
        """Numbers of the instructions ``cmpxchg16b`` (32 bit: ``cmpxchg8b``) of a field `offset` bytes into a struct."""
        for i, instruction in enumerate(self.instructions):
            if instruction.id in EXCHANGES and is_memory(instruction.operands[0], offset):
                yield i

    def behind(self, numbers: Iterable[int]) -> list[int]:
        """Offsets of the instructions that follow."""
        return [self.offset(self.instructions[i + 1]) for i in numbers if i + 1 < len(self.instructions)]

    def at(self, numbers: Iterable[int]) -> list[int]:
        """Offsets of instructions."""
        return [self.offset(self.instructions[i]) for i in numbers]

    def unchanged(self, until: int, register: int) -> bool:
        """Whether no instruction before number `until` writes a register."""
        return not any(
            family(name(i, w)) == family(name(i, register)) for i in self.instructions[:until] if i.id != x86.X86_INS_CALL for w in i.regs_access()[1]
        )


EXCHANGES = (x86.X86_INS_CMPXCHG16B, x86.X86_INS_CMPXCHG8B)


def missing(what: str) -> CaptureError:
    return CaptureError(f"this kernel {what}; mmtwin records slab events of Linux 6.1 x86 kernels of Debian")


def destination(instruction: Any) -> int:
    """Where a direct call or jump goes; -1 for others."""
    first = instruction.operands[0]
    return int(first.imm) & MASK if first.type == x86.X86_OP_IMM else -1


def pointer(instruction: Any) -> int:
    """The address of the pointer that an indirect call goes through; -1 if a register takes part."""
    first = instruction.operands[0]
    if first.type != x86.X86_OP_MEM or first.mem.index or first.mem.base not in (0, x86.X86_REG_RIP):
        return -1
    next_one = int(instruction.address) + int(instruction.size) if first.mem.base == x86.X86_REG_RIP else 0
    return next_one + int(first.mem.disp)


def name(instruction: Any, register: int) -> str:
    return str(instruction.reg_name(register) or "")


def family(register: str) -> str:
    """The 64-bit register that a register is part of, as kprobes calls it: ``edx`` is ``dx``, ``r8d`` is ``r8``."""
    if register[:1] == "r" and register[1:2].isdigit():
        return register.rstrip("bwd")
    return {
        "al": "ax",
        "bl": "bx",
        "cl": "cx",
        "dl": "dx",
        "ah": "ax",
        "bh": "bx",
        "ch": "cx",
        "dh": "dx",
        "sil": "si",
        "dil": "di",
        "bpl": "bp",
        "spl": "sp",
    }.get(register, register[1:] if register[:1] in "re" else register)


def is_memory(operand: Any, offset: int) -> bool:
    """Whether an operand is a field `offset` bytes behind a register (which is not the stack pointer, or the frame pointer of 32-bit kernels)."""
    return bool(
        operand.type == x86.X86_OP_MEM
        and operand.mem.disp == offset
        and operand.mem.base not in (0, x86.X86_REG_RIP, x86.X86_REG_RSP, x86.X86_REG_ESP, x86.X86_REG_EBP)
        and not operand.mem.index
        and not operand.mem.segment
    )


def is_tid_step(instruction: Any, layout: SlabLayout) -> bool:
    """``addq $TID_STEP,tid(reg)``."""
    if instruction.id != x86.X86_INS_ADD or len(instruction.operands) != 2:
        return False
    to, step = instruction.operands
    return is_memory(to, layout.cpu_tid) and to.size == layout.word and step.type == x86.X86_OP_IMM and step.imm == 1 << (layout.nr_cpus - 1).bit_length()


def section(code: Code, at: int, layout: SlabLayout) -> str:
    """Which of ___slab_alloc's sections begins with instruction number `at`, or "" if none.

    Each looks at ``c->slab`` at once: two compare it with the slab that the task has seen and go back if it changed, two want it to be none: one
    before it takes from the CPU's partial list, one before it stores another there.
    """
    following = code.instructions[at : at + 4]
    for i, instruction in enumerate(following):
        if instruction.id not in (x86.X86_INS_JE, x86.X86_INS_JNE):
            continue
        unequal = instruction.id == x86.X86_INS_JNE
        compare = following[i - 1] if i else None
        if compare is None:
            return ""
        sides = compare.operands
        if compare.id == x86.X86_INS_CMP and any(is_memory(s, layout.cpu_slab) for s in sides):
            if any(s.type == x86.X86_OP_IMM and s.imm == 0 for s in sides):
                return "slab_cpu_partial"
            return "slab_refill" if unequal else "slab_deactivate"
        loaded = following[i - 2] if i > 1 else None
        if compare.id == x86.X86_INS_TEST and loaded is not None and loaded.id == x86.X86_INS_MOV and is_memory(loaded.operands[1], layout.cpu_slab):
            if not loaded.operands[0].reg == sides[0].reg == sides[1].reg:
                return ""
            none = at + i + 1 if unequal else code.number(destination(instruction))
            partial = (any(is_memory(o, layout.cpu_partial) for o in one.operands) for one in code.instructions[none : none + 5])
            return "slab_cpu_partial" if layout.word == 4 and any(partial) else "slab_load"
        return ""
    return ""


def slab_probes(symbols: Symbols, layout: SlabLayout) -> list[Probe]:
    """The probes for SLUB of Linux 6.1 on x86 in this very build of the kernel.

    :raises CaptureError: when a place that must be probed is not there: then the order of events could not be known.
    """
    found: list[Probe] = []
    codes: dict[str, Code] = {}
    abi, arg = symbols.abi, symbols.abi.argument
    word, kind64 = abi.word, abi.pointer

    def code(function: str) -> Code:
        if function not in codes:
            codes[function] = Code(symbols, function)
        return codes[function]

    def address(function: str) -> int:
        bounds = symbols.range(function)
        if bounds is None:
            raise missing(f"has no function {function}")
        return bounds[0]

    def add(event: str, function: str, offset: int, arguments: str = "", filter: str = "") -> None:
        found.append(Probe(event, f"p:{GROUP}/{event} {function}+{offset} {arguments}".strip(), filter))

    def sites(kind: str, places: Iterable[tuple[str, int, str]], what: str, filter: str = "") -> None:
        """Probes of one kind, numbered; there must be one at least."""
        number = 0
        for number, (function, offset, arguments) in enumerate(places, 1):
            add(f"{kind}{number - 1}", function, offset, arguments, filter)
        if not number:
            raise missing(f"has no {what}")

    def enter(kind: str, function: str, arguments: str = "") -> None:
        address(function)
        add(kind, function, symbols.entry(function), arguments)

    def parts(function: str) -> list[str]:
        """The function and the copies the compiler made of it."""
        return [n for n in symbols.names(function) if n == function or (n.startswith(f"{function}.") and ".cold" not in n)]

    def behind_calls(kind: str, functions: Iterable[str], callee: str) -> None:
        functions = list(functions)
        places = ((f, o, "") for f in functions for o in code(f).behind(code(f).calls(address(callee))))
        sites(kind, places, f"call of {callee} in {' or '.join(functions) or kind}")

    thunk = symbols.range("__x86_return_thunk")
    pv_ops = symbols.address("pv_ops")
    if layout.irq_disable >= 0 and pv_ops is None:
        raise missing("has no pv_ops")
    slot = None if pv_ops is None or layout.irq_disable < 0 else pv_ops + layout.irq_disable

    def irqs_off(function: str) -> list[int]:
        return list(code(function).after_irqs_off(slot))

    exchanges = _exchanges(symbols, code)
    sites("slab_take", ((f, o, f"ptr=%{r}:{kind64}") for f, o, r in exchanges if not _frees(f)), "cmpxchg16b of a CPU's free list in an allocation")
    sites("slab_give", ((f, o, f"ptr=%{r}:{kind64} head=%bx:{kind64}") for f, o, r in exchanges if _frees(f)), "cmpxchg16b of a CPU's free list in a free")

    slow = "___slab_alloc"
    enter("slab_slow", slow, f"ptr={arg(0)}:{kind64} gfp={arg(1)}:x32 node={arg(2)}:s32")
    kinds = [(section(code(slow), i, layout), i) for i in irqs_off(slow)]
    unknown = [code(slow).at([i])[0] for kind, i in kinds if not kind]
    if unknown:
        raise missing(f"switches interrupts off in {slow} for something unknown, before +{unknown[0]:#x}")
    for kind in ("slab_refill", "slab_cpu_partial", "slab_deactivate", "slab_load"):
        sites(kind, ((slow, code(slow).at([i])[0], "") for k, i in kinds if k == kind), f"section {kind} in {slow}")
    if parts("get_partial_node"):
        behind_calls("slab_node_partial", parts("get_partial_node"), "_raw_spin_lock_irqsave")
    else:
        sites("slab_node_partial", ((slow, o, "") for o in _inlined_node_lock(symbols, code(slow))), f"call of _raw_spin_lock_irqsave in {slow}")
    new = [f for f in symbols.names("allocate_slab") if f == "allocate_slab" or f.startswith("allocate_slab.")]
    leaves = (
        (f, o, f"slab=%ax:{kind64} ptr=+{layout.slab_freelist}(%ax):{kind64}") for f in new for o in code(f).at(code(f).returns(thunk[0] if thunk else -1))
    )
    sites("slab_new", leaves, "return of allocate_slab")

    sites("slab_cmpxchg", _slab_exchanges(symbols, code, parts, layout), "exchange of a slab's free list in __slab_free or deactivate_slab")
    put = irqs_off("put_cpu_partial")
    third = x86.X86_REG_RDX if word == 8 else x86.X86_REG_ECX
    if not all(code("put_cpu_partial").unchanged(i, third) for i in put):
        raise missing(f"changes {'%edx' if word == 8 else '%ecx'} in put_cpu_partial before interrupts are off")
    drains = (("put_cpu_partial", o, f"drain={arg(2)}:s32") for o in code("put_cpu_partial").at(put))
    sites("slab_put_partial", drains, "place with interrupts off in put_cpu_partial")
    behind_calls("slab_unfreeze", parts("__unfreeze_partials"), "_raw_spin_lock_irqsave")

    bulk = "kmem_cache_alloc_bulk"
    enter("slab_bulk_alloc", bulk, f"ptr={arg(0)}:{kind64} gfp={arg(1)}:x32 n={arg(2)}:{abi.long}")
    steps = [i for i, one in enumerate(code(bulk).instructions) if is_tid_step(one, layout)]
    sites("slab_bulk_pop", ((bulk, o, "") for o in code(bulk).at(steps)), f"step of the transaction number in {bulk}")
    hooks = code(bulk).at(code(bulk).calls(address("memcg_slab_post_alloc_hook")))
    sites(
        "slab_bulk_got",
        ((bulk, o, f"n={arg(3, True)}:{abi.long} p0=+0({arg(4, True)}):{kind64}[{CHUNK}]") for o in hooks),
        f"call of memcg_slab_post_alloc_hook in {bulk}",
    )
    free = _bulk_free(symbols, code)
    # probes at one place run last registered first: the first chunk, which makes the row of the call, shall be the first
    for k in reversed(range(FREE_CHUNKS)):
        arguments = f"ptr={arg(0)}:{kind64} n={arg(1)}:{abi.long} p{CHUNK * k}=+{word * CHUNK * k}({arg(2)}):{kind64}[{CHUNK}]"
        add(f"slab_bulk_free{k}", free, symbols.entry(free), arguments, f"n > {CHUNK * k}" if k else "")

    flush = "flush_cpu_slab"
    enter("slab_flush", flush, f"ptr=+{layout.flush_cache}({arg(0)}):{kind64}")
    steps = [i for i, one in enumerate(code(flush).instructions) if is_tid_step(one, layout)]
    sites("slab_flush_slab", ((flush, o, "") for o in code(flush).at(steps)), f"step of the transaction number in {flush}")
    off = irqs_off(flush)
    ends = [*off[1:], len(code(flush).instructions)]
    without = [i for i, end in zip(off, ends, strict=True) if not any(i <= step < end for step in steps)]
    sites("slab_flush_partial", ((flush, o, "") for o in code(flush).at(without)), f"place in {flush} that takes the partial list")
    enter("slab_shrink", "__kmem_cache_do_shrink", f"ptr={arg(0)}:{kind64}")
    behind_calls("slab_shrink_lock", ["__kmem_cache_do_shrink"], "_raw_spin_lock_irqsave")

    fields = {"flags": "gfp", "min_partial": "min_partial", "size": "size", "object_size": "object_size", "align": "align", "cpu_slab": "cpu_slab"}
    kind_of, s = {"min_partial": abi.ulong, "cpu_slab": kind64}, arg(0)
    whole = f"ptr={s}:{kind64} " + " ".join(f"{target}=+{getattr(layout, f'cache_{f}')}({s}):{kind_of.get(f, 'u32')}" for f, target in fields.items())
    whole += f" oo=+{layout.cache_oo}({s}):u32 name=+0(+{layout.cache_name}({s})):string"
    create = "sysfs_slab_add"
    address(create)
    if layout.cache_random_seq < 0:
        add("slab_create0", create, symbols.entry(create), whole)
    else:
        for k in reversed(range(RANDOM_CHUNKS)):
            sequence = f"+{layout.cache_random_seq}({s})"
            chunk = f"objects=+{layout.cache_oo}({s}):b16@0/32 seq={sequence}:{kind64} r{CHUNK * k}=+{4 * CHUNK * k}({sequence}):x32[{CHUNK}]"
            size = f"size=+{layout.cache_size}({s}):u32"
            add(f"slab_create{k}", create, symbols.entry(create), f"{size if k else whole} {chunk}", f"objects > {CHUNK * k}" if k else "")
    alias = "__kmem_cache_alias"
    state = " ".join(f"{f}=+{getattr(layout, f'cache_{f}')}(%ax):u32" for f in ("object_size", "inuse", "refcount"))
    ends_of_alias = code(alias).at(code(alias).returns(thunk[0] if thunk else -1))
    sites(
        "slab_alias",
        ((alias, o, f"ptr=%ax:{kind64} {state} name=+0(+{layout.cache_name}(%ax)):string") for o in ends_of_alias),
        f"return of {alias}",
        "ptr != 0",
    )
    shutdown = "__kmem_cache_shutdown"
    enter("slab_destroy", shutdown, f"ptr={arg(0)}:{kind64}")
    lock = "_raw_spin_lock_irq" if any(code(shutdown).calls(address("_raw_spin_lock_irq"))) else "_raw_spin_lock_irqsave"
    behind_calls("slab_shutdown_lock", [shutdown], lock)
    enter("slab_dead_cpu", "slub_cpu_dead", f"cpu={arg(0)}:s32")
    return found


def _inlined_node_lock(symbols: Symbols, slow: Code) -> list[int]:
    """Where ___slab_alloc, into which get_partial_node is inlined, holds the node's lock: behind the calls that take it, but for the one that follows
    alloc_debug_processing closely: there a slab with debugging gets on its list (alloc_single_from_new_slab)."""
    lock, debug = symbols.range("_raw_spin_lock_irqsave"), symbols.range("alloc_debug_processing")
    if lock is None:
        return []
    checks = list(slow.calls(debug[0])) if debug else []
    return slow.behind(i for i in slow.calls(lock[0]) if not any(0 < i - check < 8 for check in checks))


def _frees(function: str) -> bool:
    return any(function == free or function.startswith((f"{free}.", f"{free}_bulk")) for free in FREES)


def _exchanges(symbols: Symbols, code: Any) -> list[tuple[str, int, str]]:
    """Function, offset and register (with the per-CPU pointer) of each exchange of a CPU's free list."""
    if symbols.abi.word == 4:
        return _exchanges_i386(symbols, code)
    target = symbols.range("this_cpu_cmpxchg16b_emu")
    if target is None:
        raise missing("has no this_cpu_cmpxchg16b_emu")
    found = []
    for function in dict.fromkeys(f for f, _ in symbols.callers("this_cpu_cmpxchg16b_emu")):
        if ".cold" in function or function == "this_cpu_cmpxchg16b_emu":
            continue
        instructions = code(function).instructions
        for i in code(function).calls(target[0]):
            lea = instructions[i - 1]
            memory = lea.operands[1].mem if lea.id == x86.X86_INS_LEA else None
            if memory is None or memory.disp or memory.index or not memory.base or family(name(lea, lea.operands[0].reg)) != "si":
                raise missing(f"has no plain per-CPU pointer before {function}+{code(function).offset(instructions[i]):#x}")
            found.append((function, code(function).offset(lea), family(name(lea, memory.base))))
    return found


def _exchanges_i386(symbols: Symbols, code: Any) -> list[tuple[str, int, str]]:
    """The same on i386, where it is ``cmpxchg8b %fs:(reg)`` in place: segment FS is the CPU's own memory."""
    found = []
    for prefix in (*TAKES, *FREES):
        for function in symbols.names(prefix):
            if ".cold" in function or not (function == prefix or function.startswith((f"{prefix}.", f"{prefix}_"))) or symbols.range(function) == (0, 0):
                continue
            for instruction in code(function).instructions:
                memory = instruction.operands[0].mem if instruction.id == x86.X86_INS_CMPXCHG8B else None
                if memory is not None and memory.segment == x86.X86_REG_FS:
                    if memory.disp or memory.index or not memory.base:
                        raise missing(f"has no plain per-CPU pointer at {function}+{code(function).offset(instruction):#x}")
                    found.append((function, code(function).offset(instruction), family(name(instruction, memory.base))))
    return sorted(set(found))


def _slab_exchanges(symbols: Symbols, code: Any, parts: Any, layout: SlabLayout) -> list[tuple[str, int, str]]:
    """Function, offset and arguments of each exchange of a slab's free list by cmpxchg_double_slab: the instruction where it is inlined, else the calls."""
    found = []
    for function in [*parts("__slab_free"), *parts("deactivate_slab")]:
        for i in code(function).exchanges(layout.slab_freelist):
            one = code(function).instructions[i]
            found.append(
                (
                    function,
                    code(function).offset(one),
                    f"page=%{family(name(one, one.operands[0].mem.base))}:{symbols.abi.pointer} head=%bx:{symbols.abi.pointer}",
                )
            )
    for swap in parts("cmpxchg_double_slab"):
        exchanges = list(code(swap).exchanges(layout.slab_freelist))
        if len(exchanges) != 1:
            raise missing(f"exchanges a slab's free list {len(exchanges)} times in {swap}")
        i = exchanges[0]
        one = code(swap).instructions[i]
        slab = one.operands[0].mem.base
        copies = [j for j in range(i) if any(family(name(code(swap).instructions[j], w)) == "bx" for w in code(swap).instructions[j].regs_access()[1])]
        copy = code(swap).instructions[copies[-1]] if copies else None
        if copy is None or copy.id != x86.X86_INS_MOV or copy.operands[1].type != x86.X86_OP_REG:
            raise missing(f"has the new free list in no register at the begin of {swap}")
        head = copy.operands[1].reg
        if not code(swap).unchanged(i, slab) or not code(swap).unchanged(copies[-1], head):
            raise missing(f"moves its arguments about in {swap}")
        kind = symbols.abi.pointer
        arguments = f"page=%{family(name(one, slab))}:{kind} head=%{family(name(copy, head))}:{kind}"
        callers = sorted({f for f, _ in symbols.callers(swap)} - {swap})
        found += [(f, o, arguments) for f in callers for o in code(f).at(code(f).calls(code(swap).start))]
    return found


def _bulk_free(symbols: Symbols, code: Any) -> str:
    """The function that frees in bulk: the part that the compiler split off, which kmem_cache_alloc_bulk calls directly when it gives up."""
    whole, part = "kmem_cache_free_bulk", "kmem_cache_free_bulk.part.0"
    target = symbols.range(part)
    if symbols.range(whole) is None:
        raise missing(f"has no function {whole} to probe")
    if target is None:
        return whole
    for i, instruction in enumerate(code(whole).instructions):
        arguments = ARGUMENTS[symbols.abi.word]
        goes = instruction.id in (x86.X86_INS_JMP, x86.X86_INS_CALL) and destination(instruction) == target[0]
        if goes and all(code(whole).unchanged(i, r) for r in arguments):
            return part
    raise missing(f"gives {part} other arguments than {whole} has")
