"""malloc of a process: the C library's addresses on the process's own memory, page by page as a real 6.1 gives it (oracle/malloc/run-rss.sh), and what goes wrong."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import mmtwin
from mmtwin.errors import MallocAbort, MallocDoubleFree, MallocFailure, NoSuchProcess, RequestError, SegmentationFault
from mmtwin.mm.pgtable_tables import PFN_BITS
from mmtwin.process import MAP_ANONYMOUS, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, Process
from mmtwin.process_text import mapcounts, user_entries
from mmtwin.program import Program, Segment
from mmtwin.recording.readers import malloc_trace
from mmtwin.recording.readers.malloc_trace import arguments
from mmtwin.replay.mallocs import sources
from mmtwin.user.heap import Heap
from mmtwin.user.ptmalloc import CALL_BRK, CALL_MAPS

DATA = Path(__file__).parent / "data"
STEP = re.compile(r"step (\d+): (\w+)\((\w+), (\w+)\) thread (\d+) = (\w+); brk (\w+)")
STACK = 0x7FFFFFF00000


class Area(NamedTuple):
    """A line of maps."""

    start: int
    end: int
    rights: str
    anonymous: bool


def area(line: str) -> Area:
    words = line.split()
    start, end = (int(word, 16) for word in words[0].split("-"))
    return Area(start, end, words[1], words[4] == "0" and not (len(words) > 5 and words[5].startswith("[v")))


def machine(ram: str = "512MiB") -> mmtwin.Machine:
    return mmtwin.boot("linux-6.1", ram=ram, cpus=1)


def alone(task: Process) -> Heap:
    """The C library by itself, where the process's mappings are."""
    base = int(task.users.mm[task.mm]["mmap_base"])
    maps = [(one.start, one.end) for one in map(area, task.maps().splitlines()) if one.end <= base]
    return Heap(start_brk=task.brk(), mmap_base=base, maps=maps, cpus=task.machine.cpus)


# A real guest


def guest_runs(name: str) -> Iterator[list[str]]:
    run: list[str] = []
    for line in gzip.decompress((DATA / name).read_bytes()).decode().splitlines():
        if line.startswith("seed "):
            run = [line]
        elif line == "end":
            yield run
        elif run and line:
            run.append(line)


class Guest:
    """A run of rss_probe beside the twin's process."""

    def __init__(self, ram: str, run: list[str]) -> None:
        self.run, self.at, self.steps, self.checked, self.refused = run, 0, 0, 0, 0
        self.children: list[Process] = []
        self.areas, self.pages = list[str](), list[str]()
        self.parent_state = self.areas, self.pages
        self.m = machine(ram)
        loads, threads, brk, limit, maps = [], 0, 0, 0, list[str]()
        while not (line := run[self.at]).startswith("="):
            words = line.split()
            if words[0] == "load":
                o, v, f, s, p = (int(word, 16) for word in words[1:])
                loads.append(Segment(o, v, f, s, (p >> 2 & 1) | (p & 2) | (p & 1) << 2))
            elif words[0] == "brk":
                brk = int(words[1], 16)
            elif words[0] == "threads":
                threads = int(words[1])
            elif words[0] == "limit":
                limit = int(words[1]) << 20
            elif words[0] != "seed":
                maps.append(line)
            self.at += 1
        self.p = self.m.spawn("rss_probe", Program("/bin/rss_probe", tuple(loads), loads[1].vaddr, inode=8, tmpfs=True), vdso=False)
        assert self.p.brk() == brk
        known = list(map(area, maps))
        for one, line in zip(known, maps, strict=True):
            if brk <= one.start < STACK and "[heap]" not in line:
                self.map_as(one)
        low = next(one for one in known if one.start > 0x400000 and "rw-p" in one.rights and one.start < brk and not one.anonymous)
        self.p.mprotect(low.start - 4096, 4096, 1)  # relro
        self.known = [(one.start >> 12, one.end >> 12) for one in known if one.start >= brk and not (one.start == brk and one.anonymous)] + [(0, brk >> 12)]
        libc = next(area(line).start for line in maps if line.endswith("libc.so.6"))
        self.p.start_heap(main_arena=libc + 0x1D3C60)
        for _ in range(threads):  # pthread_create: the thread's dtv
            self.p.calloc(17, 16)
        self.take()
        for line in self.pages:
            start, end = (int(word, 16) << 12 for word in line[1:].split("-"))
            if end <= brk or start >= brk + (1 << 30):
                self.p.touch(start, end - start)
        self.compare(self.p, "at the start")
        if limit:
            self.p.rlimits["AS"] = limit

    def map_as(self, one: Area) -> None:
        prot = sum(bit for bit, letter in zip((1, 2, 4), one.rights, strict=False) if letter != "-")
        length = one.end - one.start
        if not one.anonymous:
            self.p.mmap(length, prot, MAP_PRIVATE | MAP_FIXED, one.start, self.m.create_file(f"/lib/{one.start:x}", length))
        elif one.end - one.start >= 1 << 20 or prot == 0:  # a thread's stack
            self.p.mmap(length, 0, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, one.start)
            self.p.mprotect(one.start, length, prot)
        else:
            self.p.mmap(length, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, one.start)

    def take(self) -> None:
        """What the guest says about areas and pages, if they changed."""
        areas, pages = list[str](), list[str]()
        while self.at < len(self.run) and self.run[self.at][0] in "=+~":
            (areas if self.run[self.at][0] == "=" else pages).append(self.run[self.at])
            self.at += 1
        self.areas, self.pages = areas or self.areas, pages or self.pages

    def compare(self, p: Process, when: str) -> None:
        """Areas as text, and every page outside of what was there before."""
        shown = ["=" + line for line in p.maps().splitlines() if (one := area(line)).anonymous and one.end < STACK]
        assert shown == self.areas, when
        guest = dict[int, str]()
        for line in self.pages:
            start, end = (int(word, 16) for word in line[1:].split("-"))
            guest |= {page: line[0] for page in range(start, end) if not any(low <= page < high for low, high in self.known)}
        twin, counts = dict[int, str](), mapcounts(self.m.mmu, self.m.users) if len(self.children) else {}
        zero = int(self.m.users.config[0]["zero_pfn"]), int(self.m.users.config[0]["huge_zero_pfn"])
        for address, (entry, level) in user_entries(self.m.mmu, int(p.users.mm[p.mm]["pgd"])).items():
            pfn, page = (entry & PFN_BITS) >> 12, address >> 12
            if page < STACK >> 12 and not any(low <= page < high for low, high in self.known):
                shared = pfn & (~1 if level > 1 else ~0) in zero or counts.get(pfn, 1) > 1
                twin |= dict.fromkeys(range(page, page + (512 if level > 1 else 1)), "~" if shared else "+")
        more, less = sorted(twin.items() - guest.items())[:5], sorted(guest.items() - twin.items())[:5]
        assert twin == guest, f"{when}: the twin alone {[(hex(a), b) for a, b in more]}, the guest alone {[(hex(a), b) for a, b in less]}"
        self.checked += len(guest)

    def follow(self) -> None:
        p = self.p
        while self.at < len(self.run):
            line = self.run[self.at]
            self.at += 1
            if line == "child":
                self.parent_state = self.areas, self.pages
                p = self.p.fork()
                self.children.append(p)
                continue
            if line == "parent":
                self.children.pop().exit()
                p = self.p
                self.areas, self.pages = self.parent_state
                self.take()
                self.compare(p, "after the child")
                continue
            step = STEP.fullmatch(line)
            assert step, line
            _, name, a, b, thread, result, brk = step.groups()
            try:
                got = self.do(p, name, int(a, 16), int(b, 16), int(thread))
            except MallocFailure:
                got, self.refused = 0, self.refused + 1
            assert got == int(result, 16), f"{line}: the twin {got:x}"
            assert p.brk() == int(brk, 16), line
            self.take()
            self.compare(p, line)
            self.steps += 1

    def do(self, p: Process, name: str, a: int, b: int, thread: int) -> int:
        if name == "fill":
            p.touch(a, b)
            return 0
        if name == "free":
            p.free(a, thread=thread)
            return 0
        if name == "malloc":
            return p.malloc(a, thread=thread)
        if name == "malloc_trim":
            return int(p.malloc_trim(a))
        call = {"calloc": p.calloc, "realloc": p.realloc, "memalign": p.memalign}[name]
        return call(a, b, thread=thread)


GUEST_RUNS = [(ram, run) for ram, name in (("512MiB", "rss-6.1.txt.gz"), ("1GiB", "rss-6.1-thp.txt.gz")) if (DATA / name).exists() for run in guest_runs(name)]


@pytest.mark.parametrize(("ram", "run"), GUEST_RUNS, ids=[f"{ram} {run[0]}" for ram, run in GUEST_RUNS])
def test_every_page_is_there_when_the_guest_has_it(ram: str, run: list[str]) -> None:
    guest = Guest(ram, run)
    guest.follow()
    assert guest.steps >= 100 and guest.checked > 1000
    guest.p.heap.validate()
    guest.p.exit()
    guest.m.validate()


# The C library by itself


@pytest.mark.parametrize("name", ["random-1", "random-large-1", "random-mallopt-1"])
def test_recorded_programs_get_the_addresses_of_the_c_library_alone(name: str) -> None:
    """The calls of a recorded program; what other mappings it had is left out, as both have the process's."""
    trace = malloc_trace.read(DATA / f"malloc-{name}.mmrec")
    task = machine("1GiB").spawn("app")
    heap, task_heap = alone(task), task.start_heap()
    calls, source = arguments(trace.calls), sources(trace.calls)
    answers, compared = list[int](), 0
    for call, giver in zip(calls.tolist(), source.tolist(), strict=True):
        kind, _, thread, _, a, b, _ = call
        answers.append(0)
        if kind in (CALL_MAPS, CALL_BRK):
            continue
        a = answers[giver] if giver >= 0 else a
        got = task_heap._call(thread - 1, kind, a, b)
        assert got == heap._call(thread - 1, kind, a, b), f"call {len(answers) - 1}: kind {kind}, {a:#x}, {b:#x}"
        answers[-1] = got
        compared += 1
    assert compared > 2500
    assert task.mallinfo2() == heap.mallinfo2() and task.malloc_info() == heap.malloc_info() and task.malloc_stats() == heap.malloc_stats()
    task.heap.validate()
    task.exit()


def test_threads_have_arenas_in_the_process() -> None:
    task = machine().spawn("app")
    heap = alone(task)
    for thread in range(4):
        assert task.malloc(5000, thread=thread) == heap.malloc(5000, thread=thread)
    arena = heap.arenas()[1] & -(64 << 20)
    rights = {one.start: one for one in map(area, task.maps().splitlines())}
    usable = rights[arena]
    assert usable.rights == "rw-p" and rights[usable.end].rights == "---p" and rights[usable.end].end % (64 << 20) == 0
    before = usable.end
    task.malloc(120_000, thread=3)
    task.malloc(120_000, thread=3)
    assert next(one.end for one in map(area, task.maps().splitlines()) if one.start == arena) > before, "mprotect makes more of it usable"
    task.thread_exit(2)
    task.heap.validate()
    assert task.malloc(5000, thread=9) >> 26 == [one for one in task.heap.arenas() if one in heap.arenas()][2] >> 26, "it waited for another thread"


# What a program notices


def test_contents_stay() -> None:
    m = machine()
    task = m.spawn("app")
    for small, large in ((100, 5000), (200_000, 900_000), (70_000, 300_000)):
        a = task.malloc(small)
        data = bytes(range(1, 101)) * (small // 100)
        task.write(a, data)
        barrier = task.malloc(24)
        b = task.realloc(a, large)
        assert task.read(b, len(data)) == data
        c = task.realloc(b, small // 2)
        assert task.read(c, small // 2) == data[: small // 2]
        task.free(c)
        task.free(barrier)
    dirty = task.malloc(3000)
    task.write(dirty, b"\xff" * 3000)
    task.free(dirty)
    assert task.read(task.calloc(3, 1000), 3000) == bytes(3000)
    a, b = task.malloc(24), task.malloc(24)
    task.free(a)
    task.free(b)
    assert int.from_bytes(task.read(b, 8), "little") == a ^ b >> 12, "safe-linking's pointer is in the process's memory"
    task.exit()
    with pytest.raises(NoSuchProcess):
        task.malloc(1)
    m.validate()


def test_a_child_has_a_heap_of_its_own() -> None:
    m = machine()
    task = m.spawn("app")
    a = task.malloc(1000)
    task.write(a, b"parent")
    task.malloc(1000, thread=1)
    child = task.fork()
    assert child.read(a, 6) == b"parent"
    child.free(a)
    first = child.malloc(1000)
    assert first == a and task.malloc(1000) != a
    child.write(a, b"child")
    assert task.read(a, 6) == b"parent"
    assert child.malloc(9, thread=5) >> 26 == child.heap.arenas()[1] >> 26, "the other thread's arena waits for the next one"
    for heap in (task.heap, child.heap):
        heap.validate()
    other = m.copy()
    copy = other.process(task.pid)
    assert copy.malloc(5000) == task.malloc(5000) and copy.read(a, 6) == b"parent"
    assert task.heap.digest() == copy.heap.digest()
    copy.malloc(50_000)
    assert task.heap.digest() != copy.heap.digest()
    child.exit()
    task.exit()
    m.validate()
    other.validate()


def test_misuse_in_the_c_librarys_words() -> None:
    m = machine()
    task = m.spawn("app")
    a = task.malloc(24)
    task.free(a)
    with pytest.raises(MallocDoubleFree, match="free\\(\\): double free detected in tcache 2"):
        task.free(a)
    with pytest.raises(MallocAbort, match="the process has ended: free"):
        task.malloc(1)
    task = m.spawn("big")
    a, b = task.malloc(2000), task.malloc(2000)
    task.malloc(24)
    task.free(a)
    with pytest.raises(MallocDoubleFree, match="double free or corruption \\(!prev\\)"):
        task.free(a)
    task = m.spawn("overflow")
    a, b = task.malloc(24), task.malloc(2000)
    task.malloc(24)
    task.write(a + 24, (0x4141).to_bytes(8, "little"))
    with pytest.raises(MallocAbort, match="double free or corruption \\(!prev\\)"):
        task.free(b)
    task = m.spawn("wild")
    task.malloc(1)
    with pytest.raises(SegmentationFault, match="segfault at 123"):
        task.free(0x123458 + 8)
    with pytest.raises(SegmentationFault, match="the process has ended"):
        task.malloc(1)
    with pytest.raises(RequestError):
        task.heap.copy()
    with pytest.raises(RequestError):
        task.heap.set_maps([])
    with pytest.raises(RequestError, match="its heap exists"):
        task.start_heap()
    assert m.spawn("tuned").start_heap(tunables={"tcache_count": 0}).state.mp[0]["tcache_count"] == 0


def test_the_kernel_may_refuse() -> None:
    m = machine()
    task = m.spawn("app")
    task.malloc(100)
    task.mmap(4096, 1, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, task.brk() + 4096)
    task.malloc(100_000)
    assert task.malloc(100_000) >> 40 == 0x7F, "brk cannot pass what is mapped: the heap goes on in a mapping"
    size = int(task.users.mm[task.mm]["total_vm"]) << 12
    task.rlimits["AS"] = size + (1 << 20)
    with pytest.raises(MallocFailure) as caught:
        task.malloc(8 << 20)
    assert caught.value.errno == 12
    with pytest.raises(MallocFailure):
        task.calloc(1 << 20, 8)
    with pytest.raises(MallocFailure):
        task.realloc(task.malloc(10), 8 << 20)
    task.heap.validate()
    with pytest.raises(MallocFailure):
        m.spawn("guess").malloc(600 << 20)
    m.overcommit = 2
    strict = m.spawn("strict")
    strict.malloc(10)
    with pytest.raises(MallocFailure):
        strict.malloc(300 << 20)
    assert strict.sbrk(0) == strict.brk() and strict.sbrk(4096) == strict.brk() - 4096
    with pytest.raises(RequestError, match="x86-64 only"):
        mmtwin.boot("linux-6.1-i386", ram="256MiB").spawn("old").malloc(1)


def test_pages_come_with_what_the_c_library_writes() -> None:
    task = machine().spawn("app")
    rss = task.rss()["anon"]
    large = task.malloc(10 << 20)
    assert task.rss()["anon"] == rss + 2, "the tcache's page at the heap's beginning, and the header of a mapping"
    task.calloc(1, 10 << 20)
    assert task.rss()["anon"] == rss + 3, "a mapping needs no clearing"
    task.free(large)
    assert task.rss()["anon"] == rss + 2
    task.memalign(4096, 100)
    assert task.malloc_usable_size(task.malloc(100)) == 104
