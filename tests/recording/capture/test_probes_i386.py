"""Where the probes go in a 32-bit kernel: the code is that of Debian's 6.1.0-50-686 (its functions' bytes, and the offsets in its structs)."""

from __future__ import annotations

import copy
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from mmtwin.errors import CaptureError
from mmtwin.recording.capture.probes import I386, X86_64, SlabLayout, Symbols, ZoneLayout, probes
from mmtwin.recording.capture.slab_probes import Code, slab_probes
from mmtwin.recording.capture.vmap_probes import VmapLayout, vmap_probes
from mmtwin.recording.convert import COLUMNS

DATA: dict[str, Any] = json.loads(gzip.decompress((Path(__file__).parents[2] / "data" / "i386-code.json.gz").read_bytes()))
ZONE, SLAB, VMAP = ZoneLayout(*DATA["zone"]), SlabLayout(*DATA["slab"]), VmapLayout(*DATA["vmap"])


class Stored(Symbols):
    """Symbols over the stored functions; of those that are only called there is no code."""

    abi = I386

    def __init__(self, data: dict[str, Any]) -> None:
        functions = {name: (address, size, bytes.fromhex(text)) for name, (address, size, text) in data["functions"].items()}
        self._functions = {name: (address, size) for name, (address, size, _) in functions.items()}
        self._objects = dict(data["objects"])
        self._start = min(address for address, _, _ in functions.values())
        image = bytearray(max(address + len(text) for address, _, text in functions.values()) - self._start)
        for address, _, text in functions.values():
            image[address - self._start : address - self._start + len(text)] = text
        self._text = bytes(image)


def without(function: str) -> Stored:
    data = copy.deepcopy(DATA)
    del data["functions"][function]
    return Stored(data)


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    symbols = Stored(DATA)
    every = [*probes(symbols, ZONE), *slab_probes(symbols, SLAB), *vmap_probes(symbols, VMAP)]
    assert len({p.name for p in every}) == len(every)
    return {p.name: p.definition.split(maxsplit=1)[1] for p in every}


def test_places_of_a_real_kernel(found: dict[str, str]) -> None:
    """One of each way to get at an argument: the first three are in registers, the others on the stack, above the return address once the call is made."""
    expected = {
        "walk": "get_page_from_freelist+5 gfp=%ax:x32 order=%dx:s32 alloc_flags=%cx:x32",
        "pcp_alloc": "get_page_from_freelist+432",
        "pcp_free0": "free_unref_page+240 page=%cx:x32 migratetype=$stack0:s32 order=$stack1:s32",
        "buddy_free1": "__free_pages_ok+413 pfn=%dx:x32 order=$stack0:s32 migratetype=$stack1:s32 fpi=$stack2:s32",
        "bulk": "__alloc_pages_bulk+5 gfp=%ax:x32 nr=$stack1:s32",
        "bulk_ret1": "__alloc_pages_bulk+899 got=%ax:s32",
        "fold": "refresh_cpu_vm_stats.constprop.0+5",
        "reclaim_set0": "balance_pgdat+287 zone=%ax:x32",
        "slab_take3": "kmem_cache_alloc_node+200 ptr=%si:x32",
        "slab_give0": "__kmem_cache_free+328 ptr=%di:x32 head=%bx:x32",
        "slab_cpu_partial0": "___slab_alloc+337",
        "slab_load1": "___slab_alloc+2340",
        "slab_node_partial0": "___slab_alloc+563",
        "slab_cmpxchg0": "__slab_free+164 page=%si:x32 head=%bx:x32",
        "slab_bulk_got0": "kmem_cache_alloc_bulk+419 n=$stack0:s32 p0=+0($stack1):x32[64]",
        "vmap_request": "alloc_vmap_area+5 size=%ax:s32 align=%dx:s32 vstart=%cx:x32 vend=$stack1:x32 gfp=$stack3:x32",
        "vmap_offer0": "alloc_vmap_area+1049",
        "vmap_merge0": "__purge_vmap_area_lazy+571 nr=%ax:s32",
    }
    assert expected.items() <= found.items()
    assert found["wmarks"].startswith("setup_per_zone_wmarks+5 min_free_kbytes=@0xc1")  # by address: there is no CONFIG_KALLSYMS_ALL


def test_every_argument_has_its_column_and_32_bits(found: dict[str, str]) -> None:
    for name, text in found.items():
        kind = name if name in COLUMNS else name.rstrip("0123456789")
        fields = {word.split("=")[0] for word in text.split()[1:]}
        assert fields <= {*COLUMNS[kind], "ra", "lock", "root", "objects", "seq", *(f for f in fields if f[0] in "pr" and f[1:].isdigit())}, name
        assert not re.search(r":[xsu]64", text), (name, text)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("get_page_from_freelist", "unlocks 0 per-CPU lists"),
        ("free_unref_page_commit", "inlined"),
        ("refresh_cpu_vm_stats.constprop.0", "no function refresh_cpu_vm_stats"),
    ],
)
def test_a_kernel_that_cannot_be_recorded_says_why(function: str, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        probes(without(function), ZONE)


def test_a_slab_allocator_that_cannot_be_recorded_says_why() -> None:
    with pytest.raises(CaptureError, match="_raw_spin_lock_irqsave"):
        slab_probes(without("_raw_spin_lock_irqsave"), SLAB)
    with pytest.raises(CaptureError, match="cmpxchg16b of a CPU's free list in an allocation"):
        data = copy.deepcopy(DATA)
        for name in [n for n in data["functions"] if n.startswith(("kmem_cache_alloc", "__kmem_cache_alloc"))]:
            if name != "kmem_cache_alloc_bulk":
                data["functions"][name][2] = "c3"
        slab_probes(Stored(data), SLAB)


def test_a_missing_variable_is_named() -> None:
    data = copy.deepcopy(DATA)
    del data["objects"]["min_free_kbytes"]
    with pytest.raises(CaptureError, match="no variable min_free_kbytes"):
        probes(Stored(data), ZONE)


def test_arguments() -> None:
    assert [I386.argument(i) for i in (0, 1, 2, 3, 4)] == ["%ax", "%dx", "%cx", "$stack1", "$stack2"]
    assert [I386.argument(i, at_call=True) for i in (2, 3, 4)] == ["%cx", "$stack0", "$stack1"]
    assert [X86_64.argument(i) for i in (0, 5, 6)] == ["%di", "%r9", "$stack1"]
    assert (I386.pointer, I386.long, I386.ulong, X86_64.pointer) == ("x32", "s32", "u32", "x64")
    code = Code(Stored(DATA), "__isolate_free_page")
    assert code.number(0) == len(code.instructions) and code.number(code.start) == 0
