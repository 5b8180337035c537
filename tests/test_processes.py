"""Processes: faults, copy on write, huge pages, limits, errors, and that everything comes back."""

from __future__ import annotations

import contextlib
import errno
import pickle
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import mmtwin
from mmtwin.errors import BusError, NoSuchProcess, RequestError, SegmentationFault, SyscallError
from mmtwin.mm.tables import PG_ALLOCATED, PG_SLAB
from mmtwin.process import MADV_DONTNEED, MADV_FREE, MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, Process

PAGE = 4096


def machine(ram: str = "256MiB", cpus: int = 1) -> mmtwin.Machine:
    return mmtwin.boot("linux-6.1", ram=ram, cpus=cpus)


def test_first_touch_takes_tables_from_the_top_down_then_the_page() -> None:
    m = machine()
    p = m.spawn("app")
    a = p.mmap(8 * PAGE, address=0x100_0000_0000)
    assert p.read(a, 4) == bytes(4)
    assert [(order, gfp) for order, gfp, _ in m.user_requests().tolist()] == [(0, 0x400DC0)] * 3  # the zero page costs tables only
    assert p.rss()["anon"] == 2  # the top of the stack, and the page that the bss shares with data
    p.touch(a, 1)
    assert [(order, gfp) for order, gfp, _ in m.user_requests().tolist()] == [(0, 0x140DCA)]
    assert p.rss()["anon"] == 3
    m.validate()


def test_fork_shares_and_writes_copy() -> None:
    m = machine()
    p = m.spawn("app")
    a = p.mmap(4 * PAGE)
    p.write(a, b"parent")
    frame = p.translate(a)
    c = p.fork()
    assert c.read(a, 6) == b"parent" and c.translate(a) == frame
    c.write(a, b"child!")
    assert [(order, gfp) for order, gfp, _ in m.user_requests().tolist()] == [(0, 0x140CCA)]
    assert p.read(a, 6) == b"parent" and c.read(a, 6) == b"child!" and c.translate(a) != frame
    reused = int(m.users.config[0]["reused"])
    p.write(a, b"again!")  # nobody else has it any more
    assert p.translate(a) == frame and int(m.users.config[0]["reused"]) == reused + 1
    c.exit()
    m.validate()
    with pytest.raises(NoSuchProcess):
        c.read(a, 1)


def test_huge_pages() -> None:
    m = machine("1GiB")
    p = m.spawn("app")
    a = p.mmap(8 << 20)
    a = (a + (2 << 20) - 1) & -(2 << 20)
    p.touch(a, 1)
    assert [(order, gfp) for order, gfp, _ in m.user_requests().tolist()][-2:] == [(9, 0x3D20CA), (0, 0x400DC0)]
    assert p.rss()["anon"] == 2 + 512
    p.write(a + 5 * PAGE, b"huge")
    c = p.fork()
    m.validate()
    c.write(a, b"x")  # splits the child's entry, copies one small page
    assert c.read(a + 5 * PAGE, 4) == b"huge"
    m.validate()
    p.munmap(a + PAGE, PAGE)
    assert int(m.users.config[0]["thp_splits"]) == 2
    p.mprotect(a + 8 * PAGE, PAGE, 1)
    with pytest.raises(SegmentationFault):
        p.write(a + 8 * PAGE, b"x")
    m.validate()
    p.madvise(a + (2 << 20), 2 << 20, MADV_HUGEPAGE)
    p.touch(a + (2 << 20), PAGE)
    assert m.user_requests().tolist()[-2][:2] == [9, 0x3D24CA]
    p.exit()
    c.exit()
    m.lru_add_drain_all()
    m.validate()


def test_files_and_shared_memory() -> None:
    m = machine()
    p = m.spawn("app")
    file = m.create_file("/data", 100 * PAGE)
    a = p.mmap(101 * PAGE, 3, MAP_PRIVATE, file=file)
    p.read(a, 1)
    requests = m.user_requests().tolist()
    assert [(order, gfp) for order, gfp, _ in requests if gfp == 0x152CCA] == [(0, 0x152CCA)] * 32
    assert p.rss()["file"] >= 1
    p.write(a + 20 * PAGE, b"private")
    with pytest.raises(BusError):
        p.read(a + 100 * PAGE, 1)
    b = p.mmap(3 * PAGE, 3, MAP_SHARED | MAP_ANONYMOUS)
    p.write(b, b"shared")
    c = p.fork()
    assert c.read(b, 6) == b"shared"
    c.write(b, b"SHARED")
    assert p.read(b, 6) == b"SHARED"
    assert p.rss()["shmem"] == 1
    m.validate()
    p.exit()
    c.exit()
    assert file.drop() == 36 - 4
    m.lru_add_drain_all()
    m.validate()


def test_segmentation_fault_has_the_kernels_line() -> None:
    p = machine().spawn("app")
    with pytest.raises(SegmentationFault) as found:
        p.read(0, 1)
    assert (
        found.value.report == "app[101]: segfault at 0 ip 0000000000401140 sp 00007fffffffedf0 error 4 in app[401000+5000] likely on CPU 0 (core 0, socket 0)\n"
    )
    with pytest.raises(SegmentationFault, match="error 7"):
        p.write(0x400000 + 1, b"x") if p.read(0x400000, 1) else p.write(0x400000, b"x")
    with pytest.raises(SegmentationFault, match="not canonical"):
        p.read(1 << 60, 1)


def test_stack_grows_to_its_limit() -> None:
    m = machine()
    p = m.spawn("app", stack_limit=1 << 20)
    top = 0x7FFFFFFFF000
    p.touch(top - (1 << 20), PAGE)
    assert "7fffffeff000-7ffffffff000 rw-p" in p.maps()
    with pytest.raises(SegmentationFault):
        p.touch(top - (1 << 20) - PAGE, 1)
    m.validate()


def test_errors_and_limits() -> None:
    m = machine()
    p = m.spawn("app")

    def number(call: object, *arguments: object, **more: object) -> int:
        with pytest.raises(SyscallError) as found:
            call(*arguments, **more)  # type: ignore[operator]
        return found.value.errno

    assert number(p.mmap, 0) == errno.EINVAL
    assert number(p.mmap, 1 << 47) == errno.ENOMEM
    assert number(p.mmap, PAGE, flags=MAP_PRIVATE) == errno.EBADF
    assert number(p.munmap, 1, PAGE) == errno.EINVAL
    assert number(p.mprotect, 0x1000, PAGE, 1) == errno.ENOMEM
    assert number(p.mremap, 0x1000, PAGE, PAGE) == errno.EFAULT
    assert number(p.madvise, 0x1000, PAGE, 99) == errno.EINVAL
    p.rlimits["AS"] = (int(m.users.mm[p.mm]["total_vm"]) + 10) * PAGE
    assert number(p.mmap, 11 * PAGE) == errno.ENOMEM
    heap = p.brk()
    assert p.brk(heap + 64 * PAGE) == heap
    p.rlimits["AS"] = 1 << 60
    assert number(p.mmap, 1 << 40) == errno.ENOMEM  # more than there is (vm.overcommit_memory = 0)
    p.mmap(1 << 40, flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
    m.overcommit = 1
    p.mmap(1 << 40)
    m.overcommit = 2
    assert number(p.mmap, m.commit_limit() * PAGE) == errno.ENOMEM
    m.validate()
    with pytest.raises(RequestError):
        m.spawn("")


def test_dontneed_and_free() -> None:
    m = machine()
    p = m.spawn("app")
    a = p.mmap(40 * PAGE)
    p.touch(a, 40 * PAGE)
    before = p.rss()["anon"]
    p.madvise(a, 10 * PAGE, MADV_DONTNEED)
    assert p.rss()["anon"] == before - 10
    p.madvise(a + 20 * PAGE, 5 * PAGE, MADV_FREE)
    assert sum(int(line.split()[1]) for line in p.smaps().splitlines() if line.startswith("LazyFree")) == 20
    p.mmap(PAGE, address=a, flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
    m.validate()


def test_copy_is_independent() -> None:
    m = machine()
    p = m.spawn("app")
    a = p.mmap(PAGE)
    p.write(a, b"one")
    other = m.copy()
    q = other.process(p.pid)
    q.write(a, b"two")
    assert p.read(a, 3) == b"one" and q.read(a, 3) == b"two"
    q.exit()
    other.validate()
    m.validate()


def test_pickle() -> None:
    m = machine()
    a = m.spawn("app").mmap(PAGE)
    m.process(101).write(a, b"kept")
    other = pickle.loads(pickle.dumps(m))
    assert other.process(101).read(a, 4) == b"kept"
    other.process(101).exit()
    other.validate()


def test_i386() -> None:
    m = mmtwin.boot("linux-6.1-686", ram="512MiB", cpus=1)
    p = m.spawn("app")
    a = p.mmap(16 * PAGE)
    p.write(a, b"32 bits")
    assert p.read(a, 7) == b"32 bits" and a + 16 * PAGE <= 0xB8000000
    c = p.fork()
    c.write(a, b"x")
    m.validate()
    p.exit()
    c.exit()
    m.validate()


def churn(m: mmtwin.Machine, processes: int, seed: int) -> None:
    """Forks, touches and ends processes in random order until so many have lived; then the rest ends."""
    rnd, alive = random.Random(seed), [m.spawn("init")]
    made = 1
    while made < processes:
        p = rnd.choice(alive)
        cpu = rnd.randrange(m.cpus)
        action = rnd.random()
        if action < 0.4 and len(alive) < 100:
            alive.append(p.fork(cpu))
            made += 1
        elif action < 0.75:
            a = p.mmap(rnd.randrange(1, 20) * PAGE, cpu=cpu)
            p.touch(a, rnd.randrange(1, 8) * PAGE if rnd.random() < 0.01 else PAGE, bool(rnd.getrandbits(1)), cpu)
        elif len(alive) > 1:
            alive.remove(p)
            p.exit(cpu)
    rnd.shuffle(alive)
    for p in alive:
        p.exit(rnd.randrange(m.cpus))
    m.lru_add_drain_all()


def used(m: mmtwin.Machine) -> int:
    """Pages handed out, without slabs' (whose partial ones stay), page tables (vfree keeps those of kernel stacks) and the kernel stacks that each CPU keeps."""
    flags = m.state.page["flags"][: int(m.state.config[0]["nr_frames"])]
    heads = np.flatnonzero((flags & PG_ALLOCATED != 0) & (flags & PG_SLAB == 0) & (flags >= 0))
    return int((1 << m.state.page["order"][heads].astype(np.int64)).sum()) - 4 * sum(len(stacks) for stacks in m._stacks.values())


def test_every_frame_comes_back() -> None:
    m = machine("512MiB", 2)
    m.spawn("first").exit()  # caches are made, stacks are kept
    m.drop_caches()
    m.run_work()
    before = used(m)
    churn(m, 60, 1)
    m.drop_caches()
    m.run_work()
    m.validate()
    assert used(m) == before
    users = m.users
    assert not users.frame.any() and not users.mm["used"].any() and int(users.config[0]["committed"]) == 0
    assert int(m.mmu.config[0]["pgd_list"]) == -1


class Life(RuleBasedStateMachine):
    """Random processes; invariants after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.m = machine("256MiB", 2)
        self.alive = [self.m.spawn("init")]

    def pick(self, n: int) -> Process:
        return self.alive[n % len(self.alive)]

    def spot(self, p: Process, n: int) -> tuple[int, int]:
        lines = [line for line in p.maps().splitlines() if "[v" not in line and "stack" not in line]
        if not lines:  # munmap took all of them
            low = p.mmap(PAGE)
            return low, low + PAGE
        low, high = (int(word, 16) for word in lines[n % len(lines)].split()[0].split("-"))
        return low, high

    @rule(n=st.integers(0, 9), pages=st.integers(1, 600), prot=st.integers(0, 7), shared=st.booleans())
    def mmap(self, n: int, pages: int, prot: int, shared: bool) -> None:
        self.pick(n).mmap(pages * PAGE, prot, MAP_ANONYMOUS | (MAP_SHARED if shared else MAP_PRIVATE))

    @rule(n=st.integers(0, 9), k=st.integers(0, 30), first=st.integers(0, 9), pages=st.integers(1, 20))
    def munmap(self, n: int, k: int, first: int, pages: int) -> None:
        p = self.pick(n)
        low, _ = self.spot(p, k)
        p.munmap(low + first * PAGE, pages * PAGE)

    @rule(n=st.integers(0, 9), k=st.integers(0, 30), pages=st.integers(1, 9), prot=st.integers(0, 7))
    def mprotect(self, n: int, k: int, pages: int, prot: int) -> None:
        p = self.pick(n)
        low, high = self.spot(p, k)
        p.mprotect(low, min(pages * PAGE, high - low), prot)

    @rule(n=st.integers(0, 9), k=st.integers(0, 30), pages=st.integers(1, 40))
    def mremap(self, n: int, k: int, pages: int) -> None:
        p = self.pick(n)
        low, high = self.spot(p, k)
        p.mremap(low, high - low, pages * PAGE)

    @rule(n=st.integers(0, 9), k=st.integers(0, 30), at=st.integers(0, 40), write=st.booleans(), cpu=st.integers(0, 1))
    def touch(self, n: int, k: int, at: int, write: bool, cpu: int) -> None:
        p = self.pick(n)
        low, _ = self.spot(p, k)
        with contextlib.suppress(SegmentationFault, BusError):
            p.touch(low + at * PAGE, 3 * PAGE, write, cpu)

    @rule(n=st.integers(0, 9), pages=st.integers(0, 60))
    def brk(self, n: int, pages: int) -> None:
        p = self.pick(n)
        p.brk(int(self.m.users.mm[p.mm]["start_brk"]) + pages * 1000)

    @precondition(lambda self: len(self.alive) < 6)
    @rule(n=st.integers(0, 9), cpu=st.integers(0, 1))
    def fork(self, n: int, cpu: int) -> None:
        self.alive.append(self.pick(n).fork(cpu))

    @precondition(lambda self: len(self.alive) > 1)
    @rule(n=st.integers(0, 9), cpu=st.integers(0, 1))
    def exit(self, n: int, cpu: int) -> None:
        p = self.pick(n)
        self.alive.remove(p)
        p.exit(cpu)

    @invariant()
    def valid(self) -> None:
        self.m.validate()

    def teardown(self) -> None:
        for p in self.alive:
            p.exit()
        self.m.lru_add_drain_all()
        self.m.validate()
        files = {name.path for name in self.m._files.values()}
        assert "/dev/zero (deleted)" not in files


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=8, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
