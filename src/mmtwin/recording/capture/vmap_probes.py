"""The probes that say in which order the trees of virtual areas changed, and where in this build of the kernel they go.

Linux 6.1 has no tracepoints for virtual areas. 6.12 has three, alloc_vmap_area, free_vmap_area_noflush and purge_vmap_area_lazy, which are recorded too;
but they are printed outside of the locks, so they give neither the order between CPUs nor the moment at which a pool was looked at, and the purge's one
comes when all is done. What changes a tree, a list or a pool fires here, inside its lock:

=================== ========================================== ===============================================================================
probe               where                                      what it says
=================== ========================================== ===============================================================================
vmap_request        alloc_vmap_area                            size, alignment, range and flags of what is asked for
vmap_offer          alloc_vmap_area, free_vmap_area_lock held  a spare object is offered to this CPU (preload_this_cpu_lock)
vmap_search         alloc_vmap_area, its unlocks of the same   the free tree has been searched, and changed if there was room
vmap_pool_take      alloc_vmap_area, its unlock of pool_lock   (6.12) this CPU's node had areas of that size; its pool has been looked at
vmap_busy           calls of insert_vmap_area, busy lock held  the answer: the area on its way into the busy tree
vmap_result         alloc_vmap_area, its return                the area object, or an error
vmap_unlink         calls of rb_erase, busy lock held          an area leaves the busy tree
vmap_lazy           free_vmap_area_noflush, lazy lock held     it goes to the lazy tree (6.1: merges there)
vmap_detach         __purge_vmap_area_lazy, lazy lock held     all lazy areas (of a node) are taken away
vmap_merge          __purge_vmap_area_lazy, at the counter     (6.1) one of them has been merged into the free tree; the lock may be let go after each
vmap_decay          decay_va_pool_node                         (6.12) a purge shrinks the pools of a node
vmap_pool_out       the same, pool_lock held                   a pool has been taken away as a whole
vmap_pool_back      the same, pool_lock held                   what remained of it is put back
vmap_purge_node     purge_vmap_node                            (6.12) a node's lazy areas are being purged
vmap_pool_add       the same, pool_lock held                   one of them has gone into its pool
vmap_lazy_sub       the same, at the counter                   their pages are off vmap_lazy_nr
vmap_reclaim        reclaim_list_global, its unlock            (6.12) a list of areas has been merged into the free tree
vmap_percpu         pcpu_get_vm_areas                          areas for the per-CPU allocator, from the top of the space
vmap_percpu_search  the same, free_vmap_area_lock held         the free tree has been searched for them
vmap_ram            vm_map_ram                                 how many pages it shall map
vmap_ram_result     the same, its return                       where they are
vmap_unram          vm_unmap_ram                               what is given back
vmap_block_take     vm_map_ram, unlocks of a block or queue    a block has been looked at; a new block comes on its CPU's queue
vmap_block_free     vm_unmap_ram, unlocks of the block         pages of it are dirty now
vmap_block_purge    purge_fragmented_blocks, unlock of block   a block has been looked at, and given up if only dirty pages are in its way
vmap_block_flush    _vm_unmap_aliases, unlock of the block     (6.12) the same, or its dirty range is flushed
=================== ========================================== ===============================================================================

Every probe is a breakpoint, for the reasons told in `probes`. The mark of an unlock is on the call of ``_raw_spin_unlock`` itself, when the lock is still
held and the work is done; its argument says which lock it is. remove_vm_area in 6.1 takes the busy lock once more before, but changes no tree then. Not probed
are the paths of errors that free an area they have just made (the page tables or the xarray got no memory).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from mmtwin.errors import CaptureError
from mmtwin.recording.capture.probes import GROUP, Probe, Symbols
from mmtwin.recording.capture.slab_probes import Code, destination, family, name

try:
    from capstone import x86_const as x86
except ImportError as error:  # an extra: pip install mmtwin[record]
    raise CaptureError("recording virtual areas needs capstone; install it with: pip install -e '.[record]' (in mmtwin's directory)") from error

TRACEPOINTS = {"vmalloc": ("alloc_vmap_area", "free_vmap_area_noflush", "purge_vmap_area_lazy")}
"""Of kernels since 6.3."""
UNLOCK = "_raw_spin_unlock"
NEAR = 6
"""Instructions between the loading of an argument and its call, at most."""


class VmapLayout(NamedTuple):
    """Byte offsets that the probes' arguments need (`vmap_snapshot.vmap_layout` reads them from the DWARF)."""

    area_start: int
    area_end: int
    area_node: int
    area_flags: int
    """-1: before 6.9."""
    block_area: int
    block_free: int
    block_dirty: int
    nodes: bool
    """The kernel has vmap nodes with pools (6.9 and later)."""


def missing(what: str) -> CaptureError:
    return CaptureError(f"this kernel {what}; mmtwin records virtual areas of Linux 6.1 and 6.12 x86-64 and 6.1 i386 kernels of Debian")


class Finder:
    """Places in this build of the kernel."""

    def __init__(self, symbols: Symbols) -> None:
        self.symbols = symbols
        self._codes: dict[str, Code] = {}

    def code(self, function: str) -> Code:
        if function not in self._codes:
            self._codes[function] = Code(self.symbols, function)
        return self._codes[function]

    def parts(self, function: str) -> list[str]:
        """The function and the copies that the compiler made of it."""
        return [n for n in self.symbols.names(function) if n == function or (n.startswith(f"{function}.") and ".cold" not in n)]

    def address(self, function: str) -> int:
        bounds = self.symbols.range(function)
        if bounds is None:
            raise missing(f"has no function {function}")
        return bounds[0]

    def variable(self, variable: str) -> int:
        found = self.symbols.address(variable)
        if found is None:
            raise missing(f"has no variable {variable}")
        return found

    def unlocks(self, function: str) -> Iterator[int]:
        """Numbers of the instructions that let go of a spinlock: calls, and the jump that ends a function."""
        target = self.address(UNLOCK)
        for i, one in enumerate(self.code(function).instructions):
            if one.id in (x86.X86_INS_CALL, x86.X86_INS_JMP) and destination(one) == target:
                yield i

    def calls(self, function: str, callees: Iterable[str]) -> list[int]:
        """Offsets of the calls of any of `callees`."""
        targets = {self.address(callee) for callee in callees}
        code = self.code(function)
        return [code.offset(one) for one in code.instructions if one.id == x86.X86_INS_CALL and destination(one) in targets]

    def returns(self, function: str) -> list[int]:
        thunk = self.symbols.range("__x86_return_thunk")
        code = self.code(function)
        return code.at(code.returns(thunk[0] if thunk else -1))

    def spare_offers(self, function: str) -> list[int]:
        """Offsets of the ``cmpxchg %gs:`` (i386: ``%fs:``) that puts a spare object in its place."""
        code = self.code(function)
        return [
            code.offset(one) for one in code.instructions if one.id == x86.X86_INS_CMPXCHG and any(o.type == x86.X86_OP_MEM and o.mem.segment in (x86.X86_REG_GS, x86.X86_REG_FS) for o in one.operands)
        ]  # fmt: skip

    def subtractions(self, function: str, variable: str) -> list[tuple[int, str]]:
        """Offset and register of each ``lock sub reg,variable``."""
        goal, code = self.variable(variable), self.code(function)
        found = []
        for one in code.instructions:
            if one.id != x86.X86_INS_SUB or one.operands[0].type != x86.X86_OP_MEM or one.operands[1].type != x86.X86_OP_REG:
                continue
            memory = one.operands[0].mem
            base = int(one.address) + int(one.size) if memory.base == x86.X86_REG_RIP else 0
            if base + int(memory.disp) & code.mask == goal and memory.base in (0, x86.X86_REG_RIP) and not memory.index:
                found.append((code.offset(one), family(name(one, one.operands[1].reg))))
        return found

    def emptied_list(self, function: str, number: int) -> str:
        """Register of the list head that was made empty (stored into itself) right before instruction `number`, or ""."""
        instructions = self.code(function).instructions
        for one in reversed(instructions[max(0, number - NEAR) : number]):
            if one.id == x86.X86_INS_MOV and one.operands[0].type == x86.X86_OP_MEM and one.operands[1].type == x86.X86_OP_REG:
                memory = one.operands[0].mem
                if memory.base == one.operands[1].reg and not memory.disp and not memory.index:
                    return family(name(one, memory.base))
        return ""

    def inserts_before(self, function: str, number: int) -> bool:
        """Whether an area was put into a tree right before instruction `number`."""
        targets = {self.address(f) for f in self.parts("insert_vmap_area")}
        code = self.code(function)
        return any(one.id == x86.X86_INS_CALL and destination(one) in targets for one in code.instructions[max(0, number - NEAR) : number])


def vmap_probes(symbols: Symbols, layout: VmapLayout) -> list[Probe]:
    """The probes for the virtual areas of Linux 6.1 or 6.12 on x86-64, or of 6.1 on i386, in this very build of the kernel.

    :raises CaptureError: when a place that must be probed is not there: then the order of events could not be known.
    """
    found: list[Probe] = []
    find = Finder(symbols)

    def sites(kind: str, places: Iterable[tuple[str, int, str]], what: str, filter: str = "") -> None:
        """Probes of one kind, numbered; there must be one at least."""
        number = -1
        for number, (function, offset, arguments) in enumerate(places):
            found.append(Probe(f"{kind}{number}", f"p:{GROUP}/{kind}{number} {function}+{offset} {arguments}".strip(), filter))
        if number < 0:
            raise missing(f"has no {what}")

    def enter(kind: str, function: str, arguments: str) -> None:
        find.address(function)
        found.append(Probe(kind, f"p:{GROUP}/{kind} {function}+{symbols.entry(function)} {arguments}".strip()))

    word, long = symbols.abi.pointer, symbols.abi.long
    a0, a1, a2 = (symbols.abi.argument(i) for i in range(3))

    def unlocks(kind: str, functions: Iterable[str], arguments: str = f"lock={a0}:{word}", filter: str = "") -> None:
        functions = list(functions)
        places = ((f, o, arguments) for f in functions for o in find.code(f).at(find.unlocks(f)))
        sites(kind, places, f"call of {UNLOCK} in {' or '.join(functions) or kind}", filter)

    start, end, node = layout.area_start, layout.area_end, layout.area_node
    area = f"start=+{start}({a0}):{word} end=+{end}({a0}):{word}"
    if layout.area_flags >= 0:
        area += f" flags=+{layout.area_flags}({a0}):u64 root={a1}:{word}"
    in_tree = f"start={start - node:+d}({a0}):{word} end={end - node:+d}({a0}):{word} root={a1}:{word}"
    free_lock = find.variable("free_vmap_area_lock")
    is_free = f"lock == {free_lock:#x}"
    insert = find.parts("insert_vmap_area")
    alloc, noflush, purge = "alloc_vmap_area", "free_vmap_area_noflush", "__purge_vmap_area_lazy"

    vend, gfp = symbols.abi.argument(3), symbols.abi.argument(5)
    request = f"size={a0}:{long} align={a1}:{long} vstart={a2}:{word} vend={vend}:{word} gfp={gfp}:x32"
    enter("vmap_request", alloc, request + (" flags=+8($stack):u64" if layout.nodes else ""))
    sites("vmap_offer", ((alloc, o, "") for o in find.spare_offers(alloc)), f"exchange of the spare area in {alloc}")
    unlocks("vmap_search", [alloc], filter=is_free)
    sites("vmap_busy", ((f, o, area) for f in (alloc, "pcpu_get_vm_areas") for o in find.calls(f, insert)), f"call of insert_vmap_area in {alloc}")
    sites("vmap_result", ((alloc, o, f"ret=%ax:{word}") for o in find.returns(alloc)), f"return of {alloc}")
    if layout.nodes:
        _probes_of_nodes(find, sites, enter, unlocks, area, in_tree, is_free)
    else:
        purge_lock = f"lock == {find.variable('purge_vmap_area_lock'):#x}"
        busy_root = f"root == {find.variable('vmap_area_root'):#x}"
        sites("vmap_unlink", ((noflush, o, in_tree) for o in find.calls(noflush, ["rb_erase"])), f"call of rb_erase in {noflush}", busy_root)
        unlocks("vmap_lazy", [noflush], filter=purge_lock)
        unlocks("vmap_detach", [purge], filter=purge_lock)
        merges = find.subtractions(purge, "vmap_lazy_nr")
        sites("vmap_merge", ((purge, o, f"nr=%{r}:{long}") for o, r in merges), f"subtraction from vmap_lazy_nr in {purge}")
    enter("vmap_percpu", "pcpu_get_vm_areas", f"size=+0({a1}):{long} nr={a2}:s32 align={vend}:{long}")
    unlocks("vmap_percpu_search", ["pcpu_get_vm_areas"], filter=is_free)

    counts = f"free=+{layout.block_free}({a0}):{long} dirty=+{layout.block_dirty}({a0}):{long}"
    block = f"lock={a0}:{word} start=+{start}(+{layout.block_area}({a0})):{word} {counts}"
    enter("vmap_ram", "vm_map_ram", f"count={a1}:u32")
    sites("vmap_ram_result", (("vm_map_ram", o, f"ret=%ax:{word}") for o in find.returns("vm_map_ram")), "return of vm_map_ram")
    enter("vmap_unram", "vm_unmap_ram", f"addr={a0}:{word} count={a1}:u32")
    unlocks("vmap_block_take", ["vm_map_ram"], block)
    unlocks("vmap_block_free", ["vm_unmap_ram"], block)
    purgers = ["reclaim_and_purge_vmap_areas"] if layout.nodes else find.parts("purge_fragmented_blocks_allcpus")
    unlocks("vmap_block_purge", purgers, block)
    if layout.nodes:
        unlocks("vmap_block_flush", ["_vm_unmap_aliases"], block)
    return found


def _probes_of_nodes(
    find: Finder, sites: Callable[..., None], enter: Callable[..., None], unlocks: Callable[..., None], area: str, in_tree: str, is_free: str
) -> None:
    """What 6.9 and later do differently: busy and lazy trees in nodes, and pools."""
    alloc, noflush, purge, decay, node = "alloc_vmap_area", "free_vmap_area_noflush", "__purge_vmap_area_lazy", "decay_va_pool_node", "purge_vmap_node"
    others = is_free.replace("==", "!=")
    code = find.code(alloc)
    pools = [code.offset(code.instructions[i]) for i in find.unlocks(alloc) if not find.inserts_before(alloc, i)]
    sites("vmap_pool_take", ((alloc, o, "lock=%di:x64") for o in pools), f"unlock of a pool in {alloc}", others)
    unlinking = [f for f in ("find_unlink_vmap_area", "free_vmap_block") for _ in find.calls(f, ["rb_erase"])]
    sites("vmap_unlink", ((f, o, in_tree) for f in dict.fromkeys(unlinking) for o in find.calls(f, ["rb_erase"])), "call of rb_erase in find_unlink_vmap_area")
    sites("vmap_lazy", ((noflush, o, area) for o in find.calls(noflush, find.parts("insert_vmap_area"))), f"call of insert_vmap_area in {noflush}")
    unlocks("vmap_detach", [purge])
    enter("vmap_decay", decay, "vn=%di:x64 full=%si:u8")
    heads = [(find.code(decay).offset(find.code(decay).instructions[i]), find.emptied_list(decay, i)) for i in find.unlocks(decay)]
    sites("vmap_pool_out", ((decay, o, f"head=%{r}:x64") for o, r in heads if r), f"pool that is taken away in {decay}")
    sites("vmap_pool_back", ((decay, o, "lock=%di:x64") for o, r in heads if not r), f"pool that is put back in {decay}")
    enter("vmap_purge_node", node, "work=%di:x64")
    unlocks("vmap_pool_add", [node])
    sites("vmap_lazy_sub", ((node, o, f"nr=%{r}:s64") for o, r in find.subtractions(node, "vmap_lazy_nr")), f"subtraction from vmap_lazy_nr in {node}")
    unlocks("vmap_reclaim", find.parts("reclaim_list_global"), "lock=%di:x64")
