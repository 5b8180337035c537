"""`Heap`: glibc's malloc of one process, to be tried out; addresses are those that the C library would return."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmtwin.errors import MallocAbort, MallocDoubleFree, MallocFailure, MallocInvalidFree, RequestError, SegmentationFault
from mmtwin.units import PAGE_SIZE
from mmtwin.user import ptmalloc as calls
from mmtwin.user import ptmalloc_entry as entry
from mmtwin.user import ptmalloc_info as info
from mmtwin.user import ptmalloc_tables as tables
from mmtwin.user.ptmalloc_memory import at
from mmtwin.user.validate_ptmalloc import validate_ptmalloc

ENOMEM, EINVAL = 12, 22
NO_SOURCE = np.full(1, -1, dtype=np.int64)
MAX_THREADS = 4096
TUNABLES: Mapping[str, tuple[str, int]] = {
    "trim_threshold": ("trim_threshold", 1 << 62), "top_pad": ("top_pad", 1 << 62), "mmap_threshold": ("mmap_threshold", 1 << 62), "mmap_max": ("n_mmaps_max", (1 << 31) - 1),
    "arena_max": ("arena_max", 1 << 62), "arena_test": ("arena_test", 1 << 62), "tcache_max": ("tcache_max_bytes", tables.MAX_TCACHE_SIZE),
    "tcache_count": ("tcache_count", tables.MAX_TCACHE_COUNT), "tcache_unsorted_limit": ("tcache_unsorted_limit", 1 << 62), "mxfast": ("global_max_fast", tables.MAX_FAST_SIZE),
}  # fmt: skip
"""``glibc.malloc.*`` in GLIBC_TUNABLES: the field it sets, and the largest value that is not ignored."""
STATIC_THRESHOLDS = ("trim_threshold", "top_pad", "mmap_threshold", "mmap_max")
"""Those that stop the thresholds from following what is freed."""


@dataclass(frozen=True)
class Chunk:
    """A chunk's header (``struct malloc_chunk``).

    :ivar address: of the chunk; the program's memory begins 16 bytes further.
    :ivar size: with the header.
    """

    address: int
    size: int
    prev_inuse: bool
    mmapped: bool
    non_main_arena: bool
    prev_size: int


class Heap:
    """The heap of a process that has not called malloc yet.

    :param tunables: of the namespace ``glibc.malloc``, by their last names, as GLIBC_TUNABLES would set them.
    :param cpus: they limit the number of arenas: 8 for each.
    :param start_brk: where the heap begins; `mmap_base`: where mappings begin, downwards; `maps`: what else is mapped. The defaults are a small program's without
        address space randomisation.
    :param layout: further arguments of `new_ptmalloc`.

    Every function takes the calling thread's number; thread 0 is the first one. A request that fails raises `MallocFailure`; misuse that glibc notices raises
    `MallocAbort` or one of its subclasses, and ends the process.
    """

    def __init__(self, *, tunables: Mapping[str, int] = {}, cpus: int = 2, **layout: Any) -> None:
        self.state = tables.new_ptmalloc(nprocs=cpus, **layout)
        for name, value in tunables.items():
            self.tune(name, value)

    def tune(self, name: str, value: int) -> None:
        """Sets a tunable before the first call, as GLIBC_TUNABLES would."""
        if name not in TUNABLES:
            raise RequestError(f"unknown tunable {name!r}; expected one of: {', '.join(TUNABLES)}")
        field, largest = TUNABLES[name]
        if not 0 <= value <= largest:
            raise RequestError(f"tunable {name}: {value} is not between 0 and {largest}")
        mp = self.state.mp[0]
        mp[field] = value
        if name == "tcache_max":
            mp["tcache_bins"] = ((max(tables.MINSIZE, (value + 23) & ~15) - 17) >> 4) + 1
        elif name == "mxfast":
            mp["global_max_fast"] = 16 if value <= 7 else (value + 8) & ~15
        if name in STATIC_THRESHOLDS:
            mp["no_dyn_threshold"] = 1

    def _call(self, thread: int, kind: int, a: int, b: int = 0) -> int:
        if ended := int(self.state.mp[0]["aborted"]):
            raise self._error(ended, f"the process has ended: {self._words(ended)}")
        if not 0 <= thread < MAX_THREADS:
            raise RequestError(f"no thread {thread}: they are numbered from 0 to {MAX_THREADS - 1}")
        result = self._perform(thread, kind, a, b)
        if result < 0:
            self.state.mp[0]["aborted"] = result
            raise self._error(result, self._words(result))
        return result

    def _perform(self, thread: int, kind: int, a: int, b: int) -> int:
        call, answer = np.array([(kind, 0, thread + 1, 0, a, b, 0)], dtype=entry.CALL), np.zeros(1, dtype=np.int64)
        if entry.replay_entry(self.state, call, NO_SOURCE, answer, 0) == 0 and not answer[0]:
            self.state = tables.grown(self.state, thread + 1)
            entry.replay_entry(self.state, call, NO_SOURCE, answer, 0)
        return int(answer[0])

    def _words(self, code: int) -> str:
        if code <= tables.FIRST_ABORT:
            return tables.ABORTS[tables.FIRST_ABORT - code]
        return f"malloc touched 0x{int(self.state.mp[0]['fault']):x}, where nothing is mapped"

    def _error(self, code: int, words: str) -> MallocAbort | SegmentationFault:
        if code > tables.FIRST_ABORT:
            return SegmentationFault(words, "Segmentation fault")
        report = f"{tables.ABORTS[tables.FIRST_ABORT - code]}\nAborted"
        if code in (tables.TCACHE_DOUBLE_FREE, tables.FASTTOP, tables.FREE_TOP, tables.FREE_NOT_PREV):
            return MallocDoubleFree(words, report)
        if code in (tables.FREE_INVALID_POINTER, tables.FREE_INVALID_SIZE, tables.FREE_OUT, tables.MUNMAP_POINTER):
            return MallocInvalidFree(words, report)
        return MallocAbort(words, report)

    def _allocate(self, what: str, thread: int, kind: int, a: int, b: int = 0) -> int:
        address = self._call(thread, kind, a, b)
        if address == 0:
            raise MallocFailure(f"{what}: no memory (ENOMEM)", ENOMEM)
        return address

    @staticmethod
    def _size(size: int, name: str = "size") -> int:
        if not 0 <= size < 1 << 64:
            raise RequestError(f"{name} {size} is no size_t")
        return min(size, tables.TOO_BIG)

    def malloc(self, size: int, *, thread: int = 0) -> int:
        """``malloc``."""
        return self._allocate(f"malloc({size})", thread, calls.CALL_MALLOC, self._size(size))

    def calloc(self, count: int, size: int, *, thread: int = 0) -> int:
        """``calloc``, which takes nothing from the tcache."""
        self._size(count, "count")
        self._size(size)
        product = count * size
        return self._allocate(f"calloc({count}, {size})", thread, calls.CALL_CALLOC, 0, -1 if product >= 1 << 63 else min(product, tables.TOO_BIG))

    def realloc(self, address: int, size: int, *, thread: int = 0) -> int:
        """``realloc``: the address, 0 if `size` is 0 and the block was freed."""
        found = self._call(thread, calls.CALL_REALLOC, self._address(address), self._size(size))
        if found == 0 and (size or not address):
            raise MallocFailure(f"realloc(0x{address:x}, {size}): no memory (ENOMEM)", ENOMEM)
        return found

    def free(self, address: int, *, thread: int = 0) -> None:
        """``free``; of 0 it does nothing."""
        self._call(thread, calls.CALL_FREE, self._address(address))

    def memalign(self, alignment: int, size: int, *, thread: int = 0) -> int:
        """``memalign``; an alignment that is no power of two is raised to one."""
        if self._size(alignment, "alignment") > 1 << 63:
            raise MallocFailure(f"memalign({alignment}, {size}): EINVAL", EINVAL)
        return self._allocate(f"memalign({alignment}, {size})", thread, calls.CALL_MEMALIGN, min(alignment, tables.TOO_BIG), self._size(size))

    aligned_alloc = memalign

    def posix_memalign(self, alignment: int, size: int, *, thread: int = 0) -> int:
        """``posix_memalign``: the alignment must be a power of two and a multiple of 8."""
        if alignment <= 0 or alignment % 8 or alignment & (alignment - 1):
            raise MallocFailure(f"posix_memalign: alignment {alignment} is not a power of two times 8 (EINVAL)", EINVAL)
        return self._allocate(f"posix_memalign({alignment}, {size})", thread, calls.CALL_MEMALIGN, min(alignment, tables.TOO_BIG), self._size(size))

    def valloc(self, size: int, *, thread: int = 0) -> int:
        """``valloc``: page-aligned."""
        return self.memalign(PAGE_SIZE, size, thread=thread)

    def malloc_usable_size(self, address: int) -> int:
        """``malloc_usable_size``: 0 if the chunk is free."""
        if address == 0:
            return 0
        chunk = self.chunk(address)
        if chunk.mmapped:
            return chunk.size - 16
        following = self._place(chunk.address + chunk.size)
        return chunk.size - 8 if int(self.state.word[following + 1]) & tables.PREV_INUSE else 0

    def thread_exit(self, thread: int) -> None:
        """What the end of a thread does: its tcache is emptied, its arena may be used by another one."""
        self._call(thread, calls.CALL_THREAD_EXIT, 0)

    def malloc_trim(self, pad: int = 0) -> bool:
        """``malloc_trim``: whether memory was given back to the kernel."""
        return bool(self._call(0, calls.CALL_TRIM, self._size(pad, "pad")))

    def mallopt(self, parameter: int, value: int) -> bool:
        """``mallopt``: False if the value is refused."""
        if not -(1 << 31) <= value < 1 << 31:
            raise RequestError(f"mallopt: {value} is no int")
        return bool(self._call(0, calls.CALL_MALLOPT, parameter, value))

    def mallinfo2(self) -> dict[str, int]:
        """``mallinfo2``."""
        return info.mallinfo2(self.state)

    def malloc_info(self) -> str:
        """What ``malloc_info(0, file)`` writes."""
        return info.malloc_info(self.state)

    def malloc_stats(self) -> str:
        """What ``malloc_stats`` writes to stderr."""
        return info.malloc_stats(self.state)

    def chunk(self, address: int) -> Chunk:
        """The header before an address that malloc returned."""
        i = self._place(address - 16)
        head = int(self.state.word[i + 1])
        return Chunk(address - 16, head & ~7, bool(head & 1), bool(head & 2), bool(head & 4), int(self.state.word[i]))

    def tcache(self, thread: int = 0) -> dict[int, list[int]]:
        """A thread's cached blocks by chunk size, newest first."""
        return info.tcache(self.state, thread)

    def fastbins(self, arena: int = 0) -> dict[int, list[int]]:
        """The chunks in an arena's fastbins by chunk size, newest first. Arenas are numbered as in `arenas`."""
        return info.fastbins(self.state, self.arenas()[arena])

    def bins(self, arena: int = 0) -> dict[int, list[int]]:
        """The chunks in an arena's bins by number (1 is the unsorted bin), front first."""
        return info.bins(self.state, self.arenas()[arena])

    def arenas(self) -> list[int]:
        """The addresses of all arenas, main_arena first."""
        return info.arenas(self.state)

    def _place(self, address: int) -> int:
        i = at(self.state, self._address(address))
        if i < tables.FAULT_WORDS:
            self.state.mp[0]["fault"] = 0
            raise SegmentationFault(f"0x{address:x}: malloc keeps nothing there", "Segmentation fault")
        return i

    @staticmethod
    def _address(address: int) -> int:
        if not 0 <= address < 1 << 64:
            raise RequestError(f"{address} is no address")
        return address if address < 1 << 63 else address - (1 << 64)

    def read(self, address: int, size: int) -> bytes:
        """Bytes of the process's memory: what malloc or `write` put there, else zeros."""
        first = self._place(address)
        self._place(address + max(size, 1) - 1)
        start = address & 7
        return self.state.word[first : first + (start + size + 7) // 8].tobytes()[start : start + size]

    def write(self, address: int, data: bytes) -> None:
        """What a program does to its memory: also to malloc's, if it writes where it should not."""
        first = self._place(address)
        self._place(address + max(len(data), 1) - 1)
        start = address & 7
        words = self.state.word[first : first + (start + len(data) + 7) // 8]
        words.view("u1")[start : start + len(data)] = bytearray(data)

    def set_maps(self, maps: Iterable[tuple[int, int]]) -> None:
        """Tells what is mapped now (without the heap), after somebody else mapped or unmapped memory."""
        tables.set_maps(self.state, maps)

    def copy(self) -> Heap:
        """An independent copy: what a forked child has."""
        other = object.__new__(Heap)
        other.state = tables.copied(self.state)
        return other

    def validate(self) -> None:
        """Recomputes the invariants of chunks and bins; raises `InvariantError` naming the first that is broken."""
        validate_ptmalloc(self.state)

    def digest(self) -> str:
        """A number for the whole state."""
        used = int(self.state.mp[0]["next_segment"]) * tables.SEGMENT_WORDS
        total = hashlib.sha256()
        step = 1 << 20
        for start in range(tables.FAULT_WORDS, used, step):
            block = self.state.word[start : min(start + step, used)]
            if block.any():
                total.update(start.to_bytes(8, "little") + block.tobytes())
        for table in (self.state.bin, self.state.thread, self.state.vma[: int(self.state.mp[0]["vmas"])], self.state.mp):
            total.update(table.tobytes())
        return total.hexdigest()
