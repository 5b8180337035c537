"""Finding the places to probe in a kernel's code; here a few bytes of code made by hand."""

from __future__ import annotations

import pytest

from mmtwin.errors import CaptureError
from mmtwin.recording.capture.probes import CALL, ENDBR64, JUMP, NOP5, Symbols, ZoneLayout, probes

BASE = 0xFFFFFFFF81000000
LAYOUT = ZoneLayout(lock=1232, flags=0x4C8, free_area=256, free_area_size=88)


class Code(Symbols):
    """Symbols over code that is laid out here: functions made of pieces; ("call", name) becomes a call."""

    def __init__(self, **functions: list[bytes | tuple[str, str]]) -> None:
        at, sizes = 0, {}
        for name, pieces in functions.items():
            size = sum(5 if isinstance(p, tuple) else len(p) for p in pieces) + 1
            sizes[name] = (at, size)
            at += size
        text = bytearray()
        for pieces in functions.values():
            for piece in pieces:
                if isinstance(piece, tuple):
                    target = sizes[piece[1]][0] - (len(text) + 5)
                    text += bytes([CALL if piece[0] == "call" else JUMP]) + target.to_bytes(4, "little", signed=True)
                else:
                    text += piece
            text += b"\xc3"
        self._functions = {name: (BASE + start, size) for name, (start, size) in sizes.items()}
        self._start, self._text = BASE, bytes(text)


def kernel(**changes: list[bytes | tuple[str, str]] | None) -> Code:
    """A kernel in miniature with everything that is probed."""
    names = [
        "_raw_spin_unlock",
        "_raw_spin_unlock_irqrestore",
        "__fentry__",
        "__x86_return_thunk",
        "__free_one_page",
        "free_unref_page_commit",
        "drain_pages_zone",
        "move_freepages_block",
    ]
    names += [
        "refresh_cpu_vm_stats",
        "setup_per_zone_wmarks",
        "refresh_zone_stat_thresholds",
        "cpu_vm_stats_fold",
        "__zone_set_pageset_high_and_batch",
        "set_pgdat_percpu_threshold",
    ]
    functions: dict[str, list[bytes | tuple[str, str]] | None] = {name: [ENDBR64, NOP5] for name in names}
    functions |= {
        "steal_suitable_fallback": [b"\x90" * 9],
        "get_page_from_freelist": [("call", "__fentry__"), b"\x90", ("call", "_raw_spin_unlock")],
        "free_unref_page": [("call", "free_unref_page_commit")],
        "free_unref_page_list": [b"\x90\x90", ("call", "free_unref_page_commit")],
        "free_pcppages_bulk": [("call", "__free_one_page")],
        "__free_pages_ok": [b"\x90", ("call", "__free_one_page")],
        "__alloc_pages_bulk": [NOP5, ("call", "_raw_spin_unlock"), ("call", "_raw_spin_unlock"), ("jump", "__x86_return_thunk")],
        "__isolate_free_page": [NOP5, ("jump", "__x86_return_thunk")],
        "balance_pgdat": [NOP5, b"\xf0\x80\x88\xc8\x04\x00\x00\x02", ("call", "_raw_spin_unlock_irqrestore"), b"\xf0\x41\x80\xa6\xc8\x04\x00\x00\xfd"],
        "compaction_alloc": [("call", "_raw_spin_unlock_irqrestore")],
        "compact_zone": [("call", "_raw_spin_unlock_irqrestore")],
    }
    return Code(**{name: pieces for name, pieces in {**functions, **changes}.items() if pieces is not None})


def test_probes_of_a_kernel() -> None:
    found = {p.name: p for p in probes(kernel(), LAYOUT)}
    where = {name: p.definition.split()[1] for name, p in found.items()}
    assert where["walk"] == "get_page_from_freelist+5"
    assert where["pcp_alloc"] == "get_page_from_freelist+6"
    assert (where["pcp_free0"], where["pcp_free1"]) == ("free_unref_page+0", "free_unref_page_list+2")
    assert where["buddy_free0"] == "__free_pages_ok+1"
    assert "buddy_free1" not in where, "the drain announces its pages itself"
    assert (where["bulk"], where["bulk_end0"], where["bulk_end1"], where["bulk_ret0"]) == tuple(f"__alloc_pages_bulk+{o}" for o in (5, 5, 10, 15))
    assert (where["drain_zone"], where["isolate_ret0"]) == ("drain_pages_zone+9", "__isolate_free_page+5")
    assert found["reclaim_set0"].definition == "p:mmtwin/reclaim_set0 balance_pgdat+5 zone=%ax:x64"
    assert found["reclaim_clear1"].definition == "p:mmtwin/reclaim_clear1 balance_pgdat+18 zone=%r14:x64"
    assert where["unboost0"] == "balance_pgdat+13"
    assert "h0=-960(%di)" in found["rotate0"].definition
    assert "h10=-80(%di)" in found["rotate1"].definition
    assert found["move_block"].filter.startswith("ra < 0xffffffff81")


def test_no_probe_is_one_that_runs_with_interrupts_on() -> None:
    """Neither a return probe nor one on ftrace's own bytes at a function's start."""
    for probe in probes(kernel(), LAYOUT):
        kind, function, offset = probe.definition[0], *probe.definition.split()[1].split("+")
        assert kind == "p"
        code = kernel()
        assert int(offset) >= code.entry(function) or not int(offset)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"get_page_from_freelist": [NOP5]}, "unlocks 0 per-CPU lists"),
        ({"free_unref_page": [NOP5], "free_unref_page_list": [NOP5]}, "free_unref_page_commit or __free_one_page inlined"),
        ({"drain_pages_zone": None}, "no function drain_pages_zone"),
        ({"setup_per_zone_wmarks": None}, "no function setup_per_zone_wmarks"),
    ],
)
def test_a_kernel_that_cannot_be_recorded_says_why(change: dict[str, list[bytes | tuple[str, str]] | None], says: str) -> None:
    with pytest.raises(CaptureError, match=says):
        probes(kernel(**change), LAYOUT)


def test_entry() -> None:
    code = Code(plain=[b"\x90"], nop=[NOP5, b"\x90"], both=[ENDBR64, NOP5], call=[("call", "__fentry__")], __fentry__=[b"\x90"])
    assert [code.entry(name) for name in ("plain", "nop", "both", "call")] == [0, 5, 9, 5]


def test_callers_and_jumps() -> None:
    code = Code(a=[b"\xe8\xe8", ("call", "t"), ("jump", "t"), ("call", "t")], b=[("call", "t")], t=[b"\x90"])
    assert list(code.jumps("a", "t")) == [2, 12]
    assert list(code.jumps("a", "t", JUMP)) == [7]
    assert list(code.callers("t")) == [("a", 2), ("a", 12), ("b", 0)]
    assert list(code.callers("absent")) == list(code.jumps("absent", "t")) == []
