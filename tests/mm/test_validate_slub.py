"""Every invariant of SLUB is broken once, and must be named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmtwin.errors import InvariantError
from mmtwin.mm.slab_tables import ALLOCATED, END, MAX_CACHES, SLAB_DISCARDED
from mmtwin.mm.tables import PG_ALLOCATED, PG_LRU, PG_SLAB
from mmtwin.mm.validate_slub import validate_slub
from mmtwin.recording import slab_state
from mmtwin.recording.model import Recording
from mmtwin.recording.state import restore
from tests.slub_machine import SlubMachine

Break = Callable[[SlubMachine], None]


@pytest.fixture
def machine() -> SlubMachine:
    """Slabs in every place: CPU slabs of two CPUs, both kinds of partial lists, full ones, free rows; one cache with a permutation, one with debugging."""
    made = SlubMachine(cpus=2, caches=[("c512", 512, 0, 0), ("debug", 700, 0, 0x100)], kmalloc=False)
    c = made["c512"]
    per_slab = int(made.slub.cache[c]["objects"])
    held = [made.alloc(c) for _ in range(8 * per_slab)]
    made.free_bulk([made.alloc(c, 1) for _ in range(9)], 1)
    made.free_bulk(held[6 * per_slab : 7 * per_slab], 1)  # an empty slab on CPU 1's partial list
    more = [made.alloc(c) for _ in range(3 * per_slab)]
    for packed in more[per_slab:]:
        made.free(packed, 1)
    for i in range(4):
        made.free(held[i * per_slab])
    made.flush(c, 0)  # four slabs to the node's list
    made.free(held[4 * per_slab])
    debug = [made.alloc(made["debug"]) for _ in range(80)]
    for packed in debug[:65]:
        made.free(packed)
    made.shrink(made["debug"])
    made.validate()
    assert made.cpu_partial(c, 1) and made.partial(c) and made.partial(made["debug"])
    assert (made.slub.free_rows != END).any()
    return made


def node_slab(m: SlubMachine) -> int:
    """Some slab on the node's partial list that also has allocated objects."""
    return next(r for r in m.partial(0) if m.slub.slab[r]["inuse"])


def cpu_slab(m: SlubMachine) -> int:
    return int(m.slub.cpu["slab"][m.slub.cpu["slab"] != END][0])


def full_slab(m: SlubMachine) -> int:
    slab = m.slub.slab
    placed = {int(k["slab"]) for k in m.slub.cpu}
    return next(
        r
        for r in range(MAX_CACHES, int(m.slub.config[0]["slabs"]))
        if slab[r]["state"] == 1 and not slab[r]["frozen"] and slab[r]["freelist"] == END and r not in placed
    )


def free_object(m: SlubMachine) -> tuple[int, int]:
    """A row and the head of its free list."""
    row = node_slab(m)
    return row, int(m.slub.slab[row]["freelist"])


def at(m: SlubMachine, row: int, slot: int) -> int:
    return int(m.slub.slab[row]["slots"]) + slot


def cache_size(m: SlubMachine) -> None:
    m.slub.cache[0]["objects"] = 100


def cache_order(m: SlubMachine) -> None:
    m.slub.cache[0]["order"] = 11


def cache_live(m: SlubMachine) -> None:
    m.slub.cache[7]["live"] = 1


def dead_cache(m: SlubMachine) -> None:
    m.slub.cache[1]["live"] = 0


def permutation(m: SlubMachine) -> None:
    m.slub = m.slub._replace(random=m.slub.slab["order"][:64].astype("i4"))
    m.slub.cache[0]["random_seq"] = 0


def permutation_beyond(m: SlubMachine) -> None:
    m.slub.cache[0]["random_seq"] = 5


def slab_state_number(m: SlubMachine) -> None:
    m.slub.slab[node_slab(m)]["state"] = 3


def used_head(m: SlubMachine) -> None:
    m.slub.slab[3]["state"] = 1


def slab_order(m: SlubMachine) -> None:
    m.slub.slab[node_slab(m)]["order"] = 5


def slab_objects(m: SlubMachine) -> None:
    m.slub.slab[node_slab(m)]["objects"] -= 1


def slab_cache(m: SlubMachine) -> None:
    m.slub.slab[node_slab(m)]["cache"] = 9


def slab_pfn(m: SlubMachine) -> None:
    m.slub.slab[node_slab(m)]["pfn"] = 1 << 30


def lost_row(m: SlubMachine) -> None:
    k = int((m.slub.free_rows != END).argmax())
    m.slub.free_rows[k] = END


def row_twice(m: SlubMachine) -> None:
    row = int(m.slub.free_rows[(m.slub.free_rows != END).argmax()])
    m.slub.slab[row]["next"] = row


def used_row_free(m: SlubMachine) -> None:
    m.slub.free_rows[0] = node_slab(m)


def slots_twice(m: SlubMachine) -> None:
    m.slub.slab[node_slab(m)]["slots"] = m.slub.slab[cpu_slab(m)]["slots"]


def lost_slots(m: SlubMachine) -> None:
    m.slub.config["slots"] += 1


def lost_mark(m: SlubMachine) -> None:
    m.pages.page[int(m.slub.slab[node_slab(m)]["pfn"])]["flags"] = PG_ALLOCATED


def wrong_mark(m: SlubMachine) -> None:
    m.pages.page[int(m.slub.slab[node_slab(m)]["pfn"])]["next"] += 1


def stray_mark(m: SlubMachine) -> None:
    m.pages.page[9]["flags"] = PG_SLAB


def free_mark(m: SlubMachine) -> None:
    m.pages.page[int(m.slub.slab[node_slab(m)]["pfn"])]["flags"] |= 1


def no_block(m: SlubMachine) -> None:
    m.pages.page[int(m.slub.slab[node_slab(m)]["pfn"])]["flags"] = PG_SLAB | PG_LRU


def block_order(m: SlubMachine) -> None:
    m.pages.page[int(m.slub.slab[node_slab(m)]["pfn"])]["order"] += 1


def node_next(m: SlubMachine) -> None:
    m.slub.slab[node_slab(m)]["next"] = cpu_slab(m)


def node_prev(m: SlubMachine) -> None:
    m.slub.slab[m.partial(0)[0]]["prev"] = m.partial(0)[-1] if len(m.partial(0)) > 1 else 1


def node_outside(m: SlubMachine) -> None:
    m.slub.slab[node_slab(m)]["next"] = 1 << 20


def ring_without_head(m: SlubMachine) -> None:
    row = node_slab(m)
    before, after = (int(m.slub.slab[row][c]) for c in ("prev", "next"))
    m.slub.slab[before]["next"], m.slub.slab[after]["prev"] = after, before
    m.slub.slab[row]["next"] = m.slub.slab[row]["prev"] = row


def other_cache(m: SlubMachine) -> None:
    m.slub.slab[[0, 1]] = m.slub.slab[[1, 0]]
    for c in (0, 1):
        rows = [r for r in range(MAX_CACHES, int(m.slub.config[0]["slabs"])) if int(m.slub.slab[r]["on_list"]) == 1 and int(m.slub.slab[r]["cache"]) == 1 - c]
        for r in rows:
            for link in ("next", "prev"):
                if int(m.slub.slab[r][link]) == 1 - c:
                    m.slub.slab[r][link] = c


def nr_partial(m: SlubMachine) -> None:
    m.slub.cache[0]["nr_partial"] += 1


def listed_and_discarded(m: SlubMachine) -> None:
    m.slub.slab[node_slab(m)]["state"] = SLAB_DISCARDED


def debug_cpu_slab(m: SlubMachine) -> None:
    m.slub.cpu[2]["slab"] = m.partial(1)[0]


def cpu_slab_unused(m: SlubMachine) -> None:
    m.slub.cpu[0]["slab"] = int(m.slub.free_rows[m.slub.free_rows != END][0])


def freelist_without_slab(m: SlubMachine) -> None:
    m.slub.cpu[1]["freelist"] = 0
    m.slub.cpu[1]["slab"] = END


def cpu_freelist_beyond(m: SlubMachine) -> None:
    m.slub.cpu[int((m.slub.cpu["slab"] != END).argmax())]["freelist"] = 99


def two_places(m: SlubMachine) -> None:
    m.slub.cpu[0]["slab"] = node_slab(m)
    m.slub.cpu[0]["freelist"] = END


def partial_twice(m: SlubMachine) -> None:
    m.slub.cpu[0]["partial"] = m.slub.cpu[1]["partial"] = m.cpu_partial(0, 1)[0]


def partial_ring(m: SlubMachine) -> None:
    first = m.cpu_partial(0, 1)[0]
    m.slub.slab[first]["next"] = first
    m.slub.slab[first]["slabs"] += 1


def partial_count(m: SlubMachine) -> None:
    m.slub.slab[m.cpu_partial(0, 1)[0]]["slabs"] += 1


def partial_next(m: SlubMachine) -> None:
    m.slub.slab[m.cpu_partial(0, 1)[-1]]["next"] = 3


def not_frozen(m: SlubMachine) -> None:
    m.slub.slab[cpu_slab(m)]["frozen"] = 0


def frozen(m: SlubMachine) -> None:
    m.slub.slab[node_slab(m)]["frozen"] = 1


def frozen_nowhere(m: SlubMachine) -> None:
    m.slub.slab[full_slab(m)]["frozen"] = 1


def full_on_list(m: SlubMachine) -> None:
    m.slub.slab[node_slab(m)]["freelist"] = END


def free_but_nowhere(m: SlubMachine) -> None:
    m.slub.slab[full_slab(m)]["freelist"] = 0


def next_beyond(m: SlubMachine) -> None:
    m.slub.slot[at(m, *free_object(m))] = 99


def next_allocated(m: SlubMachine) -> None:
    row, slot = free_object(m)
    first = int(m.slub.slab[row]["slots"])
    used = next(i for i in range(int(m.slub.slab[row]["objects"])) if m.slub.slot[first + i] == ALLOCATED)
    m.slub.slot[first + slot] = used


def head_allocated(m: SlubMachine) -> None:
    m.slub.slot[at(m, *free_object(m))] = ALLOCATED


def twice_on_a_list(m: SlubMachine) -> None:
    row, slot = free_object(m)
    m.slub.slot[at(m, row, slot)] = slot


def on_no_list(m: SlubMachine) -> None:
    m.slub.slot[at(m, full_slab(m), 2)] = END


def list_ring(m: SlubMachine) -> None:
    row = full_slab(m)
    m.slub.slot[at(m, row, 2)], m.slub.slot[at(m, row, 3)] = 3, 2


def inuse(m: SlubMachine) -> None:
    m.slub.slab[node_slab(m)]["inuse"] -= 1


def cpu_slab_inuse(m: SlubMachine) -> None:
    m.slub.slab[cpu_slab(m)]["inuse"] -= 1


def discarded_in_use(m: SlubMachine) -> None:
    m.slub.slab[full_slab(m)]["state"] = SLAB_DISCARDED


def nr_slabs(m: SlubMachine) -> None:
    m.slub.cache[0]["nr_slabs"] += 1


def total_objects(m: SlubMachine) -> None:
    m.slub.cache[0]["total_objects"] -= 1


def pages(m: SlubMachine) -> None:
    m.slub.config["pages"] += 1


def kmalloc_cache(m: SlubMachine) -> None:
    m.slub.kmalloc[5] = 2


BREAKS = [
    (cache_size, r"cache\[0\]: objects is 100, size is 512, order is \d"),
    (cache_order, r"cache\[0\]: order is 11"),
    (cache_live, r"cache\[7\] is marked 1; 2 rows"),
    (dead_cache, r"cache\[1\] is not in use but has \d+ slabs"),
    (permutation, r"cache\[0\]: its permutation holds 0 \d+ times"),
    (permutation_beyond, r"cache\[0\]: its permutation of \d+ begins at 5 of 0"),
    (slab_state_number, r"slab\[\d+\]\.state is 3"),
    (used_head, r"slab\[3\]\.state is 1; expected 0, it is a list head"),
    (slab_order, r"slab\[\d+\]\.order is 5; neither of its cache's orders|pfn is"),
    (slab_objects, r"slab\[\d+\]\.objects is"),
    (slab_cache, r"slab\[\d+\]\.cache is 9; there are 2"),
    (slab_pfn, r"slab\[\d+\]\.pfn is 1073741824"),
    (lost_row, r"free_rows: \d+ rows wait to be used again, but \d+ are free"),
    (row_twice, r"free_rows\[\d+\]: slab\[\d+\] .* twice"),
    (used_row_free, r"free_rows\[0\]: slab\[\d+\] .* no row that is free"),
    (slots_twice, r"slot \d+ of \d+ belongs to (two rows|no row)"),
    (lost_slots, r"slot \d+ of \d+ belongs to no row"),
    (lost_mark, r"page\[\d+\] is of slab\[\d+\] but has flags 4, without 64"),
    (wrong_mark, r"page\[\d+\] is of slab\[\d+\] but is marked as slab\[\d+\]'s"),
    (stray_mark, r"page\[9\] is marked as slab\[\d+\]'s"),
    (free_mark, r"page\[\d+\] is of slab\[\d+\] but has flags \d+: it is free"),
    (no_block, r"page\[\d+\] is the first page of slab\[\d+\] but has flags 72"),
    (block_order, r"page\[\d+\] has order \d; slab\[\d+\] has order"),
    (node_next, r"slab\[\d+\]\.next is \d+, which is neither marked"),
    (node_prev, r"slab\[\d+\]\.(prev|next) is \d+, but slab"),
    (node_outside, r"slab\[\d+\]\.next is 1048576, outside"),
    (ring_without_head, r"slab\[\d+\] is on no list"),
    (other_cache, r"slab\[\d+\] of cache \d is on the partial list of cache \d"),
    (nr_partial, r"cache\[0\]\.nr_partial is \d+, its list holds"),
    (listed_and_discarded, r"slab\[\d+\] is discarded but on"),
    (debug_cpu_slab, r"cache 1, CPU 0: slab is \d+; a cache with debugging"),
    (cpu_slab_unused, r"cache 0, CPU 0: slab is \d+, which is no slab with pages"),
    (freelist_without_slab, r"cache 0, CPU 1: freelist is 0 without a CPU slab"),
    (cpu_freelist_beyond, r"freelist is 99; slab\[\d+\] has"),
    (two_places, r"slab\[\d+\] is CPU 0's slab of cache 0 and also on the node's partial list"),
    (partial_twice, r"slab\[\d+\] is twice on a CPU's partial list"),
    (partial_ring, r"slab\[\d+\]\.slabs is \d+|and also on a CPU's partial list"),
    (partial_count, r"slab\[\d+\]\.slabs is \d+ on the partial list of cache 0, CPU 1; expected"),
    (partial_next, r"slab\[\d+\]\.next is 3 on a CPU's partial list"),
    (not_frozen, r"slab\[\d+\] of cache 0 is a CPU's slab but not frozen"),
    (frozen, r"slab\[\d+\] of cache 0 is on the node's partial list but frozen"),
    (frozen_nowhere, r"slab\[\d+\] of cache \d is on no list but frozen"),
    (full_on_list, r"slab\[\d+\] of cache 0 is on the node's partial list but has no free object"),
    (free_but_nowhere, r"slab\[\d+\] of cache \d is on no list but object 0 of it is free"),
    (next_beyond, r"object \d+ of slab\[\d+\] \(cache 0\): the next free object is 99"),
    (next_allocated, r"object \d+ of slab\[\d+\] \(cache 0\): the next free object is \d+, which is allocated"),
    (head_allocated, r"object \d+ of slab\[\d+\] \(cache 0\) begins a free list but is allocated"),
    (twice_on_a_list, r"object \d+ of slab\[\d+\] \(cache 0\) is on 2 free lists"),
    (on_no_list, r"object 2 of slab\[\d+\] .* is free but on no list"),
    (list_ring, r"object \d of slab\[\d+\] .* never ends"),
    (inuse, r"slab\[\d+\] of cache 0: inuse is \d+; of \d+ objects"),
    (cpu_slab_inuse, r"slab\[\d+\] of cache 0: inuse is \d+; of \d+ objects"),
    (discarded_in_use, r"slab\[\d+\] of cache \d is discarded but \d+ of its objects are allocated"),
    (nr_slabs, r"cache\[0\]\.nr_slabs is \d+; there are \d+ slabs"),
    (total_objects, r"cache\[0\]\.total_objects is \d+; there are \d+ objects"),
    (pages, r"config: \d+ pages of slabs; the slabs have \d+"),
    (kmalloc_cache, r"kmalloc\[5\] is cache 2; there are 2"),
]


@pytest.mark.parametrize(("damage", "message"), BREAKS, ids=lambda value: getattr(value, "__name__", ""))
def test_names_what_is_broken(machine: SlubMachine, damage: Break, message: str) -> None:
    damage(machine)
    with pytest.raises(InvariantError, match=message) as caught:
        validate_slub(machine.slub, machine.pages)
    assert "\n" not in str(caught.value)


def test_wrong_tables(machine: SlubMachine) -> None:
    for name in ("cache", "cpu", "free_rows", "kmalloc"):
        with pytest.raises(InvariantError, match=rf"^{name} has shape"):
            validate_slub(machine.slub._replace(**{name: getattr(machine.slub, name)[:-1]}), machine.pages)
    with pytest.raises(InvariantError, match=r"rows of slabs"):
        validate_slub(machine.slub._replace(slab=machine.slub.slab[: MAX_CACHES + 1]), machine.pages)


def test_a_slab_that_a_request_holds_is_accepted_if_asked_for(machine: SlubMachine) -> None:
    """Between two sections: taken off the node's list with all its free objects, and not yet a CPU's slab."""
    from mmtwin.mm.slub import get_partial_node

    machine.slub.cache[0]["cpu_partial_slabs"] = 0
    machine.flush(0, 0)
    assert get_partial_node(machine.slub, 0, 0) >= 0
    with pytest.raises(InvariantError, match="is on no list but frozen"):
        validate_slub(machine.slub, machine.pages)
    validate_slub(machine.slub, machine.pages, allow_in_flight=True)


def test_an_empty_machine_is_valid() -> None:
    SlubMachine(kmalloc=False)


def test_real_states_are_valid(real: dict[str, Recording]) -> None:
    for recording in real.values():
        for snapshot in (recording.before, recording.after):
            if snapshot is not None and slab_state.has_slabs(snapshot):
                pages = restore(snapshot)
                slub, _ = slab_state.restore(snapshot, pages, int(pages.config[0]["nr_cpus"]))
                validate_slub(slub, pages)
