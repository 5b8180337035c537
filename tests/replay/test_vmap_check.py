"""Virtual areas at the end of a replay, compared part by part with the second dump."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmtwin.mm.vmap_tables import TREE_BUSY
from mmtwin.recording import vmap_state
from mmtwin.recording.model import Recording
from mmtwin.replay.check import replay
from mmtwin.replay.vmap_check import compare_vmaps, has_vmaps, no_vmaps, replay_vmaps


@pytest.mark.parametrize("change", ["color", "left", "lazy_nr", "spare", "maximum", "block", "pool", "drain"])
def test_every_part_is_compared(areas: dict[str, Recording], change: str) -> None:
    recording = areas["areas-6.12-4cpu"]
    assert recording.after is not None
    state = vmap_state.restore(recording.after, recording.provenance)
    assert all(part.equal == part.total for part in compare_vmaps(state, recording.after))
    root = int(state.tree[TREE_BUSY]["rb_root"])
    if change == "color":
        state.area[root]["rb_color"] = 1 - int(state.area[root]["rb_color"])
    elif change == "left":
        state.area[root]["rb_left"] = 0
    elif change == "lazy_nr":
        state.config[0]["lazy_nr"] += 1
    elif change == "drain":
        state.config[0]["drain"] = 1
    elif change == "spare":
        state.cpu[0]["ne_fit_preload_node"] = 0 if int(state.cpu[0]["ne_fit_preload_node"]) else root
    elif change == "maximum":
        state.area[int(state.tree[0]["rb_root"])]["subtree_max_size"] += 4096
    elif change == "block":
        block = int(state.config[0]["block_heads"])
        state.block[block]["free"] += 1
    else:
        base = int(state.config[0]["pool_base"])
        pool = base + int((state.tree["nr"][base:] > 1).argmax())
        first, last = int(state.area[pool]["next"]), int(state.area[pool]["prev"])
        start, end = (state.area[first][name].copy() for name in ("va_start", "va_end"))
        for name, value in (("va_start", start), ("va_end", end)):
            state.area[first][name], state.area[last][name] = state.area[last][name], value
    differ = [part for part in compare_vmaps(state, recording.after) if part.equal != part.total]
    assert len(differ) == 1 and "the kernel's is" in differ[0].first, differ


def test_recordings_without_them(areas: dict[str, Recording], real: dict[str, Recording]) -> None:
    plain = next(r for name, r in real.items() if not name.startswith("areas"))
    assert not has_vmaps(plain) and all(has_vmaps(r) for r in areas.values())
    result, _ = replay(plain)
    assert (result.vmap_allocs, result.vmap_allocs_equal, result.vmap) == (0, 0, no_vmaps())


def test_without_a_second_snapshot_only_the_answers_are_compared(areas: dict[str, Recording]) -> None:
    recording = replace(areas["areas-6.12-1cpu"], after=None)
    assert {part.name for part in replay_vmaps(recording).parts} <= {
        "refused virtual areas", "vm_map_ram pieces", "changes of vm_map_ram blocks", "areas purged one by one", "areas of each purge",
    }  # fmt: skip
    result, _ = replay(recording, check=False)
    assert result.vmap_allocs_equal == result.vmap_allocs > 0 and result.final_state_equal is None and not result.page_allocs
