"""Every exception of mmtwin. Each message is one line: what, where, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Callable


class MmtwinError(Exception):
    """Base of all errors that a user can cause; the command line prints the message and exits with `exit_code`."""

    exit_code = 1


class CaptureError(MmtwinError):
    """A recording could not be made: no kernel, no QEMU, a guest that ended early, a dump that cannot be read."""


class RecordingError(MmtwinError):
    """A recording cannot be read or written: not a recording, damaged, made by a newer version, or with values no kernel can produce."""


class TraceError(MmtwinError):
    """Trace text cannot be imported: not a trace, no allocator events in it, or (strictly read) a malformed line."""


class LogError(MmtwinError):
    """A kernel log cannot be explained: it cannot be read, is empty, or holds no report of failed or misused memory."""


class ProfileError(MmtwinError):
    """No such kernel profile, or a machine that the profile cannot describe (too little memory for the kernel, too many CPUs)."""


class RequestError(MmtwinError, ValueError):
    """A request that no kernel code could make: an impossible order, flag, CPU, size or page frame."""


class InvariantError(MmtwinError):
    """The tables contradict each other; the message names the first broken invariant with its indices."""

    exit_code = 3


class AllocationFailure(MmtwinError, MemoryError):
    """A request that is not satisfied.

    :ivar errno: -12 (ENOMEM) when Linux returns NULL, -11 (EAGAIN) when it would now reclaim or compact memory and there is nothing that could be taken from anybody.
    :ivar order: order of the request.
    :ivar gfp: its flags.
    :ivar status: "failed", "needs reclaim" or "order too large".
    """

    def __init__(self, message: str, errno: int, order: int, gfp: int, status: str, report: str | Callable[[], str] = "") -> None:
        super().__init__(message)
        self.errno, self.order, self.gfp, self.status = errno, order, gfp, status
        self._report = report

    @property
    def report(self) -> str:
        """What the kernel prints (``warn_alloc``, without the stack trace); "" where it says nothing. Written when first read, with the machine's counts of then."""
        if not isinstance(self._report, str):
            self._report = self._report()
        return self._report

    def __reduce__(self) -> tuple[type[AllocationFailure], tuple[str, int, int, int, str, str]]:
        return type(self), (str(self), self.errno, self.order, self.gfp, self.status, self.report)


class VmallocFailure(AllocationFailure):
    """vmalloc or one of its family returns NULL.

    :ivar report: what the kernel prints; "" if it says nothing.
    """

    def __init__(self, message: str, errno: int, gfp: int, status: str, report: str = "") -> None:
        super().__init__(message, errno, 0, gfp, status, report)

    def __reduce__(self) -> tuple[type[VmallocFailure], tuple[str, int, int, str, str]]:  # type: ignore[override]
        return type(self), (str(self), self.errno, self.gfp, self.status, self.report)


class KernelSilent(UserWarning):
    """A misuse that the kernel lets pass without a word. The machine has done what the kernel does."""


class DoubleFree(MmtwinError):
    """The block is free already."""


class BadFree(MmtwinError):
    """The block cannot be freed: it is not memory, is reserved, or was allocated with another order."""


class WrongCache(BadFree):
    """``kmem_cache_free`` with a cache that the object does not belong to."""


class CacheBusy(MmtwinError):
    """``kmem_cache_destroy`` of a cache that still has objects."""


class ReportedError(MmtwinError):
    """A misuse of memory that a debugging kernel reports.

    :ivar report: the kernel's whole report; several if one call led to several.
    :ivar address: what the call returned nonetheless, as the kernel repairs what it found and goes on; None if nothing.
    """

    def __init__(self, message: str, report: str = "", address: int | None = None) -> None:
        super().__init__(message)
        self.report, self.address = report, address

    def __reduce__(self) -> tuple[type[ReportedError], tuple[str, str, int | None]]:
        return type(self), (str(self), self.report, self.address)


class BadVfree(ReportedError, BadFree):
    """``vfree`` or ``vunmap`` of an address that is no virtual area: the kernel warns and does nothing."""


class BadIoremap(ReportedError):
    """``ioremap`` of ordinary memory: the kernel warns and returns NULL."""


class SlubError(ReportedError):
    """What ``slub_debug`` found."""


class RedZoneOverwritten(SlubError):
    """Bytes just before or behind an object were written."""


class PoisonOverwritten(SlubError):
    """A free object was written."""


class PaddingOverwritten(SlubError):
    """The filler behind an object's metadata, or at the end of a slab, was written."""


class FreePointerCorrupt(SlubError):
    """The pointer from one free object to the next was written."""


class WrongObjectCount(SlubError):
    """A slab's counter of objects in use contradicts its free list."""


class ObjectAlreadyFree(SlubError, DoubleFree):
    """The object is on its slab's free list already, or has never been handed out."""


class InvalidObjectPointer(SlubError, BadFree):
    """No object begins at this address."""


class SlabDisabled(SlubError, BadFree):
    """The slab was given up after an earlier finding: its objects count as used for ever."""


class WrongCacheReported(SlubError, WrongCache):
    """``kmem_cache_free`` with a cache that the object does not belong to; it was freed to its own."""


class ObjectsRemaining(SlubError, CacheBusy):
    """``kmem_cache_destroy`` of a cache that still has objects, which the report lists."""


class KasanError(ReportedError):
    """What KASAN found."""


class SlabOutOfBounds(KasanError):
    """An access to bytes of a slab that belong to no object's requested size."""


class UseAfterFree(KasanError):
    """An access to an object that was freed, or never handed out."""


class KasanDoubleFree(KasanError, DoubleFree):
    """The object is free already."""


class KasanInvalidFree(KasanError, BadFree):
    """A free of an address inside an object."""


class SleepingInAtomic(ReportedError):
    """``BUG: sleeping function called from invalid context``: a request that may wait, made where waiting is forbidden (CONFIG_DEBUG_ATOMIC_SLEEP).

    :ivar printed: whether the kernel would have printed it; it does so once a second.
    """

    printed = True


class SchedulingWhileAtomic(ReportedError):
    """``BUG: scheduling while atomic``: a request had to wait where that is forbidden."""


class KernelBug(ReportedError):
    """``kernel BUG at file:line!``: a ``BUG_ON``; the machine is not usable afterwards, or the task is killed."""


class KernelPanic(ReportedError):
    """``Kernel panic - not syncing``: the machine has stopped."""


class DmaError(ReportedError):
    """A mapping that the DMA API refuses (DMA_MAPPING_ERROR) or warns about.

    :ivar printed: whether the kernel would have printed it: many of its warnings come only once.
    """

    printed = True


class DmaMappingError(DmaError):
    """DMA_MAPPING_ERROR: the device cannot be given this memory, or there is no room to bounce or map it."""


class VmallocMapped(DmaMappingError):
    """``rejecting DMA map of vmalloc memory``: the pages behind it are not contiguous."""


class SwiotlbFull(DmaMappingError):
    """``swiotlb buffer is full``."""


class SwiotlbDeadlock(DmaError):
    """6.1's search for bounce buffers with an alignment mask does not end when the pool is short of slots: the CPU hangs."""


class DmaOverflow(DmaMappingError):
    """``DMA addr ... overflow``: memory above the device's mask, and no bounce buffer."""


class DmaApiError(DmaError):
    """What CONFIG_DMA_API_DEBUG found; as in the kernel, the call was carried out (`address` is its result)."""


class DmaFault(DmaError):
    """The device used an address that leads nowhere: not mapped by its IOMMU, or no memory behind it."""


class DmaPoolError(DmaError):
    """``dma_pool_free`` or ``dma_pool_destroy`` refused."""


class PageFault(ReportedError):
    """An access that the page tables do not allow: the kernel's Oops.

    :ivar cr2: the address that faulted.
    :ivar error_code: bit 0: the page is present; 1: a write; 2: from user mode; 4: an instruction fetch.
    """

    def __init__(self, message: str, report: str = "", cr2: int = 0, error_code: int = 0) -> None:
        super().__init__(message, report)
        self.cr2, self.error_code = cr2, error_code

    def __reduce__(self) -> tuple[type[ReportedError], tuple[object, ...]]:  # type: ignore[override]
        return type(self), (str(self), self.report, self.cr2, self.error_code)


class NotPresent(PageFault):
    """Nothing is mapped there."""


class NullPointerDereference(NotPresent):
    """An address in the first page."""


class GuardPage(NotPresent):
    """The page behind a virtual area, left unmapped so that running over its end is noticed."""


class UnmappedArea(NotPresent):
    """A part of the vmalloc space that belongs to no area, or whose area was freed."""


class ProtectionFault(PageFault):
    """The page is mapped, but not for this."""


class WriteToReadOnly(ProtectionFault):
    """A write to a read-only page."""


class NotExecutable(ProtectionFault):
    """An instruction fetch from a page with the NX bit."""


class UserAccess(ProtectionFault):
    """The kernel touched (SMAP) or executed (SMEP) a process's page."""


class GeneralProtection(ReportedError):
    """An address that is not canonical."""


class SyscallError(MmtwinError):
    """A system call of a process that fails.

    :ivar errno: the error number, positive, as in ``errno``.
    """

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno

    def __reduce__(self) -> tuple[type[SyscallError], tuple[str, int]]:
        return type(self), (str(self), self.errno)


class SegmentationFault(ReportedError):
    """SIGSEGV: a process touched an address that is not its own, or not for this. `.report` is the kernel's line in the log."""


class BusError(ReportedError):
    """SIGBUS: a process touched a page of a mapping that lies behind the end of its file."""


class NoSuchProcess(RequestError):
    """There is no such process, or it has ended."""


class OomKilled(ReportedError, NoSuchProcess):
    """The OOM killer chose the very process that was asking for memory: it has ended.

    :ivar victim: its number.
    """

    def __init__(self, message: str, report: str = "", victim: int = 0) -> None:
        super().__init__(message, report)
        self.victim = victim

    def __reduce__(self) -> tuple[type[ReportedError], tuple[object, ...]]:  # type: ignore[override]
        return type(self), (str(self), self.report, self.victim)


class NotDirectMapped(RequestError):
    """``virt_to_phys`` and its relatives compute with the direct map's constant offset; this address is not in it.

    :ivar wrong: the physical address that the kernel computes all the same (without CONFIG_DEBUG_VIRTUAL nothing stops it).
    """

    def __init__(self, message: str, wrong: int = 0) -> None:
        super().__init__(message)
        self.wrong = wrong

    def __reduce__(self) -> tuple[type[NotDirectMapped], tuple[str, int]]:
        return type(self), (str(self), self.wrong)


class KmapError(MmtwinError):
    """``kmap`` of high memory: no place is left, or ``kunmap`` of what is not mapped."""


class MallocFailure(MmtwinError, MemoryError):
    """malloc or one of its family returns NULL.

    :ivar errno: 12 (ENOMEM), or 22 (EINVAL) for an alignment that cannot be.
    """

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno

    def __reduce__(self) -> tuple[type[MallocFailure], tuple[str, int]]:
        return type(self), (str(self), self.errno)


class MallocAbort(ReportedError):
    """glibc found its heap corrupted: it prints one line and ends the process with SIGABRT."""


class MallocDoubleFree(MallocAbort, DoubleFree):
    """The block is free already, and glibc noticed."""


class MallocInvalidFree(MallocAbort, BadFree):
    """What was freed is no block."""
