"""A small machine with a slab allocator, for tests below the Machine's own interface: everything runs in the interpreter, nothing is compiled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmtwin.machine import boot
from mmtwin.mm import kmalloc as rules
from mmtwin.mm import slub
from mmtwin.mm.slab_common import CacheGeometry, calculate_alignment, calculate_sizes, create_kmalloc_caches
from mmtwin.mm.slab_tables import KMALLOC_INDEXES, Slub, new_slub, reserve
from mmtwin.mm.slub import NO_ROOM, SLOT_BITS, SLOT_MASK
from mmtwin.mm.tables import Pgdat
from mmtwin.mm.validate import validate
from mmtwin.mm.validate_slub import validate_slub

GFP_KERNEL = 0xCC0
PAGE_OFFSET = 0xFFFF888000000000


class SlubMachine:
    """Page tables, slab tables and the calls on both, as `mm` has them.

    :param caches: name, object size, alignment and flags of further caches.
    :param shuffled: fresh slabs follow a permutation (SLAB_FREELIST_RANDOM).
    """

    def __init__(
        self, ram: str = "64MiB", cpus: int = 1, caches: Sequence[tuple[str, int, int, int]] = (), shuffled: bool = False, kmalloc: bool = True, slabs: int = 64
    ) -> None:
        self.pages: Pgdat = boot(ram=ram, cpus=cpus, reserved=()).state
        self.slub: Slub = new_slub(cpus, PAGE_OFFSET, slabs=slabs, slots=1 << 10)
        self.cpus, self.names = cpus, list[str]()
        self.random = np.random.default_rng(1) if shuffled else None
        for boot_cache in create_kmalloc_caches() if kmalloc else ():
            number = self.add(boot_cache.name, boot_cache.object_size, boot_cache.align, boot_cache.flags)
            self.slub.kmalloc[boot_cache.kind * KMALLOC_INDEXES + boot_cache.row] = number
        for name, size, align, flags in caches:
            self.add(name, size, calculate_alignment(flags, align, size), flags)
        self.validate()

    def add(self, name: str, size: int, align: int, flags: int) -> int:
        """One more cache; its number."""
        number, geometry = len(self.names), calculate_sizes(size, align, flags, False, self.cpus)
        assert isinstance(geometry, CacheGeometry)
        row = self.slub.cache[number]
        for column, value in geometry._asdict().items():
            row[column] = value
        row["live"], row["refcount"], row["random_seq"] = 1, 1, -1
        if self.random is not None:
            row["random_seq"] = len(self.slub.random)
            self.slub = self.slub._replace(random=np.append(self.slub.random, self.random.permutation(geometry.objects)).astype(np.int32))
        self.slub.config["caches"] = number + 1
        self.names.append(name)
        return number

    def validate(self) -> None:
        """Both allocators."""
        validate_slub(self.slub, self.pages)
        validate(self.pages)

    def __getitem__(self, name: str) -> int:
        return self.names.index(name)

    def room(self) -> None:
        """As the Machine does when the tables are full."""
        self.slub = reserve(self.slub, 64, 1 << 12)

    def alloc(self, cache: int, cpu: int = 0, gfp: int = GFP_KERNEL) -> int:
        """A packed object, or a negative error."""
        while (packed := slub.slab_alloc(self.pages, self.slub, cache, cpu, gfp)) == NO_ROOM:
            self.room()
        return packed

    def free(self, packed: int, cpu: int = 0) -> None:
        """One object."""
        slot = packed & SLOT_MASK
        slub.slab_free(self.pages, self.slub, cpu, packed >> SLOT_BITS, slot, slot, 1)

    def free_bulk(self, objects: Sequence[int], cpu: int = 0) -> None:
        """Packed objects, and large allocations as negative physical addresses."""
        slub.free_bulk(self.pages, self.slub, cpu, np.array(objects, dtype=np.int64))

    def shrink(self, cache: int, cpu: int = 0) -> None:
        slub.shrink(self.pages, self.slub, cache, cpu)

    def flush(self, cache: int, cpu: int) -> None:
        slub.flush_cpu(self.pages, self.slub, cache, cpu)

    def kmalloc(self, size: int, gfp: int = GFP_KERNEL, cpu: int = 0) -> int:
        """A physical address, or a negative error."""
        while (physical := rules.kmalloc(self.pages, self.slub, size, gfp, cpu)) == NO_ROOM:
            self.room()
        return physical

    def kfree(self, physical: int, cpu: int = 0) -> int:
        return rules.kfree(self.pages, self.slub, physical, cpu)

    def packed(self, physical: int) -> int:
        """The object at a physical address."""
        return slub.object_at(self.pages, self.slub, physical + int(self.slub.config[0]["page_offset"]))

    def free_pages(self) -> int:
        """Free page frames, on all lists."""
        state = self.pages
        return int(state.zone["nr_free_pages"].sum() + state.pcp["nr_free_pages_diff"].sum() + state.pcp["count"].sum())

    def partial(self, cache: int) -> list[int]:
        """Rows on the node's partial list."""
        found, at = list[int](), int(self.slub.slab[cache]["next"])
        while at != cache:
            found.append(at)
            at = int(self.slub.slab[at]["next"])
        return found

    def cpu_partial(self, cache: int, cpu: int = 0) -> list[int]:
        """Rows on a CPU's partial list."""
        found, at = list[int](), int(self.slub.cpu[cache * self.cpus + cpu]["partial"])
        while at != -1:
            found.append(at)
            at = int(self.slub.slab[at]["next"])
        return found
