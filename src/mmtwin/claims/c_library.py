"""malloc for a process of a machine: the C library decides where (`user.heap`), the process makes the areas (brk, mmap) that it asks for."""

from __future__ import annotations

from collections.abc import Sequence

from mmtwin.process import Process
from mmtwin.process_text import user_entries
from mmtwin.user.heap import Heap


def areas(text: str) -> list[tuple[int, int]]:
    """The ranges in /proc/PID/maps."""
    ends = [line.split()[0].split("-") for line in text.splitlines()]
    return [(int(start, 16), int(end, 16)) for start, end in ends]


class CLibrary:
    """The C library of a process that has not called malloc yet."""

    def __init__(self, task: Process) -> None:
        """Its heap begins at the process's brk, its mappings below the process's other ones."""
        self.task = task
        base = int(task.users.mm[task.mm]["mmap_base"])
        self.heap = Heap(start_brk=task.brk(), mmap_base=base, maps=[(start, end) for start, end in areas(task.maps()) if end <= base])

    def malloc(self, size: int) -> int:
        """``malloc``. :raises RuntimeError: the process's mmap gave another place than the C library foresaw."""
        brk = int(self.heap.state.mp[0]["brk"])
        address = self.heap.malloc(size)
        mp = self.heap.state.mp[0]
        if int(mp["brk"]) != brk:
            self.task.brk(int(mp["brk"]))
        mapped = areas(self.task.maps())
        if not any(start <= address < end for start, end in mapped):
            length = -(-(size + 16) // 4096) * 4096
            if self.task.mmap(length) != address - 16:
                raise RuntimeError(f"mmap of {length} bytes: not at 0x{address - 16:x}, where the C library saw room")
        return address


def present(task: Process, pages: Sequence[int]) -> list[int]:
    """Those of the pages that have memory."""
    entries = user_entries(task.machine.mmu, int(task.users.mm[task.mm]["pgd"]))
    return [page for page in pages if page in entries]
