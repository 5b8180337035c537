"""Invariants of page tables: every table hangs in one place, entries and rows agree, and the frames know what they are."""

from __future__ import annotations

import numpy as np

from mmtwin.errors import InvariantError
from mmtwin.mm.pgtable_tables import PAGE_PRESENT, PAGE_PSE, PAGE_SHIFT, PFN_BITS, Mmu
from mmtwin.mm.tables import PG_TABLE, Pgdat


def validate_pgtable(m: Mmu, b: Pgdat) -> None:
    """Checks the tables of init_mm and of all processes.

    In this order: the free rows; from each PGD downwards the levels, the frames that entries name, tables that hang in two places (only the kernel's half of
    several PGDs is shared), rows that hang nowhere; and that the frames of tables are marked as such.

    :raises InvariantError: naming the first broken one.
    """
    used, top, root = int(m.config[0]["tables"]), int(m.config[0]["levels"]), int(m.config[0]["root"])
    free, row = set[int](), int(m.config[0]["free_row"])
    while row >= 0:
        if row >= used or row in free or int(m.table[row]["level"]):
            raise InvariantError(f"page tables: row {row} on the list of free rows is in use, or twice on it")
        free.add(row)
        row = int(m.table[row]["next"])
    roots, row = [root], int(m.config[0]["pgd_list"])
    while row >= 0:
        if row in roots or row >= used:
            raise InvariantError(f"page tables: pgd_list: row {row} is twice on it")
        roots.append(row)
        row = int(m.table[row]["next"])
    seen = dict.fromkeys(roots, top)
    todo = list(roots)
    while todo:
        row = todo.pop()
        level = seen[row]
        if int(m.table[row]["level"]) != level or row in free:
            raise InvariantError(f"page tables: row {row} hangs at level {level} but has level {int(m.table[row]['level'])}")
        entries = m.entry[row]
        if level == 1:
            continue
        if level == 2 and int(m.table[row]["next"]) >= 0:  # tables kept in reserve for its huge entries
            spare = int(m.table[row]["next"])
            while spare not in seen:
                if not 0 <= spare < used or int(m.table[spare]["level"]) != 1:
                    raise InvariantError(f"page tables: row {row}: row {spare}, kept in reserve, is no PTE table")
                seen[spare] = 1
                spare = int(m.table[spare]["next"])
        for i in np.flatnonzero((entries & PAGE_PRESENT != 0) & (entries & PAGE_PSE == 0)):
            child = int(m.child[row, i])
            if not 0 <= child < used or int(m.table[child]["pfn"]) != (int(entries[i]) & PFN_BITS) >> PAGE_SHIFT:
                raise InvariantError(
                    f"page tables: row {row}, entry {i} names page frame {(int(entries[i]) & PFN_BITS) >> PAGE_SHIFT}, not that of row {child}"
                )
            if child in seen:
                if level == top and row != root and int(m.child[root, i]) == child:
                    continue  # the kernel's half
                if level == top and row == root and any(int(m.child[other, i]) == child for other in roots[1:]):
                    continue
                raise InvariantError(f"page tables: row {child} hangs in two places, the second is row {row}, entry {i}")
            seen[child] = level - 1
            todo.append(child)
    lost = set(range(used)) - free - seen.keys()
    if lost:
        raise InvariantError(f"page tables: row {min(lost)} hangs nowhere")
    frames = int(b.config[0]["nr_frames"])
    for row in seen:
        pfn = int(m.table[row]["pfn"])
        if not int(m.table[row]["boot"]) and (not 0 <= pfn < frames or not int(b.page[pfn]["flags"]) & PG_TABLE or int(b.page[pfn]["next"]) != row):
            raise InvariantError(f"page tables: page frame {pfn} is row {row} but is not marked as a page table")
