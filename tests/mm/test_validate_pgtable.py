"""Each invariant of page tables is noticed when it breaks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for plain `pytest`, which does not put the directory there

from mmtwin.errors import InvariantError
from mmtwin.mm.pgtable_tables import table_frames
from mmtwin.mm.validate_pgtable import validate_pgtable
from tests.mmu_box import Box


def pte_row(box: Box) -> int:
    """The row of the one PTE table that was allocated."""
    return int(box.mmu.config[0]["tables"]) - 1


def set_child(box: Box) -> None:
    box.mmu.child[pte_row(box) - 1, 0] = 0


def set_twice(box: Box) -> None:
    row = pte_row(box) - 1
    box.mmu.entry[row, 5], box.mmu.child[row, 5] = box.mmu.entry[row, 0], box.mmu.child[row, 0]


def set_lost(box: Box) -> None:
    box.mmu.entry[pte_row(box) - 1, 0] = 0


def set_level(box: Box) -> None:
    box.mmu.table[pte_row(box)]["level"] = 2


def set_flags(box: Box) -> None:
    box.state.page[int(table_frames(box.state, box.mmu)[0])]["flags"] = 4


def set_free(box: Box) -> None:
    box.mmu.config[0]["free_row"] = pte_row(box)


def set_list(box: Box) -> None:
    box.mmu.config[0]["pgd_list"] = box.mmu.config[0]["root"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (set_child, "names page frame"), (set_twice, "hangs in two places"), (set_lost, "hangs nowhere"), (set_level, "hangs at level 1"),
        (set_flags, "not marked"), (set_free, "list of free rows"), (set_list, "pgd_list"),
    ],
)  # fmt: skip
def test_damage_is_named(damage: Callable[[Box], None], message: str) -> None:
    box = Box(cpus=1)
    box.map(box.space.vmalloc_start, 5)
    box.process()
    validate_pgtable(box.mmu, box.state)
    box = Box(cpus=1)
    box.map(box.space.vmalloc_start, 5)
    damage(box)
    with pytest.raises(InvariantError, match=message):
        validate_pgtable(box.mmu, box.state)
