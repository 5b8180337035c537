"""Memory pressure: swapping with contents, kswapd, direct reclaim, compaction, the OOM killer at the end of the slow path."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mmtwin
from mmtwin import Machine
from mmtwin.errors import AllocationFailure, KernelPanic, OomKilled, RequestError, SyscallError
from mmtwin.gfp import GFP_KERNEL
from mmtwin.process import MADV_DONTNEED, MADV_FREE, MAP_ANONYMOUS, MAP_SHARED, Process
from mmtwin.user.mm_tables import LRU_UNEVICTABLE

PAGE = 4096
GFP_ATOMIC = 0xA20


def short_of_memory(free: int, cpus: int = 1, profile: str = "linux-6.1", ram: str = "64MiB") -> Machine:
    """A machine of which the kernel itself has taken all but so many pages."""
    m = mmtwin.boot(profile, ram=ram, cpus=cpus)
    m.state.config[0]["watermark_boost_factor"] = 0  # a boosted watermark keeps a pageblock's worth of so small a zone from everybody
    while m.free > free + 64:
        m.alloc_pages(0, GFP_KERNEL)
    m.spawn("init").oom_score_adj = -1000
    return m


def some(m: Machine, name: str, pages: int) -> tuple[Process, int]:
    """A process and an area of its own."""
    process = m.spawn(name)
    return process, process.mmap(pages * PAGE)


def in_blocks(m: Machine) -> int:
    """Free pages in blocks of 16 or more."""
    free = m.frame("free").filter(m.frame("free")["order"] >= 4)
    return int((1 << free["order"].cast(int).to_numpy()).sum())


@pytest.mark.parametrize(("rotational", "synchronous"), [(True, False), (False, False), (False, True)])
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
def test_pages_go_out_and_come_back_as_they_were(rotational: bool, synchronous: bool, seed: int) -> None:
    rnd, m = random.Random(seed), short_of_memory(900, 2)
    area = m.swapon(16 << 20, rotational=rotational, synchronous=synchronous)
    first, n = m.spawn("first"), 1200
    private, shared = first.mmap(n * PAGE), first.mmap(100 * PAGE, flags=MAP_SHARED | MAP_ANONYMOUS)
    alive: list[tuple[Process, dict[int, bytes]]] = [(first, {})]
    common: dict[int, bytes] = {}
    first.touch(private, n * PAGE)
    for _ in range(120):
        process, own = rnd.choice(alive)
        cpu, i, action = rnd.randrange(2), rnd.randrange(n), rnd.random()
        if action < 0.35:
            own[i] = rnd.randbytes(8)
            process.write(private + i * PAGE + 40, own[i], cpu)
        elif action < 0.6:
            assert process.read(private + i * PAGE + 40, 8, cpu) == own.get(i, bytes(8))
        elif action < 0.7:
            common[i % 100] = rnd.randbytes(8)
            process.write(shared + i % 100 * PAGE, common[i % 100], cpu)
        elif action < 0.8:
            assert process.read(shared + i % 100 * PAGE, 8, cpu) == common.get(i % 100, bytes(8))
        elif action < 0.83 and len(alive) < 3:
            alive.append((process.fork(cpu), dict(own)))
        elif action < 0.85 and len(alive) > 1:
            alive.remove((process, own))
            process.exit(cpu)
        elif action < 0.88:
            process.madvise(private + i * PAGE, 20 * PAGE if i + 20 <= n else PAGE, MADV_DONTNEED, cpu)
            for gone in range(i, i + 20 if i + 20 <= n else i + 1):
                own.pop(gone, None)
        else:
            start = rnd.randrange(n - 150)
            process.touch(private + start * PAGE, 150 * PAGE, rnd.random() < 0.7, cpu)
    m.validate()
    events = m.vm_events()
    assert events["pswpout"] and events["oom_kill"] == 0
    for process, own in alive:
        assert all(process.read(private + i * PAGE + 40, 8) == data for i, data in own.items())
        assert all(process.read(shared + i * PAGE, 8) == data for i, data in common.items())
    other = m.copy()
    for process, _ in alive:
        process.exit()
    m.lru_add_drain_all()
    m.swapoff(area)
    m.validate()
    assert m.swaps() == [] and m.swap_usage() == (0, 0, 0)
    for process, own in alive:
        twin = other.process(process.pid)
        assert all(twin.read(private + i * PAGE + 40, 8) == data for i, data in own.items())
    other.validate()


def test_kswapd_runs_before_the_reserve_is_reached() -> None:
    m = short_of_memory(900)
    m.swapon(16 << 20)
    process, a = some(m, "big", 2000)
    process.touch(a, 2000 * PAGE)
    events = m.vm_events()
    assert events["pageoutrun"] and events["pgsteal_kswapd"] > 1000 and events["allocstall"] == 0
    assert process.rss()["anon"] + process.swapped() >= 2000
    assert f"VmSwap:\t{int(process.users.mm[process.mm]['rss_swap']) * 4:>8} kB" in process.status()
    assert not int(m.state.zone["flags"].any()) and not int(m.state.config[0]["kswapd_pending"])
    m.validate()


def test_nothing_is_lost_when_swap_is_full_and_the_worst_is_killed() -> None:
    m = short_of_memory(900)
    m.swapon(401 * PAGE)
    small, a = some(m, "small", 150)
    for i in range(150):
        small.write(a + i * PAGE, i.to_bytes(2, "little"))
    big, b = some(m, "big", 4000)
    with pytest.raises(OomKilled, match="Out of memory: Killed process") as caught:
        big.touch(b, 4000 * PAGE)
    assert caught.value.victim == big.pid and not big.alive and m.vm_events()["oom_kill"] == 1
    assert "big invoked oom-killer: gfp_mask=0x140dca" in caught.value.report
    assert all(small.read(a + i * PAGE, 2) == i.to_bytes(2, "little") for i in range(150))
    m.validate()


def test_another_process_is_killed_and_the_fault_goes_on() -> None:
    m = short_of_memory(900)
    fat, a = some(m, "fat", 400)
    fat.touch(a, 400 * PAGE)
    fat.oom_score_adj = 1000
    other, b = some(m, "other", 450)
    other.touch(b, 450 * PAGE)
    assert not fat.alive and [kill.victim.comm for kill in m.oom_kills] == ["fat"]
    m.validate()


def test_the_kernel_requests_reclaim_too() -> None:
    m = short_of_memory(1200)
    m.swapon(16 << 20)
    process, a = some(m, "app", 1000)
    process.touch(a, 1000 * PAGE)
    v = m.vmalloc(600 * PAGE)
    cache = m.kmem_cache_create("large", 4096)
    objects = m.kmem_cache_alloc_bulk(cache, 100)
    held = [m.kmalloc(8192) for _ in range(60)]
    assert m.vm_events()["pswpout"] > 500
    for address in held:
        m.kfree(address)
    m.kmem_cache_free_bulk(cache, objects)
    m.vfree(v)
    m.validate()


def test_without_anybody_to_kill_the_kernel_panics_and_without_processes_the_request_fails() -> None:
    m = short_of_memory(500)
    with pytest.raises(KernelPanic, match="System is deadlocked on memory"):
        while True:
            m.alloc_pages(0, GFP_KERNEL)
    bare = mmtwin.boot("linux-6.1", ram="64MiB", cpus=1)
    with pytest.raises(AllocationFailure, match="no process has memory"):
        while True:
            bare.alloc_pages(0, GFP_KERNEL)


def test_files_go_before_anonymous_pages_and_dirty_ones_are_written() -> None:
    m = short_of_memory(900)
    file = m.create_file("/data", 700 * PAGE)
    reader = m.spawn("reader")
    f = reader.mmap(700 * PAGE, flags=MAP_SHARED, file=file)
    for i in range(0, 700, 7):
        reader.write(f + i * PAGE, b"%6d" % i)
    reader.touch(f, 700 * PAGE, write=False)
    app, a = some(m, "app", 500)
    app.touch(a, 500 * PAGE)
    events = m.vm_events()
    assert events["pgsteal_file"] > 200 and events["pgsteal_anon"] == 0 and events["file_written"]
    assert all(reader.read(f + i * PAGE, 6) == b"%6d" % i for i in range(0, 700, 7))
    assert m.vm_events()["workingset_refault_file"]
    m.validate()


def test_lazily_freed_pages_are_dropped_unless_they_were_written_again() -> None:
    m = short_of_memory(900)
    app, a = some(m, "app", 300)
    for i in range(300):
        app.write(a + i * PAGE, b"old")
    app.madvise(a, 300 * PAGE, MADV_FREE)
    app.write(a, b"new")
    other, b = some(m, "other", 650)
    other.touch(b, 650 * PAGE)
    assert m.vm_events()["pglazyfreed"] > 100
    assert app.read(a, 3) == b"new" and {app.read(a + i * PAGE, 3) for i in range(1, 300)} <= {b"old", b"\0\0\0"}
    m.validate()


def test_locked_pages_stay() -> None:
    m = short_of_memory(900)
    m.swapon(16 << 20)
    app = m.spawn("app")
    a = app.mmap(200 * PAGE, flags=0x2022)  # MAP_LOCKED
    other, b = some(m, "other", 1500)
    other.touch(b, 1500 * PAGE)
    assert app.swapped() < 5 and app.rss()["anon"] >= 200 and m.lru_sizes()["nr_unevictable"] > 0
    assert int(m.users.lru_size.reshape(-1, LRU_UNEVICTABLE + 1)[:, LRU_UNEVICTABLE].sum()) == m.lru_sizes()["nr_unevictable"]
    del a
    m.validate()


def test_compaction_makes_blocks_of_movable_pages() -> None:
    m = short_of_memory(2600)
    app, a = some(m, "app", 1800)
    for i in range(1800):
        app.write(a + i * PAGE, b"%4d" % i)
    for i in range(0, 1800, 2):
        app.madvise(a + i * PAGE, PAGE, MADV_DONTNEED)
    m.drain()
    before = in_blocks(m)
    assert m.compact_memory() > 100
    m.drain()
    assert in_blocks(m) > before + 200
    assert all(app.read(a + i * PAGE, 4) == b"%4d" % i for i in range(1, 1800, 2))
    m.validate()


def test_huge_pages_are_split_before_they_are_swapped() -> None:
    m = mmtwin.boot("linux-6.1", ram="64MiB", cpus=1, thp=True)
    m.spawn("init").oom_score_adj = -1000
    m.users.config[0]["thp"] = 2
    m.swapon(64 << 20)
    app = m.spawn("app")
    a = app.mmap(32 << 20)
    app.touch(a, 32 << 20)
    assert m.vm_events()["thp_split_page"] and m.vm_events()["pswpout"]
    m.validate()
    app.exit()
    m.validate()


def test_swap_devices_and_sysctls() -> None:
    m = short_of_memory(900)
    first, second = m.swapon(1 << 20, priority=5), m.swapon(1 << 20, rotational=False, priority=5)
    app, a = some(m, "app", 950)
    app.touch(a, 950 * PAGE)
    used = [device["used"] for device in m.swaps()]
    assert min(used) > 0 and m.swaps()[0]["priority"] == 5
    with pytest.raises(RequestError, match="priority 40000: expected 0 to 32767"):
        m.swapon(1 << 20, priority=40000)
    with pytest.raises(RequestError, match="swappiness 300"):
        m.swappiness = 300
    m.swappiness = 100
    assert m.swappiness == 100
    with pytest.raises(SyscallError, match="swapoff: ENOMEM"):
        m.swapoff(first)
        m.swapoff(second)
    app.exit()
    for device in (first, second):
        if device.info in m._swap_devices:
            m.swapoff(device)
    m.validate()


def test_swapoff_of_pages_that_nobody_may_read_says_so_and_loses_nothing() -> None:
    m = short_of_memory(900)
    area = m.swapon(8 << 20)
    app, a = some(m, "app", 100)
    app.write(a, b"kept")
    app.mprotect(a, 100 * PAGE, 0)
    other, b = some(m, "other", 1200)
    other.touch(b, 1200 * PAGE)
    assert app.swapped() >= 1
    with pytest.raises(SyscallError, match="PROT_NONE"):
        m.swapoff(area)
    app.mprotect(a, 100 * PAGE, 3)
    assert app.read(a, 4) == b"kept"
    m.validate()
    other.exit()
    m.swapoff(area)
    assert app.read(a, 4) == b"kept" and m.swaps() == []
