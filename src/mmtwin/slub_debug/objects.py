"""The bytes of slabs with debug data in them: red zones, poison, the scrambled free pointer, and who owns an object (mm/slub.c)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from mmtwin.errors import ReportedError
from mmtwin.memory import Memory
from mmtwin.mm.slab_common import (
    OBJECT_POISON,
    SLAB_CONSISTENCY_CHECKS,
    SLAB_DEBUG_FLAGS,
    SLAB_KMALLOC,
    SLAB_POISON,
    SLAB_RED_ZONE,
    SLAB_STORE_USER,
)
from mmtwin.mm.slab_tables import ALLOCATED, END, SLAB_LIVE
from mmtwin.mm.tables import PG_SLAB
from mmtwin.profiles import SLAB_64_BIT, SlabArch
from mmtwin.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from mmtwin.machine import Machine

RED_INACTIVE, RED_ACTIVE = 0xBB, 0xCC
POISON_FREE, POISON_END, POISON_INUSE = 0x6B, 0xA5, 0x5A
GFP_ZERO = 0x100
MASK = (1 << 64) - 1


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
    arch: SlabArch = SLAB_64_BIT
    info_end: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "info_end", self.inuse + self.arch.word if self.offset >= self.inuse else self.inuse)

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
            at += 2 * self.arch.track_size + (4 if self.flags & SLAB_KMALLOC else 0)
        return at, self.size - self.pad


class SlabInfo(NamedTuple):
    """What ``print_slab_info`` prints, at that moment."""

    objects: int
    used: int
    freelist: int


class Findings:
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


class SlabBytes:
    """Where objects and their metadata are in a machine's memory, and what a slab holds when everybody behaves.

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

    # Where things are

    def _layout(self, number: int) -> Layout:
        found = self._layouts.get(number)
        if found is None:
            row = self.machine.slub.cache[number]
            flags = int(row["flags"])
            found = self._layouts[number] = Layout(
                number, self.machine._cache_names[number], flags, int(row["size"]), int(row["object_size"]), int(row["inuse"]), int(row["offset"]),
                int(row["red_left_pad"]) if flags & SLAB_RED_ZONE else 0, self.machine.slab_config.arch,
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

    @property
    def _word(self) -> int:
        """Bytes of a pointer."""
        return self.machine.slab_config.arch.word

    def _hex(self, address: int) -> str:
        """An address as ``%px`` prints it."""
        return f"{address:0{2 * self._word}x}"

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
        return value ^ int.from_bytes(self._virtual(where).to_bytes(self._word, "little"), "big")

    def _get_pointer(self, cache: Layout, physical: int) -> int:
        where = physical + cache.offset
        return self._scramble(int.from_bytes(self.memory.read(where, self._word), "little"), where)

    def _set_pointer(self, cache: Layout, physical: int, value: int) -> None:
        where = physical + cache.offset
        if where + self._word <= self.memory.nr_frames << PAGE_SHIFT:
            self.memory.write(where, self._scramble(value, where).to_bytes(self._word, "little"))

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
            tracks = 2 * cache.arch.track_size
            image[cache.pad + cache.info_end : cache.pad + cache.info_end + tracks] = bytes(tracks)
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
