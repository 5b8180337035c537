"""What the parts of the DMA API share: directions, attributes, scatter lists, and the questions about addresses that the machine answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from mmtwin.errors import RequestError
from mmtwin.units import PAGE_SHIFT


class Direction(IntEnum):
    """``enum dma_data_direction``."""

    DMA_BIDIRECTIONAL = 0
    DMA_TO_DEVICE = 1
    DMA_FROM_DEVICE = 2


DMA_BIDIRECTIONAL, DMA_TO_DEVICE, DMA_FROM_DEVICE = Direction
DMA_ATTR_SKIP_CPU_SYNC, DMA_ATTR_FORCE_CONTIGUOUS, DMA_ATTR_NO_WARN = 1 << 5, 1 << 6, 1 << 8
U64 = (1 << 64) - 1
DMA_MAPPING_ERROR = U64


class Coherent(NamedTuple):
    """Memory that CPU and device both see: its virtual address, and the device's for it."""

    address: int
    dma: int


@dataclass
class Scatter:
    """``struct scatterlist``, one entry: a part of a page frame, and after mapping what the device is given.

    :ivar dma_length: 0 for entries that were joined with an earlier one.
    """

    pfn: int
    offset: int
    length: int
    dma_address: int = DMA_MAPPING_ERROR
    dma_length: int = 0

    @property
    def physical(self) -> int:
        """``sg_phys``."""
        return (self.pfn << PAGE_SHIFT) + self.offset


def bit_mask(bits: int) -> int:
    """``DMA_BIT_MASK``; a number above 64 is a mask already. :raises RequestError: neither."""
    if 0 < bits <= 64:
        return (1 << bits) - 1
    if 64 < bits <= U64:
        return bits
    raise RequestError(f"DMA mask {bits}: expected a number of bits from 1 to 64, or a mask")


def signed(address: int) -> int:
    """An address as tables keep it."""
    return address - (1 << 64) if address >> 63 else address
