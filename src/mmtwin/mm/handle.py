"""A machine's tables behind one number, for calls from Python: handing fifteen arrays to compiled code costs more than a kmalloc.

The number is the address of a table of addresses and lengths. Whoever holds it keeps the arrays alive, and makes a new one when a table is replaced.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mmtwin._jit import carray, maker, pointer
from mmtwin.gfp import MAX_NR_ZONES
from mmtwin.mm.slab_tables import KMEM_CACHE, KMEM_CACHE_CPU, SLAB, SLUB_CONFIG, Slub
from mmtwin.mm.tables import CONFIG, FREE_AREA, PAGE, PCP, ZONE, Pgdat

INT64, INT32, INT16, INT8 = np.dtype("i8"), np.dtype("i4"), np.dtype("i2"), np.dtype("i1")
NR_TABLES = len(Pgdat._fields) + len(Slub._fields)


def address_table(pages: Pgdat, slabs: Slub) -> npt.NDArray[np.int64]:
    """Address and length (rows) of each table. Keep it, and the tables, as long as its own address is in use."""
    table = np.array([(a.ctypes.data, len(a)) for a in (*pages, *slabs)], dtype=np.int64)
    assert all(a.flags.c_contiguous and a.flags.writeable for a in (*pages, *slabs))
    return table


@maker
def pages_at(handle: int) -> Any:
    """The page allocator's tables behind an address table's address."""
    t = carray(pointer(handle), (NR_TABLES, 2), INT64)
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


@maker
def slabs_at(handle: int) -> Any:
    """SLUB's tables there."""
    t = carray(pointer(handle), (NR_TABLES, 2), INT64)
    return Slub(
        carray(pointer(t[8, 0]), t[8, 1], KMEM_CACHE),
        carray(pointer(t[9, 0]), t[9, 1], KMEM_CACHE_CPU),
        carray(pointer(t[10, 0]), t[10, 1], SLAB),
        carray(pointer(t[11, 0]), t[11, 1], INT16),
        carray(pointer(t[12, 0]), t[12, 1], INT32),
        carray(pointer(t[13, 0]), t[13, 1], INT64),
        carray(pointer(t[14, 0]), t[14, 1], INT64),
        carray(pointer(t[15, 0]), t[15, 1], SLUB_CONFIG),
    )


@maker
def tables_at(handle: int) -> tuple[Any, Any]:
    """Both. A routine that needs only one of them is compiled sooner with that one."""
    return pages_at(handle), slabs_at(handle)
