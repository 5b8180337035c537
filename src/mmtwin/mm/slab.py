"""The classic SLAB allocator: per-CPU arrays, a shared array, and the node's lists of full, partial and free slabs (mm/slab.c of 2.6.24, 3.6 and 6.1).

The functions of the middle part are sections that the kernel runs with interrupts off, under the node's ``list_lock`` where they touch its lists. A replay
runs each where a recording says it happened; `kmem_cache_alloc`, `kmem_cache_free`, `cache_reap` and `kmem_cache_shrink` run them one after the other,
with pages from `page_alloc`.

An object is its physical address; END is none. Slabs that are to be given back are chains by `next`, in the order in which the kernel frees their pages.
"""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, kernel, slow
from mmtwin.mm.list import list_add, list_add_tail, list_del
from mmtwin.mm.page_alloc import EBUSY, EINVAL, ENOENT, alloc_pages, free_pages_prepare, free_the_page
from mmtwin.mm.slab_classic_geometry import IN_OBJECT, OFF_SLAB, SLAB_TYPESAFE_BY_RCU, SlabGeometry, array_limits, free_limit
from mmtwin.mm.slab_classic_tables import (
    END,
    FREE,
    FULL,
    LISTS,
    MAX_CACHES,
    PARTIAL,
    SLAB_DISCARDED,
    SLAB_LIVE,
    SLAB_UNUSED,
    V2_6_24,
    V6_1,
    ClassicSlab,
    add_arrays,
)
from mmtwin.mm.tables import PG_SLAB, Pgdat

ENOSPC = 28
"""The tables have no room: call `slab_classic_tables.reserve` and repeat the call; nothing has changed."""
PAGE_SHIFT = 12
PAGE_OFFSET_MASK = (1 << PAGE_SHIFT) - 1
BATCHREFILL_LIMIT = 16
EVERYTHING = 1 << 30

GFP_RECLAIM, GFP_NOWARN, GFP_NOFAIL, GFP_THISNODE = 0xC00, 0x2000, 0x8000, 0x200000
GFP_CONSTRAINT = 0x300000
"""GFP_CONSTRAINT_MASK: __GFP_HARDWALL and __GFP_THISNODE."""
GFP_SLAB = 0x3BEEE0
"""GFP_RECLAIM_MASK | GFP_CONSTRAINT_MASK: what a slab's page request keeps of the caller's flags (mm/internal.h)."""


# Addresses and rows


@inner
def cpu_array(s: Any, c: int, cpu: int) -> int:
    """Row of a CPU's array."""
    return c * (int(s.config[0]["nr_cpus"]) + 1) + cpu


@inner
def shared_array(s: Any, c: int) -> int:
    """Row of the node's shared array (its limit is 0 if there is none)."""
    nr_cpus = int(s.config[0]["nr_cpus"])
    return c * (nr_cpus + 1) + nr_cpus


@inner
def object_of(s: Any, row: int, number: int) -> int:
    """``index_to_obj``."""
    slab = s.slab[row]
    return (int(slab["pfn"]) << PAGE_SHIFT) + int(slab["first"]) + number * int(s.cache[int(slab["cache"])]["size"])


@inner
def slab_of(s: Any, address: int) -> int:
    """The slab that an address lies in, or END."""
    pfn = address >> PAGE_SHIFT
    if pfn < 0 or pfn >= len(s.frame):
        return END
    row = int(s.frame[pfn])
    return row if row else END


@inner
def number_of(s: Any, row: int, address: int) -> int:
    """``obj_to_index``: the number of the object that begins at an address, or -EINVAL."""
    slab = s.slab[row]
    cache = s.cache[int(slab["cache"])]
    at = address - (int(slab["pfn"]) << PAGE_SHIFT) - int(slab["first"])
    size = int(cache["size"])
    number = at // size
    if at < 0 or number * size != at or number >= int(cache["num"]):
        return -EINVAL
    return number


@inner
def has_room(s: Any, c: int) -> bool:
    """Whether one more slab of this cache fits into the tables."""
    config = s.config[0]
    cache = s.cache[c]
    return int(cache["unused_slab"]) != END or (int(config["slabs"]) < len(s.slab) and int(config["indices"]) + int(cache["num"]) <= len(s.indices))


@slow
def new_row(s: Any, c: int, pfn: int) -> int:
    """A row for a slab that begins at page frame `pfn`: one of this cache that is unused, else a new one (`has_room`)."""
    cache = s.cache[c]
    config = s.config[0]
    row = int(cache["unused_slab"])
    if row == END:
        row = int(config["slabs"])
        config["slabs"] = row + 1
        s.slab[row]["index"] = int(config["indices"])
        config["indices"] = int(config["indices"]) + int(cache["num"])
    else:
        cache["unused_slab"] = int(s.slab[row]["next"])
    order = int(cache["order"])
    slab = s.slab[row]
    slab["cache"] = c
    slab["pfn"] = pfn
    slab["order"] = order
    slab["active"] = 0
    slab["management"] = END
    slab["freelist"] = END
    slab["state"] = SLAB_LIVE
    slab["next"] = row
    slab["prev"] = row
    for i in range(pfn, pfn + (1 << order)):
        s.frame[i] = row
    config["pages"] = int(config["pages"]) + (1 << order)
    return row


@slow
def release_row(s: Any, row: int) -> None:
    """The slab's pages are gone."""
    slab = s.slab[row]
    cache = s.cache[int(slab["cache"])]
    pfn = int(slab["pfn"])
    order = int(slab["order"])
    for i in range(pfn, pfn + (1 << order)):
        s.frame[i] = 0
    slab["state"] = SLAB_UNUSED
    slab["next"] = int(cache["unused_slab"])
    cache["unused_slab"] = row
    s.config[0]["pages"] = int(s.config[0]["pages"]) - (1 << order)


# One slab


@inner
def slab_get_obj(s: Any, row: int) -> int:
    """Takes the slab's next free object."""
    slab = s.slab[row]
    active = int(slab["active"])
    slab["active"] = active + 1
    return object_of(s, row, int(s.indices[int(slab["index"]) + active]))


@inner
def slab_put_obj(s: Any, row: int, address: int) -> None:
    """Gives an object back to its slab: it is the next to be taken."""
    slab = s.slab[row]
    number = number_of(s, row, address)
    active = int(slab["active"]) - 1
    slab["active"] = active
    if int(slab["freelist"]) == END and int(s.cache[int(slab["cache"])]["management"]) == IN_OBJECT:
        slab["freelist"] = number
    s.indices[int(slab["index"]) + active] = number


@inner
def fixup_slab_list(s: Any, c: int, row: int) -> None:
    """A slab that objects were taken from goes to the head of the full or the partial list."""
    slab = s.slab[row]
    list_del(s.slab, row)
    if int(slab["active"]) == int(s.cache[c]["num"]):
        list_add(s.slab, row, c * LISTS + FULL)
        slab["freelist"] = END
    else:
        list_add(s.slab, row, c * LISTS + PARTIAL)


@inner
def alloc_block(s: Any, c: int, ac: int, row: int, batchcount: int) -> int:
    """Moves up to `batchcount` objects of a slab to an array; returns what is left of `batchcount` (-1 when it was used up before the slab was)."""
    array = s.array[ac]
    slab = s.slab[row]
    num = int(s.cache[c]["num"])
    while int(slab["active"]) < num:
        batchcount -= 1
        if batchcount < 0:
            break
        avail = int(array["avail"])
        s.entry[int(array["entry"]) + avail] = slab_get_obj(s, row)
        array["avail"] = avail + 1
    return batchcount


# Sections of the allocation


@inner
def take(s: Any, ac: int) -> int:
    """The fast path: the newest entry of the array, END if it is empty."""
    array = s.array[ac]
    avail = int(array["avail"]) - 1
    if avail < 0:
        return END
    array["touched"] = 1
    array["avail"] = avail
    address = int(s.entry[int(array["entry"]) + avail])
    row = slab_of(s, address)
    s.used[int(s.slab[row]["index"]) + number_of(s, row, address)] = 1
    return address


@inner
def transfer_objects(s: Any, to: int, source: int, most: int) -> int:
    """Moves the newest entries of one array to the end of another, in their order; returns how many."""
    a, z = s.array[to], s.array[source]
    nr = min(int(z["avail"]), most, int(a["limit"]) - int(a["avail"]))
    if nr <= 0:
        return 0
    start = int(z["entry"]) + int(z["avail"]) - nr
    end = int(a["entry"]) + int(a["avail"])
    for i in range(nr):
        s.entry[end + i] = s.entry[start + i]
    z["avail"] = int(z["avail"]) - nr
    a["avail"] = int(a["avail"]) + nr
    return nr


@inner
def first_slab(s: Any, c: int) -> int:
    """``get_first_slab``: of the partial list, else of the free list, else END. Looking at the free list is what `free_touched` remembers."""
    head = c * LISTS + PARTIAL
    row = int(s.slab[head]["next"])
    if row != head:
        return row
    cache = s.cache[c]
    cache["free_touched"] = 1
    head = c * LISTS + FREE
    row = int(s.slab[head]["next"])
    if row == head:
        return END
    cache["free_slabs"] = int(cache["free_slabs"]) - 1
    return row


@slow
def refill(s: Any, c: int, cpu: int) -> int:
    """The first part of ``cache_alloc_refill``, for an empty array: from the shared array, else from the node's slabs.

    Returns what is left of the batch; if the array is still empty, the cache must grow.
    """
    cache = s.cache[c]
    ac = cpu_array(s, c, cpu)
    array = s.array[ac]
    batchcount = int(array["batchcount"])
    if not int(array["touched"]) and batchcount > BATCHREFILL_LIMIT:
        batchcount = BATCHREFILL_LIMIT
    variant = int(s.config[0]["variant"])
    sh = shared_array(s, c)
    if variant == V6_1 and int(cache["free_objects"]) == 0 and int(s.array[sh]["avail"]) == 0:
        return batchcount
    if transfer_objects(s, ac, sh, batchcount):
        s.array[ac if variant == V2_6_24 else sh]["touched"] = 1
        return 0
    while batchcount > 0:
        row = first_slab(s, c)
        if row == END:
            break
        batchcount = alloc_block(s, c, ac, row, batchcount)
        fixup_slab_list(s, c, row)
    cache["free_objects"] = int(cache["free_objects"]) - int(array["avail"])
    return batchcount


@slow
def grow_begin(s: Any, c: int, pfn: int) -> int:
    """``cache_grow_begin``: a slab of the pages at `pfn`, in the next colour; it is on no list yet. There must be room (`has_room`)."""
    cache = s.cache[c]
    row = new_row(s, c, pfn)
    slab = s.slab[row]
    colour = int(cache["colour"])
    step = int(cache["colour_next"])
    if int(s.config[0]["variant"]) == V6_1:
        step = step + 1 if step + 1 < colour else 0
        cache["colour_next"] = step
    else:
        cache["colour_next"] = step + 1 if step + 1 < colour else 0
    slab["first"] = step * int(cache["colour_off"]) + int(cache["header"])
    num = int(cache["num"])
    index = int(slab["index"])
    for i in range(num):
        s.indices[index + i] = i
        s.used[index + i] = 0
    if int(cache["management"]) == IN_OBJECT:
        slab["freelist"] = num - 1
    return row


@slow
def grow_end(s: Any, c: int, row: int) -> None:
    """``cache_grow_end``: the new slab goes on the list that its objects in use call for: the free list's tail if there are none."""
    cache = s.cache[c]
    cache["total_slabs"] = int(cache["total_slabs"]) + 1
    if int(s.slab[row]["active"]) == 0:
        list_add_tail(s.slab, row, c * LISTS + FREE)
        cache["free_slabs"] = int(cache["free_slabs"]) + 1
    else:
        fixup_slab_list(s, c, row)
    cache["free_objects"] = int(cache["free_objects"]) + int(cache["num"]) - int(s.slab[row]["active"])


@slow
def take_new(s: Any, c: int, cpu: int, row: int, batchcount: int) -> int:
    """The last part of ``cache_alloc_refill``: the array takes from the new slab, the caller takes from the array.

    6.1 fills the array before the slab is on a list; the others put the slab on the free list and begin the refill again.
    """
    ac = cpu_array(s, c, cpu)
    if int(s.config[0]["variant"]) == V6_1:
        if int(s.array[ac]["avail"]) == 0:
            alloc_block(s, c, ac, row, batchcount)
        grow_end(s, c, row)
    else:
        grow_end(s, c, row)
        if int(s.array[ac]["avail"]) == 0:
            refill(s, c, cpu)
    return take(s, ac)


@slow
def node_alloc(s: Any, c: int) -> int:
    """``____cache_alloc_node``: one object straight from the node's slabs, END if there is none."""
    row = first_slab(s, c)
    if row == END:
        return END
    address = slab_get_obj(s, row)
    s.used[int(s.slab[row]["index"]) + number_of(s, row, address)] = 1
    s.cache[c]["free_objects"] = int(s.cache[c]["free_objects"]) - 1
    fixup_slab_list(s, c, row)
    return address


# Sections of the free


@inner
def check_free(s: Any, address: int) -> int:
    """Whether an object may be freed: its slab, -ENOENT (no slab there), -EINVAL (not the start of an object), -EBUSY (it is free already)."""
    row = slab_of(s, address)
    if row == END or int(s.slab[row]["state"]) != SLAB_LIVE:
        return -ENOENT
    number = number_of(s, row, address)
    if number < 0:
        return number
    return row if int(s.used[int(s.slab[row]["index"]) + number]) else -EBUSY


@inner
def put(s: Any, ac: int, address: int) -> None:
    """``__free_one``: the object becomes the array's newest entry."""
    array = s.array[ac]
    avail = int(array["avail"])
    s.entry[int(array["entry"]) + avail] = address
    array["avail"] = avail + 1
    row = slab_of(s, address)
    s.used[int(s.slab[row]["index"]) + number_of(s, row, address)] = 0


@inner
def unlink_free_slab(s: Any, c: int, row: int) -> None:
    """A free slab leaves the node."""
    cache = s.cache[c]
    list_del(s.slab, row)
    cache["free_slabs"] = int(cache["free_slabs"]) - 1
    cache["total_slabs"] = int(cache["total_slabs"]) - 1
    cache["free_objects"] = int(cache["free_objects"]) - int(cache["num"])
    s.slab[row]["state"] = SLAB_DISCARDED
    s.slab[row]["next"] = END


@slow
def free_block(s: Any, c: int, start: int, nr: int) -> int:
    """``free_block``: gives `nr` entries from place `start` on to their slabs; returns the chain of slabs to give back.

    A slab goes to the partial list's tail, or, empty, to the free list's head. While the node has more free objects than its limit, free slabs go: in 6.1
    from the free list's tail when all objects are back (the last one is freed first), before that each slab that becomes empty, at once.
    """
    cache = s.cache[c]
    new = int(s.config[0]["variant"]) == V6_1
    chain = END
    last = END
    if new:
        cache["free_objects"] = int(cache["free_objects"]) + nr
    for i in range(start, start + nr):
        address = int(s.entry[i])
        row = slab_of(s, address)
        list_del(s.slab, row)
        slab_put_obj(s, row, address)
        if not new:
            cache["free_objects"] = int(cache["free_objects"]) + 1
        if int(s.slab[row]["active"]):
            list_add_tail(s.slab, row, c * LISTS + PARTIAL)
            continue
        list_add(s.slab, row, c * LISTS + FREE)
        cache["free_slabs"] = int(cache["free_slabs"]) + 1
        if not new and int(cache["free_objects"]) > int(cache["free_limit"]):
            unlink_free_slab(s, c, row)
            if chain == END:
                chain = row
            else:
                s.slab[last]["next"] = row
            last = row
    head = c * LISTS + FREE
    while new and int(cache["free_objects"]) > int(cache["free_limit"]) and int(s.slab[head]["prev"]) != head:
        row = int(s.slab[head]["prev"])
        unlink_free_slab(s, c, row)
        s.slab[row]["next"] = chain
        chain = row
    return chain


@inner
def drop_oldest(s: Any, ac: int, nr: int) -> None:
    """The array loses its `nr` oldest entries; the others move up."""
    array = s.array[ac]
    avail = int(array["avail"]) - nr
    start = int(array["entry"])
    array["avail"] = avail
    for i in range(start, start + avail):
        s.entry[i] = s.entry[i + nr]


@slow
def flush(s: Any, c: int, ac: int) -> int:
    """``cache_flusharray`` of a full array: its oldest entries go to the shared array if that has room, else to their slabs. Returns slabs to give back."""
    array = s.array[ac]
    sh = s.array[shared_array(s, c)]
    nr = int(array["batchcount"])
    room = int(sh["limit"]) - int(sh["avail"])
    chain = END
    start = int(array["entry"])
    if room > 0:
        nr = min(nr, room)
        end = int(sh["entry"]) + int(sh["avail"])
        for i in range(nr):
            s.entry[end + i] = s.entry[start + i]
        sh["avail"] = int(sh["avail"]) + nr
    else:
        chain = free_block(s, c, start, nr)
    drop_oldest(s, ac, nr)
    return chain


@slow
def drain_array_locked(s: Any, c: int, ac: int, everything: bool) -> int:
    """Gives a fifth of an array's capacity back, its oldest entries (half of them if there are fewer), or all. Returns slabs to give back."""
    array = s.array[ac]
    avail = int(array["avail"])
    if avail == 0:
        return END
    nr = avail if everything else (int(array["limit"]) + 4) // 5
    if nr > avail:
        nr = (avail + 1) // 2
    chain = free_block(s, c, int(array["entry"]), nr)
    drop_oldest(s, ac, nr)
    return chain


@inner
def drain_one(s: Any, c: int) -> int:
    """One turn of ``drain_freelist``: the last free slab leaves the node; END if there is none."""
    head = c * LISTS + FREE
    row = int(s.slab[head]["prev"])
    if row == head:
        return END
    unlink_free_slab(s, c, row)
    return row


@inner
def reap_slabs(s: Any, c: int) -> int:
    """How many free slabs a periodic pass gives back at most."""
    cache = s.cache[c]
    most = 5 * int(cache["num"])
    return (int(cache["free_limit"]) + most - 1) // most


# Pages


@inner
def first_gfp(s: Any, gfp: int) -> int:
    """``gfp_exact_node`` (6.1), ``GFP_THISNODE`` (older): the flags a refill grows with. With one node and CONFIG_NUMA off they are the caller's own."""
    if int(s.config[0]["numa"]) == 0:
        return gfp & ~GFP_NOFAIL
    if int(s.config[0]["variant"]) == V6_1:
        return (gfp | GFP_THISNODE | GFP_NOWARN) & ~(GFP_RECLAIM | GFP_NOFAIL)
    return gfp | GFP_THISNODE


@slow
def slab_pages(b: Any, s: Any, c: int, cpu: int, gfp: int) -> int:
    """``kmem_getpages``: page frames for a slab, or a negative error."""
    cache = s.cache[c]
    return alloc_pages(b, cpu, int(cache["order"]), gfp & GFP_SLAB | int(cache["allocflags"]), False)


@slow
def mark_slab(b: Any, row: int, pfn: int, order: int) -> None:
    """The page table knows the slab's pages: freeing one of them as a page is then refused."""
    for i in range(pfn, pfn + (1 << order)):
        b.page[i]["flags"] = int(b.page[i]["flags"]) | PG_SLAB
        b.page[i]["next"] = row


@slow
def free_slab_pages(b: Any, s: Any, row: int, cpu: int) -> None:
    """``kmem_freepages``."""
    pfn = int(s.slab[row]["pfn"])
    order = int(s.slab[row]["order"])
    release_row(s, row)
    free_pages_prepare(b, pfn, order)
    free_the_page(b, cpu, pfn, order)


@inner
def defer(s: Any, row: int) -> None:
    """The slab waits for a grace period, behind those that wait already."""
    config = s.config[0]
    s.slab[row]["next"] = END
    if int(config["rcu"]) == END:
        config["rcu"] = row
    else:
        s.slab[int(config["rcu_last"])]["next"] = row
    config["rcu_last"] = row


@slow
def slabs_destroy_plain(b: Any, s: Any, chain: int, cpu: int) -> None:
    """``slabs_destroy`` for caches whose management data is not off the slab."""
    while chain != END:
        following = int(s.slab[chain]["next"])
        if int(s.cache[int(s.slab[chain]["cache"])]["flags"]) & SLAB_TYPESAFE_BY_RCU:
            defer(s, chain)
        else:
            free_slab_pages(b, s, chain, cpu)
        chain = following


@slow
def free_plain(b: Any, s: Any, row: int, address: int, cpu: int) -> None:
    """A free of management data: its cache has none off the slab itself."""
    c = int(s.slab[row]["cache"])
    ac = cpu_array(s, c, cpu)
    if int(s.array[ac]["avail"]) >= int(s.array[ac]["limit"]):
        slabs_destroy_plain(b, s, flush(s, c, ac), cpu)
    put(s, ac, address)


@slow
def slabs_destroy(b: Any, s: Any, chain: int, cpu: int) -> None:
    """``slabs_destroy``: the pages of each slab, then its management data if that is off the slab. Before 6.1 both wait for the grace period."""
    while chain != END:
        following = int(s.slab[chain]["next"])
        cache = s.cache[int(s.slab[chain]["cache"])]
        management = int(s.slab[chain]["management"])
        rcu = int(cache["flags"]) & SLAB_TYPESAFE_BY_RCU
        if rcu:
            defer(s, chain)
        else:
            free_slab_pages(b, s, chain, cpu)
        if management != END and (not rcu or int(s.config[0]["variant"]) == V6_1):
            free_plain(b, s, slab_of(s, management), management, cpu)
        chain = following


@slow
def rcu_done(b: Any, s: Any, cpu: int) -> int:
    """A grace period has passed: the pages of all waiting slabs go back. Returns how many slabs they were."""
    config = s.config[0]
    count = 0
    row = int(config["rcu"])
    config["rcu"] = END
    config["rcu_last"] = END
    while row != END:
        following = int(s.slab[row]["next"])
        management = int(s.slab[row]["management"])
        free_slab_pages(b, s, row, cpu)
        if management != END and int(config["variant"]) != V6_1:
            free_plain(b, s, slab_of(s, management), management, cpu)
        count += 1
        row = following
    return count


# Whole requests


@slow
def finish(s: Any, c: int, cpu: int, row: int, batchcount: int, attempt: int) -> int:
    """The request has its new slab. The second attempt's comes on its list as it is, and the object straight from there (fallback_alloc)."""
    if attempt == 0:
        return take_new(s, c, cpu, row, batchcount)
    grow_end(s, c, row)
    return node_alloc(s, c)


@slow
def grow_plain(b: Any, s: Any, c: int, cpu: int, gfp: int) -> int:
    """A new slab's row for a cache without management data off the slab, or a negative error."""
    if not has_room(s, c):
        return -ENOSPC
    pfn = slab_pages(b, s, c, cpu, gfp)
    if pfn < 0:
        return pfn
    row = grow_begin(s, c, pfn)
    mark_slab(b, row, pfn, int(s.cache[c]["order"]))
    return row


@inner
def may_fall_back(s: Any, attempt: int, error: int, gfp: int) -> bool:
    """Whether a request that got no page goes on with its own flags, reclaim included (fallback_alloc)."""
    return attempt == 0 and error != -ENOSPC and int(s.config[0]["numa"]) != 0 and gfp & GFP_THISNODE == 0


@slow
def take_or_refill(s: Any, c: int, cpu: int, left: Any) -> int:
    """An object without a new slab, or END; `left` gets what is left of the batch."""
    ac = cpu_array(s, c, cpu)
    address = take(s, ac)
    if address == END:
        left[0] = refill(s, c, cpu)
        address = take(s, ac)
    return address


@slow
def grow_request(b: Any, s: Any, c: int, cpu: int, gfp: int, left: Any) -> int:
    """A request for which there must be a new slab: its object, or a negative error.

    At first this node's pages without reclaim, then the request's own flags. Management data off the slab is a request of the same kind, inside this one;
    it is done by the same loop, so that there is one call of the page allocator to compile.
    """
    target, flags, attempt, batchcount = c, gfp, 0, int(left[0])
    outer, outer_attempt, outer_batchcount = END, 0, 0
    while True:
        cache = s.cache[target]
        management = int(cache["management_cache"]) if int(cache["management"]) == OFF_SLAB else END
        used = flags if attempt else first_gfp(s, flags)
        row = -ENOSPC
        if management == END or has_room(s, management):
            row = grow_plain(b, s, target, cpu, used)
        if row < 0:
            if may_fall_back(s, attempt, row, flags):
                attempt = 1
                continue
            if outer == END:
                return row
            free_slab_pages(b, s, outer, cpu)
            if not may_fall_back(s, outer_attempt, row, gfp):
                return row
            target, flags, attempt, outer = c, gfp, 1, END
            continue
        if management != END:
            address = take_or_refill(s, management, cpu, left)
            if address == END:
                outer, outer_attempt, outer_batchcount = row, attempt, batchcount
                target, flags, attempt, batchcount = management, used & GFP_SLAB & ~GFP_CONSTRAINT, 0, int(left[0])
                continue
            s.slab[row]["management"] = address
        address = finish(s, target, cpu, row, batchcount, attempt)
        if outer == END:
            return address
        s.slab[outer]["management"] = address
        return finish(s, c, cpu, outer, outer_batchcount, outer_attempt)


@inner
def kmem_cache_alloc(b: Any, s: Any, c: int, cpu: int, gfp: int) -> int:
    """``kmem_cache_alloc``: an object's physical address; -ENOMEM or -EAGAIN as `page_alloc.alloc_pages`; -ENOSPC: `reserve` room and call again."""
    address = take(s, cpu_array(s, c, cpu))
    if address == END:
        left = s.scratch
        address = take_or_refill(s, c, cpu, left)
        if address == END:
            address = grow_request(b, s, c, cpu, gfp, left)
    return address


@inner
def kmem_cache_free(b: Any, s: Any, address: int, cpu: int) -> int:
    """``kmem_cache_free`` and ``kfree``: 0, or what `check_free` refuses."""
    row = check_free(s, address)
    if row < 0:
        return row
    c = int(s.slab[row]["cache"])
    ac = cpu_array(s, c, cpu)
    if int(s.array[ac]["avail"]) >= int(s.array[ac]["limit"]):
        slabs_destroy(b, s, flush(s, c, ac), cpu)
    put(s, ac, address)
    return 0


@slow
def drain_array(b: Any, s: Any, c: int, ac: int, cpu: int) -> None:
    """``drain_array``: an array used since the last pass only loses its mark."""
    array = s.array[ac]
    if int(array["avail"]) == 0:
        return
    if int(array["touched"]):
        array["touched"] = 0
        return
    slabs_destroy(b, s, drain_array_locked(s, c, ac, False), cpu)


@slow
def drain_freelist(b: Any, s: Any, c: int, most: int, cpu: int) -> int:
    """Gives up to `most` free slabs back, from the list's tail; returns how many."""
    count = 0
    while count < most:
        row = drain_one(s, c)
        if row == END:
            break
        slabs_destroy(b, s, row, cpu)
        count += 1
    return count


@slow
def reap_cache(b: Any, s: Any, c: int, cpu: int, jiffies: int) -> None:
    """One cache's turn in ``cache_reap``."""
    cache = s.cache[c]
    drain_array(b, s, c, cpu_array(s, c, cpu), cpu)
    if int(cache["next_reap"]) > jiffies:
        return
    cache["next_reap"] = jiffies + 4 * int(s.config[0]["hz"])
    drain_array(b, s, c, shared_array(s, c), cpu)
    if int(cache["free_touched"]):
        cache["free_touched"] = 0
    else:
        drain_freelist(b, s, c, reap_slabs(s, c), cpu)


@slow
def cache_reap(b: Any, s: Any, cpu: int, jiffies: int) -> None:
    """``cache_reap``: a CPU's periodic pass over all caches (every 2 seconds), the newest first."""
    for c in range(int(s.config[0]["caches"]) - 1, -1, -1):
        if int(s.cache[c]["live"]):
            reap_cache(b, s, c, cpu, jiffies)


@slow
def shrink(b: Any, s: Any, c: int, here: int) -> int:
    """``kmem_cache_shrink``: every array is emptied (first CPU first), then every free slab goes; 1 if slabs with objects are left, else 0."""
    for cpu in range(int(s.config[0]["nr_cpus"])):
        slabs_destroy(b, s, drain_array_locked(s, c, cpu_array(s, c, cpu), True), cpu)
    slabs_destroy(b, s, drain_array_locked(s, c, shared_array(s, c), True), here)
    drain_freelist(b, s, c, EVERYTHING, here)
    full, partial = c * LISTS + FULL, c * LISTS + PARTIAL
    return 1 if int(s.slab[full]["next"]) != full or int(s.slab[partial]["next"]) != partial else 0


# Entry points

ALLOC, FREE_OBJECT, REAP, SHRINK, RCU_DONE = range(5)


@kernel
def request_kernel(b: Any, s: Any, request: int, c: int, cpu: int, argument: int) -> int:
    """All requests in one piece of compiled code, because each piece takes the page allocator's whole time to compile.

    `ALLOC` (argument: GFP flags), `FREE_OBJECT` (its address), `REAP` (jiffies), `SHRINK`, `RCU_DONE`.
    """
    if request == ALLOC:
        return kmem_cache_alloc(b, s, c, cpu, argument)
    if request == FREE_OBJECT:
        return kmem_cache_free(b, s, argument, cpu)
    if request == SHRINK:
        return shrink(b, s, c, cpu)
    if request == RCU_DONE:
        return rcu_done(b, s, cpu)
    cache_reap(b, s, cpu, argument)
    return 0


def alloc_object(b: Pgdat, s: ClassicSlab, c: int, cpu: int, gfp: int) -> int:
    """`kmem_cache_alloc` for callers outside compiled code."""
    return request_kernel(b, s, ALLOC, c, cpu, gfp)


def free_object(b: Pgdat, s: ClassicSlab, address: int, cpu: int) -> int:
    """`kmem_cache_free` for callers outside compiled code."""
    return request_kernel(b, s, FREE_OBJECT, 0, cpu, address)


def reap(b: Pgdat, s: ClassicSlab, cpu: int, jiffies: int) -> None:
    """`cache_reap` for callers outside compiled code."""
    request_kernel(b, s, REAP, 0, cpu, jiffies)


def shrink_cache(b: Pgdat, s: ClassicSlab, c: int, cpu: int) -> int:
    """`shrink` for callers outside compiled code."""
    return request_kernel(b, s, SHRINK, c, cpu, 0)


def end_grace_period(b: Pgdat, s: ClassicSlab, cpu: int) -> int:
    """`rcu_done` for callers outside compiled code."""
    return request_kernel(b, s, RCU_DONE, 0, cpu, 0)


def kmem_cache_create(
    state: ClassicSlab,
    geometry: SlabGeometry,
    *,
    object_size: int = 0,
    flags: int = 0,
    management_cache: int = END,
    ctor: bool = False,
    jiffies: int = 0,
    address: int = 0,
    tune: tuple[int, int, int] | None = None,
) -> tuple[ClassicSlab, int]:
    """A new cache: the state with it, and its row.

    :param geometry: of `slab_classic_geometry.slab_geometry`.
    :param management_cache: row of the kmalloc cache for management data; needed if that is off the slab. It must not have its own off the slab.
    :param address: of the kmem_cache object: it spreads the caches' periodic passes over the seconds.
    :param tune: limit, batchcount and shared other than `array_limits` gives.
    :raises ValueError: no room for another cache, or no fit management cache.
    """
    config = state.config[0]
    c = int(config["caches"])
    if c >= MAX_CACHES:
        raise ValueError(f"no room for another cache; there are {MAX_CACHES} already")
    if geometry.management == OFF_SLAB and not (0 <= management_cache < c and state.cache[management_cache]["management"] != OFF_SLAB):
        raise ValueError("management data off the slab needs a cache that has its own on the slab")
    nr_cpus, hz = int(config["nr_cpus"]), int(config["hz"])
    limit, batchcount, shared = tune or array_limits(geometry.size, nr_cpus)
    row = state.cache[c]
    row["flags"], row["size"], row["object_size"], row["num"] = flags, geometry.size, object_size or geometry.size, geometry.num
    row["order"], row["colour"], row["colour_off"], row["header"] = geometry.order, geometry.colour, geometry.colour_off, geometry.header
    row["management"], row["management_size"] = geometry.management, geometry.management_size
    row["management_cache"] = management_cache if geometry.management == OFF_SLAB else END
    row["allocflags"], row["align"], row["ctor"], row["live"], row["unused_slab"] = geometry.allocflags, geometry.align, int(ctor), 1, END
    row["free_limit"] = free_limit(nr_cpus, batchcount, geometry.num)
    row["next_reap"] = jiffies + 4 * hz + address % (4 * hz)
    config["caches"] = c + 1
    return add_arrays(state, c, limit, batchcount, shared), c
