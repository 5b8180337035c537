"""The checks of debugged caches, where the kernel makes them: before an object is handed out, when it comes back, when its slab goes (mm/slub.c)."""

from __future__ import annotations

from mmtwin import errors
from mmtwin.errors import SlubError
from mmtwin.mm.list import list_del
from mmtwin.mm.slab_common import OBJECT_POISON, SLAB_POISON, SLAB_RED_ZONE, SLAB_STORE_USER
from mmtwin.mm.slab_tables import ALLOCATED, END
from mmtwin.slub_debug.objects import GFP_ZERO, POISON_END, POISON_FREE, POISON_INUSE, RED_ACTIVE, RED_INACTIVE, Findings, Layout, Owner, SlabInfo
from mmtwin.slub_debug.report import Reports, hex_dump
from mmtwin.units import PAGE_SIZE

_WHAT: dict[str, type[SlubError]] = {
    "Left Redzone": errors.RedZoneOverwritten, "Right Redzone": errors.RedZoneOverwritten, "Poison": errors.PoisonOverwritten,
    "End Poison": errors.PoisonOverwritten, "Object padding": errors.PaddingOverwritten, "Alignment padding": errors.PaddingOverwritten,
}  # fmt: skip


class Checks(Reports):
    """Red zones, poison, padding, free lists and counters."""

    def _check_bytes(
        self, found: Findings, cache: Layout, row: int, physical: int, what: str, start: int, value: int, n: int, info: SlabInfo, cpu: int
    ) -> bool:
        """``check_bytes_and_report``: whether the `n` bytes from `start` (counted from the object) all have that value; they do afterwards."""
        data = self.memory.read(physical + start, n)
        left = data.lstrip(bytes((value,)))
        if not left:
            return True
        first = start + n - len(left)
        end = first + len(left.rstrip(bytes((value,))))
        at, last = self._virtual(physical + first), self._virtual(physical + end - 1)
        place = f"0x{self._hex(at)}-0x{self._hex(last)} @offset={physical + first - self._base(row)}. First byte 0x{left[0]:x} instead of 0x{value:x}"
        essence = self._essence(cache, f"{what} overwritten", physical)
        essence += f", {end - first} byte{'s' if end - first > 1 else ''} at offset {first} of it, the first 0x{left[0]:x} instead of 0x{value:x}"
        found.add(_WHAT[what], essence, [*self._bug(cache, f"{what} overwritten"), place, *self._trailer(cache, row, physical, info, cpu)])
        self.tainted = True
        found.fix(cache, f"Restoring {what} 0x{self._hex(at)}-0x{self._hex(last)}=0x{value:x}")
        self.memory.write(physical + first, bytes((value,)) * (end - first))
        return False

    def _check_object(self, found: Findings, cache: Layout, row: int, physical: int, value: int, info: SlabInfo, cpu: int) -> bool:
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

    def _check_slab(self, found: Findings, cache: Layout, row: int, info: SlabInfo, cpu: int) -> bool:
        """``check_slab``."""
        if int(self.machine.slub.slab[row]["frozen"]):
            self._slab_err(found, errors.SlabDisabled, cache, row, "Slab disabled since SLUB metadata consistency check failed", info, cpu)
            return False
        self._pad_check(found, cache, row, info, cpu)
        return True

    def _pad_check(self, found: Findings, cache: Layout, row: int, info: SlabInfo, cpu: int) -> None:
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
        what = f"Padding overwritten. 0x{self._hex(at)}-0x{self._hex(last)} @offset={first}"
        self._slab_err(found, errors.PaddingOverwritten, cache, row, what, info, cpu)
        found.lines += hex_dump("Padding ", self._virtual(base + length - rest), data, self._word)
        found.fix(cache, f"Restoring slab padding 0x{self._hex(at)}-0x{self._hex(last)}=0x{POISON_INUSE:x}")
        self.memory.write(base + first, bytes((POISON_INUSE,)) * (end - first))

    def _on_freelist(self, found: Findings, cache: Layout, row: int, slot: int, cpu: int) -> bool:
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

    def _disable(self, found: Findings, cache: Layout, row: int) -> None:
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

    def _before_alloc(self, found: Findings, cache: Layout, cpu: int) -> None:
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

    def _before_free(self, found: Findings, cache: Layout, row: int, physical: int, cpu: int) -> bool:
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
                found.fix(cache, f"Object at 0x{self._hex(self._virtual(physical))} not freed")
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

    def _free_checks(self, found: Findings, cache: Layout, row: int, slot: int, physical: int, cpu: int) -> bool:
        """``free_consistency_checks``."""
        if slot < 0:
            what = f"Invalid object pointer 0x{self._hex(self._virtual(physical))}"
            self._slab_err(found, errors.InvalidObjectPointer, cache, row, what, self._info(row), cpu)
            return False
        if self._on_freelist(found, cache, row, slot, cpu):
            self._object_err(found, errors.ObjectAlreadyFree, cache, row, physical, "Object already free", self._info(row), cpu)
            return False
        return self._check_object(found, cache, row, physical, RED_ACTIVE, self._info(row), cpu)

    def _discard_checks(self, found: Findings, cache: Layout, row: int, info: SlabInfo, cpu: int) -> None:
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
