"""What ``swapon`` allocates (mm/swapfile.c, mm/swap_cgroup.c, mm/swap_state.c of 6.1): the map of a swap device's slots is a vmalloc'ed area.

`SwapAreas` makes the structures that a kernel has for a device, where it has them; what is swapped, and to which slot, is `reclaim.Reclaim`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmtwin.errors import AllocationFailure, RequestError
from mmtwin.gfp import GFP_KERNEL
from mmtwin.units import PAGE_SIZE
from mmtwin.vmalloc_steps import GFP_ZERO, whole

if TYPE_CHECKING:
    from mmtwin.profiles.layout import AddressSpace

CLUSTER_INFO = 8
"""sizeof(struct swap_cluster_info)."""
SC_PER_PAGE = PAGE_SIZE // 2
"""Owners of slots (``struct swap_cgroup``) in a page."""
SWAP_ADDRESS_SPACE_PAGES = 1 << 14
MAX_PRIORITY, MAX_SWAP_DEVICES = 32767, 16
SMALLEST = 10
"""Pages; mkswap makes no smaller device."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of structures that differ between 64 and 32 bits (printed by oracle/module/claims.c), and slots of a cluster."""

    swap_info: int
    address_space: int
    word: int
    cluster: int


SIZES = {64: Sizes(272 + 40, 192, 8, 512), 32: Sizes(180 + 20, 116, 4, 256)}


@dataclass(frozen=True)
class SwapArea:
    """A swap device in use.

    :ivar slots: pages of the device, its header included (``swap_info_struct.max``).
    :ivar info: address of its swap_info_struct. A kernel keeps it when the device goes, for the next one.
    :ivar swap_map: of the map, one byte for each slot.
    :ivar cluster_info: of the clusters of a device without moving parts; 0: it has.
    :ivar cgroups: of the array of pages that hold each slot's owner; `cgroup_pages` are those page frames.
    :ivar address_spaces: of the swap cache's trees.
    """

    slots: int
    info: int
    swap_map: int
    cluster_info: int
    cgroups: int
    cgroup_pages: tuple[int, ...]
    address_spaces: int


class SwapAreas:
    """``swapon`` and ``swapoff`` of a machine."""

    space: AddressSpace

    if TYPE_CHECKING:  # of the machine's other parts
        vzalloc: Callable[..., int]
        kvzalloc: Callable[..., int]
        vfree: Callable[..., None]
        kvfree: Callable[..., None]
        alloc_pages: Callable[..., int]
        free_pages: Callable[..., None]
        has_processes: Callable[[], bool]
        _enable_swap: Callable[..., None]
        _disable_swap: Callable[..., None]

        @property
        def _swap_devices(self) -> dict[int, int]:
            """Row of each device in use, by the address of its swap_info_struct."""

    def swapon(self, size_bytes: int, cpu: int = 0, *, rotational: bool = True, synchronous: bool = False, priority: int | None = None) -> SwapArea:
        """``swapon``: what a kernel allocates for a swap device of this size; from now on pages of processes go there when memory is short.

        :param rotational: a disk, which has no clusters.
        :param synchronous: writes end at once (zram, brd).
        :param priority: 0 to 32767; None: below all others.
        :raises RequestError: too small, or more slots than an entry has bits for.
        :raises AllocationFailure: no memory; nothing is left allocated.
        """
        size = whole(size_bytes, "size")
        slots = size // PAGE_SIZE
        if not SMALLEST <= slots <= (1 << 32) - 1:
            raise RequestError(f"swapon of {size} bytes: expected at least {SMALLEST} pages, and fewer than 2^32")
        if priority is not None and not 0 <= priority <= MAX_PRIORITY:
            raise RequestError(f"swapon: priority {priority}: expected 0 to {MAX_PRIORITY}")
        if len(self._swap_devices) == MAX_SWAP_DEVICES:
            raise RequestError(f"swapon: {MAX_SWAP_DEVICES} devices are in use; that is all this machine can tell apart")
        sizes = SIZES[self.space.bits]
        taken: list[int] = []
        pages: list[int] = []

        def kept(address: int) -> int:
            taken.append(address)
            return address

        try:
            info = kept(self.kvzalloc(sizes.swap_info, cpu=cpu, caller="alloc_swap_info"))
            swap_map = kept(self.vzalloc(slots, cpu, caller="__do_sys_swapon"))
            clusters = -(-slots // sizes.cluster)
            cluster_info = 0 if rotational else kept(self.kvzalloc(clusters * CLUSTER_INFO, cpu=cpu, caller="__do_sys_swapon"))
            held = -(-slots // SC_PER_PAGE)
            cgroups = kept(self.vzalloc(held * sizes.word, cpu, caller="swap_cgroup_swapon"))
            for _ in range(held):
                pages.append(self.alloc_pages(0, GFP_KERNEL | GFP_ZERO, cpu))
            spaces = kept(self.kvzalloc(-(-slots // SWAP_ADDRESS_SPACE_PAGES) * sizes.address_space, cpu=cpu, caller="init_swap_address_space"))
        except AllocationFailure:
            for page in pages:
                self.free_pages(page, 0, cpu)
            for address in reversed(taken):
                self.kvfree(address, cpu)
            raise
        area = SwapArea(slots, info, swap_map, cluster_info, cgroups, tuple(pages), spaces)
        if self.has_processes():
            self._enable_swap(area, rotational, synchronous, priority)
        return area

    def swapoff(self, area: SwapArea, cpu: int = 0) -> None:
        """``swapoff``: brings back the pages that are there, then gives back what `swapon` allocated, in the kernel's order.

        :raises SyscallError: ENOMEM: they do not fit into memory.
        """
        if area.info in self._swap_devices:
            self._disable_swap(area, cpu)
        self.vfree(area.swap_map, cpu)
        self.kvfree(area.cluster_info, cpu)
        for page in area.cgroup_pages:
            self.free_pages(page, 0, cpu)
        self.vfree(area.cgroups, cpu)
        self.kvfree(area.address_spaces, cpu)
        self.kvfree(area.info, cpu)
