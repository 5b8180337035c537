"""A policy that the user writes: plain Python functions, compiled, in place of the page allocator's or of kmalloc's choice of a size.

The file may define any of

- ``alloc(pages, cpu, order, gfp, migratetype)``: the first page frame of a free block of 2^order pages, taken off its list, or a negative number if there is none;
- ``free(pages, cpu, pfn, order)``: puts a block back;
- ``size_class(bytes, gfp, site)``: bytes of the slot a kmalloc gets.

``alloc`` and ``free`` come together. `pages` are the tables of `mmtwin.mm.tables.Pgdat`; every function of mmtwin.mm may be called, and those below, which know how to keep the
tables consistent. ``alloc`` is asked for every block: requests, slabs, single pages of bulk requests. Where it has none and the kernel would reclaim, the request is
counted as waiting and the kernel's own reserves serve it.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtwin._jit import callback, routine
from mmtwin.errors import RequestError
from mmtwin.gfp import ALLOC_KSWAPD, ALLOC_WMARK_LOW, gfp_to_alloc_flags
from mmtwin.mm.buddy import add_to_free_list, del_page_from_free_list, free_one_page, page_zone
from mmtwin.mm.handle import pages_at
from mmtwin.mm.page_alloc import EAGAIN, ENOMEM, GFP_DIRECT_RECLAIM, highest_zone, mark_allocated, next_zone, preferred_zone, request_migratetype
from mmtwin.mm.vmstat import mod_zone_free_pages
from mmtwin.replay.free_run import Policy
from mmtwin.replay.free_run_pages import ALLOC_SIGNATURE, FREE_SIGNATURE

NAMES = {"alloc": 5, "free": 4, "size_class": 3}
"""What a file may define, and how many arguments each has."""


# For the user's functions


@routine
def zone_for(pages: Any, order: int, gfp: int) -> int:
    """The zone the kernel would serve a request from: the first above its low watermark, else above the minimum that the flags allow; -1 if there is none."""
    top = highest_zone(pages, gfp)
    z = next_zone(pages, preferred_zone(pages, top), order, gfp, top, ALLOC_WMARK_LOW | gfp & ALLOC_KSWAPD)
    if z < 0:
        z = next_zone(pages, preferred_zone(pages, top), order, gfp, top, gfp_to_alloc_flags(gfp, order))
    return z


@routine
def take_block(pages: Any, z: int, cpu: int, pfn: int, order: int, migratetype: int) -> int:
    """Takes 2^order pages from the front of the free block that begins at `pfn`; the rest goes back, upper half by upper half, to the lists of `migratetype`."""
    high = int(pages.page[pfn]["order"])
    del_page_from_free_list(pages, pfn, z, high)
    while high > order:
        high -= 1
        add_to_free_list(pages, pfn + (1 << high), z, high, migratetype, False)
    mod_zone_free_pages(pages, z, cpu, -(1 << order))
    pages.page[pfn]["order"] = order
    pages.page[pfn]["migratetype"] = migratetype
    return pfn


@routine
def give_block(pages: Any, cpu: int, pfn: int, order: int) -> int:
    """Frees a block straight to the buddy lists, merged with its free buddies, under its pageblock's type."""
    free_one_page(pages, pfn, page_zone(pages, pfn), cpu, order, int(pages.page[pfn]["migratetype"]), False)
    return 0


# For the command


@dataclass(frozen=True)
class UserPolicy:
    """What a file defines.

    :param pages: `alloc` and `free`, compiled; None if the file leaves the page allocator alone.
    :param size_class: the plain function, or None.
    """

    name: str
    pages: Policy | None
    size_class: Callable[[int, int, int], int] | None


def load(path: str | Path) -> UserPolicy:
    """Reads and compiles a policy.

    :raises RequestError: the file cannot be read, is no Python, lacks the functions, or cannot be compiled; one line, with the place in the file.
    """
    path = Path(path)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    space: dict[str, Any] = {"__name__": f"policy_{path.stem}", "__file__": str(path)}
    try:
        exec(compile(text, str(path), "exec"), space)
    except SyntaxError as error:
        raise RequestError(f"{path}:{error.lineno}: {error.msg}") from None
    except Exception as error:
        raise RequestError(f"{path}: {type(error).__name__}: {error}") from None
    own = {k: v for k, v in space.items() if isinstance(v, types.FunctionType) and v.__module__ == space["__name__"]}
    if not own.keys() & NAMES:
        raise RequestError(f"{path}: defines none of alloc, free and size_class; see docs/whatif.md")
    if ("alloc" in own) != ("free" in own):
        raise RequestError(f"{path}: alloc and free come together: who takes blocks must put them back")
    for name in own.keys() & NAMES:
        if own[name].__code__.co_argcount != NAMES[name]:
            raise RequestError(f"{path}: {name} has {own[name].__code__.co_argcount} arguments; expected {NAMES[name]}")
    pages = None
    if "alloc" in own:
        for function in own.values():
            routine(function)
        pages = Policy(path.stem, _compile(path, ALLOC_SIGNATURE, _alloc(own["alloc"])), _compile(path, FREE_SIGNATURE, _free(own["free"])))
    return UserPolicy(path.stem, pages, own.get("size_class"))


def _alloc(alloc: Any) -> Any:
    """What the loop calls: the user's answer, with the marks of an allocated block."""

    def page_alloc(handle: int, cpu: int, order: int, gfp: int, flags: int) -> int:
        pages = pages_at(handle)
        pfn = int(alloc(pages, cpu, order, gfp, request_migratetype(pages, gfp)))
        if pfn < 0:
            return -EAGAIN if gfp & GFP_DIRECT_RECLAIM else -ENOMEM
        mark_allocated(pages, pfn, order)
        zone = pages.zone[page_zone(pages, pfn)]
        zone["pgalloc"] = int(zone["pgalloc"]) + (1 << order)
        return pfn

    return page_alloc


def _free(free: Any) -> Any:
    """What the loop calls for a block that has been prepared."""

    def page_free(handle: int, cpu: int, pfn: int, order: int) -> int:
        free(pages_at(handle), cpu, pfn, order)
        return 0

    return page_free


def _compile(path: Path, signature: str, function: Any) -> Any:
    """:raises RequestError: the first thing the compiler minds."""
    try:
        return callback(signature, function, cache=False)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        place = next((line for line in lines if line.startswith("File") and path.name in line), "")
        line = place.split(", line ")[-1].rstrip(":") if place else ""
        skip = ("Failed in", "During", "File", "This error", "raised from", "There ", "- Of", "With ", "Overload", "Rejected", "TypingError", ">>>", "^")
        said = next((text for text in lines if not text.startswith(skip)), type(error).__name__)
        raise RequestError(f"{path}{':' + line if line else ''}: cannot be compiled: {said}") from None
