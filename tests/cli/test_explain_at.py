from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import RECORDINGS

Run = Callable[..., tuple[int, str, str]]
FAILS = RECORDINGS / "pressure/fails-128m-2cpu.mmrec"
CALM = RECORDINGS / "mmap-1g-1cpu.mmrec"


def test_failures_are_listed(mmtwin: Run) -> None:
    code, out, err = mmtwin("explain", FAILS)
    assert (code, err) == (0, "")
    assert "321 of 18,441 page requests" in " ".join(out.split()) and f"mmtwin explain {FAILS} --at first-failure" in out
    document = json.loads(mmtwin("explain", FAILS, "--json")[1])
    assert (document["schema"], document["failures_total"], len(document["failures"]), document["failures"][0]["row"]) == (1, 321, 321, 53994)
    code, out, _ = mmtwin("explain", CALM)
    assert code == 0 and "None of the 6,742 page requests" in " ".join(out.split()) and "--order 4 --gfp GFP_KERNEL" in out
    code, out, _ = mmtwin("explain", RECORDINGS / "virtual/areas-6.12-1cpu.mmrec")
    assert code == 0 and "holds no requests for pages" in " ".join(out.split())


def test_a_failure_is_explained(mmtwin: Run) -> None:
    code, out, _ = mmtwin("explain", FAILS, "--at", 60430)
    text = " ".join(out.split())
    assert code == 0
    assert "DMA32 has 3.1 MiB free, but no block of 2 MiB or more: it is in smaller pieces." in text
    assert "797 - 511 = 286 > min 745 (512 of it boost) -> 373 (__GFP_HIGH) -> 280 (cannot wait): passes by 6" in text
    assert "the rules and the allocator agree" in text
    assert "Where 2 MiB could have been in DMA (" in text and "472 free, 0 movable, 40 pinned" in text
    assert "asked for by pid 1, the oldest 410 events ago" in text
    assert all(len(line) <= 100 and line == line.rstrip() for line in out.splitlines())


def test_json(mmtwin: Run) -> None:
    code, out, _ = mmtwin("explain", FAILS, "--at", "first-failure", "--json")
    document = json.loads(out)
    assert (code, document["schema"], document["event"], document["recorded"], document["verdict"]) == (0, 1, 53994, "refused", "watermark")
    assert document["twin"] == {"pfn": -1, "answer": "no page, with the flags of the kernel's own test", "agrees": True}
    assert [zone["zone"] for zone in document["zones"]] == ["DMA", "DMA32"] and document["zones"][1]["margin"] < 0


def test_a_request_that_was_never_made(mmtwin: Run) -> None:
    code, out, _ = mmtwin("explain", CALM, "--at", "end", "--order", 9, "--gfp", "GFP_KERNEL|__GFP_NOWARN")
    assert code == 0 and "A request for 2 MiB in one piece (order 9, GFP_KERNEL|__GFP_NOWARN). It is served:" in " ".join(out.split())
    document = json.loads(mmtwin("explain", CALM, "--at", 100, "--order", 0, "--gfp", "0x2", "--cpu", 0, "--json")[1])
    assert (document["verdict"], document["recorded"], document["request"]["cpu"], document["twin"]["agrees"]) == ("served", None, 0, True)


@pytest.mark.parametrize("words", [(), ("--at", "last"), ("--at", "end", "--order", "3", "--gfp", "GFP_ATOMIC", "--cpu", "1")])
def test_the_code_that_is_printed_runs(mmtwin: Run, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    code, out, _ = mmtwin("explain", FAILS, *words, "--code")
    assert code == 0
    exec(compile(out, "printed", "exec"), {})
    printed = capsys.readouterr().out
    assert "shape: (321, 6)" in printed or "asked for" in printed or "A request for" in printed


def test_usage(fails: Callable[..., str], tmp_path: Path) -> None:
    assert "--order and --gfp go together" in fails(2, "explain", FAILS, "--at", "end", "--order", 3)
    assert "need --at" in fails(2, "explain", FAILS, "--order", 3, "--gfp", "GFP_KERNEL")
    assert "--cpu is for a request that was never made" in fails(2, "explain", FAILS, "--at", "last", "--cpu", 1)
    assert "'GFP_KERNAL' is no GFP flag" in fails(2, "explain", FAILS, "--at", "end", "--order", 3, "--gfp", "GFP_KERNAL")
    assert "failure:1 to failure:321" in fails(1, "explain", FAILS, "--at", "failure:999")
    assert "none of the recording's page requests failed" in fails(1, "explain", CALM, "--at", "first-failure")
    log = tmp_path / "some.log"
    log.write_text("nothing\n")
    assert "--at is for recordings" in fails(2, "explain", log, "--at", "5")
    (tmp_path / "damaged.mmrec").write_bytes(b"PK\3\4 and no more")
    assert "damaged.mmrec" in fails(1, "explain", tmp_path / "damaged.mmrec")


def test_a_file_that_is_not_there(fails: Callable[..., str], tmp_path: Path) -> None:
    assert "No such file or directory" in fails(1, "explain", tmp_path / "none.mmrec", "--at", "5")
