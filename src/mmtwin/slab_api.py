"""The slab allocator of a machine: kmalloc and its family, caches, and what /proc/slabinfo says.

`SlabAllocator` is the part of `Machine` that hands out objects. Addresses are kernel virtual addresses, plain integers; they lie in the direct
map, so that ``address - PAGE_OFFSET`` is the physical address.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mmtwin import procfs
from mmtwin.errors import AllocationFailure, BadFree, CacheBusy, DoubleFree, RequestError, WrongCache
from mmtwin.gfp import GFP_KERNEL, gfp_names
from mmtwin.mm import slab_common
from mmtwin.mm.handle import address_table
from mmtwin.mm.kmalloc import KMALLOC_MAX_CACHE_SIZE, ZERO_SIZE_PTR
from mmtwin.mm.page_alloc import EAGAIN, ENOENT
from mmtwin.mm.slab_common import KMALLOC_MAX_SIZE, SIZE_MAX, CacheGeometry, SlubConfig
from mmtwin.mm.slab_entry import (
    EBUSY,
    alloc_bulk_entry,
    cache_alloc_entry,
    cache_free_entry,
    destroy_entry,
    free_bulk_entry,
    kfree_entry,
    kmalloc_entry,
    object_entry,
    shrink_entry,
)
from mmtwin.mm.slab_tables import ALLOCATED, END, KMALLOC_INDEXES, MAX_CACHES, SLAB_LIVE, Slub, new_slub, reserve
from mmtwin.mm.slub import NO_ROOM
from mmtwin.mm.tables import Pgdat
from mmtwin.units import PAGE_SIZE, format_size, get_order

if TYPE_CHECKING:
    import polars as pl

GFP_ZERO = 0x100
GFP_NOWARN = 0x2000
GFP_DMA32_HIGHMEM = 0x6
GFP_TYPES = 0x18
"""__GFP_MOVABLE and __GFP_RECLAIMABLE: together no migrate type."""
GFP_MASK = 0xFFFFFF
NULL_POINTERS = (0, ZERO_SIZE_PTR)


@dataclass(frozen=True)
class KmemCache:
    """A slab cache: what ``kmem_cache_create`` returned. Two that were merged are the same cache under different names.

    :ivar id: row in the machine's cache table.
    :ivar name: as it was created; /proc/slabinfo shows the name of the one it was merged with.
    :ivar object_size: bytes of an object, as asked for.
    :ivar ctor: called with the address of each object of a new slab, or None.
    :ivar merged_with: the name of the cache that it was merged with, "" if it is one of its own.
    """

    id: int
    name: str
    object_size: int
    ctor: Callable[[int], None] | None = field(default=None, compare=False)
    merged_with: str = ""


def _whole(value: int, what: str) -> int:
    """`value` as an int. :raises RequestError: it is no whole number."""
    try:
        return operator.index(value)
    except TypeError:
        raise RequestError(f"{what} {value!r}: expected a whole number") from None


class SlabAllocator:
    """kmalloc, caches and slabinfo, over `slub` (the slab tables) and `state` (the page allocator's).

    :ivar slub: the slab tables (`mm.slab_tables.Slub`).
    :ivar slab_config: boot options that decide the caches' geometry.
    :ivar PAGE_OFFSET: where the direct map begins.
    """

    state: Pgdat
    slub: Slub
    cpus: int
    _contexts: int

    if TYPE_CHECKING:  # of the machine's other parts
        wait_for_memory: Callable[[int, int, Callable[[], int]], int]

    def _set_slub(self, slub: Slub, names: list[str], config: SlubConfig) -> None:
        self.slub, self._cache_names, self.slab_config = slub, names, config
        self.PAGE_OFFSET = int(slub.config[0]["page_offset"]) & SIZE_MAX
        self._ctors: dict[int, Callable[[int], None]] = {}
        self._bind()

    def _bind(self) -> None:
        self._table = address_table(self.state, self.slub)
        self._handle = self._table.ctypes.data

    def __getstate__(self) -> dict[str, object]:
        """Without addresses of memory, which mean nothing to an unpickled machine."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_table", "_handle")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._bind()

    def _grow(self) -> None:
        """Room for many more slabs."""
        most = int(self.slub.cache["objects"].max(initial=1))
        self.slub = reserve(self.slub, 1024, max(1 << 16, 2 * most))
        self._bind()

    # kmalloc

    def kmalloc(self, size: int, gfp: int = GFP_KERNEL, cpu: int = 0) -> int:
        """``kmalloc``: `size` bytes of physically contiguous kernel memory, aligned to 8 bytes, or to the size if that is a power of two.

        :param size: bytes; 0 gives ZERO_SIZE_PTR (16), which `kfree` accepts.
        :param gfp: GFP flags.
        :param cpu: the CPU the caller runs on.
        :returns: the address.
        :raises AllocationFailure: Linux returns NULL: above 4 MiB, or no memory (``.status``).
        :raises RequestError: a negative size, no such flags or CPU.
        """
        if (
            not self._contexts
            and cpu.__class__ is int
            and 0 <= cpu < self.cpus
            and gfp.__class__ is int
            and 0 <= gfp <= GFP_MASK
            and gfp & GFP_TYPES != GFP_TYPES
            and size.__class__ is int
            and 0 < size <= KMALLOC_MAX_SIZE
        ):
            physical = kmalloc_entry(self._handle, size, gfp, cpu)
            if physical >= 0:
                return int(physical) + self.PAGE_OFFSET
        return self._kmalloc_slow(size, gfp, cpu)

    def _kmalloc_slow(self, size: int, gfp: int, cpu: int) -> int:
        size, cpu, gfp = _whole(size, "size"), self._slab_cpu(cpu), self._slab_gfp(gfp)
        if size < 0:
            raise RequestError(f"size {size}: expected 0 or more bytes")
        if size == 0:
            return ZERO_SIZE_PTR
        if size > KMALLOC_MAX_SIZE:
            text = f"kmalloc({size}): above KMALLOC_MAX_SIZE ({KMALLOC_MAX_SIZE} bytes): Linux warns once and returns NULL; use vmalloc or kvmalloc"
            raise AllocationFailure(text, -12, get_order(size), gfp, "order too large")
        if self._contexts:
            gfp = self._may_allocate(gfp, cpu, f"kmalloc({size})")
        physical = NO_ROOM
        while physical == NO_ROOM:
            physical = int(kmalloc_entry(self._handle, size, gfp, cpu))
            if physical == NO_ROOM:
                self._grow()
            elif physical < 0:
                physical = self.wait_for_memory(physical, cpu, lambda: int(kmalloc_entry(self._handle, size, gfp, cpu)))
        if physical < 0:
            raise self._slab_failure(physical, f"kmalloc({size})", self._kmalloc_cache(size, gfp), size, gfp, cpu)
        return physical + self.PAGE_OFFSET

    def kzalloc(self, size: int, gfp: int = GFP_KERNEL, cpu: int = 0) -> int:
        """``kzalloc``: `kmalloc` with __GFP_ZERO."""
        return self.kmalloc(size, self._slab_gfp(gfp) | GFP_ZERO, cpu)

    def kmalloc_array(self, n: int, size: int, gfp: int = GFP_KERNEL, cpu: int = 0) -> int:
        """``kmalloc_array``: an array of `n` elements.

        :raises AllocationFailure: also when the product does not fit a ``size_t`` (Linux returns NULL).
        """
        n, size, gfp, cpu = _whole(n, "number"), _whole(size, "size"), self._slab_gfp(gfp), self._slab_cpu(cpu)
        if n < 0 or size < 0:
            raise RequestError(f"{n} elements of {size} bytes: expected 0 or more")
        if n * size > slab_common.size_max(self.slab_config.arch):
            bits = 8 * self.slab_config.arch.word
            raise AllocationFailure(f"kmalloc_array({n}, {size}): the product overflows {bits} bits: Linux returns NULL", -12, 0, gfp, "overflow")
        return self.kmalloc(n * size, gfp, cpu)

    def kcalloc(self, n: int, size: int, gfp: int = GFP_KERNEL, cpu: int = 0) -> int:
        """``kcalloc``: `kmalloc_array` with __GFP_ZERO."""
        return self.kmalloc_array(n, size, self._slab_gfp(gfp) | GFP_ZERO, cpu)

    def krealloc(self, address: int, size: int, gfp: int = GFP_KERNEL, cpu: int = 0) -> int:
        """``krealloc``: the same address if the object is large enough already (it never shrinks), else a new one; the old one is freed.

        `size` 0 frees and gives ZERO_SIZE_PTR; `address` 0 or ZERO_SIZE_PTR is `kmalloc`.
        """
        address, size, gfp, cpu = _whole(address, "address"), _whole(size, "size"), self._slab_gfp(gfp), self._slab_cpu(cpu)
        if size < 0:
            raise RequestError(f"size {size}: expected 0 or more bytes")
        if size == 0:
            self.kfree(address, cpu)
            return ZERO_SIZE_PTR
        if address not in NULL_POINTERS and self.ksize(address) >= size:
            return address
        new = self.kmalloc(size, gfp, cpu)
        if address not in NULL_POINTERS:
            self._copy(address, new, min(self.ksize(address), size))
            self.kfree(address, cpu)
        return new

    def _copy(self, source: int, target: int, size: int) -> None:
        """Contents go along when a machine keeps them."""

    def kfree(self, address: int, cpu: int = 0) -> None:
        """``kfree``: gives back what kmalloc or any cache handed out; 0 and ZERO_SIZE_PTR are ignored.

        :raises DoubleFree: it is free already.
        :raises BadFree: nothing that was handed out begins at this address.
        """
        if not (cpu.__class__ is int and 0 <= cpu < self.cpus):
            cpu = self._slab_cpu(cpu)
        if address.__class__ is not int:
            address = _whole(address, "address")
        if address in NULL_POINTERS:
            return
        error = kfree_entry(self._handle, self._physical(address), cpu)
        if error:
            raise self._bad_object(int(error), address, "kfree")

    def kfree_bulk(self, addresses: Iterable[int], cpu: int = 0) -> None:
        """``kfree_bulk``: as kfree_rcu frees; neighbours in the list that lie in the same slab are freed together.

        :raises DoubleFree: one is free already, or listed twice.
        :raises BadFree: one is no object. In either case nothing is freed.
        """
        self._free_bulk(-1, addresses, cpu)

    def ksize(self, address: int) -> int:
        """``ksize``: usable bytes at an address that kmalloc or a cache returned; 0 for 0 and ZERO_SIZE_PTR.

        :raises BadFree: nothing that was handed out begins there.
        """
        address = _whole(address, "address")
        if address in NULL_POINTERS:
            return 0
        cache, _row, slot, allocated = object_entry(self._handle, self._physical(address))
        if cache >= 0 and slot >= 0 and allocated:
            return slab_common.slab_ksize(self._geometry(cache))
        if cache < 0 and slot < 0 and allocated == 0:
            pfn = self._physical(address) // PAGE_SIZE
            if address % PAGE_SIZE == 0 and self._is_large(pfn):
                return PAGE_SIZE << int(self.state.page[pfn]["order"])
        raise self._bad_object(-EBUSY if cache >= 0 else -22, address, "ksize")

    def _is_large(self, pfn: int) -> bool:
        return 0 <= pfn < int(self.state.config[0]["nr_frames"]) and int(self.state.page[pfn]["flags"]) & 4 != 0

    def kmalloc_size_roundup(self, size: int) -> int:
        """``kmalloc_size_roundup``: the bytes that kmalloc(size) really gives."""
        return slab_common.kmalloc_size_roundup(_whole(size, "size"), self.slab_config.arch)

    # Caches

    def kmem_cache_create(
        self,
        name: str,
        size: int,
        align: int = 0,
        flags: int = 0,
        ctor: Callable[[int], None] | None = None,
        *,
        useroffset: int = 0,
        usersize: int = 0,
    ) -> KmemCache:
        """``kmem_cache_create``: a cache of objects of one size, or one that exists already and fits (merging).

        :param size: bytes of an object.
        :param align: alignment, a power of two; 0: a word, with SLAB_HWCACHE_ALIGN a cache line or the part of one that an object fits into.
        :param flags: SLAB_* of `mm.slab_common`.
        :param ctor: constructor, called with each object's address when a slab is new.
        :param useroffset: with `usersize` the region that may be copied to user space (``kmem_cache_create_usercopy``); a cache with one is never merged.
        :raises RequestError: where the kernel returns NULL with -EINVAL: impossible size, alignment or flags.
        """
        size, align, flags = _whole(size, "size"), _whole(align, "alignment"), _whole(flags, "flags")
        useroffset, usersize = slab_common.usercopy_region(size, _whole(useroffset, "useroffset"), _whole(usersize, "usersize"))
        if ctor is not None and not callable(ctor):
            raise RequestError(f"kmem_cache_create({name!r}): constructor {ctor!r}: expected a function of an object's address")
        if not isinstance(name, str) or not name:
            raise RequestError(f"kmem_cache_create({name!r}): expected a name")
        if size < 1 or align < 0 or align & (align - 1):
            raise RequestError(f"kmem_cache_create({name!r}): {size} bytes aligned to {align}; expected at least 1 byte and a power of two")
        config = self.slab_config
        cache = self.slub.cache
        count = int(self.slub.config[0]["caches"])
        live = [i for i in range(count) if int(cache[i]["live"])]
        candidates = [slab_common.Mergeable(*(int(cache[i][c]) for c in ("flags", "size", "ctor", "usersize", "refcount"))) for i in live]
        found = slab_common.find_mergeable(candidates, size, align, flags, name, ctor is not None, usersize, config.nomerge, config.debug, config.arch)
        if slab_common.kmem_cache_sanity_check(name, size, flags) == 0 and found is not None:
            row = cache[live[found]]
            row["refcount"] = int(row["refcount"]) + 1
            row["object_size"] = max(int(row["object_size"]), size)
            row["inuse"] = max(int(row["inuse"]), slab_common.align_up(size, config.arch.word))
            return KmemCache(live[found], name, size, None, self._cache_names[live[found]])
        geometry = slab_common.new_cache(name, size, align, flags, ctor is not None, config)
        if geometry is None:
            raise RequestError(
                f"kmem_cache_create({name!r}, {size}, {align}, 0x{flags:x}) failed with error -22: no slab can hold such an object, or the flags are not allowed"
            )
        if count == MAX_CACHES:
            raise RequestError(f"kmem_cache_create({name!r}): this machine has {MAX_CACHES} caches, the most that it can have")
        number = self._add_cache(name, geometry, usersize, 1, ctor is not None)
        if ctor is not None:
            self._ctors[number] = ctor
        return KmemCache(number, name, size, ctor)

    def _add_cache(self, name: str, geometry: CacheGeometry, usersize: int, refcount: int, ctor: bool = False) -> int:
        """A row for a new cache, with a permutation of its own (SLAB_FREELIST_RANDOM)."""
        number = int(self.slub.config[0]["caches"])
        row = self.slub.cache[number]
        for column, value in geometry._asdict().items():
            row[column] = value
        row["usersize"], row["refcount"], row["ctor"], row["live"], row["random_seq"] = usersize, refcount, ctor, 1, -1
        for column in ("nr_partial", "nr_slabs", "total_objects"):
            row[column] = 0
        self.slub.config[0]["caches"] = number + 1
        if geometry.objects > 1:
            row["random_seq"] = len(self.slub.random)
            self.slub = self.slub._replace(random=np.concatenate([self.slub.random, self._permutation(geometry.objects)]))
        self._cache_names.append(name)
        self._bind()
        if geometry.flags & slab_common.SLAB_DEBUG_FLAGS:
            self._watched()
        return number

    def _permutation(self, count: int) -> npt.NDArray[np.int32]:
        """``freelist_randomize``: Fisher-Yates from the end, with the machine's own random numbers."""
        order, config = list(range(count)), self.slub.config[0]
        for i in range(count - 1, 0, -1):
            config["random_state"] = int(config["random_state"]) * 48271 % 2147483647
            j = int(config["random_state"]) % (i + 1)
            order[i], order[j] = order[j], order[i]
        return np.array(order, dtype=np.int32)

    def kmem_cache_alloc(self, cache: KmemCache, gfp: int = GFP_KERNEL, cpu: int = 0) -> int:
        """``kmem_cache_alloc``: an object's address.

        :raises AllocationFailure: no memory.
        :raises RequestError: the cache was destroyed or is another machine's, or no such flags or CPU.
        """
        number, cpu, gfp = self._cache(cache), self._slab_cpu(cpu), self._slab_gfp(gfp)
        if self._contexts:
            gfp = self._may_allocate(gfp, cpu, f"kmem_cache_alloc({cache.name!r})")
        slabs = int(self.slub.cache[number]["nr_slabs"])
        physical = NO_ROOM
        while physical == NO_ROOM:
            physical = int(cache_alloc_entry(self._handle, number, gfp, cpu))
            if physical == NO_ROOM:
                self._grow()
            elif physical < 0:
                physical = self.wait_for_memory(physical, cpu, lambda: int(cache_alloc_entry(self._handle, number, gfp, cpu)))
        if physical < 0:
            raise self._slab_failure(physical, f"kmem_cache_alloc({cache.name!r})", number, cache.object_size, gfp, cpu)
        ctor = cache.ctor or self._ctors.get(number)
        if ctor is not None and int(self.slub.cache[number]["nr_slabs"]) > slabs:
            self._construct(number, physical, ctor)
        return physical + self.PAGE_OFFSET

    def _construct(self, number: int, physical: int, ctor: Callable[[int], None]) -> None:
        """Calls the constructor for all objects of a new slab, in the order in which they will be handed out."""
        _, row, slot, _ = object_entry(self._handle, physical)
        slab, cache = self.slub.slab[row], self.slub.cache[number]
        base = self.phys_to_virt(int(slab["pfn"]) * PAGE_SIZE) + int(cache["red_left_pad"])
        k = self.slub.cpu[number * self.cpus : (number + 1) * self.cpus]
        heads = [int(x["freelist"]) for x in k if int(x["slab"]) == row] or [int(slab["freelist"])]
        order, at = [slot], heads[0]
        while at >= 0:
            order.append(at)
            at = int(self.slub.slot[int(slab["slots"]) + at])
        for number_in_slab in order:
            ctor(base + number_in_slab * int(cache["size"]))

    def kmem_cache_zalloc(self, cache: KmemCache, gfp: int = GFP_KERNEL, cpu: int = 0) -> int:
        """``kmem_cache_zalloc``: `kmem_cache_alloc` with __GFP_ZERO."""
        return self.kmem_cache_alloc(cache, self._slab_gfp(gfp) | GFP_ZERO, cpu)

    def kmem_cache_free(self, cache: KmemCache, address: int, cpu: int = 0) -> None:
        """``kmem_cache_free``.

        :raises WrongCache: the object belongs to another cache.
        :raises DoubleFree: it is free already.
        :raises BadFree: no object begins there.
        """
        number, cpu = self._cache(cache), self._slab_cpu(cpu)
        error = int(cache_free_entry(self._handle, number, self._physical(address), cpu))
        if error == -ENOENT:
            other = self._cache_names[object_entry(self._handle, self._physical(address))[0]]
            raise WrongCache(f"cache_from_obj: Wrong slab cache. {cache.name} but object is from {other}: 0x{address:x}")
        if error:
            raise self._bad_object(error, address, "kmem_cache_free")

    def kmem_cache_alloc_bulk(self, cache: KmemCache, n: int, gfp: int = GFP_KERNEL, cpu: int = 0) -> list[int]:
        """``kmem_cache_alloc_bulk``: `n` objects, or none.

        :raises AllocationFailure: not all could be had; those that could are given back.
        """
        number, cpu, gfp, n = self._cache(cache), self._slab_cpu(cpu), self._slab_gfp(gfp), _whole(n, "number of objects")
        most = int(self.state.config[0]["nr_frames"]) * PAGE_SIZE // int(self.slub.cache[number]["size"])
        if not 0 <= n <= most:
            raise RequestError(f"{n} objects: expected 0 to {most}, what this machine's memory has room for")
        if self._contexts:
            gfp = self._may_allocate(gfp, cpu, f"kmem_cache_alloc_bulk({cache.name!r})")
        if cache.ctor is not None or number in self._ctors:
            objects: list[int] = []
            try:
                while len(objects) < n:
                    objects.append(self.kmem_cache_alloc(cache, gfp, cpu))
            except BaseException:
                self._free_bulk(number, objects, cpu)
                raise
            return objects
        out = np.zeros(n, dtype=np.int64)
        done = 0
        while done < n:
            done += int(alloc_bulk_entry(self._handle, number, gfp, cpu, out[done:]))
            if done < n and int(out[done]) == NO_ROOM:
                self._grow()
            elif done < n and self._bulk_may_go_on(number, gfp, cpu, out, done):
                done += 1
            elif done < n:
                error = int(out[done])
                self._free_bulk(number, (out[:done] + self.PAGE_OFFSET if done else []), cpu)
                raise self._slab_failure(error, f"kmem_cache_alloc_bulk({cache.name!r}, {n})", number, cache.object_size, gfp, cpu)
        return [int(p) + self.PAGE_OFFSET for p in out]

    def _bulk_may_go_on(self, number: int, gfp: int, cpu: int, out: npt.NDArray[np.int64], done: int) -> bool:
        """A bulk request came to an object for which there was no memory: whether it got this one after waiting."""
        out[done] = self.wait_for_memory(int(out[done]), cpu, lambda: int(cache_alloc_entry(self._handle, number, gfp, cpu)))
        return int(out[done]) >= 0

    def kmem_cache_free_bulk(self, cache: KmemCache, addresses: Iterable[int], cpu: int = 0) -> None:
        """``kmem_cache_free_bulk``; errors as `kfree_bulk`, and WrongCache."""
        self._free_bulk(self._cache(cache), addresses, cpu)

    def _free_bulk(self, number: int, addresses: Iterable[int], cpu: int) -> None:
        cpu = self._slab_cpu(cpu)
        try:
            listed = [_whole(a, "address") for a in addresses]
        except TypeError:
            raise RequestError(f"addresses {addresses!r}: expected a list of addresses") from None
        seen: set[int] = set()
        for address in listed:
            if address in seen:
                raise DoubleFree(f"0x{address:x} is twice in the list; nothing was freed")
            seen.add(address)
        physical = np.array([self._physical(a) for a in listed], dtype=np.int64)
        if int(free_bulk_entry(self._handle, number, cpu, physical)):
            for address in listed:
                self._check_object(address, number)
            raise BadFree("one of these addresses is no object; nothing was freed")

    def _check_object(self, address: int, number: int) -> None:
        cache, _, slot, allocated = object_entry(self._handle, self._physical(address))
        if cache >= 0 and number >= 0 and cache != number and allocated:
            raise WrongCache(f"cache_from_obj: Wrong slab cache. {self._cache_names[number]} but object is from {self._cache_names[cache]}: 0x{address:x}")
        if cache >= 0 and not allocated:
            raise self._bad_object(-EBUSY, address, "kmem_cache_free_bulk")
        if slot < 0 and (allocated < 0 or number >= 0 or address % PAGE_SIZE or not self._is_large(self._physical(address) // PAGE_SIZE)):
            raise self._bad_object(-22, address, "kmem_cache_free_bulk")

    def kmem_cache_size(self, cache: KmemCache) -> int:
        """``kmem_cache_size``: bytes of an object, without metadata."""
        return int(self.slub.cache[self._cache(cache)]["object_size"])

    def kmem_cache_shrink(self, cache: KmemCache, cpu: int = 0) -> int:
        """``kmem_cache_shrink``: every CPU gives its slabs up, empty ones go back to the page allocator, the fullest come first.

        :returns: slabs that are left (the kernel: whether any are).
        """
        return int(shrink_entry(self._handle, self._cache(cache), self._slab_cpu(cpu)))

    def kmem_cache_destroy(self, cache: KmemCache, cpu: int = 0) -> None:
        """``kmem_cache_destroy``: all its slabs go back to the page allocator. One that others were merged with only loses a user.

        :raises CacheBusy: there are still objects; the cache stays, only its empty slabs are gone.
        :raises RequestError: one of kmalloc's caches, or no cache of this machine.
        """
        number, cpu = self._cache(cache), self._slab_cpu(cpu)
        row = self.slub.cache[number]
        if int(row["refcount"]) < 0 or int(row["flags"]) & slab_common.SLAB_KMALLOC:
            raise RequestError(f"kmem_cache_destroy({cache.name!r}): the allocator itself uses this cache; destroy only what kmem_cache_create made")
        if int(row["refcount"]) > 1:
            row["refcount"] = int(row["refcount"]) - 1
            return
        if int(destroy_entry(self._handle, number, cpu)):
            left = int(row["total_objects"])
            raise CacheBusy(f"kmem_cache_destroy {cache.name}: Slab cache still has objects (in {int(row['nr_slabs'])} slabs of {left} objects)")
        row["live"] = 0
        self._ctors.pop(number, None)

    def kmem_caches(self) -> dict[str, KmemCache]:
        """All caches by name, the oldest first."""
        rows = self.slub.cache
        live = (i for i in range(int(self.slub.config[0]["caches"])) if int(rows[i]["live"]))
        return {self._cache_names[i]: KmemCache(i, self._cache_names[i], int(rows[i]["object_size"]), self._ctors.get(i)) for i in live}

    # State

    def slabinfo(self) -> str:
        """/proc/slabinfo: newest cache first. As in Linux, objects that are free in CPU slabs and on CPU partial lists count as active."""
        return procfs.slabinfo(self.slub, self._cache_names)

    def slab_frame(self, what: str) -> pl.DataFrame:
        """`Machine.frame` of "caches" (one row per cache with its geometry and counts), "slabs" (every slab) or "objects" (every object that is
        handed out: cache, address)."""
        import polars as pl

        count = int(self.slub.config[0]["caches"])
        names = np.array(self._cache_names or [""])
        if what == "caches":
            live = np.flatnonzero(self.slub.cache["live"][:count])
            return pl.DataFrame({"cache": names[live], **{c: self.slub.cache[c][live] for c in self.slub.cache.dtype.names or () if c != "live"}})
        rows = MAX_CACHES + np.flatnonzero(self.slub.slab["state"][MAX_CACHES:] == SLAB_LIVE)
        slab = self.slub.slab[rows]
        cache = self.slub.cache[slab["cache"]]
        address = (slab["pfn"] * PAGE_SIZE + cache["red_left_pad"]).astype(np.uint64) + np.uint64(self.PAGE_OFFSET)
        if what == "slabs":
            columns = {c: slab[c] for c in ("pfn", "order", "objects", "inuse", "frozen")}
            return pl.DataFrame({"cache": names[slab["cache"]], "address": address, **columns}).sort("pfn")
        index = np.repeat(np.arange(len(rows)), slab["objects"])
        slot = np.arange(len(index)) - np.repeat(np.cumsum(slab["objects"]) - slab["objects"], slab["objects"])
        taken = self.slub.slot[slab["slots"][index] + slot] == ALLOCATED
        index, slot = index[taken], slot[taken]
        where = address[index] + (slot * cache["size"][index]).astype(np.uint64)
        return pl.DataFrame({"cache": names[slab["cache"][index]], "address": where}).sort("address")

    # What a caller got wrong

    def _cpu(self, cpu: int) -> int:
        raise NotImplementedError

    def _may_allocate(self, gfp: int, cpu: int, what: str = "") -> int:
        """The flags that are left in this context (`contexts.Contexts`). :raises SleepingInAtomic: it may sleep where that is forbidden."""
        raise NotImplementedError

    def _no_reclaim(self, cpu: int, what: str = "") -> int:
        """The error of a request that must wait for memory. :raises SchedulingWhileAtomic: where it cannot."""
        raise NotImplementedError

    def _watched(self) -> object:
        """From now on contents are kept and debugged caches checked."""
        raise NotImplementedError

    def phys_to_virt(self, physical: int) -> int:
        """The address in the direct map."""
        raise NotImplementedError

    def _slab_cpu(self, cpu: int) -> int:
        return self._cpu(_whole(cpu, "CPU"))

    def _physical(self, address: int) -> int:
        at = _whole(address, "address") - self.PAGE_OFFSET
        return at if -(1 << 62) < at < 1 << 62 else -1

    def _cache(self, cache: KmemCache) -> int:
        if (
            not isinstance(cache, KmemCache)
            or not 0 <= cache.id < int(self.slub.config[0]["caches"])
            or not int(self.slub.cache[cache.id]["live"])
            or self._cache_names[cache.id] != (cache.merged_with or cache.name)
        ):
            raise RequestError(f"{cache!r}: no cache of this machine; kmem_cache_create makes one, kmem_caches() lists them")
        return cache.id

    def _slab_gfp(self, gfp: int) -> int:
        gfp = _whole(gfp, "gfp")
        if gfp < 0 or gfp & ~GFP_MASK:
            raise RequestError(f"gfp 0x{gfp:x}: bits 0x{gfp & ~GFP_MASK & SIZE_MAX:x} are no GFP flags")
        if gfp & GFP_TYPES == GFP_TYPES:
            raise RequestError(f"gfp 0x{gfp:x} ({gfp_names(gfp)}): __GFP_MOVABLE and __GFP_RECLAIMABLE exclude each other")
        return gfp

    def _kmalloc_cache(self, size: int, gfp: int) -> int:
        if size > KMALLOC_MAX_CACHE_SIZE:
            return -1
        return int(self.slub.kmalloc[slab_common.kmalloc_type(gfp) * KMALLOC_INDEXES + slab_common.kmalloc_index(size)])

    def _geometry(self, number: int) -> CacheGeometry:
        row = self.slub.cache[number]
        return CacheGeometry(*(int(row[c]) for c in CacheGeometry._fields))

    def _slab_failure(self, error: int, what: str, number: int, size: int, gfp: int, cpu: int) -> AllocationFailure:
        words = f"{what}, mode:0x{gfp:x}({gfp_names(gfp)}), CPU {cpu}"
        if error == -EAGAIN and self._contexts:
            error = self._no_reclaim(cpu, what)
        status = "needs reclaim" if error == -EAGAIN else "failed"
        if number < 0:
            return AllocationFailure(f"{words}: no block of {format_size(size)} in one piece", error, get_order(size), gfp, status)
        row = self.slub.cache[number]
        text = (
            f"SLUB: Unable to allocate memory on node -1, gfp=0x{gfp:x}({gfp_names(gfp)}): {words}: cache: {self._cache_names[number]}, object size: "
            f"{int(row['object_size'])}, buffer size: {int(row['size'])}, default order: {int(row['order'])}, min order: {int(row['min_order'])}; "
            f"node 0: slabs: {int(row['nr_slabs'])}, objs: {int(row['total_objects'])}"
        )
        return AllocationFailure(text, error, int(row["min_order"]), gfp, status)

    def _bad_object(self, error: int, address: int, call: str) -> DoubleFree | BadFree:
        at = f"0x{operator.index(address) & SIZE_MAX:0{2 * self.slab_config.arch.word}x}"
        if error == -EBUSY:
            number = object_entry(self._handle, self._physical(address))[0]
            return DoubleFree(f"BUG {self._cache_names[number]} (Not tainted): Object already free: {call}({at})")
        pfn = self._physical(address) // PAGE_SIZE
        inside = self._slab_row(pfn)
        if inside != END:
            slab = self.slub.slab[inside]
            name = self._cache_names[int(slab["cache"])]
            return BadFree(f"BUG {name} (Not tainted): Invalid object pointer {at}: {call} of an address inside an object or slab; free what was returned")
        return BadFree(f"object pointer: {at}: {call} of an address that neither kmalloc nor a cache has handed out")

    def _slab_row(self, pfn: int) -> int:
        if not 0 <= pfn < int(self.state.config[0]["nr_frames"]):
            return END
        entry = self.state.page[pfn]
        return int(entry["next"]) if int(entry["flags"]) & 64 else END


def boot_caches(config: SlubConfig) -> list[slab_common.BootCache]:
    """``kmem_cache``, ``kmem_cache_node`` and kmalloc's caches, oldest first."""
    return [*slab_common.create_boot_caches(arch=config.arch), *slab_common.create_kmalloc_caches(True, True, config.nokmem)]


def new_allocator(cpus: int, page_offset: int, config: SlubConfig) -> tuple[Slub, list[str], list[CacheGeometry]]:
    """The slab allocator as it starts: tables that know kmalloc's caches, and names and geometries of the caches to be added, by id.

    :raises RequestError: no slab between slub_min_order and slub_max_order holds an object of one of them.
    """
    slub, names, found = new_slub(cpus, page_offset), list[str](), list[CacheGeometry]()
    for cache in boot_caches(config):
        geometry = slab_common.open_cache(cache.name, cache.object_size, cache.align, cache.flags, False, config)
        if geometry is None:
            raise RequestError(f"cache {cache.name}: no slab order between slub_min_order and slub_max_order holds an object")
        if cache.kind >= 0:
            slub.kmalloc[cache.kind * KMALLOC_INDEXES + cache.row] = len(names)
        names.append(cache.name)
        found.append(geometry)
    missing = slub.kmalloc == END
    slub.kmalloc[missing] = np.tile(slub.kmalloc[:KMALLOC_INDEXES], len(slub.kmalloc) // KMALLOC_INDEXES)[missing]  # nokmem: the ordinary ones
    return slub, names, found
