"""glibc's malloc on the memory of a process: the rules of `user.ptmalloc`, linked with the process's system calls, working on the bytes that the process reads and writes.

The functions of the ptmalloc modules are plain Python over a table of words. Here they run as such: their words are the process's memory (`Words`), reached through its page tables,
so what malloc touches first is faulted in there and then; what they ask of the kernel (`user.ptmalloc_vm`) the process asks its machine for, and a refusal is the machine's. Nothing
is kept twice: chunk headers, lists, other threads' arenas and the tcache are bytes of the process. Only what the C library has in variables of its own is not, nor is main_arena, unless
it is told where.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from mmtwin.errors import RequestError, SegmentationFault, SyscallError
from mmtwin.mm.mmu import READ, WRITE
from mmtwin.process import MADV_DONTNEED, MAP_ANONYMOUS, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE, Process
from mmtwin.units import PAGE_SHIFT, PAGE_SIZE
from mmtwin.user import (
    ptmalloc,
    ptmalloc_arena,
    ptmalloc_bins,
    ptmalloc_free,
    ptmalloc_malloc,
    ptmalloc_memory,
    ptmalloc_realloc,
    ptmalloc_sysmalloc,
    ptmalloc_vm,
)
from mmtwin.user import ptmalloc_tables as tables
from mmtwin.user.heap import Heap
from mmtwin.user.ptmalloc_info import arenas

OFFSET = tables.FAULT_WORDS
"""Added to an address's number of a word, so that none looks like memory that malloc has not: the process's page tables decide about that."""
MASK, SIGN = (1 << 64) - 1, 1 << 63
PAGE_WORDS_SHIFT, PAGE_WORDS_MASK = PAGE_SHIFT - 3, PAGE_SIZE // 8 - 1
NOTHING: Any = memoryview(bytes(PAGE_SIZE)).cast("q")
TCACHE_ENTRIES = 2 * tables.TCACHE_MAX_BINS
"""``entries`` in ``tcache_perthread_struct``, behind the counts of 16 bits."""


class Words:
    """A process's memory as a table of signed 8-byte words (`Ptmalloc.word`).

    Each page is looked up by the first access of a call, and again by the first one that writes, as the processor would: with the faults that this takes.

    :ivar cpu: where the process runs.
    :ivar static: pages with the C library's main_arena, if it is not in the process's memory.
    """

    def __init__(self, process: Process, static: dict[int, bytearray]) -> None:
        self.process, self.static, self.cpu = process, static, 0
        self._readable: dict[int, Any] = {}
        self._writable: dict[int, Any] = {}

    def __len__(self) -> int:
        return 1 << 62

    def __getstate__(self) -> dict[str, Any]:
        """Without what is looked up anew by each call."""
        return {**self.__dict__, "_readable": {}, "_writable": {}}

    def look_again(self) -> None:
        """Forgets where pages are: somebody else ran, or the kernel moved them."""
        self._readable, self._writable = {}, {}

    def _open(self, page: int, access: int) -> Any:
        if page in self.static:
            view = memoryview(self.static[page]).cast("q")
            self._writable[page] = self._readable[page] = view
            return view
        machine = self.process.machine
        pfn = machine.user_translate(self.process, page << PAGE_SHIFT & MASK, access, self.cpu) >> PAGE_SHIFT
        frames = machine._watched().memory.frames
        frame = frames.get(pfn)
        if access == WRITE:
            if frame is None:
                frame = frames[pfn] = bytearray(PAGE_SIZE)
            self._writable[page] = self._readable[page] = view = memoryview(frame).cast("q")
            return view
        view = NOTHING if frame is None else memoryview(frame).cast("q")
        self._readable[page] = view
        return view

    def __getitem__(self, i: int) -> int:
        i -= OFFSET
        page = i >> PAGE_WORDS_SHIFT
        view = self._readable.get(page) or self._open(page, READ)
        word: int = view[i & PAGE_WORDS_MASK]
        return word

    def __setitem__(self, i: int, value: int) -> None:
        i -= OFFSET
        page = i >> PAGE_WORDS_SHIFT
        view = self._writable.get(page) or self._open(page, WRITE)
        view[i & PAGE_WORDS_MASK] = (value + SIGN & MASK) - SIGN

    def system_call(self, refused: int, name: str, *arguments: int) -> int:
        """A system call of the process: its result; `refused` if the kernel says no."""
        self.look_again()
        try:
            return int(getattr(self.process, name)(*arguments, cpu=self.cpu) or 0)
        except SyscallError:
            return refused
        finally:
            self.look_again()


class Segments:
    """`Ptmalloc.segment`: every 64 MiB are where they are, behind those that stand for nothing."""

    def __getitem__(self, key: int) -> int:
        return key + 1


class TcacheBin:
    """A bin of a ``tcache_perthread_struct`` where it lies in memory; 0 throughout if there is none."""

    __slots__ = ("idx", "tcache", "words")

    def __init__(self, words: Words, tcache: int, idx: int) -> None:
        self.words, self.tcache, self.idx = words, tcache, idx

    def _at(self, name: str) -> int:
        return at_address(self.tcache + (2 * self.idx if name == "counts" else TCACHE_ENTRIES + 8 * self.idx))

    def __getitem__(self, name: str) -> int:
        if not self.tcache:
            return 0
        word = self.words[self._at(name)]
        return word >> 16 * (self.idx & 3) & 0xFFFF if name == "counts" else word

    def __setitem__(self, name: str, value: int) -> None:
        if not self.tcache:
            return
        i = self._at(name)
        if name == "counts":
            shift = 16 * (self.idx & 3)
            value = self.words[i] & ~(0xFFFF << shift) | (value & 0xFFFF) << shift
        self.words[i] = value


class Tcaches:
    """`Ptmalloc.bin`: the tcaches of all threads. A thread that ends empties its own after it let go of it."""

    def __init__(self, words: Words, threads: list[dict[str, int]]) -> None:
        self.words, self.threads, self.ending = words, threads, dict[int, int]()

    def __getitem__(self, row: int) -> TcacheBin:
        thread, idx = divmod(row, tables.TCACHE_MAX_BINS)
        return TcacheBin(self.words, self.threads[thread]["tcache"] or self.ending.get(thread, 0), idx)


# What the rules are linked with


def at_address(address: int) -> int:
    """The number of the word at an address."""
    return (address >> 3) + OFFSET


def at(_m: Any, address: int) -> int:
    return at_address(address)


def always(*_: Any) -> int:
    return 1


def nothing(*_: Any) -> None:
    """The kernel does that itself."""


def vm_mmap(m: Any, hint: int, length: int, accounted: int) -> int:
    m.mp[0]["mmap_calls"] += 1
    prot, flags = (PROT_READ | PROT_WRITE, 0) if accounted else (PROT_NONE, MAP_NORESERVE)
    return int(m.word.system_call(0, "mmap", length, prot, flags | MAP_PRIVATE | MAP_ANONYMOUS, hint))


def vm_munmap(m: Any, start: int, length: int) -> None:
    m.mp[0]["munmap_calls"] += 1
    m.word.system_call(0, "munmap", start, length)


def remove_range(m: Any, start: int, end: int) -> None:
    m.word.system_call(0, "munmap", start, end - start)


def vm_mremap(m: Any, old: int, old_length: int, new_length: int) -> int:
    m.mp[0]["mremap_calls"] += 1
    return int(m.word.system_call(0, "mremap", old, old_length, new_length))


def vm_mprotect(m: Any, start: int, length: int) -> int:
    return int(m.word.system_call(-1, "mprotect", start, length, PROT_READ | PROT_WRITE))


def vm_dontneed(m: Any, start: int, length: int) -> None:
    m.word.system_call(0, "madvise", start, length, MADV_DONTNEED)


def vm_revoke(m: Any, start: int, length: int) -> int:
    return min(int(m.word.system_call(-1, "mmap", length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, start)), 0)


def vm_brk(m: Any, to: int) -> int:
    m.mp[0]["brk_calls"] += 1
    return int(m.word.system_call(0, "brk", max(to, 0)))


def memset(m: Any, address: int, n: int) -> None:
    words, machine = m.word, m.word.process.machine
    memory = machine._watched().memory
    for where, length in machine.user_runs(words.process, address, n, WRITE, words.cpu):
        memory.fill(where, length)
    words.look_again()


def memcpy(m: Any, to: int, source: int, n: int) -> None:
    words, at = m.word, 0
    process = words.process
    while at < n:
        length = min(n - at, PAGE_SIZE)
        data = process.read(source + at, length, words.cpu)
        if any(data):
            process.write(to + at, data, words.cpu)
        else:
            memset(m, to + at, length)
        at += length
    words.look_again()


def link(modules: tuple[ModuleType, ...], replaced: Mapping[str, Callable[..., Any]]) -> SimpleNamespace:
    """The functions of some modules, calling each other, with others in place of some: the same code, linked with another kernel."""
    linked: dict[Any, Any] = {}
    spaces: list[dict[str, Any]] = []
    for module in modules:
        space = dict(vars(module))
        spaces.append(space)
        for name, value in vars(module).items():
            if isinstance(value, FunctionType) and value.__module__ == module.__name__:
                linked[value] = replaced.get(name) or FunctionType(value.__code__, space, name, value.__defaults__)
    for space in spaces:
        for name, value in space.items():
            if isinstance(value, FunctionType) and value in linked:
                space[name] = linked[value]
    return SimpleNamespace(**{value.__name__: function for value, function in linked.items()})


PTMALLOC = link(
    (
        ptmalloc, ptmalloc_arena, ptmalloc_bins, ptmalloc_free, ptmalloc_malloc, ptmalloc_memory, ptmalloc_realloc, ptmalloc_sysmalloc, ptmalloc_vm,
    ),
    {
        "at": at, "place": at, "has_room": always, "clear": nothing, "forget_header": nothing, "memset": memset, "memcpy": memcpy, "vm_mmap": vm_mmap, "vm_munmap": vm_munmap,
        "remove_range": remove_range, "vm_mremap": vm_mremap, "vm_mprotect": vm_mprotect, "vm_dontneed": vm_dontneed, "vm_revoke": vm_revoke, "vm_brk": vm_brk,
    },
)  # fmt: skip
NO_RANGES = np.zeros(1, dtype=tables.VMA)
NEW_THREAD = dict.fromkeys(("tcache", "arena", "shutting_down", "state"), 0)


class ProcessHeap(Heap):
    """The heap of a process of a machine (`Process.heap`): `user.heap.Heap`, but its memory is the process's.

    :param tunables: as for `Heap`.
    :param main_arena: where in the process's memory the C library has it, which must be writable; by default it is nowhere, at an address of a small program's.
    :raises RequestError: the process is not one of 64 bits.
    """

    def __init__(self, process: Process, *, tunables: Mapping[str, int] = {}, main_arena: int = 0) -> None:
        if process.word != 8:
            raise RequestError(f"{process!r}: glibc's malloc is modelled for x86-64 only")
        machine, own, main_arena = process.machine, main_arena != 0, main_arena or tables.MAIN_ARENA
        fresh = tables.new_ptmalloc(
            start_brk=process.brk(), mmap_base=int(process.users.mm[process.mm]["mmap_base"]), main_arena=main_arena, maps=(), nprocs=machine.cpus,
            overcommit=machine.overcommit, heap_limit=0,
        )  # fmt: skip
        mp = {name: int(fresh.mp[0][name]) for name in fresh.mp.dtype.names or ()}
        threads = [{name: int(fresh.thread[0][name]) for name in NEW_THREAD}]
        pages = range(main_arena >> PAGE_SHIFT, (main_arena + tables.MALLOC_STATE_BYTES - 1 >> PAGE_SHIFT) + 1)
        self._set(process, mp, threads, {} if own else {page: bytearray(PAGE_SIZE) for page in pages})
        first, place = at_address(main_arena), ptmalloc_memory.at(fresh, main_arena)
        for i, value in enumerate(fresh.word[place : place + tables.AR_WORDS].tolist()):
            self.state.word[first + i] = value
        for name, value in tunables.items():
            self.tune(name, value)

    def _set(self, process: Process, mp: dict[str, int], threads: list[dict[str, int]], static: dict[int, bytearray]) -> None:
        self.process, self.words = process, Words(process, static)
        state: Any = tables.Ptmalloc
        self.threads, self.tcaches = threads, Tcaches(self.words, threads)
        self.state = state(self.words, Segments(), self.tcaches, threads, NO_RANGES, [mp])

    def _perform(self, thread: int, kind: int, a: int, b: int) -> int:
        m, threads = self.state, self.threads
        threads.extend(dict(NEW_THREAD) for _ in range(thread + 1 - len(threads)))
        self.words.look_again()
        PTMALLOC.seen(m, thread)
        try:
            if kind == ptmalloc.CALL_MALLOC and (answer := PTMALLOC.tcache_malloc(m, thread, a)):
                return int(answer)
            if kind == ptmalloc.CALL_FREE and PTMALLOC.tcache_free(m, thread, a):
                return 0
            if kind == ptmalloc.CALL_THREAD_EXIT:
                self.tcaches.ending[thread] = int(threads[thread]["tcache"])
            return int(PTMALLOC.heap_call(m, thread, kind, a, b))
        except SegmentationFault as fault:
            self.state.mp[0]["aborted"], self.fault = tables.SEGV, fault
            raise
        finally:
            self.tcaches.ending.pop(thread, None)
            self.words.look_again()

    def _place(self, address: int) -> int:
        self.words.look_again()
        return at_address(self._address(address))

    def _words(self, code: int) -> str:
        return tables.ABORTS[tables.FIRST_ABORT - code] if code <= tables.FIRST_ABORT else str(self.fault)

    def on(self, cpu: int) -> ProcessHeap:
        """The same heap, the process running on a CPU."""
        self.words.cpu = cpu
        return self

    def sbrk(self, increment: int) -> int:
        """``sbrk``, which malloc stands on: the old end of the heap; 0 if the kernel refuses."""
        return int(PTMALLOC.morecore(self.state, increment))

    def read(self, address: int, size: int) -> bytes:
        """`Process.read`."""
        return self.process.read(address, size, self.words.cpu)

    def write(self, address: int, data: bytes) -> None:
        """`Process.write`: what malloc reads, too."""
        self.process.write(address, data, self.words.cpu)

    def set_maps(self, maps: Any) -> None:
        """:raises RequestError: always: the process's areas are what they are."""
        raise RequestError("the areas of a process are its own: use mmap and munmap")

    def copy(self) -> ProcessHeap:
        """:raises RequestError: always: fork the process, or copy the machine."""
        raise RequestError("a process's heap is its memory: fork the process, or copy the machine")

    def copied(self, process: Process) -> ProcessHeap:
        """The heap of a process that has a copy of this one's memory."""
        other = object.__new__(ProcessHeap)
        other._set(process, dict(self.state.mp[0]), [dict(one) for one in self.threads], {page: bytearray(data) for page, data in self.words.static.items()})
        if hasattr(self, "fault"):
            other.fault = self.fault
        return other

    def forked(self, process: Process, thread: int = 0) -> ProcessHeap:
        """A child's heap, in which only the calling thread lives on: what the others' arenas hold is for whoever needs an arena next (``__malloc_fork_unlock_child``)."""
        child, mp = self.copied(process), self.state.mp[0]
        if not mp["multiple_threads"]:
            return child
        m, mine = child.state, int(child.threads[thread]["arena"])
        child.words.cpu = self.words.cpu
        self.words.look_again()
        free = 0
        for arena in arenas(m):
            a = at_address(arena)
            for words in (m.word, self.words):  # the child makes the lock in it anew, the parent releases it
                words[a + tables.AR_FLAGS] = words[a + tables.AR_FLAGS]
            if arena == mine:
                m.word[a + tables.AR_ATTACHED_THREADS] = 1
            else:
                m.word[a + tables.AR_ATTACHED_THREADS], m.word[a + tables.AR_NEXT_FREE] = 0, free
                free = arena
        m.mp[0]["free_list"] = free
        return child

    def digest(self) -> str:
        """A number for what the C library has in variables of its own; the rest is the process's memory."""
        total = hashlib.sha256(repr((self.state.mp, self.threads)).encode())
        for page, data in sorted(self.words.static.items()):
            total.update(page.to_bytes(8, "little") + data)
        return total.hexdigest()
