"""GFP flags of every kernel from 2.6.24 to 6.x: the same number means other things in other versions (include/linux/gfp.h, gfp_types.h, trace/events/mmflags.h)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property

_FIRST = {"DMA": 0x1, "HIGHMEM": 0x2, "DMA32": 0x4, "MOVABLE": 0x8}
_OLD = _FIRST | {
    "WAIT": 0x10, "HIGH": 0x20, "IO": 0x40, "FS": 0x80, "COLD": 0x100, "NOWARN": 0x200, "REPEAT": 0x400, "NOFAIL": 0x800, "NORETRY": 0x1000, "MEMALLOC": 0x2000,
    "COMP": 0x4000, "ZERO": 0x8000, "NOMEMALLOC": 0x10000, "HARDWALL": 0x20000, "THISNODE": 0x40000, "RECLAIMABLE": 0x80000, "NOACCOUNT": 0x100000,
    "NOTRACK": 0x200000, "NO_KSWAPD": 0x400000, "OTHER_NODE": 0x800000, "WRITE": 0x1000000,
}  # fmt: skip
_OLDEST = {name: bit for name, bit in _OLD.items() if name not in ("MOVABLE", "MEMALLOC", "NOACCOUNT", "NO_KSWAPD", "OTHER_NODE", "WRITE")} | {
    "MOVABLE": 0x100000
}
_MIDDLE = _FIRST | {
    "RECLAIMABLE": 0x10, "HIGH": 0x20, "IO": 0x40, "FS": 0x80, "COLD": 0x100, "NOWARN": 0x200, "REPEAT": 0x400, "NOFAIL": 0x800, "NORETRY": 0x1000, "MEMALLOC": 0x2000,
    "COMP": 0x4000, "ZERO": 0x8000, "NOMEMALLOC": 0x10000, "HARDWALL": 0x20000, "THISNODE": 0x40000, "ATOMIC": 0x80000, "ACCOUNT": 0x100000, "NOTRACK": 0x200000,
    "DIRECT_RECLAIM": 0x400000, "OTHER_NODE": 0x800000, "WRITE": 0x1000000, "KSWAPD_RECLAIM": 0x2000000,
}  # fmt: skip
_LATER = {name: bit for name, bit in _MIDDLE.items() if name not in ("OTHER_NODE", "REPEAT")} | {
    "RETRY_MAYFAIL": 0x400, "WRITE": 0x800000, "KSWAPD_RECLAIM": 0x1000000, "NOLOCKDEP": 0x2000000,
}  # fmt: skip
_SHORT = {name: bit for name, bit in _LATER.items() if name not in ("COLD", "NOTRACK")} | {
    "DIRECT_RECLAIM": 0x200000, "KSWAPD_RECLAIM": 0x400000, "WRITE": 0x800000, "NOLOCKDEP": 0x1000000,
}  # fmt: skip
_NOW = _FIRST | {
    "RECLAIMABLE": 0x10, "HIGH": 0x20, "IO": 0x40, "FS": 0x80, "ZERO": 0x100, "ATOMIC": 0x200, "DIRECT_RECLAIM": 0x400, "KSWAPD_RECLAIM": 0x800, "WRITE": 0x1000,
    "NOWARN": 0x2000, "RETRY_MAYFAIL": 0x4000, "NOFAIL": 0x8000, "NORETRY": 0x10000, "MEMALLOC": 0x20000, "COMP": 0x40000, "NOMEMALLOC": 0x80000, "HARDWALL": 0x100000,
    "THISNODE": 0x200000, "ACCOUNT": 0x400000, "ZEROTAGS": 0x800000,
}  # fmt: skip
"""`mmtwin.gfp.GFP`, which is not imported because it brings a compiler along; a test compares them."""
_NEW = {name: bit for name, bit in _NOW.items() if name != "ATOMIC"}


@dataclass(frozen=True)
class Era:
    """Kernels whose flags have the same numbers.

    :ivar first: the first series, and `last` the last one.
    :ivar bits: name without ``__GFP_``, and bit.
    """

    name: str
    first: tuple[int, int, int]
    last: tuple[int, int, int]
    bits: dict[str, int]

    def value(self, *names: str) -> int:
        """The bits of these flags; those that the era does not know count as 0."""
        return sum(self.bits.get(name, 0) for name in names)

    @cached_property
    def composites(self) -> tuple[tuple[str, int], ...]:
        """``GFP_KERNEL`` and its like, in the order in which the kernel tries them when it prints names."""
        wait = self.value("WAIT", "DIRECT_RECLAIM", "KSWAPD_RECLAIM")
        kernel = wait | self.value("IO", "FS")
        user = kernel | self.value("HARDWALL")
        movable = user | self.value("HIGHMEM", "MOVABLE")
        huge = movable | self.value("COMP", "NOMEMALLOC", "NOWARN")
        atomic = self.value("HIGH", "ATOMIC", "KSWAPD_RECLAIM")
        light = huge & ~wait
        some: list[tuple[str, int]] = []
        if "DIRECT_RECLAIM" in self.bits:
            some += [("GFP_TRANSHUGE", light | self.value("DIRECT_RECLAIM")), ("GFP_TRANSHUGE_LIGHT", light)]
        some += [
            ("GFP_HIGHUSER_MOVABLE", movable), ("GFP_HIGHUSER", user | self.value("HIGHMEM")), ("GFP_USER", user), ("GFP_TEMPORARY", kernel | self.value("RECLAIMABLE")),
        ]  # fmt: skip
        if "ACCOUNT" in self.bits:
            some.append(("GFP_KERNEL_ACCOUNT", kernel | self.value("ACCOUNT")))
        some += [("GFP_KERNEL", kernel), ("GFP_NOFS", wait | self.value("IO")), ("GFP_ATOMIC", atomic), ("GFP_NOIO", wait)]
        if "KSWAPD_RECLAIM" in self.bits:
            some.append(("GFP_NOWAIT", self.value("KSWAPD_RECLAIM")))
        return (*some, ("GFP_DMA", self.bits["DMA"]), ("GFP_DMA32", self.bits["DMA32"]))


ERAS = (
    Era("2.6.23 to 2.6.30", (2, 4, 0), (2, 6, 30), _OLDEST),
    Era("2.6.31 to 4.3", (2, 6, 31), (4, 3, 9999), _OLD),
    Era("4.4 to 4.9", (4, 4, 0), (4, 9, 9999), _MIDDLE),
    Era("4.10 to 4.17", (4, 10, 0), (4, 17, 9999), _LATER),
    Era("4.18 to 5.0", (4, 18, 0), (5, 0, 9999), _SHORT),
    Era("5.1 to 6.2", (5, 1, 0), (6, 2, 9999), _NOW),
    Era("6.3 and newer", (6, 3, 0), (99, 0, 0), _NEW),
)
ALIASES = {
    "REPEAT": "RETRY_MAYFAIL",
    "RETRY_MAYFAIL": "RETRY_MAYFAIL",
    "NOTRACK_FALSE_POSITIVE": "NOTRACK",
    "KMEMCG": "NOACCOUNT",
    "SKIP_KASAN_POISON": "",
    "SKIP_KASAN_UNPOISON": "",
    "SKIP_KASAN": "",
    "SKIP_ZERO": "",
    "NO_OBJ_EXT": "",
}


@dataclass(frozen=True)
class Flags:
    """A request's flags, decoded.

    :ivar value: the number; -1 if only names are known.
    :ivar names: what it means in `era`, as the kernel would print it.
    :ivar printed: the names in the log; "" if none.
    :ivar flags: single flags without ``__GFP_``; WAIT of old kernels is DIRECT_RECLAIM and KSWAPD_RECLAIM.
    :ivar era: the kernels whose numbers these are.
    :ivar agree: whether number and printed names say the same; None if the log has only one of them.
    :ivar note: what does not fit; "".
    """

    value: int
    names: str
    printed: str
    flags: frozenset[str]
    era: str
    agree: bool | None
    note: str = ""

    def __contains__(self, flag: str) -> bool:
        return flag in self.flags


def era_of(version: tuple[int, int, int]) -> Era:
    """The flags of a kernel version."""
    era = next((era for era in ERAS if era.first <= version <= era.last), ERAS[-1])
    if (3, 8, 0) <= version < (4, 1, 0):  # the bit that later says the opposite
        return replace(era, bits={("KMEMCG" if name == "NOACCOUNT" else name): bit for name, bit in era.bits.items()})
    return era


def spell(value: int, era: Era) -> str:
    """Names of a number, as the kernel prints them: each that is wholly contained takes its bits."""
    if not value:
        return "none"
    found = []
    singles = [(f"__GFP_{name}", bit) for name, bit in sorted(era.bits.items(), key=lambda item: item[1])]
    if era.bits.get("DIRECT_RECLAIM"):
        singles.insert(0, ("__GFP_RECLAIM", era.value("DIRECT_RECLAIM", "KSWAPD_RECLAIM")))
    for name, mask in (*era.composites, *singles):
        if mask and value & mask == mask:
            found.append(name)
            value &= ~mask
    return "|".join(found + ([f"0x{value:x}"] if value else []))


def parse_names(text: str, era: Era) -> int | None:
    """The number that these names are; None if the era does not know one of them."""
    value = 0
    composites = dict(era.composites)
    for word in re.split(r"[|\s]+", text.strip()):
        bare = word.removeprefix("__GFP_").removeprefix("___GFP_")
        bare = ALIASES.get(bare, bare) if bare not in era.bits else bare
        if word in ("", "none") or bare == "":
            continue
        if re.fullmatch(r"(?:0x)?[0-9a-f]+", word):
            value |= int(word, 16)
        elif word in composites:
            value |= composites[word]
        elif bare == "RECLAIM" and "DIRECT_RECLAIM" in era.bits:
            value |= era.value("DIRECT_RECLAIM", "KSWAPD_RECLAIM")
        elif bare in era.bits:
            value |= era.bits[bare]
        elif word.startswith("GFP_") and word[4:] in era.bits:  # 4.4-next printed GFP_ZERO and the like
            value |= era.bits[word[4:]]
        else:
            return None
    return value


UNPRINTED = 0xFF << 24
"""Bits that depend on the configuration (KASAN, lockdep, object extensions): they tell nothing about the request and are not held against the names."""


def decode(value: int, printed: str, version: tuple[int, int, int], known: bool = True) -> Flags:
    """Flags of a request.

    :param value: the number in the log; -1 if there is none.
    :param printed: the names in the log; "" if there are none.
    :param version: of the kernel; `known` says whether the log names it.
    """
    era, note, agree = era_of(version), "", None
    if printed and value >= 0:
        fitting = [
            e
            for e in ERAS
            if (printed.startswith("GFP_NOWAIT") and e.first >= (6, 3, 0) and parse_names(printed, e) == value & ~e.value("NOWARN"))
            or ((read := parse_names(printed, e)) is not None and not (read ^ value) & ~(UNPRINTED if e.first >= (5, 1, 0) else 0))
        ]
        agree = bool(fitting)
        if era not in fitting and fitting:
            if known:
                note = f"number and names fit the flags of Linux {fitting[-1].name}, not those of {'.'.join(map(str, version[:2]))}: decoded as those"
            era = fitting[-1]
        elif not fitting:
            expected = parse_names(printed, era)
            spelled = f" ({expected:#x} would be {printed})" if expected is not None else ""
            note = f"the number {value:#x} is {spell(value, era)} in Linux {era.name}, but the log prints {printed}{spelled}: one of them is damaged; the number is used"
    elif value < 0:
        read = parse_names(printed, era) if printed else None
        value = read if read is not None else -1
    flags = {name for name, bit in era.bits.items() if value >= 0 and value & bit}
    if "WAIT" in flags:
        flags |= {"DIRECT_RECLAIM", "KSWAPD_RECLAIM"}
    elif "WAIT" in era.bits and value >= 0 and "NO_KSWAPD" not in flags:
        flags.add("KSWAPD_RECLAIM")  # old kernels wake kswapd for every request
    shown = value & ~UNPRINTED if agree and value & UNPRINTED & ~sum(era.bits.values()) else value
    return Flags(value, spell(shown, era) if value >= 0 else "unknown", printed, frozenset(flags), era.name, agree, note)
