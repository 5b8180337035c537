"""Finding the places to probe in SLUB's code; here a few instructions made by hand, as a compiler would choose them."""

from __future__ import annotations

import pytest

from mmtwin.errors import CaptureError
from mmtwin.recording.capture.probes import CALL, JUMP, NOP5, SlabLayout, Symbols
from mmtwin.recording.capture.slab_probes import family, slab_probes
from mmtwin.recording.convert import COLUMNS, NUMBERED
from mmtwin.recording.model import KINDS

BASE, PV_OPS = 0xFFFFFFFF81000000, 0xFFFFFFFF82000000
LAYOUT = SlabLayout(
    cache_cpu_slab=0, cache_flags=8, cache_min_partial=16, cache_size=24, cache_object_size=28, cache_inuse=80, cache_align=84, cache_oo=52, cache_refcount=64,
    cache_name=96, cache_random_seq=200, cpu_tid=8, cpu_slab=16, cpu_partial=24, slab_freelist=32, flush_cache=32, irq_disable=248, nr_cpus=8192,
)  # fmt: skip
IRQS_OFF = "irqs off"
NOP, RET = b"\x90", b"\xc3"
LEA_RSI_RDI, LEA_RSI_R8 = b"\x48\x8d\x37", b"\x49\x8d\x30"  # lea (%rdi),%rsi; lea (%r8),%rsi
SEEN, COMPARE = b"\x48\x8b\x74\x24\x40", b"\x49\x39\x76\x10"  # mov 0x40(%rsp),%rsi; cmp %rsi,0x10(%r14)
JNE, JE = b"\x75\x00", b"\x74\x00"
NONE_YET, LOADED, TEST = b"\x49\x83\x7e\x10\x00", b"\x49\x8b\x76\x10", b"\x48\x85\xf6"  # cmpq $0,0x10(%r14); mov 0x10(%r14),%rsi; test %rsi,%rsi
STEP = b"\x49\x81\x40\x08\x00\x20\x00\x00"  # addq $0x2000,8(%r8)
HEAD, EXCHANGE = b"\x4c\x89\xc3", b"\xf0\x48\x0f\xc7\x4e\x20"  # mov %r8,%rbx; lock cmpxchg16b 0x20(%rsi)
Piece = bytes | str | tuple[str, str]


class Code(Symbols):
    """Symbols over code that is laid out here."""

    def __init__(self, functions: dict[str, list[Piece]]) -> None:
        def size(piece: Piece) -> int:
            return 6 if piece == IRQS_OFF else 5 if isinstance(piece, tuple) else len(piece)

        at, sizes = 0, {}
        for name, pieces in functions.items():
            sizes[name] = (at, sum(map(size, pieces)))
            at += sizes[name][1]
        text = bytearray()
        for pieces in functions.values():
            for piece in pieces:
                if isinstance(piece, tuple):
                    text += bytes([CALL if piece[0] == "call" else JUMP]) + (sizes[piece[1]][0] - len(text) - 5).to_bytes(4, "little", signed=True)
                elif isinstance(piece, str):
                    text += b"\xff\x15" + (PV_OPS + LAYOUT.irq_disable - BASE - len(text) - 6).to_bytes(4, "little", signed=True)
                else:
                    text += piece
        self._functions = {name: (BASE + start, length) for name, (start, length) in sizes.items()}
        self._objects = {"pv_ops": PV_OPS}
        self._start, self._text = BASE, bytes(text)


def kernel(**changes: list[Piece] | None) -> Code:
    """SLUB in miniature; names in `changes` have _dot_ for a dot."""
    leaves = ("this_cpu_cmpxchg16b_emu", "__x86_return_thunk", "_raw_spin_lock_irqsave", "_raw_spin_lock_irq", "memcg_slab_post_alloc_hook")
    take: list[Piece] = [NOP5, NOP, LEA_RSI_RDI, ("call", "this_cpu_cmpxchg16b_emu"), RET]
    lock: list[Piece] = [NOP5, ("call", "_raw_spin_lock_irqsave"), NOP, RET]
    plain: list[Piece] = [NOP5, RET]
    sections: list[Piece] = [IRQS_OFF, SEEN, COMPARE, JNE, IRQS_OFF, NONE_YET, JNE, IRQS_OFF, SEEN, COMPARE, JE, IRQS_OFF, LOADED, TEST, JNE, RET]
    functions: dict[str, list[Piece] | None] = {name: [RET] for name in leaves}
    functions |= {
        "kmem_cache_alloc": take, "__kmem_cache_alloc_node": take,
        "kmem_cache_free": [NOP5, LEA_RSI_R8, ("call", "this_cpu_cmpxchg16b_emu"), RET],
        "kmem_cache_free_bulk.part.0": take, "kmem_cache_free_bulk": [NOP5, ("jump", "kmem_cache_free_bulk.part.0")],
        "___slab_alloc": [NOP5, *sections], "get_partial_node.part.0": lock, "allocate_slab": [NOP5, ("jump", "__x86_return_thunk")], "allocate_slab.cold": [NOP],
        "cmpxchg_double_slab.constprop.0.isra.0": [HEAD, EXCHANGE, RET], "__slab_free": [NOP5, ("call", "cmpxchg_double_slab.constprop.0.isra.0"), RET],
        "deactivate_slab": plain, "put_cpu_partial": [NOP5, IRQS_OFF, NOP, RET], "__unfreeze_partials": lock,
        "kmem_cache_alloc_bulk": [NOP5, STEP, ("call", "memcg_slab_post_alloc_hook"), RET], "flush_cpu_slab": [NOP5, IRQS_OFF, STEP, IRQS_OFF, NOP, RET],
        "__kmem_cache_do_shrink": lock, "sysfs_slab_add": plain, "__kmem_cache_alias": [NOP5, ("jump", "__x86_return_thunk")],
        "__kmem_cache_shutdown": [NOP5, ("call", "_raw_spin_lock_irq"), RET], "slub_cpu_dead": plain,
    }  # fmt: skip
    functions |= {name.replace("_dot_", "."): pieces for name, pieces in changes.items()}
    return Code({name: pieces for name, pieces in functions.items() if pieces is not None})


def where(symbols: Symbols) -> dict[str, str]:
    return {p.name: " ".join(p.definition.split()[1:]) for p in slab_probes(symbols, LAYOUT)}


def test_every_probe_is_where_the_list_changes() -> None:
    found = where(kernel())
    assert found["slab_take0"] == "kmem_cache_alloc+6 ptr=%di:x64"
    assert found["slab_take1"] == "__kmem_cache_alloc_node+6 ptr=%di:x64"
    gives = {found[n].split("+")[0]: found[n] for n in ("slab_give0", "slab_give1")}
    assert "slab_take2" not in found
    assert gives["kmem_cache_free"] == "kmem_cache_free+5 ptr=%r8:x64 head=%bx:x64"
    assert "kmem_cache_free_bulk.part.0" in gives
    assert found["slab_slow"].startswith("___slab_alloc+5 ptr=%di:x64 gfp=%si:x32")
    assert [found[f"slab_{k}0"] for k in ("refill", "cpu_partial", "deactivate", "load")] == [f"___slab_alloc+{o}" for o in (11, 28, 41, 58)]
    assert (found["slab_node_partial0"], found["slab_unfreeze0"]) == ("get_partial_node.part.0+10", "__unfreeze_partials+10")
    assert found["slab_new0"] == "allocate_slab+5 slab=%ax:x64 ptr=+32(%ax):x64"
    assert found["slab_cmpxchg0"] == "__slab_free+5 page=%si:x64 head=%r8:x64", "tracefs takes no probe on an inline function: its calls"
    assert found["slab_put_partial0"] == "put_cpu_partial+11 drain=%dx:s32"
    assert found["slab_bulk_pop0"] == "kmem_cache_alloc_bulk+5"
    assert found["slab_bulk_got0"] == "kmem_cache_alloc_bulk+13 n=%cx:s64 p0=+0(%r8):x64[64]"
    assert (found["slab_flush_slab0"], found["slab_flush_partial0"]) == ("flush_cpu_slab+11", "flush_cpu_slab+25")
    assert found["slab_shutdown_lock0"] == "__kmem_cache_shutdown+10"


def test_long_arrays_come_in_pieces_the_first_one_first() -> None:
    """Probes at one place run last registered first."""
    probes = [p for p in slab_probes(kernel(), LAYOUT) if p.name.startswith(("slab_bulk_free", "slab_create"))]
    assert [p.name for p in probes] == [f"{kind}{k}" for kind in ("slab_bulk_free", "slab_create") for k in range(7, -1, -1)]
    assert {p.definition.split()[1] for p in probes} == {"kmem_cache_free_bulk.part.0+5", "sysfs_slab_add+5"}
    assert [p.filter for p in probes if p.name.endswith(("0", "3"))] == ["n > 192", "", "objects > 192", ""]
    assert "p192=+1536(%dx):x64[64]" in probes[4].definition
    assert "name=+0(+96(%di)):string" in probes[-1].definition


def test_kinds_and_columns_fit_together() -> None:
    """Every probe's event is a kind, and what goes into its columns is fetched by the probe (or by its first piece)."""
    for probe in slab_probes(kernel(), LAYOUT):
        kind = NUMBERED.sub(r"\1", probe.name)
        assert kind in KINDS
        fields = {word.split("=")[0] for word in probe.definition.split()[2:]}
        if probe.name not in {f"{k}{i}" for k in ("slab_bulk_free", "slab_create") for i in range(1, 8)}:
            assert set(COLUMNS[kind]) <= fields
        assert all(len(word) < 64 for word in probe.definition.split()[2:]), "the kernel's MAX_ARGSTR_LEN"


def test_an_exchange_in_place_is_probed_itself() -> None:
    symbols = kernel(__slab_free=[NOP5, NOP, b"\xf0\x49\x0f\xc7\x4e\x20", RET], cmpxchg_double_slab_dot_constprop_dot_0_dot_isra_dot_0=None)
    assert where(symbols)["slab_cmpxchg0"] == "__slab_free+6 page=%r14:x64 head=%bx:x64"


def test_interrupts_switched_off_without_paravirtual_calls() -> None:
    cli = b"\xfa"
    changes = {n: [cli if p == IRQS_OFF else p for p in pieces] for n, pieces in {
        "___slab_alloc": [NOP5, IRQS_OFF, SEEN, COMPARE, JNE, IRQS_OFF, NONE_YET, JNE, IRQS_OFF, SEEN, COMPARE, JE, IRQS_OFF, LOADED, TEST, JNE, RET],
        "put_cpu_partial": [NOP5, IRQS_OFF, NOP], "flush_cpu_slab": [NOP5, IRQS_OFF, STEP, IRQS_OFF, NOP],
    }.items()}  # fmt: skip
    found = {p.name: p.definition.split()[1] for p in slab_probes(kernel(**changes), LAYOUT._replace(irq_disable=-1))}
    assert found["slab_load0"] == "___slab_alloc+38"
    assert found["slab_put_partial0"] == "put_cpu_partial+6"


def test_without_random_sequences_a_cache_is_one_probe() -> None:
    found = {p.name for p in slab_probes(kernel(), LAYOUT._replace(cache_random_seq=-1))}
    assert {n for n in found if n.startswith("slab_create")} == {"slab_create0"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"___slab_alloc": None}, "has no function ___slab_alloc"),
        ({"___slab_alloc": [NOP5, IRQS_OFF, SEEN, COMPARE, JNE, RET]}, "no section slab_cpu_partial"),
        ({"___slab_alloc": [NOP5, IRQS_OFF, NOP, NOP, NOP, NOP, RET]}, "for something unknown"),
        ({"kmem_cache_alloc": [NOP5, b"\x48\x8d\x77\x08", ("call", "this_cpu_cmpxchg16b_emu"), RET]}, "no plain per-CPU pointer before kmem_cache_alloc"),
        ({"put_cpu_partial": [NOP5, b"\x31\xd2", IRQS_OFF, NOP]}, "changes %edx"),
        ({"__slab_free": [NOP5]}, "no exchange of a slab's free list"),
        ({"cmpxchg_double_slab_dot_constprop_dot_0_dot_isra_dot_0": [RET]}, "0 times"),
        ({"kmem_cache_free_bulk": [NOP5, b"\x31\xd2", ("jump", "kmem_cache_free_bulk.part.0")]}, "other arguments"),
        ({"flush_cpu_slab": [NOP5, IRQS_OFF, STEP, RET]}, "takes the partial list"),
        ({"__unfreeze_partials": [NOP5, RET]}, "call of _raw_spin_lock_irqsave in __unfreeze_partials"),
        ({"sysfs_slab_add": None}, "no function sysfs_slab_add"),
    ],
)
def test_a_kernel_that_cannot_be_recorded_says_why(change: dict[str, list[Piece] | None], says: str) -> None:
    with pytest.raises(CaptureError, match=says) as caught:
        slab_probes(kernel(**change), LAYOUT)
    assert "\n" not in str(caught.value)


def test_registers_by_their_kprobe_names() -> None:
    assert [family(r) for r in ("rax", "edx", "dx", "dl", "r8", "r8d", "r14b", "sil", "rbp")] == ["ax", "dx", "dx", "dx", "r8", "r8", "r14", "si", "bp"]
