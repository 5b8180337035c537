"""Processes of a machine: how they begin, fork and end, what their pages cost (kernel/fork.c, fs/exec.c, fs/binfmt_elf.c, kernel/exit.c of Linux 6.1).

`Processes` is the part of `Machine` that has them. A task's kernel stack is virtual memory of 16 KiB (x86-64), of which each CPU keeps two from ended tasks; its structures are objects of
the kernel's caches, as far as memory management and the task itself go: maple tree nodes, security blobs, cgroups and what a shell opens are not modelled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmtwin.errors import AllocationFailure, NoSuchProcess, OomKilled, ProfileError, RequestError, SegmentationFault, SyscallError
from mmtwin.mm.mmu import EXEC as EXEC_FETCH
from mmtwin.mm.mmu import GENERAL_PROTECTION, TABLE_MARK, USER, WRITE, switch_mm_entry, translate_entry
from mmtwin.mm.page_alloc import EAGAIN
from mmtwin.mm.pgtable_tables import NO_ROOM, PAGE_SHIFT, has_room, reserve_tables
from mmtwin.mm.vmap_tables import NIL
from mmtwin.process import Process, page_align
from mmtwin.process_text import FileName, all_smaps, maps_line, status_text
from mmtwin.program import EXEC, Program, Segment, default_program
from mmtwin.units import PAGE_SIZE
from mmtwin.user import entry
from mmtwin.user.fault import FAULT_ANON_VMA, FAULT_KSWAPD, FAULT_STACK
from mmtwin.user.handles import address_table
from mmtwin.user.mm_tables import (
    FILE,
    FILE_CACHED,
    FILE_SHMEM,
    FILE_SPECIAL,
    FREE_ANON,
    FREE_AVC,
    FREE_VMA,
    NEW_ANON,
    NEW_AVC,
    NEW_VMA,
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_DONTEXPAND,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_IO,
    VM_LOCKED,
    VM_LOCKONFAULT,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYWRITE,
    VM_PFNMAP,
    VM_READ,
    VM_SOFTDIRTY,
    VM_WIPEONFORK,
    VM_WRITE,
    Users,
    areas_of,
    copy_users,
    new_users,
    reserve_users,
)

if TYPE_CHECKING:
    from mmtwin.mm.pgtable_tables import Mmu
    from mmtwin.mm.tables import Pgdat
    from mmtwin.profiles import Profile
    from mmtwin.profiles.layout import AddressSpace
    from mmtwin.slab_api import KmemCache
    from mmtwin.slub_debug import Watch

MAP_WINDOW_64 = (1 << 47) - PAGE_SIZE
STACK_EXPAND = 131072
GFP_KERNEL, GFP_THREADINFO, GFP_HIGHUSER_MOVABLE = 0xCC0, 0x400DC0, 0x100CCA
THREAD_SIZE = {64: 16384, 32: 8192}
NR_CACHED_STACKS = 2
VVAR_PAGES, VDSO_PAGES = 4, 2
STACK_FLAGS = VM_GROWSDOWN | VM_READ | VM_WRITE | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC | VM_ACCOUNT
ADMIN_RESERVE, USER_RESERVE = 8192 >> 2, 131072 >> 2
"""vm.admin_reserve_kbytes and vm.user_reserve_kbytes, in pages."""
TYPESAFE_BY_RCU, HWCACHE_ALIGN, ACCOUNT = 0x80000, 0x2000, 0x4000000
CACHES = {
    "task_struct": (8384, 5184, ACCOUNT), "mm_struct": (1152, 576, HWCACHE_ALIGN | ACCOUNT), "vm_area_struct": (152, 72, ACCOUNT), "anon_vma_chain": (64, 32, ACCOUNT),
    "anon_vma": (96, 52, TYPESAFE_BY_RCU | ACCOUNT), "signal_cache": (1152, 768, HWCACHE_ALIGN | ACCOUNT), "sighand_cache": (2112, 1344, HWCACHE_ALIGN | TYPESAFE_BY_RCU | ACCOUNT),
    "files_cache": (704, 256, HWCACHE_ALIGN | ACCOUNT), "fs_cache": (56, 32, HWCACHE_ALIGN | ACCOUNT), "cred_jar": (184, 128, HWCACHE_ALIGN | ACCOUNT), "pid": (112, 64, HWCACHE_ALIGN | ACCOUNT),
}  # fmt: skip
"""Slab caches of a task: size of an object on 64 and 32 bits (Debian's 6.1), flags."""
TASK_OBJECTS = ("task_struct", "cred_jar", "files_cache", "fs_cache", "sighand_cache", "signal_cache", "mm_struct", "pid")


@dataclass(frozen=True)
class Randomization:
    """What the kernel drew for a program's start (randomize_va_space), in bytes, multiples of a page; the default of `Machine.spawn` is none at all (``setarch -R``).

    :ivar mmap: downwards from the mmap base (up to 2^28 pages; 2^8 on 32 bits).
    :ivar stack: downwards from the end of the address space.
    :ivar brk: upwards from the end of bss.
    :ivar pie: upwards from the place of position-independent programs.
    """

    mmap: int = 0
    stack: int = 0
    brk: int = 0
    pie: int = 0


class File:
    """A file with its page cache, made by `Machine.create_file`.

    :ivar row: in the table of files.
    :ivar writable: open for writing, too.
    """

    def __init__(self, machine: Processes, row: int, path: str, inode: int, device: tuple[int, int], writable: bool) -> None:
        self._machine, self.row, self.path, self.inode, self.device, self.writable = machine, row, path, inode, device, writable

    @property
    def pages(self) -> list[int]:
        """Page frames of the cache, -1 for those that are not in memory."""
        file = self._machine.users.file[self.row]
        first = int(file["first"])
        found: list[int] = self._machine.users.cache[first : first + int(file["pages"])].tolist()
        return found

    def drop(self, cpu: int = 0) -> int:
        """The page cache lets go of all pages; those that are mapped stay with the processes. Returns how many it had."""
        return int(entry.drop_cache_entry(self._machine.user_handle(), cpu, self.row))


class Processes:
    """Processes; mixed into `Machine`.

    :ivar overcommit: vm.overcommit_memory: 0 by guess, 1 always, 2 never more than the limit.
    :ivar overcommit_ratio: vm.overcommit_ratio, percent; `overcommit_kbytes` instead of it if not 0.
    :ivar swap_pages: pages of swap space that count.
    """

    state: Pgdat
    profile: Profile
    space: AddressSpace
    mmu: Mmu
    cpus: int
    _handle: int
    _mmu_handle: int
    _bound_mmu: Mmu
    _watch: Watch | None

    if TYPE_CHECKING:  # of the machine's other parts
        kmem_caches: Callable[[], dict[str, KmemCache]]
        kmem_cache_create: Callable[..., KmemCache]
        kmem_cache_alloc: Callable[..., int]
        kmem_cache_free: Callable[..., None]
        vmalloc_node_range: Callable[..., int]
        vfree: Callable[..., None]
        alloc_pages: Callable[..., int]
        free_pages: Callable[..., None]
        _cpu: Callable[[int], int]
        totalpages: Callable[[], int]
        _bind_mmu: Callable[[], None]
        _load: Callable[[int, int], bytes]
        _store: Callable[..., None]
        _watched: Callable[..., Watch]
        _failure: Callable[[int, int, int, int], AllocationFailure]
        _calling: Process | None
        settle_io: Callable[[], None]
        run_kswapd: Callable[[int], bool]
        next_wait: Callable[[Iterator[None] | None, int], Iterator[None] | None]
        wait_for_memory: Callable[[int, int, Callable[[], int]], int]

    _users: Users | None = None

    def _set_processes(self) -> None:
        """Tables for processes; made when the first one is."""
        space = self.space
        if not self.has_processes():
            raise ProfileError(f"{self.profile.name}, {space.levels} levels of page tables: processes are modelled for Linux 6.1 with 2, 4 or 5 levels")
        users, kept = new_users(int(self.state.config[0]["nr_frames"]), self.cpus), self.profile.image.kept
        config = users.config[0]
        config["pgd_order"] = 1 if space.bits == 64 else 0
        config["zero_pfn"] = kept[2][0] if len(kept) > 2 else kept[0][0] if kept else 0
        config["gfp_pte"] = 0x400DC0 if space.bits == 64 else 0x400DC2
        managed = int(self.state.zone["managed_pages"].sum())
        config["thp"] = 2 if space.bits == 64 and self.profile.thp and managed >= self.profile.thp_min_pages else 0
        config["thp_zero"], config["numa"] = 1, int(bool(self.profile.numa_stat_items))
        self.overcommit, self.overcommit_ratio, self.overcommit_kbytes, self.swap_pages = 0, 50, 0, 0
        self._processes: dict[int, Process] = {}
        self._files: dict[int, FileName] = {}
        self._programs: dict[str, File] = {}
        self._free_files: list[int] = []
        self._stacks: dict[int, list[int]] = {}
        self._next_pid, self._next_inode = 100, 1000
        self._object_caches: dict[str, KmemCache] = {}
        self._take_users(users)

    def _take_users(self, users: Users) -> None:
        self._users = users
        users.lruvec[0]["contents"] = self._watch is not None
        self._user_table = address_table(users)
        self._user_handles = np.zeros(3, dtype=np.int64)
        self._user_handle = self._user_handles.ctypes.data

    def __getstate__(self) -> dict[str, object]:
        """Without addresses of memory, which mean nothing to an unpickled machine."""
        return {name: value for name, value in super().__getstate__().items() if name not in ("_user_table", "_user_handles", "_user_handle")}  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        if self._users is not None:
            self._take_users(self._users)

    @property
    def users(self) -> Users:
        """The tables of processes (`user.mm_tables.Users`)."""
        if self._users is None:
            self._set_processes()
        assert self._users is not None
        return self._users

    def has_processes(self) -> bool:
        """Whether processes are modelled for this machine."""
        return self.space.levels != 3 and self.profile.release == "6.1"

    def user_handle(self) -> int:
        """All tables behind one number (`user.handles`), as they are now."""
        _ = self.users
        if self._bound_mmu is not self.mmu:
            self._bind_mmu()
        handles = self._user_handles
        handles[0], handles[1], handles[2] = self._handle, self._mmu_handle, self._user_table.ctypes.data
        return self._user_handle

    def room(self) -> None:
        """Room for the rows that one system call can need."""
        users = reserve_users(self.users, 8, 256, 2)
        if users is not self._users:
            self._take_users(users)
        if not has_room(self.mmu, 512):
            self.table_room(512)

    def table_room(self, pages: int) -> None:
        """Room for page tables that map so many pages."""
        self.mmu = reserve_tables(self.mmu, pages)

    def _copy_processes(self, source: Processes) -> None:
        """Takes copies of another machine's processes."""
        if source._users is None:
            return
        self._set_processes()
        for name in ("overcommit", "overcommit_ratio", "overcommit_kbytes", "swap_pages", "_next_pid", "_next_inode"):
            setattr(self, name, getattr(source, name))
        self._take_users(copy_users(source._users))
        self._files, self._free_files = dict(source._files), list(source._free_files)
        self._programs = {path: File(self, file.row, file.path, file.inode, file.device, file.writable) for path, file in source._programs.items()}
        self._stacks = {cpu: list(stacks) for cpu, stacks in source._stacks.items()}
        for pid, process in source._processes.items():
            other = Process(self, pid, process.name, process.mm, process.program, process.parent)
            other.rlimits, other.objects = dict(process.rlimits), list(process.objects)
            other.ip, other.sp, other.root, other.stack = process.ip, process.sp, process.root, process.stack
            other._heap = None if process._heap is None else process._heap.copied(other)
            other.oom_score_adj = process.oom_score_adj
            self._processes[pid] = other

    # Slab objects

    def _object_cache(self, name: str) -> KmemCache:
        found = self._object_caches.get(name)
        if found is None:
            found = self.kmem_caches().get(name)
            if found is None:
                wide, narrow, flags = CACHES[name]
                found = self.kmem_cache_create(name, wide if self.space.bits == 64 else narrow, 64 if name == "task_struct" else 0, flags)
            self._object_caches[name] = found
        return found

    def settle(self, cpu: int) -> None:
        """Makes and frees the slab objects that the compiled rules have logged."""
        users = self.users
        n = int(users.config[0]["log"])
        if not n:
            return
        users.config[0]["log"] = 0
        listed = users.log[:n].tolist()
        for kind, row in listed:  # the process may be killed for want of memory before it has them all
            if kind in (NEW_VMA, NEW_AVC, NEW_ANON):
                (users.vma if kind == NEW_VMA else users.avc if kind == NEW_AVC else users.anon)[row]["object"] = 0
        for kind, row in listed:
            if kind == NEW_VMA:
                users.vma[row]["object"] = self._new_object("vm_area_struct", cpu)
            elif kind == NEW_AVC:
                users.avc[row]["object"] = self._new_object("anon_vma_chain", cpu)
            elif kind == NEW_ANON:
                users.anon[row]["object"] = self._new_object("anon_vma", cpu)
            elif row:
                name = {FREE_VMA: "vm_area_struct", FREE_AVC: "anon_vma_chain", FREE_ANON: "anon_vma"}[kind]
                self.kmem_cache_free(self._object_cache(name), row & (1 << 64) - 1, cpu)

    def _new_object(self, name: str, cpu: int) -> int:
        address = self.kmem_cache_alloc(self._object_cache(name), GFP_KERNEL, cpu)
        return address - ((address >> 63) << 64)

    # Overcommit

    def commit_limit(self) -> int:
        """``vm_commit_limit``, pages."""
        total = int(self.state.zone["managed_pages"].sum())
        allowed = self.overcommit_kbytes >> (PAGE_SHIFT - 10) if self.overcommit_kbytes else total * self.overcommit_ratio // 100
        return allowed + self.swap_pages

    def enough_memory(self, pages: int, total_vm: int, root: bool) -> bool:
        """``__vm_enough_memory``: whether a process may commit so many pages more."""
        if self.overcommit == 1:
            return True
        if self.overcommit == 0:
            return pages <= int(self.state.zone["managed_pages"].sum()) + self.swap_pages
        allowed = self.commit_limit() - (0 if root else ADMIN_RESERVE) - min(total_vm // 32, USER_RESERVE)
        return int(self.users.config[0]["committed"]) + pages < allowed

    # Files

    def create_file(
        self, path: str, size: int, *, shared_memory: bool = False, writable: bool = True, device: tuple[int, int] = (0, 2), inode: int = 0
    ) -> File:
        """A file of `size` bytes that processes can map; its pages come into the page cache when they are touched.

        :param shared_memory: it lies in tmpfs: there is no disk to read from, and its pages count as shared memory.
        """
        if size < 0:
            raise RequestError(f"file {path!r} of {size} bytes: expected 0 or more")
        if not inode:
            self._next_inode += 1
            inode = self._next_inode
        _ = self.users
        row = self._new_file(FILE_SHMEM if shared_memory else FILE_CACHED, page_align(size) >> PAGE_SHIFT)
        self.users.file[row]["refcount"] = 1
        self._files[row] = FileName(path, inode, device)
        return File(self, row, path, inode, device, writable)

    def _new_file(self, kind: int, pages: int) -> int:
        users = self.users
        for i, row in enumerate(self._free_files):
            if int(users.file[row]["pages"]) == pages:
                del self._free_files[i]
                users.file[row]["kind"], users.file[row]["refcount"] = kind, 0
                return row
        made = np.zeros(1, dtype=FILE)
        made["kind"], made["first"], made["pages"], made["gfp"] = kind, len(users.cache), pages, GFP_HIGHUSER_MOVABLE
        self._take_users(users._replace(file=np.concatenate([users.file, made]), cache=np.concatenate([users.cache, np.full(pages, -1, dtype=np.int64)])))
        return len(users.file)

    def create_shmem(self, length: int, _noreserve: bool = False) -> File:
        """``shmem_zero_setup``: what is behind a shared anonymous mapping."""
        return self.create_file("/dev/zero (deleted)", length, shared_memory=True, device=(0, 1))

    def file_unmapped(self, row: int, cpu: int) -> None:
        """An area of a file is gone; a file that has no name either goes with it."""
        if row >= 0 and int(self.users.file[row]["refcount"]) == 0:
            if int(self.users.file[row]["kind"]) == FILE_SHMEM:
                self.users.config[0]["committed"] -= int(self.users.file[row]["pages"])
            entry.drop_cache_entry(self.user_handle(), cpu, row)
            self._files.pop(row, None)
            self._free_files.append(row)

    def drop_caches(self, cpu: int = 0) -> int:
        """``echo 1 > /proc/sys/vm/drop_caches``: files' page caches let go of their pages. Returns how many they had."""
        kinds = self.users.file["kind"]
        return sum(int(entry.drop_cache_entry(self.user_handle(), cpu, row)) for row in np.flatnonzero(kinds == FILE_CACHED).tolist())

    def file_name(self, row: int) -> FileName:
        """What maps shows of a file."""
        return self._files[row]

    # Beginning and end

    def processes(self) -> Mapping[int, Process]:
        """The processes that live, by number."""
        _ = self.users
        return dict(self._processes)

    def process(self, pid: int) -> Process:
        """:raises NoSuchProcess: it does not exist."""
        _ = self.users
        if pid not in self._processes:
            raise NoSuchProcess(f"no process {pid}")
        return self._processes[pid]

    def spawn(
        self, name: str, program: Program | None = None, *, cpu: int = 0, stack_limit: int = 8 << 20, legacy: bool = False, randomize: Randomization | None = None,
        arguments: int = 512, root: bool = True, vdso: bool = True,
    ) -> Process:  # fmt: skip
        """A process that has just begun to run `program` (fork by someone who has no memory of his own, then ``execve``).

        :param name: ``comm``.
        :param stack_limit: RLIMIT_STACK, bytes: the mmap area begins below it.
        :param legacy: bottom-up layout (personality ADDR_COMPAT_LAYOUT, vm.legacy_va_layout).
        :param arguments: bytes of arguments and environment at the top of the stack.
        :raises AllocationFailure: no memory.
        """
        cpu = self._cpu(cpu)
        if not name or len(name.encode()) > 15:
            raise RequestError(f"process name {name!r}: expected 1 to 15 bytes")
        self.room()
        program = default_program(name, self.space.bits) if program is None else program
        process = self._new_task(name, program, 0, cpu)
        process.root, process.rlimits["STACK"] = root, stack_limit
        try:
            self._new_mm(process, cpu)
            self._exec(process, cpu, legacy, Randomization() if randomize is None else randomize, arguments, vdso, randomize is not None)
        except (AllocationFailure, SyscallError, OomKilled):
            self.exit(process, cpu)
            raise
        return process

    def _new_task(self, name: str, program: Program, parent: int, cpu: int) -> Process:
        """``dup_task_struct`` and ``copy_process``: the objects, and the kernel stack."""
        self._next_pid += 1
        process = Process(self, self._next_pid, name, -1, program, parent)
        try:
            for kind in TASK_OBJECTS:
                process.objects.append((kind, self.kmem_cache_alloc(self._object_cache(kind), GFP_KERNEL, cpu)))
                if kind == "task_struct":
                    process.stack = self._new_stack(cpu)
        except AllocationFailure:
            self._free_task(process, cpu)
            raise
        self._processes[process.pid] = process
        return process

    def _new_stack(self, cpu: int) -> int:
        """``alloc_thread_stack_node``: one of the CPU's two spare ones, else a new one."""
        size = THREAD_SIZE[self.space.bits]
        if self.space.bits == 32:
            return self.alloc_pages(1, GFP_THREADINFO, cpu)
        spare = self._stacks.get(cpu)
        if spare:
            return spare.pop(0)
        return self.vmalloc_node_range(size, size, gfp=0xDC0, cpu=cpu, caller="copy_process+0x1c9/0x1b30")

    def _free_stack(self, stack: int, cpu: int) -> None:
        if self.space.bits == 32:
            self.free_pages(stack, 1, cpu)
        elif len(self._stacks.setdefault(cpu, [])) < NR_CACHED_STACKS:
            self._stacks[cpu].append(stack)
        else:
            self.vfree(stack, cpu)

    def _free_task(self, process: Process, cpu: int) -> None:
        objects = dict(process.objects)
        for kind in ("mm_struct", "files_cache", "fs_cache", "signal_cache", "sighand_cache", "pid", "cred_jar"):
            if kind in objects:
                self.kmem_cache_free(self._object_cache(kind), objects[kind], cpu)
        if process.stack:
            self._free_stack(process.stack, cpu)
        if "task_struct" in objects:
            self.kmem_cache_free(self._object_cache("task_struct"), objects["task_struct"], cpu)
        process.objects, process.stack, process.alive = [], 0, False
        self._processes.pop(process.pid, None)

    def _new_mm(self, process: Process, cpu: int) -> None:
        """``mm_alloc``."""
        users = self.users
        config = users.config[0]
        row = int(config["free_mm"])
        if row >= 0:
            config["free_mm"] = users.mm[row]["next"]
        else:
            row = int(config["mms"])
            config["mms"] = row + 1
        pgd = int(entry.pgd_alloc_entry(self.user_handle(), cpu))
        if pgd < 0:
            pgd = self.wait_for_memory(pgd, cpu, lambda: int(entry.pgd_alloc_entry(self.user_handle(), cpu)))
        if pgd < 0:
            users.mm[row]["next"], config["free_mm"] = config["free_mm"], row
            raise self._failure(pgd, int(config["pgd_order"]), int(config["gfp_table"]), cpu)
        users.mm[row] = np.zeros(1, dtype=users.mm.dtype)[0]
        users.mm[row]["used"], users.mm[row]["pgd"] = 1, pgd
        process.mm = row

    def _exec(self, process: Process, cpu: int, legacy: bool, rnd: Randomization, arguments: int, vdso: bool, random: bool) -> None:
        """``load_elf_binary``."""
        bits, mm, program = self.space.bits, self.users.mm[process.mm], process.program
        size = min(self.space.user_end, MAP_WINDOW_64) if bits == 64 else self.space.user_end
        top = size - rnd.stack
        most = (0x3FFFFF if bits == 64 else 0x7FF) << PAGE_SHIFT if random else 0
        gap = min(max(process.rlimits["STACK"] + most + int(self.users.config[0]["guard_gap"]), 128 << 20), size // 6 * 5)
        mm["task_size"], mm["topdown"] = size, not legacy
        mm["mmap_legacy_base"] = page_align(size // 3) + rnd.mmap
        mm["mmap_base"] = mm["mmap_legacy_base"] if legacy else page_align(size - gap - rnd.mmap)
        start = page_align(top - arguments) - PAGE_SIZE if arguments % PAGE_SIZE else top - arguments
        start = min(start, top - PAGE_SIZE) & -PAGE_SIZE
        self._insert(process, start, top, STACK_FLAGS, start >> PAGE_SHIFT, -1, cpu)
        self.users.config[0]["committed"] += top - start >> PAGE_SHIFT
        mm["start_stack"] = process.sp = (top - arguments - 8) & -16
        process.touch(start, top - start, True, cpu)
        # setup_arg_pages: the stack gets its first 128 KiB
        grown = max(min(STACK_EXPAND, process.rlimits["STACK"] - (top - start)), 0) & -PAGE_SIZE
        self._expand_stack(process, process.find_vma(start), start - grown, cpu)
        bias = 0
        if program.pie:
            lowest = program.segments[0].vaddr & -PAGE_SIZE
            if program.interpreter is not None:
                bias = ((size // 3 * 2 if bits == 64 else 0x400000) + rnd.pie & -PAGE_SIZE) - lowest
            else:
                span = max(s.vaddr + s.memsz for s in program.segments) - lowest
                bias = process._unmapped_area(0, page_align(span), 0, "execve") - lowest
        process.ip = program.entry + bias
        end = self._map_segments(process, program, bias, cpu)
        mm = self.users.mm[process.mm]
        code = [s for s in program.segments if s.flags & EXEC] or list(program.segments)
        mm["start_code"], mm["end_code"] = min(s.vaddr for s in code) + bias, max(s.vaddr + s.filesz for s in code) + bias
        mm["start_data"], mm["end_data"] = max(s.vaddr for s in program.segments) + bias, max(s.vaddr + s.filesz for s in program.segments) + bias
        brk = page_align(end)
        if random and program.pie and program.interpreter is None:
            brk = size // 3 * 2 & -PAGE_SIZE
        mm["start_brk"] = mm["brk"] = brk + rnd.brk
        if program.interpreter is not None:
            linker = program.interpreter
            lowest = linker.segments[0].vaddr & -PAGE_SIZE
            span = page_align(max(s.vaddr + s.memsz for s in linker.segments) - lowest)
            place = process._unmapped_area(0, span, 0, "execve") - lowest
            self._map_segments(process, linker, place, cpu)
            process.ip = linker.entry + place
        if vdso:
            pages = VVAR_PAGES + VDSO_PAGES
            at = process._unmapped_area(0, pages << PAGE_SHIFT, 0, "execve")
            common = VM_DONTEXPAND | VM_SOFTDIRTY | VM_READ | VM_MAYREAD
            middle = at + (VVAR_PAGES << PAGE_SHIFT)
            self._special(process, middle, middle + (VDSO_PAGES << PAGE_SHIFT), common | VM_EXEC | VM_MAYWRITE | VM_MAYEXEC, "[vdso]", cpu)
            self._special(process, at, middle, common | VM_IO | VM_DONTDUMP | VM_PFNMAP, "[vvar]", cpu)

    def _special(self, process: Process, start: int, end: int, flags: int, name: str, cpu: int) -> None:
        """``_install_special_mapping``."""
        file = self._programs.get(name)
        if file is None:
            row = self._new_file(FILE_SPECIAL, end - start >> PAGE_SHIFT)
            self._files[row] = FileName(name, 0, (0, 0))
            self.users.file[row]["refcount"] = 1
            file = self._programs[name] = File(self, row, name, 0, (0, 0), False)
        self._insert(process, start, end, flags, 0, file.row, cpu)

    def _insert(self, process: Process, start: int, end: int, flags: int, pgoff: int, file: int, cpu: int) -> int:
        self.room()
        row = int(entry.insert_vma_entry(self.user_handle(), process.mm, start, end, flags | VM_SOFTDIRTY, pgoff, file))
        self.settle(cpu)
        process._account(flags, end - start >> PAGE_SHIFT)
        return row

    def program_file(self, program: Program) -> File:
        """The file behind a program, one for all processes."""
        file = self._programs.get(program.path)
        if file is None:
            file = self.create_file(program.path, program.file_bytes, writable=False, device=program.device, inode=program.inode, shared_memory=program.tmpfs)
            self._programs[program.path] = file
        return file

    def _map_segments(self, process: Process, program: Program, bias: int, cpu: int) -> int:
        """``elf_map`` of each segment, and the zeros behind the data: the end of all."""
        file, last = self.program_file(program), Segment(0, 0, 0, 0, 0)
        for segment in program.segments:
            start, end = segment.vaddr + bias & -PAGE_SIZE, page_align(segment.vaddr + bias + segment.filesz)
            if end > start:
                flags = segment.flags | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
                self.room()
                process._mmap_region(start, end - start, flags, segment.offset >> PAGE_SHIFT, file, cpu, "execve")
            if segment.vaddr + segment.memsz >= last.vaddr + last.memsz:
                last = segment
        bss, end = last.vaddr + last.filesz + bias, last.vaddr + last.memsz + bias
        if end > bss:
            if page_align(end) > page_align(bss):
                self.room()
                process._do_brk(page_align(bss), page_align(end) - page_align(bss), 0, cpu, 0)
            if bss % PAGE_SIZE and last.flags & VM_WRITE:
                process.touch(bss, 1, True, cpu)  # padzero
        return end

    def fork(self, parent: Process, cpu: int, name: str = "") -> Process:
        """``copy_process``: see `Process.fork`."""
        self.room()
        self.table_room(512 * (int(self.users.mm[parent.mm]["pgtables"]) + 16))
        child = self._new_task(name or parent.name, parent.program, parent.pid, cpu)
        child.rlimits, child.root, child.ip, child.sp = dict(parent.rlimits), parent.root, parent.ip, parent.sp
        child.oom_score_adj = parent.oom_score_adj
        try:
            self._new_mm(child, cpu)
            self._dup_mmap(child, parent, cpu)
            if parent._heap is not None:
                child._heap = parent._heap.on(cpu).forked(child)
        except (AllocationFailure, SyscallError, OomKilled):
            self.exit(child, cpu)
            raise
        return child

    def _dup_mmap(self, child: Process, parent: Process, cpu: int) -> None:
        """``dup_mmap``."""
        mm, old = self.users.mm[child.mm], self.users.mm[parent.mm]
        names = (
            "total_vm",
            "data_vm",
            "exec_vm",
            "stack_vm",
            "start_code",
            "end_code",
            "start_data",
            "end_data",
            "start_brk",
            "brk",
            "start_stack",
            "mmap_base",
        )
        for name in (*names, "mmap_legacy_base", "task_size", "topdown"):
            mm[name] = old[name]
        for row in areas_of(self.users, parent.mm):
            self.room()
            vma, users = self.users.vma[row], self.users
            flags, pages = int(vma["vm_flags"]), int(vma["vm_end"]) - int(vma["vm_start"]) >> PAGE_SHIFT
            if flags & VM_DONTCOPY:
                child._account(flags, -pages)
                continue
            if flags & VM_ACCOUNT:
                child._charge(pages, "fork")
            h = self.user_handle()
            new = int(entry.fork_vma_entry(h, child.mm, row))
            users.vma[new]["vm_flags"] = flags & ~(VM_LOCKED | VM_LOCKONFAULT)
            self.settle(cpu)
            if not flags & VM_WIPEONFORK:
                error = int(entry.copy_page_range_entry(self.user_handle(), cpu, new, row))
                if error:
                    error = self.wait_for_memory(error, cpu, lambda new=new, row=row: int(entry.copy_page_range_entry(self.user_handle(), cpu, new, row)))  # type: ignore[misc]
                if error:
                    raise self._failure(error, 0, int(users.config[0]["gfp_table"]), cpu)
        mm = self.users.mm[child.mm]
        mm["hiwater_vm"] = mm["total_vm"]
        mm["hiwater_rss"] = int(mm["rss_anon"]) + int(mm["rss_file"]) + int(mm["rss_shmem"])

    def exit(self, process: Process, cpu: int) -> None:
        """``do_exit`` and ``release_task``: see `Process.exit`."""
        if not process.alive:
            raise NoSuchProcess(f"process {process.pid} ({process.name}) has ended")
        users, mm = self.users, process.mm
        if mm >= 0:
            rows, h = areas_of(users, mm), self.user_handle()
            if rows:
                entry.unmap_region_entry(h, cpu, rows[0], rows[-1], 0, int(users.vma[rows[-1]]["vm_end"]), 0, 0)
            for row in rows:
                vma, file = users.vma[row], int(users.vma[row]["vm_file"])
                if int(vma["vm_flags"]) & VM_ACCOUNT:
                    users.config[0]["committed"] -= int(vma["vm_end"]) - int(vma["vm_start"]) >> PAGE_SHIFT
                entry.remove_vma_entry(h, row)
                self.settle(cpu)
                self.file_unmapped(file, cpu)
            users = self.users
            if int(users.mm[mm]["huge_zero"]):
                users.config[0]["huge_zero_refcount"] -= 1
            entry.pgd_free_entry(h, cpu, int(users.mm[mm]["pgd"]))
            users.mm[mm]["used"], users.mm[mm]["next"] = 0, users.config[0]["free_mm"]
            users.config[0]["free_mm"] = mm
        self._free_task(process, cpu)

    # Faults

    def lru_add_drain_all(self) -> None:
        """``lru_add_drain_all``: every CPU puts what it has collected on the LRU lists."""
        for cpu in range(self.cpus):
            entry.lru_add_drain_entry(self.user_handle(), cpu)

    def _enter(self, process: Process, cpu: int) -> None:
        """``switch_mm``."""
        pgd = int(self.users.mm[process.mm]["pgd"])
        if int(self.mmu.cpu[cpu]["root"]) != pgd:
            switch_mm_entry(self.mmu, cpu, pgd)

    def user_translate(self, process: Process, address: int, access: int, cpu: int) -> int:
        """The physical address that a process reaches, after the faults that it takes."""
        if not 0 <= address < 1 << 64:
            raise RequestError(f"address 0x{address:x}: expected 0 to 0x{(1 << 64) - 1:x}")
        self._enter(process, cpu)
        while True:
            h = self.user_handle()
            found = int(translate_entry(int(self._user_handles[1]), cpu, address - ((address >> 63) << 64), access | USER))
            if found >= 0:
                return found & ~TABLE_MARK
            if found == GENERAL_PROTECTION:
                line = f"traps: {process.name}[{process.pid}] general protection fault ip:{process.ip:x} sp:{process.sp:x} error:0\n"
                raise SegmentationFault(f"{process.name}[{process.pid}]: general protection fault: 0x{address:x} is not canonical", line)
            del h
            self.handle_fault(process, address, -1 - found, cpu)

    def handle_fault(self, process: Process, address: int, access: int, cpu: int) -> None:
        """``do_user_addr_fault``."""
        if not address < int(self.users.mm[process.mm]["task_size"]):
            raise process.fault_error(-2001, address, access | 1, cpu)
        self.users.config[0]["taken"] = 0
        waits = None
        while True:
            if not has_room(self.mmu, 1):
                self.table_room(4096)
            code = int(entry.touch_entry(self.user_handle(), cpu, process.mm, address, address + 1, 1, access & (WRITE | EXEC_FETCH))[1])
            self.settle_io()
            if code == 0:
                break
            waits = self._before_fault(process, address, access, cpu, code, waits)
        if self._watch is not None:
            self._fill_target()

    def _before_fault(self, process: Process, address: int, access: int, cpu: int, code: int, waits: Iterator[None] | None) -> Iterator[None] | None:
        """What a fault asked for, or its error. Returns what is left of its wait for memory, if that is what it asked for."""
        if code == NO_ROOM:
            self.table_room(4096)
        elif code == FAULT_KSWAPD:
            self.run_kswapd(cpu)
        elif code == FAULT_ANON_VMA:
            self.room()
            entry.anon_vma_prepare_entry(self.user_handle(), process.find_vma(address))
            self.settle(cpu)
        elif code == FAULT_STACK:
            row = process.find_vma(address)
            try:
                grown = self._expand_stack(process, row, address & -PAGE_SIZE, cpu)
            except SyscallError:
                grown = False
            if not grown:
                raise process.fault_error(code, address, access, cpu)
        elif code == -EAGAIN and (waits := self.next_wait(waits, cpu)) is not None:
            return waits
        elif code > -2000:
            users = self.users
            last = max(min(int(users.config[0]["taken"]), len(users.request) // 3) - 1, 0)
            order, gfp = int(users.request[3 * last]), int(users.request[3 * last + 1])
            raise self._failure(code, order, max(gfp, 0), cpu)
        else:
            raise process.fault_error(code, address, access, cpu)
        return None

    def _expand_stack(self, process: Process, row: int, address: int, cpu: int) -> bool:
        """``expand_downwards``: whether the stack reaches down to `address` now."""
        vma = self.users.vma[row]
        start, prev, flags = int(vma["vm_start"]), int(vma["prev"]), int(vma["vm_flags"])
        if address >= start:
            return True
        if address < int(self.users.config[0]["mmap_min_addr"]):
            return False
        if prev != NIL:
            before = self.users.vma[prev]
            near = address - int(before["vm_end"]) < int(self.users.config[0]["guard_gap"])
            if near and int(before["vm_flags"]) & VM_ACCESS_FLAGS and not int(before["vm_flags"]) & VM_GROWSDOWN:
                return False
        self.room()
        if not int(self.users.vma[row]["anon_vma"]):
            entry.anon_vma_prepare_entry(self.user_handle(), row)
            self.settle(cpu)
        grow, size = start - address >> PAGE_SHIFT, int(self.users.vma[row]["vm_end"]) - address
        if not process._may_expand(flags, grow) or size > process.rlimits["STACK"] or grow > int(self.users.vma[row]["vm_pgoff"]):
            return False
        process._lock_limit(flags, grow << PAGE_SHIFT, "stack")
        process._charge(grow, "stack")
        process._account(flags, grow)
        vma = self.users.vma[row]
        entry.set_bounds_entry(self.user_handle(), row, address, int(vma["vm_end"]), int(vma["vm_pgoff"]) - grow)
        return True

    def _fill_target(self) -> None:
        """Contents of the page that a fault took: those of the page it copies, or zeros."""
        config = self.users.config[0]
        source, target = int(config["source"]), int(config["target"])
        if target < 0 or self._watch is None:
            return
        memory, size = self._watch.memory, PAGE_SIZE << max(int(self.state.page[target]["order"]), 0)
        memory.fill(target << PAGE_SHIFT, size)
        if source >= 0 and source in memory.frames:
            memory.write(target << PAGE_SHIFT, bytes(memory.frames[source]))

    def touch(self, process: Process, start: int, end: int, step: int, access: int, cpu: int) -> None:
        """Accesses a process's memory every `step` bytes: see `Process.touch`."""
        self._enter(process, cpu)
        if self._watch is not None:
            for address in range(start, end, step):
                self.user_translate(process, address, access, cpu)
            return
        self.users.config[0]["taken"] = 0
        waits, reached = None, start
        while True:
            if not has_room(self.mmu, 1):
                self.table_room(1 << 16)
            if end > int(self.users.mm[process.mm]["task_size"]):
                raise process.fault_error(-2001, max(start, int(self.users.mm[process.mm]["task_size"])), access | 1, cpu)
            start, code = (int(value) for value in entry.touch_entry(self.user_handle(), cpu, process.mm, start, end, step, access))
            self.settle_io()
            if code == 0:
                return
            if start != reached:
                waits, reached = None, start
            waits = self._before_fault(process, start, access, cpu, code, waits)

    def user_runs(self, process: Process, address: int, n: int, access: int, cpu: int) -> Iterator[tuple[int, int]]:
        """Physical address and length of the pieces of a range, page by page."""
        if n < 0:
            raise RequestError(f"{n} bytes: expected 0 or more")
        end = address + n
        while address < end:
            length = min(PAGE_SIZE - (address & PAGE_SIZE - 1), end - address)
            yield self.user_translate(process, address, access, cpu), length
            address += length

    # /proc

    def maps(self, pid: int) -> str:
        """/proc/PID/maps."""
        process = self.process(pid)
        lines = [maps_line(process, row, self._files) for row in areas_of(self.users, process.mm)]
        return "\n".join(lines) + "\n"

    def smaps(self, pid: int) -> str:
        """/proc/PID/smaps."""
        return all_smaps(self.process(pid), self.mmu, self._files)

    def status(self, pid: int) -> str:
        """The lines of /proc/PID/status about names and memory."""
        return status_text(self.process(pid))

    def user_requests(self) -> npt.NDArray[np.int64]:
        """Page requests since the last fault or system call began: order, gfp (-1: it was given back), page frame (negative: it failed)."""
        users = self.users
        n = min(int(users.config[0]["taken"]), len(users.request) // 3)
        found: npt.NDArray[np.int64] = users.request[: 3 * n].reshape(-1, 3).copy()
        return found

    def _process_tables(self) -> tuple[Any, ...]:
        """For digests."""
        return () if self._users is None else tuple(self._users)
