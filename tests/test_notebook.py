"""What notebooks show: whole HTML, with everything from files escaped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

from mmtwin.diagnose.advise.advise import advise
from mmtwin.diagnose.blame import blame
from mmtwin.diagnose.explain import explain_text
from mmtwin.diagnose.explain.at import explain_at, hypothetical
from mmtwin.diagnose.page_stat import page_stat
from mmtwin.gfp import GFP_KERNEL
from mmtwin.machine import Machine
from mmtwin.notebook import SHOWN, Card, InNotebook, Table, card_html, readable_size
from mmtwin.recording.model import Recording
from mmtwin.replay.check import Result

NASTY = "<img src=x onerror=alert(1)>&\"'</td></table><script>alert(2)</script>"


class Tags(HTMLParser):
    """Open tags and text; complains about tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_everything_is_text() -> None:
    card = Card(NASTY, [(NASTY, NASTY)], [Table((NASTY, NASTY), [(NASTY, NASTY)])], [NASTY])
    tags = Tags(card_html(card))
    assert not tags.seen & {"img", "script"}
    assert tags.text.count(NASTY) == 8


def test_long_tables_are_cut() -> None:
    text = card_html(Card("x", tables=[Table(("name",), [(str(i),) for i in range(SHOWN + 3)])]))
    assert "and 3 more" in text
    assert Tags(text).text.count("0") == 2  # 0 and 10


def test_anything_can_have_a_card() -> None:
    class Mine(InNotebook):
        def _card(self) -> Card:
            return Card("mine", [("size", readable_size(5632))])

    assert "5.5 KiB" in Tags(Mine()._repr_html_()).text


def test_sizes() -> None:
    assert [readable_size(n) for n in (0, 1023, 1024, 1536, 150 << 20, -(2 << 30), 1 << 40)] == [
        "0 B",
        "1,023 B",
        "1 KiB",
        "1.5 KiB",
        "150 MiB",
        "-2 GiB",
        "1 TiB",
    ]


def test_a_machine(bare: Callable[..., Machine]) -> None:
    m = bare("64MiB", cpus=2)
    text = Tags(m._repr_html_()).text
    assert "of 63.5 MiB" in text and m.profile.name in text and "free blocks by order" in text


def test_a_recording_and_its_sums(recordings: dict[str, Recording]) -> None:
    recording = recordings["files-256m-1cpu"]
    recording = replace(recording, provenance=replace(recording.provenance, workload_name=NASTY, notes=[NASTY]))
    tags = Tags(recording._repr_html_())
    assert f"{len(recording.events):,}" in tags.text and tags.text.count(NASTY) == 2 and "script" not in tags.seen
    result = page_stat(recording, "order")
    assert f"{result.rows['hits'][0]:,}" in Tags(result._repr_html_()).text


def test_a_replay() -> None:
    numbers = dict.fromkeys(
        ("slab_allocs", "slab_allocs_equal", "vmap_allocs", "vmap_allocs_equal", "bulk_pages", "frees", "missed_probes", "inferred_events"), 0
    )
    result = Result(
        cpus=1, events=10, page_allocs=1234, page_allocs_equal=1233, final_state_equal=False, differences=[{}], seconds=1.0, events_per_second=10.0, failed_allocs=0,
        failed_allocs_equal=0, lost_events=7, inferred={}, **numbers,
    )  # fmt: skip
    text = Tags(result._repr_html_()).text
    assert "different from the kernel" in text and "1,233" in text and "1,234" in text and "7 events were lost" in text


def test_an_explanation() -> None:
    log = (
        "[   12.3] evil<b>: page allocation failure: order:4, mode:0x40cc0(GFP_KERNEL|__GFP_COMP), nodemask=(null)\n"
        "[   12.3] Mem-Info:\n[   12.3] Normal: 100*4kB (U) 0*8kB 0*16kB 0*32kB 0*64kB 0*128kB = 400kB\n"
    )
    explanation = explain_text(log)
    tags = Tags(explanation._repr_html_())
    assert explanation.main.verdict.code in tags.text and "b" not in tags.seen


def test_blame_and_advice_and_a_moment(recordings: dict[str, Recording]) -> None:
    recording = recordings["slabs-512m-4cpu-slab"]
    result = blame(recording, sections=("grows", "leaks", "wastes", "fragments"), steps=4)
    text = Tags(result._repr_html_()).text
    assert result.fragments is not None and f"{result.fragments.samples[-1].pinned:,} unmovable pages" in text
    assert result.grows[0].rows["label"][0] in text and "may leak (objects)" in text
    found = advise(recording, tries=False, classes=False)
    text = Tags(found._repr_html_()).text
    assert found.advised and all(site.advice[0].suggestion.why in text for site in found.sites if site.advice) and "arithmetic alone" in text
    x = explain_at(recording, hypothetical(recording, 1000, 9, GFP_KERNEL))
    text = Tags(x._repr_html_()).text
    assert x.verdict.headline in text and "a request that was never made" in text and x.owners[0].who in text
