"""The twin's reports against those of a real kernel (tests/data/slub-debug-reports.txt, made by oracle/module/run-misuse.sh), KASAN and leaks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

import mmtwin
from mmtwin import errors
from mmtwin.gfp import GFP_KERNEL
from mmtwin.machine import Machine
from mmtwin.slub_debug import normalise_report

REPORTS = Path(__file__).parent / "data" / "slub-debug-reports.txt"
CMDLINE = "slub_debug=FZPU;FP,misuse_align"
GFP_DMA = GFP_KERNEL | 1


@functools.cache
def real() -> dict[str, list[str]]:
    """The real kernel's normalised lines by case."""
    cases: dict[str, list[str]] = {}
    name = ""
    for line in REPORTS.read_text().splitlines():
        if line.startswith("misuse: case "):
            name = line.removeprefix("misuse: case ")
            cases.setdefault(name, [])
        else:
            cases[name].append(line)
    return {name: normalise_report("\n".join(lines)) for name, lines in cases.items()}


class Case:
    """misuse.c's ``begin``: a cache of one slab, of which the two lowest objects p and q are taken."""

    def __init__(self, name: str, size: int = 40) -> None:
        self.m = mmtwin.boot(ram="128MiB", cpus=1, cmdline=CMDLINE)
        self.text: list[str] = []
        self.errors: list[mmtwin.MmtwinError] = []
        self.cache = self.m.kmem_cache_create(f"misuse_{name}", size) if size else self.m.kmem_caches()["dma-kmalloc-32"]
        self.row = self.m.slub.cache[self.cache.id]
        taken = sorted(self.take() for _ in range(int(self.row["objects"])))
        for address in taken[2:]:
            self.m.kfree(address)
        self.p, self.q = taken[:2]

    def take(self) -> int:
        if self.cache.name.startswith("misuse"):
            return self.m.kmem_cache_alloc(self.cache)
        return self.m.kmalloc(28, GFP_DMA)

    def do(self, call: Callable[..., object], *args: object) -> errors.SlubError | None:
        try:
            call(*args)
        except errors.SlubError as error:
            self.text.append(error.report)
            self.errors.append(error)
            return error
        return None

    def kfree(self, address: int) -> None:
        self.do(self.m.kfree, address)


def left(c: Case) -> None:
    c.m.write(c.p - 4, b"xxxx")
    c.kfree(c.p)


def right(c: Case) -> None:
    c.m.write(c.p, b"x" * 30)
    c.kfree(c.p)


def kmalloc(c: Case) -> None:
    c.m.write(c.p, b"x" * 33)
    c.kfree(c.p)


def poison(c: Case) -> None:
    c.kfree(c.p)
    c.m.write(c.p + 3, b"A")
    c.m.write(c.p + 5, b"B")
    c.do(c.take)
    c.kfree(c.q)


def end_poison(c: Case) -> None:
    c.kfree(c.p)
    c.m.write(c.p + 39, b"\0")
    c.do(c.take)


def padding(c: Case) -> None:
    c.m.write(c.p + int(c.row["size"]) - int(c.row["red_left_pad"]) - 8, bytes(4))
    c.kfree(c.p)


def freeptr(c: Case) -> None:
    c.m.write(c.p + int(c.row["offset"]), b"A" * 8)
    c.kfree(c.p)


def freeptr_alloc(c: Case) -> None:
    c.kfree(c.p)
    c.m.write(c.p + int(c.row["offset"]), b"A" * 8)
    c.do(c.take)


def chain(c: Case) -> None:
    c.kfree(c.p)
    c.m.write(c.p + int(c.row["offset"]), b"A" * 8)
    c.kfree(c.q)


def double(c: Case) -> None:
    c.kfree(c.p)
    c.kfree(c.p)


def invalid(c: Case) -> None:
    c.kfree(c.p + 8)


def wrong(c: Case) -> None:
    other = c.m.kmem_cache_create("misuse_other", 40)
    c.do(c.m.kmem_cache_free, other, c.p)


def never(c: Case) -> None:
    while True:
        cache = c.m.kmem_cache_create("misuse_never", 40)
        p = c.m.kmem_cache_alloc(cache)
        slot = (p & -4096) + int(c.m.slub.cache[cache.id]["red_left_pad"])
        if slot != p:
            break
    c.kfree(slot)


def slab_padding(c: Case) -> None:
    size = 4096 << int(c.row["order"])
    c.m.write((c.p & -size) + size - 4, bytes(2))
    c.kfree(c.p)


def destroy(c: Case) -> None:
    c.do(c.m.kmem_cache_destroy, c.cache)


def discard(c: Case) -> None:
    c.kfree(c.q)
    c.kfree(c.p)
    c.m.write(c.p + 7, b"C")
    c.do(c.m.kmem_cache_destroy, c.cache)


def align(c: Case) -> None:
    c.m.write(c.q + 21, b"\1")
    c.kfree(c.q)


SIZES = {"right": 28, "kmalloc": 0, "slab_padding": 600, "align": 20}
CASES = (left, right, kmalloc, poison, end_poison, padding, freeptr, freeptr_alloc, chain, double, invalid, wrong, never, slab_padding, destroy, discard, align)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_report_equals_the_kernels(case: Callable[[Case], None]) -> None:
    c = Case(case.__name__, SIZES.get(case.__name__, 40))
    case(c)
    assert normalise_report("".join(c.text)) == real()[case.__name__]


def test_every_real_case_is_compared() -> None:
    assert {case.__name__ for case in CASES} | {"end"} == set(real())


# What the errors say, and how the machine goes on


def test_the_error_names_what_happened_in_a_line() -> None:
    m = mmtwin.boot(ram="128MiB", cpus=1, cmdline="slub_debug=FZPU")
    p = m.kmalloc(28)
    m.write(p, b"x" * 33)
    with pytest.raises(
        errors.RedZoneOverwritten, match=r"^BUG kmalloc-32 \(Not tainted\): Right Redzone overwritten: object 0x\w+, allocated in test_slub_"
    ) as caught:
        m.kfree(p)
    assert "\n" not in str(caught.value)
    assert caught.value.report.endswith(f"FIX kmalloc-32: Object at 0x{p:016x} not freed\n")
    assert "pytest" not in caught.value.report.splitlines()[5]
    m.kfree(p)  # restored, so now it can be
    with pytest.raises(errors.ObjectAlreadyFree, match=r"\(Tainted: G    B") as again:
        m.kfree(p)
    assert isinstance(again.value, mmtwin.MmtwinError) and isinstance(again.value, errors.DoubleFree)


def test_behaving_well_finds_nothing() -> None:
    m = mmtwin.boot(ram="128MiB", cpus=2, cmdline="slub_debug=FZPU")
    live: list[tuple[int, int]] = []
    state = 7
    for step in range(600):
        state = state * 48271 % 2147483647
        if live and state % 5 < 2:
            p, n = live.pop(state % len(live))
            assert m.read(p, n) == bytes((n & 255,)) * n
            m.kfree(p, step % 2)
        else:
            n = (8, 20, 64, 100, 700, 5000, 9000)[state % 7]
            p = m.kmalloc(n, cpu=step % 2)
            m.write(p, bytes((n & 255,)) * n)
            live.append((p, n))
    for p, _ in live:
        m.kfree(p)
    for cache in m.kmem_caches().values():
        m.kmem_cache_shrink(cache)
    assert not m.leaks("object").height
    m.validate()


def test_an_allocation_that_finds_a_write_after_free_still_gives_another_object() -> None:
    m = mmtwin.boot(ram="128MiB", cpus=1, cmdline="slub_debug=FZPU")
    p, q = m.kmalloc(64), m.kmalloc(64)
    m.kfree(p)
    m.write(p, b"?")
    with pytest.raises(errors.PoisonOverwritten) as caught:
        m.kmalloc(64)
    other = caught.value.address
    assert other is not None and other not in (p, q)
    m.kfree(other)
    with pytest.raises(errors.SlabDisabled):
        m.kfree(q)


def test_a_double_free_cuts_the_free_list() -> None:
    m = mmtwin.boot(ram="128MiB", cpus=1, cmdline="slub_debug=FZPU")
    cache = m.kmem_cache_create("cut", 40)
    p, q = m.kmem_cache_alloc(cache), m.kmem_cache_alloc(cache)
    m.kmem_cache_free(cache, p)
    with pytest.raises(errors.ObjectAlreadyFree):
        m.kmem_cache_free(cache, p)
    with pytest.raises(errors.WrongObjectCount, match="Counter is 1 but counted were 29"):
        m.kmem_cache_free(cache, q)
    m.validate()


def test_bulk_and_other_options() -> None:
    m = mmtwin.boot(ram="128MiB", cpus=1, cmdline="slub_debug=FZ,cut-*")
    cache = m.kmem_cache_create("cut-1", 40)
    taken = m.kmem_cache_alloc_bulk(cache, 5)
    m.write(taken[1] + 40, b"!")
    with pytest.raises(errors.RedZoneOverwritten):
        m.kmem_cache_free_bulk(cache, taken)
    m.kmem_cache_free(cache, taken[1])
    m.kmem_cache_destroy(cache)
    assert "cut-1" not in m.kmem_caches()
    m.validate()
    copy = mmtwin.boot(ram="128MiB", cpus=1, cmdline="slub_debug").copy()
    p = copy.kmalloc(8)
    copy.write(p + 8, b"!")
    with pytest.raises(errors.RedZoneOverwritten):
        copy.copy().kfree(p)


# KASAN


@pytest.fixture
def kasan() -> Machine:
    return mmtwin.boot(ram="128MiB", cpus=1, cmdline="kasan=on")


def test_kasan_out_of_bounds(kasan: Machine) -> None:
    p = kasan.kmalloc(28)
    kasan.write(p, b"x" * 28)
    with pytest.raises(errors.SlabOutOfBounds) as caught:
        kasan.write(p + 28, b"y" * 5)
    lines = caught.value.report.splitlines()
    assert lines[1].startswith("BUG: KASAN: slab-out-of-bounds in test_slub_debug.py:")
    assert lines[2] == f"Write of size 5 at addr {p + 28:016x} by task python/0"
    at = lines.index(f"The buggy address belongs to the object at {p:016x}")
    assert lines[at + 1 : at + 4] == [
        " which belongs to the cache kmalloc-32 of size 32", "The buggy address is located 28 bytes inside of", f" 32-byte region [{p:016x}, {p + 32:016x})",
    ]  # fmt: skip
    shadow = next(line for line in lines if line.startswith(">"))
    first = lines.index(shadow)
    assert shadow[19 + (p + 24 & 127) // 8 * 3 :][:2] == "04"
    assert lines[first + 1].index("^") == 19 + (p + 24 & 127) // 8 * 3
    assert kasan.read(p, 28) == b"x" * 28
    with pytest.raises(errors.SlabOutOfBounds):
        kasan.read(p, 29)
    with pytest.raises(errors.KasanError):  # the object before it, or a slab's beginning
        kasan.read(p - 1, 1)


def test_kasan_use_after_free_and_bad_frees(kasan: Machine) -> None:
    p = kasan.kmalloc(64)
    with pytest.raises(errors.KasanInvalidFree, match="invalid-free"):
        kasan.kfree(p + 8)
    kasan.kfree(p)
    with pytest.raises(errors.UseAfterFree, match="use-after-free") as caught:
        kasan.read(p + 3, 5)
    assert "Allocated by task 0:" in caught.value.report and "Freed by task 0:" in caught.value.report
    with pytest.raises(errors.KasanDoubleFree, match="double-free"):
        kasan.kfree(p)
    q = kasan.kmalloc(40)
    kasan.write(kasan.krealloc(q, 60), b"x" * 60)
    kasan.validate()


# Leaks


def test_leaks_by_call_site() -> None:
    m = mmtwin.boot(ram="128MiB", cpus=1, cmdline="slub_debug=U")
    kept = [m.kmalloc(28) for _ in range(5)]
    m.kfree(kept.pop())
    m.kmalloc(1000)
    table = m.leaks(by="callsite")
    assert table["objects"].to_list() == [4, 1]
    assert table["bytes"].to_list() == [128, 1024] and table["waste"].to_list() == [16, 24]
    assert all(site.startswith("test_slub_debug.py:") for site in table["callsite"])
    assert m.leaks("cache")["cache"].to_list() == ["kmalloc-32", "kmalloc-1k"]
    assert set(kept) <= set(m.leaks("object")["address"])
    with pytest.raises(mmtwin.RequestError):
        m.leaks("colour")
    with pytest.raises(mmtwin.RequestError, match="slub_debug=U"):
        mmtwin.boot(ram="128MiB").leaks()
