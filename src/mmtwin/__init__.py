"""Linux's memory allocators as a Python library, exact to the page frame.

The public API is loaded when it is first used, so that ``import mmtwin`` itself is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mmtwin.errors import (
        AllocationFailure,
        BadFree,
        BadIoremap,
        BadVfree,
        CaptureError,
        DmaError,
        DoubleFree,
        GeneralProtection,
        InvariantError,
        KasanError,
        KernelBug,
        KernelSilent,
        MmtwinError,
        PageFault,
        ProfileError,
        RecordingError,
        RequestError,
        SchedulingWhileAtomic,
        SleepingInAtomic,
        SlubError,
        TraceError,
        VmallocFailure,
    )
    from mmtwin.gfp import (
        GFP,
        GFP_ATOMIC,
        GFP_DMA,
        GFP_DMA32,
        GFP_HIGHUSER,
        GFP_HIGHUSER_MOVABLE,
        GFP_KERNEL,
        GFP_KERNEL_ACCOUNT,
        GFP_NOFS,
        GFP_NOIO,
        GFP_NOWAIT,
        GFP_TRANSHUGE,
        GFP_TRANSHUGE_LIGHT,
        GFP_USER,
        Migratetype,
        gfp_names,
    )
    from mmtwin.machine import Machine, boot
    from mmtwin.recording.load import load

__all__ = (
    "GFP",
    "GFP_ATOMIC",
    "GFP_DMA",
    "GFP_DMA32",
    "GFP_HIGHUSER",
    "GFP_HIGHUSER_MOVABLE",
    "GFP_KERNEL",
    "GFP_KERNEL_ACCOUNT",
    "GFP_NOFS",
    "GFP_NOIO",
    "GFP_NOWAIT",
    "GFP_TRANSHUGE",
    "GFP_TRANSHUGE_LIGHT",
    "GFP_USER",
    "AllocationFailure",
    "BadFree",
    "BadIoremap",
    "BadVfree",
    "CaptureError",
    "DmaError",
    "DoubleFree",
    "GeneralProtection",
    "InvariantError",
    "KasanError",
    "KernelBug",
    "KernelSilent",
    "Machine",
    "Migratetype",
    "MmtwinError",
    "PageFault",
    "ProfileError",
    "RecordingError",
    "RequestError",
    "SchedulingWhileAtomic",
    "SleepingInAtomic",
    "SlubError",
    "TraceError",
    "VmallocFailure",
    "boot",
    "gfp_names",
    "load",
)  # fmt: skip

_HOMES = ("mmtwin.errors", "mmtwin.gfp", "mmtwin.machine", "mmtwin.recording.load")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in _HOMES:  # light ones first
            module = import_module(home)
            if hasattr(module, name):
                globals()[name] = getattr(module, name)
                return globals()[name]
    raise AttributeError(f"module 'mmtwin' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
