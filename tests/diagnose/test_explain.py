"""Reports of real kernels as their owners published them (sources: docs/explain.md), judged; damaged logs; arithmetic by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtwin.diagnose.explain import Explanation, explain_log, explain_text, scan
from mmtwin.diagnose.explain.kernel_version import find_kernel, releases
from mmtwin.diagnose.explain.log_gfp import ERAS, decode, parse_names, spell
from mmtwin.diagnose.explain.log_lines import strip
from mmtwin.diagnose.explain.model import VERDICTS
from mmtwin.diagnose.explain.show import explanation_lines
from mmtwin.diagnose.explain.stack import read_stack
from mmtwin.diagnose.explain.zone_rules import Ask, lower, rules_of, takes
from mmtwin.errors import LogError

LOGS = Path(__file__).parent.parent / "data" / "kernel-logs"
SLUB = Path(__file__).parent.parent / "data" / "slub-debug-reports.txt"
EXPECTED: dict[str, list[tuple[str, str, dict[str, tuple[str, int]]]]] = {
    "p01": [("no_block", "decided", {"DMA": ("lowmem_reserve", -7), "Normal": ("no_block", 546)})] * 2,
    "p02": [
        (
            "per_order_watermark",
            "decided",
            {"DMA": ("lowmem_reserve", -2123), "DMA32": ("per_order_watermark", 30373), "Normal": ("per_order_watermark", 12736)},
        )
    ],
    "p03": [("no_block", "decided", {"Normal": ("no_block", 631)})],
    "p04": [("cma_only", "probable", {"Normal": ("blocks_not_shown", 599)})],
    "p05": [
        ("no_block", "decided", {"DMA": ("lowmem_reserve", -12512), "DMA32": ("lowmem_reserve", -6), "Normal": ("no_block", 15713)}),
        ("no_block", "decided", {"DMA": ("lowmem_reserve", -12512), "DMA32": ("lowmem_reserve", -15), "Normal": ("no_block", 5679)}),
    ],
    "p06": [("cma_only", "decided", {"Normal": ("cma_only", 4716), "HighMem": ("not_eligible", 0)})],
    "p07": [("watermark", "undecided", {"DMA": ("watermark", -288)})],
    "p08": [("watermark", "decided", {"Normal": ("watermark", -4)})] * 2,
    "p09": [("zone_eligibility", "decided", {"Movable": ("not_eligible", 0)})],
    "p10": [("watermark", "undecided", {"DMA": ("lowmem_reserve", -48), "Normal": ("watermark", -188), "HighMem": ("not_eligible", 0)})],
    "p11": [("vmalloc_address_space", "decided", {})],
    "p12": [("memcg_limit", "probable", {})],
    "p13": [("order_too_large", "decided", {})],
    "p14": [("use_after_free", "decided", {})],
    "p15": [("sleeping_in_atomic", "decided", {})],
    "p16": [("dma_from_stack", "decided", {})],
    "q01": [("watermark", "decided", {"DMA": ("lowmem_reserve", 0), "DMA32": ("watermark", -18)}), *[("evidence_missing", "undecided", {})] * 3],
    "q02": [
        ("no_block", "decided", {"DMA": ("lowmem_reserve", -28820), "DMA32": ("lowmem_reserve", -28), "Normal": ("no_block", 77627)}),
        ("not_shown", "undecided", {"DMA": ("lowmem_reserve", -28820), "DMA32": ("lowmem_reserve", -7), "Normal": ("passes", 59475)}),
    ],
    "q03": [("per_order_watermark", "decided", {"Normal": ("per_order_watermark", 203)})],
    "q04": [("watermark", "decided", {"DMA": ("lowmem_reserve", 0), "DMA32": ("watermark", -31)})],
    "q05": [("watermark", "decided", {"DMA": ("lowmem_reserve", -1), "Normal": ("watermark", -3), "HighMem": ("not_eligible", 0)})],
    "q06": [("watermark", "probable", {"DMA32": ("passes", 687), "Normal": ("watermark", -30)})],
    "q07": [("watermark", "undecided", {"Normal": ("watermark", -10373)})],
    "q08": [("evidence_missing", "undecided", {"DMA": ("passes", 386), "DMA32": ("empty", 0), "Normal": ("empty", 0), "HighMem": ("not_eligible", 0)})],
    "q09": [
        ("per_order_watermark", "decided", {"DMA": ("lowmem_reserve", -12), "Normal": ("per_order_watermark", 9571), "HighMem": ("not_eligible", 0)}),
        ("per_order_watermark", "decided", {"DMA": ("lowmem_reserve", -9), "Normal": ("per_order_watermark", 9355), "HighMem": ("not_eligible", 0)}),
        ("evidence_missing", "undecided", {"DMA": ("blocks_not_shown", 856)}),
    ],
    "q10": [("cma_only", "decided", {"Normal": ("cma_only", 1114)}), ("evidence_missing", "undecided", {})],
    "q11": [("memcg_limit", "decided", {})],
    "q12": [("out_of_bounds", "decided", {})],
    "q13": [("order_too_large", "decided", {})],
    "q14": [("watermark", "decided", {"DMA32": ("watermark", -21)})],
    "q15": [("watermark", "probable", {"Normal": ("watermark", -915)})],
    "q16": [("highatomic_only", "decided", {"DMA": ("lowmem_reserve", -28898), "DMA32": ("no_block", 388), "Normal": ("highatomic_only", -144)})],
    "q17": [
        ("watermark", "undecided", {"DMA": ("lowmem_reserve", -1), "DMA32": ("watermark", 0)}),
        ("evidence_missing", "undecided", {}),
        ("really_empty", "decided", {"DMA": ("empty", -1735), "DMA32": ("empty", -650)}),
        ("evidence_missing", "undecided", {}),
    ],
    "q18": [("zone_eligibility", "decided", {"DMA": ("empty", -63), "DMA32": ("not_eligible", 0), "Normal": ("not_eligible", 0)})],
    "q19": [("watermark", "undecided", {"Normal": ("lowmem_reserve", -8), "HighMem": ("watermark", -8)})],
    "q20": [("no_block", "decided", {"DMA": ("no_block", 4509), "DMA32": ("empty", -511), "Normal": ("empty", -511), "HighMem": ("not_eligible", 0)})],
    "q21": [("watermark", "probable", {"DMA": ("lowmem_reserve", 0), "Normal": ("passes", 120), "HighMem": ("watermark", -4)})],
    "q22": [("watermark", "probable", {"DMA": ("lowmem_reserve", -1), "Normal": ("blocks_not_shown", 74)})],
    "q23": [("watermark", "decided", {"Normal": ("watermark", -60)})],
    "q24": [
        ("watermark", "probable", {"DMA": ("watermark", -4), "Normal": ("watermark", -15), "HighMem": ("not_eligible", 0)}),
        ("evidence_missing", "undecided", {}),
    ],
    "q25": [("sleeping_in_atomic", "decided", {})],
    "q26": [("highatomic_only", "decided", {"DMA": ("lowmem_reserve", -23), "DMA32": ("highatomic_only", 18733)})],
    "q27": [("watermark", "decided", {"DMA": ("passes", 3469), "DMA32": ("watermark", -105)})],
    "q28": [("order_too_large", "decided", {})] * 2,
    "q29": [("watermark", "decided", {"DMA": ("watermark", -2), "Movable": ("not_eligible", 0)})],
    "q30": [("no_block", "decided", {"Normal": ("no_block", 575)})],
    "q31": [("cma_only", "decided", {"DMA": ("cma_only", 11707)})],
    "q32": [("watermark", "decided", {"DMA32": ("watermark", -1375)}), ("watermark", "decided", {"DMA32": ("watermark", -562)})],
    "q33": [("zone_eligibility", "decided", {})],
    "q34": [
        ("watermark", "decided", {"DMA": ("lowmem_reserve", -26), "DMA32": ("watermark", -665)}),
        ("watermark", "decided", {"DMA": ("lowmem_reserve", -9), "DMA32": ("watermark", -86)}),
    ],
    "q35": [("memcg_limit", "decided", {})],
}


def log(name: str) -> Path:
    return next(LOGS.glob(f"{name}-*.txt"))


def text(explanation: Explanation) -> str:
    return "\n".join(line for line, _ in explanation_lines(explanation, 100, True))


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_verdicts(name: str) -> None:
    explanation = explain_log(log(name))
    got = [(r.verdict.code, r.verdict.certainty, {z.zone.name: (z.rule, z.margin) for z in r.verdict.zones}) for r in explanation.reports]
    assert got == EXPECTED[name]
    summary = next((one for one in EXPECTED[name] if one[0] != "evidence_missing" and one[1] != "undecided"), EXPECTED[name][0])
    assert json.loads(json.dumps(explanation.to_dict()))["verdict"] == summary[0]
    assert all(code in VERDICTS for code in explanation.to_dict()["verdicts"])


def test_victim_of_the_oom_killer_may_go_deeper() -> None:
    victim = explain_log(log("q32")).reports[1].verdict
    assert any("killed this process before" in why for why in victim.why)
    assert any("victim of the OOM killer" in step for step in victim.zones[0].steps)
    other = log("q32").read_text().replace("Killed process 151 (tail)", "Killed process 152 (tail)")
    assert explain_text(other).reports[1].verdict.zones[0].margin == -1375
    old = Ask(0, decode(0xCC0, "GFP_KERNEL", (4, 13, 0)), (4, 13, 0), oom=True)
    assert (old.no_watermarks, replace(old, version=(4, 14, 0)).no_watermarks, lower(1000, replace(old, version=(4, 14, 0)))) == (True, False, 500)


def test_kill_of_a_report_into_which_another_cpu_printed() -> None:
    oom, page = explain_log(log("q34")).reports
    assert any("The kernel killed ingest (pid 152)" in why for why in oom.verdict.why)
    assert not any("killed" in why for why in page.verdict.why)
    assert oom.request is not None and page.request is not None
    assert (oom.request.caller, oom.request.place) == ("do_anonymous_page", "page fault")
    assert (page.request.caller, page.request.module, page.request.place) == ("pkp_get_frame", "pktpool", "kernel thread")
    one_differs = log("q34").read_text().replace("DMA32 free:1068kB", "DMA32 free:1064kB", 1)
    assert [report.verdict.certainty for report in explain_text(one_differs).reports] == ["probable", "probable"]


def test_dump_without_a_zone_is_evidence_only_if_it_is_whole() -> None:
    lines = log("q33").read_text().splitlines()
    cut = [line for line in lines if "hugepages_total" not in line and "pagecache" not in line]
    assert explain_text("\n".join(cut)).main.verdict.code == "evidence_missing"
    older = "\n".join(lines).replace("6.12.117", "6.0.12")
    assert explain_text(older).main.verdict.code == "evidence_missing"


def test_protections_that_count_the_low_watermark() -> None:
    text = """oom-killer: gfp_mask=0x1d2
DMA free:704kB min:44kB low:88kB high:132kB active:0kB inactive:10720kB present:16384kB
protections[]: 22 178 178
Normal free:620kB min:312kB low:624kB high:936kB active:5260kB inactive:98652kB present:114688kB
protections[]: 0 156 156
DMA: 0*4kB 0*8kB 0*16kB 0*32kB 1*64kB 1*128kB 0*256kB 1*512kB 0*1024kB 0*2048kB 0*4096kB = 704kB
Normal: 1*4kB 1*8kB 0*16kB 1*32kB 1*64kB 0*128kB 0*256kB 1*512kB 0*1024kB 0*2048kB 0*4096kB = 620kB"""
    zones = explain_text(text).main.verdict.zones
    assert [(z.zone.name, z.rule, z.margin) for z in zones] == [("DMA", "lowmem_reserve", -2), ("Normal", "watermark", -1)]


def test_without_an_mmu_nothing_joins_pages() -> None:
    """The page allocator's own dump and mm/nommu.c's, or only the latter."""
    q20 = explain_log(log("q20"))
    assert not any("kvmalloc" in remedy.what or "compact" in remedy.what for remedy in q20.main.verdict.remedies)
    text = """ma: page allocation failure. order:12, mode:0xd0
Call Trace:
Allocation of length 10485760 from process 144 failed
Normal free:7536kB min:948kB low:1184kB high:1420kB active:11176kB inactive:29284kB present:56320kB pages_scanned:0 all_unreclaimable? no
lowmem_reserve[]: 0 0 0
Normal: 58*4kB 7*8kB 3*16kB 1*32kB 0*64kB 0*128kB 0*256kB 6*512kB 4*1024kB 0*2048kB 0*4096kB 0*8192kB 0*16384kB 0*32768kB = 7536kB"""
    (report,) = explain_text(text).reports
    assert (report.verdict.code, report.verdict.zones[0].margin) == ("watermark", -2448)
    assert report.verdict.remedies[0].what.startswith("smaller mappings")


def test_vmalloc_of_a_range_in_two_lines_and_again_without_a_stack() -> None:
    text = """[    1.000000] vmalloc_node_range for size 1196032 failed: Address range restricted to 0xf1000000 - 0xf5110000
[    1.000001] modprobe: vmalloc error: size 1189956, vm_struct allocation failed, mode:0xcc0(GFP_KERNEL), nodemask=(null),cpuset=/,mems_allowed=0
[    1.000002] CPU: 0 UID: 0 PID: 1853 Comm: modprobe Not tainted 6.14.0-rc4-PMacG4-dirty #1
[    1.000003] Call Trace:
[    1.000004] [f427b930] [c04dea08] __vmalloc_node_range_noprof+0x154/0x958
[    1.000005] [f427ba00] [c04df2f8] execmem_vmalloc+0xec/0xf4
[    1.000006] vmalloc_node_range for size 1196032 failed: Address range restricted to 0xf1000000 - 0xf5110000
[    1.000007] vmalloc_node_range for size 1196032 failed: Address range restricted to 0xf1000000 - 0xf5110000"""
    (report,) = explain_text(text).reports
    assert (report.verdict.code, report.repeated, report.request and report.request.comm) == ("vmalloc_address_space", 3, "modprobe")


def test_who_asked() -> None:
    """Left-overs between the allocators' own functions; decoded frames; a page fault in a system call; the OOM killer is never called in a softirq."""
    old = " [<1>] __alloc_pages+0x282/0x29b\n [<2>] ipt_do_table+0x1eb/0x318\n [<3>] cache_grow+0x134/0x33d\n [<4>] __kmalloc+0x8a/0x94\n [<5>] e1000_alloc_rx_buffers+0x6f/0x2f3\n"
    assert read_stack(old).caller == "e1000_alloc_rx_buffers"
    guessed = "".join(
        f" [<1>] ? {name}+0x1/0x2\n"
        for name in ("dump_stack", "dump_header", "ktime_get", "oom_kill_process", "out_of_memory", "__alloc_pages_nodemask", "handle_mm_fault")
    )
    assert read_stack(guessed, "oom").caller == "handle_mm_fault"
    decoded = "dump_stack_lvl (lib/dump_stack.c:107)\nkasan_report (mm/kasan/report.c:426)\nops_init (net/core/net_namespace.c:0)\nsetup_net (net/core/net_namespace.c:329)\ndo_syscall_64 (arch/x86/entry/common.c:55)\n"
    assert (read_stack(decoded).caller, read_stack(decoded).place) == ("ops_init", "system call")
    names = ("__alloc_pages", "alloc_page_vma", "do_anonymous_page", "handle_mm_fault", "do_page_fault", "copy_to_user", "sys_read", "system_call_fastpath")
    fault = "".join(f" {name}+0x1/0x2\n" for name in names)
    assert (read_stack(fault, "page").place, read_stack(fault).place) == ("page fault", "system call")
    softirq = " out_of_memory+0x1/0x2\n __alloc_pages+0x1/0x2\n __do_softirq+0x1/0x2\n do_page_fault+0x1/0x2\n"
    assert (read_stack(softirq, "oom").place, read_stack(softirq, "page").place) == ("page fault", "softirq")


ATOMIC_4_9 = """[    1.000000] swapper/0: page allocation failure: order:0, mode:0x2080020(GFP_ATOMIC)
[    1.000001] CPU: 0 PID: 0 Comm: swapper/0 Not tainted 4.9.123 #1
[    1.000002] Normal free:1492kB min:964kB low:1204kB high:1444kB present:65536kB managed:60000kB
[    1.000003] lowmem_reserve[]: 0 0
[    1.000004] Normal: 13*4kB (H) 4*8kB (H) 4*16kB (H) 2*32kB (H) 2*64kB (H) 1*128kB (H) 0*256kB 2*512kB (H) 0*1024kB 0*2048kB 0*4096kB = 1492kB"""


def test_atomic_request_and_a_reserve_that_is_not_printed() -> None:
    """Its test leaves the reserve in (ALLOC_HARDER), but a single page never comes out of it (4.4 to 6.x)."""
    (zone,) = explain_text(ATOMIC_4_9).main.verdict.zones
    assert (zone.rule, zone.margin) == ("highatomic_only", 373 - 91)
    plain = ATOMIC_4_9.replace("0x2080020(GFP_ATOMIC)", "0x24000c0(GFP_KERNEL)")
    (zone,) = explain_text(plain).main.verdict.zones
    assert (zone.rule, zone.usable) == ("highatomic_only", 0)


def test_list_that_is_cut_proves_nothing_unless_the_rest_is_too_small() -> None:
    text = ATOMIC_4_9.replace("order:0, mode:0x2080020(GFP_ATOMIC)", "order:6, mode:0x24000c0(GFP_KERNEL)").replace("(H)", "(U)")
    cut = re.sub(r" 1\*128kB.*", "", text)
    verdict = explain_text(cut).main.verdict  # 1,152 kB are not listed
    assert (verdict.certainty, verdict.zones[0].rule) == ("probable", "blocks_not_shown")
    rest = cut.replace("free:1492kB min:964kB", "free:1080kB min:96kB").replace("13*4kB", "200*4kB")
    assert (explain_text(rest).main.verdict.certainty, explain_text(rest).main.verdict.zones[0].rule) == ("decided", "no_block")


def test_counter_above_an_empty_list() -> None:
    text = """[    1.000000] firefox: page allocation failure: order:0, mode:0x2284020
[    1.000001] CPU: 0 PID: 4348 Comm: firefox Not tainted 4.4.0-71-generic #92-Ubuntu
[    1.000002] Node 0 DMA32 free:17784kB min:0kB low:0kB high:0kB present:3545792kB managed:3465000kB
[    1.000003] lowmem_reserve[]: 0 0 4462 4462 4462
[    1.000004] Node 0 Normal free:308kB min:0kB low:0kB high:0kB present:4700160kB managed:4569000kB
[    1.000005] lowmem_reserve[]: 0 0 0 0 0
[    1.000006] Node 0 DMA32: 2072*4kB (UME) 474*8kB (UME) 119*16kB (UME) 47*32kB (UM) 36*64kB (UME) 0*128kB 0*256kB 0*512kB 0*1024kB 0*2048kB 0*4096kB = 17792kB
[    1.000007] Node 0 Normal: 0*4kB 0*8kB 0*16kB 0*32kB 0*64kB 0*128kB 0*256kB 0*512kB 0*1024kB 0*2048kB 0*4096kB = 0kB"""
    verdict = explain_text(text).main.verdict
    assert (verdict.code, verdict.certainty) == ("lowmem_reserve", "probable")
    assert verdict.headline.startswith("firefox asked for 4 KiB (order 0, GFP_ATOMIC|__GFP_COMP|__GFP_NOTRACK). Node 0 DMA32")


def test_oom_whose_order_is_cut_off() -> None:
    text = """[    1.000000] updatedb invoked oom-killer: gfp_mask=0x16040d0(GFP_TEMPORARY|__GFP_COMP|__GFP_NOTRACK), nodemask=
[    1.000001] CPU: 1 PID: 2314 Comm: updatedb Not tainted 4.10.0-rc6-686-pae #1
[    1.000002] Normal free:38764kB min:38828kB low:48532kB high:58236kB present:892920kB managed:851212kB
[    1.000003] lowmem_reserve[]: 0 0"""
    report = explain_text(text).main
    assert report.request is not None
    assert (report.verdict.code, report.verdict.certainty, report.request.order) == ("watermark", "decided", None)
    assert explain_text(text.replace("free:38764kB", "free:58764kB")).main.verdict.code == "evidence_missing"


def test_memory_map_of_hot_added_memory() -> None:
    text = ATOMIC_4_9.replace(
        "page allocation failure: order:0, mode:0x2080020(GFP_ATOMIC)", "vmemmap alloc failure: order:9, mode:0x4cc0(GFP_KERNEL|__GFP_RETRY_MAYFAIL)"
    )
    report = explain_text(text.replace("(H)", "(U)").replace("4.9.123", "5.13.0")).main
    assert report.request is not None
    assert (report.request.comm, report.request.order, report.verdict.code) == ("swapper/0", 9, "watermark")


@pytest.mark.parametrize(
    ("words", "code"),
    [("transfer buffer not dma capable", "dma_vmalloc"), ("transfer buffer is on stack", "dma_from_stack"), ("setup packet is on stack", "dma_from_stack")],
)
def test_usb_refuses_a_buffer(words: str, code: str) -> None:
    text = f"""[    1.000000] WARNING: CPU: 1 PID: 12912 at drivers/usb/core/hcd.c:1584 usb_hcd_map_urb_for_dma+0x24c/0x2fd [usbcore]
[    1.000001] {words}
[    1.000002] Call Trace:
[    1.000003]  usb_hcd_map_urb_for_dma+0x24c/0x2fd [usbcore]
[    1.000004]  usb_hcd_submit_urb+0x608/0x6b0 [usbcore]
[    1.000005]  usb_start_wait_urb+0x54/0xc5 [usbcore]
[    1.000006]  usb_control_msg+0xcf/0xf2 [usbcore]
[    1.000007]  usb_cypress_writemem+0x2c/0x31 [dvb_usb]"""
    verdict = explain_text(text).main.verdict
    assert verdict.code == code
    assert "usb_cypress_writemem" in verdict.headline


def test_order_in_registers_of_powerpc_and_arm64() -> None:
    ppc = """[    1.459596] WARNING: CPU: 0 PID: 1 at mm/page_alloc.c:5634 __alloc_pages+0x430/0x1240
[    1.460669] CPU: 0 PID: 1 Comm: init Not tainted 6.1.0-50-powerpc64le #1 Debian 6.1.176-1
[    1.461075] GPR00: c008000000370638 c000000003317670 c000000001148100 0000000000040dc0
[    1.461075] GPR04: 0000000000000009 0000000000000000 0000000000000000 ffffffffffffffc9
[    1.461103] Instruction dump:
[    1.465103] 60000000 7c691b78 4bfffd60 28040008 4081fc54 3d220150 89296dbc 2c090000
[    1.465160] 4082fe38 39200001 3d420150 992a6dbc <0fe00000> 7c0802a6 f9e10158 fa210168"""
    report = explain_text(ppc).main
    assert report.request is not None
    assert (report.verdict.code, report.verdict.certainty, report.request.order, report.request.bytes) == ("order_too_large", "decided", 9, 32 << 20)
    arm64 = """[    0.1] WARNING: CPU: 0 PID: 1 at mm/page_alloc.c:5407 __alloc_pages+0x1a0/0x290
[    0.1] CPU: 0 PID: 1 Comm: swapper/0 Not tainted 5.19.0 #1
[    0.1] pc : __alloc_pages+0x1a0/0x290
[    0.1] x23: 000000000000001e x22: 0000000000000000 x21: 000000000000001e
[    0.1] x20: 000000000000001e x19: 0000000000040b20 x18: ffffffffffffffff"""
    report = explain_text(arm64).main
    assert report.request is not None
    assert (report.verdict.certainty, report.request.order) == ("probable", 30)
    assert any("negative number" in why for why in report.verdict.why)


def test_memory_that_no_process_holds() -> None:
    """Idle huge pages, files in tmpfs, and a machine whose HighMem is free: killing processes is no remedy."""
    text = """[    1.000000] ingest invoked oom-killer: gfp_mask=0x140dca(GFP_HIGHUSER_MOVABLE|__GFP_ZERO|__GFP_COMP), order=0, oom_score_adj=0
[    1.000001] CPU: 0 UID: 0 PID: 145 Comm: ingest Not tainted 6.12.117 #1
[    1.000002] Mem-Info:
[    1.000003] active_anon:{anon} inactive_anon:0 isolated_anon:0
[    1.000003]  active_file:0 inactive_file:0 isolated_file:0
[    1.000003]  unevictable:0 dirty:0 writeback:0
[    1.000003]  slab_reclaimable:186 slab_unreclaimable:1517
[    1.000003]  mapped:343 shmem:{shmem} pagetables:87
[    1.000003]  free:600 free_pcp:0 free_cma:0
[    1.000004] Node 0 DMA32 free:2400kB boost:0kB min:3000kB low:3750kB high:4500kB reserved_highatomic:0KB present:327680kB managed:280000kB mlocked:0kB free_cma:0kB
[    1.000005] lowmem_reserve[]: 0 0 0 0
[    1.000006] Node 0 DMA32: 600*4kB (U) 0*8kB 0*16kB 0*32kB 0*64kB 0*128kB 0*256kB 0*512kB 0*1024kB 0*2048kB 0*4096kB = 2400kB
[    1.000007] Node 0 hugepages_total=70 hugepages_free={huge} hugepages_surp=0 hugepages_size=2048kB
[    1.000008] 81920 pages RAM
[    1.000009] 11920 pages reserved
[    1.000010] [  pid  ]   uid  tgid total_vm      rss rss_anon rss_file rss_shmem pgtables_bytes swapents oom_score_adj name
[    1.000011] [    145]     0   145    23597    2000     1900      100         0   233472      100             0 ingest
[    1.000012] Out of memory: Killed process 145 (ingest) total-vm:94388kB, anon-rss:7600kB, file-rss:400kB, shmem-rss:0kB, UID:0 pgtables:228kB oom_score_adj:0"""
    idle = explain_text(text.format(anon=20_000, shmem=100, huge=70)).main.verdict
    assert (idle.remedies[0].what, idle.details["memory_pages"]["huge"]) == ("a smaller vm.nr_hugepages", 70 * 512)
    tmpfs = explain_text(text.format(anon=60_000, shmem=58_000, huge=0)).main.verdict
    assert tmpfs.remedies[0].what.startswith("smaller files in tmpfs")
    assert "Largest processes: ingest (7.8 MiB)." in tmpfs.why
    assert any("which held 7.8 MiB" in why for why in tmpfs.why)
    processes = explain_text(text.format(anon=60_000, shmem=100, huge=0)).main.verdict
    assert processes.remedies[1].what.startswith("less memory for the largest processes")
    lowmem = explain_log(log("q05")).main.verdict.remedies
    assert any(remedy.what.startswith("what fills Normal") or remedy.what.startswith("what fills DMA") for remedy in lowmem)


def test_remedies_that_the_kernel_and_the_request_can_use() -> None:
    def fixes(text: str) -> list[str]:
        return [remedy.what for remedy in explain_text(text).main.verdict.remedies]

    assert fixes(log("q27").read_text())[0].startswith("no __GFP_THISNODE")
    assert any(what == "Linux 4.4 or newer" for what in fixes(log("p02").read_text()))
    assert fixes(log("p02").read_text())[0].startswith("vmalloc instead of kmalloc")  # kvmalloc is of 4.12
    old = ATOMIC_4_9.replace("(H)", "(U)").replace("free:1492kB min:964kB", "free:92kB min:964kB")
    assert any("watermark_scale_factor" in what for what in fixes(old))
    assert not any("watermark_scale_factor" in what for what in fixes(old.replace("4.9.123", "3.10.0").replace("0x2080020(GFP_ATOMIC)", "0x20")))
    nowait = old.replace("0x2080020(GFP_ATOMIC)", "0x2000000(GFP_NOWAIT)")
    assert "not: a higher vm.min_free_kbytes" in fixes(nowait)  # it raises the bar for such a request
    none = old.replace("min:964kB low:1204kB high:1444kB", "min:0kB low:0kB high:0kB").replace("free:92kB", "free:0kB")
    assert fixes(none)[0].startswith("vm.min_free_kbytes back")
    noio = (
        ATOMIC_4_9.replace("(H)", "(U)")
        .replace("order:0, mode:0x2080020(GFP_ATOMIC)", "order:8, mode:0x2400000(GFP_NOIO)")
        .replace("4.9.123", "4.14.1")
        .replace("0x2400000", "0x1400000")
    )
    assert "memalloc_noio_save" in fixes(noio.replace("min:964kB", "min:64kB"))[0]


def test_old_kernels_pass_by_what_the_higher_orders_leave() -> None:
    text = """[    1.0] x: page allocation failure. order:2, mode:0x4020
[    1.0] Pid: 1, comm: x Not tainted 2.6.32 #1
[    1.0] Normal free:4000kB min:100kB low:125kB high:150kB present:65536kB
[    1.0] lowmem_reserve[]: 0 0
[    1.0] Normal: 900*4kB 40*8kB 5*16kB 0*32kB 0*64kB 0*128kB 0*256kB 0*512kB 0*1024kB 0*2048kB 0*4096kB = 4000kB"""
    verdict = explain_text(text).main.verdict
    assert verdict.code == "not_shown"
    assert any("passes by 987 pages, in the higher orders by 15" in why for why in verdict.why)


def test_groups_numbers_are_the_groups() -> None:
    """Not those of the machine's dump or of the line that says who was killed."""
    text = """[    1.0] java invoked oom-killer: gfp_mask=0xd0, order=0, oom_score_adj=0
[    1.0] Task in /web killed as a result of limit of /web
[    1.0] memory: usage 1000kB, limit 512000kB, failcnt 7
[    1.0] memory+swap: usage 563200kB, limit 563200kB, failcnt 9
[    1.0] Memory cgroup stats for /web: cache:12KB rss:500000KB rss_huge:0KB mapped_file:0KB
[    1.0] [ pid ]   uid  tgid total_vm      rss nr_ptes swapents oom_score_adj name
[    1.0] [  100]     0   100   200000    90000     100       0             0 java
[    1.0] Memory cgroup out of memory: Kill process 100 (java) score 900 or sacrifice child
[    1.0] Killed process 100 (java) total-vm:800000kB, anon-rss:360000kB, file-rss:12kB, shmem-rss:0kB
[    1.0] Kernel panic - not syncing: Out of memory: compulsory panic_on_oom is enabled"""
    verdict = explain_text(text).main.verdict
    assert "The group's memory is memory of processes (488 MiB)." in verdict.why
    assert "memory.memsw.limit_in_bytes" in verdict.remedies[0].what
    assert any(why.startswith("Behind it in the log the kernel crashed: panic, Out of memory") for why in verdict.why)


def test_before_user_space_nobody_can_set_anything() -> None:
    text = ATOMIC_4_9.replace(
        "[    1.000002] Normal",
        "[    1.000002] active_anon:0 inactive_anon:0\n[    1.000002]  active_file:0 inactive_file:0\n[    1.000002]  free:20\n[    1.000002] Normal",
    )
    text = text.replace("(H)", "(U)").replace("free:1492kB", "free:80kB")
    remedies = explain_text(text).main.verdict.remedies
    assert remedies[0].what.startswith("what took the memory before the first program")
    assert not any("vm." in remedy.what for remedy in remedies)


def test_locks_that_are_held() -> None:
    text = """[   88.308795] BUG: sleeping function called from invalid context at kernel/stop_machine.c:135
[   88.308796] in_atomic(): 0, irqs_disabled(): 0, non_block: 0, pid: 801, name: sh
[   88.308797] 2 locks held by sh/801:
[   88.308798]  #0: ffff888104ef9438 (&(&ci->i_ceph_lock)->rlock){+.+.}-{2:2}, at: __ceph_setxattr+0x297/0x810
[   88.308799]  #1: ffffffff82d5fe40 (rcu_read_lock){....}-{1:2}, at: update_sibling_cpumasks+0x0/0x140
[   88.315815] CPU: 1 PID: 801 Comm: sh Not tainted 5.10.0-rc5+ #10
[   88.315816] Call Trace:
[   88.315817]  ___might_sleep+0x1/0x2
[   88.315818]  stop_one_cpu+0x1/0x2
[   88.315819]  update_prstate+0x1/0x2"""
    report = explain_text(text).main
    assert report.request is not None
    assert (report.request.cpu, report.request.caller) == (1, "update_prstate")
    assert "Forbidden because it is inside rcu_read_lock(), taken in update_sibling_cpumasks." in report.verdict.why
    assert any("&(&ci->i_ceph_lock)->rlock (taken in __ceph_setxattr)" in why for why in report.verdict.why)


def test_order_in_registers_of_s390x_and_a_crash_behind_the_warning() -> None:
    text = """[  308.206203] WARNING: CPU: 5 PID: 20745 at mm/page_alloc.c:3511 __alloc_pages_nodemask+0x884/0xdf8
[  308.206240] CPU: 5 PID: 20745 Comm: swapon Not tainted 5.9.0-rc1+ #23
[  308.206251] Krnl GPRS: 000000000000000a 0000000000b2b0ec 0000000100000312 0000000000000001
[  308.206267]            000000000025d3ec 0000000000000008 0000000000000075 000000000240c0c0
[  308.206269]            0000000000000001 0000000000000000 000000000000000a 0000000000000000
[  308.206270]            000000000000000a 000000000079d8c8 000000000025d3ec 00000000d4273ba0
[  308.206271] Call Trace:
[  308.206272] ([<000000000025db3c>] __alloc_pages_nodemask+0x884/0xdf8)
[  308.206273]  [<00000000002a0000>] init_swap_address_space+0x54/0x100
[  308.306273] Unable to handle kernel NULL pointer dereference at virtual kernel address 0000000000000000"""
    report = explain_text(text).main
    assert report.request is not None
    assert (report.verdict.code, report.verdict.certainty, report.request.order, report.verdict.details["largest_order"]) == (
        "order_too_large",
        "probable",
        10,
        8,
    )
    assert any("the kernel crashed" in why for why in report.verdict.why)


def test_slab_corruption_in_two_parts_is_one_report() -> None:
    text = """Slab corruption: start=f7d058c0, expend=f7d05937, problemat=f7d05900
Last user: [<f891d1fd>](free_hpsb_packet+0x2c/0x33 [ieee1394])
Data: ****************************************************************6A
slab error in check_poison_obj(): cache `hpsb_packet': object was modified after freeing
Call Trace:
 [<c014d752>] check_poison_obj+0x155/0x195"""
    (report,) = explain_text(text).reports
    assert (report.verdict.code, report.verdict.details["cache"]) == ("use_after_free", "hpsb_packet")


def test_release_behind_taint_flags_of_rhel() -> None:
    said = "CPU: 0 PID: 2390 Comm: EcNet-dns Kdump: loaded Tainted: G           OE  ------------   3.10.0-1160.45.1.el7.x86_64 #1"
    assert releases(said) == ["3.10.0-1160.45.1.el7.x86_64"]


def test_details() -> None:
    p13 = explain_log(log("p13")).main
    assert p13.request is not None
    assert (p13.request.order, p13.request.asked_bytes, p13.request.caller) == (11, 5734080, "sbitmap_init_node")
    p14 = explain_log(log("p14")).main.verdict.details
    assert (p14["cache"], p14["offset_in_object"], p14["byte"], p14["wrong_bytes"], p14["hashed_addresses"]) == ("kmalloc-128", 16, 0x6C, 1, True)
    p08 = explain_log(log("p08")).main.verdict.zones[0]
    assert (p08.boost, p08.unboosted_margin, p08.usable, p08.mark) == (1024, 1020, 1722, 1726)
    p10 = explain_log(log("p10")).main
    assert p10.request is not None
    assert p10.request.order is None
    p11 = explain_log(log("p11")).main.verdict
    assert any(remedy.what.startswith("not: vmalloc=") for remedy in p11.remedies)
    q11 = explain_log(log("q11")).main.verdict
    assert "951f6bc5-c5a5-11ea-8707-80e455f266a2/024952d653ef1" in q11.headline  # the name, which the log has wrapped
    assert "The group's memory is file cache and tmpfs (495 MiB)." in q11.why
    assert "memory.memsw.limit_in_bytes" in q11.remedies[0].what
    assert "memory+swap 524288 kB of 524288 kB" in q11.headline  # the counter that refused, not the one that is full as well
    q12 = explain_log(log("q12")).main.verdict
    assert "just before an object" in q12.headline
    assert (q12.details["offset_in_object"], q12.details["byte"]) == (-56, 0x40)
    q13 = explain_log(log("q13")).main
    assert q13.request is not None
    assert (q13.request.order, q13.request.bytes) == (11, 8 << 20)  # from `cmp $0xa,%ebp` in the Code line, and RBP
    q15 = explain_log(log("q15")).main
    assert q15.request is not None
    assert (q15.request.order, q15.verdict.headline[:9]) == (0, "A process")
    q17 = explain_log(log("q17")).reports[2]
    assert q17.request is not None
    assert q17.request.caller == "wb_start_writeback"
    assert any("PF_MEMALLOC" in line for line in q17.verdict.why)
    q28 = explain_log(log("q28")).reports[1]
    assert q28.request is not None
    assert q28.request.asked_bytes == 3_000_000_000  # RBX, which the instructions before the warning compare with INT_MAX
    assert any("kernelcore=" in remedy.what for remedy in explain_log(log("q29")).main.verdict.remedies)
    q20 = explain_log(log("q20")).main.request
    assert q20 is not None
    assert q20.caller == ""  # what the old unwinder found on the stack has no allocator in it


CUT = (
    "Mem-Info:\n"
    + "Node 0 Normal free:8000kB min:{min}kB low:9000kB high:9500kB reserved_highatomic:0KB present:4194304kB managed:4000000kB\nlowmem_reserve[]: 0 0\n"
)


def test_side_sentences() -> None:
    """What stands beside the verdict: callers, flags, victims and page sizes that were once wrong."""
    size = explain_text(
        "x: page allocation failure: order:5, mode:0xcc0(GFP_KERNEL), nodemask=(null)\nHardware name: Apple Mac mini (M1, 2020) (DT)\nCall trace:\n f+0x1/0x2\n"
    ).main
    assert size.request is not None
    assert size.request.to_dict()["page_size_known"] is False
    assert "if a page has 4 k" in text(explain_text("x: page allocation failure: order:5, mode:0xcc0(GFP_KERNEL)\nCPU: 1 PID: 1 Comm: x 6.1.0 #1 aarch64\n"))
    killed = explain_text("Out of memory: kill process 100 (bash) score 9 or a child\nKilled process 101 (mc)\n")
    assert "killed mc (pid 101)" in text(killed)
    assert "bash" not in text(killed)
    held = "BUG: sleeping function called from invalid context at mm/x.c:48\nin_atomic(): 1, irqs_disabled(): 0, pid: 7, name: dd\n1 lock held by dd/7:\n #0: ffff8000 (sb){.+.+}, at: path_openat+0x7d8/0xb00\n"
    assert explain_text(held).main.request.caller == ""  # type: ignore[union-attr]
    group = explain_text(
        "x invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0\nmemory: usage 1000kB, limit 1000kB, failcnt 9\nMemory cgroup stats for /a/b:\nMemory cgroup out of memory: Killed process 1 (x)\n"
    )
    assert "/a/b" in text(group)
    near = explain_text(CUT.format(min=7000))
    assert "last attempt before killing" not in text(near)
    old = explain_text("oom-killer: gfp_mask=0xd2\n" + CUT.format(min=8004).split("\n", 1)[1])
    assert (old.main.verdict.code, old.main.verdict.certainty) == ("watermark", "probable")
    assert any("2.6.17" in line for line in old.main.verdict.missing)
    first_x86_64 = "sort: page allocation failure. order:1, mode:0x20\nCall Trace:<ffffffff8014e5f0>{__alloc_pages+816} <ffffffff801521c6>{__kmalloc+102}\n <ffffffff801b44f6>{get_mem_for_node+102}\n"
    assert explain_text(first_x86_64).main.request.caller == "get_mem_for_node"  # type: ignore[union-attr]
    fault = explain_text("x invoked oom-killer: gfp_mask=0x0(), nodemask=(null), order=0, oom_score_adj=0\n")
    assert "cannot wait" not in text(fault)
    late = explain_text(
        "BUG: KFENCE: memory corruption in kfree+0x29d/0x2c0\nCorrupted memory at 0xffffffffb18c4ff9 [ 0xac . . ]:\n kfree+0x29d/0x2c0\n test_free+0x22/0x30\n"
    )
    assert "size in kfree" not in text(late)
    assert "allocated" not in text(explain_log(log("q25")))  # vfree() may sleep; no flag is at fault
    assert "last attempt before killing" in text(explain_log(log("q22")))
    unknown = explain_text("warning|kernel[-]|[29257.529231] main invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0\n")
    assert unknown.main.request.comm == "main"  # type: ignore[union-attr]
    stall = explain_text("gmain(615): page allocation stalls for 87036ms, order:0 mode:0x24201ca(GFP_HIGHUSER_MOVABLE|__GFP_COLD)\n")
    assert "and was refused" not in text(stall)
    inner = "x invoked oom-killer: gfp_mask=0xd0, order=2\n [<c015a5e4>] (__out_of_memory+0x0/0x178) from [<c015a980>] (out_of_memory+0x68/0xa0)\n [<c0109418>] (get_pgd_slow+0x1c/0xe0)\n"
    assert explain_text(inner).main.request.caller == "get_pgd_slow"  # type: ignore[union-attr]
    wrapped = explain_text(
        "forcedeth 0000:00:08.0: DMA-API: device driver tries to free DMA memory it\n has not allocated [device address=0x443d7040] [size=2048 bytes]\nModules linked in: nfsd\n"
    )
    assert "it has not allocated" in text(wrapped)
    assert "same size" not in text(wrapped)


def test_real_slub_reports() -> None:
    codes = [report.verdict.code for report in explain_log(SLUB).reports]
    assert codes[:4] == ["out_of_bounds", "out_of_bounds", "out_of_bounds", "use_after_free"]
    assert {"double_free", "invalid_free", "corruption", "objects_remaining"} <= set(codes)


@pytest.mark.parametrize(
    ("value", "version", "names"),
    [
        (0x20, (2, 6, 32), "GFP_ATOMIC"), (0xD0, (3, 8, 0), "GFP_KERNEL"), (0x2080020, (4, 9, 0), "GFP_ATOMIC"), (0x24000C0, (4, 6, 0), "GFP_KERNEL"),
        (0x1080020, (4, 14, 0), "GFP_ATOMIC"), (0x14000C0, (4, 15, 0), "GFP_KERNEL"), (0x480020, (4, 19, 0), "GFP_ATOMIC"), (0x6200CA, (4, 19, 0), "GFP_HIGHUSER_MOVABLE"),
        (0xA20, (6, 1, 0), "GFP_ATOMIC"), (0x820, (6, 8, 9), "GFP_ATOMIC"), (0x100CCA, (6, 12, 0), "GFP_HIGHUSER_MOVABLE"), (0x201DA, (3, 2, 0), "GFP_HIGHUSER_MOVABLE|__GFP_COLD"),
    ],
)  # fmt: skip
def test_flags_by_version(value: int, version: tuple[int, int, int], names: str) -> None:
    flags = decode(value, "", version)
    assert flags.names == names
    assert decode(value, names, version).agree


def test_flags_are_those_of_the_profile() -> None:
    from mmtwin.gfp import GFP

    assert next(era for era in ERAS if era.name == "5.1 to 6.2").bits == {flag.name: int(flag) for flag in GFP}


def test_names_that_do_not_fit() -> None:
    assert decode(0x1084020, "GFP_ATOMIC", (5, 15, 0)).agree is False
    other = decode(0x14000C0, "GFP_KERNEL", (4, 19, 0))  # a vendor's kernel with older numbers
    assert other.agree
    assert other.note


@given(st.integers(0, 0xFFFFFF), st.sampled_from(ERAS))
@settings(max_examples=100, deadline=None)
def test_names_and_back(value: int, era: object) -> None:
    from mmtwin.diagnose.explain.log_gfp import Era

    assert isinstance(era, Era)
    assert parse_names(spell(value, era), era) == value


@pytest.mark.parametrize(
    "prefix",
    [
        "[  838.952607] ", "Jun 11 11:50:17 crowies kernel: [  838.952607] ", "kernel: [ 5720.362941] ", "> [  141.863780] ", ">> <4>[    1.000000] ", "[Fri Apr 17 19:56:16 2026] ",
        "2024-05-08T20:21:11.768+0200 host kernel: ", "[   36.234447] [03-19 10:05:52.234] ", "6,1234,5678,-;", "[  12.345678][ T1234] ", "kern  :warn  : [    1.000000] ",
    ],
)  # fmt: skip
def test_decoration(prefix: str) -> None:
    assert strip(f"{prefix}Mem-Info:", 1).text == "Mem-Info:"


HEAD = "x: page allocation failure: order:{order}, mode:{mode}, nodemask=(null)\nCPU: 0 PID: 1 Comm: x Not tainted {version} #1\nCall Trace:\n f+0x1/0x2\nMem-Info:\n"
ZONE = "Node 0 Normal free:{free}kB min:{min}kB low:{low}kB high:{high}kB reserved_highatomic:0KB present:4194304kB managed:4000000kB free_cma:{cma}kB\nlowmem_reserve[]: 0 0 0 0\n"
LIST = "Node 0 Normal: {blocks} = {free}kB\n"


def made(version: str, order: int, mode: str, blocks: str, cma: int = 0, low: int = 20000) -> str:
    free = sum(int(n) * int(kb) for n, kb in re.findall(r"(\d+)\*(\d+)kB", blocks))
    return (
        HEAD.format(order=order, mode=mode, version=version)
        + ZONE.format(free=free, min=low, low=low * 5 // 4, high=low * 3 // 2, cma=cma)
        + LIST.format(blocks=blocks, free=free)
    )


@pytest.mark.parametrize(
    ("log", "code"),
    [
        (made("5.10.1", 2, "0xcc0(GFP_KERNEL)", "30000*4kB (UME) 5000*8kB (UM) 0*16kB 0*32kB"), "no_block"),
        (made("5.10.1", 2, "0xcc0(GFP_KERNEL)", "30000*4kB (UME) 5000*8kB (UM) 9*16kB (C) 0*32kB"), "cma_only"),
        (made("5.10.1", 2, "0xcc0(GFP_KERNEL)", "30000*4kB (UME) 5000*8kB (UM) 9*16kB (H) 0*32kB"), "highatomic_only"),
        (made("5.10.1", 2, "0xcc0(GFP_KERNEL)", "30000*4kB (UME) 5000*8kB (UM) 9*16kB (M) 0*32kB"), "not_shown"),
        (made("5.10.1", 2, "0xa20(GFP_ATOMIC)", "30000*4kB (UME) 5000*8kB (UM) 9*16kB (H) 0*32kB"), "not_shown"),
        (made("5.10.1", 0, "0xcc0(GFP_KERNEL)", "3000*4kB (UME) 5*8kB (UM) 9*16kB (M) 0*32kB"), "watermark"),
        (made("5.10.1", 0, "0xcc0(GFP_KERNEL)", "0*4kB 0*8kB 0*16kB 0*32kB"), "really_empty"),
        (made("4.8.0", 0, "0x2280020(GFP_ATOMIC|__GFP_NOTRACK)", "9000*4kB (H) 5*8kB (H) 9*16kB (H) 0*32kB"), "highatomic_only"),
        (made("3.2.0", 2, "0x4020", "30000*4kB 5000*8kB 1*16kB 0*32kB"), "per_order_watermark"),
    ],
)  # fmt: skip
def test_rules(log: str, code: str) -> None:
    assert explain_text(log).main.verdict.code == code


def test_the_whole_atomic_reserve_is_taken_off() -> None:
    log = made("6.6.1", 0, "0xcc0(GFP_KERNEL)", "30000*4kB (UME) 0*8kB 0*16kB 0*32kB").replace("reserved_highatomic:0KB", "reserved_highatomic:102400KB")
    verdict = explain_text(log).main.verdict
    assert (verdict.code, verdict.zones[0].margin) == ("watermark", 30000 - 25600 - 5000)
    assert any("the whole reserve for atomic requests (25600 pages)" in sentence for sentence in verdict.why)
    assert not any("whole reserve" in sentence for sentence in explain_text(log.replace("30000*4kB (UME)", "30000*4kB (UMEH)")).main.verdict.why)


def test_words_about_a_failure_are_none() -> None:
    real = "Sep 20 19:30:53 srv kernel: nfsd: page allocation failure. order:2, mode:0x20\n"
    reports = explain_text('$ grep "page allocation failure" /var/log/syslog\n\n' + real).reports
    assert [report.request.comm for report in reports if report.request] == ["nfsd"]


def test_names_with_less_than_the_log_promises() -> None:
    request = explain_text("# kernel: java: page allocation failure. order:2, mode:0x20\n").main.request
    assert request is not None
    assert (request.comm, request.order) == ("java", 2)
    request = explain_text("<4>[1.5] systemd-journal invoked oom-killer: gfp_mask=0x800d0order=0oom_score_adj=0\n").main.request
    assert request is not None
    assert request.flags is not None
    assert (request.order, request.flags.value) == (0, 0x800D0)
    empty = "Node 0 DMA free:0kB boost:0kB min:0kB low:0kB high:0kB reserved_highatomic:0KB present:636kB managed:0kB free_cma:0kB\n"
    assert explain_text(empty).main.verdict.code == "evidence_missing"


def test_interleaved_dumps() -> None:
    a = made("5.10.1", 2, "0xcc0(GFP_KERNEL)", "30000*4kB (UME) 5000*8kB (UM) 0*16kB 0*32kB").split("\n")
    b = [line.replace("x: page", "y: page") for line in a]
    mixed = explain_text("\n".join(line for pair in zip(a, b, strict=True) for line in pair))
    assert [(r.request.comm if r.request else "", r.verdict.code, r.verdict.certainty) for r in mixed.reports] == [
        ("x", "no_block", "probable"),
        ("y", "no_block", "probable"),
    ]
    tagged = "\n".join(f"[    1.000000][    T{n}] {line}" for pair in zip(a, b, strict=True) for n, line in enumerate(pair))
    assert [r.verdict.certainty for r in explain_text(tagged).reports] == ["decided", "decided"]


def test_damaged_numbers_are_said() -> None:
    log = made("5.10.1", 2, "0xcc0(GFP_KERNEL)", "30000*4kB (UME) 5000*8kB (UM) 0*16kB 0*32kB").replace(" = 160000kB", " = 999kB")
    verdict = explain_text(log).main.verdict
    assert verdict.certainty == "probable"
    assert any("damaged" in sentence for sentence in verdict.missing)


@pytest.mark.parametrize(
    ("log", "code"),
    [
        ("Task in /a killed as a result of limit of /a\nmemory: usage 1000kB, limit 1000kB, failcnt 7\nMemory cgroup out of memory: Kill process 1 (x) score 1", "memcg_limit"),
        ("sd 0: swiotlb buffer is full (sz: 294912 bytes), total 32768 (slots), used 4 (slots)", "swiotlb_full"),
        ("x: vmalloc error: size 0, page order 9, failed to allocate pages, mode:0xcc2(GFP_KERNEL|__GFP_HIGHMEM), nodemask=(null)", "vmalloc_pages"),
        ("BUG: KASAN: use-after-free in f+0x1/0x2 [m]\nRead of size 8 at addr ffff888 by task t/1", "use_after_free"),
        ("BUG: scheduling while atomic: swapper/8/0/0x00010003", "sleeping_in_atomic"),
        ("Debug: sleeping function called from invalid context at mm/slab.c:2090\nin_atomic():1, irqs_disabled():0", "sleeping_in_atomic"),
        ("cache_from_obj: Wrong slab cache. ocf_req_128 but object is from mnt_cache\nWARNING: CPU: 46 PID: 0 at mm/slab.h:454 kmem_cache_free+0x129/0x1c0", "invalid_free"),
        ("WARNING: CPU: 0 PID: 29 at mm/vmalloc.c:150 vmap_page_range_noflush+0xea/0x19c", "allocator_warning"),
        ("FAULT_INJECTION: forcing a failure.\nname failslab, interval 1", "fault_injection"),
        ("percpu: allocation failed, size=64 align=8 atomic=0, failed to allocate new chunk", "percpu_space"),
        ("cma: cma_alloc: reserved: alloc failed, req-size: 256 pages, ret: -12", "cma_failed"),
        ("SLUB: Unable to allocate memory on node -1 (gfp=0x20)\n  cache: kmalloc-192, object size: 192, buffer size: 192, default order: 0, min order: 0", "slab_refused"),
    ],
)  # fmt: skip
def test_other_kinds(log: str, code: str) -> None:
    assert explain_text(log).main.verdict.code == code


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\0\0\0", b"hello\n", b"\xff\xfe\x00", b"\x80" * 1000])
def test_nothing_to_explain(data: bytes) -> None:
    with pytest.raises(LogError) as error:
        explain_text(data, "x.log")
    assert "\n" not in str(error.value)


def test_noise_around_a_report() -> None:
    noise = b"Jun 11 11:50:17 host kernel: [    1.000000] eth0: link up\n" * 20_000
    crlf = log("p05").read_bytes().replace(b"\n", b"\r\n")
    explanation = explain_text(noise + crlf + noise)
    assert [report.verdict.code for report in explanation.reports] == ["no_block", "no_block"]
    assert explanation.main.line == 20_001


NOISE = b"eth0: link up\n" * 20_000


def first_lines(data: bytes) -> list[tuple[str, str, int]]:
    return [(report.verdict.code, report.verdict.certainty, report.line) for report in explain_text(data).reports]


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_long_log_is_read_like_a_short_one(name: str) -> None:
    data = log(name).read_bytes().rstrip() + b"\n"
    noise, lines = (b"[    1.000000] " + NOISE[:14] if name == "q02" else NOISE[:14]) * 20_000, 20_000  # q02 is a mail, wrapped
    explanation = explain_text(noise + data + noise)
    assert explanation.unread == 0
    assert [(code, certainty, line + lines) for code, certainty, line in first_lines(data)] == first_lines(noise + data + noise)


def test_every_kind_of_report_is_found_in_a_long_log() -> None:
    for head in (
        "BUG kmalloc-64 (Tainted: G    B      OE    ): Object already free", "BUG kmalloc-64 (Not tainted): Poison overwritten", "BUG kmalloc-64: Redzone overwritten",
        "BUG: KASAN: slab-out-of-bounds in f+0x1/0x2", "BUG: KFENCE: invalid free in f+0x1/0x2", "KASAN: null-ptr-deref in range [0x0000000000000000-0x0000000000000007]",
        "WARNING: CPU: 1 PID: 98 at mm/page_alloc.c:5634 __alloc_pages+0x2a9/0x330", "kernel BUG at mm/slub.c:419!", "BUG: scheduling while atomic: a/8/0x00010003",
        "usercopy: Kernel memory exposure attempt detected from SLUB object 'x' (offset 0, size 9)!", "slab error in verify_redzone_free(): cache `x': double free detected",
        "alloc_contig_range: [10000, 10010) PFNs busy", "percpu: allocation failed, size=64 align=8 atomic=0, failed to allocate new chunk", "FAULT_INJECTION: forcing a failure.",
        "vmap allocation for size 20480 failed: use vmalloc=<size> to increase size", "Out of Memory: Killed process 12 (x).", "XFS: x(9) possible memory allocation deadlock size 65552 in kmem_alloc (mode:0x2400240)",
        "__alloc_pages: 2-order allocation failed (gfp=0x20/0)",
    ):  # fmt: skip
        line = head.encode() + b"\n"
        assert [(code, at) for code, _, at in first_lines(NOISE + line + NOISE)] == [(code, 20_001) for code, _, _ in first_lines(line)], head


def test_of_too_many_reports_the_first_of_each_sort_is_read_and_the_rest_counted() -> None:
    oom, page, dma = (log(name).read_bytes().rstrip() + b"\n" + NOISE[:14_000] for name in ("p03", "p05", "p16"))
    explanation = explain_text(oom * 300 + page * 200 + dma)  # 4 MB and more
    read = sum(report.repeated for report in explanation.reports)
    assert {report.verdict.code for report in explanation.reports} == {"no_block", "dma_from_stack"}
    assert set(explanation.unread_kinds) == {"oom", "page"}
    assert read + explanation.unread == 300 + 200 * 2 + 1
    assert explanation.to_dict()["not_read"] == explanation.unread_kinds
    lines = (oom * 300 + page * 200 + dma).split(b"\n")
    for report in explanation.reports:
        assert re.search(rb"oom-killer|allocation failure|DMA-API", lines[report.line - 1])
    shown = " ".join(text(explanation).split())
    assert f"{explanation.unread} more reports of the log were not read" in shown
    assert "the first of each sort" in shown


def test_more_heads_than_can_be_told_apart_are_counted() -> None:
    heads = b"".join(b"[%5d.0] p%d invoked oom-killer: gfp_mask=0xd0, order=0, oom_score_adj=0\n" % (n, n) for n in range(3 * scan.MANY))
    found = scan.find(heads + (LOGS / "p13-x86-mpt3sas-order11-warn.txt").read_bytes())
    assert b"mm/page_alloc.c" in found.windows[-1].data  # another kind is still found behind them
    read = sum(window.data.count(b"oom-killer") for window in found.windows)
    assert read > 100
    assert abs(found.unread["oom"] + read - 3 * scan.MANY) <= 600  # a window holds some beside those it is for


def test_a_long_log_without_line_ends() -> None:
    data = b"invoked oom-killer: gfp_mask=0xd0, order=0 Mem-Info: " * 40_000
    found = scan.find(data)
    assert sum(len(window.data) for window in found.windows) < len(data) // 2  # each place stands for a line of its own, not for all that is before it
    assert explain_text(data).unread > 0


def test_interleaved_dumps_of_a_long_log() -> None:
    a = made("5.10.1", 2, "0xcc0(GFP_KERNEL)", "30000*4kB (UME) 5000*8kB (UM) 0*16kB 0*32kB").split("\n")
    b = [line.replace("x: page", "y: page") for line in a]
    noise = "[    1.000000][    T9] eth0: link up\n" * 10_000
    tagged = "\n".join(f"[    1.000000][    T{n}] {line}" for pair in zip(a, b, strict=True) for n, line in enumerate(pair))
    assert [(code, certainty) for code, certainty, _ in first_lines((noise + tagged + "\n" + noise).encode())] == [("no_block", "decided")] * 2


@pytest.mark.parametrize("comm", ["<script>alert(1)</script>", "a)(b", "order:7, mode:0x", "\u202eevil", "%s%n", "order:9,"])
def test_names_of_processes_are_only_names(comm: str) -> None:
    log = made("5.10.1", 2, "0xcc0(GFP_KERNEL)", "30000*4kB (UME) 5000*8kB (UM) 0*16kB 0*32kB")
    verdict = explain_text(log.replace("x: page", f"{comm}: page", 1)).main
    assert verdict.verdict.code == "no_block"
    assert verdict.request is not None
    assert verdict.request.order == 2


def test_control_characters_do_not_reach_the_terminal() -> None:
    log = made("5.10.1", 2, "0xcc0(GFP_KERNEL)", "30000*4kB (UME) 0*8kB 0*16kB 0*32kB").replace("x: page", "\x1b]0;<script>\x07: page")
    shown = text(explain_text(log))
    assert "\x1b" not in shown
    assert "\x07" not in shown


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damage_never_ends_in_a_traceback(data: st.DataObject) -> None:
    lines = data.draw(st.sampled_from(sorted(LOGS.glob("*.txt")))).read_bytes().split(b"\n")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        match data.draw(st.integers(0, 8)):
            case 0:
                del lines[at + 1 :]
            case 1:
                lines[at] = lines[at][: data.draw(st.integers(0, 80))]
            case 2:
                lines[at:at] = lines[at // 2 : at]
            case 3:
                lines[at] = re.sub(rb"\d+", data.draw(st.sampled_from([b"99999999999999999999", b"0", b"-1", b""])), lines[at])
            case 4:
                lines[at] += data.draw(st.binary(max_size=20))
            case 5:
                other = data.draw(st.sampled_from(sorted(LOGS.glob("*.txt")))).read_bytes().split(b"\n")
                lines = [line for pair in zip_longest(lines, other, fillvalue=b"") for line in pair]
            case 6:
                lines = [b" ".join(lines)]
            case 7:
                lines = [
                    re.sub(rb"\d+", lambda m: data.draw(st.sampled_from([m[0], b"18446744073709551615", b"-7", b"9" * 400])), line) if n % 7 == 0 else line
                    for n, line in enumerate(lines)
                ]
            case 8:
                lines = data.draw(st.permutations(lines[:200]))
    try:
        explanation = explain_text(b"\n".join(lines))
    except LogError:
        return
    json.dumps(explanation.to_dict())
    assert text(explanation)


@pytest.mark.parametrize("digits", [30, 400, 5_000])
def test_endless_numbers(digits: int) -> None:
    log = f"vmap allocation for size {'9' * digits} failed: use vmalloc=<size> to increase size\nx: vmalloc: allocation failure: {'9' * digits} bytes\n"
    assert explain_text(log).main.kind == "vmalloc"


def test_free_lists_without_the_zones_lines() -> None:
    head = "x invoked oom-killer: gfp_mask=0x240c2c0(GFP_KERNEL|__GFP_NOWARN|__GFP_COMP|__GFP_ZERO), nodemask=0, order=3, oom_score_adj=0\n"
    tail = " 0*64kB 0*128kB 0*256kB 0*512kB 0*1024kB 0*2048kB 0*4096kB = {}kB\n"
    none = explain_text(head + "Normal: 12*4kB (UME) 6*8kB (UME) 2*16kB (UME) 0*32kB" + tail.format(128)).main.verdict
    assert (none.code, none.certainty) == ("no_block", "decided")  # whatever the watermark was
    low = "DMA: 0*4kB 1*8kB (U) 2*16kB (U) 1*32kB (U)" + tail.format(72)
    kept = explain_text(head + low + "Normal: 12*4kB (UME) 6*8kB (UME) 2*16kB (UME) 0*32kB" + tail.format(128)).main.verdict
    assert (kept.code, kept.certainty, kept.zones[-1].zone.name) == ("no_block", "probable", "Normal")
    assert "DMA had blocks that fit" in " ".join(kept.why)
    served = explain_text(head + low.replace("DMA", "Normal")).main.verdict
    assert (served.code, served.certainty) == ("evidence_missing", "undecided")


def test_free_lists_that_are_empty() -> None:
    lists = "Normal: " + " ".join(f"0*{4 << k}kB" for k in range(11)) + " = 0kB\n"
    verdict = explain_text(
        "x: page allocation failure. order:0, mode:0x20\nMem-Info:\nNormal free:9000kB min:1000kB low:1250kB high:1500kB present:900000kB\nlowmem_reserve[]: 0 0\n"
        + lists
    ).main.verdict
    assert (verdict.code, verdict.certainty) == ("really_empty", "probable")


def test_a_log_without_its_kernel_is_judged_by_all_that_print_it() -> None:
    zone = "Normal free:8016kB min:{}kB low:9000kB high:9500kB present:4194304kB\nlowmem_reserve[]: 0 0\n"
    lists = "Normal: 2000*4kB 0*8kB 1*16kB 0*32kB 0*64kB 0*128kB 0*256kB 0*512kB 0*1024kB 0*2048kB 0*4096kB = 8016kB\n"
    head = "x: page allocation failure: order:2, mode:0xd0\nMem-Info:\n"
    same = explain_text(head + zone.format(8400) + lists).main.verdict
    assert (same.code, same.certainty) == ("watermark", "decided")
    differ = explain_text(head + zone.format(400) + lists).main.verdict
    assert (differ.code, differ.certainty) == ("per_order_watermark", "probable")
    assert any("by the rules of 4.4 it would be not_shown" in line for line in differ.missing)


def test_a_crash_behind_a_report() -> None:
    slub = "SLUB: Unable to allocate memory on node -1, gfp=0x600040(GFP_NOFS)\n  cache: a(100:12G), object size: 1024, buffer size: 1032, default order: 3, min order: 0\n  node 0: slabs: 1, objs: 31, free: 0\n"
    crash = "BUG: unable to handle kernel NULL pointer dereference at 0000000000000008\nOops: 0000 [#1]\nCPU: 3 PID: 16923 Comm: gtk Not tainted 4.19.51 #42\nRIP: 0010:create_empty_buffers+0x24/0x100\nCall Trace:\n create_page_buffers+0x4d/0x60\n"
    report = explain_text(slub + crash).main
    assert "crashed: NULL pointer dereference at 0x8 in create_empty_buffers." in " ".join(report.verdict.why)
    assert report.request is not None
    assert (report.request.pid, report.request.comm, report.request.caller) == (None, "", "")  # those of the crash
    assert len(explain_text(slub + slub + crash).reports) == 1
    assert "kernel crashed" in " ".join(explain_text(slub + slub + crash).main.verdict.why)


def test_the_same_words_of_many_cpus_share_a_stack() -> None:
    line = "[  165.84{}] vmap allocation for size 2498560 failed: use vmalloc=<size> to increase size\n"
    stack = "[  165.847] CPU: 253 PID: 4995 Comm: systemd-udevd Not tainted 5.19.0 #2\n[  165.848] Call Trace:\n[  165.849]  __vmalloc_node_range+0x291/0x560\n[  165.850]  module_alloc+0xe7/0x170\n[  165.851]  move_module+0x4c/0x630\n[  165.851]  entry_SYSCALL_64_after_hwframe+0x63/0xcd\n"
    (report,) = explain_text(line.format(2) + line.format(3) + line.format(4) + stack + line.format(9)).reports
    assert report.repeated == 4
    assert report.verdict.details["module_area"]
    assert "ARM" not in text(explain_text(line.format(4) + stack))


def test_a_copy_is_not_at_fault_its_caller_is() -> None:
    report = explain_text(
        "BUG: KFENCE: out-of-bounds read in memcpy_orig+0x54/0x110\n memcpy_orig+0x54/0x110\n xrep_symlink+0xb3/0xf0 [xfs]\n xrep_attempt+0x61/0x1f0 [xfs]\n"
    ).main
    assert "in xrep_symlink [xfs], by way of memcpy_orig" in report.verdict.headline
    assert "in xrep_symlink" in report.verdict.remedies[0].what


def test_an_order_that_stands_for_no_bytes() -> None:
    report = explain_text(
        "WARNING: CPU: 7 PID: 99 at mm/page_alloc.c:4864 __alloc_pages_nodemask+0x299/0x330\nCPU: 7 PID: 99 Comm: kworker/u16:1 Not tainted 5.9.0 #1\n"
        "RIP: 0010:__alloc_pages_nodemask+0x299/0x330\nRDX: 0000000000000000 RSI: 0000000000000034 RDI: 0000000000000cc0\nCall Trace:\n dma_direct_alloc_pages+0x1e9/0x2c0\n nvme_alloc_queue+0x10a/0x170 [nvme]\n"
    ).main
    assert (report.verdict.code, report.verdict.certainty) == ("order_too_large", "decided")
    assert "get_order(0)" in report.verdict.headline


def test_who_asked_and_what_to_advise() -> None:
    guesses = "".join(
        f" [<ffffffff81{n:06x}>] ? {name}+0x1/0x20\n"
        for n, name in enumerate(["dump_stack", "dump_header", "find_lock_task_mm", "oom_kill_process", "left_over", "out_of_memory", "real_caller"])
    )
    found = explain_text("x invoked oom-killer: gfp_mask=0xd0, order=0\nCall Trace:\n" + guesses).main.request
    assert found is not None
    assert found.caller == "real_caller"
    cut = "x: page allocation failure: order:7, mode:0x14000c0(GFP_KERNEL)\n[<bf84408f>] (__alloc_pages_nodemask) from [<bf809fbf>] (__dma_a)\n[<bf80a10d>] (__dma_alloc) from [<bf9d4b45>] (vb2_dc_)\n[<bf9d4b45>] (vb2_dc_alloc) from [<bf9d0e6b>] (__vb)\n"
    device = explain_text(
        cut
        + "Mem-Info:\nNormal free:2264kB min:344kB low:428kB high:512kB\nlowmem_reserve[]: 0 0 0\nNormal: 566*4kB (U) "
        + " ".join(f"0*{8 << k}kB" for k in range(10))
        + " = 2264kB\n"
    ).main
    assert device.request is not None
    assert device.request.caller == "vb2_dc_alloc"
    assert "vmalloc cannot help" in device.verdict.remedies[0].changes
    noisy = "[Playing][Vol=01][00:02:54/00:04:07]swapper/0: page allocation failure: order:0, mode:0x20\nCPU: 0 PID: 0 Comm: swapper/0 Not tainted 3.10.53 #1\n"
    assert explain_text(noisy).main.request.comm == "swapper/0"  # type: ignore[union-attr]
    assert "dma_set_max_seg_size" in text(
        explain_text("DMA-API: sun4i-drm display-engine: mapping sg segment longer than device claims to support [len=6144000] [max=65536]\n")
    )
    dump = "SysRq : Show Memory\nMem-Info:\nNormal free:867288kB min:3736kB low:4668kB high:5604kB present:890008kB\nlowmem_reserve[]: 0 0 0\n"
    assert explain_text(dump).main.verdict.headline.startswith("Nothing was refused")


def test_rules_that_stable_kernels_took_over() -> None:
    """The reserves of 6.3 are in 6.1.116 and later, not in 6.2 (Debian's changelog of linux 6.1 names the stable versions)."""
    assert [rules_of(version).harder for version in ((6, 1, 115), (6, 1, 116), (6, 2, 16), (6, 3, 0))] == ["ATOMIC", "wait", "ATOMIC", "wait"]
    nowait = decode(0x800, "GFP_NOWAIT", (6, 1, 0))
    order3 = [takes("H", Ask(3, nowait, version)) for version in ((6, 1, 115), (6, 1, 116), (6, 1, 156), (6, 1, 157), (6, 12, 53), (6, 12, 54))]
    assert order3 == [False, True, True, False, True, False]
    atomic = decode(0xA20, "GFP_ATOMIC", (6, 1, 0))
    assert [takes("H", Ask(0, atomic, version)) for version in ((6, 1, 115), (6, 1, 116), (6, 6, 59), (6, 6, 60), (6, 11, 6), (6, 11, 7))] == [False, True] * 3


def test_debian_releases_up_to_6_1_have_their_patch_level_elsewhere() -> None:
    line = "CPU: 0 PID: 1 Comm: x Not tainted {} #1  Debian {}\n"
    assert find_kernel(line.format("6.1.0-50-cloud-amd64", "6.1.176-1")).version == (6, 1, 176)
    assert find_kernel(line.format("6.1.0-27-amd64", "")).version == (6, 1, 0)
    assert find_kernel(line.format("6.1.0-28-amd64", "")).version == (6, 1, 119)
    assert find_kernel(line.format("5.10.0-32-arm64", "5.10.223-1")).version == (5, 10, 223)
    assert find_kernel(line.format("6.12.117+deb13-amd64", "6.12.117-1")).version == (6, 12, 117)


def test_the_scheduler_is_not_the_caller() -> None:
    report = explain_text(
        "BUG: scheduling while atomic: init/1/0x00000002\nCPU: 0 PID: 1 Comm: init Not tainted 6.1.0 #1\nCall Trace:\n __schedule_bug.cold+0x42/0x4e\n __schedule+0x800/0x9e0\n schedule+0x5a/0xd0\n"
        " schedule_timeout+0x94/0x150\n io_schedule_timeout+0x4c/0x80\n mempool_alloc+0x172/0x1b0\n cbf_next_desc+0x23/0x40 [capbuf]\n wr+0x5a8/0xafc [capbuf]\n"
    ).main
    assert "cbf_next_desc allocated" in report.verdict.headline
    assert "CONFIG_DEBUG_ATOMIC_SLEEP" not in " ".join(report.verdict.why)


def test_debugging_that_makes_slabs_larger() -> None:
    slub = "SLUB: Unable to allocate memory on node -1, gfp=0xa20(GFP_ATOMIC)\n  cache: foo, object size: 4000, buffer size: 5120, default order: 3, min order: 3\n  foo debugging increased min order, use slub_debug=O to disable.\n  node 0: slabs: 10, objs: 60, free: 0\n"
    assert explain_text(slub).main.verdict.remedies[0].what.startswith("slub_debug=O")
    page = (
        "x: page allocation failure: order:3, mode:0x40a20(GFP_ATOMIC|__GFP_COMP), nodemask=(null)\nCall Trace:\n new_slab+0x1/0x2\n kmem_cache_alloc+0x1/0x2\n"
    )
    both = explain_text(page + slub).main.verdict
    assert both.remedies[0].what.startswith("slub_debug=O")
    assert "raised its lowest order to 3" in " ".join(both.why)


def test_the_summary_is_of_the_first_report_with_evidence() -> None:
    cut_off = "[1.0] Out of memory: Killed process 537 (login) total-vm:27584kB, anon-rss:860kB, file-rss:0kB\n"
    whole = "[2.0] x invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0\n[2.0] Mem-Info:\n[2.0] Node 0 Normal free:4000kB min:8000kB low:9000kB high:9500kB managed:4000000kB\n[2.0] lowmem_reserve[]: 0 0\n"
    explanation = explain_text(cut_off + whole)
    assert [report.verdict.code for report in explanation.reports] == ["evidence_missing", "watermark"]
    assert explanation.main is explanation.reports[1]
    assert explanation.to_dict()["verdict"] == "watermark"
    slub = "SLUB: Unable to allocate memory on node -1, gfp=0x20(GFP_ATOMIC)\n"
    assert explain_text(slub + whole).main.verdict.code == "watermark"  # decided, where the first is not


def test_old_words_and_other_registers() -> None:
    old = "Debug: sleeping function called from illegal context at mm/page_alloc.c:428\nCall Trace:\n [<c0133dcc>] __alloc_pages+0x24/0x254\n [<c0116dd3>] dup_task_struct+0x47/0xbc\n"
    assert explain_text(old).main.verdict.code == "sleeping_in_atomic"
    riscv = "WARNING: CPU: 0 PID: 1 at mm/page_alloc.c:5534 __alloc_pages+0x1e8/0xad2\nCPU: 0 PID: 1 Comm: x Not tainted 6.1.32 #1\nepc : __alloc_pages+0x1e8/0xad2\n s1 : 00000000ffffffff a0 : 0000000000000cc4 a1 : 000000000000000b\n"
    report = explain_text(riscv).main
    assert report.request is not None
    assert (report.verdict.code, report.verdict.certainty, report.request.order) == ("order_too_large", "decided", 11)


def test_the_request_counts_as_two_pages_more_from_2_6_38_to_3_2() -> None:
    log = "x: page allocation failure: order:1, mode:0x4020\nPid: 1, comm: x Not tainted {} #1\nMem-Info:\nDMA free:15680kB min:28kB low:32kB high:40kB present:15800kB\nlowmem_reserve[]: 0 3800 3915 3915\nDMA: 0*4kB 2*8kB 978*16kB 0*32kB 0*64kB 0*128kB 0*256kB 0*512kB 0*1024kB 0*2048kB 0*4096kB = 15664kB\n"
    margins = {release: explain_text(log.format(release)).main.verdict.zones[0].margin for release in ("2.6.37", "2.6.38", "3.2.4", "3.3.0")}
    assert margins == {"2.6.37": 1, "2.6.38": -1, "3.2.4": -1, "3.3.0": 1}


def test_zone_lines_torn_by_another_cpu() -> None:
    torn = (
        "x: page allocation failure: order:4, mode:0x40c40(GFP_NOFS|__GFP_COMP), nodemask=(null)\nMem-Info:\nNode 0 \neth0: link flap\nDMA32 free:79876kB boost:0kB min:7340kB low:7904kB high:8468kB managed:344528kB\n"
        "lowmem_reserve[]:\neth0: link flap\nNode 0 DMA32: 1*4kB (U) 0*8kB 0*16kB 2496*32kB (U) 0*64kB 0*128kB 0*256kB 0*512kB 0*1024kB 0*2048kB 0*4096kB = 79876kB\n"
    )
    (zone,) = explain_text(torn).main.verdict.zones
    assert (zone.zone.label, zone.rule) == ("Node 0 DMA32", "no_block")


def test_what_else_warns() -> None:
    end = "CPU: 0 PID: 1 Comm: init Not tainted 6.1.0 #1\nRIP: 0010:{0}+0x1/0x260\nCall Trace:\n {0}+0x1/0x260\n vfree+0x1/0x20\n wr+0x1/0x200 [vxring]\n"
    vfree = explain_text(
        "Trying to vfree() nonexistent vm area (ff4d8b2980045000)\nWARNING: CPU: 0 PID: 1 at mm/vmalloc.c:2701 __vunmap+0x7e/0x340\n" + end.format("__vunmap")
    ).main
    assert (vfree.verdict.code, vfree.request and vfree.request.caller) == ("invalid_free", "wr")
    nothing = explain_text("WARNING: CPU: 0 PID: 1 at mm/vmalloc.c:3170 __vmalloc_node_range+0x7e/0x340\n" + end.format("__vmalloc_node_range")).main
    assert (nothing.verdict.code, nothing.request and nothing.request.asked_bytes) == ("vmalloc_too_large", 0)
    mask = explain_text("platform vxring.0: swiotlb addr 0x000000000bd7f000+4000 overflow (mask ffff, bus limit 0).\n").main.verdict
    assert (mask.code, mask.details["mask"], mask.details["address"]) == ("dma_mask", 0xFFFF, 0xBD7F000)
    percpu = explain_text("percpu: allocation failed, size=26000 align=32 atomic=0, alloc from reserved chunk failed\n").main.verdict
    assert "alloc_percpu" in percpu.remedies[0].what
    node = explain_text(
        "SLUB: Unable to allocate memory on node 2 (gfp=0x80d0)\n  cache: kmalloc-192, object size: 192, buffer size: 192, default order: 1, min order: 0\n  node 0: slabs: 6172, objs: 259224, free: 245741\n"
    ).main.verdict
    assert (node.code, node.certainty, "node 2" in node.headline) == ("slab_refused", "probable", True)
    preempt_rt = explain_text(
        "BUG: sleeping function called from invalid context at kernel/locking/spinlock_rt.c:48\nin_atomic(): 1, irqs_disabled(): 1, non_block: 0, pid: 0, name: swapper/1\nCall Trace:\n __might_resched+0x1/0x2\n rt_spin_lock+0x1/0x2\n"
        " get_page_from_freelist+0x1/0x2\n __alloc_pages_noprof+0x1/0x2\n tlb_init+0x1/0x200\n"
    ).main
    assert "tlb_init allocated" in preempt_rt.verdict.headline
    assert "GFP_ATOMIC does not help" in preempt_rt.verdict.remedies[0].what


def test_slub_messages_between_a_head_and_its_dump() -> None:
    head = "x: page allocation failure: order:0, mode:0xa20(GFP_ATOMIC), nodemask=(null)\n"
    slub = "SLUB: Unable to allocate memory on node -1, gfp=0xa20(GFP_ATOMIC)\n  cache: kmalloc-4k, object size: 4096, buffer size: 8192, default order: 3, min order: 1\n  node 0: slabs: 4, objs: 7, free: 0\n"
    dump = "CPU: 1 PID: 456 Comm: x Not tainted 5.7.0 #1\nMem-Info:\nNormal free:400kB min:4000kB low:5000kB high:6000kB reserved_highatomic:0KB managed:900000kB\nlowmem_reserve[]: 0 0 0\n"
    (report,) = explain_text(head + slub + slub + dump).reports
    assert (report.verdict.code, report.verdict.certainty) == ("watermark", "decided")
    assert [one.verdict.code for one in explain_text(head + slub).reports] == ["evidence_missing", "slab_refused"]  # no dump follows


def test_free_pages_that_are_all_cma() -> None:
    dump = "Mem-Info:\nDMA free:65024kB min:1600kB low:2000kB high:2400kB reserved_highatomic:0KB managed:300000kB free_cma:65024kB\nlowmem_reserve[]: 0 0 0\n"
    head = "x: page allocation failure: order:0, mode:0x820(GFP_ATOMIC), nodemask=(null)\nCPU: 0 PID: 1 Comm: x Not tainted 6.12.0 #1\n"
    assert explain_text(head + dump).main.verdict.code == "cma_only"
    assert explain_text(head + dump.replace("65024", "0")).main.verdict.code == "really_empty"


def test_a_cache_destroyed_with_objects() -> None:
    warning = "kmem_cache_destroy pktpool: Slab cache still has objects when called from wr+0x1/0x2 [pktpool]\nWARNING: CPU: 0 PID: 1 at mm/slab_common.c:548 kmem_cache_destroy+0x13f/0x150\nCPU: 0 PID: 1 Comm: init Not tainted 6.12.0 #1\nR12: 0000000015f80000\n"
    assert explain_text(warning).main.verdict.code == "objects_remaining"


def test_stalls_as_4_9_spelt_them() -> None:
    assert (
        explain_text(
            "a.out: page alloction stalls for 370009ms, order:0, mode:0x342004a(GFP_NOFS)\nCPU: 3 PID: 4746 Comm: a.out Not tainted 4.9.0-rc1+ #80\n"
        ).main.verdict.code
        == "stalled"
    )


def test_what_is_only_counted_adds_up_over_the_anchors_of_a_kind() -> None:
    """Two phrases of one kind, each more often than can be told apart, in the same megabyte."""
    line = b"Slab corruption\nslab error in x\n"
    found = scan.find(line * (3 * scan.CHUNK // len(line)))
    shown = sum(window.data.count(b"Slab corruption") + window.data.count(b"slab error in") for window in found.windows)
    assert abs(found.unread["misuse"] + shown - 2 * (3 * scan.CHUNK // len(line))) <= 1000
