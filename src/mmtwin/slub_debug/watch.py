"""What stands between a machine and its allocator while contents are kept, a cache is debugged or KASAN is on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmtwin import errors
from mmtwin.errors import SlubError
from mmtwin.mm.slab_common import SLAB_STORE_USER
from mmtwin.mm.slab_tables import ALLOCATED, END
from mmtwin.slub_debug.kasan import Kasan
from mmtwin.slub_debug.objects import GFP_ZERO, Findings
from mmtwin.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    import polars as pl

    from mmtwin.machine import Machine
    from mmtwin.slab_api import KmemCache


class Watch(Kasan):
    """Contents of a machine's memory, and the checks of its debugged caches."""

    def copy(self, machine: Machine) -> Watch:
        """The same for a copy of the machine."""
        other = Watch(machine, self.kasan)
        other.memory, other.clock, other.tainted = self.memory.copy(), self.clock, self.tainted
        other.owners, other.live, other._known = {at: replace(owner) for at, owner in self.owners.items()}, set(self.live), dict(self._known)
        return other

    # What the machine's methods become

    def install(self) -> None:
        """From now on the machine's requests come here first."""
        names = ("kmalloc", "kfree", "kmem_cache_alloc", "kmem_cache_free", "kmem_cache_alloc_bulk", "_free_bulk", "kmem_cache_shrink", "kmem_cache_destroy")
        for name in (*names, "krealloc", "alloc_pages", "_copy"):
            self.machine.__dict__[name] = getattr(self, name)

    def _plain(self, name: str) -> Callable[..., Any]:
        """The machine's own method."""
        method: Callable[..., Any] = getattr(type(self.machine), name).__get__(self.machine)
        return method

    def _allocate(self, number: int, asked: int, gfp: int, cpu: int, call: Callable[[], int]) -> int:
        self.clock += 1
        if number < 0:
            address = call()
            if gfp & GFP_ZERO and address > PAGE_SIZE:
                self.memory.fill(address - self.machine.PAGE_OFFSET, asked)
            return address
        cache, found = self._layout(number), Findings()
        if cache.debug:
            self._before_alloc(found, cache, cpu)
        address = call()
        self._after_alloc(cache, address - self.machine.PAGE_OFFSET, asked, gfp, cpu)
        found.throw(address)
        return address

    def kmalloc(self, size: int, gfp: int = 0xCC0, cpu: int = 0) -> int:
        """`Machine.kmalloc`. :raises SlubError: the object that would have been handed out was written, and so on."""
        good = isinstance(size, int) and isinstance(gfp, int) and size > 0
        number = self.machine._kmalloc_cache(size, gfp) if good else -1
        return self._allocate(number, size, gfp, cpu, lambda: int(self._plain("kmalloc")(size, gfp, cpu)))

    def krealloc(self, address: int, size: int, gfp: int = 0xCC0, cpu: int = 0) -> int:
        """`Machine.krealloc`: an object that stays where it is now has the new size."""
        new = int(self._plain("krealloc")(address, size, gfp, cpu))
        owner = self.owners.get(new - self.machine.PAGE_OFFSET)
        if owner is not None and size:
            owner.asked = size
        return new

    def kmem_cache_alloc(self, cache: KmemCache, gfp: int = 0xCC0, cpu: int = 0) -> int:
        """`Machine.kmem_cache_alloc`."""
        number = self.machine._cache(cache)
        return self._allocate(number, cache.object_size, gfp, cpu, lambda: int(self._plain("kmem_cache_alloc")(cache, gfp, cpu)))

    def kmem_cache_alloc_bulk(self, cache: KmemCache, n: int, gfp: int = 0xCC0, cpu: int = 0) -> list[int]:
        """`Machine.kmem_cache_alloc_bulk`."""
        number = self.machine._cache(cache)
        if self._layout(number).debug:
            return [self.kmem_cache_alloc(cache, gfp, cpu) for _ in range(n)]
        self.clock += 1
        addresses: list[int] = self._plain("kmem_cache_alloc_bulk")(cache, n, gfp, cpu)
        for address in addresses:
            self._after_alloc(self._layout(number), address - self.machine.PAGE_OFFSET, cache.object_size, gfp, cpu)
        return addresses

    def _free(self, address: int, cpu: int, call: Callable[[], None]) -> None:
        self.clock += 1
        physical = self.machine._physical(address)
        row = self._row_of(physical)
        if row == END:
            call()
            return
        cache, found = self._cache_of(row), Findings()
        if self.kasan:
            self.check_free(physical, cpu)
        if not cache.debug or self._before_free(found, cache, row, physical, cpu):
            call()
            self.live.discard(physical)
            owner = self.owners.get(physical)
            if owner is not None and self.kasan:
                owner.free = self.track(cpu)
            self._forget(row)
        found.throw()

    def kfree(self, address: int, cpu: int = 0) -> None:
        """`Machine.kfree`. :raises SlubError: the object or its surroundings were written, it is free already, no object begins there."""
        if address not in (0, 16):
            self._free(address, cpu, lambda: self._plain("kfree")(address, cpu))

    def kmem_cache_free(self, cache: KmemCache, address: int, cpu: int = 0) -> None:
        """`Machine.kmem_cache_free`. :raises WrongCacheReported: the object is of another cache, to which it was freed."""
        number, physical = self.machine._cache(cache), self.machine._physical(address)
        row = self._row_of(physical)
        if row == END or int(self.machine.slub.slab[row]["cache"]) == number or not (self._cache_of(row).debug or self._layout(number).debug):
            self._free(address, cpu, lambda: self._plain("kmem_cache_free")(cache, address, cpu))
            return
        own, found = self._cache_of(row), Findings()
        what = f"cache_from_obj: Wrong slab cache. {self._layout(number).name} but object is from {own.name}"
        warning = ["------------[ cut here ]------------", what, f"WARNING: CPU: {cpu} PID: 0 at mm/slab.h cache_from_obj", *self._dump_stack(cpu)]
        lines = [*warning, "---[ end trace 0000000000000000 ]---", *self._tracking(own, physical)]
        found.add(errors.WrongCacheReported, f"{what}: 0x{self._hex(self._virtual(physical))}", lines)
        try:
            self.kfree(address, cpu)
        except SlubError as error:
            found.lines += error.report.splitlines()
        found.throw()

    def _free_bulk(self, number: int, addresses: Iterable[int], cpu: int) -> None:
        listed = list(addresses)
        rows = [self._row_of(self.machine._physical(address)) for address in listed]
        if any(row != END and self._cache_of(row).debug for row in rows) or len(set(listed)) < len(listed):
            caches = self.machine.kmem_caches() if number >= 0 else {}
            own = next((cache for cache in caches.values() if cache.id == number), None)
            first: SlubError | None = None
            for address in listed:
                try:
                    self.kfree(address, cpu) if own is None else self.kmem_cache_free(own, address, cpu)
                except SlubError as error:
                    if first is None:
                        first = error
                    else:
                        first.report += error.report
            if first is not None:
                raise first
            return
        self.clock += 1
        if self.kasan:
            for address in listed:
                self.check_free(self.machine._physical(address), cpu)
        self._plain("_free_bulk")(number, listed, cpu)
        for address, row in zip(listed, rows, strict=True):
            at = self.machine._physical(address)
            self.live.discard(at)
            if self.kasan and at in self.owners:
                self.owners[at].free = self.track(cpu)
            if row != END:
                self._forget(row)

    def kmem_cache_shrink(self, cache: KmemCache, cpu: int = 0) -> int:
        """`Machine.kmem_cache_shrink`: slabs that go are looked at once more."""
        self.clock += 1
        number, found = self.machine._cache(cache), Findings()
        rows = self._partial(number)
        if self._layout(number).debug:
            for row in reversed(rows):
                if not int(self.machine.slub.slab[row]["inuse"]):
                    self._discard_checks(found, self._layout(number), row, self._info(row), cpu)
        left = int(self._plain("kmem_cache_shrink")(cache, cpu))
        for row in rows:
            self._forget(row)
        found.throw(left)
        return left

    def kmem_cache_destroy(self, cache: KmemCache, cpu: int = 0) -> None:
        """`Machine.kmem_cache_destroy`. :raises ObjectsRemaining: with the objects and their owners."""
        self.clock += 1
        number, found = self.machine._cache(cache), Findings()
        layout, rows, slab = self._layout(number), self._partial(number), self.machine.slub.slab
        last = int(self.machine.slub.cache[number]["refcount"]) <= 1
        if layout.debug and last:
            for row in rows:
                if int(slab[row]["inuse"]):
                    self.ensure(row)
                    what = f"Objects remaining in {layout.name} on __kmem_cache_shutdown()"
                    self._slab_err(found, errors.ObjectsRemaining, layout, row, what, self._info(row), cpu)
                    for slot in range(int(slab[row]["objects"])):
                        if self._next(row, slot) == ALLOCATED:
                            at = self._at(layout, row, slot)
                            found.lines.append(f"Object 0x{self._hex(self._virtual(at))} @offset={at - self._base(row)}")
                            found.lines += self._tracking(layout, at)
            for row in reversed(rows):
                if not int(slab[row]["inuse"]):
                    self._discard_checks(found, layout, row, self._info(row), cpu)
        try:
            self._plain("kmem_cache_destroy")(cache, cpu)
        except errors.CacheBusy as error:
            if not layout.debug:
                raise
            text = f"kmem_cache_destroy {layout.name}: Slab cache still has objects when called from {self.track(cpu).site}"
            warning = [
                "------------[ cut here ]------------",
                text,
                f"WARNING: CPU: {cpu} PID: 0 at mm/slab_common.c kmem_cache_destroy",
                *self._dump_stack(cpu),
            ]
            found.add(errors.ObjectsRemaining, str(error), [*warning, "---[ end trace 0000000000000000 ]---"])
            found.first = (errors.ObjectsRemaining, str(error))
        for row in rows:
            self._forget(row)
        if not int(self.machine.slub.cache[number]["live"]):
            self._layouts.pop(number, None)
        found.throw()

    def alloc_pages(self, order: int, gfp: int, cpu: int = 0) -> int:
        """`Machine.alloc_pages`: __GFP_ZERO clears the pages."""
        pfn = int(self._plain("alloc_pages")(order, gfp, cpu))
        if gfp & GFP_ZERO:
            self.memory.fill(pfn << PAGE_SHIFT, PAGE_SIZE << order)
        return pfn

    def _copy(self, source: int, target: int, size: int) -> None:
        self.memory.write(target - self.machine.PAGE_OFFSET, self.memory.read(source - self.machine.PAGE_OFFSET, size))

    # Contents

    def _lay_out(self, physical: int, n: int) -> None:
        for at in range(physical & -PAGE_SIZE, physical + max(n, 1), PAGE_SIZE):
            row = self._row_of(at)
            if row != END:
                self.ensure(row)

    def read(self, physical: int, n: int) -> bytes:
        """Bytes at a physical address. :raises KasanError: with KASAN, some must not be read."""
        self.memory._check(physical, n)
        self._lay_out(physical, n)
        if self.kasan:
            self.check_access(physical, n, False)
        return self.memory.read(physical, n)

    def write(self, physical: int, data: bytes) -> None:
        """Writes, as the kernel does, also where KASAN then reports it. :raises KasanError: with KASAN, some must not be written."""
        self.memory._check(physical, len(data))
        self._lay_out(physical, len(data))
        try:
            if self.kasan:
                self.check_access(physical, len(data), True)
        finally:
            self.memory.write(physical, data)

    def stores_users(self) -> bool:
        """Whether any cache records owners."""
        cache = self.machine.slub.cache
        return bool((cache["flags"][: int(self.machine.slub.config[0]["caches"])] & SLAB_STORE_USER).any())

    def leaks(self, by: str = "callsite") -> pl.DataFrame:
        """What is live, by who allocated it: as ``alloc_traces`` in /sys/kernel/debug/slab, the most objects first."""
        import polars as pl

        rows = []
        for at in sorted(self.live):
            owner, row = self.owners[at], self._row_of(at)
            if row != END and owner.alloc is not None:
                cache = self._cache_of(row)
                rows.append((owner.alloc.site, cache.name, cache.object_size, owner.asked, self.clock - owner.alloc.when, self._virtual(at)))
        schema = {"callsite": pl.String, "cache": pl.String, "bytes": pl.Int64, "requested": pl.Int64, "age": pl.Int64, "address": pl.UInt64}
        frame = pl.DataFrame(rows, schema=schema, orient="row")
        if by == "object":
            return frame
        keys = ["callsite", "cache"] if by == "callsite" else ["cache"]
        table = frame.group_by(keys, maintain_order=True).agg(
            pl.len().cast(pl.Int64).alias("objects"), pl.col("bytes").sum(), (pl.col("bytes") - pl.col("requested")).sum().alias("waste"),
            pl.col("age").min().alias("age_min"), pl.col("age").mean().alias("age_mean"), pl.col("age").max().alias("age_max"),
        )  # fmt: skip
        return table.sort(["objects", *keys], descending=[True] + [False] * len(keys))
