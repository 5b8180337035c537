"""The page allocator's tests with a log's own numbers, zone by zone (zone_watermark_ok and rmqueue of mm/page_alloc.c, 2.6 to 6.x).

The arithmetic is the kernel's, version differences are rows of `RULES`. All numbers are pages unless a name says kB.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from mmtwin.diagnose.explain.log_gfp import Flags
from mmtwin.diagnose.explain.mem_info import ZONE_ORDER, MemInfo, Zone

COSTLY_ORDER = 3
"""Requests above it fail rather than call the OOM killer (PAGE_ALLOC_COSTLY_ORDER)."""


@dataclass(frozen=True)
class Rules:
    """What differs between kernels.

    :ivar since: first version.
    :ivar per_order: the pages in the orders from k on must stay above min >> k (up to 4.3); later one block is enough.
    :ivar cma: free CMA pages that a request may not use: "counted", "first" (left out of the first test), "all".
    :ivar highatomic: not counted for requests without a claim on it: "" (no such reserve), "reserved" or "free" pages.
    :ivar harder: which requests may go deeper: those that cannot "wait", or have the "ATOMIC" flag.
    :ivar off_by_two: the request's other pages count as two more than they are ("mm: fix off-by-two in __zone_watermark_ok" of 3.3).
    :ivar unboosted: an atomic order-0 request is tested again without the boost.
    """

    since: tuple[int, int, int]
    per_order: bool
    cma: str
    highatomic: str
    harder: str
    unboosted: bool
    off_by_two: bool = False


RULES = (
    Rules((0, 0, 0), True, "counted", "", "wait", False),
    Rules((2, 6, 38), True, "counted", "", "wait", False, True),
    Rules((3, 3, 0), True, "counted", "", "wait", False),
    Rules((3, 7, 0), True, "all", "", "wait", False),
    Rules((3, 11, 0), True, "first", "", "wait", False),
    Rules((4, 4, 0), False, "all", "reserved", "ATOMIC", False),
    Rules((5, 9, 0), False, "all", "reserved", "ATOMIC", True),
    Rules((6, 3, 0), False, "all", "reserved", "wait", True),
    Rules((6, 12, 0), False, "all", "free", "wait", True),
)


def since(version: tuple[int, int, int], *first: tuple[int, int, int]) -> bool:
    """Whether a kernel has a change: its mainline version is the last of `first`, those before are the stable ones that took it over."""
    return version >= first[-1] or any(version[:2] == stable[:2] and version >= stable for stable in first[:-1])


NON_BLOCK = ((6, 1, 116), (6, 3, 0))
"""Reserves go by whether a request can wait, no longer by __GFP_ATOMIC (ALLOC_NON_BLOCK)."""
SINGLE_FROM_ATOMIC = ((6, 1, 116), (6, 6, 60), (6, 11, 7), (6, 12, 0))
"""A single page may come from the reserve for atomic requests, if nothing else is left and the request cannot wait."""
ATOMIC_NEEDS_HIGH = ((6, 1, 157), (6, 12, 54), (6, 18, 0))
"""Blocks may come from that reserve only with __GFP_HIGH; from NON_BLOCK on until then it was enough that the request cannot wait."""


ALLOC_OOM = (4, 14, 0)
"""The OOM killer's victim gets half of the min watermark, no longer everything (oom_reserves_allowed)."""


def rules_of(version: tuple[int, int, int]) -> Rules:
    """The rules of a kernel version."""
    return [rules for rules in RULES if rules.since <= version or (rules.since == NON_BLOCK[-1] and since(version, *NON_BLOCK))][-1]


@dataclass(frozen=True)
class ZoneVerdict:
    """One zone, tested.

    :ivar rule: "passes", "not_eligible", "watermark", "lowmem_reserve", "per_order_watermark", "no_block", "cma_only", "highatomic_only", "isolated_only", "empty" or
        "blocks_not_shown" (the watermark passes, the free list is missing).
    :ivar eligible: whether the request may use the zone; `why_not` says why it may not.
    :ivar free: free pages by the zone's counter.
    :ivar usable: `free` less the request's other pages and what is reserved for others.
    :ivar mark: the min watermark as printed; `least` after the request's privileges.
    :ivar boost: part of `mark` that is watermark boost, as printed or derived.
    :ivar reserve: lowmem_reserve for this request.
    :ivar margin: `usable` - `least` - `reserve`; 0 and below is refused.
    :ivar steps: the same as text, one test each.
    :ivar fitting: free blocks of the order or larger; `fitting_types` the letters printed with them.
    :ivar usable_blocks: of which the request could take some; None if the log does not show.
    :ivar largest_kb: largest free block that it could use; None if the log does not show.
    :ivar missing: what the log does not show.
    """

    zone: Zone
    rule: str
    eligible: bool
    why_not: str = ""
    free: int = 0
    usable: int = 0
    order_pages: int = 0
    cma: int = 0
    highatomic: int = 0
    mark: int = 0
    least: int = 0
    low: int | None = None
    high: int | None = None
    boost: int = 0
    reserve: int = 0
    margin: int = 0
    fitting: int | None = None
    fitting_types: str = ""
    usable_blocks: bool | None = None
    largest_kb: int | None = None
    cma_decides: bool = False
    boost_decides: bool = False
    unboosted_margin: int | None = None
    drift: int = 0
    steps: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ask:
    """What the tests need to know of a request.

    :ivar oom: the task is the OOM killer's victim: it may go to half of the mark, and take blocks of the highatomic reserve (ALLOC_OOM, from 4.14 on; before, all of it is open to it).
    :ivar reclaiming: the process that asks is freeing memory just then (PF_MEMALLOC): all of it is open to it.
    """

    order: int
    flags: Flags
    version: tuple[int, int, int]
    bits: int = 0
    oom: bool = False
    reclaiming: bool = False

    @property
    def movable(self) -> bool:
        """Whether it may use CMA."""
        return "MOVABLE" in self.flags and "RECLAIMABLE" not in self.flags

    @property
    def high(self) -> bool:
        return "HIGH" in self.flags

    @property
    def harder(self) -> bool:
        """Whether it may take part of the reserve that is left to requests that cannot wait."""
        if "NOMEMALLOC" in self.flags:
            return False
        rules = rules_of(self.version)
        if rules.harder == "ATOMIC":
            return "ATOMIC" in self.flags
        return "DIRECT_RECLAIM" not in self.flags

    @property
    def no_watermarks(self) -> bool:
        return ("MEMALLOC" in self.flags or self.reclaiming or (self.oom and self.version < ALLOC_OOM)) and "NOMEMALLOC" not in self.flags


def compiled_zones(info: MemInfo, version: tuple[int, int, int], bits: int = 0) -> tuple[str, ...]:
    """The zones a kernel was built with, in order: as many as lowmem_reserve[] has columns, those printed among them.

    :param bits: 32 or 64 if the log shows it: HighMem is for 32 bits, DMA32 for 64.
    """
    columns = max((len(zone.reserve) for zone in info.zones if zone.reserve), default=0)
    seen = set(info.compiled)
    if not columns:
        return tuple(name for name in ZONE_ORDER if name in seen or name in ("Normal",))
    movable = version >= (2, 6, 23) or version[:2] > (2, 6)
    names = [name for name in ZONE_ORDER if movable or name not in ("Movable", "Device")]
    best: tuple[int, tuple[str, ...]] | None = None
    for chosen in combinations(names, min(columns, len(names))):
        if not seen <= set(chosen):
            continue
        wrong = 0
        for zone in info.zones:
            index = chosen.index(zone.name)
            wrong += 10 * sum(x != 0 for x in (zone.reserve or ())[: index + 1])
        wrong += (
            5 * ("Normal" not in chosen) + 4 * (movable and "Movable" not in chosen) + 2 * ("DMA32" in chosen and "HighMem" in chosen) + ("Device" in chosen)
        )
        wrong += 6 * ("HighMem" in chosen and bits == 64) + 6 * ("DMA32" in chosen and bits == 32)
        wrong += 6 * ("HighMem" not in chosen and info.trailer.get("highmem", 0) > 0 and bits != 64 and "DMA32" not in seen)
        wrong += (
            3 * ("HighMem" in chosen and "HighMem" not in seen and bits != 32)
            + ("DMA32" in chosen and "DMA32" not in seen)
            + ("Device" in chosen and "DMA32" not in chosen)
        )
        if (
            "DMA32" in chosen
            and not {"DMA32", "HighMem"} & seen
            and {"DMA", "Normal"} <= seen
            and all(zone.reserve is None for zone in info.zones if zone.name == "Normal")
        ):
            # a DMA32 between the two that are printed has no pages, so DMA keeps nothing back from it; where Normal's own reserve is shown, it tells
            at = chosen.index("DMA32")
            wrong += 4 * any(zone.name == "DMA" and zone.node is None and zone.reserve is not None and zone.reserve[at : at + 1] > (0,) for zone in info.zones)
        if best is None or wrong < best[0]:
            best = (wrong, chosen)
    return best[1] if best else tuple(name for name in ZONE_ORDER if name in seen)


def highest_zone(flags: Flags, compiled: tuple[str, ...]) -> str:
    """The highest zone a request may use (gfp_zone). A zone that the kernel does not have is Normal."""
    if "MOVABLE" in flags and "HIGHMEM" in flags:
        name = "Movable"
    elif "DMA" in flags:
        name = "DMA"
    elif "DMA32" in flags:
        name = "DMA32"
    elif "HIGHMEM" in flags:
        name = "HighMem"
    else:
        name = "Normal"
    if name == "Movable" and name not in compiled:
        name = "HighMem"
    return name if name in compiled else "Normal"


def judge_zone(zone: Zone, ask: Ask, highest: str, compiled: tuple[str, ...], page_kb: int, why_not: str = "") -> ZoneVerdict:
    """Tests one zone at its min watermark, as the last attempt of the kernel's slow path does.

    :param why_not: a reason from elsewhere that the request may not use it (cpuset, nodes).
    """
    free = zone.free_kb // page_kb
    if ZONE_ORDER.index(zone.name) > ZONE_ORDER.index(highest):
        return ZoneVerdict(zone, "not_eligible", False, f"the request may go up to {highest} only", free, largest_kb=_largest(zone, None))
    if why_not:
        return ZoneVerdict(zone, "not_eligible", False, why_not, free, largest_kb=_largest(zone, None))
    rules, order = rules_of(ask.version), ask.order
    steps: list[str] = []
    missing: list[str] = []
    other = (1 << order) - 1 + 2 * rules.off_by_two
    cma = zone.fields.get("free_cma", 0) // page_kb if rules.cma != "counted" and not ask.movable else 0
    name = "free_highatomic" if rules.highatomic == "free" and "free_highatomic" in zone.fields else "reserved_highatomic"
    reserved = rules.highatomic and not (ask.oom or ask.harder or (ask.high and since(ask.version, *NON_BLOCK)))
    highatomic = zone.fields.get(name, 0) // page_kb if reserved else 0
    if rules.highatomic and name not in zone.fields and not ask.harder and ask.version >= (4, 4, 0):
        missing.append("the highatomic reserve is not printed by this kernel; it holds up to 1 % of the zone")
    held = _atomic_only(zone, page_kb) if reserved and name not in zone.fields else 0
    if held:
        steps.append(f"{held} of the free pages are in blocks of the highatomic reserve only (H); the test leaves out at least those")
        highatomic = held
    mark = zone.fields.get("min")
    if mark is None:
        missing.append("the min watermark is not in the log")
    mark = (mark or 0) // page_kb
    low, high = (zone.fields[name] // page_kb if name in zone.fields else None for name in ("low", "high"))
    boost = _boost(zone, mark, low, page_kb, ask.version)
    reserve = _reserve(zone, highest, compiled)
    if zone.reserve is None:
        missing.append("lowmem_reserve[] is not in the log")
    least = lower(mark, ask) if not zone.low_counts else mark - mark // 4 * ask.high
    usable = free - other - cma - highatomic
    margin = usable - least - reserve
    text = f"{free}" + (f" - {other}" if other else "") + (f" - {cma} CMA" if cma else "") + (f" - {highatomic} highatomic" if highatomic else "")
    text = f"{text} = {usable}" if text != f"{free}" else text
    need = "min (not in the log)" if "min" not in zone.fields else _marks(mark, least, ask) if not zone.low_counts else f"low {least}"
    need += f" + {reserve} lowmem_reserve = {least + reserve}" if reserve else ""
    passes = usable > least + reserve or ask.no_watermarks
    if boost:
        need = need.replace(f"min {mark}", f"min {mark} ({boost} of it boost)", 1)
    steps.append(f"free pages: {text} {'>' if usable > least + reserve else '<='} {need}: {_by(passes, margin, ask)}")
    fitting, types, usable_blocks = _blocks(zone, ask, page_kb)
    if order and fitting is None:
        missing.append("the free list is not in the log" if zone.blocks is None else f"the free list is cut behind {zone.blocks[-1].kb} kB")
    drift = abs(zone.listed_kb - zone.free_kb) // page_kb if zone.blocks else 0
    unboosted = usable - lower(mark - boost, ask) - reserve if boost else None
    cma_decides = margin <= 0 < margin + cma
    rule = "passes"
    if mark == 0 and "min" not in zone.fields:
        rule = "blocks_not_shown" if order and fitting is None else rule
    if not passes:
        rule = "empty" if free - cma <= 0 else "lowmem_reserve" if reserve and usable > least else "watermark"
        if rule == "watermark" and highatomic and usable + highatomic > least + reserve and (held or (usable_blocks is False and "H" in types)):
            rule = "highatomic_only"
        if boost and unboosted is not None:
            steps.append(
                f"without the boost of {boost}: {usable} {'>' if unboosted > 0 else '<='} {_marks(mark - boost, lower(mark - boost, ask), ask)}"
                + (f" + {reserve}" if reserve else "")
                + f": {'would pass' if unboosted > 0 else 'refused as well'} by {abs(unboosted)}"
            )
    elif order:
        failed = False
        if rules.per_order and not ask.no_watermarks:
            failed = not _per_order(zone, ask, usable, least, cma if rules.cma == "first" else 0, page_kb, steps)
        if fitting is None:
            rule = "per_order_watermark" if failed and zone.blocks is not None else "blocks_not_shown"
        elif not fitting:
            rule = "no_block"
        elif failed:
            rule = "per_order_watermark"
        elif usable_blocks is False:
            rule = "cma_only" if "C" in types else "highatomic_only" if "H" in types else "isolated_only"
    elif ask.no_watermarks and (free <= 0 or (zone.blocks is not None and not zone.listed_kb)):
        rule = "empty"
    elif fitting and usable_blocks is False and not ask.no_watermarks:
        rule = "cma_only" if "C" in types else "highatomic_only" if "H" in types else "isolated_only"
    if fitting is not None and (order or rule in ("cma_only", "highatomic_only", "isolated_only")):
        steps.append(_blocks_text(zone, ask, page_kb, fitting or 0, usable_blocks))
    return ZoneVerdict(
        zone, rule, True, "", free, usable, other, cma, highatomic, mark, least, low, high, boost, reserve, margin, fitting, types, usable_blocks, _largest(zone, ask),
        cma_decides, bool(boost) and margin <= 0 < (unboosted or 0), unboosted, drift, tuple(steps), tuple(missing),
    )  # fmt: skip


def _atomic_only(zone: Zone, page_kb: int) -> int:
    """Free pages in sizes of which every block is in the highatomic reserve."""
    return sum(block.count * block.kb for block in zone.blocks or () if block.types == "H") // page_kb


def lower(mark: int, ask: Ask) -> int:
    """The watermark after the request's privileges: __GFP_HIGH takes half away, not being able to wait another quarter."""
    least = mark
    if ask.high:
        least -= least // 2
    if ask.harder and (ask.high or not since(ask.version, *NON_BLOCK)):
        least -= least // 4
    return least - least // 2 if ask.oom else least


def _marks(mark: int, least: int, ask: Ask) -> str:
    if least == mark:
        return f"min {mark}"
    if ask.oom:
        return f"min {mark} -> {least} (victim of the OOM killer{', and may use reserves' if ask.high or ask.harder else ''})"
    half = mark - mark // 2 if ask.high else mark
    return f"min {mark}" + (f" -> {half} (__GFP_HIGH)" if ask.high else "") + (f" -> {least} (cannot wait)" if least != half else "")


def _by(passes: bool, margin: int, ask: Ask) -> str:
    if ask.no_watermarks:
        return f"does not matter, {'reclaim (PF_MEMALLOC)' if ask.reclaiming else 'a victim of the OOM killer' if ask.oom else '__GFP_MEMALLOC'} ignores watermarks"
    return f"passes by {margin}" if passes else f"refused by {-margin}" if margin else "refused (equal is not enough)"


def _boost(zone: Zone, mark: int, low: int | None, page_kb: int, version: tuple[int, int, int]) -> int:
    """Watermark boost that is part of the printed min: printed since 5.14; before, low - min is a quarter of the unboosted min, or more in a large zone: then this is the least it can be."""
    if "boost" in zone.fields:
        return zone.fields["boost"] // page_kb
    managed = zone.fields.get("managed", 0) // page_kb
    if version < (5, 0, 0) or low is None or not managed or zone.name in ("HighMem", "Movable"):
        return 0
    gap = low - mark
    if mark < 4 * gap + 64:
        return 0
    boost = mark - 4 * gap
    return boost // 64 * 64 if boost >= 64 else 0


def _reserve(zone: Zone, highest: str, compiled: tuple[str, ...]) -> int:
    if not zone.reserve or highest not in compiled:
        return 0
    index = compiled.index(highest)
    if index >= len(zone.reserve):
        return 0
    return zone.reserve[index]


def _per_order(zone: Zone, ask: Ask, usable: int, least: int, cma_back: int, page_kb: int, steps: list[str]) -> bool:
    """The loop of kernels up to 4.3: without the pages of each lower order, still above half of the last mark."""
    if zone.blocks is None:
        return True
    usable += cma_back
    for order, block in enumerate(zone.blocks[: ask.order]):
        usable -= block.count << order
        least >>= 1
        passes = usable > least
        steps.append(f"without order {order} ({block.count} x {block.kb} kB): {usable} {'>' if passes else '<='} {least}" + ("" if passes else ": refused"))
        if not passes:
            return False
    return True


def _blocks(zone: Zone, ask: Ask, page_kb: int) -> tuple[int | None, str, bool | None]:
    """Free blocks large enough, the letters beside them, and whether the request could take one."""
    if zone.blocks is None:
        return None, "", None
    wanted = page_kb << ask.order
    if zone.blocks and zone.total_kb is None and zone.blocks[-1].kb < wanted <= zone.free_kb - zone.listed_kb:
        return None, "", None  # cut, and what is not listed could hold one
    large = [block for block in zone.blocks if block.count and block.kb >= wanted]
    types = "".join(sorted({letter for block in large for letter in block.types}))
    if not large:
        return 0, "", False
    usable = any(not block.types or takes(block.types, ask) for block in large)
    return sum(block.count for block in large), types, usable


def takes(types: str, ask: Ask) -> bool:
    """Whether a request may take a block from lists with these letters: unmovable, movable and reclaimable ones in any case (R: the old reserve, or reclaimable)."""
    if any(letter in types for letter in "UMER"):
        return True
    if ("C" in types and ask.movable) or ("H" in types and ask.oom):
        return True
    if "H" not in types or not ask.harder:
        return False
    if not ask.order:
        return since(ask.version, *SINGLE_FROM_ATOMIC)
    return ask.high or (since(ask.version, *NON_BLOCK) and not since(ask.version, *ATOMIC_NEEDS_HIGH))


def _largest(zone: Zone, ask: Ask | None) -> int | None:
    if zone.blocks is None:
        return None
    return max((block.kb for block in zone.blocks if block.count and (ask is None or not block.types or takes(block.types, ask))), default=0)


def _blocks_text(zone: Zone, ask: Ask, page_kb: int, fitting: int, usable: bool | None) -> str:
    size = page_kb << ask.order
    if not fitting:
        largest = _largest(zone, None) or 0
        return f"blocks of {size} kB or more: none" + (f"; the largest free block is {largest} kB" if largest else "")
    large = [f"{b.count} x {b.kb} kB{f' ({b.types})' if b.types else ''}" for b in zone.blocks or () if b.count and b.kb >= size]
    return f"blocks of {size} kB or more: {', '.join(large)}" + ("" if usable else ": none that this request may take")
