"""What a real kernel's kmalloc, krealloc, kcalloc and ksize answered, against the rules of slab_common."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for plain `pytest`, which does not put the directory there

from mmtwin.mm import slab_common as sc
from mmtwin.units import get_order
from tests.data_kmalloc_probe import KmallocRange, ProbeRun, probe_runs

GFP_ZERO = 0x100


@pytest.fixture(scope="module")
def first() -> ProbeRun:
    """The run that asks everything."""
    return probe_runs()[0]


def test_constants(first: ProbeRun) -> None:
    constants = {
        "kmalloc_min_size": sc.KMALLOC_MIN_SIZE, "kmalloc_max_cache_size": sc.KMALLOC_MAX_CACHE_SIZE, "kmalloc_max_size": sc.KMALLOC_MAX_SIZE,
        "kmalloc_types": len(sc.KMALLOC_TYPE_PREFIX), "zero_size_ptr": sc.ZERO_SIZE_PTR, "cache_line_size": sc.CACHE_LINE_SIZE,
    }  # fmt: skip
    assert {name: first.header[name] for name in constants} == constants


def test_what_was_asked(first: ProbeRun) -> None:
    """Every size from 0 to 9000, in process context with all kinds of flags, under a spin lock, in a softirq and in a hard interrupt."""
    asked = {(r.context, r.gfp) for r in first.kmalloc}
    process = {0xCC0, 0xA20, 0x800, 0xCC1, 0xCD0, 0x400CC0, 0xDC0, 0xC00, 0xC40, 0x400CD1, 0x400CD0, 0xB20, 0xDC1}
    assert asked == {("process", gfp) for gfp in process} | {("spinlock", 0xA20), ("spinlock", 0x800), ("softirq", 0xA20), ("hardirq", 0xA20)}
    for context, gfp in asked:
        sizes = [size for r in first.kmalloc if (r.context, r.gfp) == (context, gfp) for size in (r.first, r.last)]
        assert sizes == sorted(sizes)
        dense = [r for r in first.kmalloc if (r.context, r.gfp) == (context, gfp) and r.first <= 9000]
        assert all(b.first == a.last + 1 for a, b in pairwise(dense))
        assert (dense[0].first, dense[-1].last) == (0, 9000)
    contexts = {words["name"]: words for words, _ in first.lines["context"]}
    assert contexts["softirq"]["in_softirq"] == 1
    assert contexts["hardirq"]["in_hardirq"] == 1


def expected(size: int, gfp: int) -> KmallocRange:
    """What the rules say kmalloc answers, without context."""
    answer = KmallocRange("", gfp, size, size, sc.kmalloc_size_roundup(size), None)
    if size > sc.KMALLOC_MAX_SIZE:
        return answer
    answer = answer._replace(cache="-", align=sc.kmalloc_alignment(size), zero=1 if gfp & GFP_ZERO else -1, dma=1 if gfp & sc.GFP_DMA else -1)
    if not size:
        return answer
    answer = answer._replace(ksize=sc.kmalloc_size_roundup(size), pages_order=get_order(size))
    if size > sc.KMALLOC_MAX_CACHE_SIZE:
        return answer
    name = sc.kmalloc_name(sc.kmalloc_type(gfp), size)
    made = next(c for c in sc.create_kmalloc_caches() if c.name == name)
    geometry = sc.open_cache(name, made.object_size, made.align, made.flags)
    assert geometry is not None
    return answer._replace(cache=name, ksize=sc.slab_ksize(geometry), pages_order=geometry.order)


def test_kmalloc_of_every_size(first: ProbeRun) -> None:
    """Class, ksize, rounding, alignment, contiguity, zeroing, place below 16 MiB: the same in all contexts, equal to the rules for both ends of each range."""
    sizes = 0
    for real in first.kmalloc:
        for size in {real.first, real.last}:
            assert real._replace(context="", first=size, last=size) == expected(size, real.gfp), real
        if real.first:
            assert sc.kmalloc_size_roundup(real.first) == sc.kmalloc_size_roundup(real.last)
        sizes += real.last - real.first + 1
    assert sizes > 17 * 9000


def test_only_what_asks_for_zeroes_gets_them(first: ProbeRun) -> None:
    """Each object had been filled with other bytes and freed before; init_on_alloc was off."""
    for words, _ in first.lines["unzeroed"]:
        if int(words["gfp"]) & GFP_ZERO:
            assert words["sizes"] == 0, words
        else:
            assert int(words["sizes"]) > 0.99 * int(words["of"]), words


def arrays_and_reallocs() -> list[ProbeRun]:
    """The runs that asked for arrays: with init_on_alloc=0, and as Debian boots (1)."""
    found = [run for run in probe_runs() if "array" in run.lines]
    assert ["init_on_alloc=0" in run.cmdline for run in found] == [True, False]
    return found


def test_arrays() -> None:
    """A product above SIZE_MAX gives NULL, as does one above 4 MiB; otherwise it is kmalloc of the product, for kcalloc zeroed to the end."""
    for run in arrays_and_reallocs():
        overflowed = 0
        for words, _ in run.lines["array"]:
            size = int(words["n"]) * int(words["size"])
            overflowed += size > sc.SIZE_MAX
            if size > sc.KMALLOC_MAX_SIZE:
                assert "ksize" not in words and "zero_size_ptr" not in words, words
            elif not size:
                assert words["zero_size_ptr"] == sc.ZERO_SIZE_PTR
            else:
                assert words["ksize"] == sc.kmalloc_size_roundup(size)
                assert words["zero"] == (1 if words["how"] == "kcalloc" else -1)
        assert overflowed >= 14


def test_krealloc() -> None:
    """The same pointer while it fits (it never shrinks), NULL for too much, ZERO_SIZE_PTR for nothing; what fits is kept."""
    for run in arrays_and_reallocs():
        kept = 0
        for words, _ in run.lines["krealloc"]:
            before, after = int(words["from"]), int(words["to"])
            room = sc.kmalloc_size_roundup(before)
            assert words["ksize_before"] == room
            if after > sc.KMALLOC_MAX_SIZE:
                assert "ksize" not in words and "zero_size_ptr" not in words, words
            elif not after:
                assert words["zero_size_ptr"] == sc.ZERO_SIZE_PTR
            else:
                same = room >= after
                assert words["same"] == int(same), words
                assert words["ksize"] == (room if same else sc.kmalloc_size_roundup(after)), words
                assert words["kept"] == 1
                kept += 1
        assert kept > 250
        null = {int(words["to"]): words for words, _ in run.lines["krealloc_null"]}
        assert null[100]["ksize"] == sc.kmalloc_size_roundup(100)
        assert null[0]["zero_size_ptr"] == sc.ZERO_SIZE_PTR
        assert run.lines["ksize_of"] == [({"null": 0, "zero_size_ptr": 0}, None)]


def test_kzalloc() -> None:
    for run in arrays_and_reallocs():
        assert len(run.lines["kzalloc"]) > 15
        for words, _ in run.lines["kzalloc"]:
            assert words["ksize"] == sc.kmalloc_size_roundup(int(words["size"]))
            assert words["zero"] == 1
