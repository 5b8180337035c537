"""Reads data/kmalloc-probe-6.1.txt.gz: what a real kernel answered to the module oracle/module/kmalloc_probe.c (oracle/module/run.sh made the file)."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

PROBE = Path(__file__).parent / "data" / "kmalloc-probe-6.1.txt.gz"
Value = int | str


class RealCache(NamedTuple):
    """The fields of a real ``struct kmem_cache``; the columns of the file's "geometry" lines."""

    name: str
    flags: int
    object_size: int
    size: int
    inuse: int
    offset: int
    align: int
    red_left_pad: int
    order: int
    objects: int
    min_order: int
    min_objects: int
    allocflags: int
    min_partial: int
    cpu_partial: int
    cpu_partial_slabs: int
    refcount: int
    useroffset: int
    usersize: int
    ctor: int


class KmallocRange(NamedTuple):
    """Sizes `first` to `last` that kmalloc answered alike, with 16 objects held at a time (1 or 2 for large sizes).

    :param context: process, spinlock, softirq or hardirq.
    :param cache: the cache's name, "-" for pages (and for a size of 0), None if kmalloc gave NULL.
    :param align: the largest power of two that all addresses were multiples of, at most the size rounded up to one; for a size of 0 the pointer.
    :param pages_order: order of the block of pages that the object lies in.
    :param linear: the physical address is the address less one constant.
    :param contiguous: first and last byte lie in one block of pages.
    :param zero: 1 zeroed up to ksize, 0 not, -1 if the request did not ask for it.
    :param dma: 1 below 16 MiB, 0 not, -1 if the request did not ask for it.
    """

    context: str
    gfp: int
    first: int
    last: int
    roundup: int
    cache: str | None
    ksize: int = 0
    align: int = 0
    pages_order: int = 0
    linear: int = 1
    contiguous: int = 1
    zero: int = -1
    dma: int = -1


@dataclass
class ProbeRun:
    """What one guest answered.

    :ivar header: the words of the lines "probe" and "constants".
    :ivar caches: all caches, oldest first, before anything else was asked.
    :ivar kmalloc: in the order asked.
    :ivar created: arguments of kmem_cache_create and how it ended, with the cache that came of it (None: NULL). A cache called "." is a new one.
    :ivar lines: all other lines by kind.
    """

    cpus: int
    cmdline: str
    header: dict[str, Value] = field(default_factory=dict)
    caches: list[RealCache] = field(default_factory=list)
    kmalloc: list[KmallocRange] = field(default_factory=list)
    created: list[tuple[dict[str, Value], RealCache | None]] = field(default_factory=list)
    lines: dict[str, list[tuple[dict[str, Value], RealCache | None]]] = field(default_factory=dict)


def _value(text: str) -> Value:
    try:
        return int(text, 0)
    except ValueError:
        return text


def _words(line: str) -> tuple[str, dict[str, Value], RealCache | None]:
    kind, *words = line.split()
    keyed = {key: _value(value) for key, equals, value in (w.partition("=") for w in words) if equals}
    plain = [w for w in words if "=" not in w and w != "null"]
    return kind, keyed, RealCache(plain[0], *(int(w, 0) for w in plain[1:])) if plain else None


def _runs(lines: Iterator[str]) -> Iterator[ProbeRun]:
    run: ProbeRun | None = None
    for line in lines:
        if line.startswith("run "):
            if run:
                yield run
            cpus, _, cmdline = line.removeprefix("run cpus=").partition(" cmdline=")
            run = ProbeRun(int(cpus), cmdline.strip())
            continue
        assert run is not None
        if line.startswith("geometry "):
            assert tuple(line.split()[1:]) == RealCache._fields
            continue
        kind, words, real = _words(line)
        if kind in ("probe", "constants"):
            run.header |= words
        elif kind == "cache" and real:
            run.caches.append(real)
        elif kind == "kmalloc":
            failed = "ksize" not in words
            words = {{"ctx": "context", "from": "first", "to": "last"}.get(k, k): v for k, v in words.items()} | ({"cache": None} if failed else {})  # type: ignore[dict-item]
            run.kmalloc.append(KmallocRange(**words))  # type: ignore[arg-type]
        elif kind == "create":
            run.created.append((words, real))
        else:
            run.lines.setdefault(kind, []).append((words, real))
    if run:
        yield run


@cache
def probe_runs() -> tuple[ProbeRun, ...]:
    """All runs of the file: the first asks everything on one CPU, the others a part of it with other boot options."""
    with gzip.open(PROBE, "rt") as file:
        return tuple(_runs(iter(file)))
