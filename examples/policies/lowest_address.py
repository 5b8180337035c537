"""Address-ordered first fit: of the smallest free blocks that are large enough, whatever their migrate type, the one at the lowest address; no per-CPU lists."""

from mmtwin.diagnose.whatif.policy import give_block, take_block, zone_for
from mmtwin.mm.buddy import free_list, get_pageblock_migratetype


def alloc(pages, cpu, order, gfp, migratetype):
    z = zone_for(pages, order, gfp)
    if z < 0:
        return -1
    for high in range(order, 11):
        best = -1
        for kind in range(3):
            head = free_list(pages, z, high, kind)
            at = int(pages.page[head]["next"])
            while at != head:
                if best < 0 or at < best:
                    best = at
                at = int(pages.page[at]["next"])
        if best >= 0:
            return take_block(pages, z, cpu, best, order, get_pageblock_migratetype(pages, best))
    return -1


def free(pages, cpu, pfn, order):
    give_block(pages, cpu, pfn, order)
