"""The heap from Python: what the C library said and did when it was given the same scripts, errors, threads, copies, and random calls with every invariant checked."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from mmtwin.errors import (
    BadFree,
    DoubleFree,
    InvariantError,
    MallocAbort,
    MallocDoubleFree,
    MallocFailure,
    MallocInvalidFree,
    MmtwinError,
    RequestError,
    SegmentationFault,
)
from mmtwin.user.heap import Heap

DATA = Path(__file__).parents[1] / "data"
SCRIPTS = [json.loads(line) for line in (DATA / "malloc-scripts-2.36.jsonl").read_text().splitlines()]


def run(heap: Heap, script: str) -> str:
    """Does to a heap what oracle/malloc/script.c does to the C library's; returns what it prints."""
    block, printed = dict.fromkeys(range(256), 0), ""
    for command in script.split("; "):
        letter, *words = command.split()
        n = [int(word, 0) for word in words] + [0] * 4
        at = block[n[0] & 255] + n[1]

        def put(value: int, at: int = at) -> None:
            heap.write(at, (value & (1 << 64) - 1).to_bytes(8, "little"))

        if letter == "m":
            block[n[0]] = heap.malloc(n[1])
        elif letter == "c":
            block[n[0]] = heap.calloc(1, n[1])
        elif letter == "a":
            block[n[0]] = heap.memalign(n[1], n[2])
        elif letter == "r":
            block[n[0]] = heap.realloc(block[n[1]], n[2])
        elif letter == "f":
            heap.free(at)
        elif letter == "t":
            heap.malloc_trim(n[0])
        elif letter == "w":
            put(n[2])
        elif letter == "x":
            put(int.from_bytes(heap.read(at, 8), "little") ^ n[2])
        elif letter == "p":
            put(block[n[2]] + n[3])
        elif letter == "s":
            put((block[n[2]] + n[3]) ^ at >> 12)
        elif letter == "o":
            heap.mallopt(n[0], n[1])
        elif letter == "i":
            printed += " ".join(map(str, heap.mallinfo2().values())) + "\n" + heap.malloc_info()
    return printed


@pytest.mark.parametrize("case", SCRIPTS, ids=[case["title"] for case in SCRIPTS])
def test_the_c_librarys_words(case: dict[str, Any]) -> None:
    heap = Heap()
    if case["status"] == 0:
        assert run(heap, case["script"]) == case["stdout"]
        assert case["stderr"].endswith(heap.malloc_stats()) or not case["stdout"]
        return
    with pytest.raises(MallocAbort) as caught:
        run(heap, case["script"])
    first_line = case["stderr"].splitlines()[0]
    assert first_line == str(caught.value) or first_line.startswith(str(caught.value) + " in ")
    assert caught.value.report == f"{caught.value}\nAborted"
    with pytest.raises(MallocAbort, match="the process has ended"):
        heap.malloc(1)


def test_addresses_of_a_small_program() -> None:
    heap = Heap()
    assert heap.malloc(100) == 0x55555555A2A0
    large = heap.malloc(200_000)
    assert large % 4096 == 16 and heap.chunk(large).mmapped and heap.malloc_usable_size(large) == 200_688
    heap.free(large)
    assert heap.malloc(200_000) < 0x555555600000, "the threshold followed what was freed"
    assert heap.malloc(10, thread=1) == 0x7FFFF0000B70
    assert len(heap.arenas()) == 2
    heap.validate()


def test_classes_of_errors() -> None:
    heap = Heap()
    block = heap.malloc(24)
    heap.free(block)
    copy = heap.copy()
    with pytest.raises(DoubleFree) as double:
        heap.free(block)
    assert isinstance(double.value, MallocDoubleFree)
    assert pickle.loads(pickle.dumps(double.value)).report == double.value.report
    with pytest.raises(BadFree) as bad:
        copy.free(block + 16)
    assert isinstance(bad.value, MallocInvalidFree)
    with pytest.raises(SegmentationFault):
        Heap().free(0x123450)
    with pytest.raises(SegmentationFault):
        Heap().read(0x123450, 8)
    for misuse in (
        lambda: Heap(tunables={"tcache": 1}), lambda: Heap(tunables={"tcache_count": 65536}), lambda: Heap().malloc(-1), lambda: Heap().malloc(1 << 64),
        lambda: Heap().malloc(1, thread=-1), lambda: Heap().free(-1), lambda: Heap().mallopt(1, 1 << 31),
    ):  # fmt: skip
        with pytest.raises(RequestError):
            misuse()


def test_requests_that_cannot_be_met() -> None:
    heap = Heap()
    for request in (
        lambda: heap.malloc(1 << 63), lambda: heap.malloc((1 << 64) - 1), lambda: heap.malloc(1 << 47), lambda: heap.calloc(1 << 40, 1 << 40), lambda: heap.memalign(1 << 62, 1),
        lambda: heap.realloc(0, 1 << 50), lambda: heap.posix_memalign(24, 8), lambda: heap.posix_memalign(0, 8), lambda: heap.memalign((1 << 63) + 1, 8),
    ):  # fmt: skip
        with pytest.raises(MallocFailure) as caught:
            request()
        assert caught.value.errno in (12, 22)
        assert pickle.loads(pickle.dumps(caught.value)).errno == caught.value.errno
    assert heap.malloc(8)
    heap.validate()


def test_calls_that_do_little() -> None:
    heap = Heap()
    heap.free(0)
    block = heap.realloc(0, 40)
    assert heap.realloc(block, 0) == 0 and heap.malloc(40) == block
    assert heap.malloc_usable_size(0) == 0 and heap.malloc_usable_size(block) == 40
    assert heap.valloc(10) % 4096 == 0 and heap.aligned_alloc(256, 10) % 256 == 0
    assert not heap.mallopt(1, 161) and heap.mallopt(1, 0)
    assert heap.read(block - 8, 8) == (49).to_bytes(8, "little")


def test_safe_linking_and_key_in_memory() -> None:
    heap = Heap()
    a, b = heap.malloc(24), heap.malloc(24)
    heap.free(a)
    heap.free(b)
    assert int.from_bytes(heap.read(b, 8), "little") == a ^ b >> 12
    assert int.from_bytes(heap.read(a, 8), "little") == a >> 12
    assert heap.read(a + 8, 8) == heap.read(b + 8, 8) != bytes(8)
    assert heap.tcache() == {32: [b, a]}


def test_tunables() -> None:
    heap = Heap(tunables={"tcache_count": 0, "mxfast": 0})
    a, _ = heap.malloc(24), heap.malloc(24)
    heap.free(a)
    assert heap.bins() == {1: [a - 16]} and not heap.tcache() and not heap.fastbins()
    assert Heap(tunables={"tcache_max": 100}).state.mp[0]["tcache_bins"] == 6
    few = Heap(tunables={"arena_max": 2})
    for thread in range(6):
        few.malloc(10, thread=thread)
    assert len(few.arenas()) == 2


def test_threads_and_their_arenas() -> None:
    heap = Heap(cpus=1)
    blocks = [heap.malloc(50, thread=thread) for thread in range(12)]
    assert len(heap.arenas()) == 9, "8 for the processor are in use when the limit is set"
    heap.thread_exit(3)
    heap.validate()
    again = heap.malloc(50, thread=30)
    assert again >> 26 == blocks[3] >> 26, "an arena that nobody uses any more is the first choice"
    for thread, block in enumerate(blocks):
        heap.free(block, thread=(thread + 7) % 12 + 40)
    heap.validate()


def test_broken_invariants_are_named() -> None:
    heap = Heap()
    a, b = heap.malloc(2000), heap.malloc(24)
    heap.free(a)
    heap.validate()
    heap.write(b - 16, bytes(8))
    with pytest.raises(InvariantError, match="the one behind it says 0"):
        heap.validate()


class RandomCalls(RuleBasedStateMachine):
    """Blocks never overlap and stay where they are; every invariant holds after each call."""

    blocks = Bundle("blocks")
    sizes = st.one_of(st.integers(0, 1200), st.integers(0, 5000), st.integers(0, 400_000))

    def __init__(self) -> None:
        super().__init__()
        self.heap = Heap(heap_limit=1 << 28)
        self.live: dict[int, int] = {}

    def add(self, address: int, size: int) -> int:
        assert address % 16 == 0 and self.heap.malloc_usable_size(address) >= size
        assert all(address + size <= other or other + length <= address for other, length in self.live.items())
        self.live[address] = size
        return address

    @rule(target=blocks, size=sizes, thread=st.integers(0, 2), clear=st.booleans())
    def malloc(self, size: int, thread: int, clear: bool) -> int:
        return self.add(self.heap.calloc(1, size, thread=thread) if clear else self.heap.malloc(size, thread=thread), size)

    @rule(target=blocks, size=sizes, alignment=st.integers(0, 16))
    def memalign(self, size: int, alignment: int) -> int:
        address = self.heap.memalign(1 << alignment, size)
        assert address % (1 << alignment) == 0
        return self.add(address, size)

    @rule(target=blocks, block=consumes(blocks), size=sizes.map(lambda size: size + 1))
    def realloc(self, block: int, size: int) -> int:
        del self.live[block]
        return self.add(self.heap.realloc(block, size), size)

    @rule(block=consumes(blocks), thread=st.integers(0, 2))
    def free(self, block: int, thread: int) -> None:
        del self.live[block]
        self.heap.free(block, thread=thread)

    @rule(thread=st.integers(3, 6), size=sizes)
    def short_thread(self, thread: int, size: int) -> None:
        if thread >= len(self.heap.state.thread) or int(self.heap.state.thread[thread]["state"]) != 2:
            self.heap.free(self.heap.malloc(size, thread=thread), thread=thread)
            self.heap.thread_exit(thread)

    @rule(pad=st.integers(0, 100_000))
    def trim(self, pad: int) -> None:
        self.heap.malloc_trim(pad)

    @invariant()
    def valid(self) -> None:
        self.heap.validate()


RandomCalls.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
TestRandomCalls = RandomCalls.TestCase


def test_wild_writes_never_break_the_twin() -> None:
    import random

    r = random.Random(5)
    ended = set()
    for _ in range(150):
        heap, blocks = Heap(heap_limit=1 << 27), []
        try:
            for _ in range(120):
                what = r.random()
                if what < 0.4:
                    blocks.append(heap.malloc(int(r.expovariate(1 / 300))))
                elif blocks and what < 0.8:
                    heap.free(blocks[r.randrange(len(blocks))] + r.choice((0,) * 20 + (8, 16, 1)))
                elif blocks and what < 0.9:
                    heap.write(
                        blocks[r.randrange(len(blocks))] + 8 * r.randrange(-3, 8), r.choice((bytes(8), r.randbytes(8), r.choice(blocks).to_bytes(8, "little")))
                    )
                elif blocks:
                    heap.realloc(r.choice(blocks), r.randrange(1, 3000))
        except MmtwinError as error:
            ended.add(str(error))
    assert len(ended) > 5
