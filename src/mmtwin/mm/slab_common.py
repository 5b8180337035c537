"""How big a slab object is, how many fit into a slab, which caches are one: the arithmetic of SLUB in Linux 6.1, as plain Python.

Data in, data out: nothing here keeps a state, and nothing is compiled, since a cache is made rarely. Sources: mm/slab_common.c, mm/slub.c
(``calculate_order``, ``calculate_sizes``, ``kmem_cache_flags``), mm/slab.h, include/linux/slab.h of 6.1.y, 64-bit and i386 (`SlabArch`), with Debian's configuration
(SLUB_DEBUG, SLUB_CPU_PARTIAL, MEMCG_KMEM, ZONE_DMA and STACKDEPOT on; KASAN, KFENCE, FAILSLAB, DEBUG_VM off). All sizes are in bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from mmtwin.errors import RequestError
from mmtwin.profiles.profile import SLAB_64_BIT, SlabArch
from mmtwin.units import PAGE_SHIFT, PAGE_SIZE, get_order

MINALIGN = 8
"""ARCH_SLAB_MINALIGN and ARCH_KMALLOC_MINALIGN: ``__alignof__(unsigned long long)``, also on i386."""
CACHE_LINE_SIZE = 64
"""``cache_line_size()`` of x86."""
MAX_ORDER = 11
"""Orders end before this one."""
MAX_OBJS_PER_PAGE = 32767
"""Objects a slab can have at most (``slab.objects`` has 15 bits)."""
MIN_PARTIAL, MAX_PARTIAL = 5, 10
SIZE_MAX = (1 << 64) - 1
EINVAL = 22

# --- flags -----------------------------------------------------------------------------------------------------------------------

SLAB_CONSISTENCY_CHECKS = 0x100
SLAB_RED_ZONE = 0x400
SLAB_POISON = 0x800
SLAB_KMALLOC = 0x1000
SLAB_HWCACHE_ALIGN = 0x2000
SLAB_CACHE_DMA = 0x4000
SLAB_CACHE_DMA32 = 0x8000
SLAB_STORE_USER = 0x10000
SLAB_RECLAIM_ACCOUNT = 0x20000
SLAB_TEMPORARY = SLAB_RECLAIM_ACCOUNT
SLAB_PANIC = 0x40000
SLAB_TYPESAFE_BY_RCU = 0x80000
SLAB_MEM_SPREAD = 0x100000
SLAB_TRACE = 0x200000
SLAB_NOLEAKTRACE = 0x800000
SLAB_ACCOUNT = 0x4000000
SLAB_NO_USER_FLAGS = 0x10000000
CMPXCHG_DOUBLE = 0x40000000
"""``__CMPXCHG_DOUBLE``: the kernel's own mark that free list and counters are exchanged in one instruction."""
OBJECT_POISON = 0x80000000
"""``__OBJECT_POISON``: the kernel's own mark that the object itself is poisoned."""

SLAB_FLAG_NAMES: tuple[tuple[str, int], ...] = (
    ("SLAB_CONSISTENCY_CHECKS", SLAB_CONSISTENCY_CHECKS), ("SLAB_RED_ZONE", SLAB_RED_ZONE), ("SLAB_POISON", SLAB_POISON), ("SLAB_KMALLOC", SLAB_KMALLOC),
    ("SLAB_HWCACHE_ALIGN", SLAB_HWCACHE_ALIGN), ("SLAB_CACHE_DMA", SLAB_CACHE_DMA), ("SLAB_CACHE_DMA32", SLAB_CACHE_DMA32), ("SLAB_STORE_USER", SLAB_STORE_USER),
    ("SLAB_RECLAIM_ACCOUNT", SLAB_RECLAIM_ACCOUNT), ("SLAB_PANIC", SLAB_PANIC), ("SLAB_TYPESAFE_BY_RCU", SLAB_TYPESAFE_BY_RCU), ("SLAB_MEM_SPREAD", SLAB_MEM_SPREAD),
    ("SLAB_TRACE", SLAB_TRACE), ("SLAB_DEBUG_OBJECTS", 0x400000), ("SLAB_NOLEAKTRACE", SLAB_NOLEAKTRACE), ("SLAB_FAILSLAB", 0x2000000), ("SLAB_ACCOUNT", SLAB_ACCOUNT),
    ("SLAB_KASAN", 0x8000000), ("SLAB_NO_USER_FLAGS", SLAB_NO_USER_FLAGS), ("SLAB_SKIP_KFENCE", 0x20000000), ("__CMPXCHG_DOUBLE", CMPXCHG_DOUBLE),
    ("__OBJECT_POISON", OBJECT_POISON),
)  # fmt: skip
"""Names of the bits of ``slab_flags_t`` in 6.1 (6.12 numbers them anew)."""

DEBUG_DEFAULT_FLAGS = SLAB_CONSISTENCY_CHECKS | SLAB_RED_ZONE | SLAB_POISON | SLAB_STORE_USER
"""What ``slub_debug`` without letters switches on."""
DEBUG_METADATA_FLAGS = SLAB_RED_ZONE | SLAB_POISON | SLAB_STORE_USER
SLAB_DEBUG_FLAGS = DEBUG_METADATA_FLAGS | SLAB_TRACE | SLAB_CONSISTENCY_CHECKS
"""A cache with one of these takes the slow paths and has no CPU partial lists."""
SLAB_NO_CMPXCHG = SLAB_CONSISTENCY_CHECKS | SLAB_STORE_USER | SLAB_TRACE
SLAB_NEVER_MERGE = DEBUG_METADATA_FLAGS | SLAB_TRACE | SLAB_TYPESAFE_BY_RCU | SLAB_NOLEAKTRACE
SLAB_MERGE_SAME = SLAB_RECLAIM_ACCOUNT | SLAB_CACHE_DMA | SLAB_CACHE_DMA32 | SLAB_ACCOUNT
SLAB_CORE_FLAGS = SLAB_HWCACHE_ALIGN | SLAB_CACHE_DMA | SLAB_CACHE_DMA32 | SLAB_PANIC | SLAB_TYPESAFE_BY_RCU
CACHE_CREATE_MASK = SLAB_CORE_FLAGS | SLAB_DEBUG_FLAGS | SLAB_NOLEAKTRACE | SLAB_RECLAIM_ACCOUNT | SLAB_ACCOUNT | SLAB_NO_USER_FLAGS
"""Flags that kmem_cache_create looks at; of the permitted ones SLUB ignores SLAB_MEM_SPREAD."""
SLAB_FLAGS_PERMITTED = CACHE_CREATE_MASK | SLAB_MEM_SPREAD

GFP_DMA, GFP_DMA32, GFP_RECLAIMABLE, GFP_COMP, GFP_ACCOUNT = 0x1, 0x4, 0x10, 0x40000, 0x400000


def slab_flag_names(flags: int) -> str:
    """The names of the bits of `flags` in ascending order, joined by ``|``, unknown bits in hex; ``none`` for 0."""
    found = []
    for name, bit in SLAB_FLAG_NAMES:
        if flags & bit:
            found.append(name)
            flags &= ~bit
    return "|".join(found + ([f"0x{flags:x}"] if flags else [])) or "none"


# --- kmalloc ---------------------------------------------------------------------------------------------------------------------

KMALLOC_MIN_SIZE = 8
KMALLOC_SHIFT_LOW, KMALLOC_SHIFT_HIGH = 3, 13
KMALLOC_MAX_CACHE_SIZE = 1 << KMALLOC_SHIFT_HIGH
"""8 KiB: a larger kmalloc takes whole pages."""
KMALLOC_MAX_SIZE = 1 << (MAX_ORDER + PAGE_SHIFT - 1)
"""4 MiB: a larger kmalloc gives NULL."""
ZERO_SIZE_PTR = 16
"""What kmalloc(0) returns; kfree ignores it as it does NULL."""
KMALLOC_NORMAL, KMALLOC_CGROUP, KMALLOC_RECLAIM, KMALLOC_DMA = range(4)
"""``enum kmalloc_cache_type`` with MEMCG_KMEM and ZONE_DMA."""
KMALLOC_TYPE_PREFIX = ("kmalloc-", "kmalloc-cg-", "kmalloc-rcl-", "dma-kmalloc-")


class KmallocClass(NamedTuple):
    """A size class of kmalloc.

    :param row: row of the kernel's ``kmalloc_info`` and ``kmalloc_caches``: 1 is 96 bytes, 2 is 192, i from 3 on is 2^i.
    :param size: bytes of an object.
    :param label: the size as it stands in the caches' names, such as ``2k``.
    """

    row: int
    size: int
    label: str


def _kmalloc_class(index: int) -> KmallocClass:
    size = {0: 0, 1: 96, 2: 192}.get(index, 1 << index)
    return KmallocClass(index, size, f"{size >> 20}M" if size >= 1 << 20 else f"{size >> 10}k" if size >= 1024 else str(size))


KMALLOC_CLASSES = tuple(_kmalloc_class(index) for index in range(KMALLOC_SHIFT_HIGH + 1))
"""By index; number 0 is no cache."""

KMALLOC_CLASS_SIZES: dict[str, tuple[int, ...]] = {
    "linux-6.1": tuple(sorted(c.size for c in KMALLOC_CLASSES[1:])),
    "linux-6.1-slab": tuple(sorted(c.size for c in KMALLOC_CLASSES[1:] if c.size >= 32)),
    "linux-3.x-i386": (8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192),
}
"""The sizes of kmalloc's caches, ascending, by kernel; a larger request takes 4096 << order bytes of pages.

- ``linux-6.1``: SLUB on x86-64 (include/linux/slab.h).
- ``linux-6.1-slab``: CONFIG_SLAB, whose smallest is 32.
- ``linux-3.x-i386``: SLUB of the 3.x series with 4 KiB pages, i386: two classes that are no power of two, 96 (requests of 65 to 96 bytes) and
  192 (129 to 192), and 8 as the smallest. The public boot trace shows it by ``bytes_alloc``: of its 2211 kmalloc events requests up to 8 bytes
  get 8, 72 to 88 get 96, 104 to 128 get 128, 132 to 184 get 192, 208 to 224 get 256, 4096 gets 4096, 4098 gets 8192, 8195 to 8296 get 16384,
  32768 gets 32768 and 42284 gets 65536. From 16384 on these are pages by order, since SLUB_MAX_SIZE was two pages; whether 8192 came from a
  cache or from two pages the trace cannot tell.
"""


def kmalloc_index(size: int) -> int:
    """The row of ``kmalloc_info`` whose objects a request of `size` bytes fits into; 0 for a size of 0 (``__kmalloc_index``).

    :raises RequestError: the size is negative or above KMALLOC_MAX_CACHE_SIZE, so there is no cache for it.
    """
    if not 0 <= size <= KMALLOC_MAX_CACHE_SIZE:
        raise RequestError(f"kmalloc size {size} has no cache; expected 0 to {KMALLOC_MAX_CACHE_SIZE}, larger ones take pages")
    if 64 < size <= 96:
        return 1
    if 128 < size <= 192:
        return 2
    return max(KMALLOC_SHIFT_LOW, (size - 1).bit_length()) if size else 0


def kmalloc_type(gfp: int, memcg_kmem: bool = True, zone_dma: bool = True) -> int:
    """Which of the sets of caches a request with these flags is served from: DMA first, then RECLAIMABLE, then ACCOUNT (``kmalloc_type``).

    :param memcg_kmem: CONFIG_MEMCG_KMEM, and not switched off by ``cgroup.memory=nokmem`` or ``cgroup_disable=memory``: with these the sets
        CGROUP and NORMAL are the same caches, and NORMAL is the answer.
    """
    if zone_dma and gfp & GFP_DMA:
        return KMALLOC_DMA
    if gfp & GFP_RECLAIMABLE:
        return KMALLOC_RECLAIM
    return KMALLOC_CGROUP if memcg_kmem and gfp & GFP_ACCOUNT else KMALLOC_NORMAL


def kmalloc_name(kind: int, size: int) -> str:
    """The name of the cache of that type for a request of `size` bytes, such as ``kmalloc-cg-2k``; the size must be 1 to KMALLOC_MAX_CACHE_SIZE."""
    if not size:
        raise RequestError("kmalloc size 0 has no cache; expected at least 1, kmalloc(0) returns ZERO_SIZE_PTR")
    return KMALLOC_TYPE_PREFIX[kind] + KMALLOC_CLASSES[kmalloc_index(size)].label


def size_max(arch: SlabArch) -> int:
    """``SIZE_MAX``: the largest ``size_t``."""
    return (1 << 8 * arch.word) - 1


def kmalloc_size_roundup(size: int, arch: SlabArch = SLAB_64_BIT) -> int:
    """``kmalloc_size_roundup``: the bytes that ``kmalloc(size)`` has room for, without asking for them; 0 and SIZE_MAX stay as they are.

    Above KMALLOC_MAX_SIZE the answer is still the power of two, though kmalloc gives NULL, and above half of SIZE_MAX the kernel's shift overflows to 0.
    """
    if size in (0, size_max(arch)):
        return size
    if size > KMALLOC_MAX_CACHE_SIZE:
        return (PAGE_SIZE << get_order(size)) & size_max(arch)
    return KMALLOC_CLASSES[kmalloc_index(size)].size


def kmalloc_bytes(size: int, kernel: str = "linux-6.1") -> int:
    """``bytes_alloc`` of the trace event of ``kmalloc(size)`` without debugging: the class of `KMALLOC_CLASS_SIZES`, or pages by order.

    :raises RequestError: an unknown kernel.
    """
    if kernel not in KMALLOC_CLASS_SIZES:
        raise RequestError(f"no kmalloc classes of {kernel!r}; expected one of {', '.join(KMALLOC_CLASS_SIZES)}")
    return next((c for c in KMALLOC_CLASS_SIZES[kernel] if size <= c), PAGE_SIZE << get_order(size)) if size else 0


def kmalloc_alignment(size: int) -> int:
    """What every address of ``kmalloc(size)`` is a multiple of, without red zones: a class of 2^n bytes is aligned to 2^n, 96 to 32, 192 to 64.

    The guarantee is smaller for the latter two: 8, which is all that is left with red zones. Whole pages are aligned to their order.
    """
    rounded = kmalloc_size_roundup(size)
    return rounded & -rounded if size else ZERO_SIZE_PTR


class BootCache(NamedTuple):
    """A cache that SLUB makes while it starts: the arguments of ``create_boot_cache``, the final alignment, and what it may merge with.

    :param kind: KMALLOC_NORMAL to KMALLOC_DMA, -1 for ``kmem_cache`` and ``kmem_cache_node``.
    :param row: of `KMALLOC_CLASSES`, -1 for those two.
    :param refcount: -1 forbids merging.
    """

    name: str
    kind: int
    row: int
    object_size: int
    align: int
    flags: int
    usersize: int
    refcount: int


def create_boot_caches(nr_node_ids: int = 1, arch: SlabArch = SLAB_64_BIT) -> list[BootCache]:
    """``kmem_cache`` and ``kmem_cache_node``, in the order of the list of all caches, oldest first (``kmem_cache_init`` of 6.1).

    :param nr_node_ids: possible NUMA nodes; ``kmem_cache`` ends with a pointer for each.
    """
    sizes = {"kmem_cache": arch.kmem_cache + arch.word * nr_node_ids, "kmem_cache_node": arch.kmem_cache_node}
    return [BootCache(name, -1, -1, size, _boot_align(size, SLAB_HWCACHE_ALIGN), SLAB_HWCACHE_ALIGN, 0, -1) for name, size in sizes.items()]


def create_kmalloc_caches(memcg_kmem: bool = True, zone_dma: bool = True, nokmem: bool = False) -> list[BootCache]:
    """kmalloc's caches in the order of their creation (``create_kmalloc_caches``, ``new_kmalloc_cache``).

    Each has its whole object as its usercopy region, so none is ever merged.

    :param memcg_kmem: CONFIG_MEMCG_KMEM.
    :param zone_dma: CONFIG_ZONE_DMA.
    :param nokmem: booted with ``cgroup.memory=nokmem`` or ``cgroup_disable=memory``: no cache of type CGROUP is made.
    """
    found = []
    flags = {KMALLOC_NORMAL: 0, KMALLOC_CGROUP: SLAB_ACCOUNT, KMALLOC_RECLAIM: SLAB_RECLAIM_ACCOUNT, KMALLOC_DMA: SLAB_CACHE_DMA}
    for kind, extra in flags.items():
        if (kind == KMALLOC_CGROUP and (not memcg_kmem or nokmem)) or (kind == KMALLOC_DMA and not zone_dma):
            continue
        for index in (3, 4, 5, 6, 1, 7, 2, *range(8, KMALLOC_SHIFT_HIGH + 1)):
            size, bits = KMALLOC_CLASSES[index].size, SLAB_KMALLOC | extra
            refcount = -1 if memcg_kmem and kind == KMALLOC_NORMAL else 1
            found.append(BootCache(kmalloc_name(kind, size), kind, index, size, _boot_align(size, bits), bits, size, refcount))
    return found


def _boot_align(size: int, flags: int) -> int:
    """Caches made at boot whose size is a power of two are aligned to it, whatever debugging adds."""
    return calculate_alignment(flags, max(MINALIGN, size) if size & (size - 1) == 0 else MINALIGN, size)


# --- the geometry of a cache -----------------------------------------------------------------------------------------------------


class CacheGeometry(NamedTuple):
    """The columns of a cache that follow from its arguments, named as in ``struct kmem_cache``.

    :param flags: SLAB_* after boot options, with the kernel's own marks CMPXCHG_DOUBLE and OBJECT_POISON.
    :param object_size: bytes its users asked for.
    :param size: bytes from one object to the next, with padding and metadata.
    :param inuse: bytes up to the metadata.
    :param offset: where in a free object the pointer to the next one is kept.
    :param align: alignment of the objects.
    :param red_left_pad: bytes of red zone before each object; 0 without SLAB_RED_ZONE (where ``slub_debug=O`` has taken the flag away again, the
        kernel keeps a number here that it no longer looks at).
    :param order: pages of a slab are 1 << order.
    :param objects: objects of such a slab.
    :param min_order: order that is fallen back to when such a block is not to be had.
    :param min_objects: objects of that slab.
    :param allocflags: GFP flags that are added to every request for pages.
    :param min_partial: empty slabs are kept until the node's partial list has this many slabs.
    :param cpu_partial: free objects that a CPU's partial lists are meant to hold.
    :param cpu_partial_slabs: the same as slabs, which is what is limited.
    """

    flags: int
    object_size: int
    size: int
    inuse: int
    offset: int
    align: int
    red_left_pad: int
    order: int
    objects: int
    min_order: int
    min_objects: int
    allocflags: int
    min_partial: int
    cpu_partial: int
    cpu_partial_slabs: int


def align_up(value: int, align: int) -> int:
    """`value` rounded up to a multiple of `align`, a power of two."""
    return -(-value // align) * align


def calculate_alignment(flags: int, align: int, size: int) -> int:
    """The alignment of a cache's objects (``calculate_alignment``): what is asked for, at least 8.

    With SLAB_HWCACHE_ALIGN at least a cache line, or the part of one (a half, a quarter ...) that an object of `size` bytes still fits into.
    """
    if flags & SLAB_HWCACHE_ALIGN and size > 0:
        part = CACHE_LINE_SIZE
        while size <= part // 2:
            part //= 2
        align = max(align, part)
    return align_up(max(align, MINALIGN), MINALIGN)


def slub_cpus(present: int, possible: int) -> int:
    """The number of CPUs that slab orders depend on: those present, or if that is one, those possible (``calculate_order``)."""
    return present if present > 1 else possible


def _calc_slab_order(size: int, min_objects: int, min_order: int, max_order: int, fraction: int) -> int:
    """The smallest order for `min_objects` objects that leaves no more than 1/`fraction` of the slab over; max_order + 1 or more if there is none."""
    if (PAGE_SIZE << min_order) // size > MAX_OBJS_PER_PAGE:
        return get_order(size * MAX_OBJS_PER_PAGE) - 1
    order = max(min_order, get_order(min_objects * size))
    while order <= max_order and (PAGE_SIZE << order) % size > (PAGE_SIZE << order) // fraction:
        order += 1
    return order


def calculate_order(size: int, cpus: int, min_order: int = 0, max_order: int = 3, min_objects: int = 0, variant: str = "6.1") -> int:
    """The order of a cache's slabs (``calculate_order``), or -1 (the kernel: -ENOSYS) if no block holds an object.

    6.1 looks for an order whose slab wastes at most 1/16, then 1/8, then 1/4, and if none up to `max_order` does, asks for one object less, and so
    on down to two. 6.12 never asks for less, but goes on to 1/2 (orders at or below `max_order` only).

    :param size: of an object with its metadata.
    :param cpus: see `slub_cpus`.
    :param min_order: ``slub_min_order``.
    :param max_order: ``slub_max_order``; the kernel takes at most 10.
    :param min_objects: ``slub_min_objects``; 0: 4 * (fls(cpus) + 1).
    :param variant: ``6.1`` or ``6.12``.
    :raises RequestError: a size of 0 (by which the kernel would divide), no CPUs, an unknown variant.
    """
    if size < 1 or cpus < 1 or variant not in ("6.1", "6.12"):
        raise RequestError(f"no slab order for size {size}, {cpus} CPUs, kernel {variant}; expected at least 1 and 1, and 6.1 or 6.12")
    max_order = min(max_order, MAX_ORDER - 1)
    wanted = min_objects or 4 * (cpus.bit_length() + 1)
    most = (PAGE_SIZE << max_order) // size
    if variant == "6.12":
        start = max(min_order, get_order(min(wanted, max(most, 1)) * size))
        if (PAGE_SIZE << start) // size > MAX_OBJS_PER_PAGE:
            return get_order(size * MAX_OBJS_PER_PAGE) - 1
        for fraction in (16, 8, 4, 2):
            order = next((o for o in range(start, max_order + 1) if (PAGE_SIZE << o) % size <= (PAGE_SIZE << o) // fraction), -1)
            if order >= 0:
                return order
        return get_order(size) if get_order(size) < MAX_ORDER else -1
    for objects in range(min(wanted, most), 1, -1):
        for fraction in (16, 8, 4):
            order = _calc_slab_order(size, objects, min_order, max_order, fraction)
            if order <= max_order:
                return order
    for limit in (max_order, MAX_ORDER):
        order = _calc_slab_order(size, 1, min_order, limit, 1)
        if order <= min(limit, MAX_ORDER - 1):
            return order
    return -1


def calculate_cpu_partial(size: int, debug: bool = False) -> int:
    """``cpu_partial``: how many free objects a CPU's partial list is meant to hold (``set_cpu_partial``); none with debugging."""
    if debug:
        return 0
    return 6 if size >= PAGE_SIZE else 24 if size >= 1024 else 52 if size >= 256 else 120


def calculate_min_partial(size: int) -> int:
    """``min_partial``: half of the binary logarithm of the size, from 5 to 10."""
    return max(MIN_PARTIAL, min(MAX_PARTIAL, (size.bit_length() - 1) // 2))


class _Layout(NamedTuple):
    flags: int
    size: int
    inuse: int
    offset: int
    red_left_pad: int


def _layout(object_size: int, align: int, flags: int, ctor: bool, arch: SlabArch) -> _Layout:
    """The inside of an object's slot, from its start: left red zone, object, red zone, free pointer, tracks, padding."""
    word = arch.word
    size = align_up(object_size, word)
    flags &= ~OBJECT_POISON
    if flags & SLAB_POISON and not flags & SLAB_TYPESAFE_BY_RCU and not ctor:
        flags |= OBJECT_POISON
    if flags & SLAB_RED_ZONE and size == object_size:
        size += word
    inuse = size
    if flags & (SLAB_TYPESAFE_BY_RCU | SLAB_POISON) or (flags & SLAB_RED_ZONE and object_size < word) or ctor:
        offset = size  # behind the object, which must stay as it is while it is free
        size += word
    else:
        offset = object_size // 2 // word * word  # in the middle, away from overruns of its neighbours
    if flags & SLAB_STORE_USER:
        size += 2 * arch.track_size + (4 if flags & SLAB_KMALLOC else 0)  # kmalloc's caches also keep the size that was asked for
    pad = align_up(word, align) if flags & SLAB_RED_ZONE else 0
    if pad:
        size += word + pad
    return _Layout(flags, align_up(size, align), inuse, offset, pad)


def calculate_sizes(
    object_size: int,
    align: int,
    flags: int,
    ctor: bool,
    cpus: int,
    min_order: int = 0,
    max_order: int = 3,
    min_objects: int = 0,
    disable_higher_order_debug: bool = False,
    cpu_partial: bool = True,
    arch: SlabArch = SLAB_64_BIT,
) -> CacheGeometry | None:
    """The geometry of a cache of Linux 6.1 (``kmem_cache_open``, ``calculate_sizes``); None if no slab can hold an object (the kernel: -EINVAL).

    :param object_size: bytes of an object, at least 1.
    :param align: the final alignment, see `calculate_alignment`.
    :param flags: the final flags, see `kmem_cache_flags`.
    :param ctor: the cache has a constructor.
    :param cpus: see `slub_cpus`.
    :param min_order: ``slub_min_order``, as `max_order` and `min_objects` are ``slub_max_order`` and ``slub_min_objects``.
    :param disable_higher_order_debug: letter O of ``slub_debug``: no metadata where it would need larger pages for a single object.
    :param cpu_partial: CONFIG_SLUB_CPU_PARTIAL.
    :param arch: sizes of the kernel's structs.
    :raises RequestError: a size below 1 (6.1 divides by a size of 0), an alignment that is no power of two.
    """
    if object_size < 1 or align < 1 or align & (align - 1):
        raise RequestError(f"no cache of objects of {object_size} bytes aligned to {align}; expected at least 1 byte and a power of two")
    layout = _layout(object_size, align, flags, ctor, arch)
    if calculate_order(layout.size, cpus, min_order, max_order, min_objects) < 0:
        return None
    if disable_higher_order_debug and get_order(layout.size) > get_order(object_size):
        layout = _layout(object_size, align, flags & ~DEBUG_METADATA_FLAGS, ctor, arch)
    flags, size = layout.flags, layout.size
    order = calculate_order(size, cpus, min_order, max_order, min_objects)
    objects = (PAGE_SIZE << order) // size
    if order < 0 or not objects:
        return None
    if not flags & SLAB_NO_CMPXCHG:
        flags |= CMPXCHG_DOUBLE
    least = get_order(size)
    allocflags = GFP_COMP if order else 0
    for flag, gfp in ((SLAB_CACHE_DMA, GFP_DMA), (SLAB_CACHE_DMA32, GFP_DMA32), (SLAB_RECLAIM_ACCOUNT, GFP_RECLAIMABLE)):
        allocflags |= gfp if flags & flag else 0
    partial = calculate_cpu_partial(size, bool(flags & SLAB_DEBUG_FLAGS)) if cpu_partial else 0
    return CacheGeometry(
        flags=flags, object_size=object_size, size=size, inuse=layout.inuse, offset=layout.offset, align=align, red_left_pad=layout.red_left_pad,
        order=order, objects=objects, min_order=least, min_objects=(PAGE_SIZE << least) // size, allocflags=allocflags,
        min_partial=calculate_min_partial(size), cpu_partial=partial, cpu_partial_slabs=-(-2 * partial // objects),
    )  # fmt: skip


def slab_ksize(geometry: CacheGeometry) -> int:
    """``ksize`` of an object: all up to the next object, unless something else is kept there (``slab_ksize``)."""
    if geometry.flags & (SLAB_RED_ZONE | SLAB_POISON):
        return geometry.object_size
    return geometry.inuse if geometry.flags & (SLAB_TYPESAFE_BY_RCU | SLAB_STORE_USER) else geometry.size


# --- boot options and arguments --------------------------------------------------------------------------------------------------


class SlubDebug(NamedTuple):
    """The boot option ``slub_debug``, read.

    :param flags: debug flags of every cache.
    :param blocks: debug flags of the caches whose names match one of the patterns; a pattern is a name, or ends with ``*``.
    :param disable_higher_order: letter O.
    """

    flags: int = 0
    blocks: tuple[tuple[int, tuple[str, ...]], ...] = ()
    disable_higher_order: bool = False


DEBUG_LETTERS = {"-": 0, "f": SLAB_CONSISTENCY_CHECKS, "z": SLAB_RED_ZONE, "p": SLAB_POISON, "u": SLAB_STORE_USER, "t": SLAB_TRACE}


def parse_slub_debug(value: str | None) -> SlubDebug:
    """``slub_debug=VALUE`` of the command line (``setup_slub_debug``): blocks of letters, each with an optional list of names, separated by ``;``.

    :param value: what stands behind ``=``; None if the option stands alone, which switches all checks on. Unknown letters are skipped.
    """
    if not value:
        return SlubDebug(DEBUG_DEFAULT_FLAGS)
    everywhere, changed, higher, blocks = DEBUG_DEFAULT_FLAGS, False, False, []
    for block in filter(None, value.split(";")):
        letters, comma, names = block.partition(",")
        flags = 0 if letters else DEBUG_DEFAULT_FLAGS
        for letter in letters.lower():
            flags = 0 if letter == "-" else flags | DEBUG_LETTERS.get(letter, 0)
            higher |= letter == "o"
        if comma:
            blocks.append((flags, tuple(names.split(","))))
        else:
            everywhere, changed = flags, True
    if blocks and not changed:
        everywhere = 0
    return SlubDebug(everywhere, tuple(blocks), higher)


def kmem_cache_flags(flags: int, name: str, debug: SlubDebug) -> int:
    """`flags` with what ``slub_debug`` adds to the cache of that name (``kmem_cache_flags``)."""
    if flags & SLAB_NO_USER_FLAGS:
        return flags
    for extra, patterns in debug.blocks:
        if any(name.startswith(p.partition("*")[0]) if "*" in p else name == p for p in patterns):
            return flags | extra
    return flags | (debug.flags & ~SLAB_STORE_USER if flags & SLAB_NOLEAKTRACE else debug.flags)


class SlubConfig(NamedTuple):
    """What a kernel's slab geometry depends on besides the caches' arguments.

    :param cpus: see `slub_cpus`.
    :param nomerge: ``slab_nomerge`` or ``slub_nomerge``.
    :param arch: sizes of the kernel's structs.
    """

    cpus: int = 1
    min_order: int = 0
    max_order: int = 3
    min_objects: int = 0
    nomerge: bool = False
    nokmem: bool = False
    debug: SlubDebug = SlubDebug()
    arch: SlabArch = SLAB_64_BIT

    @classmethod
    def from_cmdline(cls, cmdline: str, cpus: int, arch: SlabArch = SLAB_64_BIT) -> SlubConfig:
        """Reads a kernel command line; words that do not concern slabs are skipped.

        :raises RequestError: a number that is none.
        """
        config, numbers = cls(cpus, arch=arch), dict[str, int]()
        for word in cmdline.split():
            key, equals, value = word.partition("=")
            if key in ("slub_min_order", "slub_max_order", "slub_min_objects") and equals:
                if not value.isdecimal():
                    raise RequestError(f"{word}: {value!r} is not a number; expected for example {key}=1")
                numbers[key] = int(value)
            elif key in ("slab_nomerge", "slub_nomerge", "slab_merge", "slub_merge"):
                config = config._replace(nomerge="nomerge" in key)
            elif key == "slub_debug":
                config = config._replace(debug=parse_slub_debug(value if equals else None))
            elif word == "cgroup_disable=memory" or (key == "cgroup.memory" and "nokmem" in value.split(",")):
                config = config._replace(nokmem=True)
        return config._replace(
            min_order=numbers.get("slub_min_order", 0), max_order=numbers.get("slub_max_order", 3), min_objects=numbers.get("slub_min_objects", 0)
        )


def kmem_cache_sanity_check(name: str | None, size: int, flags: int = 0, debug_vm: bool = False) -> int:
    """What ``kmem_cache_create`` says to its arguments before it looks further: 0, or -22 (-EINVAL; the caller gets NULL, with SLAB_PANIC the kernel stops).

    6.1 refuses flags that are not SLAB_FLAGS_PERMITTED. Only with CONFIG_DEBUG_VM (not in Debian's kernels) it also refuses no name and sizes above
    KMALLOC_MAX_SIZE; otherwise such a size fails later, when no order holds it (`calculate_sizes` returns None). A name with blanks or one that
    exists is allowed; a cache of the same name takes over its directory in /sys/kernel/slab.
    """
    if debug_vm and (name is None or size > KMALLOC_MAX_SIZE):
        return -EINVAL
    return -EINVAL if flags & ~SLAB_FLAGS_PERMITTED else 0


def usercopy_region(size: int, useroffset: int, usersize: int) -> tuple[int, int]:
    """(useroffset, usersize) as ``kmem_cache_create_usercopy`` takes them: none at all, with a warning, if they do not lie in the object."""
    if (not usersize and useroffset) or size < usersize or size - usersize < useroffset:
        return 0, 0
    return useroffset, usersize


def new_cache(name: str, size: int, align: int = 0, flags: int = 0, ctor: bool = False, config: SlubConfig = SlubConfig()) -> CacheGeometry | None:
    """The geometry of the cache that ``kmem_cache_create`` makes of these arguments if it does not merge it (see `find_mergeable`).

    :returns: None where the kernel returns NULL with -EINVAL: forbidden flags, or an object that no slab can hold.
    :raises RequestError: see `calculate_sizes`.
    """
    if kmem_cache_sanity_check(name, size, flags):
        return None
    flags &= CACHE_CREATE_MASK
    return open_cache(name, size, calculate_alignment(flags, align, size), flags, ctor, config)


def open_cache(name: str, size: int, align: int, flags: int, ctor: bool = False, config: SlubConfig = SlubConfig()) -> CacheGeometry | None:
    """`calculate_sizes` with the boot options of `config`; for caches whose alignment is final, such as a `BootCache`."""
    return calculate_sizes(
        size, align, kmem_cache_flags(flags, name, config.debug), ctor, config.cpus, config.min_order, config.max_order, config.min_objects,
        config.debug.disable_higher_order, arch=config.arch,
    )  # fmt: skip


# --- merging ---------------------------------------------------------------------------------------------------------------------


class MergeCandidate(Protocol):
    """What merging looks at in an existing cache."""

    @property
    def flags(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def ctor(self) -> int: ...
    @property
    def usersize(self) -> int: ...
    @property
    def refcount(self) -> int: ...


class Mergeable(NamedTuple):
    """A `MergeCandidate` as a tuple."""

    flags: int
    size: int
    ctor: int = 0
    usersize: int = 0
    refcount: int = 1


def cache_flags_for_merge(flags: int, name: str, debug: SlubDebug = SlubDebug()) -> int:
    """The flags of a cache to be made as merging compares them: those that kmem_cache_create looks at, and what ``slub_debug`` adds."""
    return kmem_cache_flags(flags & CACHE_CREATE_MASK, name, debug)


def slab_unmergeable(cache: MergeCandidate, nomerge: bool = False) -> bool:
    """Whether an existing cache is for itself for ever (``slab_unmergeable``): by its flags, a constructor, a usercopy region, or kmalloc's refcount of -1."""
    return bool(nomerge or cache.flags & SLAB_NEVER_MERGE or cache.ctor or cache.usersize or cache.refcount < 0)


def find_mergeable(
    caches: Iterable[MergeCandidate],
    size: int,
    align: int,
    flags: int,
    name: str,
    ctor: bool = False,
    usersize: int = 0,
    nomerge: bool = False,
    debug: SlubDebug = SlubDebug(),
    arch: SlabArch = SLAB_64_BIT,
) -> int | None:
    """The position in `caches` of the cache that a new one of these arguments becomes an alias of (``find_mergeable``), None if it is made.

    It then gets ``refcount`` + 1, ``object_size`` = max(object_size, size), ``inuse`` = max(inuse, size rounded up to a word).

    :param caches: all caches that exist, oldest first.
    :param align: as asked for.
    :param usersize: of the usercopy region, 0 if there is none.
    """
    if nomerge or ctor or usersize:
        return None
    size = align_up(size, arch.word)
    align = calculate_alignment(flags, align, size)
    size = align_up(size, align)
    flags = cache_flags_for_merge(flags, name, debug)
    if flags & SLAB_NEVER_MERGE:
        return None
    for position, cache in enumerate(caches):
        if slab_unmergeable(cache) or (flags ^ cache.flags) & SLAB_MERGE_SAME:
            continue
        if 0 <= cache.size - size < arch.word and not cache.size & (align - 1):
            return position
    return None


def sysfs_id(flags: int, size: int) -> str:
    """The directory of a mergeable cache in /sys/kernel/slab, such as ``:A-0000064``; its names are links to it (``create_unique_id``).

    :param size: with padding and metadata.
    """
    letters = "".join(
        letter
        for letter, flag in (
            ("d", SLAB_CACHE_DMA), ("D", SLAB_CACHE_DMA32), ("a", SLAB_RECLAIM_ACCOUNT), ("F", SLAB_CONSISTENCY_CHECKS), ("A", SLAB_ACCOUNT),
        )
        if flags & flag
    )  # fmt: skip
    return f":{letters}{'-' if letters else ''}{size:07d}"


def sysfs_name(name: str, cache: MergeCandidate, config: SlubConfig = SlubConfig()) -> str:
    """The directory of a cache in /sys/kernel/slab: its name, or for one that others may become aliases of its `sysfs_id` (``sysfs_slab_add``)."""
    if slab_unmergeable(cache, config.nomerge) or (config.debug.disable_higher_order and config.debug.flags & DEBUG_METADATA_FLAGS):
        return name
    return sysfs_id(cache.flags, cache.size)
