"""Tables and events of virtual areas: what no kernel can have written is refused, and named; the file keeps them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mmtwin.errors import RecordingError
from mmtwin.mm.validate_vmalloc import validate_vmalloc
from mmtwin.mm.vmap_tables import MAX_VA_SIZE_PAGES
from mmtwin.recording import load, store, vmap_state, vmaps
from mmtwin.recording.model import KINDS, Recording, Snapshot
from mmtwin.recording.validate import check
from mmtwin.recording.vmaps import NO_ROW, VMAP_KINDS, VMAP_TABLES, check_vmaps, vmap_column
from mmtwin.replay.vmap_check import replay_vmaps


@pytest.fixture(params=["areas-256m-1cpu", "areas-6.12-4cpu"])
def some(request: pytest.FixtureRequest, areas: dict[str, Recording]) -> Recording:
    return areas[request.param]


def test_names_agree_with_the_store_and_the_model() -> None:
    assert tuple(store.VMAP_PREFIX + name for name in VMAP_TABLES) == store.VMAP_TABLES
    assert set(VMAP_KINDS) <= set(KINDS)
    assert vmaps.MAX_POOLS == MAX_VA_SIZE_PAGES


def test_a_file_keeps_them(some: Recording, tmp_path: Path) -> None:
    store.save(some, tmp_path / "x.mmrec")
    again = store.load(tmp_path / "x.mmrec")
    assert again.before and again.after and some.before and some.after and again.after.vmaps and some.after.vmaps
    assert all(again.after.vmaps[name].equals(table) for name, table in some.after.vmaps.items())
    assert again.before.scalars == some.before.scalars and again.before.has_pages == some.before.has_pages
    assert again.provenance.modules.keys() == {"vmalloc_probe"}


def test_a_machine_needs_the_page_allocator(areas: dict[str, Recording]) -> None:
    with pytest.raises(RecordingError, match="virtual areas only"):
        load.machine(areas["areas-6.12-1cpu"])


def changed(snapshot: Snapshot, table: str, column: str, row: int, value: Any) -> Snapshot:
    assert snapshot.vmaps is not None
    values = snapshot.vmaps[table][column].to_list()
    values[row] = value
    return replace(snapshot, vmaps={**snapshot.vmaps, table: snapshot.vmaps[table].with_columns(pl.Series(column, values, dtype=VMAP_TABLES[table][column]))})


def refused(recording: Recording, snapshot: Snapshot) -> str:
    with pytest.raises(RecordingError) as error:
        check(replace(recording, before=snapshot, after=None))
    return str(error.value)


def row_where(recording: Recording, tree: str, at: int = 0) -> int:
    assert recording.before is not None and recording.before.vmaps is not None
    return int(recording.before.vmaps["areas"].with_row_index().filter(pl.col("tree") == tree)["index"][at])


@pytest.mark.parametrize(
    ("tree", "column", "value", "says"),
    [
        ("busy", "tree", "elsewhere", "tree: expected one of free, busy"),
        ("busy", "node", 200, "node: there is no such node"),
        ("busy", "vm", 1 << 20, "vm: there is no such row"),
        ("busy", "flags", -1, "flags: impossible"),
        ("busy", "color", 2, "color: expected 0 or 1"),
        ("busy", "left", 1 << 20, "left: there is no such row"),
        ("free", "va_end", 0, "va_end: not behind va_start"),
        ("free", "subtree_max_size", 4096, "subtree_max_size: not the largest"),
        ("free", "position", 7, "position: not the order of the tree"),
    ],
)
def test_an_impossible_area_is_named(some: Recording, tree: str, column: str, value: Any, says: str) -> None:
    assert some.before is not None
    message = refused(some, changed(some.before, "areas", column, row_where(some, tree), value))
    assert message.startswith("before.areas") and says in message


def test_broken_trees_are_refused(some: Recording) -> None:
    """No link or colour of a tree can be changed without being noticed."""
    assert some.before is not None and some.before.vmaps is not None
    table = some.before.vmaps["areas"]
    rng = np.random.default_rng(3)
    rows = table.with_row_index().filter(pl.col("tree").is_in(["free", "busy"]))["index"].to_list()
    for row in rng.choice(rows, 25).tolist():
        for column in ("left", "right", "parent", "color", "va_start"):
            old = int(table[column][row])
            new = 1 - old if column == "color" else int(table["va_end"][row]) if column == "va_start" else int(rng.choice(rows))
            if new != old:
                refused(some, changed(some.before, "areas", column, row, new))


def test_scalars_and_tables_must_be_there(some: Recording) -> None:
    before = some.before
    assert before is not None and before.vmaps is not None
    assert "no scalar vmap_lazy_nr" in refused(some, replace(before, scalars={k: v for k, v in before.scalars.items() if k != "vmap_lazy_nr"}))
    assert "tables" in refused(some, replace(before, vmaps={k: v for k, v in before.vmaps.items() if k != "cpus"}))
    for name, value in (("nr_vmap_nodes", 0), ("nr_vmap_nodes", 1 << 20), ("vmap_zone_size", 3), ("vmap_bbmap_bits", 5000), ("vmap_lazy_nr", -1)):
        assert str(value) in refused(some, replace(before, scalars=before.scalars | {name: value})) or name in refused(
            some, replace(before, scalars=before.scalars | {name: value})
        )
    assert "possible_cpus" in refused(some, replace(before, scalars=before.scalars | {"possible_cpus": 0}))
    page = before.vmaps["page_tables"]
    assert len(page) and "pfn: outside the machine" in refused(some, changed(before, "page_tables", "pfn", 0, 1 << 40))
    assert "level" in refused(some, changed(before, "page_tables", "level", 0, 1))


def test_blocks_are_checked(areas: dict[str, Recording]) -> None:
    recording = areas["areas-6.12-4cpu"]
    after = recording.after
    assert after is not None and after.vmaps is not None and len(after.vmaps["blocks"]) > 1
    for column, value in (("free", 257), ("dirty", -1), ("cpu", 9), ("va_start", 4096), ("position", 5)):
        if column != "position" or after.vmaps["blocks"]["cpu"][0] >= 0:
            assert "after.blocks" in refused(recording, changed(after, "blocks", column, 0, value)).replace("before.", "after.")


def test_without_page_allocator_the_rest_is_empty(areas: dict[str, Recording]) -> None:
    recording, other = areas["areas-6.12-1cpu"], areas["areas-256m-1cpu"]
    assert recording.before is not None and other.before is not None
    assert "but no zones" in refused(recording, replace(recording.before, pages=np.zeros(1, np.uint8)))
    assert "no rows" in refused(recording, replace(recording.before, vmaps=None))
    with pytest.raises(RecordingError, match="no tables of virtual areas"):
        check(replace(other, before=replace(other.before, vmaps=None), after=None))


@pytest.mark.parametrize(
    ("kind", "column", "value", "says"),
    [
        ("vmap_busy", "call_site", 1, "is not behind its begin"),
        ("vmap_busy", "node", 4, "there is no such vmap node or CPU"),
        ("vmap_lazy", "node", -1, "there is no such vmap node or CPU"),
        ("vmap_block_take", "node", 4, "there is no such vmap node or CPU"),
        ("vmap_request", "bytes_req", 0, "no size or alignment"),
        ("vmap_request", "bytes_alloc", 3, "no power of two"),
        ("vmap_ram", "arg", -1, "no number of pages"),
        ("vmap_pool_out", "arg", 256, "no number of a pool"),
    ],
)
def test_an_impossible_event_is_named(areas: dict[str, Recording], kind: str, column: str, value: int, says: str) -> None:
    recording = areas["areas-6.12-4cpu"]
    at = int(np.flatnonzero((recording.events["kind"] == kind).to_numpy())[0])
    values = recording.events[column].to_list()
    values[at] = value
    with pytest.raises(RecordingError, match=says) as error:
        check(replace(recording, events=recording.events.with_columns(pl.Series(column, values, dtype=recording.events.schema[column]))))
    assert f"row {at}" in str(error.value)


def test_pointers_become_numbers() -> None:
    scalars = {
        "possible_cpus": 2, "vmap_queue_lock_0": 0xFF11000000010000, "vmap_queue_lock_1": 0xFF11000000020000, "vmap_queue_size": 40,
        "vmap_nodes_address": 0xFF11000001000000, "vmap_node_size": 0x1900, "vmap_pool_size": 24,
    }  # fmt: skip
    pointers = np.array([0xFFFFFFFF81000000, 0xFF11000000010000, 0xFF11000000020000, 0xFF11000000020010, 0xFF11000000030000], dtype=np.uint64).view(np.int64)
    assert vmap_column("vmap_lock", pointers, scalars)["node"].tolist() == [NO_ROW, 0, 1, NO_ROW, -1]
    inside = np.array([0xFF11000001000000 + 0x1900 * 3 + 24 * 7], dtype=np.uint64).view(np.int64)
    assert {name: values.tolist() for name, values in vmap_column("vmap_pool", inside, scalars).items()} == {"node": [3], "arg": [7]}
    assert vmap_column("vmap_node", inside, scalars)["node"].tolist() == [3]
    assert vmap_column("vmap_node", inside, {}) == {}


def test_random_damage_is_refused_or_harmless(some: Recording) -> None:
    """Whatever passes the checks can be restored, is sound, and replays to an end."""
    assert some.before is not None and some.before.vmaps is not None
    rng = np.random.default_rng(5)
    passed = 0
    for _ in range(60):
        snapshot = some.before
        table = str(rng.choice(["areas", "blocks", "cpus", "vms"]))
        rows = len(some.before.vmaps[table])
        if not rows:
            continue
        column = str(rng.choice([c for c in VMAP_TABLES[table] if c != "tree"]))
        value = int(rng.choice([-1, 0, 1, 2, 3, 100, 127]))
        snapshot = changed(snapshot, table, column, int(rng.integers(rows)), value)
        assert snapshot.vmaps is not None
        try:
            check_vmaps(snapshot.vmaps, snapshot.scalars, some.provenance.cpus, "before")
        except RecordingError:
            continue
        passed += 1
        validate_vmalloc(vmap_state.restore(snapshot, some.provenance), whole_space=False)
        replay_vmaps(replace(some, before=snapshot, events=some.events.head(3000)))
    assert passed
