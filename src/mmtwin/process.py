"""A process: its system calls about memory, and its accesses (mm/mmap.c, mprotect.c, mremap.c, madvise.c, arch/x86/mm/fault.c of Linux 6.1).

Addresses and results are the kernel's; what fails raises `SyscallError` with the error number. `Process.brk`, `Process.mmap` and `Process.munmap` are what an allocator in user
space stands on.
"""

from __future__ import annotations

import errno
import operator
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar, cast

from mmtwin.address_space import MemoryBuffer
from mmtwin.errors import BusError, NoSuchProcess, RequestError, SegmentationFault, SyscallError
from mmtwin.mm.mmu import EXEC, READ, USER, WRITE
from mmtwin.mm.vmap_tables import NIL
from mmtwin.oom import check_oom_score_adj, oom_badness, oom_score
from mmtwin.process_malloc import Malloc
from mmtwin.units import PAGE_SHIFT, PAGE_SIZE
from mmtwin.user import entry
from mmtwin.user.fault import FAULT_ACCERR, FAULT_ANON_VMA, FAULT_BUS, FAULT_MAPERR, FAULT_STACK
from mmtwin.user.mm_tables import (
    FILE_CACHED,
    FILE_SPECIAL,
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_DONTEXPAND,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_HUGEPAGE,
    VM_LOCKED,
    VM_LOCKONFAULT,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_NOHUGEPAGE,
    VM_NORESERVE,
    VM_PFNMAP,
    VM_RAND_READ,
    VM_READ,
    VM_SEQ_READ,
    VM_SHARED,
    VM_SOFTDIRTY,
    VM_SPECIAL,
    VM_WIPEONFORK,
    VM_WRITE,
    Users,
    areas_of,
)

if TYPE_CHECKING:
    from mmtwin.processes import File, Processes
    from mmtwin.program import Program

PROT_NONE, PROT_READ, PROT_WRITE, PROT_EXEC = 0, 1, 2, 4
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_32BIT = 0x1, 0x2, 0x10, 0x20, 0x40
MAP_GROWSDOWN, MAP_LOCKED, MAP_NORESERVE, MAP_POPULATE, MAP_STACK, MAP_FIXED_NOREPLACE = 0x100, 0x2000, 0x4000, 0x8000, 0x20000, 0x100000
MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4
MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_DONTNEED, MADV_FREE = 0, 1, 2, 3, 4, 8
MADV_DONTFORK, MADV_DOFORK, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTDUMP, MADV_DODUMP, MADV_WIPEONFORK, MADV_KEEPONFORK = 10, 11, 14, 15, 16, 17, 18, 19
RLIM_INFINITY = (1 << 64) - 1
MAX_MAP_COUNT = 65530
ACCESS = {"read": READ, "write": WRITE, "exec": EXEC}


P = ParamSpec("P")
R = TypeVar("R")


def system_call(call: Callable[Concatenate[Process, P], R]) -> Callable[Concatenate[Process, P], R]:
    """While it runs, what is done to the machine is done for the process: it is the one that the OOM killer finds asking."""

    @wraps(call)
    def run(self: Process, *arguments: P.args, **named: P.kwargs) -> R:
        machine = self.machine
        before, machine._calling = machine._calling, self
        try:
            return call(self, *arguments, **named)
        finally:
            machine._calling = before

    return cast("Callable[Concatenate[Process, P], R]", run)


def page_align(n: int) -> int:
    """``PAGE_ALIGN``."""
    return n + PAGE_SIZE - 1 & -PAGE_SIZE


class Process(Malloc):
    """A process of a machine, made by `Machine.spawn` or `Process.fork`.

    :ivar pid: its number; `parent` its parent's.
    :ivar name: as ``comm``, at most 15 characters.
    :ivar mm: its row in the table of address spaces (`user.mm_tables.MM`).
    :ivar rlimits: soft limits in bytes: "AS", "DATA", "STACK", "MEMLOCK".
    :ivar ip: instruction pointer, and `sp` stack pointer, as reports of faults show them.
    :ivar root: it has the capabilities that memory management asks for (CAP_SYS_ADMIN, CAP_SYS_RAWIO, CAP_IPC_LOCK).
    """

    def __init__(self, machine: Processes, pid: int, name: str, mm: int, program: Program, parent: int = 0) -> None:
        self.machine, self.pid, self.name, self.mm, self.program, self.parent = machine, pid, name, mm, program, parent
        self.rlimits = {"AS": RLIM_INFINITY, "DATA": RLIM_INFINITY, "STACK": 8 << 20, "MEMLOCK": 8 << 20}
        self.ip = self.sp = 0
        self.root, self.alive = True, True
        self.objects: list[tuple[str, int]] = []
        self.stack = 0
        self.protection_keys = False
        self._oom_score_adj = 0

    def __repr__(self) -> str:
        return f"<Process {self.pid} {self.name}{'' if self.alive else ', ended'}>"

    @property
    def oom_score_adj(self) -> int:
        """/proc/PID/oom_score_adj: -1000 (never killed for want of memory) to 1000, in thousandths of all memory; fork inherits it. :raises RequestError: set to another number."""
        return self._oom_score_adj

    @oom_score_adj.setter
    def oom_score_adj(self, value: int) -> None:
        self._oom_score_adj = check_oom_score_adj(value)

    def oom_score(self) -> int:
        """/proc/PID/oom_score."""
        total = self.machine.totalpages()
        return oom_score(oom_badness(self, total), total)

    @property
    def users(self) -> Users:
        """The machine's tables of processes."""
        return self.machine.users

    @property
    def word(self) -> int:
        """Bytes of an address."""
        return self.machine.space.bits // 8

    @property
    def table_bytes(self) -> int:
        """``mm_pgtables_bytes``: page tables below the PGD."""
        return int(self.users.mm[self.mm]["pgtables"]) << PAGE_SHIFT

    def _live(self, cpu: int) -> int:
        if not self.alive:
            raise NoSuchProcess(f"process {self.pid} ({self.name}) has ended")
        return self.machine._cpu(cpu)

    def _error(self, number: int, call: str, why: str) -> SyscallError:
        return SyscallError(f"{call}: {errno.errorcode[number]}: {why}", number)

    # Limits (may_expand_vm, __vm_enough_memory, mlock_future_check)

    def _may_expand(self, flags: int, pages: int) -> bool:
        mm = self.users.mm[self.mm]
        if int(mm["total_vm"]) + pages > self.rlimits["AS"] >> PAGE_SHIFT:
            return False
        data = flags & (VM_WRITE | VM_SHARED | VM_GROWSDOWN) == VM_WRITE
        return not data or int(mm["data_vm"]) + pages <= self.rlimits["DATA"] >> PAGE_SHIFT

    def _charge(self, pages: int, call: str) -> None:
        """``security_vm_enough_memory_mm``."""
        machine = self.machine
        if pages > 0 and not machine.enough_memory(pages, int(self.users.mm[self.mm]["total_vm"]), self.root):
            raise self._error(errno.ENOMEM, call, f"{pages} pages: __vm_enough_memory: pid: {self.pid}, comm: {self.name}, no enough memory for the allocation")
        self.users.config[0]["committed"] += pages

    def _account(self, flags: int, pages: int) -> None:
        """``vm_stat_account``."""
        mm = self.users.mm[self.mm]
        mm["total_vm"] += pages
        if flags & (VM_EXEC | VM_WRITE | VM_GROWSDOWN) == VM_EXEC:
            mm["exec_vm"] += pages
        elif flags & VM_GROWSDOWN:
            mm["stack_vm"] += pages
        elif flags & (VM_WRITE | VM_SHARED | VM_GROWSDOWN) == VM_WRITE:
            mm["data_vm"] += pages
        mm["hiwater_vm"] = max(int(mm["hiwater_vm"]), int(mm["total_vm"]))

    def _lock_limit(self, flags: int, length: int, call: str) -> None:
        locked = (int(self.users.mm[self.mm]["locked_vm"]) << PAGE_SHIFT) + length
        if flags & VM_LOCKED and locked > self.rlimits["MEMLOCK"] and not self.root:
            raise self._error(errno.EAGAIN, call, f"{locked} bytes locked; RLIMIT_MEMLOCK is {self.rlimits['MEMLOCK']}")

    def _watermarks(self) -> None:
        """``update_hiwater_rss``, before pages go."""
        mm = self.users.mm[self.mm]
        rss = int(mm["rss_anon"]) + int(mm["rss_file"]) + int(mm["rss_shmem"])
        mm["hiwater_rss"], mm["hiwater_vm"] = max(int(mm["hiwater_rss"]), rss), max(int(mm["hiwater_vm"]), int(mm["total_vm"]))

    # Areas

    def find_vma(self, address: int) -> int:
        """``find_vma``: row of the first area that ends above an address, 0 if there is none."""
        return int(entry.find_vma_entry(self.machine.user_handle(), self.mm, address))

    def _intersects(self, start: int, end: int) -> bool:
        row = self.find_vma(start)
        return row != NIL and int(self.users.vma[row]["vm_start"]) < end

    def _unmapped_area(self, address: int, length: int, flags: int, call: str) -> int:
        """``get_unmapped_area`` of x86."""
        mm = self.users.mm[self.mm]
        size = int(mm["task_size"])
        if length > size:
            raise self._error(errno.ENOMEM, call, f"{length} bytes: the address space has {size}")
        if flags & MAP_FIXED:
            if address > size - length:
                raise self._error(errno.ENOMEM, call, f"0x{address:x} and {length} bytes reach behind the end of the address space, 0x{size:x}")
            if address % PAGE_SIZE:
                raise self._error(errno.EINVAL, call, f"address 0x{address:x}: expected a multiple of {PAGE_SIZE}")
        else:
            address = self._place(address, length, flags)
            if address < 0:
                raise self._error(errno.ENOMEM, call, f"no free range of {length} bytes")
        if address < int(self.users.config[0]["mmap_min_addr"]) and not self.root:
            raise self._error(errno.EPERM, call, f"address 0x{address:x} is below vm.mmap_min_addr")
        return address

    def _place(self, address: int, length: int, flags: int) -> int:
        mm, h = self.users.mm[self.mm], self.machine.user_handle()
        size, topdown = int(mm["task_size"]), bool(int(mm["topdown"]))
        if address and not (flags & MAP_32BIT and topdown):
            hint = address & -PAGE_SIZE if topdown else page_align(address)
            if hint <= size - length:
                row = self.find_vma(hint)
                if row == NIL or hint + length <= self._start_gap(row):
                    return hint
        if topdown and not flags & MAP_32BIT:
            found = int(entry.unmapped_area_entry(h, self.mm, True, PAGE_SIZE, int(mm["mmap_base"]), length))
            if found >= 0:
                return found
        low, high = int(mm["mmap_legacy_base"]), size
        if flags & MAP_32BIT and self.word == 8:
            low, high = 0x40000000, 0x80000000
        return int(entry.unmapped_area_entry(h, self.mm, False, low, high, length))

    def _start_gap(self, row: int) -> int:
        vma = self.users.vma[row]
        gap = int(self.users.config[0]["guard_gap"]) if int(vma["vm_flags"]) & VM_GROWSDOWN else 0
        return max(int(vma["vm_start"]) - gap, 0)

    @system_call
    def mmap(
        self, length: int, prot: int = PROT_READ | PROT_WRITE, flags: int = MAP_PRIVATE | MAP_ANONYMOUS, address: int = 0, file: File | None = None, offset: int = 0, cpu: int = 0
    ) -> int:  # fmt: skip
        """``mmap``: the address.

        :param file: what is mapped (`Machine.create_file`); None with MAP_ANONYMOUS.
        :raises SyscallError: with the kernel's error number.
        """
        cpu, call, length = self._live(cpu), "mmap", operator.index(length)
        self.machine.room()
        if length == 0 or length < 0 or prot & ~0xF:
            raise self._error(errno.EINVAL, call, f"{length} bytes with rights 0x{prot:x}")
        if bool(flags & MAP_ANONYMOUS) == (file is not None):
            raise self._error(errno.EBADF, call, "a file and MAP_ANONYMOUS exclude each other, and one of them is needed")
        if flags & 3 not in (MAP_SHARED, MAP_PRIVATE) or offset % PAGE_SIZE or offset < 0:
            raise self._error(errno.EINVAL, call, f"flags 0x{flags:x}, offset {offset}")
        if flags & MAP_FIXED_NOREPLACE:
            flags |= MAP_FIXED
        if not flags & MAP_FIXED and address:
            address &= -PAGE_SIZE
            address = max(address, int(self.users.config[0]["mmap_min_addr"])) if address else 0
        length = page_align(length)
        mm, config = self.users.mm[self.mm], self.users.config[0]
        if int(mm["map_count"]) > MAX_MAP_COUNT:
            raise self._error(errno.ENOMEM, call, f"more than vm.max_map_count ({MAX_MAP_COUNT}) areas")
        address = self._unmapped_area(address, length, flags, call)
        if flags & MAP_FIXED_NOREPLACE and self._intersects(address, address + length):
            raise self._error(errno.EEXIST, call, f"0x{address:x} is in use")
        vm_flags = prot & 7 | int(mm["def_flags"]) | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
        vm_flags |= (VM_GROWSDOWN if flags & MAP_GROWSDOWN else 0) | (VM_LOCKED if flags & MAP_LOCKED else 0)
        if flags & MAP_LOCKED and not self.root and self.rlimits["MEMLOCK"] == 0:
            raise self._error(errno.EPERM, call, "RLIMIT_MEMLOCK is 0")
        self._lock_limit(vm_flags, length, call)
        pgoff = offset >> PAGE_SHIFT
        if flags & 3 == MAP_SHARED:
            if vm_flags & VM_GROWSDOWN:
                raise self._error(errno.EINVAL, call, "MAP_GROWSDOWN and MAP_SHARED exclude each other")
            vm_flags |= VM_SHARED | VM_MAYSHARE
            if file is None:
                pgoff = 0
            elif not file.writable:
                if prot & PROT_WRITE:
                    raise self._error(errno.EACCES, call, f"{file.path} is open for reading only")
                vm_flags &= ~(VM_MAYWRITE | VM_SHARED)
        elif file is None:
            pgoff = address >> PAGE_SHIFT
        if file is not None and vm_flags & VM_GROWSDOWN:
            raise self._error(errno.EINVAL, call, "MAP_GROWSDOWN of a file")
        if flags & MAP_NORESERVE and self.machine.overcommit != 2:
            vm_flags |= VM_NORESERVE
        del config
        self._mmap_region(address, length, vm_flags, pgoff, file, cpu, call)
        if vm_flags & VM_LOCKED or flags & (MAP_POPULATE | 0x10000) == MAP_POPULATE:
            self._populate(address, address + length, cpu)
        return address

    def _mmap_region(self, address: int, length: int, flags: int, pgoff: int, file: File | None, cpu: int, call: str) -> int:
        """``mmap_region``: row of the area."""
        machine, end, pages = self.machine, address + length, length >> PAGE_SHIFT
        if not self._may_expand(flags, pages):
            inside = sum(
                max(min(int(v["vm_end"]), end) - max(int(v["vm_start"]), address), 0) for v in (self.users.vma[r] for r in areas_of(self.users, self.mm))
            )
            if not self._may_expand(flags, pages - (inside >> PAGE_SHIFT)):
                raise self._error(errno.ENOMEM, call, f"{pages} pages more: RLIMIT_AS or RLIMIT_DATA")
        self._munmap(address, end, cpu, call)
        shared_memory = file is None and flags & VM_SHARED
        if (flags & (VM_NORESERVE | VM_SHARED | VM_WRITE)) == VM_WRITE:
            self._charge(pages, call)
            flags |= VM_ACCOUNT
        number = -1 if file is None else file.row
        if shared_memory:
            if not flags & VM_NORESERVE:
                self._charge(pages, call)  # shmem_zero_setup accounts the object itself
            number = machine.create_shmem(length, bool(flags & VM_NORESERVE)).row
        prev = self._prev(address)
        row = NIL
        if not flags & VM_SPECIAL:
            row = int(entry.merge_entry(machine.user_handle(), self.mm, prev, address, end, flags, 0, number, pgoff))
        if row == NIL:
            row = int(entry.insert_vma_entry(machine.user_handle(), self.mm, address, end, flags, pgoff, number))
        if shared_memory:
            self.users.file[number]["refcount"] -= 1  # its only name is the mapping
        machine.settle(cpu)
        self._account(flags, pages)
        if flags & VM_LOCKED:
            self.users.mm[self.mm]["locked_vm"] += pages
        self.users.vma[row]["vm_flags"] |= VM_SOFTDIRTY
        return row

    def _prev(self, address: int) -> int:
        """The area before an address."""
        row = self.find_vma(address)
        return int(self.users.vma[row]["prev"]) if row != NIL else int(self.users.mm[self.mm]["last"])

    @system_call
    def munmap(self, address: int, length: int, cpu: int = 0) -> None:
        """``munmap``. :raises SyscallError: EINVAL: not a page's address, no length, outside of the address space; ENOMEM: too many areas."""
        cpu, address, length = self._live(cpu), operator.index(address), operator.index(length)
        size = int(self.users.mm[self.mm]["task_size"])
        if address % PAGE_SIZE or address > size or not 0 < length <= size - address or page_align(length) == 0:
            raise self._error(errno.EINVAL, "munmap", f"0x{address:x}, {length} bytes")
        self.machine.room()
        self._munmap(address, address + page_align(length), cpu, "munmap")

    def _munmap(self, start: int, end: int, cpu: int, call: str, *, account: bool = True) -> None:
        """``do_mas_align_munmap``."""
        machine, row = self.machine, self.find_vma(start)
        if row == NIL or int(self.users.vma[row]["vm_start"]) >= end:
            return
        h = machine.user_handle()
        self._watermarks()
        if start > int(self.users.vma[row]["vm_start"]):
            if end < int(self.users.vma[row]["vm_end"]) and int(self.users.mm[self.mm]["map_count"]) >= MAX_MAP_COUNT:
                raise self._error(errno.ENOMEM, call, f"more than vm.max_map_count ({MAX_MAP_COUNT}) areas")
            row = int(entry.split_entry(h, row, start, False))
            machine.settle(cpu)
        last = row
        while True:
            vma = self.users.vma[last]
            if int(vma["vm_end"]) > end:
                machine.room()
                h = machine.user_handle()
                below = int(entry.split_entry(h, last, end, True))
                machine.settle(cpu)
                row = below if row == last else row
                last = below
                break
            after = int(vma["next"])
            if after == NIL or int(self.users.vma[after]["vm_start"]) >= end:
                break
            last = after
        prev, after = int(self.users.vma[row]["prev"]), int(self.users.vma[last]["next"])
        floor = int(self.users.vma[prev]["vm_end"]) if prev != NIL else 0
        ceiling = int(self.users.vma[after]["vm_start"]) if after != NIL else 0
        entry.unmap_region_entry(h, cpu, row, last, start, end, floor, ceiling)
        while True:
            vma = self.users.vma[row]
            pages, flags, following, file = int(vma["vm_end"]) - int(vma["vm_start"]) >> PAGE_SHIFT, int(vma["vm_flags"]), int(vma["next"]), int(vma["vm_file"])
            self._account(flags, -pages)
            if flags & VM_ACCOUNT and account:
                self.users.config[0]["committed"] -= pages
            if flags & VM_LOCKED:
                self.users.mm[self.mm]["locked_vm"] -= pages
            entry.remove_vma_entry(h, row)
            machine.settle(cpu)
            machine.file_unmapped(file, cpu)
            if row == last:
                break
            row = following

    @system_call
    def brk(self, address: int = 0, cpu: int = 0) -> int:
        """``brk``: moves the end of the heap; returns where it is then, as the system call does: unchanged if it cannot be."""
        cpu, address = self._live(cpu), operator.index(address)
        self.machine.room()
        mm = self.users.mm[self.mm]
        old = int(mm["brk"])
        if address < int(mm["start_brk"]):
            return old
        if self.rlimits["DATA"] != RLIM_INFINITY and address - int(mm["start_brk"]) + int(mm["end_data"]) - int(mm["start_data"]) > self.rlimits["DATA"]:
            return old
        new_end, old_end = page_align(address), page_align(old)
        if new_end == old_end:
            mm["brk"] = address
            return address
        if address <= old:
            row = self.find_vma(new_end)
            if row == NIL or int(self.users.vma[row]["vm_start"]) >= old_end:
                return old
            mm["brk"] = address
            self._munmap(new_end, old_end, cpu, "brk")
            return address
        if new_end > int(mm["task_size"]):
            return old
        row = self.find_vma(old_end)
        if row != NIL and new_end + PAGE_SIZE > self._start_gap(row):
            return old
        try:
            self._do_brk(old_end, new_end - old_end, 0, cpu, int(mm["start_brk"]))
        except SyscallError:
            return old
        self.users.mm[self.mm]["brk"] = address
        return address

    def _do_brk(self, address: int, length: int, flags: int, cpu: int, lowest: int) -> int:
        """``do_brk_flags``: the area grows if it ends there, above `lowest` (so a heap never joins the bss before it); it never joins the one behind."""
        flags |= VM_READ | VM_WRITE | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC | VM_ACCOUNT | int(self.users.mm[self.mm]["def_flags"])
        pages = length >> PAGE_SHIFT
        if not self._may_expand(flags, pages):
            raise self._error(errno.ENOMEM, "brk", "RLIMIT_AS or RLIMIT_DATA")
        self._lock_limit(flags, length, "brk")
        self._charge(pages, "brk")
        row, h = self._prev(address), self.machine.user_handle()
        vma = self.users.vma[row]
        shared = row != NIL and int(vma["anon_vma"]) and int(self.users.avc[int(vma["chain"])]["next"]) != NIL
        same = row != NIL and (int(vma["vm_flags"]) ^ flags) & ~VM_SOFTDIRTY == 0 and int(vma["vm_file"]) < 0 and not shared
        if same and lowest < int(vma["vm_end"]) == address and int(vma["vm_pgoff"]) + (address - int(vma["vm_start"]) >> PAGE_SHIFT) == address >> PAGE_SHIFT:
            entry.set_bounds_entry(h, row, int(vma["vm_start"]), address + length, int(vma["vm_pgoff"]))
        else:
            row = int(entry.insert_vma_entry(h, self.mm, address, address + length, flags, address >> PAGE_SHIFT, -1))
            self.machine.settle(cpu)
        self._account(flags, pages)
        if flags & VM_LOCKED:
            self.users.mm[self.mm]["locked_vm"] += pages
        self.users.vma[row]["vm_flags"] |= VM_SOFTDIRTY
        return row

    @system_call
    def mprotect(self, address: int, length: int, prot: int, cpu: int = 0) -> None:
        """``mprotect``. :raises SyscallError: EINVAL, ENOMEM (a hole, a limit), EACCES (the mapping may never have these rights)."""
        cpu, call = self._live(cpu), "mprotect"
        if address % PAGE_SIZE or prot & ~7:
            raise self._error(errno.EINVAL, call, f"0x{address:x}, rights 0x{prot:x}")
        if not length:
            return
        end, size = address + page_align(length), int(self.users.mm[self.mm]["task_size"])
        row = self.find_vma(address)
        if length < 0 or end > 1 << 64 or row == NIL or int(self.users.vma[row]["vm_start"]) > address or address > size:
            raise self._error(errno.ENOMEM, call, f"0x{address:x} is not mapped")
        prev = row if address > int(self.users.vma[row]["vm_start"]) else int(self.users.vma[row]["prev"])
        at = address
        while True:
            vma = self.users.vma[row]
            flags = int(vma["vm_flags"]) & ~VM_ACCESS_FLAGS | prot
            if flags & ~(flags >> 4) & VM_ACCESS_FLAGS:
                raise self._error(errno.EACCES, call, f"0x{at:x}: the mapping may not have rights 0x{prot:x}")
            stop = min(int(vma["vm_end"]), end)
            prev = self._mprotect_fixup(row, prev, at, stop, flags, cpu)
            at = max(stop, int(self.users.vma[prev]["vm_end"]))
            if at >= end:
                return
            row = int(self.users.vma[prev]["next"])
            if row == NIL or int(self.users.vma[row]["vm_start"]) != at:
                raise self._error(errno.ENOMEM, call, f"0x{at:x} is not mapped; what lies before it was changed")

    def _mprotect_fixup(self, row: int, prev: int, start: int, end: int, flags: int, cpu: int) -> int:
        """``mprotect_fixup``: the area that holds the range then."""
        self.machine.room()
        vma, pages = self.users.vma[row], end - start >> PAGE_SHIFT
        old = int(vma["vm_flags"])
        if flags == old:
            return row
        charged = 0
        if flags & VM_WRITE:
            if not self._may_expand(flags, pages) and self._may_expand(old, pages):
                raise self._error(errno.ENOMEM, "mprotect", "RLIMIT_DATA")
            if not old & (VM_ACCOUNT | VM_WRITE | VM_SHARED | VM_NORESERVE):
                self._charge(pages, "mprotect")
                charged, flags = pages, flags | VM_ACCOUNT
        try:
            row = self._change_area(row, prev, start, end, flags, cpu, "mprotect")
        except SyscallError:
            self.users.config[0]["committed"] -= charged
            raise
        self.users.vma[row]["vm_flags"] = flags
        entry.change_protection_entry(self.machine.user_handle(), row, start, end)
        self._account(old, -pages)
        self._account(flags, pages)
        return row

    def _change_area(self, row: int, prev: int, start: int, end: int, flags: int, cpu: int, call: str) -> int:
        """Merges a range that gets other flags with its neighbours, or splits its area so that it has one of its own: that area."""
        machine, h, vma = self.machine, self.machine.user_handle(), self.users.vma[row]
        pgoff = int(vma["vm_pgoff"]) + (start - int(vma["vm_start"]) >> PAGE_SHIFT)
        merged = int(entry.merge_entry(h, self.mm, prev, start, end, flags, int(vma["anon_vma"]), int(vma["vm_file"]), pgoff))
        machine.settle(cpu)
        if merged != NIL:
            return merged
        for at, below in ((start, True), (end, False)):
            if at != (int(vma["vm_start"]) if below else int(vma["vm_end"])):
                if int(self.users.mm[self.mm]["map_count"]) >= MAX_MAP_COUNT:
                    raise self._error(errno.ENOMEM, call, f"more than vm.max_map_count ({MAX_MAP_COUNT}) areas")
                entry.split_entry(h, row, at, below)
                machine.settle(cpu)
                machine.room()
                h, vma = machine.user_handle(), self.users.vma[row]
        return row

    @system_call
    def mremap(self, old_address: int, old_length: int, new_length: int, flags: int = MREMAP_MAYMOVE, new_address: int = 0, cpu: int = 0) -> int:
        """``mremap``: the address then. :raises SyscallError: EINVAL, EFAULT (not mapped, or over the end of an area), ENOMEM, EAGAIN (RLIMIT_MEMLOCK)."""
        cpu, call = self._live(cpu), "mremap"
        fixed = flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)
        old_length, new_length = page_align(old_length), page_align(new_length)
        if (
            flags & ~7
            or (fixed and not flags & MREMAP_MAYMOVE)
            or (flags & MREMAP_DONTUNMAP and old_length != new_length)
            or old_address % PAGE_SIZE
            or new_length <= 0
        ):
            raise self._error(errno.EINVAL, call, f"0x{old_address:x}, flags 0x{flags:x}, {new_length} bytes")
        self.machine.room()
        row = self.find_vma(old_address)
        if row == NIL or int(self.users.vma[row]["vm_start"]) > old_address:
            raise self._error(errno.EFAULT, call, f"0x{old_address:x} is not mapped")
        if fixed:
            return self._mremap_to(old_address, old_length, new_length, flags, new_address, cpu)
        if old_length >= new_length:
            if old_length > new_length:
                self._munmap(old_address + new_length, old_address + old_length, cpu, call)
            return old_address
        self._resizable(row, old_address, old_length, new_length, flags)
        vma = self.users.vma[row]
        end, grown = int(vma["vm_end"]), new_length - old_length
        if old_length == end - old_address and not self._intersects(end, end + grown) and end + grown <= int(self.users.mm[self.mm]["task_size"]):
            if int(vma["vm_flags"]) & VM_ACCOUNT:
                self._charge(grown >> PAGE_SHIFT, call)
            pgoff = int(vma["vm_pgoff"]) + (end - int(vma["vm_start"]) >> PAGE_SHIFT)
            area = int(vma["vm_flags"]), int(vma["anon_vma"]), int(vma["vm_file"]), pgoff
            merged = int(entry.merge_entry(self.machine.user_handle(), self.mm, row, end, end + grown, *area))
            self.machine.settle(cpu)
            if merged == NIL:
                raise self._error(errno.ENOMEM, call, "an area shared with a parent or child does not grow in place")
            self._account(area[0], grown >> PAGE_SHIFT)
            if area[0] & VM_LOCKED:
                self.users.mm[self.mm]["locked_vm"] += grown >> PAGE_SHIFT
                self._populate(old_address + old_length, old_address + new_length, cpu)
            return old_address
        if not flags & MREMAP_MAYMOVE:
            raise self._error(errno.ENOMEM, call, "it cannot grow where it is, and MREMAP_MAYMOVE is not set")
        return self._move_vma(row, old_address, old_length, new_length, self._unmapped_area(0, new_length, 0, call), flags, cpu)

    def _resizable(self, row: int, address: int, old_length: int, new_length: int, flags: int) -> None:
        """``vma_to_resize``."""
        vma, call = self.users.vma[row], "mremap"
        vm_flags = int(vma["vm_flags"])
        if not old_length and not vm_flags & (VM_SHARED | VM_MAYSHARE):
            raise self._error(errno.EINVAL, call, "a private mapping cannot be duplicated")
        if flags & MREMAP_DONTUNMAP and vm_flags & (VM_DONTEXPAND | VM_PFNMAP):
            raise self._error(errno.EINVAL, call, "MREMAP_DONTUNMAP of what the kernel itself mapped")
        if old_length > int(vma["vm_end"]) - address:
            raise self._error(errno.EFAULT, call, f"{old_length} bytes reach over the end of the area")
        if new_length == old_length:
            return
        if vm_flags & (VM_DONTEXPAND | VM_PFNMAP):
            raise self._error(errno.EFAULT, call, "an area that may not grow")
        self._lock_limit(vm_flags, new_length - old_length, call)
        if not self._may_expand(vm_flags, new_length - old_length >> PAGE_SHIFT):
            raise self._error(errno.ENOMEM, call, "RLIMIT_AS or RLIMIT_DATA")

    def _mremap_to(self, address: int, old_length: int, new_length: int, flags: int, new_address: int, cpu: int) -> int:
        """``mremap_to``: to an address that the caller chose (MREMAP_FIXED), or leaving the old area behind (MREMAP_DONTUNMAP)."""
        call, size = "mremap", int(self.users.mm[self.mm]["task_size"])
        overlap = address + old_length > new_address and new_address + new_length > address
        if new_address % PAGE_SIZE or new_length > size or new_address > size - new_length or overlap:
            raise self._error(errno.EINVAL, call, f"new address 0x{new_address:x}")
        if int(self.users.mm[self.mm]["map_count"]) + 2 >= MAX_MAP_COUNT - 3:
            raise self._error(errno.ENOMEM, call, "too many areas")
        if flags & MREMAP_FIXED:
            self._munmap(new_address, new_address + new_length, cpu, call)
            self.machine.room()
        if old_length > new_length:
            self._munmap(address + new_length, address + old_length, cpu, call)
            old_length = new_length
            self.machine.room()
        row = self.find_vma(address)
        if row == NIL or int(self.users.vma[row]["vm_start"]) > address:
            raise self._error(errno.EFAULT, call, f"0x{address:x} is not mapped")
        self._resizable(row, address, old_length, new_length, flags)
        if flags & MREMAP_DONTUNMAP and not self._may_expand(int(self.users.vma[row]["vm_flags"]), old_length >> PAGE_SHIFT):
            raise self._error(errno.ENOMEM, call, "RLIMIT_AS or RLIMIT_DATA")
        target = self._unmapped_area(new_address, new_length, MAP_FIXED if flags & MREMAP_FIXED else 0, call)
        return self._move_vma(row, address, old_length, new_length, target, flags, cpu)

    def _move_vma(self, row: int, old: int, old_length: int, new_length: int, new: int, flags: int, cpu: int) -> int:
        """``move_vma``."""
        machine, call = self.machine, "mremap"
        if int(self.users.mm[self.mm]["map_count"]) >= MAX_MAP_COUNT - 3:
            raise self._error(errno.ENOMEM, call, "too many areas")
        vma = self.users.vma[row]
        start, vm_flags, anon, keep = int(vma["vm_start"]), int(vma["vm_flags"]), int(vma["anon_vma"]), bool(flags & MREMAP_DONTUNMAP)
        if vm_flags & VM_ACCOUNT:
            self._charge((new_length if keep else new_length - old_length) >> PAGE_SHIFT, call)
        pgoff = int(vma["vm_pgoff"]) + (old - start >> PAGE_SHIFT)
        file, mergeable = int(vma["vm_file"]), True
        if file < 0 and not anon:
            pgoff = new >> PAGE_SHIFT
            mergeable = not (keep and (new == int(vma["vm_end"]) or start == new + new_length))
        h = machine.user_handle()
        moved = int(entry.merge_entry(h, self.mm, self._prev(new), new, new + new_length, vm_flags, anon, file, pgoff)) if mergeable else NIL
        if moved == NIL:
            moved = int(entry.copy_vma_entry(h, row, new, new + new_length, pgoff))
        elif int(self.users.vma[moved]["vm_start"]) <= start < int(self.users.vma[moved]["vm_end"]):
            row = moved
        machine.settle(cpu)
        machine.table_room(old_length >> PAGE_SHIFT)
        h = machine.user_handle()
        error = int(entry.move_page_tables_entry(h, cpu, row, old, new, old_length))
        if error:
            raise self._error(errno.ENOMEM, call, "no page for a page table")
        vma = self.users.vma[row]
        excess = int(vma["vm_end"]) - int(vma["vm_start"]) > old_length and vm_flags & VM_ACCOUNT and not keep
        hiwater = int(self.users.mm[self.mm]["hiwater_vm"])
        self._account(vm_flags, new_length >> PAGE_SHIFT)
        if keep:
            vma["vm_flags"] &= ~(VM_LOCKED | VM_LOCKONFAULT)
            if int(vma["vm_start"]) == old and int(vma["vm_end"]) == old + old_length:
                entry.unlink_anon_vmas_entry(h, row)
                machine.settle(cpu)
                if file < 0:
                    vma["vm_pgoff"] = old >> PAGE_SHIFT
            return new
        self._munmap(old, old + old_length, cpu, call, account=False)
        del excess
        if vm_flags & VM_LOCKED:
            self.users.mm[self.mm]["locked_vm"] += new_length >> PAGE_SHIFT
            self._populate(new + old_length, new + new_length, cpu)
        self.users.mm[self.mm]["hiwater_vm"] = hiwater
        return new

    @system_call
    def madvise(self, address: int, length: int, advice: int, cpu: int = 0) -> None:
        """``madvise``: MADV_* of this module. :raises SyscallError: EINVAL; ENOMEM: part of the range is not mapped (the rest was done)."""
        cpu, call = self._live(cpu), "madvise"
        known = (
            MADV_NORMAL,
            MADV_RANDOM,
            MADV_SEQUENTIAL,
            MADV_WILLNEED,
            MADV_DONTNEED,
            MADV_FREE,
            *range(MADV_DONTFORK, MADV_DOFORK + 1),
            *range(MADV_HUGEPAGE, MADV_KEEPONFORK + 1),
        )
        if advice not in known or address % PAGE_SIZE or length < 0:
            raise self._error(errno.EINVAL, call, f"advice {advice}, 0x{address:x}, {length} bytes")
        at, end, hole = address, address + page_align(length), False
        row = self.find_vma(at)
        while at < end:
            if row == NIL or int(self.users.vma[row]["vm_start"]) >= end:
                hole = True
                break
            if int(self.users.vma[row]["vm_start"]) > at:
                hole, at = True, int(self.users.vma[row]["vm_start"])
            stop = min(int(self.users.vma[row]["vm_end"]), end)
            row = self._madvise_vma(row, at, stop, advice, cpu)
            at = stop
            row = self.find_vma(at)
        if hole:
            raise self._error(errno.ENOMEM, call, "part of the range is not mapped")

    def _madvise_vma(self, row: int, start: int, end: int, advice: int, cpu: int) -> int:
        self.machine.room()
        vma, h = self.users.vma[row], self.machine.user_handle()
        flags = int(vma["vm_flags"])
        if advice == MADV_WILLNEED:
            return row
        if advice in (MADV_DONTNEED, MADV_FREE):
            if flags & (VM_LOCKED | VM_PFNMAP) or (advice == MADV_FREE and int(vma["vm_file"]) >= 0):
                raise self._error(errno.EINVAL, "madvise", f"0x{start:x}: locked, or not anonymous memory")
            self._watermarks()
            if advice == MADV_DONTNEED:
                entry.zap_entry(h, cpu, row, start, end)
            else:
                entry.madvise_free_entry(h, cpu, row, start, end)
            return row
        sets = {
            MADV_RANDOM: (VM_RAND_READ, VM_SEQ_READ), MADV_SEQUENTIAL: (VM_SEQ_READ, VM_RAND_READ), MADV_NORMAL: (0, VM_SEQ_READ | VM_RAND_READ), MADV_DONTFORK: (VM_DONTCOPY, 0),
            MADV_DOFORK: (0, VM_DONTCOPY), MADV_HUGEPAGE: (VM_HUGEPAGE, VM_NOHUGEPAGE), MADV_NOHUGEPAGE: (VM_NOHUGEPAGE, VM_HUGEPAGE), MADV_DONTDUMP: (VM_DONTDUMP, 0),
            MADV_DODUMP: (0, VM_DONTDUMP), MADV_WIPEONFORK: (VM_WIPEONFORK, 0), MADV_KEEPONFORK: (0, VM_WIPEONFORK),
        }  # fmt: skip
        if (advice == MADV_WIPEONFORK and (int(vma["vm_file"]) >= 0 or flags & VM_SHARED)) or (advice == MADV_HUGEPAGE and flags & VM_SPECIAL):
            raise self._error(errno.EINVAL, "madvise", f"0x{start:x}: not for this mapping")
        new = flags & ~sets[advice][1] | sets[advice][0]
        if new == flags:
            return row
        prev = row if start > int(vma["vm_start"]) else int(vma["prev"])
        row = self._change_area(row, prev, start, end, new, cpu, "madvise")
        self.users.vma[row]["vm_flags"] = new
        return row

    def _populate(self, start: int, end: int, cpu: int) -> None:
        """``mm_populate``: private writable areas are written, others read; what may not be touched is left out."""
        while start < end:
            row = self.find_vma(start)
            if row == NIL or int(self.users.vma[row]["vm_start"]) >= end:
                return
            vma = self.users.vma[row]
            first, stop, flags = max(start, int(vma["vm_start"])), min(end, int(vma["vm_end"])), int(vma["vm_flags"])
            if flags & VM_ACCESS_FLAGS:
                self.touch(first, stop - first, flags & (VM_WRITE | VM_SHARED) == VM_WRITE, cpu)
            start = stop

    # Accesses

    @system_call
    def touch(self, address: int, length: int, write: bool = True, cpu: int = 0) -> None:
        """Accesses every page of a range, as a program would that goes through it.

        :raises SegmentationFault: a page is not the process's, or not for this. :raises BusError: it is behind its file's end.
        """
        cpu = self._live(cpu)
        if length <= 0:
            return
        self.machine.touch(self, address & -PAGE_SIZE, address + length, PAGE_SIZE, WRITE if write else READ, cpu)

    @system_call
    def read(self, address: int, n: int, cpu: int = 0) -> bytes:
        """`n` bytes, through the process's page tables; what is not there yet is faulted in."""
        cpu, parts = self._live(cpu), list[bytes]()
        for where, length in self.machine.user_runs(self, operator.index(address), operator.index(n), READ, cpu):
            parts.append(self.machine._load(where, length))
        return b"".join(parts)

    @system_call
    def write(self, address: int, data: bytes | bytearray | memoryview, cpu: int = 0) -> None:
        """Puts `data` into the process's memory. From the first write on the machine keeps contents."""
        cpu, data, at = self._live(cpu), bytes(data), 0
        watch = self.machine._watched()
        for where, length in self.machine.user_runs(self, operator.index(address), len(data), WRITE, cpu):
            self.machine._store(watch, where, data[at : at + length])
            at += length

    def memory(self, address: int, n: int, cpu: int = 0) -> MemoryBuffer:
        """A buffer of the process's memory: each use goes through its page tables anew."""
        return MemoryBuffer(self, operator.index(address), n, self._live(cpu))

    @system_call
    def translate(self, address: int, access: str = "read", cpu: int = 0) -> int:
        """The physical address that the process reaches, faulting as needed."""
        if access not in ACCESS:
            raise RequestError(f"access {access!r}: expected one of {', '.join(ACCESS)}")
        return self.machine.user_translate(self, operator.index(address), ACCESS[access], self._live(cpu))

    def fault_error(self, code: int, address: int, access: int, cpu: int) -> SegmentationFault | BusError:
        """The signal for a fault that the kernel cannot resolve, with its line in the log (``show_signal_msg``)."""
        error = access & (WRITE | EXEC) | USER | (access & 1)
        if code == FAULT_BUS:
            return BusError(f"{self.name}[{self.pid}]: SIGBUS at 0x{address:x}: behind the end of the file")
        row = self.find_vma(self.ip)
        where = ""
        if row != NIL and int(self.users.vma[row]["vm_start"]) <= self.ip and int(self.users.vma[row]["vm_file"]) >= 0:
            vma = self.users.vma[row]
            name = self.machine.file_name(int(vma["vm_file"])).path.rpartition("/")[2]
            where = f" in {name}[{int(vma['vm_start']):x}+{int(vma['vm_end']) - int(vma['vm_start']):x}]"
        width = 2 * self.word
        line = f"{self.name}[{self.pid}]: segfault at {address:x} ip {self.ip:0{width}x} sp {self.sp:0{width}x} error {error:x}{where} likely on CPU {cpu} (core {cpu}, socket 0)"
        why = "nothing is mapped there" if code == FAULT_MAPERR else "the mapping does not allow it" if code == FAULT_ACCERR else "the stack cannot grow"
        return SegmentationFault(f"{self.name}[{self.pid}]: segfault at {address:x} error {error:x}: {why}", line + "\n")

    # Life

    @system_call
    def fork(self, cpu: int = 0, name: str = "") -> Process:
        """``fork``: a child with the same memory, copied page by page when one of the two writes."""
        return self.machine.fork(self, self._live(cpu), name)

    def exit(self, cpu: int = 0) -> None:
        """The process ends; everything it had goes back."""
        self.machine.exit(self, self._live(cpu))

    def maps(self) -> str:
        """/proc/PID/maps."""
        return self.machine.maps(self.pid)

    def smaps(self) -> str:
        """/proc/PID/smaps."""
        return self.machine.smaps(self.pid)

    def status(self) -> str:
        """The lines of /proc/PID/status about names and memory."""
        return self.machine.status(self.pid)

    def swapped(self) -> int:
        """Pages that are swapped out (VmSwap, in pages)."""
        return int(self.users.mm[self.mm]["rss_swap"])

    def rss(self) -> dict[str, int]:
        """Resident pages: "anon", "file", "shmem"."""
        mm = self.users.mm[self.mm]
        return {name: int(mm[f"rss_{name}"]) for name in ("anon", "file", "shmem")}


__all__ = ("FAULT_ANON_VMA", "FAULT_STACK", "FILE_CACHED", "FILE_SPECIAL", "VM_READ", "Process")
