"""DMA pools of a device (mm/dmapool.c of Linux 6.1); the rules are in `mm.dma_pool`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmtwin.dma.device import DmaDevice
from mmtwin.dma.types import U64, Coherent, signed
from mmtwin.errors import AllocationFailure, DmaPoolError, RequestError
from mmtwin.gfp import GFP, GFP_KERNEL
from mmtwin.mm import dma_pool

if TYPE_CHECKING:
    from mmtwin.dma.iommu import IommuDomain
    from mmtwin.machine import Machine

POOL_BYTES, POOL_PAGE_BYTES = 104, 40
"""sizeof(struct dma_pool), sizeof(struct dma_page)."""


@dataclass(eq=False)
class Pool:
    """``struct dma_pool``.

    :ivar tables: its pages and chains.
    :ivar object: address of the kernel's struct.
    """

    name: str
    tables: dma_pool.DmaPool
    object: int
    live: bool = True


class Device(DmaDevice):
    """A device with its pools.

    :ivar pools: the newest first.
    """

    def __init__(self, machine: Machine, name: str, dma_mask: int, coherent_mask: int, iommu: IommuDomain | None, driver: str, slot: int) -> None:
        super().__init__(machine, name, dma_mask, coherent_mask, iommu, driver, slot)
        self.pools: list[Pool] = []

    def dma_pool_create(self, name: str, size: int, align: int = 0, boundary: int = 0, cpu: int = 0) -> Pool:
        """``dma_pool_create``: blocks of `size` bytes of coherent memory that do not cross a multiple of `boundary`.

        :raises RequestError: where the kernel returns NULL: no size, or an alignment or boundary that is no power of two, or too small.
        """
        geometry = dma_pool.pool_geometry(size, align, boundary)
        if geometry is None:
            raise RequestError(
                f"dma_pool_create({name!r}, {size}, {align}, {boundary}): the kernel returns NULL: powers of two, and a boundary of at least the size"
            )
        pool = Pool(name[:31], dma_pool.new_pool(geometry), self.machine.kmalloc(POOL_BYTES, GFP_KERNEL, cpu))
        self.pools.insert(0, pool)
        return pool

    def _pool(self, pool: Pool) -> Pool:
        if not pool.live or pool not in self.pools:
            raise RequestError(f"DMA pool {pool.name!r}: destroyed, or another device's")
        return pool

    def dma_pool_alloc(self, pool: Pool, gfp: int = GFP_KERNEL, cpu: int = 0) -> Coherent:
        """``dma_pool_alloc``: a block of the first page that has one, newest page first, or of a new page.

        :raises AllocationFailure: Linux returns NULL.
        """
        m = self.machine
        if m._contexts:
            m._may_allocate(gfp, cpu, f"dma_pool_alloc({pool.name!r})")
        row = int(dma_pool.pool_find_free(self._pool(pool).tables))
        if row == dma_pool.NO_PAGE:
            gfp_page = gfp & ~GFP.ZERO
            header = m.kmalloc(POOL_PAGE_BYTES, gfp_page, cpu)
            try:
                memory = self.dma_alloc_coherent(int(pool.tables.config[0]["allocation"]), gfp_page, cpu)
            except AllocationFailure:
                m.kfree(header, cpu)
                raise
            pool.tables = dma_pool.grown(pool.tables)
            row = int(dma_pool.pool_add_page(pool.tables, signed(memory.address), memory.dma, signed(header)))
        offset = int(dma_pool.pool_take(pool.tables, row))
        page = pool.tables.page[row]
        found = Coherent((int(page["vaddr"]) + offset) & U64, int(page["dma"]) + offset)
        if gfp & GFP.ZERO:
            self.write(found.dma, bytes(int(pool.tables.config[0]["size"])))
        return found

    def dma_pool_zalloc(self, pool: Pool, gfp: int = GFP_KERNEL, cpu: int = 0) -> Coherent:
        """``dma_pool_zalloc``: `dma_pool_alloc` with __GFP_ZERO."""
        return self.dma_pool_alloc(pool, gfp | GFP.ZERO, cpu)

    def dma_pool_free(self, pool: Pool, address: int, dma: int, *, debug: bool = False) -> None:
        """``dma_pool_free``. A block that is free already is put on the list twice and later handed out twice, unless `debug`.

        :param debug: DMAPOOL_DEBUG, compiled in with CONFIG_SLUB_DEBUG_ON.
        :raises DmaPoolError: the device address lies in no page of the pool; with `debug` also: the addresses do not belong together, or it is free already.
        """
        error = int(dma_pool.pool_free(self._pool(pool).tables, signed(address), dma, debug))
        if error:
            words = {
                dma_pool.BAD_DMA: f"{address:016x}/0x{dma:016x} (bad dma)",
                dma_pool.BAD_VADDR: f"{address:016x} (bad vaddr)/0x{dma:016x}",
                dma_pool.ALREADY_FREE: f"dma 0x{dma:016x} already free",
            }
            line = f"{self.driver} {self.name}: dma_pool_free {pool.name}, {words[error]}"
            raise DmaPoolError(line, line)

    def dma_pool_destroy(self, pool: Pool, cpu: int = 0) -> None:
        """``dma_pool_destroy``: its pages go back, newest first; a page with blocks in use is lost.

        :raises DmaPoolError: such a page; the pool is gone all the same.
        """
        self._pool(pool).live = False
        self.pools.remove(pool)
        t, busy = pool.tables, list[str]()
        row = int(t.config[0]["first"])
        while row != dma_pool.END:
            page = t.page[row]
            if int(page["in_use"]):
                busy.append(f"{self.driver} {self.name}: dma_pool_destroy {pool.name}, {int(page['vaddr']) & U64:016x} busy")
            else:
                self.dma_free_coherent(int(t.config[0]["allocation"]), int(page["vaddr"]) & U64, int(page["dma"]), cpu)
            self.machine.kfree(int(page["header"]) & U64, cpu)
            row = int(page["next"])
        self.machine.kfree(pool.object, cpu)
        if busy:
            raise DmaPoolError(busy[0], "\n".join(busy))

    def pools_show(self) -> str:
        """``pools`` in the device's sysfs directory."""
        lines = ["poolinfo - 0.1\n"]
        for pool in self.pools:
            config = pool.tables.config[0]
            pages, size = int(config["pages"]), int(config["size"])
            blocks = int(pool.tables.page["in_use"][:pages].sum())
            lines.append(f"{pool.name:<16} {blocks:4} {pages * (int(config['allocation']) // size):4} {size:4} {pages:2}\n")
        return "".join(lines)
