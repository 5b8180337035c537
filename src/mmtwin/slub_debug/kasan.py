"""KASAN: every access of an object's bytes is checked (mm/kasan/report.c, generic mode)."""

from __future__ import annotations

from mmtwin import errors
from mmtwin.errors import KasanError
from mmtwin.mm.slab_tables import ALLOCATED, END
from mmtwin.slub_debug.checks import Checks
from mmtwin.slub_debug.objects import Layout
from mmtwin.slub_debug.report import STRUCT_PAGE, VMEMMAP
from mmtwin.units import PAGE_SHIFT


class Kasan(Checks):
    """Shadow bytes, computed from what is in use and the sizes that were asked for."""

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


def lines_of(lines: list[str], start: str) -> str:
    """The sentence of a report that begins with `start`, with the line it goes on in."""
    at = next((i for i, line in enumerate(lines) if line.startswith(start)), -1)
    return "" if at < 0 else f"{lines[at].replace('The buggy address is located ', '')}{lines[at + 1]}"
