"""Snapshots of virtual areas as tables, and back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmtwin.errors import RecordingError
from mmtwin.mm.validate_vmalloc import validate_vmalloc
from mmtwin.recording import vmap_state
from mmtwin.recording.model import Recording


@pytest.fixture(params=["areas-256m-1cpu", "areas-6.12-4cpu"])
def some(request: pytest.FixtureRequest, areas: dict[str, Recording]) -> Recording:
    return areas[request.param]


def test_restored_tables_are_the_snapshot(areas: dict[str, Recording]) -> None:
    for recording in areas.values():
        for snapshot in (recording.before, recording.after):
            assert snapshot is not None and snapshot.vmaps is not None
            state = vmap_state.restore(snapshot, recording.provenance)
            validate_vmalloc(state)
            trees = vmap_state.snapshot_trees(snapshot.vmaps)
            assert vmap_state.tree_areas(state, 0, True) == trees["free", 0]
            config = state.config[0]
            for node in range(int(config["nr_nodes"])):
                assert vmap_state.tree_areas(state, 1 + node, False) == trees.get(("busy", node), [])
                assert vmap_state.tree_areas(state, int(config["lazy_tree"]) + node, False) == trees.get(("lazy", node), [])
                if int(config["version"]) > 609:
                    assert vmap_state.pool_areas(state, node) == vmap_state.snapshot_pools(snapshot.vmaps, node)
            assert vmap_state.queued_blocks(state) == vmap_state.snapshot_blocks(snapshot.vmaps)
            live = state.vm[1 : int(config["vms"])]
            assert (live["live"] == 1).all() and sorted(live["object"].tolist()) == sorted(snapshot.vmaps["vms"]["object"].to_list())


def test_what_cannot_be_restored(some: Recording) -> None:
    assert some.before is not None
    with pytest.raises(RecordingError, match="--vmap adds them"):
        vmap_state.restore(replace(some.before, vmaps=None), some.provenance)
    other = "6.12.1" if some.provenance.kernel_release.startswith("6.1.") else "6.1.0"
    if some.provenance.cpus > 1:
        with pytest.raises(RecordingError, match="vmap nodes"):
            vmap_state.restore(some.before, replace(some.provenance, kernel_release=other))
    assert [vmap_state.version_of(text) for text in ("6.1.0-56-cloud-amd64", "6.12.117+deb12", "unknown", "99999.99999")] == [601, 612, 601, 601]
