"""Areas of an address space: finding, placing, linking, merging, splitting (mm/mmap.c of Linux 6.1).

Rows are made and given back here; the slab objects behind them are the caller's, who is told of them in the log. Errors are negative.
"""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, slow
from mmtwin.mm.page_alloc import ENOMEM
from mmtwin.mm.rbtree import compute_max, propagate, rb_erase, rb_insert, rb_link_node
from mmtwin.mm.vmap_tables import NIL, ZERO_BYTES
from mmtwin.user.anon_vma import anon_vma_clone, log, unlink_anon_vmas
from mmtwin.user.huge import split_huge_pmd_address
from mmtwin.user.mm_tables import FREE_VMA, NEW_VMA, VM_ACCESS_FLAGS, VM_GROWSDOWN, VM_SOFTDIRTY, VM_SPECIAL

PAGE_SHIFT = 12

# Rows, list and tree


@inner
def new_vma(s: Any) -> int:
    """A row for an area (``vm_area_alloc``)."""
    config = s.config[0]
    row = int(config["free_vma"])
    if row != NIL:
        config["free_vma"] = int(s.vma[row]["next"])
    else:
        row = int(config["vmas"])
        config["vmas"] = row + 1
    s.vma[row]["ra_addr"], s.vma[row]["ra_win"], s.vma[row]["ra_hits"] = 0, 0, 0
    log(s, NEW_VMA, row)
    return row


@inner
def free_vma(s: Any, row: int) -> None:
    """``vm_area_free``."""
    log(s, FREE_VMA, int(s.vma[row]["object"]))
    vma, config = s.vma[row], s.config[0]
    vma["vm_mm"] = -1
    vma["vm_end"] = 0
    vma["next"] = int(config["free_vma"])
    config["free_vma"] = row


@slow
def find_vma_slow(s: Any, mm: int, address: int) -> int:
    """`find_vma` in the tree."""
    node, found = int(s.mm[mm]["rb_root"]), NIL
    while node != NIL:
        vma = s.vma[node]
        if int(vma["vm_end"]) > address:
            found = node
            if int(vma["vm_start"]) <= address:
                s.mm[mm]["cached"] = node
                break
            node = int(vma["rb_left"])
        else:
            node = int(vma["rb_right"])
    return found


@inner
def find_vma(s: Any, mm: int, address: int) -> int:
    """``find_vma``: the first area that ends above an address; NIL if there is none."""
    row = int(s.mm[mm]["cached"])
    vma = s.vma[row]
    if int(vma["vm_start"]) <= address < int(vma["vm_end"]) and int(vma["vm_mm"]) == mm:
        return row
    return find_vma_slow(s, mm, address)


@inner
def set_gap(s: Any, row: int) -> None:
    """The gap in front of an area has changed."""
    prev = int(s.vma[row]["prev"])
    s.vma[row]["va_start"] = int(s.vma[prev]["vm_end"]) if prev != NIL else 0
    s.vma[row]["va_end"] = s.vma[row]["vm_start"]
    propagate(s.vma, row, NIL)


@slow
def vma_link(s: Any, mm: int, row: int) -> None:
    """``vma_link``: into the list and the tree."""
    start = int(s.vma[row]["vm_start"])
    node, parent, right, prev, next_ = int(s.mm[mm]["rb_root"]), NIL, False, NIL, NIL
    while node != NIL:
        parent = node
        right = int(s.vma[node]["vm_start"]) < start
        if right:
            prev = node
            node = int(s.vma[node]["rb_right"])
        else:
            next_ = node
            node = int(s.vma[node]["rb_left"])
    vma = s.vma[row]
    vma["vm_mm"], vma["prev"], vma["next"] = mm, prev, next_
    if prev != NIL:
        s.vma[prev]["next"] = row
    else:
        s.mm[mm]["mmap"] = row
    if next_ != NIL:
        s.vma[next_]["prev"] = row
        s.vma[next_]["va_start"] = vma["vm_end"]
        propagate(s.vma, next_, NIL)
    else:
        s.mm[mm]["last"] = row
    vma["va_start"] = int(s.vma[prev]["vm_end"]) if prev != NIL else 0
    vma["va_end"] = start
    rb_link_node(s.vma, s.mm, mm, row, parent, right)
    vma["subtree_max_size"] = compute_max(s.vma, row)
    propagate(s.vma, parent, NIL)
    rb_insert(s.vma, s.mm, mm, row, True)
    s.mm[mm]["map_count"] = int(s.mm[mm]["map_count"]) + 1


@slow
def vma_unlink(s: Any, row: int) -> None:
    """Out of the list and the tree; the row stays."""
    mm, prev, next_ = int(s.vma[row]["vm_mm"]), int(s.vma[row]["prev"]), int(s.vma[row]["next"])
    rb_erase(s.vma, s.mm, mm, row, True)
    if prev != NIL:
        s.vma[prev]["next"] = next_
    else:
        s.mm[mm]["mmap"] = next_
    if next_ != NIL:
        s.vma[next_]["prev"] = prev
        set_gap(s, next_)
    else:
        s.mm[mm]["last"] = prev
    if int(s.mm[mm]["cached"]) == row:
        s.mm[mm]["cached"] = NIL
    s.mm[mm]["map_count"] = int(s.mm[mm]["map_count"]) - 1


@inner
def set_bounds(s: Any, row: int, start: int, end: int, pgoff: int) -> None:
    """New bounds of a linked area that keep its place in the list."""
    vma = s.vma[row]
    vma["vm_start"], vma["vm_end"], vma["vm_pgoff"] = start, end, pgoff
    set_gap(s, row)
    next_ = int(vma["next"])
    if next_ != NIL:
        set_gap(s, next_)


# Addresses that are free


@inner
def vm_start_gap(s: Any, row: int) -> int:
    """``vm_start_gap``: a stack keeps a gap below itself."""
    start = int(s.vma[row]["vm_start"])
    if int(s.vma[row]["vm_flags"]) & VM_GROWSDOWN:
        start -= int(s.config[0]["guard_gap"])
        if start < 0:
            start = 0
    return start


@inner
def max_gap(s: Any, node: int, want: int) -> bool:
    """Whether some gap of the subtree is large enough."""
    return int(s.vma[node]["subtree_max_size"]) >= want


@slow
def empty_area_rev(s: Any, mm: int, low: int, high: int, size: int) -> int:
    """``mas_empty_area_rev``: end of the highest free range of `size` bytes between two limits, or -ENOMEM."""
    last = int(s.mm[mm]["last"])
    above = max(int(s.vma[last]["vm_end"]) if last != NIL else 0, low)
    if high - above >= size:
        return high
    want, node = ZERO_BYTES + size, int(s.mm[mm]["rb_root"])
    if node == NIL or not max_gap(s, node, want):
        return -ENOMEM
    while True:
        right = int(s.vma[node]["rb_right"])
        if right != NIL and max_gap(s, right, want) and int(s.vma[node]["vm_end"]) < high:
            node = right
            continue
        while True:
            start, end = max(int(s.vma[node]["va_start"]), low), min(int(s.vma[node]["va_end"]), high)
            if end - start >= size:
                return end
            if int(s.vma[node]["va_start"]) <= low:
                return -ENOMEM
            left = int(s.vma[node]["rb_left"])
            if left != NIL and max_gap(s, left, want):
                node = left
                break
            child = node
            node = int(s.vma[child]["rb_parent"])
            while node != NIL and int(s.vma[node]["rb_right"]) != child:
                child = node
                node = int(s.vma[child]["rb_parent"])
            if node == NIL:
                return -ENOMEM


@slow
def empty_area(s: Any, mm: int, low: int, high: int, size: int) -> int:
    """``mas_empty_area``: start of the lowest free range of `size` bytes between two limits, or -ENOMEM."""
    want, node = ZERO_BYTES + size, int(s.mm[mm]["rb_root"])
    descend = node != NIL and max_gap(s, node, want)
    while descend:
        left = int(s.vma[node]["rb_left"])
        if left != NIL and max_gap(s, left, want) and int(s.vma[node]["vm_start"]) > low:
            node = left
            continue
        descend = False
        while node != NIL:
            start, end = max(int(s.vma[node]["va_start"]), low), min(int(s.vma[node]["va_end"]), high)
            if end - start >= size:
                return start
            if int(s.vma[node]["va_start"]) >= high:
                return -ENOMEM
            right = int(s.vma[node]["rb_right"])
            if right != NIL and max_gap(s, right, want):
                node = right
                descend = True
                break
            child = node
            node = int(s.vma[child]["rb_parent"])
            while node != NIL and int(s.vma[node]["rb_left"]) != child:
                child = node
                node = int(s.vma[child]["rb_parent"])
    last = int(s.mm[mm]["last"])
    start = max(int(s.vma[last]["vm_end"]) if last != NIL else 0, low)
    return start if high - start >= size else -ENOMEM


@inner
def unmapped_area_topdown(s: Any, mm: int, low: int, high: int, length: int) -> int:
    """``unmapped_area_topdown``: the highest place, but not in a stack's gap."""
    while True:
        end = empty_area_rev(s, mm, low, high, length)
        if end < 0:
            return end
        above = find_vma_slow(s, mm, end - 1)
        if above != NIL and int(s.vma[above]["vm_flags"]) & VM_GROWSDOWN and vm_start_gap(s, above) < end:
            high = vm_start_gap(s, above)
            continue
        return end - length


@inner
def unmapped_area(s: Any, mm: int, low: int, high: int, length: int) -> int:
    """``unmapped_area``: the lowest place."""
    while True:
        start = empty_area(s, mm, low, high, length)
        if start < 0:
            return start
        above = find_vma_slow(s, mm, start)
        if above != NIL and int(s.vma[above]["vm_flags"]) & VM_GROWSDOWN and vm_start_gap(s, above) < start + length - 1:
            low = int(s.vma[above]["vm_end"])
            continue
        return start


# Merging


@inner
def is_mergeable_anon_vma(s: Any, first: int, second: int, row: int) -> bool:
    """``is_mergeable_anon_vma``; `row` NIL: of no area. An area that shares its pages with a parent or child keeps its anon_vma to itself."""
    if first == 0 or second == 0:
        chain = int(s.vma[row]["chain"])
        if row == NIL or (chain != NIL and int(s.avc[chain]["next"]) == NIL):
            return True
    return first == second


@inner
def is_mergeable_vma(s: Any, row: int, file: int, flags: int) -> bool:
    """``is_mergeable_vma``."""
    return (int(s.vma[row]["vm_flags"]) ^ flags) & ~VM_SOFTDIRTY == 0 and int(s.vma[row]["vm_file"]) == file


@inner
def can_vma_merge_before(s: Any, row: int, flags: int, anon: int, file: int, pgoff: int) -> bool:
    """``can_vma_merge_before``: a range that ends where the area begins, with this page offset at its end."""
    return is_mergeable_vma(s, row, file, flags) and is_mergeable_anon_vma(s, anon, int(s.vma[row]["anon_vma"]), row) and int(s.vma[row]["vm_pgoff"]) == pgoff


@inner
def can_vma_merge_after(s: Any, row: int, flags: int, anon: int, file: int, pgoff: int) -> bool:
    """``can_vma_merge_after``."""
    if not (is_mergeable_vma(s, row, file, flags) and is_mergeable_anon_vma(s, anon, int(s.vma[row]["anon_vma"]), row)):
        return False
    return int(s.vma[row]["vm_pgoff"]) + ((int(s.vma[row]["vm_end"]) - int(s.vma[row]["vm_start"])) >> PAGE_SHIFT) == pgoff


@inner
def import_anon_vma(s: Any, importer: int, exporter: int) -> None:
    """An area that takes over pages of another needs its anon_vma."""
    if int(s.vma[exporter]["anon_vma"]) and not int(s.vma[importer]["anon_vma"]):
        s.vma[importer]["anon_vma"] = s.vma[exporter]["anon_vma"]
        anon_vma_clone(s, importer, exporter)


@inner
def remove_merged(s: Any, row: int) -> None:
    """The area is part of its neighbour now."""
    file = int(s.vma[row]["vm_file"])
    if file >= 0:
        s.file[file]["refcount"] = int(s.file[file]["refcount"]) - 1
    vma_unlink(s, row)
    if int(s.vma[row]["anon_vma"]):
        unlink_anon_vmas(s, row)
    free_vma(s, row)


@slow
def vma_merge(m: Any, s: Any, mm: int, prev: int, start: int, end: int, flags: int, anon: int, file: int, pgoff: int) -> int:
    """``vma_merge``: joins a range, mapped as `flags` and so on say, with the areas next to it: the area that holds it then, or NIL.

    The range is free, or (mprotect, madvise) part of an area. `prev`: the area before it, or the one it is in.
    """
    if flags & VM_SPECIAL:
        return NIL
    length = (end - start) >> PAGE_SHIFT
    mid = int(s.vma[prev]["next"]) if prev != NIL else int(s.mm[mm]["mmap"])
    next_ = mid
    if mid != NIL and int(s.vma[mid]["vm_end"]) == end:
        next_ = int(s.vma[mid]["next"])
    with_prev = prev != NIL and int(s.vma[prev]["vm_end"]) == start and can_vma_merge_after(s, prev, flags, anon, file, pgoff)
    with_next = next_ != NIL and int(s.vma[next_]["vm_start"]) == end and can_vma_merge_before(s, next_, flags, anon, file, pgoff + length)
    if with_prev and with_next and is_mergeable_anon_vma(s, int(s.vma[prev]["anon_vma"]), int(s.vma[next_]["anon_vma"]), NIL):
        exporter = mid if int(s.vma[mid]["anon_vma"]) else next_  # cases 1 and 6
        import_anon_vma(s, prev, exporter)
        stop = int(s.vma[next_]["vm_end"])
        if mid != next_:
            remove_merged(s, mid)
        remove_merged(s, next_)
        set_bounds(s, prev, int(s.vma[prev]["vm_start"]), stop, int(s.vma[prev]["vm_pgoff"]))
        return prev
    if with_prev:
        if mid != NIL and end == int(s.vma[mid]["vm_end"]):  # case 7
            import_anon_vma(s, prev, mid)
            remove_merged(s, mid)
        elif mid != NIL and end > int(s.vma[mid]["vm_start"]):  # case 5
            import_anon_vma(s, prev, mid)
            split_huge_pmd_address(m, s, mid, end)
            moved = (end - int(s.vma[mid]["vm_start"])) >> PAGE_SHIFT
            set_bounds(s, mid, end, int(s.vma[mid]["vm_end"]), int(s.vma[mid]["vm_pgoff"]) + moved)
        set_bounds(s, prev, int(s.vma[prev]["vm_start"]), end, int(s.vma[prev]["vm_pgoff"]))
        return prev
    if with_next:
        if prev != NIL and start < int(s.vma[prev]["vm_end"]):  # case 4
            import_anon_vma(s, next_, prev)
            split_huge_pmd_address(m, s, prev, start)
            set_bounds(s, prev, int(s.vma[prev]["vm_start"]), start, int(s.vma[prev]["vm_pgoff"]))
        elif mid != next_:  # case 8
            import_anon_vma(s, next_, mid)
            remove_merged(s, mid)
        set_bounds(s, next_, start, int(s.vma[next_]["vm_end"]), int(s.vma[next_]["vm_pgoff"]) - length)
        return next_
    return NIL


@slow
def split_vma(m: Any, s: Any, row: int, address: int, new_below: bool) -> int:
    """``__split_vma``: the new area, below or above an address inside of `row`."""
    new = new_vma(s)
    copy_area(s, new, row)
    anon_vma_clone(s, new, row)
    file = int(s.vma[row]["vm_file"])
    if file >= 0:
        s.file[file]["refcount"] = int(s.file[file]["refcount"]) + 1
    split_huge_pmd_address(m, s, row, address)
    start, end, pgoff = int(s.vma[row]["vm_start"]), int(s.vma[row]["vm_end"]), int(s.vma[row]["vm_pgoff"])
    behind = pgoff + ((address - start) >> PAGE_SHIFT)
    if new_below:
        s.vma[new]["vm_end"] = address
        set_bounds(s, row, address, end, behind)
    else:
        s.vma[new]["vm_start"], s.vma[new]["vm_pgoff"] = address, behind
        set_bounds(s, row, start, address, pgoff)
    vma_link(s, int(s.vma[row]["vm_mm"]), new)
    return new


@inner
def copy_area(s: Any, new: int, row: int) -> None:
    """``vm_area_dup``: bounds, flags and file; no links, no anon_vma_chain."""
    for_new, vma = s.vma[new], s.vma[row]
    for_new["vm_start"], for_new["vm_end"], for_new["vm_flags"], for_new["vm_pgoff"] = vma["vm_start"], vma["vm_end"], vma["vm_flags"], vma["vm_pgoff"]
    for_new["vm_file"], for_new["anon_vma"], for_new["vm_mm"], for_new["chain"] = vma["vm_file"], vma["anon_vma"], vma["vm_mm"], NIL


@inner
def anon_vma_compatible(s: Any, first: int, second: int) -> bool:
    """``anon_vma_compatible``: neighbours that could share an anon_vma, so that mprotect can merge them again."""
    a, b = s.vma[first], s.vma[second]
    return (
        int(a["vm_end"]) == int(b["vm_start"])
        and int(a["vm_file"]) == int(b["vm_file"])
        and (int(a["vm_flags"]) ^ int(b["vm_flags"])) & ~(VM_ACCESS_FLAGS | VM_SOFTDIRTY) == 0
        and int(b["vm_pgoff"]) == int(a["vm_pgoff"]) + ((int(b["vm_start"]) - int(a["vm_start"])) >> PAGE_SHIFT)
    )


@slow
def find_mergeable_anon_vma(s: Any, row: int) -> int:
    """``find_mergeable_anon_vma``: that of the next area, else of the one before, if nobody else shares it; 0 if there is none."""
    next_, prev = int(s.vma[row]["next"]), int(s.vma[row]["prev"])
    if next_ != NIL and anon_vma_compatible(s, row, next_):
        chain = int(s.vma[next_]["chain"])
        if int(s.vma[next_]["anon_vma"]) and int(s.avc[chain]["next"]) == NIL:
            return int(s.vma[next_]["anon_vma"])
    if prev != NIL and anon_vma_compatible(s, prev, row):
        chain = int(s.vma[prev]["chain"])
        if int(s.vma[prev]["anon_vma"]) and int(s.avc[chain]["next"]) == NIL:
            return int(s.vma[prev]["anon_vma"])
    return 0
