"""Finding the places to probe in mm/vmalloc.c; here a few instructions made by hand, as a compiler would choose them."""

from __future__ import annotations

import pytest

from mmtwin.errors import CaptureError
from mmtwin.recording.capture.probes import CALL, JUMP, NOP5, Symbols
from mmtwin.recording.capture.vmap_probes import VmapLayout, vmap_probes
from mmtwin.recording.convert import COLUMNS, NUMBERED
from mmtwin.recording.model import KINDS
from mmtwin.recording.vmaps import VMAP_COLUMNS

BASE = 0xFFFFFFFF81000000
VARIABLES = {name: 0xFFFFFFFF82000000 + 64 * i for i, name in enumerate(("free_vmap_area_lock", "purge_vmap_area_lock", "vmap_area_root", "vmap_lazy_nr"))}
OLD = VmapLayout(area_start=0, area_end=8, area_node=16, area_flags=-1, block_area=8, block_free=16, block_dirty=24, nodes=False)
NEW = OLD._replace(area_flags=64, nodes=True)
NOP, RET = b"\x90", b"\xc3"
SPARE = b"\x65\x48\x0f\xb1\x1d\x00\x00\x00\x00"  # cmpxchg %rbx,%gs:0(%rip)
EMPTY = b"\x4d\x89\x36"  # mov %r14,(%r14)
Piece = bytes | str | tuple[str, str]


class Code(Symbols):
    """Symbols over code that is laid out here; a word is ``lock sub %r12`` from the variable of that name."""

    def __init__(self, functions: dict[str, list[Piece]]) -> None:
        def size(piece: Piece) -> int:
            return 8 if isinstance(piece, str) else 5 if isinstance(piece, tuple) else len(piece)

        at, sizes = 0, {}
        for name, pieces in functions.items():
            sizes[name] = (at, sum(map(size, pieces)))
            at += sizes[name][1]
        text = bytearray()
        for pieces in functions.values():
            for piece in pieces:
                if isinstance(piece, tuple):
                    text += bytes([CALL if piece[0] == "call" else JUMP]) + (sizes[piece[1]][0] - len(text) - 5).to_bytes(4, "little", signed=True)
                elif isinstance(piece, str):
                    text += b"\xf0\x4c\x29\x25" + (VARIABLES[piece] - BASE - len(text) - 8).to_bytes(4, "little", signed=True)
                else:
                    text += piece
        self._functions = {name: (BASE + start, length) for name, (start, length) in sizes.items()}
        self._objects = dict(VARIABLES)
        self._start, self._text = BASE, bytes(text)


UNLOCK, INSERT, ERASE = ("call", "_raw_spin_unlock"), ("call", "insert_vmap_area"), ("call", "rb_erase")
LEAVE = ("jump", "__x86_return_thunk")


def kernel(**changes: list[Piece] | None) -> Code:
    """Both kernels' functions in miniature."""
    functions: dict[str, list[Piece] | None] = {name: [RET] for name in ("_raw_spin_unlock", "__x86_return_thunk", "rb_erase")}
    functions |= {
        "insert_vmap_area": [NOP5, RET],
        "alloc_vmap_area": [NOP5, UNLOCK, SPARE, UNLOCK, NOP, NOP, NOP, NOP, NOP, NOP, INSERT, NOP, UNLOCK, LEAVE],
        "free_vmap_area_noflush": [NOP5, ERASE, UNLOCK, INSERT, UNLOCK, RET],
        "__purge_vmap_area_lazy": [NOP5, UNLOCK, "vmap_lazy_nr", RET],
        "pcpu_get_vm_areas": [NOP5, UNLOCK, INSERT, RET],
        "vm_map_ram": [NOP5, UNLOCK, LEAVE],
        "vm_unmap_ram": [NOP5, UNLOCK, UNLOCK, RET],
        "purge_fragmented_blocks_allcpus": [NOP5, UNLOCK, RET],
        "reclaim_and_purge_vmap_areas": [NOP5, UNLOCK, RET],
        "_vm_unmap_aliases": [NOP5, UNLOCK, RET],
        "find_unlink_vmap_area": [NOP5, ERASE, RET],
        "free_vmap_block": [NOP5, ERASE, RET],
        "decay_va_pool_node": [NOP5, EMPTY, NOP, UNLOCK, *[NOP] * 6, UNLOCK, RET],
        "purge_vmap_node": [NOP5, UNLOCK, "vmap_lazy_nr", RET],
        "reclaim_list_global.part.0": [NOP5, ("jump", "_raw_spin_unlock")],
    }  # fmt: skip
    functions |= {name.replace("_dot_", "."): pieces for name, pieces in changes.items()}
    return Code({name: pieces for name, pieces in functions.items() if pieces is not None})


def probes_of(symbols: Symbols, layout: VmapLayout) -> dict[str, tuple[str, str]]:
    return {p.name: (" ".join(p.definition.split()[1:]), p.filter) for p in vmap_probes(symbols, layout)}


@pytest.mark.parametrize("layout", [OLD, NEW])
def test_every_probe_is_a_kind_with_its_columns(layout: VmapLayout) -> None:
    for name, (definition, _) in probes_of(kernel(), layout).items():
        kind = NUMBERED.sub(r"\1", name)
        assert kind in KINDS and kind in COLUMNS
        fields = {word.split("=")[0] for word in definition.split()[1:]}
        optional = {"flags", "root", "start"} if layout is OLD or kind == "vmap_busy" else set()
        assert set(VMAP_COLUMNS[kind]) - fields <= optional | ({"lock"} if layout is OLD else set()), kind


def test_places_of_6_1() -> None:
    found = probes_of(kernel(), OLD)
    free = f"lock == {VARIABLES['free_vmap_area_lock']:#x}"
    assert found["vmap_request"] == ("alloc_vmap_area+5 size=%di:s64 align=%si:s64 vstart=%dx:x64 vend=%cx:x64 gfp=%r9:x32", "")
    assert [found[f"vmap_search{i}"] for i in range(3)] == [(f"alloc_vmap_area+{at} lock=%di:x64", free) for at in (5, 19, 36)]
    assert found["vmap_offer0"] == ("alloc_vmap_area+10", "")
    assert found["vmap_busy0"] == ("alloc_vmap_area+30 start=+0(%di):x64 end=+8(%di):x64", "")
    assert found["vmap_result0"] == ("alloc_vmap_area+41 ret=%ax:x64", "")
    assert found["vmap_unlink0"] == ("free_vmap_area_noflush+5 start=-16(%di):x64 end=-8(%di):x64 root=%si:x64", f"root == {VARIABLES['vmap_area_root']:#x}")
    assert found["vmap_lazy1"] == ("free_vmap_area_noflush+20 lock=%di:x64", f"lock == {VARIABLES['purge_vmap_area_lock']:#x}")
    assert found["vmap_merge0"] == ("__purge_vmap_area_lazy+10 nr=%r12:s64", "")
    assert found["vmap_block_free1"][0] == "vm_unmap_ram+10 lock=%di:x64 start=+0(+8(%di)):x64 free=+16(%di):s64 dirty=+24(%di):s64"
    assert not any("pool" in name for name in found)


def test_places_of_6_12() -> None:
    found = probes_of(kernel(), NEW)
    others = f"lock != {VARIABLES['free_vmap_area_lock']:#x}"
    assert found["vmap_request"][0].endswith("flags=+8($stack):u64")
    assert {name: place for name, place in found.items() if "pool_take" in name} == {
        "vmap_pool_take0": ("alloc_vmap_area+5 lock=%di:x64", others),
        "vmap_pool_take1": ("alloc_vmap_area+19 lock=%di:x64", others),
    }
    assert found["vmap_pool_out0"] == ("decay_va_pool_node+9 head=%r14:x64", "")
    assert found["vmap_pool_back0"] == ("decay_va_pool_node+20 lock=%di:x64", "")
    assert found["vmap_reclaim0"] == ("reclaim_list_global.part.0+5 lock=%di:x64", "")
    assert found["vmap_unlink1"][0].startswith("free_vmap_block+5 ")
    assert found["vmap_lazy0"][0] == "free_vmap_area_noflush+15 start=+0(%di):x64 end=+8(%di):x64 flags=+64(%di):u64 root=%si:x64"
    assert "vmap_merge0" not in found


@pytest.mark.parametrize(
    ("layout", "changes", "says"),
    [
        (OLD, {"alloc_vmap_area": None}, "has no function alloc_vmap_area"),
        (OLD, {"alloc_vmap_area": [NOP5, UNLOCK, INSERT, LEAVE]}, "has no exchange of the spare area in alloc_vmap_area"),
        (OLD, {"__purge_vmap_area_lazy": [NOP5, UNLOCK, RET]}, "has no subtraction from vmap_lazy_nr"),
        (OLD, {"free_vmap_area_noflush": [NOP5, UNLOCK, RET]}, "has no call of rb_erase in free_vmap_area_noflush"),
        (NEW, {"decay_va_pool_node": [NOP5, NOP, UNLOCK, RET]}, "has no pool that is taken away in decay_va_pool_node"),
        (NEW, {"purge_vmap_node": None}, "has no function purge_vmap_node"),
    ],
)
def test_what_is_missing_is_said(layout: VmapLayout, changes: dict[str, list[Piece] | None], says: str) -> None:
    with pytest.raises(CaptureError, match=says):
        vmap_probes(kernel(**changes), layout)
