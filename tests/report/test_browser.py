"""The page in a real browser, where there is one: no error, the slider, themes, downloads and numbers work."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for the driver, which the benchmark uses too

from bench import browser
from mmtwin.recording.readers import ftrace_text
from mmtwin.report.document import document
from mmtwin.report.page import render
from mmtwin.report.page_map import decode

from .conftest import Made

PROGRAM = browser.find()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no chromium: apt-get install chromium; the page is then checked by tests/report/test_page.py alone")
READY = "document.documentElement.dataset.ready === 'true'"


@pytest.fixture(scope="module")
def page() -> Iterator[browser.Page]:
    assert PROGRAM is not None
    try:
        with browser.page(PROGRAM) as found:
            yield found
    except browser.BrowserError as error:
        if "ended with" in str(error) or "no answer" in str(error):
            pytest.skip(f"{PROGRAM} does not run here: {error}")
        raise


@pytest.fixture
def opened(page: browser.Page, demo: Made, tmp_path: Path) -> browser.Page:
    return show(page, demo.data, tmp_path)


def show(page: browser.Page, data: dict[str, Any], directory: Path, width: int = 1280) -> browser.Page:
    path = directory / "report.html"
    render(data, path, force=True)
    page.screen(width, 900)
    page.problems.clear()
    page.requests.clear()
    page.open(path)
    page.wait(READY)
    assert page.requests == [path.as_uri()]
    return page


def test_numbers_are_the_documents(opened: browser.Page, demo: Made) -> None:
    assert opened.run("report.data") == json.loads(json.dumps(demo.data))
    assert opened.problems == []


def test_the_slider_moves_everything(opened: browser.Page, demo: Made) -> None:
    last = len(demo.data["steps"]["events"]) - 1
    moments = decode(demo.data["map"])
    pictures, texts = set(), set()
    for step in (last, 0, last // 2, last - 1, 3):
        opened.run(f"(() => {{ const s = document.getElementById('step'); s.value = {step}; s.dispatchEvent(new Event('input')); }})()")
        assert opened.run("[report.step, Number(document.getElementById('step').value)]") == [step, step]
        assert f"event {demo.data['steps']['events'][step]:,} of" in opened.run("document.getElementById('moment').textContent")
        assert f"event {demo.data['steps']['events'][step]:,} of" in opened.run("document.getElementById('step').getAttribute('aria-valuetext')")
        holders, events = moments[step]
        assert opened.run("[...report.frames.holders]") == holders.tolist()
        assert opened.run("[...report.frames.events]") == events.tolist()
        pictures.add(opened.run("document.getElementById('frames').toDataURL()"))
        texts.add(opened.run("document.querySelector('[data-readout=memory]').textContent"))
    assert len(pictures) > 2 and len(texts) > 2
    opened.run("document.getElementById('step').focus()")
    opened.run("report.setStep(5)")
    for key, code, expected in (("ArrowRight", 39, 6), ("ArrowLeft", 37, 5), ("Home", 36, 0), ("End", 35, last)):
        opened.call("Input.dispatchKeyEvent", type="rawKeyDown", key=key, code=key, windowsVirtualKeyCode=code)
        opened.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)
        assert opened.run("report.step") == expected, key
    assert opened.problems == []


def test_themes(opened: browser.Page) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light = opened.run(background)
    map_in_light = opened.run("document.getElementById('frames').toDataURL()")
    opened.run("document.getElementById('theme').click()")
    dark = opened.run(background)
    assert light != dark
    assert opened.run("document.getElementById('frames').toDataURL()") != map_in_light
    assert opened.run("document.getElementById('theme').textContent") == "Light"
    opened.run("document.getElementById('theme').click()")
    assert opened.run(background) == light
    opened.run("localStorage.removeItem('mmtwin-theme')")
    opened.run("delete document.documentElement.dataset.theme")
    opened.screen(1280, 900, dark=True)
    assert opened.run(background) == dark
    assert opened.problems == []


CONTRAST = """
(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => { const [r, g, b] = numbers(colour).map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (element) => { for (let e = element; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (numbers(c)[3] !== 0) return c; } return "rgb(255,255,255)"; };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    if (!element.checkVisibility() || ![...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()) || element.closest("svg,[aria-pressed=false]")) continue;
    const back = behind(element);
    if (!back.startsWith("rgb")) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(back)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push([element.tagName, element.textContent.slice(0, 30), ((a + 0.05) / (b + 0.05)).toFixed(2)]);
  }
  return poor;
})()
"""


@pytest.mark.parametrize("dark", [False, True])
def test_contrast(page: browser.Page, refusing: Made, tmp_path: Path, dark: bool) -> None:
    show(page, refusing.data, tmp_path)
    page.screen(1280, 900, dark=dark)
    assert page.run(CONTRAST) == []


def test_a_frame_tells_what_it_holds(opened: browser.Page, demo: Made) -> None:
    holder, event = decode(demo.data["map"])[-1]
    pids = demo.data["map"]["holders"]["pid"]
    cell = next(i for i in range(len(holder)) if event[i] >= 0 and pids[holder[i]] >= 0)
    opened.run("document.getElementById('frames').focus()")
    opened.run(
        "window.press = (key, n) => { for (let i = 0; i < n; i++) document.getElementById('frames').dispatchEvent(new KeyboardEvent('keydown', { key })); }"
    )

    def go(cell: int) -> None:
        opened.run("press('PageUp', 300)")
        opened.run("press('ArrowUp', 16)")
        opened.run("press('ArrowLeft', 32)")
        opened.run(f"(() => {{ press('PageDown', {cell // 512}); press('ArrowDown', {cell % 512 // 32}); press('ArrowRight', {cell % 32}); }})()")

    go(cell)
    assert opened.run("report.pointed()") == cell
    text = opened.run("document.getElementById('frame').textContent")
    assert f"asked for by PID {pids[holder[cell]]}" in text and f"handed out at event {int(event[cell]):,}" in text and "Its pageblock" in text
    slab = next(i for i in range(len(holder)) if demo.data["map"]["holders"]["class"][holder[i]] == 4)
    name = demo.data["map"]["holders"]["texts"][demo.data["map"]["holders"]["text"][holder[slab]]]
    go(slab)
    assert name.startswith("slab of ") and name in opened.run("document.getElementById('frame').textContent")
    assert opened.problems == []


def test_the_legend(opened: browser.Page) -> None:
    before = opened.run("document.getElementById('frames').toDataURL()")
    areas = opened.run("document.querySelectorAll('[data-chart=memory] polygon').length")
    opened.run("document.querySelector('[data-legend] button').click()")
    assert opened.run("document.querySelectorAll('[data-chart=memory] polygon').length") == areas - 1
    assert opened.run("document.getElementById('frames').toDataURL()") != before
    assert opened.run("[...document.querySelectorAll('[data-legend] button[aria-pressed=false]')].length") == 2  # both legends say so


def test_caches_and_trees(opened: browser.Page, demo: Made) -> None:
    rows = "[...document.querySelectorAll('[data-table=caches] tbody tr th')].map((cell) => cell.textContent)"
    last = sorted(demo.data["caches"], key=lambda cache: -cache["pages"][-1])
    assert opened.run(rows)[:3] == [cache["name"] for cache in last[:3]]
    opened.run("document.querySelector('[data-sort=name]').click()")
    assert opened.run(rows) == sorted(opened.run(rows))
    opened.run("document.querySelector('[data-more=caches]').click()")
    assert len(opened.run(rows)) == len(demo.data["caches"])
    opened.run("(() => { const f = document.querySelector('[data-cache=filter]'); f.value = 'KMALLOC-'; f.dispatchEvent(new Event('input')); })()")
    assert opened.run(rows) and all("kmalloc-" in name for name in opened.run(rows))
    boxes = "document.querySelectorAll('[data-icicle=objects] button').length"
    count = opened.run(boxes)
    assert count > 10
    opened.run("document.querySelectorAll('[data-icicle=objects] button')[1].click()")
    assert opened.run(boxes) < count
    assert demo.data["objects"]["tree"][0]["name"] in opened.run("document.querySelector('[data-readout=objects]').textContent")
    opened.run("(() => { const s = document.querySelector('[data-free=zone]'); s.value = '1'; s.dispatchEvent(new Event('change')); })()")
    table = opened.run("[...document.querySelectorAll('[data-readout=free] tbody tr')].map((row) => [...row.children].map((cell) => cell.textContent))")
    movable = next(row for row in table if row[0] == "Movable")
    assert [int(cell.replace(",", "").replace("·", "0")) for cell in movable[1:-1]] == demo.data["free"]["blocks"][-1][1][1]
    assert opened.problems == []


def test_downloads(opened: browser.Page, demo: Made) -> None:
    made = opened.run("Object.fromEntries(Object.entries(report.downloads).map(([name, make]) => [name, make()]))")
    assert json.loads(made["json"][2]) == json.loads(json.dumps(demo.data))
    files = {name: pl.read_csv(text.encode(), infer_schema_length=None) for name, (_, _, text) in made.items() if name != "json" and text.strip()}
    assert set(files) >= {"memory", "frames", "free", "caches", "objects", "pages"}
    assert files["memory"]["slab_pages"].to_list() == [pages[4] for pages in demo.data["memory"]["pages"]]
    assert len(files["caches"]) == len(demo.data["caches"]) * len(demo.data["steps"]["events"])
    assert files["frames"].filter(pl.col("class") != "no_ram")["frames"].sum() == sum(demo.data["memory"]["pages"][-1])
    assert files["objects"]["hits"].to_list() == [row["hits"] for row in demo.data["objects"]["rows"]]
    opened.call("Browser.setDownloadBehavior", behavior="deny")
    opened.run("document.querySelector('[data-download=caches]').click()")
    assert opened.problems == []


@pytest.mark.parametrize("width", [400, 800])
def test_narrow(page: browser.Page, refusing: Made, tmp_path: Path, width: int) -> None:
    show(page, refusing.data, tmp_path, width)
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.problems == []


def test_a_refused_request_leads_to_its_moment(page: browser.Page, refusing: Made, tmp_path: Path) -> None:
    show(page, refusing.data, tmp_path)
    event = page.run("(() => { const b = document.querySelector('[data-event]'); b.click(); return Number(b.dataset.event); })()")
    events = refusing.data["steps"]["events"]
    step = page.run("report.step")
    assert events[step] <= event < events[step + 1]


def test_names_are_text(page: browser.Page, refusing: Made, tmp_path: Path) -> None:
    nasty = "<img src=x onerror=window.hurt=1>"
    events = refusing.recording.events.with_columns(pl.when(pl.col("name").is_not_null()).then(pl.lit(nasty)).alias("name"))
    recording = replace(refusing.recording, events=events, provenance=replace(refusing.recording.provenance, workload_name=nasty))
    show(page, document(recording, refusing.path, steps=3), tmp_path)
    assert page.run("document.images.length") == 0 and page.run("window.hurt") is None
    assert nasty in page.run("document.querySelector('#failures td:nth-child(2)').textContent")
    assert page.problems == []


def test_without_snapshots(page: browser.Page, tmp_path: Path) -> None:
    path = Path(__file__).parent.parent / "data" / "linux-6.1.ftrace.txt"
    show(page, document(ftrace_text.read(path), path), tmp_path)
    assert page.run("document.querySelector('canvas')") is None
    assert page.run("document.querySelectorAll('[data-icicle=objects] button').length") > 2
    assert page.problems == []
