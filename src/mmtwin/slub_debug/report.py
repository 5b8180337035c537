"""The reports of slub_debug in the kernel's words (mm/slub.c: slab_bug, print_trailer, print_track)."""

from __future__ import annotations

import re
import sys

from mmtwin.errors import SlubError
from mmtwin.mm.slab_common import SLAB_RED_ZONE, SLAB_STORE_USER
from mmtwin.slub_debug.objects import MASK, Findings, Layout, SlabBytes, SlabInfo, Track
from mmtwin.units import PAGE_SIZE

VMEMMAP, STRUCT_PAGE = 0xFFFF_EA00_0000_0000, 64
STACK_DEPTH = 16
DOUBLE_LINE, LINE = "=" * 77, "-" * 77


def normalise_report(text: str) -> list[str]:
    """The lines of a report that two machines must have in common.

    - addresses become ``ADDR``: numbers with 16 or 8 hex digits, with or without ``0x``;
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
        line = re.sub(r"\b(0x)?(?:[0-9a-f]{16}|[0-9a-f]{8})\b", "ADDR", line)
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


def hex_dump(label: str, address: int, data: bytes, word: int = 8) -> list[str]:
    """``print_section``: 16 bytes a line with their address (of `word` bytes) and characters."""
    lines = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in row)
        lines.append(f"{label}{address + at:0{2 * word}x}: {row.hex(' '):<47}  {text}")
    return lines


class Reports(SlabBytes):
    """What the kernel prints when a check fails."""

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
        if self._word == 4:  # no node, no last CPU in the flags; the memory map's place is a boot's own
            flags = f"0x{zone << 30 | (0x10000 if head else 0) | 0x200:x}(slab|{'head|' if head else ''}zone={zone})"
            return f"Slab 0x{self._hex(self.machine.profile.struct_page_size * pfn)} objects={info.objects} used={info.used} fp=0x{self._hex(info.freelist)} flags={flags}"
        flags = f"0x{zone << 51 | 0x1FFFFF << 30 | (0x10000 if head else 0) | 0x200:x}(slab|{'head|' if head else ''}node=0|zone={zone}|lastcpupid=0x1fffff)"
        return f"Slab 0x{self._hex(VMEMMAP + pfn * STRUCT_PAGE)} objects={info.objects} used={info.used} fp=0x{self._hex(info.freelist)} flags={flags}"

    def _bug(self, cache: Layout, what: str) -> list[str]:
        return [DOUBLE_LINE, f"BUG {cache.name} ({self._taint()}): {what}", LINE, ""]

    def _trailer(self, cache: Layout, row: int, physical: int, info: SlabInfo, cpu: int) -> list[str]:
        """``print_trailer``."""
        address, offset = self._virtual(physical), physical - self._base(row)
        lines = [*self._tracking(cache, physical), self._slab_line(row, info)]
        lines += [f"Object 0x{self._hex(address)} @offset={offset} fp=0x{self._hex(self._get_pointer(cache, physical))}", ""]

        def section(label: str, at: int, n: int) -> None:
            lines.extend(hex_dump(label, address + at & MASK, self.memory.read(physical + at, n), self._word))

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

    def _object_err(self, found: Findings, kind: type[SlubError], cache: Layout, row: int, physical: int, what: str, info: SlabInfo, cpu: int) -> None:
        found.add(kind, self._essence(cache, what, physical), [*self._bug(cache, what), *self._trailer(cache, row, physical, info, cpu)])
        self.tainted = True

    def _slab_err(self, found: Findings, kind: type[SlubError], cache: Layout, row: int, what: str, info: SlabInfo, cpu: int) -> None:
        found.add(kind, f"BUG {cache.name} ({self._taint()}): {what}", [*self._bug(cache, what), self._slab_line(row, info), *self._dump_stack(cpu)])
        self.tainted = True

    def _essence(self, cache: Layout, what: str, physical: int) -> str:
        owner, said = self.owners.get(physical), ""
        if owner is not None and cache.flags & SLAB_STORE_USER:
            parts = [f"{word} in {t.site}" for word, t in (("allocated", owner.alloc), ("freed", owner.free)) if t is not None]
            said = f", {', '.join(parts)}"
        return f"BUG {cache.name} ({self._taint()}): {what}: object 0x{self._hex(self._virtual(physical))}{said}"
