"""DMA pools: small blocks cut from coherent pages, each page with a chain of free blocks through the blocks themselves (mm/dmapool.c of Linux 6.1).

Pages are never given back before the pool is destroyed. The chain is kept in a table here, one number per block, where the kernel writes it into the
block's first four bytes: a device that writes to a free block damages the kernel's chain, but not this one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmtwin._jit import inner, kernel
from mmtwin.units import PAGE_SIZE

NO_PAGE = -1
BAD_DMA, ALREADY_FREE, BAD_VADDR = -22, -16, -14

DMA_PAGE = np.dtype(
    [
        ("next", "i8"),  # the page after it in the pool's list, END at the end
        ("dma", "i8"),
        ("vaddr", "i8"),  # two's complement
        ("header", "i8"),  # address of the kernel's struct dma_page
        ("in_use", "i4"),
        ("offset", "i4"),  # the first free block; `allocation` or more: none
    ]
)
"""``struct dma_page``."""
DMA_POOL = np.dtype([("size", "i8"), ("allocation", "i8"), ("boundary", "i8"), ("first", "i8"), ("pages", "i8")])
"""``struct dma_pool``; `first` is the newest page, which is looked at first."""
END = -1


class DmaPool(NamedTuple):
    """``struct dma_pool`` with its pages, and the chains of free blocks: the offset that follows, by page and block."""

    config: npt.NDArray[np.void]
    page: npt.NDArray[np.void]
    chain: npt.NDArray[np.int32]


class PoolGeometry(NamedTuple):
    """Bytes of a block, of an allocation, and the boundary that blocks do not cross."""

    size: int
    allocation: int
    boundary: int


def pool_geometry(size: int, align: int, boundary: int) -> PoolGeometry | None:
    """``dma_pool_create``: the pool that such a request makes, or None where the kernel returns NULL."""
    align = align or 1
    if size <= 0 or align < 0 or boundary < 0 or align & (align - 1):
        return None
    size = -(-max(size, 4) // align) * align
    allocation = max(size, PAGE_SIZE)
    if not boundary:
        boundary = allocation
    elif boundary < size or boundary & (boundary - 1):
        return None
    return PoolGeometry(size, allocation, boundary)


def new_pool(geometry: PoolGeometry, pages: int = 4) -> DmaPool:
    """A pool without pages, with room for some."""
    config = np.zeros(1, dtype=DMA_POOL)
    config[0] = (*geometry, END, 0)
    return DmaPool(config, np.zeros(pages, dtype=DMA_PAGE), np.zeros((pages, geometry.allocation // geometry.size + 1), dtype=np.int32))


def grown(pool: DmaPool) -> DmaPool:
    """The pool with room for a page more, at least."""
    if int(pool.config[0]["pages"]) < len(pool.page):
        return pool
    return DmaPool(pool.config, np.concatenate([pool.page, np.zeros_like(pool.page)]), np.concatenate([pool.chain, np.zeros_like(pool.chain)]))


@kernel
def pool_add_page(p: Any, vaddr: int, dma: int, header: int) -> int:
    """``pool_initialise_page``: a new page at the head of the list, its blocks chained in ascending order. Returns its row.

    The last block before a boundary is left out when it would end exactly there: the kernel compares with >=, not with >. Where the boundary is larger than
    the allocation, nothing keeps the last block from reaching beyond the allocation's end. (Both were bugs, mended after 6.1.)
    """
    config = p.config[0]
    row, size, boundary = int(config["pages"]), int(config["size"]), int(config["boundary"])
    page = p.page[row]
    page["vaddr"], page["dma"], page["header"], page["in_use"], page["offset"] = vaddr, dma, header, 0, 0
    page["next"] = config["first"]
    config["first"], config["pages"] = row, row + 1
    offset, next_boundary = 0, boundary
    while True:
        following = offset + size
        if following + size >= next_boundary:
            following = next_boundary
            next_boundary += boundary
        p.chain[row, offset // size] = following
        offset = following
        if offset >= int(config["allocation"]):
            return row


@kernel
def pool_find_free(p: Any) -> int:
    """The first page of the list with a free block, or NO_PAGE: the pool needs another page."""
    row = int(p.config[0]["first"])
    while row != END and int(p.page[row]["offset"]) >= int(p.config[0]["allocation"]):
        row = int(p.page[row]["next"])
    return row if row != END else NO_PAGE


@kernel
def pool_take(p: Any, row: int) -> int:
    """Takes the first free block of a page; its offset."""
    page = p.page[row]
    offset = int(page["offset"])
    page["in_use"] = int(page["in_use"]) + 1
    page["offset"] = p.chain[row, offset // int(p.config[0]["size"])]
    return offset


@inner
def pool_find_page(p: Any, dma: int) -> int:
    """``pool_find_page``: the page that a device address lies in, or NO_PAGE."""
    row = int(p.config[0]["first"])
    while row != END:
        at = dma - int(p.page[row]["dma"])
        if 0 <= at < int(p.config[0]["allocation"]):
            return row
        row = int(p.page[row]["next"])
    return NO_PAGE


@kernel
def pool_free(p: Any, vaddr: int, dma: int, debug: bool) -> int:
    """``dma_pool_free``: the block becomes its page's first free one.

    :param debug: the checks of DMAPOOL_DEBUG (CONFIG_SLUB_DEBUG_ON), without which a block can be freed twice, and will be handed out twice.
    :returns: 0, or BAD_DMA (in no page), BAD_VADDR (the two addresses do not belong together), ALREADY_FREE.
    """
    row = pool_find_page(p, dma)
    if row == NO_PAGE:
        return BAD_DMA
    page, size = p.page[row], int(p.config[0]["size"])
    offset = vaddr - int(page["vaddr"])
    if debug:
        if dma - int(page["dma"]) != offset:
            return BAD_VADDR
        chain = int(page["offset"])
        while chain < int(p.config[0]["allocation"]):
            if chain == offset:
                return ALREADY_FREE
            chain = int(p.chain[row, chain // size])
    if offset < 0 or offset >= int(p.config[0]["allocation"]):
        return BAD_VADDR
    page["in_use"] = int(page["in_use"]) - 1
    p.chain[row, offset // size] = page["offset"]
    page["offset"] = offset
    return 0
