"""Finding the places to probe in the classic SLAB; the code is that of a real kernel of oracle/slab-kernel.sh (6.1.192, gcc 12)."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from mmtwin.errors import CaptureError
from mmtwin.recording.capture.probes import Symbols
from mmtwin.recording.capture.slab_probes_classic import classic_probes
from mmtwin.recording.capture.slab_snapshot_classic import ClassicLayout
from mmtwin.recording.slab_classic import CLASSIC_COLUMNS, CLASSIC_KINDS

DATA: dict[str, Any] = json.loads(gzip.decompress((Path(__file__).parents[2] / "data" / "slab-classic-code.json.gz").read_bytes()))
LAYOUT = ClassicLayout(array_touched=12, cache_cpu_cache=0, node_next_reap=104, node_free_touched=112)


class Code(Symbols):
    """Symbols over the stored functions."""

    def __init__(self, data: dict[str, Any]) -> None:
        code = {name: (address, bytes.fromhex(text)) for name, (address, text) in data["functions"].items()}
        self._functions = {name: (address, len(text)) for name, (address, text) in code.items()} | {"__fentry__": (data["fentry"], 1)}
        self._objects = {"this_cpu_off": data["this_cpu_off"]} if "this_cpu_off" in data else {}
        self._start = min(address for address, _ in code.values())
        image = bytearray(max(address + len(text) for address, text in code.values()) - self._start)
        for address, text in code.values():
            image[address - self._start : address - self._start + len(text)] = text
        self._text = bytes(image)


def test_places_of_a_real_kernel() -> None:
    found = {p.name: p.definition.split(maxsplit=1)[1] for p in classic_probes(Code(DATA), LAYOUT)}
    assert found == {
        "cslab_alloc0": "kmem_cache_alloc+208 ptr=%ax:x64",
        "cslab_alloc1": "kmem_cache_alloc_lru+208 ptr=%ax:x64",
        "cslab_alloc2": "kmem_cache_alloc_node+247 ptr=%ax:x64",
        "cslab_alloc3": "__kmem_cache_alloc_node+200 ptr=%ax:x64",
        "cslab_bulk_alloc0": "kmem_cache_alloc_bulk+172 ptr=%ax:x64",
        "cslab_free": "___cache_free+5 ptr=%si:x64 cache=%di:x64",
        "cslab_grow_end": "cache_grow_end+5 ptr=%di:x64 page=%si:x64",
        "cslab_node_alloc": "____cache_alloc_node+5 ptr=%di:x64",
        "cslab_drain": "drain_array_locked+5 ptr=%si:x64 all=%cx:u8",
        "cslab_do_drain": "do_drain+5 ptr=%di:x64",
        "cslab_tune": "do_tune_cpucache+5 ptr=%di:x64 limit=%si:s32 batchcount=%dx:s32 shared=%cx:s32",
        "cslab_create": "__kmem_cache_create+5 ptr=%di:x64",
        "cslab_untouch": "drain_array+45 ptr=%bx:x64",
        "cslab_node_reap": "cache_reap+236 ptr=%bx:x64 next=%ax:x64",
        "cslab_free_untouch": "cache_reap+82 ptr=%bx:x64",
        "cslab_drain_free": "drain_freelist.isra.0+81 ptr=%r15:x64",
    }
    assert {name.rstrip("0123456789") for name in found} == set(CLASSIC_KINDS)
    for name, text in found.items():  # every argument has its column
        fields = {word.split("=")[0] for word in text.split()[1:]}
        assert fields == set(CLASSIC_COLUMNS[name.rstrip("0123456789")])


@pytest.mark.parametrize("function", ["___cache_free", "drain_array", "cache_reap", "kmem_cache_alloc", "drain_array_locked", "do_drain"])
def test_a_function_is_missing(function: str) -> None:
    data = copy.deepcopy(DATA)
    del data["functions"][function]
    with pytest.raises(CaptureError, match="this kernel has"):
        classic_probes(Code(data), LAYOUT)


def test_a_place_is_missing() -> None:
    for layout, what in (
        (LAYOUT._replace(array_touched=20), "clears an array's mark"),
        (LAYOUT._replace(node_next_reap=200), "sets the next turn"),
        (LAYOUT._replace(node_free_touched=200), "clears the node's mark"),
        (LAYOUT._replace(cache_cpu_cache=40), "takes no object"),
    ):
        with pytest.raises(CaptureError, match=what):
            classic_probes(Code(DATA), layout)
    data = {k: v for k, v in DATA.items() if k != "this_cpu_off"}
    with pytest.raises(CaptureError, match="this_cpu_off"):
        classic_probes(Code(data), LAYOUT)
