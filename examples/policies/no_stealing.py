"""Fallback without stealing: a request whose own lists are empty takes the smallest block of another migrate type and leaves the pageblock with its owner; no per-CPU lists."""

from mmtwin.diagnose.whatif.policy import give_block, take_block, zone_for
from mmtwin.mm.buddy import free_list


def alloc(pages, cpu, order, gfp, migratetype):
    z = zone_for(pages, order, gfp)
    if z < 0:
        return -1
    for turn in range(3):
        kind = (migratetype + turn) % 3
        for high in range(order, 11):
            head = free_list(pages, z, high, kind)
            first = int(pages.page[head]["next"])
            if first != head:
                return take_block(pages, z, cpu, first, order, kind)
    return -1


def free(pages, cpu, pfn, order):
    give_block(pages, cpu, pfn, order)
