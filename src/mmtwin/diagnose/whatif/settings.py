"""The settings of a what-if: ``key=value`` words, read and checked."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields

from mmtwin import profiles
from mmtwin.errors import ProfileError, RequestError
from mmtwin.units import parse_size

KEYS = {
    "min_free_kbytes": "sysctl vm.min_free_kbytes",
    "watermark_scale_factor": "sysctl vm.watermark_scale_factor, in 1/10000 of a zone",
    "watermark_boost_factor": "sysctl vm.watermark_boost_factor",
    "percpu_pagelist_high_fraction": "sysctl vm.percpu_pagelist_high_fraction",
    "slub_min_order": "boot option slub_min_order",
    "slub_max_order": "boot option slub_max_order",
    "slub_min_objects": "boot option slub_min_objects",
    "cpu_partial": "/sys/kernel/slab/*/cpu_partial of all caches, in objects",
    "merge": "on or off: boot option slab_nomerge",
    "size_classes": "further sizes of kmalloc caches, separated by commas",
    "kvmalloc": "call sites (addresses) whose kmallocs above a page fall back to vmalloc; all for every one",
    "cpus": "number of CPUs",
    "ram": "memory size, such as 128M",
    "pageblock_order": "order of the blocks that have a migrate type",
    "profile": "another kernel's zones, pageblocks and own memory, such as linux-6.1-i386",
    "allocator": "slab or slub: which slab allocator answers",
}  # fmt: skip
"""What can be set, and what it is in Linux."""
ALLOCATORS = ("slab", "slub")
LIMITS = {
    "min_free_kbytes": (0, 1 << 40), "watermark_scale_factor": (1, 3000), "watermark_boost_factor": (0, 1 << 30), "percpu_pagelist_high_fraction": (0, 1 << 30),
    "slub_min_order": (0, 10), "slub_max_order": (0, 10), "slub_min_objects": (0, 1 << 15), "cpu_partial": (0, 1 << 20), "cpus": (1, 64),
    "pageblock_order": (4, 10),
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What is different from the recorded machine; None is what it was there."""

    min_free_kbytes: int | None = None
    watermark_scale_factor: int | None = None
    watermark_boost_factor: int | None = None
    percpu_pagelist_high_fraction: int | None = None
    slub_min_order: int | None = None
    slub_max_order: int | None = None
    slub_min_objects: int | None = None
    cpu_partial: int | None = None
    merge: bool | None = None
    size_classes: tuple[int, ...] = ()
    kvmalloc: tuple[int, ...] | None = None
    cpus: int | None = None
    ram: int | None = None
    pageblock_order: int | None = None
    profile: str | None = None
    allocator: str | None = None

    def __str__(self) -> str:
        words = []
        for f in fields(self):
            value = getattr(self, f.name)
            if value is None or value == ():
                if f.name == "kvmalloc" and value == ():
                    words.append("kvmalloc=all")
                continue
            if f.name == "ram":
                value = f"{value >> 20}M"
            elif f.name == "merge":
                value = "on" if value else "off"
            elif f.name == "kvmalloc":
                value = ",".join(f"{site & (1 << 64) - 1:#x}" for site in value)
            elif isinstance(value, tuple):
                value = ",".join(map(str, value))
            words.append(f"{f.name}={value}")
        return " ".join(words) or "as recorded"

    @property
    def slab_geometry(self) -> bool:
        """Whether slabs have other orders."""
        return any(v is not None for v in (self.slub_min_order, self.slub_max_order, self.slub_min_objects))


def parse_settings(words: Sequence[str]) -> Settings:
    """Reads ``key=value`` words; several may stand in one, separated by blanks.

    :raises RequestError: an unknown key, or a value that no kernel takes.
    """
    found: dict[str, object] = {}
    for word in " ".join(words).split():
        key, equals, value = word.partition("=")
        if key not in KEYS or not equals:
            near = difflib.get_close_matches(key, KEYS, 1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(KEYS)}"
            raise RequestError(f"--set {word}: expected key=value" if key in KEYS else f"--set {word}: unknown setting {key!r}; {hint}")
        found[key] = _value(key, value)
    return Settings(**found)  # type: ignore[arg-type]


def _value(key: str, text: str) -> object:
    """:raises RequestError: not a value for this key."""
    try:
        if key == "merge":
            return {"on": True, "off": False}[text]
        if key == "ram":
            return _ram(text)
        if key == "profile":
            return _profile(text)
        if key == "allocator":
            if text not in ALLOCATORS:
                raise RequestError(f"--set allocator={text}: expected {' or '.join(ALLOCATORS)}")
            return text
        if key == "size_classes":
            return tuple(sorted({_number(key, part, 1, 8192) for part in text.split(",")}))
        if key == "kvmalloc":
            return () if text == "all" else tuple(_signed(int(part, 16)) for part in text.split(","))
        return _number(key, text, *LIMITS[key])
    except KeyError:
        raise RequestError(f"--set {key}={text}: expected on or off") from None
    except ValueError as error:
        raise error if isinstance(error, RequestError) else RequestError(f"--set {key}={text}: {error}") from None


def _ram(text: str) -> int:
    size = parse_size(text)
    if not 64 << 20 <= size <= 64 << 30 or size % (4 << 20):
        raise RequestError(f"--set ram={text}: expected 64 MiB to 64 GiB in steps of 4 MiB")
    return size


def _profile(text: str) -> str:
    try:
        return profiles.get(text).name
    except ProfileError as error:
        raise RequestError(f"--set profile={text}: {error}") from None


def _number(key: str, text: str, least: int, most: int) -> int:
    if not text.isdecimal() or not least <= int(text) <= most:
        raise RequestError(f"--set {key}={text}: expected a number from {least} to {most}")
    return int(text)


def _signed(address: int) -> int:
    return address - (1 << 64) if address >> 63 else address
