"""The page without a browser: well-formed, self-contained, its data the document's, and nothing from a file is ever markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mmtwin.recording.readers import ftrace_text
from mmtwin.report.document import document
from mmtwin.report.page import SCRIPTS, html, render
from mmtwin.report.sections import SECTIONS

from .conftest import Made

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\"'"
VOID = {"meta", "input", "link", "br", "wbr", "img", "hr"}


class Page(HTMLParser):
    """A page's elements and texts. Complains about elements that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.shown = ""
        self._open: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append((tag, dict(attrs).get("id") or tag))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if self._open:
            self.text[self._open[-1][1]] = self.text.get(self._open[-1][1], "") + data
            if self._open[-1][0] not in ("script", "style"):
                self.shown += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def data(self) -> Any:
        return json.loads(self.text["data"])


@pytest.fixture(params=["demo", "refusing"])
def made(request: pytest.FixtureRequest) -> Made:
    found: Made = request.getfixturevalue(request.param)
    return found


def test_the_pages_data_is_the_document(made: Made) -> None:
    assert Page(html(made.data)).data == json.loads(json.dumps(made.data))


def test_nothing_is_loaded(made: Made) -> None:
    text = html(made.data)
    page = Page(text)
    for tag, attributes in page.elements:
        assert not attributes.keys() & {"src", "srcset", "href", "action", "style"}, tag
        assert not any(name.startswith("on") for name in attributes), tag
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    (policy,) = [attributes["content"] for attributes in page.all("meta") if attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and policy.startswith("default-src 'none';") and "unsafe" not in policy
    for element in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.text[element].encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert len(page.all("script")) == 2 and len(page.all("style")) == 1


def test_what_can_be_read_without_a_script(made: Made) -> None:
    shown = Page(html(made.data)).shown
    for tile in made.data["findings"]["tiles"]:
        assert tile["label"] in shown and tile["value"] in shown
    for sentence in made.data["findings"]["sentences"]:
        assert sentence in shown
    for section in SECTIONS:
        assert (section.title in shown) == bool(section.template and made.data[section.name] is not None), section.name
    for row in [row for row in made.data["failures"]["requests"] if row["explained"]][:5]:
        assert row["explained"]["reason"] in shown
        assert f"{row['event']:,}" in shown
    for row in (made.data["objects"] or {"rows": []})["rows"][:20]:
        assert row["label"] in shown


def test_ids_are_unique_and_named(made: Made) -> None:
    page = Page(html(made.data))
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for attribute in ("aria-labelledby", "aria-describedby", "for"):
        assert {a[attribute] for _, a in page.elements if a.get(attribute)} <= set(ids)


def test_names_are_never_markup(made: Made) -> None:
    """Names of processes, caches, files, kernels and call sites come from outside."""
    recording = made.recording
    events = recording.events.with_columns(pl.when(pl.col("name").is_not_null()).then(pl.lit(NASTY)).alias("name"))
    provenance = replace(recording.provenance, workload_name=NASTY, kernel_release=NASTY, cmdline=NASTY, notes=[NASTY])
    assert recording.before is not None
    before = recording.before
    if before.caches is not None:
        before = replace(before, caches=before.caches.with_columns(pl.when(pl.col("id") < 5).then(pl.lit(NASTY)).otherwise("name").alias("name")))
    data = document(replace(recording, provenance=provenance, before=before, events=events), Path(NASTY.replace("/", "|") + ".mmrec"), steps=3)
    text = html(data)
    page = Page(text)
    assert len(page.all("script")) == 2 and not page.all("img")
    assert page.shown.count(NASTY) >= 4
    assert page.data == json.loads(json.dumps(data))
    assert NASTY not in text


def test_trace_text(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(
        "#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION\n"
        "  <b>evil</b>-1     [000] .....   1.000001: kmalloc: call_site=<img+0x10/0x20 ptr=00000000a1b2c3d4 bytes_req=10 bytes_alloc=16 gfp_flags=GFP_KERNEL node=-1 accounted=false\n"
    )
    page = Page(html(document(ftrace_text.read(path), path)))
    assert not page.all("img") and not page.all("b") and not page.all("canvas")
    assert "<img+0x10/0x20" in page.shown


def test_scripts_end_no_element() -> None:
    from mmtwin.report.page import _text

    for name in SCRIPTS:
        assert "</" not in _text(name) and "innerHTML" not in _text(name), name


def test_files_are_whole(refusing: Made, tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    render(refusing.data, path)
    first = path.read_bytes()
    with pytest.raises(FileExistsError):
        render({**refusing.data, "file": "other"}, path)
    assert path.read_bytes() == first
    render({**refusing.data, "file": "other"}, path, force=True)
    assert path.read_bytes() != first
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_a_name_that_is_no_text(refusing: Made, tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    render({**refusing.data, "file": "a\udcff.mmrec"}, path)
    assert Page(path.read_text()).data["file"] == "a\udcff.mmrec"


def test_size_per_event(demo: Made) -> None:
    assert len(html(demo.data)) < 8 * len(demo.recording.events)
