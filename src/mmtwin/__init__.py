"""Linux's memory allocators as a Python library, exact to the page frame.

The public API is loaded when it is first used: ``import mmtwin`` itself takes a few milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mmtwin.errors import (
        AllocationFailure as AllocationFailure,
        BadFree as BadFree,
        CaptureError as CaptureError,
        DoubleFree as DoubleFree,
        InvariantError as InvariantError,
        MmtwinError as MmtwinError,
        ProfileError as ProfileError,
        RecordingError as RecordingError,
        RequestError as RequestError,
        TraceError as TraceError,
    )
    from mmtwin.gfp import (
        GFP as GFP,
        GFP_ATOMIC as GFP_ATOMIC,
        GFP_DMA as GFP_DMA,
        GFP_DMA32 as GFP_DMA32,
        GFP_HIGHUSER as GFP_HIGHUSER,
        GFP_HIGHUSER_MOVABLE as GFP_HIGHUSER_MOVABLE,
        GFP_KERNEL as GFP_KERNEL,
        GFP_KERNEL_ACCOUNT as GFP_KERNEL_ACCOUNT,
        GFP_NOFS as GFP_NOFS,
        GFP_NOIO as GFP_NOIO,
        GFP_NOWAIT as GFP_NOWAIT,
        GFP_TRANSHUGE as GFP_TRANSHUGE,
        GFP_TRANSHUGE_LIGHT as GFP_TRANSHUGE_LIGHT,
        GFP_USER as GFP_USER,
        Migratetype as Migratetype,
        gfp_names as gfp_names,
    )
    from mmtwin.machine import Machine as Machine, boot as boot
    from mmtwin.recording.load import load as load

_HOME = {
    "mmtwin.errors": (
        "AllocationFailure", "BadFree", "CaptureError", "DoubleFree", "InvariantError", "MmtwinError", "ProfileError", "RecordingError", "RequestError", "TraceError",
    ),
    "mmtwin.gfp": (
        "GFP", "GFP_ATOMIC", "GFP_DMA", "GFP_DMA32", "GFP_HIGHUSER", "GFP_HIGHUSER_MOVABLE", "GFP_KERNEL", "GFP_KERNEL_ACCOUNT", "GFP_NOFS", "GFP_NOIO", "GFP_NOWAIT",
        "GFP_TRANSHUGE", "GFP_TRANSHUGE_LIGHT", "GFP_USER", "Migratetype", "gfp_names",
    ),
    "mmtwin.machine": ("Machine", "boot"),
    "mmtwin.recording.load": ("load",),
}  # fmt: skip
_PUBLIC = {name: home for home, names in _HOME.items() for name in names}

__all__ = tuple(sorted(_PUBLIC))  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mmtwin' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
