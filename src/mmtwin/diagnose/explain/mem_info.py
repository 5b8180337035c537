"""``Mem-Info``: what show_mem printed of zones, free blocks, counters and swap (mm/page_alloc.c and mm/show_mem.c of 2.6 to 6.x)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import lru_cache

from mmtwin.diagnose.explain.anchored import Anchored, places

ZONE_ORDER = ("DMA", "DMA32", "Normal", "HighMem", "Movable", "Device")
ZONES = r"(?P<zone>DMA32|DMA|Normal|HighMem|Movable|Device)"
WORDS = ("Node", "DMA", "Normal", "HighMem", "Movable", "Device")
HEAD = Anchored(re.compile(rf"(?:Node\s+(?P<node>\d+)\s+)?\b{ZONES}\s+free:\s*(?P<free>\d+)\s*kB"), *WORDS)
FIELD = re.compile(r"\b([a-z_]+(?:\((?:anon|file)\))?):\s?(\d+)\s*[kK]B")
RESERVE = Anchored(re.compile(r"(?:lowmem_reserve|protections?)\[\]:((?:\s+\d+\b(?!\s*[*_:kK]))+)"), "lowmem_reserve", "protection")
BLOCK = r"\d+\s*[*_]\s*\d+\s*kB(?:\s*\([A-Z]+\))?"
LIST = Anchored(re.compile(rf"(?:Node\s+(?P<node>\d+)\s+)?\b{ZONES}:\s*(?P<blocks>{BLOCK}(?:\s+{BLOCK})*)(?:\s*=\s*(?P<total>\d+)\s*kB)?"), *WORDS)
ONE_BLOCK = re.compile(r"(\d+)\s*[*_]\s*(\d+)\s*kB(?:\s*\(([A-Z]+)\))?")
EMPTY = Anchored(re.compile(rf"(?:Node\s+(?P<node>\d+)\s+)?\b{ZONES}:\s*empty\b"), *WORDS)
COUNTER = Anchored(re.compile(
    r"\b([Aa]ctive_anon|inactive_anon|isolated_anon|active_file|inactive_file|isolated_file|[Aa]ctive|inactive|unevictable|dirty|writeback|unstable|slab_reclaimable"
    r"|slab_unreclaimable|slab|mapped|shmem|pagetables|sec_pagetables|bounce|kernel_misc_reclaimable|free|free_pcp|free_cma):(\d+)(?![\dkK])"
), "active", "Active", "inactive", "isolated_", "unevictable", "dirty", "writeback", "unstable", "slab", "mapped", "shmem", "pagetables", "sec_pagetables", "bounce", "kernel_misc", "free")  # fmt: skip
TRAILER = {name: re.compile(pattern) for name, pattern in {
    "pagecache": r"\b(\d{1,20})\s+total\s+pagecache\s+pages", "swapcache": r"\b(\d{1,20})\s+pages\s+in\s+swap\s+cache", "swap_free_kb": r"Free\s+swap\s*[=:]\s*(\d+)\s*kB",
    "swap_total_kb": r"Total\s+swap\s*=\s*(\d+)\s*kB", "ram": r"\b(\d{1,20})\s+pages\s+(?:of\s+)?RAM", "highmem": r"\b(\d{1,20})\s+pages\s+(?:of\s+)?(?:HighMem|HIGHMEM)",
    "reserved": r"\b(\d{1,20})\s+(?:pages\s+reserved|reserved\s+pages)", "cma_reserved": r"\b(\d{1,20})\s+pages\s+cma\s+reserved",
}.items()}  # fmt: skip
TRAILER_NEAR = 80
"""Characters: a line of the trailer lies so close around its word "pages" or "swap"."""
NUMBERED = re.compile(r"\d\s+(?:total\s+pagecache\s+|reserved\s+)?\Z")
HUGE = re.compile(r"Node\s+\d+\s+hugepages_total=\d+\s+hugepages_free=(\d{1,9})\s+hugepages_surp=\d+\s+hugepages_size=(\d{1,9})kB")
NODE_LINE = Anchored(re.compile(r"Node\s+(\d+)\s+active_anon:"), "Node")
NO_ZONE = re.compile(r"\bfree:\d+ free_pcp:\d+ free_cma:\d+[^\n]*\n[^\n]{0,80}?(?:Node \d+ hugepages_total=|\d+ total pagecache pages)")
"""The counters' last line, and at once what stands behind all zones."""
TESTED = ("free", "min", "low", "high", "boost", "reserved_highatomic", "free_highatomic", "free_cma")
"""Fields of a zone's line that decide about requests."""
LARGEST = 1 << 62
"""kB; a larger number is damage."""


@dataclass(frozen=True)
class Block:
    """Free blocks of one size.

    :ivar kb: size of one.
    :ivar types: letters of the migrate types that have some ("UME"); "" if none or not printed.
    """

    kb: int
    count: int
    types: str


@dataclass(frozen=True)
class Zone:
    """One zone of one node; kB as printed.

    :ivar node: None where the log does not say (machines without NUMA).
    :ivar fields: every ``name:N kB`` of the zone's line, free included.
    :ivar reserve: ``lowmem_reserve[]``, in pages; None if not in the log.
    :ivar blocks: the free list, smallest first; None if not in the log.
    :ivar total_kb: the sum that the log prints behind the free list.
    :ivar low_counts: an old kernel that tests the low watermark; "min" has it, too.
    """

    node: int | None
    name: str
    fields: dict[str, int]
    reserve: tuple[int, ...] | None = None
    blocks: tuple[Block, ...] | None = None
    total_kb: int | None = None
    low_counts: bool = False

    @property
    def free_kb(self) -> int:
        return self.fields["free"]

    @property
    def label(self) -> str:
        """ "Node 0 Normal", or "Normal"."""
        return self.name if self.node is None else f"Node {self.node} {self.name}"

    @property
    def listed_kb(self) -> int:
        """What the blocks of the free list add up to."""
        return sum(block.kb * block.count for block in self.blocks or ())


@dataclass(frozen=True)
class MemInfo:
    """A whole dump.

    :ivar zones: in the log's order.
    :ivar compiled: names of zones that the kernel has, populated or not.
    :ivar counters: machine-wide, in pages.
    :ivar trailer: pages of RAM and the like, kB of swap.
    :ivar page_kb: size of a page; `page_known` says whether the log shows it.
    :ivar lost: zones of which only the free list is in the log; the line with their watermarks is not.
    :ivar lists_only: no zone's line is in the log, only free lists: each zone's `free` is what its list adds up to.
    :ivar doubled: zones that are there more than once, with different numbers: two dumps in one another.
    :ivar unused_huge_kb: huge pages of the pools that nobody uses.
    :ivar complete: it is whole though it has no zone: what follows the zones stands right behind the counters.
    """

    zones: tuple[Zone, ...]
    compiled: frozenset[str]
    counters: dict[str, int]
    trailer: dict[str, int]
    page_kb: int
    page_known: bool
    doubled: tuple[str, ...] = ()
    lists_only: bool = False
    lost: tuple[str, ...] = ()
    complete: bool = False
    unused_huge_kb: int = 0
    starts: tuple[int, ...] = field(default=(), compare=False)


def _key(match: re.Match[str]) -> tuple[int | None, str]:
    return (int(match["node"]) if match["node"] is not None else None, match["zone"])


@lru_cache(maxsize=8)
def zone_heads(text: str) -> tuple[re.Match[str], ...]:
    """Where the lines of zones begin; asked for several times of the same text."""
    return tuple(HEAD.finditer(text))


def _tested(zone: Zone) -> tuple[object, ...]:
    return (*(zone.fields.get(name) for name in TESTED), zone.reserve)


def parse_zones(text: str) -> list[Zone]:
    """Every zone's line in the order of the log."""
    heads = zone_heads(text)
    zones = []
    for n, head in enumerate(heads):
        end = heads[n + 1].start() if n + 1 < len(heads) else len(text)
        body = text[head.start() : min(end, head.start() + 6000)]
        reserve = RESERVE.search(body)
        listed = LIST.search(body)
        fields_end = min(m.start() for m in (reserve, listed) if m) if reserve or listed else min(len(body), 3000)
        fields = {name: int(number) for name, number in FIELD.findall(body[:fields_end]) if int(number) < LARGEST}
        fields["free"] = min(int(head["free"]), LARGEST)
        node, name = _key(head)
        columns = tuple(min(int(x), LARGEST) for x in reserve[1].split()) if reserve else None
        zones.append(_with_own_low(Zone(node, name, fields, columns)))
    return zones


def _with_own_low(zone: Zone) -> Zone:
    """A zone of 2.6.8 and older: ``protections[]`` there counts the zone's own low watermark, which the request has to leave in place of the min one."""
    own, low = next((column for column in zone.reserve or () if column), 0), zone.fields.get("low", 0)
    if not own or low // own not in (4, 8, 16, 64) or low % own:
        return zone
    return replace(zone, reserve=tuple(column and column - own for column in zone.reserve or ()), fields=zone.fields | {"min": low}, low_counts=True)


def parse_blocks(text: str) -> tuple[Block, ...]:
    """The blocks of one free list."""
    return tuple(Block(min(int(kb), LARGEST), min(int(count), LARGEST), types) for count, kb, types in ONE_BLOCK.findall(text))


def parse(text: str, turn: int = 0) -> MemInfo | None:
    """The dump in a piece of text; None if there is none.

    :param turn: of a zone that is there several times, which one to take: 0 is the first. Two CPUs may have printed in one another.
    """
    zones = parse_zones(text)
    lists: dict[tuple[int | None, str], list[re.Match[str]]] = {}
    for match in LIST.finditer(text):
        lists.setdefault(_key(match), []).append(match)
    if not zones and not lists:
        counters = {name.lower(): int(number) for name, number in (match.groups() for match in COUNTER.finditer(text)) if int(number) < LARGEST}
        return MemInfo((), frozenset(), counters, _trailer(text), 4, False, complete=NO_ZONE.search(text) is not None) if "free" in counters else None
    groups: dict[tuple[int | None, str], list[Zone]] = {}
    for zone in zones:
        groups.setdefault((zone.node, zone.name), []).append(zone)
    for key in [key for key in groups if key[0] is None]:  # "Node 0 " and the rest of the line torn apart by what another CPU printed
        named = [other for other in lists if other[1] == key[1] and other[0] is not None]
        if key not in lists and len(named) == 1 and named[0] not in groups:
            groups = {named[0] if k == key else k: [replace(zone, node=named[0][0]) for zone in same] if k == key else same for k, same in groups.items()}
    chosen = []
    for key, same in groups.items():
        zone = same[min(turn, len(same) - 1)]
        matches = lists.get(key, [])
        if matches:
            match = matches[min(turn, len(matches) - 1)]
            total = int(match["total"]) if match["total"] else None
            zone = replace(zone, blocks=parse_blocks(match["blocks"]), total_kb=total)
        chosen.append(zone)
    first = zone_heads(text)[0] if zones else LIST.search(text)
    assert first is not None
    node_line = NODE_LINE.search(text)
    counters = {}
    for match in COUNTER.finditer(text, 0, min(first.start(), node_line.start() if node_line else len(text))):
        name, number = match.groups()
        counters.setdefault(name.lower(), min(int(number), LARGEST))
    if len(chosen) == 1 and "free_cma" not in chosen[0].fields and counters.get("free_cma"):
        kb = _page_size(chosen)[0] if chosen[0].blocks else 4  # the zone's line is cut; with one zone the machine's counter is the zone's
        chosen[0].fields["free_cma"] = min(counters["free_cma"] * kb, chosen[0].free_kb)
    compiled = {name for _, name in [*groups, *lists]} | {match["zone"] for match in EMPTY.finditer(text)}
    lists_only = not chosen
    if lists_only:
        for (node, name), (match, *_) in lists.items():
            blocks = parse_blocks(match["blocks"])
            listed = int(match["total"]) if match["total"] else sum(block.kb * block.count for block in blocks)
            chosen.append(Zone(node, name, {"free": min(listed, LARGEST)}, None, blocks, listed))
        lists = {}
    page_kb, known = _page_size([zone for zone in chosen if zone.blocks])
    doubled = tuple(
        same[0].label
        for key, same in groups.items()
        if len(same) > 1 and (len({_tested(zone) for zone in same}) > 1 or len({match["blocks"] for match in lists.get(key, [])}) > 1)
    )
    lost = tuple(match[0].split(":")[0] for key, (match, *_) in lists.items() if key not in groups)
    return MemInfo(tuple(chosen), frozenset(compiled), counters, _trailer(text), page_kb, known, doubled, lists_only, lost, unused_huge_kb=_unused_huge(text))


def _unused_huge(text: str) -> int:
    """kB; a dump names each node's pools once."""
    pools = dict.fromkeys(m[0] for m in HUGE.finditer(text))
    return sum(int(m[1]) * int(m[2]) for line in pools if (m := HUGE.search(line)))


def _trailer(text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for at in places(text, ("pages", "swap")):
        start = max(0, at - TRAILER_NEAR)
        swap = text.startswith("swap", at)
        if not swap and NUMBERED.search(text, start, at) is None:
            continue
        for name, pattern in TRAILER.items():
            if name.startswith("swap_") == swap and name not in found and (match := pattern.search(text, start, at + TRAILER_NEAR)):
                found[name] = min(int(match[1]), LARGEST)
    return found


def _page_size(zones: list[Zone]) -> tuple[int, bool]:
    """A free list starts with blocks of one page."""
    sizes = {zone.blocks[0].kb for zone in zones if zone.blocks and len(zone.blocks) > 3}
    size = min(sizes, default=0)
    return (size, True) if size in (4, 8, 16, 32, 64, 256) else (4, False)
