"""From the zones' tests to a verdict on a request for pages: which rule refused, and how sure that is."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmtwin.diagnose.explain.mem_info import ZONE_ORDER, MemInfo
from mmtwin.diagnose.explain.model import DECIDED, PROBABLE, UNDECIDED, Request, size
from mmtwin.diagnose.explain.zone_rules import Ask, ZoneVerdict, compiled_zones, highest_zone, judge_zone, rules_of

ZONE_RULE = {"empty": "watermark", "blocks_not_shown": "no_block"}
NO_MARK = "the min watermark is not in the log"
DRIFT = "the numbers were printed after the failure"


@dataclass(frozen=True)
class Judged:
    """A verdict on a request for pages.

    :ivar main: the zone whose rule counts most; None if no zone is eligible or shown.
    :ivar oom: it is a report of the OOM killer.
    """

    code: str
    certainty: str
    zones: tuple[ZoneVerdict, ...]
    main: ZoneVerdict | None
    highest: str
    allowed: tuple[str, ...]
    notes: tuple[str, ...]
    missing: tuple[str, ...]
    oom: bool = False


def nodes_in(text: str) -> set[int] | None:
    """The nodes of a list such as "0-1,4"; None if it is no list."""
    nodes: set[int] = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        if not low.isdigit() or (high and not high.isdigit()) or len(part) > 11:
            return None
        nodes |= set(range(int(low), min(int(high or low), int(low) + 4096) + 1))
    return nodes


def judge_pages(ask: Ask, info: MemInfo, request: Request, oom: bool = False, constraint: str = "") -> Judged:
    """Tests every zone and says which rule refused.

    :param oom: it is a report of the OOM killer, whose last attempt must leave the high watermark.
    :param constraint: CONSTRAINT_CPUSET and the like.
    """
    compiled = compiled_zones(info, ask.version, ask.bits)
    highest = highest_zone(ask.flags, compiled)
    allowed = tuple(name for name in reversed(compiled) if ZONE_ORDER.index(name) <= ZONE_ORDER.index(highest))
    allowed = tuple(name for name in allowed if name in info.compiled) or allowed
    only = nodes_in(request.nodes) if request.nodes and request.nodes != "(null)" else None
    mems = nodes_in(request.mems_allowed) if request.mems_allowed and ("HARDWALL" in ask.flags or "CPUSET" in constraint) and not ask.harder else None
    tested = []
    for zone in info.zones:
        why = ""
        if zone.node is not None and only is not None and zone.node not in only:
            why = f"the request is bound to node {request.nodes}"
        elif zone.node is not None and mems is not None and zone.node not in mems:
            why = f"the cpuset allows node {request.mems_allowed} only"
        tested.append(judge_zone(zone, ask, highest, compiled, info.page_kb, why))
    zones = tuple(tested)
    eligible = [z for z in zones if z.eligible and not unpopulated(z)]
    missing = list(dict.fromkeys(f"{z.zone.label}: {text}" for z in eligible for text in z.missing))
    if info.lists_only:
        missing = ["the lines with each zone's free pages, watermarks and lowmem_reserve: only the free lists are in the log"]
    if not info.page_known and info.zones:
        missing.append("the page size is not shown; 4 kB is assumed")
    lost = [label for label in info.lost if label.split()[-1] in allowed]
    if lost:
        missing.append(
            f"{_and(lost)}: the line with free pages and watermarks is not in the log, so why {'it' if len(lost) == 1 else 'they'} did not serve the request is not shown"
        )
    if info.doubled:
        missing.append(f"{', '.join(info.doubled[:3])} printed more than once: two dumps are in one another, and numbers may belong to the other one")
    missing += [damage for z in eligible if (damage := damaged(z))]
    if not eligible:
        return Judged(*_nothing_eligible(zones, constraint, highest), zones, None, highest, allowed, (), tuple(missing))
    cut = zones[-1].zone.reserve is None and all(z.zone.blocks is None for z in zones)
    if cut:
        missing.append("lowmem_reserve[] and the free lists: the dump was shortened, and zones may have been left out")
    top = ZONE_ORDER.index(highest if highest in ("DMA", "DMA32") else "Normal")
    if cut and all(ZONE_ORDER.index(z.zone.name) < top for z in zones) and any(z.rule in ("passes", "blocks_not_shown") for z in eligible):
        missing.append(f"the dump breaks off after {zones[-1].zone.label}: the zones above it, its reserve and the free lists are not in the log")
        return Judged("evidence_missing", UNDECIDED, zones, None, highest, allowed, (), tuple(missing))
    main = max(
        _this_node(ask, eligible) or eligible,
        key=lambda z: (
            z.rule == "passes" and NO_MARK not in z.missing and not _listed_empty(z),
            not (z.rule == "passes" and _listed_empty(z)),
            ZONE_ORDER.index(z.zone.name),
            z.zone.fields.get("managed", 0),
            z.free,
        ),
    )
    notes: list[str] = []
    code, certainty = _decide(ask, eligible, main, notes, oom)
    notes += _atomic_reserve(main, info.page_kb)
    if certainty == DECIDED and (lost or cut or info.doubled or any(damaged(z) for z in eligible)):
        certainty = PROBABLE
    if certainty == DECIDED and not info.page_known and ask.order:
        certainty = PROBABLE
    return Judged(code, certainty, zones, main, highest, allowed, tuple(notes), tuple(missing), oom)


def _listed_empty(z: ZoneVerdict) -> bool:
    """Whether its free list is in the log, and has nothing."""
    return z.zone.blocks is not None and not z.zone.listed_kb


def unpopulated(z: ZoneVerdict) -> bool:
    """Whether the machine has no page in this zone: the allocator does not even look there."""
    return z.zone.fields.get("managed", z.zone.fields.get("present", 1)) == 0 and z.free == 0


def damaged(z: ZoneVerdict) -> str:
    """What contradicts itself in a zone's numbers; ""."""
    zone = z.zone
    if zone.blocks and zone.total_kb is not None and zone.listed_kb != zone.total_kb:
        return f"{zone.label}: the free list adds up to {zone.listed_kb} kB, but the log prints {zone.total_kb} kB: a number in it is damaged"
    low, high = z.low, z.high
    if low is not None and high is not None and not z.mark <= low <= high:
        return f"{zone.label}: min, low and high are not in order: a number is damaged"
    managed = zone.fields.get("managed", zone.fields.get("present", 0))
    if managed and zone.free_kb > managed + (managed >> 3) + 1024:
        return f"{zone.label}: more free ({zone.free_kb} kB) than the zone has ({managed} kB): a number is damaged"
    return ""


def _nothing_eligible(zones: tuple[ZoneVerdict, ...], constraint: str, highest: str) -> tuple[str, str]:
    if not zones:
        return "evidence_missing", UNDECIDED
    if any(z.eligible for z in zones):  # all of them without pages
        return ("zone_eligibility", DECIDED) if any(z.zone.name == highest for z in zones) else ("evidence_missing", UNDECIDED)
    restricted = constraint in ("CONSTRAINT_CPUSET", "CONSTRAINT_MEMORY_POLICY") or any("bound" in z.why_not or "cpuset" in z.why_not for z in zones)
    return "zone_eligibility", DECIDED if restricted else PROBABLE


def _atomic_reserve(main: ZoneVerdict, page_kb: int) -> list[str]:
    """Until 6.12 the test took off the whole reserve for atomic requests, also what of it is in use (mm/page_alloc.c, __zone_watermark_unusable_free)."""
    if main.rule != "watermark" or not main.zone.blocks or "free_highatomic" in main.zone.fields:
        return []
    listed = sum(block.count * block.kb for block in main.zone.blocks if "H" in block.types) // page_kb
    if main.highatomic <= listed or main.margin + main.highatomic - listed <= 0:
        return []
    return [
        f"The test takes off the whole reserve for atomic requests ({main.highatomic} pages), also what of it is in use; the free list shows at most {listed} free pages of it (H). "
        "Linux 6.12 and newer take off the free ones only: then this request would pass."
    ]


def _decide(ask: Ask, eligible: list[ZoneVerdict], main: ZoneVerdict, notes: list[str], oom: bool) -> tuple[str, str]:
    passing = [z for z in eligible if z.rule == "passes"]
    if passing and len(passing) < len(eligible) and all(NO_MARK in z.missing for z in passing):  # zones of which only the free list is in the log
        if all(ZONE_ORDER.index(z.zone.name) < ZONE_ORDER.index(main.zone.name) for z in passing):
            notes.append(
                f"{_and([z.zone.label for z in passing])} had blocks that fit; watermark and lowmem_reserve, which keep low zones for requests that can use no other, are not in the log."
            )
            return ZONE_RULE.get(main.rule, main.rule), PROBABLE
        return "evidence_missing", UNDECIDED
    empty = [z for z in passing if _listed_empty(z)]
    if passing and len(empty) == len(passing) < len(eligible):  # the zones that pass have nothing to give
        notes.append(
            f"{_and([z.zone.label for z in empty])} passes its watermark, but its free lists, which are counted when they are printed, are empty; "
            "the counter of free pages lags behind (each CPU keeps a part of it)."
        )
        refusing = [z for z in eligible if z not in empty]
        return ("lowmem_reserve" if any(z.rule == "lowmem_reserve" for z in refusing) else "watermark"), PROBABLE
    if passing and len(empty) == len(eligible):
        notes.append(
            "The free lists, which are counted when they are printed, are empty; the counters of free pages lag behind (each CPU keeps a part of them)."
        )
        return "really_empty", PROBABLE
    if any(z.free > 0 for z in eligible) and not ask.no_watermarks and all(z.free - z.cma <= 0 for z in eligible):
        return "cma_only", DECIDED
    if all(z.free - z.cma <= 0 or (ask.no_watermarks and z.rule == "empty") for z in eligible):
        return "really_empty", DECIDED
    if _this_node(ask, eligible):
        notes.append(
            f"It was for one node only (__GFP_THISNODE), which the log does not name: it cannot have been node {passing[0].zone.node}, which would have served it."
        )
        return ZONE_RULE.get(main.rule, main.rule), DECIDED
    if passing:
        if oom and ask.version < (4, 9, 0) and len({z.zone.node for z in eligible}) > 1:
            notes.append("Kernels before 4.9 do not print which nodes the request was bound to: a memory policy (numactl, mbind) would explain it.")
        return _passing(ask, passing, notes, oom)
    code = ZONE_RULE.get(main.rule, main.rule)
    certainty = DECIDED
    hidden = [z for z in eligible if z.rule == "blocks_not_shown"]
    if hidden and oom and all(z.high is not None and z.usable <= z.high + z.reserve for z in hidden):
        return _below_high(max(hidden, key=lambda z: z.margin), notes)
    if main.rule == "blocks_not_shown":
        certainty = PROBABLE
        cma = main.zone.fields.get("free_cma", 0) * 100 // max(main.zone.free_kb, 1)
        if not ask.movable and cma >= 50:
            code = "cma_only"
            notes.append(
                f"{cma} % of the free pages of {main.zone.label} are CMA. The free list is missing, so whether a block of order {ask.order} outside CMA existed is not shown; "
                f"the other {main.free - main.cma} pages {'could' if main.free - main.cma >= 1 << ask.order else 'cannot'} hold one."
            )
        else:
            old = ", or too few pages in the higher orders (kernels up to 4.3 want min >> k of them)" if rules_of(ask.version).per_order else ""
            notes.append(
                f"The watermark of {main.zone.label} passes, so there must have been no block that fits{old}; the free list that would show it is missing."
            )
    if ask.order == 0 and ask.high and rules_of(ask.version).unboosted and any(z.boost_decides for z in eligible):
        certainty = UNDECIDED
        notes.append(
            "An atomic request for one page is tested again without the boost, and at the moment of the dump that test would pass: at the failure there were fewer free pages, or none that it may take."
        )
    if main.rule in ("watermark", "lowmem_reserve", "empty") and any(name.endswith("min watermark is not in the log") for name in main.missing):
        certainty = PROBABLE
    if 0 < -main.margin <= max(main.drift, 8) and certainty == DECIDED:
        notes.append(f"The margin of {-main.margin} page{'s' * (main.margin != -1)} is at the time of the dump; {DRIFT}.")
    return code, certainty


def _this_node(ask: Ask, eligible: list[ZoneVerdict]) -> list[ZoneVerdict]:
    """The zones of the node that a request for one node only must have been for; empty if the numbers do not tell."""
    passing = [z for z in eligible if z.rule == "passes"]
    would, surely = {z.zone.node for z in passing}, {z.zone.node for z in passing if z.margin > max(z.mark // 4, 64)}
    left = {z.zone.node for z in eligible} - surely
    told = "THISNODE" in ask.flags and passing and would == surely and len(left) == 1
    return [z for z in eligible if z.zone.node in left] if told else []


def _below_high(z: ZoneVerdict, notes: list[str]) -> tuple[str, str]:
    """What out_of_memory's caller tries last (mm/page_alloc.c, __alloc_pages_may_oom): with the high watermark."""
    notes.append(
        f"The min watermark passes by {z.margin} pages at the dump, but the last attempt before killing must leave the high watermark: "
        f"{z.usable} <= {(z.high or 0)}{f' + {z.reserve}' if z.reserve else ''} in {z.zone.label}."
    )
    return "watermark", PROBABLE


def _passing(ask: Ask, passing: list[ZoneVerdict], notes: list[str], oom: bool) -> tuple[str, str]:
    best = max(passing, key=lambda z: z.margin)
    if oom and all(z.high is not None and z.usable <= z.high + z.reserve for z in passing):
        return _below_high(best, notes)
    unproven = [z for z in passing if NO_MARK in z.missing]
    if len(unproven) == len(passing):
        return "evidence_missing", UNDECIDED
    below_low = best.low is not None and best.usable <= best.low + best.reserve and best.margin <= best.mark  # low can be raised far above min
    tight = best.margin <= max(best.mark // 4, 64) or below_low
    if tight:
        notes.append(
            f"{best.zone.label} passes by {best.margin} pages at the dump and is near its watermark; {DRIFT}, so at the failure there may have been fewer."
        )
        return "watermark", UNDECIDED
    narrow = min(
        (int(usable) - int(mark) for step in best.steps for usable, mark in re.findall(r"^without order \d+ .*: (-?\d+) > (-?\d+)$", step)), default=best.margin
    )
    by = f"passes by {best.margin} pages" + (f", in the higher orders by {narrow}" if narrow < best.margin else "")
    notes.append(f"By the dump {best.zone.label} could have served it ({by}): memory was freed in between, or something else than the zones refused.")
    return "not_shown", UNDECIDED


# ------------------------------------------------------------------------------------------------ words


def headline(judged: Judged, ask: Ask, page_kb: int) -> str:
    """The answer in a sentence or two."""
    want = size(page_kb * 1024 << ask.order)
    main = judged.main
    if main is None:
        if judged.code == "evidence_missing" and judged.zones:
            return "The dump breaks off before the zone that counts."
        if judged.code == "zone_eligibility" and any(z.eligible for z in judged.zones):
            own = _and([z.zone.label for z in judged.zones if z.eligible])
            rest = sum(z.free for z in judged.zones if not z.eligible)
            return f"The request may use zones up to {judged.highest} only, and the machine has no pages there ({own}: nothing managed); {size(rest * page_kb * 1024)} are free in zones out of its reach."
        if judged.code == "zone_eligibility":
            shown = ", ".join(dict.fromkeys(z.zone.label for z in judged.zones))
            total = sum(z.free for z in judged.zones)
            return f"The request may use zones up to {judged.highest} only, and none of the zones it was given is one ({shown}: {size(total * page_kb * 1024)} free, out of its reach)."
        return "The log has no zone's numbers for this request."
    free = f"{main.zone.label} has {size(main.free * page_kb * 1024)} free"
    words = {
        "no_block": f"{free}, but no block of {want} or more: it is in smaller pieces.",
        "watermark": f"{free}: too little to stay above its watermark.",
        "lowmem_reserve": f"{free}, but {main.reserve} pages of it are kept for requests that can use no other zone.",
        "per_order_watermark": f"{free} and blocks of {want}, but this old kernel also wants many pages free in the higher orders, and they are not.",
        "cma_only": f"{free}, but what is large enough is in CMA, which only movable pages may use.",
        "highatomic_only": f"{free}, but what is large enough is in the reserve for high-order atomic requests.",
        "isolated_only": f"{free}, but what is large enough is isolated just now.",
        "really_empty": "No zone that the request may use has a free page.",
        "not_shown": f"{free}, and by the dump the request could have been served.",
        "evidence_missing": "The numbers a verdict needs are not in the log.",
    }
    text = words[judged.code]
    if main.rule == "blocks_not_shown" and judged.code == "no_block":
        old = ", or had too few pages in the higher orders" if rules_of(ask.version).per_order else ""
        text = f"{free} and is above its watermark, so it had no block of {want} or more that fits{old}; the free list that would show it is not in the log."
    elif main.rule == "blocks_not_shown" and judged.code == "cma_only":
        text = f"{free}, but {size(main.cma * page_kb * 1024)} of it is CMA, which this request may not use; whether a block of {want} existed outside is not in the log."
    if judged.code == "watermark" and main.cma_decides:
        text = f"{free}, but {size(main.cma * page_kb * 1024)} of it is CMA, which this request may not use; the rest does not stay above the watermark."
    if judged.code == "watermark" and main.rule in ("passes", "blocks_not_shown"):
        text = f"{free}: above its min watermark, " + (
            "but the last attempt before killing must leave the high one." if judged.oom else "but so little that at the failure it may not have been."
        )
    if judged.code == "watermark" and main.boost_decides:
        text = text.rstrip(".") + f", which is boosted by {size(main.boost * page_kb * 1024)}."
    others = [z for z in judged.zones if z.eligible and z is not main and z.rule != "passes" and not unpopulated(z)]
    said = {"lowmem_reserve": "is kept back by lowmem_reserve", "watermark": "is below its watermark", "no_block": "has no block that fits", "cma_only": "has fitting blocks in CMA only",
            "per_order_watermark": "has too few pages in the higher orders", "highatomic_only": "has fitting blocks in the atomic reserve only", "empty": "has nothing free",
            "blocks_not_shown": "passes its watermark, its blocks are not shown", "isolated_only": "has isolated blocks only"}  # fmt: skip
    parts: dict[str, list[str]] = {}
    for z in others:
        parts.setdefault(said[z.rule], []).append(z.zone.label)
    return " ".join([text, *(f"{_and(labels)} {_plural(phrase, labels)}." for phrase, labels in parts.items())])


def _and(labels: list[str]) -> str:
    return labels[0] if len(labels) == 1 else ", ".join(labels[:-1]) + " and " + labels[-1] if len(labels) < 5 else f"{len(labels)} other zones"


def _plural(phrase: str, labels: list[str]) -> str:
    if len(labels) == 1:
        return phrase
    for one, many in (("is ", "are "), ("has ", "have "), ("passes its", "pass their")):
        if phrase.startswith(one):
            return many + phrase.removeprefix(one)
    return phrase
