"""A machine's tables behind one number: the address of three handles, those of pages and slabs (mm/handle.py), of page tables (mm/mmu.py) and of processes.

Functions of processes' memory work on all three, some thirty tables, so they hand each other that number and look up what they need: a call with all tables by value costs
more than the work, and makes compiled code several times larger.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mmtwin._jit import carray, inline_routine, pointer
from mmtwin.gfp import MAX_NR_ZONES
from mmtwin.mm.handle import INT8
from mmtwin.mm.pgtable_tables import MMU_CONFIG, MMU_CPU, TABLE, TLB, Mmu
from mmtwin.mm.tables import CONFIG, FREE_AREA, PAGE, PCP, ZONE, Pgdat
from mmtwin.user.mm_tables import (
    ANON_VMA,
    AVC,
    FILE,
    FOLIO,
    LOG,
    LRUVEC,
    MM,
    SCAN_CONTROL,
    SWAP_CLUSTER,
    SWAP_CPU,
    SWAP_INFO,
    USER_CONFIG,
    VM_AREA,
    Users,
)

INT64, INT32, INT16 = np.dtype("i8"), np.dtype("i4"), np.dtype("i2")
NR_TABLES = len(Users._fields)


def address_table(s: Users) -> npt.NDArray[np.int64]:
    """Address and length of each table. Keep it, and the tables, as long as its own address is in use."""
    assert all(a.flags.c_contiguous and a.flags.writeable for a in s)
    return np.array([(a.ctypes.data, len(a)) for a in s], dtype=np.int64)


@inline_routine
def page_state(h: int) -> Any:
    """The page allocator's tables."""
    t = carray(pointer(carray(pointer(h), (1, 3), INT64)[0, 0]), (8, 2), INT64)
    return Pgdat(
        carray(pointer(t[0, 0]), t[0, 1], PAGE),
        carray(pointer(t[1, 0]), t[1, 1], INT8),
        carray(pointer(t[2, 0]), t[2, 1], ZONE),
        carray(pointer(t[3, 0]), (MAX_NR_ZONES, MAX_NR_ZONES), INT64),
        carray(pointer(t[4, 0]), t[4, 1], FREE_AREA),
        carray(pointer(t[5, 0]), t[5, 1], PCP),
        carray(pointer(t[6, 0]), t[6, 1], CONFIG),
        carray(pointer(t[7, 0]), t[7, 1], INT64),
    )


@inline_routine
def table_state(h: int) -> Any:
    """Page tables and TLBs."""
    t = carray(pointer(carray(pointer(h), (1, 3), INT64)[0, 1]), (7, 3), INT64)
    return Mmu(
        carray(pointer(t[0, 0]), (t[0, 1], t[0, 2]), INT64),
        carray(pointer(t[1, 0]), (t[1, 1], t[1, 2]), INT32),
        carray(pointer(t[2, 0]), t[2, 1], TABLE),
        carray(pointer(t[3, 0]), t[3, 1], TLB),
        carray(pointer(t[4, 0]), t[4, 1], MMU_CPU),
        carray(pointer(t[5, 0]), t[5, 1], MMU_CONFIG),
    )


@inline_routine
def users_state(h: int) -> Any:
    """Processes."""
    t = carray(pointer(carray(pointer(h), (1, 3), INT64)[0, 2]), (NR_TABLES, 2), INT64)
    return Users(
        carray(pointer(t[0, 0]), t[0, 1], VM_AREA),
        carray(pointer(t[1, 0]), t[1, 1], MM),
        carray(pointer(t[2, 0]), t[2, 1], ANON_VMA),
        carray(pointer(t[3, 0]), t[3, 1], AVC),
        carray(pointer(t[4, 0]), t[4, 1], FILE),
        carray(pointer(t[5, 0]), t[5, 1], INT64),
        carray(pointer(t[6, 0]), t[6, 1], INT32),
        carray(pointer(t[7, 0]), t[7, 1], INT64),
        carray(pointer(t[8, 0]), t[8, 1], INT64),
        carray(pointer(t[9, 0]), t[9, 1], LOG),
        carray(pointer(t[10, 0]), t[10, 1], INT64),
        carray(pointer(t[11, 0]), t[11, 1], FOLIO),
        carray(pointer(t[12, 0]), t[12, 1], INT64),
        carray(pointer(t[13, 0]), t[13, 1], LRUVEC),
        carray(pointer(t[14, 0]), t[14, 1], SCAN_CONTROL),
        carray(pointer(t[15, 0]), t[15, 1], SWAP_INFO),
        carray(pointer(t[16, 0]), t[16, 1], INT16),
        carray(pointer(t[17, 0]), t[17, 1], INT64),
        carray(pointer(t[18, 0]), t[18, 1], SWAP_CLUSTER),
        carray(pointer(t[19, 0]), t[19, 1], SWAP_CPU),
        carray(pointer(t[20, 0]), t[20, 1], INT64),
        carray(pointer(t[21, 0]), t[21, 1], INT64),
        carray(pointer(t[22, 0]), t[22, 1], USER_CONFIG),
    )


@inline_routine
def tables_and_users(h: int) -> tuple[Any, Any]:
    """Page tables, processes."""
    return table_state(h), users_state(h)


@inline_routine
def pages_and_users(h: int) -> tuple[Any, Any]:
    """Page allocator, processes."""
    return page_state(h), users_state(h)


@inline_routine
def state(h: int) -> tuple[Any, Any, Any]:
    """Page allocator, page tables, processes."""
    return page_state(h), table_state(h), users_state(h)
