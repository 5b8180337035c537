"""What the allocators of a machine do inside a call, as the kernel's tracepoints would show it: `Machine.events`.

Requests are named as the kernel names its tracepoints (include/trace/events/kmem.h) and come in its order: a kmalloc is told after the slab's pages that it
needed, a kfree before the pages that it gives back. What the kernel does without a tracepoint has names of its own: ``alloc_pages_bulk``, ``alloc_vmap_area``,
``set_pte``, ``flush_tlb_kernel_range``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from mmtwin.mm.slub import first_gfp
from mmtwin.units import PAGE_SIZE, get_order

if TYPE_CHECKING:
    from mmtwin.machine import Machine
    from mmtwin.slab_api import KmemCache


class Event(NamedTuple):
    """One step.

    :param kind: the tracepoint's name.
    :param address: of the object or area; the page frame number of pages.
    :param bytes_req: bytes asked for.
    :param bytes_alloc: bytes given.
    :param gfp: flags of the request.
    :param order: of pages; the number of pages or entries where they come many at a time.
    :param name: of the slab cache, or of the area's user.
    """

    kind: str
    address: int = 0
    bytes_req: int = 0
    bytes_alloc: int = 0
    gfp: int = 0
    order: int = 0
    name: str = ""

    def __str__(self) -> str:
        parts = [self.kind, f"0x{self.address:x}"]
        parts += [f"bytes_req={self.bytes_req}", f"bytes_alloc={self.bytes_alloc}"] if self.bytes_req else []
        parts += [f"order={self.order}"] if self.kind.startswith("mm_page") else [f"nr={self.order}"] if self.order else []
        parts += [f"gfp=0x{self.gfp:x}"] if self.gfp else []
        return " ".join(parts + ([f"name={self.name}"] if self.name else []))


class Tracer:
    """Stands in for a machine's requests while they are watched; each does its work and then notes it (a free: before)."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.events = machine, list[Event]()

    def note(self, kind: str, **what: Any) -> None:
        """Adds a step."""
        self.events.append(Event(kind, **what))

    def _with_slab_pages(self, number: int, gfp: int, work: Callable[[], int]) -> int:
        """Does `work` on a cache and notes the pages of slabs that it made or gave back."""
        cache = self.machine.slub.cache[number]
        before = int(cache["nr_slabs"])
        address = work()
        for _ in range(int(cache["nr_slabs"]) - before):
            self.note("mm_page_alloc", address=self.machine.virt_to_phys(address) // PAGE_SIZE, gfp=first_gfp(cache, gfp), order=int(cache["order"]))
        return address

    def kmalloc(self, size: int, gfp: int, cpu: int, plain: Callable[[int, int, int], int]) -> int:
        """`Machine.kmalloc`."""
        number = self.machine._kmalloc_cache(size, gfp) if size > 0 else -1
        if number >= 0:
            address = self._with_slab_pages(number, gfp, lambda: plain(size, gfp, cpu))
            given = int(self.machine.slub.cache[number]["size"])
        else:
            address = plain(size, gfp, cpu)
            order = get_order(max(size, 1))
            given = PAGE_SIZE << order
            if size > 0:
                self.note("mm_page_alloc", address=self.machine.virt_to_phys(address) // PAGE_SIZE, gfp=gfp | 0x40000, order=order)
        if size > 0:
            self.note("kmalloc", address=address, bytes_req=size, bytes_alloc=given, gfp=gfp)
        return address

    def kmem_cache_alloc(self, cache: KmemCache, gfp: int, cpu: int, plain: Callable[[KmemCache, int, int], int]) -> int:
        """`Machine.kmem_cache_alloc`."""
        address = self._with_slab_pages(cache.id, gfp, lambda: plain(cache, gfp, cpu))
        row = self.machine.slub.cache[cache.id]
        self.note("kmem_cache_alloc", address=address, bytes_req=int(row["object_size"]), bytes_alloc=int(row["size"]), gfp=gfp, name=cache.name)
        return address


@contextmanager
def trace(machine: Machine) -> Iterator[list[Event]]:
    """Watches a machine's requests inside the block; the list is complete when it ends.

    The machine's own methods stand in for themselves (as attributes of this machine alone), so that a machine that is not watched pays nothing.
    """
    tracer = Tracer(machine)
    kmalloc, kfree, cache_alloc, cache_free = machine.kmalloc, machine.kfree, machine.kmem_cache_alloc, machine.kmem_cache_free
    own: dict[str, Any] = {name: machine.__dict__[name] for name in ("kmalloc", "kfree", "kmem_cache_alloc", "kmem_cache_free") if name in machine.__dict__}

    def noted_kfree(address: int, cpu: int = 0) -> None:
        tracer.note("kfree", address=address)
        kfree(address, cpu)

    def noted_cache_free(cache: KmemCache, address: int, cpu: int = 0) -> None:
        tracer.note("kmem_cache_free", address=address, name=cache.name)
        cache_free(cache, address, cpu)

    outer, machine._tracer = machine._tracer, tracer
    machine.__dict__["kmalloc"] = lambda size, gfp=0xCC0, cpu=0: tracer.kmalloc(size, gfp, cpu, kmalloc)
    machine.__dict__["kmem_cache_alloc"] = lambda cache, gfp=0xCC0, cpu=0: tracer.kmem_cache_alloc(cache, gfp, cpu, cache_alloc)
    machine.__dict__["kfree"], machine.__dict__["kmem_cache_free"] = noted_kfree, noted_cache_free
    try:
        yield tracer.events
    finally:
        for name in ("kmalloc", "kfree", "kmem_cache_alloc", "kmem_cache_free"):
            del machine.__dict__[name]
        machine.__dict__.update(own)
        machine._tracer = outer
        if outer is not None:
            outer.events.extend(tracer.events)
