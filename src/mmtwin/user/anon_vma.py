"""Who may share an anonymous page: anon_vmas and their links to areas (mm/rmap.c of Linux 6.1).

An area has a link to its own anon_vma and one to that of each ancestor's. Whether it has only one decides whether it merges with a neighbour.
"""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, slow
from mmtwin.mm.vmap_tables import NIL
from mmtwin.user.mm_tables import FREE_ANON, FREE_AVC, NEW_ANON, NEW_AVC, VM_WIPEONFORK


@inner
def log(s: Any, kind: int, row: int) -> None:
    """Tells the caller of a slab object."""
    n = int(s.config[0]["log"])
    s.log[n]["kind"], s.log[n]["row"] = kind, row
    s.config[0]["log"] = n + 1


@inner
def new_avc(s: Any) -> int:
    """``anon_vma_chain_alloc``."""
    config = s.config[0]
    row = int(config["free_avc"])
    if row != NIL:
        config["free_avc"] = int(s.avc[row]["next"])
    else:
        row = int(config["avcs"])
        config["avcs"] = row + 1
    log(s, NEW_AVC, row)
    return row


@inner
def free_avc(s: Any, row: int) -> None:
    """``anon_vma_chain_free``."""
    log(s, FREE_AVC, int(s.avc[row]["object"]))
    s.avc[row]["anon_vma"] = NIL
    s.avc[row]["next"] = int(s.config[0]["free_avc"])
    s.config[0]["free_avc"] = row


@inner
def new_anon_vma(s: Any) -> int:
    """``anon_vma_alloc``."""
    config = s.config[0]
    row = int(config["free_anon"])
    if row != NIL:
        config["free_anon"] = int(s.anon[row]["next"])
    else:
        row = int(config["anons"])
        config["anons"] = row + 1
    anon = s.anon[row]
    anon["root"], anon["parent"], anon["refcount"] = row, row, 1
    anon["num_children"], anon["num_active_vmas"], anon["nr"], anon["first"] = 0, 0, 0, NIL
    log(s, NEW_ANON, row)
    return row


@inner
def free_anon_vma(s: Any, row: int) -> None:
    """``anon_vma_free``."""
    log(s, FREE_ANON, int(s.anon[row]["object"]))
    s.anon[row]["root"] = NIL
    s.anon[row]["next"] = int(s.config[0]["free_anon"])
    s.config[0]["free_anon"] = row


@inner
def chain_link(s: Any, row: int, avc: int, anon: int) -> None:
    """``anon_vma_chain_link``: to the head of the area's list."""
    first = int(s.vma[row]["chain"])
    s.avc[avc]["anon_vma"], s.avc[avc]["next"], s.avc[avc]["prev"] = anon, first, NIL
    if first != NIL:
        s.avc[first]["prev"] = avc
    s.vma[row]["chain"] = avc
    after = int(s.anon[anon]["first"])
    s.avc[avc]["vma"], s.avc[avc]["rb_next"], s.avc[avc]["rb_prev"] = row, after, NIL
    if after != NIL:
        s.avc[after]["rb_prev"] = avc
    s.anon[anon]["first"] = avc
    s.anon[anon]["nr"] = int(s.anon[anon]["nr"]) + 1


@inner
def chain_unlink(s: Any, avc: int) -> int:
    """``anon_vma_interval_tree_remove``: the anon_vma no longer knows the area; how many it still knows."""
    anon, after, before = int(s.avc[avc]["anon_vma"]), int(s.avc[avc]["rb_next"]), int(s.avc[avc]["rb_prev"])
    if after != NIL:
        s.avc[after]["rb_prev"] = before
    if before != NIL:
        s.avc[before]["rb_next"] = after
    else:
        s.anon[anon]["first"] = after
    left = int(s.anon[anon]["nr"]) - 1
    s.anon[anon]["nr"] = left
    return left


@inner
def activate(s: Any, anon: int, by: int) -> None:
    """One more area, or one less, puts its new pages there."""
    s.anon[anon]["num_active_vmas"] = int(s.anon[anon]["num_active_vmas"]) + by


@slow
def anon_vma_clone(s: Any, row: int, source: int) -> None:
    """``anon_vma_clone``: the area gets the same links; if it has lost its own anon_vma (fork) it takes one that nobody uses any more."""
    avc = int(s.vma[source]["chain"])
    while avc != NIL and int(s.avc[avc]["next"]) != NIL:
        avc = int(s.avc[avc]["next"])
    while avc != NIL:
        anon = int(s.avc[avc]["anon_vma"])
        chain_link(s, row, new_avc(s), anon)
        if (
            int(s.vma[row]["anon_vma"]) == NIL
            and int(s.vma[source]["anon_vma"])
            and int(s.anon[anon]["num_children"]) < 2
            and not int(s.anon[anon]["num_active_vmas"])
        ):
            s.vma[row]["anon_vma"] = anon
        avc = int(s.avc[avc]["prev"])
    if int(s.vma[row]["anon_vma"]):
        activate(s, int(s.vma[row]["anon_vma"]), 1)


@slow
def anon_vma_fork(s: Any, row: int, parent: int) -> None:
    """``anon_vma_fork``: links to the parent's, and an anon_vma of its own for the pages that the child copies; with MADV_WIPEONFORK there are none (``dup_mmap``)."""
    old = int(s.vma[parent]["anon_vma"])
    s.vma[row]["anon_vma"] = NIL
    if old == NIL or int(s.vma[row]["vm_flags"]) & VM_WIPEONFORK:
        return
    anon_vma_clone(s, row, parent)
    if int(s.vma[row]["anon_vma"]):
        return
    anon = new_anon_vma(s)
    activate(s, anon, 1)
    avc = new_avc(s)
    root = int(s.anon[old]["root"])
    s.anon[anon]["root"], s.anon[anon]["parent"] = root, old
    s.anon[root]["refcount"] = int(s.anon[root]["refcount"]) + 1
    s.vma[row]["anon_vma"] = anon
    chain_link(s, row, avc, anon)
    s.anon[old]["num_children"] = int(s.anon[old]["num_children"]) + 1


@inner
def put_anon_vma(s: Any, anon: int) -> None:
    """``put_anon_vma``."""
    left = int(s.anon[anon]["refcount"]) - 1
    s.anon[anon]["refcount"] = left
    if left == 0:
        root = int(s.anon[anon]["root"])
        free_anon_vma(s, anon)
        if root != anon:
            held = int(s.anon[root]["refcount"]) - 1
            s.anon[root]["refcount"] = held
            if held == 0:
                free_anon_vma(s, root)


@slow
def unlink_anon_vmas(s: Any, row: int) -> None:
    """``unlink_anon_vmas``: links to anon_vmas that others use go first, those that are left empty with their anon_vma behind them."""
    avc, kept, last = int(s.vma[row]["chain"]), NIL, NIL
    while avc != NIL:
        next_, anon = int(s.avc[avc]["next"]), int(s.avc[avc]["anon_vma"])
        if chain_unlink(s, avc) == 0:
            parent = int(s.anon[anon]["parent"])
            s.anon[parent]["num_children"] = int(s.anon[parent]["num_children"]) - 1
            if last != NIL:
                s.avc[last]["next"] = avc
            else:
                kept = avc
            last = avc
            s.avc[avc]["next"] = NIL
        else:
            free_avc(s, avc)
        avc = next_
    own = int(s.vma[row]["anon_vma"])
    if own:
        activate(s, own, -1)
        s.vma[row]["anon_vma"] = NIL
    s.vma[row]["chain"] = NIL
    while kept != NIL:
        next_ = int(s.avc[kept]["next"])
        put_anon_vma(s, int(s.avc[kept]["anon_vma"]))
        free_avc(s, kept)
        kept = next_


@inner
def anon_vma_prepare(s: Any, row: int, shared: int) -> None:
    """``__anon_vma_prepare``: an area's first anonymous page is about to come. `shared`: the neighbour's anon_vma, NIL for a new one."""
    avc = new_avc(s)
    anon = shared
    if anon == NIL:
        anon = new_anon_vma(s)
        s.anon[anon]["num_children"] = 1  # its own parent
    s.vma[row]["anon_vma"] = anon
    chain_link(s, row, avc, anon)
    activate(s, anon, 1)
