"""What a reader should know first: a few sentences and a few numbers, drawn from the report's own data and nothing else."""

from __future__ import annotations

from typing import Any

from mmtwin.notebook import readable_size
from mmtwin.units import PAGE_SIZE


def findings(data: dict[str, Any]) -> dict[str, Any]:
    """`tiles`: label, value and a remark; `sentences`: what happened, most important first."""
    return {"tiles": _tiles(data), "sentences": [*_refusals(data), *_free(data), *_growth(data), *_fragmented(data), *_objects(data), *_trust(data)]}


def _tiles(data: dict[str, Any]) -> list[dict[str, str]]:
    tiles = [_tile("events", f"{data['events']:,}", _duration(data))]
    free = _free_pages(data)
    if free:
        low = min(range(len(free)), key=free.__getitem__)
        tiles.append(_tile("free memory", _change(free), f"lowest {_size(free[low])}"))
    if data["caches"]:
        slabs = _slab_pages(data)
        tiles.append(_tile("slab memory", _change(slabs), f"{len(data['caches']):,} caches"))
    elif data["pages"]:
        tiles.append(_tile("pages handed out", readable_size(data["pages"]["summary"]["bytes"]), f"{data['pages']['summary']['requests']:,} requests"))
    if data["objects"]:
        summary = data["objects"]["summary"]
        tiles.append(_tile("objects handed out", f"{summary['allocations']:,}", f"{readable_size(summary['live_bytes'])} live at the end"))
    refused = data["failures"]["total"]
    kills = len(data["failures"]["oom_kills"])
    tiles.append(_tile("requests refused", f"{refused:,}", f"{kills:,} OOM kill{'s' * (kills != 1)}" if kills else "no OOM kill"))
    replay = data["replay"]
    if replay:
        asked = replay["page_allocs"] + replay["failed_allocs"] + replay["slab_allocs"]
        equal = replay["page_allocs_equal"] + replay["failed_allocs_equal"] + replay["slab_allocs_equal"]
        tiles.append(_tile("answers of the twin", "all equal" if equal == asked else f"{asked - equal:,} differ", f"of {asked:,} compared with the kernel's"))
    return tiles


def _tile(label: str, value: str, remark: str) -> dict[str, str]:
    return {"label": label, "value": value, "remark": remark}


def _duration(data: dict[str, Any]) -> str:
    if data["workload_seconds"]:
        return f"in {data['workload_seconds']:g} s"
    times = data["steps"]["times"]
    return f"in {(times[-1] - times[0]) / 1e9:,.3g} s" if data["clock"] == "ns" and times[-1] > times[0] else ""


def _size(pages: int) -> str:
    return readable_size(pages * PAGE_SIZE)


def _change(pages: list[int]) -> str:
    """First and last, in one unit if both are told in the same; none of it may be broken into lines but at the arrow."""
    first, last = _size(pages[0]).replace(" ", "\u00a0"), _size(pages[-1]).replace(" ", "\u00a0")
    unit = last.partition("\u00a0")[2]
    return f"{first.removesuffix(unit).rstrip() if first.endswith(unit) else first} → {last}"


def _free_pages(data: dict[str, Any]) -> list[int]:
    zones = data["memory"]["zones"] if data["memory"] else []
    return [sum(column) for column in zip(*(zone["free_pages"] for zone in zones), strict=True)]


def _slab_pages(data: dict[str, Any]) -> list[int]:
    return [sum(column) for column in zip(*(cache["pages"] for cache in data["caches"]), strict=True)]


def _refusals(data: dict[str, Any]) -> list[str]:
    found = data["failures"]
    said = []
    if found["total"]:
        kind = found["kinds"][0]
        orders = sorted({row["order"] for row in found["kinds"]})
        which = (
            f"of orders {orders[0]} to {orders[-1]}"
            if len(orders) > 1
            else f"of order {kind['order']}" + (f" ({kind['gfp']})" if len(found["kinds"]) == 1 else "")
        )
        text = f"{found['total']:,} request{'s' if found['total'] != 1 else ''} {which} {'were' if found['total'] != 1 else 'was'} refused"
        reasons = ", ".join(f"{reason['count']:,} for {reason['text'].partition(':')[0]}" for reason in found["reasons"])
        said.append(f"{text}; of {found['explained']:,} that were looked at: {reasons}." if reasons else f"{text}.")
    if found["oom_kills"]:
        names = ", ".join(dict.fromkeys(f"{row['comm']} (PID {row['pid']})" for row in found["oom_kills"][:3]))
        said.append(f"The OOM killer struck {len(found['oom_kills']):,} time{'s' * (len(found['oom_kills']) != 1)}: {names}.")
    return said


def _free(data: dict[str, Any]) -> list[str]:
    free = _free_pages(data)
    if not free:
        return []
    low = min(range(len(free)), key=free.__getitem__)
    zones = data["memory"]["zones"]
    below = [zone["name"] for zone in zones if zone["wmark_low"] and min(zone["free_pages"]) < zone["wmark_low"]]
    change = free[-1] - free[0]
    way = f"{'fell' if change < 0 else 'rose'} by {_size(abs(change))}" if change else "ended where it began"
    text = f"Free memory {way}; it was lowest at event {data['steps']['events'][low]:,}, with {_size(free[low])} of {_size(sum(zone['managed_pages'] for zone in zones))}."
    if below:
        text += f" {' and '.join(below)} came below the low watermark, where kswapd is woken."
    return [text]


def _growth(data: dict[str, Any]) -> list[str]:
    if not data["caches"]:
        return []
    grown = sorted(((cache["pages"][-1] - cache["pages"][0], cache["name"]) for cache in data["caches"]), reverse=True)
    largest = [f"{name} (+{_size(pages)})" for pages, name in grown[:3] if pages > 0]
    return [f"The slab caches that grew most: {', '.join(largest)}."] if largest else ["No slab cache ended with more pages than it began with."]


def _fragmented(data: dict[str, Any]) -> list[str]:
    if not data["memory"]:
        return []
    keys = [kind["key"] for kind in data["memory"]["classes"]]
    large, small = keys.index("free_large"), keys.index("free_small")

    def share(pages: list[int]) -> float:
        return 100.0 * pages[large] / max(pages[large] + pages[small], 1)

    first, last = share(data["memory"]["pages"][0]), share(data["memory"]["pages"][-1])
    return [f"{last:.0f} % of the free memory was in blocks of a huge page or more at the end ({first:.0f} % at the start)."]


def _objects(data: dict[str, Any]) -> list[str]:
    if not data["objects"] or not data["objects"]["rows"]:
        return []
    row = max(data["objects"]["rows"], key=lambda row: row["live_bytes"])
    summary = data["objects"]["summary"]
    if not row["live_bytes"] or not summary["live_bytes"]:
        return []
    return [
        f"Of what was handed out, {readable_size(summary['live_bytes'])} of objects are live at the end, {readable_size(row['live_bytes'])} of them from {row['label']}."
    ]


def _trust(data: dict[str, Any]) -> list[str]:
    said = [f"{data['lost_events']:,} events were lost: what follows the first loss cannot be trusted."] if data["lost_events"] else []
    replay = data["replay"]
    if replay and (replay["page_allocs"] != replay["page_allocs_equal"] or replay["slab_allocs"] != replay["slab_allocs_equal"]):
        said.append("The twin answered some requests otherwise than the kernel (mmtwin replay lists them); the map follows the kernel's answers.")
    return said
