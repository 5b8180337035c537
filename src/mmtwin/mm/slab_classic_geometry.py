"""How the classic SLAB allocator lays out a cache: order, objects per slab, where the management data is, colours, and the sizes of the arrays.

Plain arithmetic. Rules by variant:

- ``2.6.24`` and ``3.6``: a descriptor and a chain of 4-byte indices before the objects, or off the slab for objects of an eighth of a page or more
  (mm/slab.c of those kernels, kmem_cache_create, calculate_slab_order, cache_estimate).
- ``6.1``: an array of one-byte indices behind the objects, inside a free object, or off the slab (mm/slab.c of 6.1, __kmem_cache_create).
- ``1994``: Bonwick's paper (USENIX Summer 1994, section 3 and 4): a descriptor at the slab's end, the chain inside the free objects.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

PAGE_SIZE = 4096
MAX_PAGE_ORDER = 10
"""KMALLOC_MAX_ORDER."""
SLAB_HWCACHE_ALIGN = 0x2000
SLAB_CACHE_DMA = 0x4000
SLAB_CACHE_DMA32 = 0x8000
SLAB_RECLAIM_ACCOUNT = 0x20000
SLAB_TYPESAFE_BY_RCU = 0x80000
SLAB_NOLEAKTRACE = 0x800000
"""Flags of kmem_cache_create that change the layout (include/linux/slab.h; the same bits in all variants)."""
CFLGS_OBJFREELIST_SLAB = 0x40000000
CFLGS_OFF_SLAB = 0x80000000
"""What `kmem_cache.flags` of 6.1 says about the place of the indices."""

GFP_DMA, GFP_DMA32, GFP_RECLAIMABLE, GFP_COMP = 0x1, 0x4, 0x10, 0x40000

ON_SLAB, OFF_SLAB, IN_OBJECT = 0, 1, 2
"""Where a slab's management data is: on the slab, in an object of a kmalloc cache, inside a free object of the slab itself (6.1 only)."""

SLAB_OBJ_MAX_NUM = 255
SLAB_OBJ_MIN_SIZE = 16
"""6.1 with pages of 4 KiB: indices are one byte, so objects are at least 16 bytes and at most 255 to a slab."""
KMALLOC_SIZES = (32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192)
"""kmalloc caches of 6.1 with SLAB (KMALLOC_MIN_SIZE is 32)."""
GENERAL_SIZES = (32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
"""Sizes of the general caches ``size-N`` of 2.6.24 and 3.6 (include/linux/kmalloc_sizes.h); 96 and 192 only where a cache line is shorter than 64 and
128 bytes."""

Variant = Literal["1994", "2.6.24", "3.6", "6.1"]
VARIANTS: tuple[Variant, ...] = ("1994", "2.6.24", "3.6", "6.1")


class SlabGeometry(NamedTuple):
    """A cache's layout. Sizes in bytes.

    :param size: distance between objects.
    :param align: of objects.
    :param order: a slab has 2^order pages.
    :param num: objects per slab.
    :param colour: number of colours; 0 and 1 both mean that every slab starts at offset 0.
    :param colour_off: distance between colours.
    :param management: `ON_SLAB`, `OFF_SLAB` or `IN_OBJECT`.
    :param header: bytes between the slab's (coloured) start and its first object.
    :param management_size: bytes of the management data (6.1: ``freelist_size``; older: ``slab_size``).
    :param left_over: bytes of a slab that are neither objects nor management data.
    :param allocflags: GFP bits added to every page request.
    """

    size: int
    align: int
    order: int
    num: int
    colour: int
    colour_off: int
    management: int
    header: int
    management_size: int
    left_over: int
    allocflags: int


class ArrayLimits(NamedTuple):
    """``limit`` and ``batchcount`` of a CPU's array and ``shared``; the shared array holds ``shared * batchcount`` objects."""

    limit: int
    batchcount: int
    shared: int


def _align(value: int, to: int) -> int:
    return (value + to - 1) // to * to


def general_sizes(variant: Variant, cache_line: int = 64) -> tuple[int, ...]:
    """Sizes of the kmalloc (``size-N``) caches that management data off the slab comes from."""
    if variant == "6.1":
        return KMALLOC_SIZES
    return tuple(s for s in GENERAL_SIZES if (s != 96 or cache_line < 64) and (s != 192 or cache_line < 128))


def general_size(bytes_: int, sizes: tuple[int, ...]) -> int:
    """The size of the general cache that serves `bytes_`; whole pages above the largest."""
    for size in sizes:
        if bytes_ <= size:
            return size
    order = 0
    while PAGE_SIZE << order < bytes_:
        order += 1
    return PAGE_SIZE << order


def slab_alignment(flags: int, align: int, size: int, cache_line: int = 64, word: int = 8, minalign: int = 0) -> int:
    """The alignment of a cache's objects: the caller's, the cache line's (halved while two objects fit in half of it) with SLAB_HWCACHE_ALIGN, and a word.

    :param minalign: ARCH_SLAB_MINALIGN; 0 stands for a word (x86 has no other; 6.1 has 8, the alignment of a long long).
    """
    found = word
    if flags & SLAB_HWCACHE_ALIGN:
        line = cache_line
        while size <= line // 2:
            line //= 2
        found = max(found, line)
    return _align(max(found, align, minalign), word)


def array_limits(size: int, possible_cpus: int, debug: bool = False) -> ArrayLimits:
    """``enable_cpucache``: the arrays of a cache whose objects are `size` bytes apart. `debug`: CONFIG_DEBUG_SLAB."""
    limit = 1 if size > 131072 else 8 if size > PAGE_SIZE else 24 if size > 1024 else 54 if size > 256 else 120
    if debug:
        limit = min(limit, 32)
    return ArrayLimits(limit, (limit + 1) // 2, 8 if size <= PAGE_SIZE and possible_cpus > 1 else 0)


def free_limit(cpus: int, batchcount: int, num: int) -> int:
    """Free objects a node keeps: beyond them, slabs that become empty are given back (init_cache_node, alloc_kmemlist)."""
    return (1 + cpus) * batchcount + num


def slab_geometry(
    object_size: int,
    align: int = 0,
    flags: int = 0,
    variant: Variant = "6.1",
    *,
    ctor: bool = False,
    max_order: int = 1,
    early: bool = False,
    word: int = 8,
    cache_line: int = 64,
) -> SlabGeometry:
    """The layout of a cache.

    :param object_size: bytes asked for.
    :param align: alignment asked for, 0 for none; 6.1's ``kmem_cache.align`` may be given as well.
    :param flags: SLAB_* flags of kmem_cache_create.
    :param ctor: the cache has a constructor (6.1: the indices then never lie in an object).
    :param max_order: ``slab_max_order``: 1 on machines with more than 32 MiB, else 0, or as the boot option ``slab_max_order`` says.
    :param early: one of the first two caches of 2.6.24 or 3.6, whose descriptors are never off the slab (``slab_early_init``).
    :param word: bytes of a pointer: 4 (i386) or 8.
    :param cache_line: of the processor.
    :raises ValueError: an unknown variant, a size that is not positive, or one that no slab can hold.
    """
    if variant not in VARIANTS:
        raise ValueError(f"no SLAB variant {variant!r}; known: {', '.join(VARIANTS)}")
    if object_size <= 0 or align < 0 or align & (align - 1):
        raise ValueError(f"object size {object_size} and alignment {align}: the size must be positive, the alignment a power of two or 0")
    if variant == "1994":
        return _bonwick(object_size, align or word)
    size = _align(object_size, word)
    alignment = slab_alignment(flags, align, size if variant != "6.1" else object_size, cache_line, word)
    step = max(cache_line, alignment)
    if variant == "6.1":
        return _geometry_61(object_size, size, alignment, step, flags, ctor, max_order)
    return _geometry_36(size, alignment, step, flags, max_order, early or (variant == "3.6" and bool(flags & SLAB_NOLEAKTRACE)), word)


def _bonwick(size: int, align: int) -> SlabGeometry:
    size, header = _align(size, align), 32
    num = (PAGE_SIZE - header) // size
    if num < 8:
        raise ValueError(f"object size {size}: the paper's layout on the slab is for objects below an eighth of a page")
    left = PAGE_SIZE - header - num * size
    return SlabGeometry(size, align, 0, num, left // align + 1, align, ON_SLAB, 0, header, left, 0)


def _accepted(order: int, left: int, flags: int, max_order: int) -> bool:
    """Whether calculate_slab_order stops at this order."""
    return bool(flags & SLAB_RECLAIM_ACCOUNT) or order >= max_order or left * 8 <= PAGE_SIZE << order


def _geometry_36(size: int, align: int, step: int, flags: int, max_order: int, on_slab: bool, word: int) -> SlabGeometry:
    descriptor, index = {4: 28, 8: 48}[word], 4
    off = size >= PAGE_SIZE >> 3 and not on_slab
    size = _align(size, align)
    order = num = left = 0
    for candidate in range(MAX_PAGE_ORDER + 1):
        slab = PAGE_SIZE << candidate
        if off:
            n = slab // size
            rest = slab - n * size
        else:
            n = (slab - descriptor) // (size + index)
            if n > 0 and _align(descriptor + n * index, align) + n * size > slab:
                n -= 1
            rest = slab - n * size - _align(descriptor + n * index, align)
        if n <= 0:
            continue
        if off and n > (size - descriptor) // index:
            break
        order, num, left = candidate, n, rest
        if _accepted(candidate, rest, flags, max_order):
            break
    if not num:
        raise ValueError(f"object size {size}: no slab of up to {PAGE_SIZE << MAX_PAGE_ORDER} bytes holds it")
    management = _align(descriptor + num * index, align)
    if off and left >= management:
        off, left = False, left - management
    if off:
        management = descriptor + num * index
    dma = GFP_DMA if flags & SLAB_CACHE_DMA else 0
    return SlabGeometry(
        size, align, order, num, left // step, step, OFF_SLAB if off else ON_SLAB, 0 if off else management, management, left, dma
    )  # fmt: skip


def _slab_order_61(object_size: int, size: int, management: int, flags: int, max_order: int) -> tuple[int, int, int]:
    """``calculate_slab_order``: order, objects and left-over bytes; no objects if this place for the indices is impossible."""
    order = num = left = 0
    for candidate in range(MAX_PAGE_ORDER + 1):
        n, rest = divmod(PAGE_SIZE << candidate, size + (management == ON_SLAB))
        if n == 0:
            continue
        if n > SLAB_OBJ_MAX_NUM:
            break
        if management == OFF_SLAB and general_size(n, KMALLOC_SIZES) > object_size // 2:
            continue
        order, num, left = candidate, n, rest
        if _accepted(candidate, rest, flags, max_order):
            break
    return order, num, left


def _geometry_61(object_size: int, size: int, align: int, step: int, flags: int, ctor: bool, max_order: int) -> SlabGeometry:
    size = _align(size, align)
    if size < SLAB_OBJ_MIN_SIZE:
        size = _align(SLAB_OBJ_MIN_SIZE, align)
    for management in (IN_OBJECT, OFF_SLAB, ON_SLAB):
        if (management == IN_OBJECT and (ctor or flags & SLAB_TYPESAFE_BY_RCU)) or (management == OFF_SLAB and flags & SLAB_NOLEAKTRACE):
            continue
        order, num, left = _slab_order_61(object_size, size, management, flags, max_order)
        if num and not (management == IN_OBJECT and num > object_size) and not (management == OFF_SLAB and left >= num):
            break
    else:
        raise ValueError(f"object size {object_size}: no slab of up to {PAGE_SIZE << MAX_PAGE_ORDER} bytes holds it")
    bits = ((SLAB_CACHE_DMA, GFP_DMA), (SLAB_CACHE_DMA32, GFP_DMA32), (SLAB_RECLAIM_ACCOUNT, GFP_RECLAIMABLE))
    allocflags = GFP_COMP | sum(gfp for flag, gfp in bits if flags & flag)
    return SlabGeometry(size, align, order, num, left // step, step, management, 0, num, left, allocflags)


def colour_offsets(geometry: SlabGeometry, slabs: int, variant: Variant = "6.1") -> list[int]:
    """Where the first `slabs` slabs of a cache start: the colour of each, in bytes.

    6.1 steps the colour before it uses it, so its first slab has colour 1 (if there is more than one); the others use colour 0 first.
    """
    colours = max(geometry.colour, 1)
    first = 1 if variant == "6.1" else 0
    return [(first + i) % colours * geometry.colour_off for i in range(slabs)]
