"""What the C library offers a process: malloc and its family (glibc 2.36, x86-64), on the process's own memory (`process_heap`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mmtwin.errors import RequestError

if TYPE_CHECKING:
    from mmtwin.process_heap import ProcessHeap


class Malloc:
    """The part of `Process` that calls the C library.

    Every function takes the number of the calling thread (0 is the first one) and the CPU. What fails raises `MallocFailure`, where C's would return NULL; misuse that glibc notices
    raises `MallocAbort` with its words; a page that malloc may not touch is a `SegmentationFault`.
    """

    _heap: ProcessHeap | None = None

    if TYPE_CHECKING:

        def _live(self, cpu: int) -> int: ...

    def start_heap(self, *, tunables: Mapping[str, int] = {}, main_arena: int = 0) -> ProcessHeap:
        """The heap with other settings than the default; before the first call of malloc.

        :param tunables: ``glibc.malloc.*`` by their last names, as GLIBC_TUNABLES would set them.
        :param main_arena: its address in the process's memory, if it is to be there.
        :raises RequestError: malloc was called before.
        """
        from mmtwin.process import Process
        from mmtwin.process_heap import ProcessHeap

        self._live(0)
        if self._heap is not None:
            raise RequestError(f"{self!r}: its heap exists; settings come before the first call of malloc")
        assert isinstance(self, Process)
        self._heap = ProcessHeap(self, tunables=tunables, main_arena=main_arena)
        return self._heap

    @property
    def heap(self) -> ProcessHeap:
        """The C library's heap: chunks, bins, tcaches, arenas (`user.heap.Heap`)."""
        return self.start_heap() if self._heap is None else self._heap

    def _libc(self, cpu: int) -> ProcessHeap:
        return self.heap.on(self._live(cpu))

    def malloc(self, size: int, *, thread: int = 0, cpu: int = 0) -> int:
        """``malloc``: the address."""
        return self._libc(cpu).malloc(size, thread=thread)

    def calloc(self, count: int, size: int, *, thread: int = 0, cpu: int = 0) -> int:
        """``calloc``: cleared, and so touched, unless it is fresh from the kernel."""
        return self._libc(cpu).calloc(count, size, thread=thread)

    def realloc(self, address: int, size: int, *, thread: int = 0, cpu: int = 0) -> int:
        """``realloc``: what the block holds comes along; 0 if `size` is 0 and the block was freed."""
        return self._libc(cpu).realloc(address, size, thread=thread)

    def free(self, address: int, *, thread: int = 0, cpu: int = 0) -> None:
        """``free``."""
        self._libc(cpu).free(address, thread=thread)

    def memalign(self, alignment: int, size: int, *, thread: int = 0, cpu: int = 0) -> int:
        """``memalign``."""
        return self._libc(cpu).memalign(alignment, size, thread=thread)

    aligned_alloc = memalign

    def posix_memalign(self, alignment: int, size: int, *, thread: int = 0, cpu: int = 0) -> int:
        """``posix_memalign``: the address."""
        return self._libc(cpu).posix_memalign(alignment, size, thread=thread)

    def malloc_usable_size(self, address: int, *, cpu: int = 0) -> int:
        """``malloc_usable_size``."""
        return self._libc(cpu).malloc_usable_size(address)

    def malloc_trim(self, pad: int = 0, *, cpu: int = 0) -> bool:
        """``malloc_trim``: whole pages of free chunks go back to the kernel, in every arena."""
        return self._libc(cpu).malloc_trim(pad)

    def mallopt(self, parameter: int, value: int, *, cpu: int = 0) -> bool:
        """``mallopt``: False if the value is refused."""
        return self._libc(cpu).mallopt(parameter, value)

    def mallinfo2(self, *, cpu: int = 0) -> dict[str, int]:
        """``mallinfo2``."""
        return self._libc(cpu).mallinfo2()

    def malloc_info(self, *, cpu: int = 0) -> str:
        """What ``malloc_info(0, file)`` writes."""
        return self._libc(cpu).malloc_info()

    def malloc_stats(self, *, cpu: int = 0) -> str:
        """What ``malloc_stats`` writes to stderr."""
        return self._libc(cpu).malloc_stats()

    def thread_exit(self, thread: int, *, cpu: int = 0) -> None:
        """What the end of a thread does to its cache and its arena."""
        self._libc(cpu).thread_exit(thread)

    def sbrk(self, increment: int = 0, *, cpu: int = 0) -> int:
        """``sbrk``: the old end of the heap, as the C library knows it; 0 if the kernel refuses. (`Process.brk` is the system call, of which the C library does not hear.)"""
        return self._libc(cpu).sbrk(increment)
