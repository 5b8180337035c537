from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from mmtwin.diagnose import page_stat as module
from mmtwin.diagnose.page_stat import GROUPS, SORT, page_stat
from mmtwin.errors import RequestError
from mmtwin.recording.model import Recording

Make = Callable[..., Recording]
MOVABLE_GFP = 0x100CCA


def get(pfn: int, order: int = 0, migratetype: int = 0, gfp: int = 0xCC0, **more: Any) -> dict[str, Any]:
    return {"kind": "mm_page_alloc", "pfn": pfn, "order": order, "migratetype": migratetype, "gfp": gfp, **more}


def put(pfn: int, order: int = 0, **more: Any) -> dict[str, Any]:
    return {"kind": "mm_page_free", "pfn": pfn, "order": order, **more}


def naive(recording: Recording) -> tuple[Counter[str], dict[tuple[int, int, int], Counter[str]]]:
    """The same sums, one page at a time."""
    total: Counter[str] = Counter()
    groups: dict[tuple[int, int, int], Counter[str]] = defaultdict(Counter)
    holder: dict[int, tuple[int, int, int]] = {}
    for event in recording.events.iter_rows(named=True):
        pages = range(event["pfn"], event["pfn"] + (1 << max(event["order"], 0)))
        key = (event["order"], event["migratetype"], event["gfp"])
        if event["kind"] == "mm_page_alloc":
            if event["pfn"] < 0:
                total["failed"] += 1
                groups[key]["failed"] += 1
                continue
            groups[key].update(hits=1, pages=len(pages))
            total.update(requests=1, pages=len(pages))
            for page in pages:
                if page in holder:
                    groups[holder[page]]["reused"] += 1
                holder[page] = key
        elif event["kind"] == "mm_page_free":
            total["frees"] += 1
            for page in pages:
                if page in holder:
                    groups[holder.pop(page)]["freed"] += 1
                else:
                    total["unmatched"] += 1
    for key in holder.values():
        groups[key]["live"] += 1
    return total, groups


@pytest.mark.parametrize("name", ["pressure-128m-4cpu", "files-256m-2cpu", "modules-512m-1cpu"])
@pytest.mark.parametrize("piece", [1 << 23, 100])
def test_real_recordings_add_up(recordings: dict[str, Recording], name: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    monkeypatch.setattr(module, "BLOCK_SHIFT", 12 if piece < 1000 else module.BLOCK_SHIFT)
    result, (total, groups) = page_stat(recordings[name]), naive(recordings[name])
    s = result.summary
    assert (s.requests, s.failed, s.pages, s.free_requests) == (total["requests"], total["failed"], total["pages"], total["frees"])
    assert s.pages_freed_unmatched == total["unmatched"]
    assert s.pages == s.pages_freed + s.pages_reused + s.pages_live
    assert s.pages_freed == sum(group["freed"] for group in groups.values())
    assert len(result.rows) == len(groups)
    expected = Counter((g["hits"], g["failed"], g["pages"], g["freed"], g["reused"], g["live"]) for g in groups.values())
    assert Counter(result.rows.select("hits", "failed", "pages", "pages_freed", "pages_reused", "live_pages").iter_rows()) == expected
    assert sum(sum(counts.values()) for counts in s.orders.values()) == s.requests
    for by in set(GROUPS) - {"callsite", "function"}:
        rows = page_stat(recordings[name], by).rows
        assert rows["pages"].sum() == s.pages
        assert rows["live_pages"].sum() == s.pages_live


def test_current_names_of_migrate_types(recordings: dict[str, Recording]) -> None:
    """perf kmem calls them RECLAIM: its table is that of kernels before 4.4."""
    rows = page_stat(recordings["pressure-128m-4cpu"]).rows
    movable = rows.filter(rows["gfp"].str.contains("GFP_HIGHUSER_MOVABLE"))
    assert set(movable["migtype"]) == {"Movable"}
    assert set(rows.filter(rows["gfp"].str.contains("__GFP_RECLAIMABLE"))["migtype"]) <= {"Reclaimable"}


def test_old_numbers_of_migrate_types(recording: Make) -> None:
    old = page_stat(recording(get(1, migratetype=2, gfp=MOVABLE_GFP), get(2, migratetype=1, gfp=0xCD0)))
    assert old.summary.old_migrate_types
    assert dict(old.rows.select("gfp", "migtype").iter_rows())["GFP_HIGHUSER_MOVABLE"] == "Movable"
    assert set(old.rows["migtype"]) == {"Movable", "Reclaimable"}
    assert not page_stat(recording(get(1, migratetype=1, gfp=MOVABLE_GFP))).summary.old_migrate_types


def test_pieces_and_reuse(recording: Make) -> None:
    made = recording(
        get(8, 2),
        put(8),  # a block freed in pieces: one page
        put(10, 1),  # and two
        get(8),  # handed out again
        get(16, 1),
        get(17),  # page 17 was freed silently
        put(100, 3),  # older
        get(-1, 5),
        {"kind": "mm_page_free_batched", "pfn": 8},
    )
    s = page_stat(made).summary
    assert (s.requests, s.failed, s.pages, s.free_requests) == (4, 1, 8, 3)
    assert (s.pages_freed, s.pages_reused, s.pages_freed_unmatched, s.pages_live, s.net_bytes) == (3, 1, 8, 4, None)
    assert s.orders == {0: {"Unmovable": 2}, 1: {"Unmovable": 1}, 2: {"Unmovable": 1}}
    by_order = {row["key"]: row for row in page_stat(made, "order").rows.iter_rows(named=True)}
    assert (by_order[5]["failed"], by_order[5]["hits"], by_order[5]["bytes"]) == (1, 0, 0)
    assert (by_order[2]["live"], by_order[2]["live_pages"], by_order[2]["live_bytes"]) == (1, 1, 4096)
    assert page_stat(recording(get(1), put(1), get(2, 1))).summary.net_bytes == 8192


def test_live_windows_and_sorting(recording: Make) -> None:
    made = recording(get(1), get(2, 1), put(1), get(8, 3), put(8, 3))
    live = page_stat(made, "order", live=True)
    assert live.rows["key"].to_list() == [1]
    assert live.rows["age_oldest"].to_list() == [3]
    window = page_stat(made, window=(3, 4)).summary
    assert (window.requests, window.pages_freed_earlier, window.pages_live) == (1, 1, 8)
    assert page_stat(made, "order", sort=["order"]).rows["key"].to_list() == [0, 1, 3]
    for key in SORT:
        assert len(page_stat(made, sort=[key]).rows) == 3


def test_what_makes_no_sense(recording: Make) -> None:
    with pytest.raises(RequestError, match="unknown group 'cache'; expected one of: kind, callsite"):
        page_stat(recording(get(1)), "cache")
    with pytest.raises(RequestError, match="mm_page_alloc names no caller; record call chains"):
        page_stat(recording(get(1)), "callsite")
    with pytest.raises(RequestError, match="unknown sort key"):
        page_stat(recording(get(1)), sort=["frag"])
    with pytest.raises(RequestError, match="no page events"):
        page_stat(recording({"kind": "kfree", "ptr": 4096}))
    with pytest.raises(RequestError, match="order 40 of a page event"):
        page_stat(recording(get(1, 40)))
    with pytest.raises(RequestError, match="no events between"):
        page_stat(recording(get(1)), window=(5, None))
