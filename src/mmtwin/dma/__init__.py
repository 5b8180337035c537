"""DMA: devices and their masks, mappings, bounce buffers, pools and IOMMUs (kernel/dma, mm/dmapool.c, drivers/iommu of Linux 6.1)."""

from __future__ import annotations

from mmtwin.dma.iommu import IommuDomain
from mmtwin.dma.machine import Devices
from mmtwin.dma.pools import Device, Pool
from mmtwin.dma.types import DMA_BIDIRECTIONAL, DMA_FROM_DEVICE, DMA_MAPPING_ERROR, DMA_TO_DEVICE, Coherent, Direction, Scatter

__all__ = (
    "DMA_BIDIRECTIONAL",
    "DMA_FROM_DEVICE",
    "DMA_MAPPING_ERROR",
    "DMA_TO_DEVICE",
    "Coherent",
    "Device",
    "Devices",
    "Direction",
    "IommuDomain",
    "Pool",
    "Scatter",
)
