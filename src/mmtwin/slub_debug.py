"""What ``slub_debug`` and KASAN find: red zones, poison, owners, and the kernel's reports (mm/slub.c and mm/kasan/report.c of Linux 6.1).

A `Watch` stands between a machine and its allocator as soon as contents are kept, a cache is debugged or KASAN is on; a machine without one does
not pay for it. The tables decide which object is handed out, as always; the watch keeps the bytes and checks them where the kernel does.

Not kept: the owners' records do not lie in the simulated memory, so writing over them goes unnoticed. KASAN keeps the geometry of a kernel without
it and has no quarantine; what a real one puts between objects is therefore computed from the sizes that were asked for.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from mmtwin import errors
from mmtwin.errors import KasanError, ReportedError, SlubError
from mmtwin.memory import Memory
from mmtwin.mm.list import list_del
from mmtwin.mm.slab_common import (
    OBJECT_POISON,
    SLAB_CONSISTENCY_CHECKS,
    SLAB_DEBUG_FLAGS,
    SLAB_KMALLOC,
    SLAB_POISON,
    SLAB_RED_ZONE,
    SLAB_STORE_USER,
    TRACK_SIZE,
)
from mmtwin.mm.slab_tables import ALLOCATED, END, SLAB_LIVE
from mmtwin.mm.tables import PG_SLAB
from mmtwin.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    import polars as pl

    from mmtwin.machine import Machine
    from mmtwin.slab_api import KmemCache

RED_INACTIVE, RED_ACTIVE = 0xBB, 0xCC
POISON_FREE, POISON_END, POISON_INUSE = 0x6B, 0xA5, 0x5A
GFP_ZERO = 0x100
MASK = (1 << 64) - 1
VMEMMAP, STRUCT_PAGE = 0xFFFF_EA00_0000_0000, 64
STACK_DEPTH = 16
DOUBLE_LINE, LINE = "=" * 77, "-" * 77


# Reports


def normalise_report(text: str) -> list[str]:
    """The lines of a report that two machines must have in common.

    - addresses become ``ADDR``: numbers with 16 hex digits, with or without ``0x``;
    - symbols (``in f+0x1/0x2 [module]``, ``in file.py:12``, ``called from ...``) become ``SYMBOL``; age, pid and task become ``N``;
    - page flags (``flags=...(...)``) become ``FLAGS``, and what stands in brackets behind the cache's name becomes ``TAINT``;
    - stack traces go: their lines begin with a blank, and everything from ``CPU: `` to ``</TASK>`` belongs to them, as does what a warning prints
      between its text and ``---[ end trace``; so does the note that lock debugging is disabled;
    - of the 16 bytes before an object the last 8, where the object before it keeps its scrambled free pointer, become ``..``.
    """
    found, skip = list[str](), ""
    for line in text.splitlines():
        line = line.rstrip()
        if skip:
            skip = "" if skip in line else skip
            continue
        if line.startswith("WARNING: "):
            skip = "---[ end trace"
        elif line.startswith("CPU: "):
            skip = "</TASK>"
        if skip or line.startswith((" ", "Disabling lock debugging")):
            continue
        if line.startswith("Bytes b4 "):
            line = line[:50] + " .." * 8
        line = re.sub(r"\b(0x)?[0-9a-f]{16}\b", "ADDR", line)
        line = re.sub(r"flags=\S+", "FLAGS", line)
        line = re.sub(r"\((Not tainted|Tainted: [^)]*)\):", "(TAINT):", line)
        line = re.sub(r"^(Allocated|Freed) in .* age=\d+ cpu=(\d+) pid=\d+", r"\1 in SYMBOL age=N cpu=\2 pid=N", line)
        line = re.sub(r"called from .*", "called from SYMBOL", line)
        line = re.sub(r"^(BUG: KASAN: \S+) in .*", r"\1 in SYMBOL", line)
        line = re.sub(r"by task .*?(:?)$", r"by task N\1", line)
        found.append(line)
    while found and not found[-1]:
        found.pop()
    return found


def hex_dump(label: str, address: int, data: bytes) -> list[str]:
    """``print_section``: 16 bytes a line with their address and characters."""
    lines = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in row)
        lines.append(f"{label}{address + at:016x}: {row.hex(' '):<47}  {text}")
    return lines


class Track(NamedTuple):
    """``struct track``: who allocated or freed an object.

    :param site: the caller's file and line.
    :param stack: its callers, the innermost first.
    :param when: operations of the machine before this one, which stand for jiffies.
    """

    site: str
    stack: tuple[str, ...]
    cpu: int
    when: int
    pid: int = 0


@dataclass
class Owner:
    """What is known of an object: the size that was asked for, and its two tracks."""

    asked: int
    alloc: Track | None = None
    free: Track | None = None


@dataclass(frozen=True)
class Layout:
    """A cache as the checks need it; see `slab_common.CacheGeometry`."""

    number: int
    name: str
    flags: int
    size: int
    object_size: int
    inuse: int
    offset: int
    pad: int
    info_end: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "info_end", self.inuse + 8 if self.offset >= self.inuse else self.inuse)

    @property
    def debug(self) -> bool:
        return bool(self.flags & SLAB_DEBUG_FLAGS)

    @property
    def checks(self) -> bool:
        return bool(self.flags & SLAB_CONSISTENCY_CHECKS)

    @property
    def padding(self) -> tuple[int, int]:
        """Where the filler behind the metadata begins and ends, counted from the object."""
        at = self.info_end
        if self.flags & SLAB_STORE_USER:
            at += 2 * TRACK_SIZE + (4 if self.flags & SLAB_KMALLOC else 0)
        return at, self.size - self.pad


class SlabInfo(NamedTuple):
    """What ``print_slab_info`` prints, at that moment."""

    objects: int
    used: int
    freelist: int


class _Findings:
    """The reports of one call: every report is printed, the first one is raised."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.first: tuple[type[ReportedError], str] | None = None

    def add(self, kind: type[ReportedError], essence: str, lines: Iterable[str]) -> None:
        self.lines.extend(lines)
        if self.first is None:
            self.first = kind, essence

    def fix(self, cache: Layout, what: str) -> None:
        self.lines.append(f"FIX {cache.name}: {what}")

    def throw(self, address: int | None = None) -> None:
        if self.first is not None:
            kind, essence = self.first
            raise kind(essence, "\n".join(self.lines) + "\n", address)


_WHAT: dict[str, type[SlubError]] = {
    "Left Redzone": errors.RedZoneOverwritten, "Right Redzone": errors.RedZoneOverwritten, "Poison": errors.PoisonOverwritten,
    "End Poison": errors.PoisonOverwritten, "Object padding": errors.PaddingOverwritten, "Alignment padding": errors.PaddingOverwritten,
}  # fmt: skip


class Watch:
    """Contents of a machine's memory, and the checks of its debugged caches.

    :ivar memory: the contents.
    :ivar kasan: whether every access of an object is checked.
    :ivar owners: by physical address, the objects whose owners are known.
    :ivar clock: operations so far: the reports' jiffies.
    """

    def __init__(self, machine: Machine, kasan: bool = False) -> None:
        self.machine, self.kasan = machine, kasan
        self.memory = Memory(int(machine.state.config[0]["nr_frames"]))
        self.owners: dict[int, Owner] = {}
        self.live: set[int] = set()
        self.clock = 0
        self.tainted = False
        self._known: dict[int, int] = {}  # slabs whose bytes are laid out: row to first page frame
        self._layouts: dict[int, Layout] = {}

    def copy(self, machine: Machine) -> Watch:
        """The same for a copy of the machine."""
        other = Watch(machine, self.kasan)
        other.memory, other.clock, other.tainted = self.memory.copy(), self.clock, self.tainted
        other.owners, other.live, other._known = {at: replace(owner) for at, owner in self.owners.items()}, set(self.live), dict(self._known)
        return other

    # Where things are

    def _layout(self, number: int) -> Layout:
        found = self._layouts.get(number)
        if found is None:
            row = self.machine.slub.cache[number]
            flags = int(row["flags"])
            found = self._layouts[number] = Layout(
                number, self.machine._cache_names[number], flags, int(row["size"]), int(row["object_size"]), int(row["inuse"]), int(row["offset"]),
                int(row["red_left_pad"]) if flags & SLAB_RED_ZONE else 0,
            )  # fmt: skip
        return found

    def _row_of(self, physical: int) -> int:
        pfn = physical >> PAGE_SHIFT
        if not 0 <= pfn < self.memory.nr_frames:
            return END
        entry = self.machine.state.page[pfn]
        return int(entry["next"]) if int(entry["flags"]) & PG_SLAB else END

    def _cache_of(self, row: int) -> Layout:
        return self._layout(int(self.machine.slub.slab[row]["cache"]))

    def _base(self, row: int) -> int:
        return int(self.machine.slub.slab[row]["pfn"]) << PAGE_SHIFT

    def _at(self, cache: Layout, row: int, slot: int) -> int:
        return self._base(row) + cache.pad + slot * cache.size

    def _virtual(self, physical: int) -> int:
        return physical + self.machine.PAGE_OFFSET & MASK

    def _slot(self, cache: Layout, row: int, physical: int) -> int:
        """``check_valid_pointer``: the slot that begins there, -1 if none does."""
        at = physical - self._base(row) - cache.pad
        slot, rest = divmod(at, cache.size)
        return slot if at >= 0 and not rest and slot < int(self.machine.slub.slab[row]["objects"]) else -1

    def _next(self, row: int, slot: int) -> int:
        return int(self.machine.slub.slot[int(self.machine.slub.slab[row]["slots"]) + slot])

    def _set_next(self, row: int, slot: int, value: int) -> None:
        self.machine.slub.slot[int(self.machine.slub.slab[row]["slots"]) + slot] = value

    def _pointer(self, cache: Layout, row: int, slot: int) -> int:
        return 0 if slot < 0 else self._virtual(self._at(cache, row, slot))

    # The free pointer, scrambled as with CONFIG_SLAB_FREELIST_HARDENED

    def _scramble(self, value: int, where: int) -> int:
        return value ^ int.from_bytes((self._virtual(where)).to_bytes(8, "little"), "big")

    def _get_pointer(self, cache: Layout, physical: int) -> int:
        where = physical + cache.offset
        return self._scramble(int.from_bytes(self.memory.read(where, 8), "little"), where)

    def _set_pointer(self, cache: Layout, physical: int, value: int) -> None:
        where = physical + cache.offset
        if where + 8 <= self.memory.nr_frames << PAGE_SHIFT:
            self.memory.write(where, self._scramble(value, where).to_bytes(8, "little"))

    def _pointer_slot(self, cache: Layout, row: int, value: int) -> int | None:
        """The slot that a free pointer means: END for NULL, None if it is corrupt."""
        if not value:
            return END
        slot = self._slot(cache, row, value - self.machine.PAGE_OFFSET)
        return None if slot < 0 else slot

    # Laying a slab out

    def _image(self, cache: Layout, value: int) -> bytes:
        """The bytes of a slot with a fresh object (``setup_slab_debug``, ``init_object``, ``init_tracking``)."""
        poison = cache.flags & SLAB_POISON
        image = bytearray((POISON_INUSE if poison else 0,) * cache.size)
        self._init(cache, image, cache.pad, value)
        if cache.flags & SLAB_STORE_USER:
            image[cache.pad + cache.info_end : cache.pad + cache.info_end + 2 * TRACK_SIZE] = bytes(2 * TRACK_SIZE)
        return bytes(image)

    def _init(self, cache: Layout, image: bytearray, at: int, value: int) -> None:
        if cache.flags & SLAB_RED_ZONE:
            image[at - cache.pad : at] = bytes((value,)) * cache.pad
            image[at + cache.object_size : at + cache.inuse] = bytes((value,)) * (cache.inuse - cache.object_size)
        if cache.flags & OBJECT_POISON:
            image[at : at + cache.object_size] = bytes((POISON_FREE,)) * (cache.object_size - 1) + bytes((POISON_END,))

    def _init_object(self, cache: Layout, physical: int, value: int) -> None:
        """``init_object``."""
        image = bytearray(self.memory.read(physical - cache.pad, cache.pad + cache.inuse))
        self._init(cache, image, cache.pad, value)
        self.memory.write(physical - cache.pad, image)

    def ensure(self, row: int) -> None:
        """The slab's bytes are laid out as they would be had everybody behaved, if they are not kept yet."""
        slab = self.machine.slub.slab[row]
        pfn = int(slab["pfn"])
        if self._known.get(row) == pfn:
            return
        self._known[row] = pfn
        cache = self._cache_of(row)
        if not cache.debug:
            return
        objects = int(slab["objects"])
        free, used = self._image(cache, RED_INACTIVE), self._image(cache, RED_ACTIVE)
        slots = [self._next(row, slot) for slot in range(objects)]
        parts = b"".join(used if following == ALLOCATED else free for following in slots)
        rest = (PAGE_SIZE << int(slab["order"])) - len(parts)
        self.memory.write(pfn << PAGE_SHIFT, parts + bytes((POISON_INUSE if cache.flags & SLAB_POISON else 0,)) * rest)
        for slot, following in enumerate(slots):
            self._set_pointer(cache, self._at(cache, row, slot), self._pointer(cache, row, following))

    def _forget(self, row: int) -> None:
        """A slab may be gone: its objects with it."""
        slab = self.machine.slub.slab[row]
        if int(slab["state"]) == SLAB_LIVE and self._known.get(row) == int(slab["pfn"]) and self._row_of(int(slab["pfn"]) << PAGE_SHIFT) == row:
            return
        pfn = self._known.pop(row, -1)
        if pfn >= 0:
            start, end = pfn << PAGE_SHIFT, (pfn + (1 << int(slab["order"]))) << PAGE_SHIFT
            for at in [at for at in self.owners if start <= at < end]:
                del self.owners[at]
                self.live.discard(at)

    # Reports

    def _taint(self) -> str:
        return f"Tainted: G    B{'':13}" if self.tainted else "Not tainted"

    def track(self, cpu: int) -> Track:
        """Who calls: the innermost frame outside of this package, and its callers."""
        frame, stack = sys._getframe(1), list[str]()
        while frame is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == "mmtwin":
            frame = frame.f_back  # type: ignore[assignment]
        site = ""
        while frame is not None and len(stack) < STACK_DEPTH:
            file = frame.f_code.co_filename.rsplit("/", 1)[-1]
            site = site or f"{file}:{frame.f_lineno}"
            stack.append(f" {frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name} ({file}:{frame.f_lineno})")
            frame = frame.f_back  # type: ignore[assignment]
        return Track(site or "<unknown>", tuple(stack), cpu, self.clock)

    def _dump_stack(self, cpu: int) -> list[str]:
        who = self.track(cpu)
        return [f"CPU: {cpu} PID: 0 Comm: python {self._taint()} {self.machine.profile.name}", "Call Trace:", " <TASK>", *who.stack, " </TASK>"]

    def _tracking(self, cache: Layout, physical: int) -> list[str]:
        owner, lines = self.owners.get(physical), list[str]()
        if owner is None or not cache.flags & SLAB_STORE_USER:
            return []
        for word, t in (("Allocated", owner.alloc), ("Freed", owner.free)):
            if t is not None:
                lines += [f"{word} in {t.site} age={self.clock - t.when} cpu={t.cpu} pid={t.pid}", *t.stack]
        return lines

    def _info(self, row: int) -> SlabInfo:
        slab = self.machine.slub.slab[row]
        return SlabInfo(int(slab["objects"]), int(slab["inuse"]), self._pointer(self._cache_of(row), row, int(slab["freelist"])))

    def _slab_line(self, row: int, info: SlabInfo) -> str:
        pfn, head = int(self.machine.slub.slab[row]["pfn"]), int(self.machine.slub.slab[row]["order"]) > 0
        zone = next((z for z, entry in enumerate(self.machine.state.zone) if int(entry["start_pfn"]) <= pfn < int(entry["end_pfn"])), 0)
        flags = f"0x{zone << 51 | 0x1FFFFF << 30 | (0x10000 if head else 0) | 0x200:x}(slab|{'head|' if head else ''}node=0|zone={zone}|lastcpupid=0x1fffff)"
        return f"Slab 0x{VMEMMAP + pfn * STRUCT_PAGE:016x} objects={info.objects} used={info.used} fp=0x{info.freelist:016x} flags={flags}"

    def _bug(self, cache: Layout, what: str) -> list[str]:
        return [DOUBLE_LINE, f"BUG {cache.name} ({self._taint()}): {what}", LINE, ""]

    def _trailer(self, cache: Layout, row: int, physical: int, info: SlabInfo, cpu: int) -> list[str]:
        """``print_trailer``."""
        address, offset = self._virtual(physical), physical - self._base(row)
        lines = [*self._tracking(cache, physical), self._slab_line(row, info)]
        lines += [f"Object 0x{address:016x} @offset={offset} fp=0x{self._get_pointer(cache, physical):016x}", ""]

        def section(label: str, at: int, n: int) -> None:
            lines.extend(hex_dump(label, address + at & MASK, self.memory.read(physical + at, n)))

        red = cache.flags & SLAB_RED_ZONE
        if red:
            section("Redzone  ", -cache.pad, cache.pad)
        elif offset > 16:
            section("Bytes b4 ", -16, 16)
        section("Object   ", 0, min(cache.object_size, PAGE_SIZE))
        if red:
            section("Redzone  ", cache.object_size, cache.inuse - cache.object_size)
        start, end = cache.padding
        if start != end:
            section("Padding  ", start, end - start)
        return lines + self._dump_stack(cpu)

    def _object_err(self, found: _Findings, kind: type[SlubError], cache: Layout, row: int, physical: int, what: str, info: SlabInfo, cpu: int) -> None:
        found.add(kind, self._essence(cache, what, physical), [*self._bug(cache, what), *self._trailer(cache, row, physical, info, cpu)])
        self.tainted = True

    def _slab_err(self, found: _Findings, kind: type[SlubError], cache: Layout, row: int, what: str, info: SlabInfo, cpu: int) -> None:
        found.add(kind, f"BUG {cache.name} ({self._taint()}): {what}", [*self._bug(cache, what), self._slab_line(row, info), *self._dump_stack(cpu)])
        self.tainted = True

    def _essence(self, cache: Layout, what: str, physical: int) -> str:
        owner, said = self.owners.get(physical), ""
        if owner is not None and cache.flags & SLAB_STORE_USER:
            parts = [f"{word} in {t.site}" for word, t in (("allocated", owner.alloc), ("freed", owner.free)) if t is not None]
            said = f", {', '.join(parts)}"
        return f"BUG {cache.name} ({self._taint()}): {what}: object 0x{self._virtual(physical):016x}{said}"

    # Checks

    def _check_bytes(
        self, found: _Findings, cache: Layout, row: int, physical: int, what: str, start: int, value: int, n: int, info: SlabInfo, cpu: int
    ) -> bool:
        """``check_bytes_and_report``: whether the `n` bytes from `start` (counted from the object) all have that value; they do afterwards."""
        data = self.memory.read(physical + start, n)
        left = data.lstrip(bytes((value,)))
        if not left:
            return True
        first = start + n - len(left)
        end = first + len(left.rstrip(bytes((value,))))
        at, last = self._virtual(physical + first), self._virtual(physical + end - 1)
        place = f"0x{at:016x}-0x{last:016x} @offset={physical + first - self._base(row)}. First byte 0x{left[0]:x} instead of 0x{value:x}"
        essence = self._essence(cache, f"{what} overwritten", physical)
        essence += f", {end - first} byte{'s' if end - first > 1 else ''} at offset {first} of it, the first 0x{left[0]:x} instead of 0x{value:x}"
        found.add(_WHAT[what], essence, [*self._bug(cache, f"{what} overwritten"), place, *self._trailer(cache, row, physical, info, cpu)])
        self.tainted = True
        found.fix(cache, f"Restoring {what} 0x{at:016x}-0x{last:016x}=0x{value:x}")
        self.memory.write(physical + first, bytes((value,)) * (end - first))
        return False

    def _check_object(self, found: _Findings, cache: Layout, row: int, physical: int, value: int, info: SlabInfo, cpu: int) -> bool:
        """``check_object``."""

        def same(what: str, start: int, byte: int, n: int) -> bool:
            return self._check_bytes(found, cache, row, physical, what, start, byte, n, info, cpu)

        flags = cache.flags
        if flags & SLAB_RED_ZONE:
            if not same("Left Redzone", -cache.pad, value, cache.pad):
                return False
            if not same("Right Redzone", cache.object_size, value, cache.inuse - cache.object_size):
                return False
        elif flags & SLAB_POISON and cache.object_size < cache.inuse:
            same("Alignment padding", cache.object_size, POISON_INUSE, cache.inuse - cache.object_size)
        if flags & SLAB_POISON:
            if value != RED_ACTIVE and flags & OBJECT_POISON:
                if not same("Poison", 0, POISON_FREE, cache.object_size - 1) or not same("End Poison", cache.object_size - 1, POISON_END, 1):
                    return False
            start, end = cache.padding
            if start != end:
                same("Object padding", start, POISON_INUSE, end - start)
        if cache.offset < cache.inuse and value == RED_ACTIVE:
            return True
        if self._pointer_slot(cache, row, self._get_pointer(cache, physical)) is None:
            self._object_err(found, errors.FreePointerCorrupt, cache, row, physical, "Freepointer corrupt", info, cpu)
            self._set_pointer(cache, physical, 0)
            return False
        return True

    def _check_slab(self, found: _Findings, cache: Layout, row: int, info: SlabInfo, cpu: int) -> bool:
        """``check_slab``."""
        if int(self.machine.slub.slab[row]["frozen"]):
            self._slab_err(found, errors.SlabDisabled, cache, row, "Slab disabled since SLUB metadata consistency check failed", info, cpu)
            return False
        self._pad_check(found, cache, row, info, cpu)
        return True

    def _pad_check(self, found: _Findings, cache: Layout, row: int, info: SlabInfo, cpu: int) -> None:
        """``slab_pad_check``."""
        length = PAGE_SIZE << int(self.machine.slub.slab[row]["order"])
        rest = length % cache.size
        if not rest or not cache.flags & SLAB_POISON:
            return
        base = self._base(row)
        data = self.memory.read(base + length - rest, rest)
        left = data.lstrip(bytes((POISON_INUSE,)))
        if not left:
            return
        first = length - len(left)
        end = first + len(left.rstrip(bytes((POISON_INUSE,))))
        at, last = self._virtual(base + first), self._virtual(base + end - 1)
        what = f"Padding overwritten. 0x{at:016x}-0x{last:016x} @offset={first}"
        self._slab_err(found, errors.PaddingOverwritten, cache, row, what, info, cpu)
        found.lines += hex_dump("Padding ", self._virtual(base + length - rest), data)
        found.fix(cache, f"Restoring slab padding 0x{at:016x}-0x{last:016x}=0x{POISON_INUSE:x}")
        self.memory.write(base + first, bytes((POISON_INUSE,)) * (end - first))

    def _on_freelist(self, found: _Findings, cache: Layout, row: int, slot: int, cpu: int) -> bool:
        """``on_freelist``: walks the list as memory has it, cuts it where it is corrupt, and mends the count."""
        slab = self.machine.slub.slab[row]
        objects, count, _last, at = int(slab["objects"]), 0, END, int(slab["freelist"])
        while at != END and count <= objects:
            if at == slot:
                return True
            physical = self._at(cache, row, at)
            following = self._pointer_slot(cache, row, self._get_pointer(cache, physical))
            count += 1
            if following is None:
                self._object_err(found, errors.FreePointerCorrupt, cache, row, physical, "Freechain corrupt", self._info(row), cpu)
                self._set_pointer(cache, physical, 0)
                self._cut(row, at)
                break
            if following != self._next(row, at):
                self._cut(row, at)
                break
            _last, at = at, following
        if int(slab["inuse"]) != objects - count:
            what = f"Wrong object count. Counter is {int(slab['inuse'])} but counted were {objects - count}"
            self._slab_err(found, errors.WrongObjectCount, cache, row, what, self._info(row), cpu)
            slab["inuse"] = objects - count
            found.fix(cache, "Object count adjusted")
        return False

    def _cut(self, row: int, slot: int) -> None:
        """The free list ends at `slot`; what came behind it can no longer be told from objects in use."""
        at = self._next(row, slot)
        self._set_next(row, slot, END)
        while at >= 0:
            following = self._next(row, at)
            self._set_next(row, at, ALLOCATED)
            at = following

    def _disable(self, found: _Findings, cache: Layout, row: int) -> None:
        """What ``alloc_debug_processing`` does after a finding: the slab is given up."""
        found.fix(cache, "Marking all objects used")
        slab = self.machine.slub.slab[row]
        at = int(slab["freelist"])
        while at >= 0:
            following = self._next(row, at)
            self._set_next(row, at, ALLOCATED)
            at = following
        slab["inuse"], slab["freelist"], slab["frozen"] = int(slab["objects"]), END, 1
        if int(slab["on_list"]):
            list_del(self.machine.slub.slab, row)
            slab["on_list"] = 0
            self.machine.slub.cache[cache.number]["nr_partial"] -= 1

    def _before_alloc(self, found: _Findings, cache: Layout, cpu: int) -> None:
        """``alloc_debug_processing``'s checks of the object that will be handed out; slabs that fail are given up."""
        slub = self.machine.slub
        while True:
            row = int(slub.slab[cache.number]["next"])
            if row == cache.number:
                return
            self.ensure(row)
            slab = slub.slab[row]
            slot = int(slab["freelist"])
            if slot == END:
                what = "kernel NULL pointer dereference: the free list was cut by an earlier misuse and is empty, though objects count as free"
                self._slab_err(found, errors.WrongObjectCount, cache, row, what, self._info(row), cpu)
                self._disable(found, cache, row)
                continue
            if not cache.checks:
                return
            physical = self._at(cache, row, slot)
            info = SlabInfo(int(slab["objects"]), int(slab["inuse"]) + 1, self._get_pointer(cache, physical))
            if self._check_slab(found, cache, row, info, cpu) and self._check_object(found, cache, row, physical, RED_INACTIVE, info, cpu):
                return
            self._disable(found, cache, row)

    def _after_alloc(self, cache: Layout, physical: int, asked: int, gfp: int, cpu: int) -> None:
        if cache.debug:
            row = self._row_of(physical)
            new = self._known.get(row) != int(self.machine.slub.slab[row]["pfn"])
            self.ensure(row)
            if new:  # its free pointer is still that of the fresh list
                self._set_pointer(cache, physical, self._pointer(cache, row, int(self.machine.slub.slab[row]["freelist"])))
            self._init_object(cache, physical, RED_ACTIVE)
        if self.kasan or cache.flags & SLAB_STORE_USER:
            old = self.owners.get(physical)
            self.owners[physical] = Owner(asked, self.track(cpu), None if old is None else old.free)
            self.live.add(physical)
        if gfp & GFP_ZERO:
            self.memory.fill(physical, cache.object_size)

    def _before_free(self, found: _Findings, cache: Layout, row: int, physical: int, cpu: int) -> bool:
        """``free_debug_processing``: whether the object may be freed."""
        self.ensure(row)
        slot = self._slot(cache, row, physical)
        if cache.checks:
            # slab_free_freelist_hook ends the chain of this one object first, wherever that writes; a free object's own list ends there, too
            self._set_pointer(cache, physical, 0)
            good = self._check_slab(found, cache, row, self._info(row), cpu)
            if good and int(self.machine.slub.slab[row]["inuse"]) < 1:
                what = "Slab has 0 allocated objects but 1 are to be freed"
                self._slab_err(found, errors.ObjectAlreadyFree, cache, row, what, self._info(row), cpu)
                good = False
            if good:
                good = self._free_checks(found, cache, row, slot, physical, cpu)
            if not good:
                if slot >= 0 and self._next(row, slot) != ALLOCATED:
                    self._cut(row, slot)
                found.fix(cache, f"Object at 0x{self._virtual(physical):016x} not freed")
                return False
        elif slot < 0 or self._next(row, slot) != ALLOCATED:
            return True  # the tables themselves say what is wrong
        owner = self.owners.get(physical)
        if cache.flags & SLAB_STORE_USER:
            if owner is None:
                owner = self.owners[physical] = Owner(cache.object_size)
            owner.free = self.track(cpu)
        self._init_object(cache, physical, RED_INACTIVE)
        slab, info = self.machine.slub.slab[row], self._info(row)
        self._set_pointer(cache, physical, info.freelist)
        if int(slab["inuse"]) == 1 and int(self.machine.slub.cache[cache.number]["nr_partial"]) >= int(self.machine.slub.cache[cache.number]["min_partial"]):
            self._discard_checks(found, cache, row, SlabInfo(info.objects, 0, self._virtual(physical)), cpu)
        return True

    def _free_checks(self, found: _Findings, cache: Layout, row: int, slot: int, physical: int, cpu: int) -> bool:
        """``free_consistency_checks``."""
        if slot < 0:
            what = f"Invalid object pointer 0x{self._virtual(physical):016x}"
            self._slab_err(found, errors.InvalidObjectPointer, cache, row, what, self._info(row), cpu)
            return False
        if self._on_freelist(found, cache, row, slot, cpu):
            self._object_err(found, errors.ObjectAlreadyFree, cache, row, physical, "Object already free", self._info(row), cpu)
            return False
        return self._check_object(found, cache, row, physical, RED_ACTIVE, self._info(row), cpu)

    def _discard_checks(self, found: _Findings, cache: Layout, row: int, info: SlabInfo, cpu: int) -> None:
        """``__free_slab`` looks at every object once more before the pages go back."""
        if not cache.checks:
            return
        self.ensure(row)
        self._pad_check(found, cache, row, info, cpu)
        for slot in range(info.objects):
            self._check_object(found, cache, row, self._at(cache, row, slot), RED_INACTIVE, info, cpu)

    def _partial(self, number: int) -> list[int]:
        slab, rows = self.machine.slub.slab, list[int]()
        row = int(slab[number]["next"])
        while row != number:
            rows.append(row)
            row = int(slab[row]["next"])
        return rows

    # KASAN

    def _object_near(self, physical: int) -> tuple[Layout, int, int] | None:
        """Cache, slab row and slot of the object that an address lies in or next to (``nearest_obj``)."""
        row = self._row_of(physical)
        if row == END:
            return None
        cache = self._cache_of(row)
        slot = max(0, physical - self._base(row) - cache.pad) // cache.size
        return cache, row, min(slot, int(self.machine.slub.slab[row]["objects"]) - 1)

    def _shadow(self, granule: int) -> int:
        """The shadow byte of 8 bytes: 0 accessible, 1 to 7 so many of them, else why not."""
        near = self._object_near(granule)
        if near is None:
            return 0
        cache, row, slot = near
        start = self._at(cache, row, slot)
        at = granule - start
        if not 0 <= at < cache.object_size:
            return 0xFC
        if not self._in_use(row, slot):
            owner = self.owners.get(start)
            return 0xFA if not at and owner is not None and owner.free is not None else 0xFB
        owner = self.owners.get(start)
        left = (cache.object_size if owner is None else owner.asked) - at
        return 0 if left >= 8 else left if left > 0 else 0xFC

    def _in_use(self, row: int, slot: int) -> bool:
        """Handed out; what waits on a CPU's list is not."""
        return self._next(row, slot) == ALLOCATED

    def check_access(self, physical: int, n: int, write: bool, cpu: int = 0) -> None:
        """``kasan_check_range``. :raises KasanError: some of the bytes must not be accessed."""
        if n < 1:
            return
        end, first = physical + n, physical & ~7
        bad = -1
        start_object = self._object_near(physical)
        for granule in range(first, end, 8):
            shadow = self._shadow(granule)
            if shadow and (shadow > 7 or min(end - granule, 8) > shadow):
                bad = max(granule, physical)
                break
        if bad < 0 and start_object is not None:  # without red zones an overrun ends in the next object
            cache, row, slot = start_object
            stop = self._at(cache, row, slot) + cache.size - cache.pad
            if end > stop and self._row_of(stop) != END:
                bad = stop
        if bad < 0:
            return
        shadow = self._shadow(bad & ~7)
        inside = start_object is not None and self._in_use(start_object[1], start_object[2])
        stale = shadow in (0xFA, 0xFB) and not inside
        kind, name = (errors.UseAfterFree, "use-after-free") if stale else (errors.SlabOutOfBounds, "slab-out-of-bounds")
        self._kasan(kind, name, physical, n, "Write" if write else "Read", bad, cpu)

    def check_free(self, physical: int, cpu: int) -> None:
        """``__kasan_slab_free``. :raises KasanError: a double or an invalid free."""
        near = self._object_near(physical)
        if near is None:
            return
        if self._at(*near) != physical:
            self._kasan(errors.KasanInvalidFree, "invalid-free", physical, 0, "Free", physical, cpu)
        if not self._in_use(near[1], near[2]):
            self._kasan(errors.KasanDoubleFree, "double-free", physical, 0, "Free", physical, cpu)

    def _kasan(self, kind: type[KasanError], name: str, physical: int, n: int, verb: str, bad: int, cpu: int) -> None:
        address, who, line = self._virtual(physical), self.track(cpu), "=" * 66
        access = f"{verb} of addr {address:016x} by task python/0" if verb == "Free" else f"{verb} of size {n} at addr {address:016x} by task python/0"
        title = f"BUG: KASAN: {name} in {who.site}"
        lines = [line, title, access, "", *self._dump_stack(cpu), ""]
        near = self._object_near(physical)
        if near is not None:
            cache, row, slot = near
            start = self._at(cache, row, slot)
            owner = self.owners.get(start)
            if owner is not None and owner.alloc is not None:
                lines += [f"Allocated by task {owner.alloc.pid}:", *owner.alloc.stack, ""]
            if owner is not None and owner.free is not None and not self._in_use(row, slot):
                lines += [f"Freed by task {owner.free.pid}:", *owner.free.stack, ""]
            size, begin = cache.object_size, self._virtual(start)
            lines += [f"The buggy address belongs to the object at {begin:016x}", f" which belongs to the cache {cache.name} of size {size}"]
            by, where = (
                (begin - address, "to the left") if address < begin else (address - begin - size, "to the right") if address >= begin + size else (address - begin, "inside")
            )  # fmt: skip
            lines += [f"The buggy address is located {by} bytes {where} of", f" {size}-byte region [{begin:016x}, {begin + size:016x})", ""]
            pfn = self._base(row) >> PAGE_SHIFT
            flags = self._slab_line(row, self._info(row)).partition("flags=")[2]
            order = int(self.machine.slub.slab[row]["order"])
            lines += ["The buggy address belongs to the physical page:"]
            lines += [f"page:{VMEMMAP + pfn * STRUCT_PAGE:016x} refcount:1 mapcount:0 mapping:0000000000000000 index:0x0 pfn:0x{pfn:x}"]
            lines += [f"head:{VMEMMAP + pfn * STRUCT_PAGE:016x} order:{order} compound_mapcount:0 compound_pincount:0"] if order else []
            lines += [f"flags: {flags}", "page dumped because: kasan: bad access detected", ""]
        lines.append("Memory state around the buggy address:")
        middle = self._virtual(bad) & ~127
        for i in range(-2, 3):
            row_at = middle + 128 * i
            at = row_at - self.machine.PAGE_OFFSET
            shadow = bytes(self._shadow(at + 8 * k) if 0 <= at + 8 * k < self.memory.nr_frames << PAGE_SHIFT else 0xFF for k in range(16))
            lines.append(f"{'>' if not i else ' '}{row_at:016x}: {shadow.hex(' ')}")
            if not i:
                lines.append("^".rjust(3 + 16 + (self._virtual(bad) - row_at) // 8 * 3 + 1))
        lines.append(line)
        self.tainted = True
        said = "" if near is None else f", {lines_of(lines, 'The buggy address is located')}"
        raise kind(f"{title}: {access}{said}", "\n".join(lines) + "\n")

    # What the machine's methods become

    def install(self) -> None:
        """From now on the machine's requests come here first."""
        names = ("kmalloc", "kfree", "kmem_cache_alloc", "kmem_cache_free", "kmem_cache_alloc_bulk", "_free_bulk", "kmem_cache_shrink", "kmem_cache_destroy")
        for name in (*names, "krealloc", "alloc_pages", "_copy"):
            self.machine.__dict__[name] = getattr(self, name)

    def _plain(self, name: str) -> Callable[..., Any]:
        """The machine's own method."""
        method: Callable[..., Any] = getattr(type(self.machine), name).__get__(self.machine)
        return method

    def _allocate(self, number: int, asked: int, gfp: int, cpu: int, call: Callable[[], int]) -> int:
        self.clock += 1
        if number < 0:
            address = call()
            if gfp & GFP_ZERO and address > PAGE_SIZE:
                self.memory.fill(address - self.machine.PAGE_OFFSET, asked)
            return address
        cache, found = self._layout(number), _Findings()
        if cache.debug:
            self._before_alloc(found, cache, cpu)
        address = call()
        self._after_alloc(cache, address - self.machine.PAGE_OFFSET, asked, gfp, cpu)
        found.throw(address)
        return address

    def kmalloc(self, size: int, gfp: int = 0xCC0, cpu: int = 0) -> int:
        """`Machine.kmalloc`. :raises SlubError: the object that would have been handed out was written, and so on."""
        good = isinstance(size, int) and isinstance(gfp, int) and size > 0
        number = self.machine._kmalloc_cache(size, gfp) if good else -1
        return self._allocate(number, size, gfp, cpu, lambda: int(self._plain("kmalloc")(size, gfp, cpu)))

    def krealloc(self, address: int, size: int, gfp: int = 0xCC0, cpu: int = 0) -> int:
        """`Machine.krealloc`: an object that stays where it is now has the new size."""
        new = int(self._plain("krealloc")(address, size, gfp, cpu))
        owner = self.owners.get(new - self.machine.PAGE_OFFSET)
        if owner is not None and size:
            owner.asked = size
        return new

    def kmem_cache_alloc(self, cache: KmemCache, gfp: int = 0xCC0, cpu: int = 0) -> int:
        """`Machine.kmem_cache_alloc`."""
        number = self.machine._cache(cache)
        return self._allocate(number, cache.object_size, gfp, cpu, lambda: int(self._plain("kmem_cache_alloc")(cache, gfp, cpu)))

    def kmem_cache_alloc_bulk(self, cache: KmemCache, n: int, gfp: int = 0xCC0, cpu: int = 0) -> list[int]:
        """`Machine.kmem_cache_alloc_bulk`."""
        number = self.machine._cache(cache)
        if self._layout(number).debug:
            return [self.kmem_cache_alloc(cache, gfp, cpu) for _ in range(n)]
        self.clock += 1
        addresses: list[int] = self._plain("kmem_cache_alloc_bulk")(cache, n, gfp, cpu)
        for address in addresses:
            self._after_alloc(self._layout(number), address - self.machine.PAGE_OFFSET, cache.object_size, gfp, cpu)
        return addresses

    def _free(self, address: int, cpu: int, call: Callable[[], None]) -> None:
        self.clock += 1
        physical = self.machine._physical(address)
        row = self._row_of(physical)
        if row == END:
            call()
            return
        cache, found = self._cache_of(row), _Findings()
        if self.kasan:
            self.check_free(physical, cpu)
        if not cache.debug or self._before_free(found, cache, row, physical, cpu):
            call()
            self.live.discard(physical)
            owner = self.owners.get(physical)
            if owner is not None and self.kasan:
                owner.free = self.track(cpu)
            self._forget(row)
        found.throw()

    def kfree(self, address: int, cpu: int = 0) -> None:
        """`Machine.kfree`. :raises SlubError: the object or its surroundings were written, it is free already, no object begins there."""
        if address not in (0, 16):
            self._free(address, cpu, lambda: self._plain("kfree")(address, cpu))

    def kmem_cache_free(self, cache: KmemCache, address: int, cpu: int = 0) -> None:
        """`Machine.kmem_cache_free`. :raises WrongCacheReported: the object is of another cache, to which it was freed."""
        number, physical = self.machine._cache(cache), self.machine._physical(address)
        row = self._row_of(physical)
        if row == END or int(self.machine.slub.slab[row]["cache"]) == number or not (self._cache_of(row).debug or self._layout(number).debug):
            self._free(address, cpu, lambda: self._plain("kmem_cache_free")(cache, address, cpu))
            return
        own, found = self._cache_of(row), _Findings()
        what = f"cache_from_obj: Wrong slab cache. {self._layout(number).name} but object is from {own.name}"
        warning = ["------------[ cut here ]------------", what, f"WARNING: CPU: {cpu} PID: 0 at mm/slab.h cache_from_obj", *self._dump_stack(cpu)]
        lines = [*warning, "---[ end trace 0000000000000000 ]---", *self._tracking(own, physical)]
        found.add(errors.WrongCacheReported, f"{what}: 0x{self._virtual(physical):016x}", lines)
        try:
            self.kfree(address, cpu)
        except SlubError as error:
            found.lines += error.report.splitlines()
        found.throw()

    def _free_bulk(self, number: int, addresses: Iterable[int], cpu: int) -> None:
        listed = list(addresses)
        rows = [self._row_of(self.machine._physical(address)) for address in listed]
        if any(row != END and self._cache_of(row).debug for row in rows) or len(set(listed)) < len(listed):
            caches = self.machine.kmem_caches() if number >= 0 else {}
            own = next((cache for cache in caches.values() if cache.id == number), None)
            first: SlubError | None = None
            for address in listed:
                try:
                    self.kfree(address, cpu) if own is None else self.kmem_cache_free(own, address, cpu)
                except SlubError as error:
                    if first is None:
                        first = error
                    else:
                        first.report += error.report
            if first is not None:
                raise first
            return
        self.clock += 1
        if self.kasan:
            for address in listed:
                self.check_free(self.machine._physical(address), cpu)
        self._plain("_free_bulk")(number, listed, cpu)
        for address, row in zip(listed, rows, strict=True):
            at = self.machine._physical(address)
            self.live.discard(at)
            if self.kasan and at in self.owners:
                self.owners[at].free = self.track(cpu)
            if row != END:
                self._forget(row)

    def kmem_cache_shrink(self, cache: KmemCache, cpu: int = 0) -> int:
        """`Machine.kmem_cache_shrink`: slabs that go are looked at once more."""
        self.clock += 1
        number, found = self.machine._cache(cache), _Findings()
        rows = self._partial(number)
        if self._layout(number).debug:
            for row in reversed(rows):
                if not int(self.machine.slub.slab[row]["inuse"]):
                    self._discard_checks(found, self._layout(number), row, self._info(row), cpu)
        left = int(self._plain("kmem_cache_shrink")(cache, cpu))
        for row in rows:
            self._forget(row)
        found.throw(left)
        return left

    def kmem_cache_destroy(self, cache: KmemCache, cpu: int = 0) -> None:
        """`Machine.kmem_cache_destroy`. :raises ObjectsRemaining: with the objects and their owners."""
        self.clock += 1
        number, found = self.machine._cache(cache), _Findings()
        layout, rows, slab = self._layout(number), self._partial(number), self.machine.slub.slab
        last = int(self.machine.slub.cache[number]["refcount"]) <= 1
        if layout.debug and last:
            for row in rows:
                if int(slab[row]["inuse"]):
                    self.ensure(row)
                    what = f"Objects remaining in {layout.name} on __kmem_cache_shutdown()"
                    self._slab_err(found, errors.ObjectsRemaining, layout, row, what, self._info(row), cpu)
                    for slot in range(int(slab[row]["objects"])):
                        if self._next(row, slot) == ALLOCATED:
                            at = self._at(layout, row, slot)
                            found.lines.append(f"Object 0x{self._virtual(at):016x} @offset={at - self._base(row)}")
                            found.lines += self._tracking(layout, at)
            for row in reversed(rows):
                if not int(slab[row]["inuse"]):
                    self._discard_checks(found, layout, row, self._info(row), cpu)
        try:
            self._plain("kmem_cache_destroy")(cache, cpu)
        except errors.CacheBusy as error:
            if not layout.debug:
                raise
            text = f"kmem_cache_destroy {layout.name}: Slab cache still has objects when called from {self.track(cpu).site}"
            warning = [
                "------------[ cut here ]------------",
                text,
                f"WARNING: CPU: {cpu} PID: 0 at mm/slab_common.c kmem_cache_destroy",
                *self._dump_stack(cpu),
            ]
            found.add(errors.ObjectsRemaining, str(error), [*warning, "---[ end trace 0000000000000000 ]---"])
            found.first = (errors.ObjectsRemaining, str(error))
        for row in rows:
            self._forget(row)
        if not int(self.machine.slub.cache[number]["live"]):
            self._layouts.pop(number, None)
        found.throw()

    def alloc_pages(self, order: int, gfp: int, cpu: int = 0) -> int:
        """`Machine.alloc_pages`: __GFP_ZERO clears the pages."""
        pfn = int(self._plain("alloc_pages")(order, gfp, cpu))
        if gfp & GFP_ZERO:
            self.memory.fill(pfn << PAGE_SHIFT, PAGE_SIZE << order)
        return pfn

    def _copy(self, source: int, target: int, size: int) -> None:
        self.memory.write(target - self.machine.PAGE_OFFSET, self.memory.read(source - self.machine.PAGE_OFFSET, size))

    # Contents

    def _lay_out(self, physical: int, n: int) -> None:
        for at in range(physical & -PAGE_SIZE, physical + max(n, 1), PAGE_SIZE):
            row = self._row_of(at)
            if row != END:
                self.ensure(row)

    def read(self, physical: int, n: int) -> bytes:
        """Bytes at a physical address. :raises KasanError: with KASAN, some must not be read."""
        self.memory._check(physical, n)
        self._lay_out(physical, n)
        if self.kasan:
            self.check_access(physical, n, False)
        return self.memory.read(physical, n)

    def write(self, physical: int, data: bytes) -> None:
        """Writes, as the kernel does, also where KASAN then reports it. :raises KasanError: with KASAN, some must not be written."""
        self.memory._check(physical, len(data))
        self._lay_out(physical, len(data))
        try:
            if self.kasan:
                self.check_access(physical, len(data), True)
        finally:
            self.memory.write(physical, data)

    def stores_users(self) -> bool:
        """Whether any cache records owners."""
        cache = self.machine.slub.cache
        return bool((cache["flags"][: int(self.machine.slub.config[0]["caches"])] & SLAB_STORE_USER).any())

    def leaks(self, by: str = "callsite") -> pl.DataFrame:
        """What is live, by who allocated it: as ``alloc_traces`` in /sys/kernel/debug/slab, the most objects first."""
        import polars as pl

        rows = []
        for at in sorted(self.live):
            owner, row = self.owners[at], self._row_of(at)
            if row != END and owner.alloc is not None:
                cache = self._cache_of(row)
                rows.append((owner.alloc.site, cache.name, cache.object_size, owner.asked, self.clock - owner.alloc.when, self._virtual(at)))
        schema = {"callsite": pl.String, "cache": pl.String, "bytes": pl.Int64, "requested": pl.Int64, "age": pl.Int64, "address": pl.UInt64}
        frame = pl.DataFrame(rows, schema=schema, orient="row")
        if by == "object":
            return frame
        keys = ["callsite", "cache"] if by == "callsite" else ["cache"]
        table = frame.group_by(keys, maintain_order=True).agg(
            pl.len().cast(pl.Int64).alias("objects"), pl.col("bytes").sum(), (pl.col("bytes") - pl.col("requested")).sum().alias("waste"),
            pl.col("age").min().alias("age_min"), pl.col("age").mean().alias("age_mean"), pl.col("age").max().alias("age_max"),
        )  # fmt: skip
        return table.sort(["objects", *keys], descending=[True] + [False] * len(keys))


def lines_of(lines: list[str], start: str) -> str:
    """The sentence of a report that begins with `start`, with the line it goes on in."""
    at = next((i for i, line in enumerate(lines) if line.startswith(start)), -1)
    return "" if at < 0 else f"{lines[at].replace('The buggy address is located ', '')}{lines[at + 1]}"
