"""The machine: booting, requests, errors, and random use with all invariants checked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import mmtwin
from mmtwin import (
    GFP_ATOMIC,
    GFP_HIGHUSER_MOVABLE,
    GFP_KERNEL,
    GFP_NOWAIT,
    AllocationFailure,
    BadFree,
    DoubleFree,
    InvariantError,
    MmtwinError,
    ProfileError,
    RequestError,
)
from mmtwin.machine import FRAMES_OF, Machine, boot
from mmtwin.mm.validate import free_blocks
from mmtwin.profiles import get
from mmtwin.profiles.physical import MemoryRange

REQUESTS = (GFP_KERNEL, GFP_HIGHUSER_MOVABLE, GFP_ATOMIC, GFP_NOWAIT, GFP_KERNEL | 0x10, GFP_KERNEL | 0x1, GFP_KERNEL | 0x4, GFP_KERNEL | 0x20000)


class Use(RuleBasedStateMachine):
    """Random use of a small machine. The model only knows which frames it holds."""

    @initialize(ram=st.integers(2, 16), cpus=st.integers(1, 3))
    def begin(self, ram: int, cpus: int) -> None:
        self.machine = boot(ram=ram << 22, cpus=cpus, reserved=())
        self.held: list[tuple[int, int]] = []
        self.frames: set[int] = set()

    def keep(self, pfn: int, order: int) -> None:
        block = set(range(pfn, pfn + (1 << order)))
        assert pfn % (1 << order) == 0 and not block & self.frames
        assert any(start <= pfn and pfn + (1 << order) <= end for start, end in self.machine.ram)
        self.frames |= block
        self.held.append((pfn, order))

    def give(self, choice: int) -> tuple[int, int]:
        pfn, order = self.held.pop(choice % len(self.held))
        self.frames -= set(range(pfn, pfn + (1 << order)))
        return pfn, order

    @rule(order=st.integers(0, 10), gfp=st.sampled_from(REQUESTS), cpu=st.integers(0, 2), times=st.integers(1, 40))
    def alloc(self, order: int, gfp: int, cpu: int, times: int) -> None:
        for _ in range(times):
            try:
                self.keep(self.machine.alloc_pages(order, gfp, cpu % self.machine.cpus), order)
            except AllocationFailure as failure:
                assert failure.errno == (-11 if gfp & 0x400 else -12) and failure.order == order and failure.gfp == gfp
                break

    @precondition(lambda self: self.held)
    @rule(choice=st.integers(0, 1 << 20), cpu=st.integers(0, 2), times=st.integers(1, 60))
    def free(self, choice: int, cpu: int, times: int) -> None:
        for _ in range(min(times, len(self.held))):
            self.machine.free_pages(*self.give(choice), cpu % self.machine.cpus)

    @rule(n=st.integers(0, 300), gfp=st.sampled_from(REQUESTS), cpu=st.integers(0, 2))
    def bulk(self, n: int, gfp: int, cpu: int) -> None:
        try:
            pages = self.machine.alloc_pages_bulk(n, gfp, cpu % self.machine.cpus)
        except AllocationFailure:
            return
        assert bool(pages) == bool(n) and len(pages) <= n
        for pfn in pages:
            self.keep(pfn, 0)

    @rule(pages=st.integers(1, 1024), gfp=st.sampled_from(REQUESTS), cpu=st.integers(0, 2))
    def exact(self, pages: int, gfp: int, cpu: int) -> None:
        try:
            first = self.machine.alloc_pages_exact(pages * 4096 - 7, gfp, cpu % self.machine.cpus)
        except AllocationFailure:
            return
        for pfn in range(first, first + pages):
            self.keep(pfn, 0)

    @rule(cpu=st.integers(0, 2), limit=st.integers(1, 500))
    def free_list(self, cpu: int, limit: int) -> None:
        singles = [i for i, (_, order) in enumerate(self.held) if order == 0][-limit:]
        self.machine.free_pages_list([self.give(i)[0] for i in reversed(singles)], cpu % self.machine.cpus)

    @rule(cpu=st.none() | st.integers(0, 2), here=st.integers(0, 2))
    def drain(self, cpu: int | None, here: int) -> None:
        self.machine.drain(None if cpu is None else cpu % self.machine.cpus, here % self.machine.cpus)
        if cpu is None:
            assert not self.machine.state.pcp["count"].any()

    @precondition(lambda self: self.held)
    @rule(choice=st.integers(0, 1 << 20), shift=st.integers(-3, 3))
    def misuse(self, choice: int, shift: int) -> None:
        before = self.machine.digest()
        pfn, order = self.held[choice % len(self.held)]
        wrong = order + shift
        if shift and 0 <= wrong <= 10:
            with pytest.raises((BadFree, DoubleFree)):
                self.machine.free_pages(pfn, wrong)
        assert self.machine.digest() == before

    @invariant()
    def consistent(self) -> None:
        self.machine.validate()
        assert self.machine.managed == self.machine.free + int(self.machine.state.pcp["count"].sum()) + len(self.frames)


Use.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestUse = Use.TestCase


def test_boot_is_deterministic_and_reserves_nothing_twice() -> None:
    a, b = boot(), boot()
    assert a.digest() == b.digest()
    a.validate()
    blocks = free_blocks(a.state)
    taken = np.zeros(int(a.state.config[0]["nr_frames"]), dtype=bool)
    for pfn, order in zip(blocks.pfn.tolist(), blocks.order.tolist(), strict=True):
        taken[pfn : pfn + (1 << order)] = True
    for start, end in a.reserved:
        assert not taken[start:end].any()
    assert taken.sum() == a.managed == a.free
    assert blocks.migratetype.tolist() == [1] * len(blocks.pfn)


def test_boot_arguments() -> None:
    assert boot(get("6.1"), ram=256 << 20).digest() == boot("6.1", "256M").digest()
    custom = boot(memory_map=[MemoryRange(0x100000, 8 << 20, 1)], reserved=[(256, 300)], cpus=1)
    assert custom.managed == 2048 - 44 and custom.ram == ((256, 2304),)
    with_disk = boot(initrd="16MiB")
    assert with_disk.managed == boot().managed
    assert with_disk.state.config[0]["min_free_kbytes"] < boot().state.config[0]["min_free_kbytes"]
    assert boot(ram="1GiB").state.config[0]["min_free_kbytes"] == 45056
    assert boot(ram="1GiB", thp=False).state.config[0]["min_free_kbytes"] < 5000
    assert boot(ram="256MiB", thp=True).state.config[0]["min_free_kbytes"] > 5000
    assert boot(ram="512MiB").state.config[0]["min_free_kbytes"] < 5000  # less than 512 MiB are managed


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"profile": "linux-9"}, ProfileError, "known: linux-6.1"),
        ({"ram": "32MiB"}, ProfileError, r"32 MiB of memory: linux-6.1 itself reaches to 55 MiB; give more, or reserved=\(\)"),
        ({"ram": "x"}, RequestError, "'x' is not a size"),
        ({"ram": 4097}, RequestError, "multiple of 4096"),
        ({"ram": 0}, RequestError, "expected 2 MiB"),
        ({"ram": "4TiB"}, RequestError, "just below 4 TiB"),
        ({"cpus": 0}, RequestError, "0 CPUs: expected 1 to 8192"),
        ({"initrd": "1GiB"}, ProfileError, "give more"),
        ({"memory_map": ()}, RequestError, "expected memory"),
    ],
)
def test_boot_errors(arguments: dict[str, object], error: type[MmtwinError], message: str) -> None:
    with pytest.raises(error, match=message):
        boot(**arguments)  # type: ignore[arg-type]


def test_large_machines_boot() -> None:
    machine = boot(ram="64GiB", cpus=16)
    machine.validate()
    assert machine.bytes_per_frame < 16
    assert machine.alloc_pages(0, GFP_KERNEL) >= 1 << 20


def test_impossible_requests_change_nothing() -> None:
    machine = boot(ram="64MiB", reserved=(), cpus=2)
    pfn = machine.alloc_pages(2, GFP_KERNEL)
    before = machine.digest()
    for attempt, error, message in (
        (lambda: machine.alloc_pages(-1, GFP_KERNEL), RequestError, "order -1: expected 0 to 10"),
        (lambda: machine.alloc_pages(11, GFP_KERNEL), AllocationFailure, r"order:11, mode:0xcc0\(GFP_KERNEL\).*largest block has order 10 \(4 MiB\)"),
        (lambda: machine.alloc_pages(0, GFP_KERNEL, 2), RequestError, "CPU 2: this machine has CPUs 0 to 1"),
        (lambda: machine.alloc_pages(0, GFP_KERNEL, -1), RequestError, "CPU -1"),
        (lambda: machine.alloc_pages(0, 0x5), RequestError, "select no zone"),
        (lambda: machine.alloc_pages(0, 0x18), RequestError, "exclude each other"),
        (lambda: machine.alloc_pages(0, 1 << 24), RequestError, "no GFP flags of linux-6.1"),
        (lambda: machine.alloc_pages(0, -1), RequestError, "no GFP flags"),
        (lambda: machine.alloc_pages_bulk(-1, GFP_KERNEL), RequestError, "-1 pages"),
        (lambda: machine.alloc_pages_exact(0, GFP_KERNEL), RequestError, "at least 1 byte"),
        (lambda: machine.alloc_pages_exact((4 << 20) + 1, GFP_KERNEL), AllocationFailure, "order:11"),
        (lambda: machine.free_pages(pfn, 11), RequestError, "largest block"),
        (lambda: machine.free_pages(pfn, 1), BadFree, r"cannot be freed with order 1: it was allocated with order 2"),
        (lambda: machine.free_pages(pfn + 1, 0), BadFree, r"inside the block at pfn:0\w+ of order 2"),
        (lambda: machine.free_pages(pfn + 1, 1), BadFree, "begins at a multiple of 2"),
        (lambda: machine.free_pages(0, 0), BadFree, "not memory of this machine"),
        (lambda: machine.free_pages(-5, 0), BadFree, "not memory of this machine"),
        (lambda: machine.free_pages(1 << 40, 0), BadFree, "not memory of this machine"),
        (lambda: machine.free_pages_list([pfn, 1 << 40]), BadFree, "not memory of this machine"),
        (lambda: machine.free_pages(8192, 0), DoubleFree, "on a free list"),
        (lambda: machine.drain(cpu=5), RequestError, "CPU 5"),
        (lambda: machine.frame("nothing"), RequestError, "there are: zones, free"),
    ):
        with pytest.raises(error, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert machine.digest() == before, message
    with pytest.raises(TypeError):
        machine.alloc_pages(1.5, GFP_KERNEL)  # type: ignore[arg-type]


def test_double_free() -> None:
    machine = boot(ram="64MiB", reserved=(), cpus=1)
    single, block = machine.alloc_pages(0, GFP_KERNEL), machine.alloc_pages(5, GFP_KERNEL)
    machine.free_pages(single, 0)
    with pytest.raises(DoubleFree, match=r"page_ref_count\(page\) == 0.*on a per-CPU list \(order 0\)"):
        machine.free_pages(single, 0)
    machine.free_pages(block, 5)
    with pytest.raises(DoubleFree, match="on a free list"):
        machine.free_pages(block, 5)
    with pytest.raises(DoubleFree, match="inside the block at"):
        machine.free_pages(block + 1, 0)
    pages = machine.alloc_pages_bulk(4, GFP_KERNEL)
    with pytest.raises(DoubleFree, match=r"earlier in the same list|per-CPU list"):
        machine.free_pages_list([pages[0], pages[1], pages[0]])
    machine.validate()


def test_reserved_memory_is_not_to_be_freed() -> None:
    with pytest.raises(BadFree, match="reserved by the kernel at boot"):
        boot().free_pages(4096, 0)


def test_failure_says_what_comes_next() -> None:
    machine = boot(ram="16MiB", reserved=(), cpus=1)
    with pytest.raises(AllocationFailure) as caught:
        while True:
            machine.alloc_pages(0, GFP_KERNEL)
    failure = caught.value
    assert isinstance(failure, MemoryError) and isinstance(failure, MmtwinError)
    assert (failure.errno, failure.order, failure.gfp, failure.status) == (-11, 0, GFP_KERNEL, "needs reclaim")
    with pytest.raises(AllocationFailure) as caught:
        while True:
            machine.alloc_pages(0, GFP_ATOMIC)
    assert (caught.value.errno, caught.value.status) == (-12, "failed")
    assert "mode:0xa20(GFP_ATOMIC)" in str(caught.value)


def test_copy_is_independent() -> None:
    machine = boot(ram="64MiB", reserved=(), cpus=1)
    other = machine.copy()
    assert other.digest() == machine.digest()
    first = other.alloc_pages(0, GFP_KERNEL)
    assert other.digest() != machine.digest()
    assert machine.alloc_pages(0, GFP_KERNEL) == first
    assert other.digest() == machine.digest()


def test_validate_finds_damage() -> None:
    machine = boot(ram="64MiB", reserved=(), cpus=1)
    machine.state.zone[1]["nr_free_pages"] += 1
    with pytest.raises(InvariantError):
        machine.validate()


def test_frames() -> None:
    machine = boot(cpus=2)
    machine.alloc_pages(0, GFP_KERNEL)
    tables = {what: machine.frame(what) for what in FRAMES_OF}
    assert tables["zones"]["zone"].to_list() == ["DMA", "DMA32"]
    assert tables["zones"]["managed_pages"].to_list() == [3840, 51754]
    assert (tables["free"]["order"].to_numpy() >= 0).all() and sum(1 << o for o in tables["free"]["order"]) == machine.free
    assert tables["buddyinfo"]["blocks"].sum() == len(tables["free"])
    assert tables["pcp"].shape[0] == 4 and tables["pcp"]["count"].sum() == len(tables["pcp_pages"])
    assert tables["pageblocks"]["migratetype"].value_counts().sort("count")["migratetype"].to_list() == ["Unmovable", "Movable"]


def test_public_names() -> None:
    assert set(mmtwin.__all__) <= set(dir(mmtwin))
    for name in mmtwin.__all__:
        assert getattr(mmtwin, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mmtwin.nothing
    assert repr(Machine.__mro__[0]) and "2 CPUs" in repr(boot())


def test_import_is_light() -> None:
    code = "import sys, mmtwin; print([name for name in ('numpy', 'numba', 'polars') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


DIGEST = """
import random, mmtwin
from mmtwin import AllocationFailure
r, m, held = random.Random(1), mmtwin.boot(ram="64MiB", cpus=3, reserved=()), []
gfps = (0xCC0, 0x100CCA, 0xA20, 0x800, 0xCD0, 0xCC1)
for i in range(20000):
    cpu, what = r.randrange(3), r.random()
    try:
        if what < 0.5:
            order = min(10, int(r.expovariate(1.2)))
            held.append((m.alloc_pages(order, r.choice(gfps), cpu), order))
        elif what < 0.51:
            held += [(p, 0) for p in m.alloc_pages_bulk(r.randrange(50), r.choice(gfps), cpu)]
        elif what < 0.512:
            singles = [i for i, (_, order) in enumerate(held) if order == 0][:64]
            m.free_pages_list([held[i][0] for i in singles], cpu)
            for i in reversed(singles):
                del held[i]
        elif what < 0.513:
            m.drain(here=cpu)
        elif held:
            m.free_pages(*held.pop(r.randrange(len(held))), cpu)
    except AllocationFailure:
        for _ in range(min(200, len(held))):
            m.free_pages(*held.pop(r.randrange(len(held))), cpu)
m.validate()
print(m.digest())
"""


def test_same_state_compiled_checked_and_interpreted() -> None:
    """The compiled code, the compiled code with bounds checks and plain Python do the same."""
    source = str(Path(mmtwin.__file__).parents[1])
    found = {}
    for mode in ({}, {"NUMBA_BOUNDSCHECK": "1"}, {"NUMBA_DISABLE_JIT": "1"}):
        clean = {name: value for name, value in os.environ.items() if name not in ("NUMBA_BOUNDSCHECK", "NUMBA_DISABLE_JIT")}
        run = subprocess.run([sys.executable, "-c", DIGEST], env=clean | {"PYTHONPATH": source} | mode, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        found[next(iter(mode), "compiled")] = run.stdout.strip()
    assert len(set(found.values())) == 1 and all(len(digest) == 64 for digest in found.values()), found
