"""Every exception of mmtwin. Each message is one line: what, where, what was expected, what to do."""

from __future__ import annotations


class MmtwinError(Exception):
    """Base of all errors that a user can cause; the command line prints the message and exits with `exit_code`."""

    exit_code = 1


class CaptureError(MmtwinError):
    """A recording could not be made: no kernel, no QEMU, a guest that ended early, a dump that cannot be read."""


class RecordingError(MmtwinError):
    """A recording cannot be read or written: not a recording, damaged, made by a newer version, or with values no kernel can produce."""


class TraceError(MmtwinError):
    """Trace text cannot be imported: not a trace, no allocator events in it, or (strictly read) a malformed line."""


class ProfileError(MmtwinError):
    """No such kernel profile, or a machine that the profile cannot describe (too little memory for the kernel, too many CPUs)."""


class RequestError(MmtwinError, ValueError):
    """A request that no kernel code could make: an impossible order, flag, CPU, size or page frame."""


class InvariantError(MmtwinError):
    """The tables contradict each other; the message names the first broken invariant with its indices."""

    exit_code = 3


class AllocationFailure(MmtwinError, MemoryError):
    """A request that is not satisfied.

    :ivar errno: -12 (ENOMEM) when Linux returns NULL, -11 (EAGAIN) when it would now reclaim or compact memory, which is not built yet.
    :ivar order: order of the request.
    :ivar gfp: its flags.
    :ivar status: "failed", "needs reclaim" or "order too large".
    """

    def __init__(self, message: str, errno: int, order: int, gfp: int, status: str) -> None:
        super().__init__(message)
        self.errno, self.order, self.gfp, self.status = errno, order, gfp, status

    def __reduce__(self) -> tuple[type[AllocationFailure], tuple[str, int, int, int, str]]:
        return type(self), (str(self), self.errno, self.order, self.gfp, self.status)


class DoubleFree(MmtwinError):
    """The block is free already."""


class BadFree(MmtwinError):
    """The block cannot be freed: it is not memory, is reserved, or was allocated with another order."""


class WrongCache(BadFree):
    """``kmem_cache_free`` with a cache that the object does not belong to."""


class CacheBusy(MmtwinError):
    """``kmem_cache_destroy`` of a cache that still has objects."""
