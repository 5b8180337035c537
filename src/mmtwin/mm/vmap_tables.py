"""The state of the virtual-area allocator: flat tables whose columns are named after ``struct vmap_area``, ``vm_struct``, ``vmap_block`` and ``rb_node``.

Addresses are *biased*: ``address - 2**63`` as a signed number, so that signed order is the kernel's unsigned order. Sizes are plain, except
`subtree_max_size`: the hole below the kernel's half is larger than 2**63 bytes, so that column is biased too (0 bytes are -2**63).

Everywhere a row number 0 means none. The first rows of `Vmalloc.area` are the heads of the address-ordered lists (row t is tree t's), so that row 0,
the head of the free list, is never a node; as the leaf of every tree it is black and its `subtree_max_size` is 0 bytes. The first rows of `Vmalloc.block` are list heads
as well, and row 0 of `Vmalloc.vm` is not used.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmtwin.units import PAGE_SIZE

BIAS = 1 << 63
ZERO_BYTES = -(1 << 63)
"""A biased size of 0 bytes."""

NIL = 0
"""No row."""
RB_RED, RB_BLACK = 0, 1

AREA_UNUSED, AREA_HELD, AREA_FREE, AREA_BUSY, AREA_LAZY, AREA_POOL, AREA_PRELOAD = range(7)
"""Where a row of `VMAP_AREA` is: in nobody's use; an object that a request holds; the free tree; a busy tree; a lazy tree or a list of areas being purged; a pool
(6.12); a CPU's spare for splits."""

TREE_FREE = 0
"""Row of `VMAP_TREE`; the busy trees are `TREE_BUSY` + node. Behind them, node by node: the lazy trees, the lists of areas that are being purged (no trees);
then one tree for use within a function, and the heads of the pools."""
TREE_BUSY = 1
MAX_VA_SIZE_PAGES = 256
"""Pools of a node, one for each number of pages (6.9 and later)."""

VMAP_RAM, VMAP_BLOCK_FLAG, VMAP_FLAGS_MASK = 1, 2, 3
"""``va->flags`` of 6.12: vm_map_ram's areas, those that are blocks. The node that asked for the area is in bits 8 and up, plus one."""

VM_IOREMAP, VM_ALLOC, VM_MAP, VM_USERMAP, VM_DMA_COHERENT, VM_UNINITIALIZED, VM_NO_GUARD = 1, 2, 4, 8, 0x10, 0x20, 0x40
VM_KASAN, VM_FLUSH_RESET_PERMS, VM_MAP_PUT_PAGES, VM_ALLOW_HUGE_VMAP, VM_SPARSE = 0x80, 0x100, 0x200, 0x400, 0x1000
"""``vm_struct->flags`` (include/linux/vmalloc.h)."""

FREED_AREA, FREED_BLOCK = 0, 1
"""`VMAP_FREED.kind`: a ``vmap_area`` (kmem_cache_free, at once), a ``vmap_block`` (kfree_rcu, so after a grace period)."""

VMAP_AREA = np.dtype(
    [
        ("va_start", "i8"),  # biased
        ("va_end", "i8"),  # biased
        ("subtree_max_size", "i8"),  # biased size; only of areas in the free tree
        ("rb_left", "i4"),
        ("rb_right", "i4"),
        ("rb_parent", "i4"),
        ("next", "i4"),  # list_head `list`: address-ordered list of its tree, or its pool's; chain of unused rows
        ("prev", "i4"),
        ("vm", "i4"),  # row of `VM_STRUCT`; of a vm_map_ram block: minus its row of `VMAP_BLOCK`
        ("flags", "i4"),  # VMAP_RAM, VMAP_BLOCK_FLAG and the node (6.12)
        ("rb_color", "i1"),  # RB_RED, RB_BLACK
        ("state", "i1"),  # AREA_*
        ("unused", "i2"),
        ("object", "i8"),  # address of the kernel's struct vmap_area as a signed number, 0 if it is not known
    ]
)
"""64 bytes, one line of the processor's cache."""
VM_STRUCT = np.dtype(
    [
        ("addr", "i8"),  # biased
        ("size", "i8"),  # with the guard page
        ("flags", "i8"),  # VM_*
        ("pages", "i8"),  # address of the array of page pointers as a signed number, 0 if there is none
        ("nr_pages", "i8"),
        ("phys_addr", "i8"),
        ("caller", "i8"),  # as a signed number
        ("requested_size", "i8"),  # 6.12
        ("object", "i8"),  # address of the kernel's struct vm_struct as a signed number, 0 if it is not known
        ("first_pfn", "i8"),  # for the caller's use: where its page frames are kept
        ("page_order", "i4"),
        ("area", "i4"),  # row of `VMAP_AREA`
        ("deferred", "i4"),  # next in a CPU's list of deferred vfrees; chain of unused rows
        ("live", "i4"),  # 1: the row is in use
    ]
)
VMAP_TREE = np.dtype([("rb_root", "i4"), ("nr", "i4")])
"""Root and number of areas; of a pool: its length."""
VMAP_CPU = np.dtype([("ne_fit_preload_node", "i4"), ("deferred", "i4")])
"""The spare area for splits, and the first `VM_STRUCT` whose vfree was deferred (newest first). CPU c's queue of blocks has its head at row c of `VMAP_BLOCK`."""
VMAP_BLOCK = np.dtype(
    [
        ("next", "i4"),  # list_head `free_list`; chain of unused rows
        ("prev", "i4"),
        ("xa_next", "i4"),  # all blocks by address: stands for the xarray
        ("xa_prev", "i4"),
        ("purge", "i4"),  # chain of blocks to be freed
        ("area", "i4"),  # row of `VMAP_AREA`
        ("free", "i4"),  # pages
        ("dirty", "i4"),
        ("dirty_min", "i4"),
        ("dirty_max", "i4"),
        ("cpu", "i4"),  # whose queue it is or was on
        ("state", "i4"),  # 0: the row is not in use; 1: on its CPU's queue; 2: not on it
        ("object", "i8"),  # address of the kernel's struct vmap_block as a signed number, 0 if it is not known
    ]
)
VMAP_FREED = np.dtype([("object", "i8"), ("kind", "i8")])
"""An object that the kernel frees, in its order: address and FREED_*."""
VMAP_CONFIG = np.dtype(
    [
        ("version", "i8"),  # 601, 612
        ("bits_per_long", "i8"),
        ("nr_cpus", "i8"),  # possible CPUs
        ("online_cpus", "i8"),
        ("vmalloc_start", "i8"),  # biased, as are the next four
        ("vmalloc_end", "i8"),  # the macro's value: what the kernel passes as vend
        ("modules_vaddr", "i8"),
        ("modules_end", "i8"),
        ("ulong_max", "i8"),
        ("nr_nodes", "i8"),  # vmap nodes: 1 before 6.9
        ("zone_shift", "i8"),  # log2(vmap_zone_size)
        ("lazy_tree", "i8"),  # tree of node 0's lazy areas
        ("purge_tree", "i8"),  # list of node 0's areas that are being purged
        ("local_tree", "i8"),  # tree for use within a function
        ("pool_base", "i8"),  # head of node 0's first pool
        ("heads", "i8"),  # rows of `VMAP_TREE`: the first row of `VMAP_AREA` that is an area
        ("block_pages", "i8"),  # VMAP_BBMAP_BITS
        ("block_heads", "i8"),  # the first row of `VMAP_BLOCK` that is a block; the row before is the head of the list of all
        ("areas", "i8"),  # rows of `VMAP_AREA` ever used, heads included
        ("free_area", "i8"),  # first unused row among them
        ("areas_in_use", "i8"),
        ("vms", "i8"),  # rows of `VM_STRUCT` ever used
        ("free_vm", "i8"),
        ("vms_in_use", "i8"),
        ("blocks", "i8"),  # rows of `VMAP_BLOCK` ever used, heads included
        ("free_block", "i8"),
        ("blocks_in_use", "i8"),
        ("lazy_nr", "i8"),  # vmap_lazy_nr, in pages
        ("drain", "i8"),  # 1: drain_vmap_work is scheduled; whoever runs it sets this to 0
        ("skip_populate", "i8"),  # 1: the purge at hand fills no pools (6.12)
        ("nr_vmalloc_pages", "i8"),
        ("freed", "i8"),  # rows of `VMAP_FREED` filled: the caller frees these objects and sets it to 0
        ("flush_start", "i8"),  # the range that the last purge flushes from the TLB, biased
        ("flush_end", "i8"),
        ("flushes", "i8"),  # flush_tlb_kernel_range calls
        ("allocs", "i8"),
        ("frees", "i8"),
        ("purges", "i8"),
        ("purged_areas", "i8"),
        ("overflows", "i8"),  # searches that found nothing
        ("tree_steps", "i8"),  # tree nodes visited
        ("rotations", "i8"),
        ("list_steps", "i8"),  # list insertions, deletions and steps
        ("merges", "i8"),
        ("splits", "i8"),  # areas split in the middle
    ]
)


class Vmalloc(NamedTuple):
    """The virtual-area allocator of one machine.

    :param area: `VMAP_AREA`; grows (`reserve_areas`).
    :param vm: `VM_STRUCT`; grows.
    :param tree: `VMAP_TREE`.
    :param cpu: `VMAP_CPU`.
    :param block: `VMAP_BLOCK`; grows.
    :param freed: `VMAP_FREED`, as many rows as `area`: one call cannot free more objects than there are.
    :param config: `VMAP_CONFIG`, one row.
    """

    area: npt.NDArray[np.void]
    vm: npt.NDArray[np.void]
    tree: npt.NDArray[np.void]
    cpu: npt.NDArray[np.void]
    block: npt.NDArray[np.void]
    freed: npt.NDArray[np.void]
    config: npt.NDArray[np.void]


CACHE_LINE = 64


def _area_table(rows: int) -> npt.NDArray[np.void]:
    """Empty areas, each in one line of the processor's cache: numpy's own memory begins 16 bytes behind one, and every look at an area would cost two."""
    memory = np.zeros(rows * VMAP_AREA.itemsize + CACHE_LINE, dtype=np.uint8)
    skip = -memory.ctypes.data % CACHE_LINE
    table: npt.NDArray[np.void] = memory[skip : skip + rows * VMAP_AREA.itemsize].view(VMAP_AREA)
    return table


def bias(address: int) -> int:
    """An address as it is kept in the tables; also of a two's complement one."""
    return (address & (2 * BIAS - 1)) - BIAS


def unbias(biased: int) -> int:
    """The address as a plain non-negative number."""
    return int(biased) + BIAS


def block_pages(bits_per_long: int, config_nr_cpus: int) -> int:
    """``VMAP_BBMAP_BITS``: pages of a vm_map_ram block, given CONFIG_NR_CPUS."""
    space = 128 << 30 if bits_per_long == 64 else 128 << 20
    cpus = 1 << (config_nr_cpus - 1).bit_length()
    return min(1024, max(bits_per_long * 2, space // PAGE_SIZE // cpus // 16))


def vmap_nodes(version: int, bits_per_long: int, nr_cpus: int) -> int:
    """``nr_vmap_nodes``: one before 6.9 and with 32 bits, else one for each possible CPU, 128 at most (vmap_init_nodes)."""
    return min(max(nr_cpus, 1), 128) if version >= 609 and bits_per_long == 64 else 1


def new_vmalloc(
    nr_cpus: int,
    vmalloc_start: int,
    vmalloc_end: int,
    modules_vaddr: int,
    modules_end: int,
    *,
    version: int = 601,
    bits_per_long: int = 64,
    config_nr_cpus: int = 8192,
    online_cpus: int | None = None,
    areas: int = 1024,
    vms: int = 256,
    blocks: int = 64,
) -> Vmalloc:
    """Empty tables: no area anywhere, no free space (`vmalloc.vmalloc_init` makes that, a snapshot brings its own).

    :param nr_cpus: possible CPUs.
    :param vmalloc_end: VMALLOC_END as the kernel's macro says.
    :param version: 601 for 6.1, 612 for 6.12.
    :param config_nr_cpus: CONFIG_NR_CPUS, which decides on the size of blocks.
    :param areas: rows for areas, vms and blocks accordingly.
    """
    nodes = vmap_nodes(version, bits_per_long, nr_cpus)
    pools = nodes * MAX_VA_SIZE_PAGES if version >= 609 else 0
    pool_base = TREE_BUSY + 3 * nodes + 1
    heads = pool_base + pools
    config = np.zeros(1, dtype=VMAP_CONFIG)
    values = {
        "version": version,
        "bits_per_long": bits_per_long,
        "nr_cpus": nr_cpus,
        "online_cpus": nr_cpus if online_cpus is None else online_cpus,
        "vmalloc_start": bias(vmalloc_start),
        "vmalloc_end": bias(vmalloc_end),
        "modules_vaddr": bias(modules_vaddr),
        "modules_end": bias(modules_end),
        "ulong_max": bias((1 << bits_per_long) - 1),
        "nr_nodes": nodes,
        "zone_shift": 16 if nodes > 1 else 0,
        "lazy_tree": TREE_BUSY + nodes,
        "purge_tree": TREE_BUSY + 2 * nodes,
        "local_tree": TREE_BUSY + 3 * nodes,
        "pool_base": pool_base,
        "heads": heads,
        "block_pages": block_pages(bits_per_long, config_nr_cpus),
        "block_heads": nr_cpus + 1,
        "areas": heads,
        "vms": 1,
        "blocks": nr_cpus + 1,
    }
    for name, value in values.items():
        config[name] = value
    area = _area_table(heads + areas)
    area["next"][:heads] = area["prev"][:heads] = np.arange(heads)
    area["subtree_max_size"][:heads] = ZERO_BYTES
    area["rb_color"][:heads] = RB_BLACK
    block = np.zeros(nr_cpus + 1 + blocks, dtype=VMAP_BLOCK)
    for name in ("next", "prev", "xa_next", "xa_prev"):
        block[name][: nr_cpus + 1] = np.arange(nr_cpus + 1)
    return Vmalloc(
        area=area,
        vm=np.zeros(1 + vms, dtype=VM_STRUCT),
        tree=np.zeros(heads, dtype=VMAP_TREE),
        cpu=np.zeros(nr_cpus, dtype=VMAP_CPU),
        block=block,
        freed=np.zeros(len(area), dtype=VMAP_FREED),
        config=config,
    )


def _grown(table: npt.NDArray[np.void], in_use: int, more: int) -> npt.NDArray[np.void]:
    if len(table) - in_use >= more:
        return table
    return np.concatenate([table, np.zeros(max(more, len(table)), dtype=table.dtype)])


def reserve_areas(state: Vmalloc, areas: int = 4, vms: int = 0, blocks: int = 0) -> Vmalloc:
    """`state` with room for that many more rows: itself if it has it, else with larger tables (the old ones are then out of date).

    An allocation uses two areas at most (its own and a spare), with a nested page array four.
    """
    config = state.config[0]
    area = state.area
    if len(area) - int(config["areas_in_use"]) - int(config["heads"]) < areas:
        area = _area_table(len(area) + max(areas, len(area)))
        area[: len(state.area)] = state.area
    vm = _grown(state.vm, int(config["vms_in_use"]) + 1, vms)
    block = _grown(state.block, int(config["blocks_in_use"]) + int(config["block_heads"]), blocks)
    if area is state.area and vm is state.vm and block is state.block:
        return state
    freed = state.freed
    if len(freed) < len(area):
        freed = np.concatenate([freed, np.zeros(len(area) - len(freed), dtype=VMAP_FREED)])
    return state._replace(area=area, vm=vm, block=block, freed=freed)


def copy_vmalloc(state: Vmalloc) -> Vmalloc:
    """An independent copy."""
    area = _area_table(len(state.area))
    area[:] = state.area
    return Vmalloc._make(area if table is state.area else table.copy() for table in state)
