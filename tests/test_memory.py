"""Contents of page frames, and what a machine does with them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mmtwin
from mmtwin.errors import PageFault, RequestError
from mmtwin.gfp import GFP_KERNEL
from mmtwin.memory import Memory

SIZE = 4 * 4096
WRITES = st.lists(st.tuples(st.integers(0, SIZE - 1), st.one_of(st.binary(max_size=6000), st.tuples(st.integers(0, 6000), st.integers(0, 255)))), max_size=12)


@settings(max_examples=60, deadline=None)
@given(WRITES)
def test_memory_is_a_row_of_bytes(writes: list[tuple[int, bytes | tuple[int, int]]]) -> None:
    memory, plain = Memory(4), bytearray(SIZE)
    for at, what in writes:
        if isinstance(what, bytes):
            what = what[: SIZE - at]
            memory.write(at, what)
            plain[at : at + len(what)] = what
        else:
            n, byte = min(what[0], SIZE - at), what[1]
            memory.fill(at, n, byte)
            plain[at : at + n] = bytes((byte,)) * n
    assert memory.read(0, SIZE) == plain
    assert memory.read(4090, 20) == plain[4090:4110]
    assert memory.copy().read(0, SIZE) == plain


def test_only_written_frames_take_space() -> None:
    memory = Memory(1 << 20)
    assert memory.read(123456, 10000) == bytes(10000)
    memory.fill(0, 1 << 20)
    assert not memory.frames
    memory.write(4095, b"ab")
    assert sorted(memory.frames) == [0, 1]
    memory.fill(0, 8192)
    assert not memory.frames


@pytest.mark.parametrize(("at", "n"), [(-1, 1), (SIZE, 1), (SIZE - 1, 2), (0, -1)])
def test_outside(at: int, n: int) -> None:
    with pytest.raises(RequestError):
        Memory(4).read(at, n)
    with pytest.raises(RequestError):
        Memory(4).fill(at, n, 1)
    with pytest.raises(RequestError):
        Memory(4).fill(0, 1, 256)


def test_a_machine_keeps_contents_from_the_first_write_on() -> None:
    m = mmtwin.boot(ram="128MiB", cpus=1)
    p = m.kmalloc(28)
    assert m.read(p, 4) == bytes(4)
    assert "kmalloc" not in vars(m)  # nothing stands between until then
    m.write(p, b"x" * 32)
    assert m.read(p + 30, 4) == b"xx\0\0"
    m.kfree(p)
    assert m.kzalloc(28) == p
    assert m.read(p, 32) == bytes(32)
    m.write(p, b"abc")
    q = m.krealloc(p, 100)
    assert q != p and m.read(q, 4) == b"abc\0"
    pfn = m.alloc_pages(0, GFP_KERNEL)
    m.write(m.phys_to_virt(pfn << 12), b"z" * 4096)
    m.free_pages(pfn, 0)
    assert m.alloc_pages(0, GFP_KERNEL | 0x100) == pfn
    assert m.read(m.phys_to_virt(pfn << 12), 4096) == bytes(4096)
    other = m.copy()
    other.write(q, b"X")
    assert (m.read(q, 1), other.read(q, 1)) == (b"a", b"X")
    m.validate()


def test_addresses_outside() -> None:
    m = mmtwin.boot(ram="128MiB", cpus=1, reserved=())
    end = m.PAGE_OFFSET + (int(m.state.config[0]["nr_frames"]) << 12)
    for address, n in ((0, 1), (end, 1), (end - 1, 2)):
        with pytest.raises(PageFault):
            m.read(address, n)
    for address, n in ((m.PAGE_OFFSET, -1), (-1, 1), (1 << 64, 1), ((1 << 64) - 1, 2)):
        with pytest.raises(RequestError):
            m.read(address, n)
    with pytest.raises(PageFault):
        m.write(end - 1, b"ab")
    assert m.read(end - 1, 1) == b"a"  # what is in the page before the fault was written
