"""Reports in a real browser: no error, no request, no overflow, both colour schemes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import report_examples as examples
from nmlearn.lab import report
from report_browser import Browser, chromium

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="needs Chromium: install Debian's package chromium"),
]

OVERFLOW = """(() => {
  const wide = [...document.querySelectorAll("body *")].filter(
    (e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, pre"));
  return [document.documentElement.scrollWidth - innerWidth, ...wide.map((e) => e.outerHTML.slice(0, 120))];
})()"""
SMALL_TEXT = """Math.min(...[...document.querySelectorAll("svg text")].map((e) => {
  const svg = e.closest("svg[viewBox]");
  const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
  return parseFloat(getComputedStyle(e).fontSize) * scale;
}))"""
GROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("pages")
    evil = "<script>console.error(1)</script><img src=http://127.0.0.1:9/x>"
    long = [examples._row(f"encoder.layers.{i}.attention.{evil}", "Linear", [384, 384], "4:8") for i in range(54)]
    return {
        "run": report.write(examples.write_run(base / "run")),
        "unfinished": report.write(examples.write_run(base / "unfinished", done=0.37)),
        "deep": report.write(examples.write_run(base / "deep", rows=long, pattern="4:8", model="deit-small" * 9)),
        "comparison": report.write(examples.write_comparison(base / "comparison")),
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 375, 768, 1280])
@pytest.mark.parametrize("name", ["run", "unfinished", "deep", "comparison"])
def test_a_page_opens_cleanly(browser: Browser, pages: dict[str, Path], name: str, width: int, scheme: str) -> None:
    seen = len(browser.events)
    browser.open(pages[name], width=width, scheme=scheme)
    assert browser.evaluate(OVERFLOW) == [0]
    assert browser.evaluate(SMALL_TEXT) >= (8.5 if width < 375 else 10)
    dark = sum(map(int, browser.evaluate(GROUND)[4:-1].split(","))) < 3 * 128
    assert dark == (scheme == "dark")
    told = [
        event for event in browser.events[seen:] if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")
    ]
    told += [event for event in browser.events[seen:] if event["method"] == "Runtime.consoleAPICalled"]
    assert told == []
    sent = [event for event in browser.events[seen:] if event["method"] == "Network.requestWillBeSent"]
    assert [event["params"]["request"]["url"] for event in sent] == [pages[name].resolve().as_uri()]


@pytest.mark.parametrize(
    ("name", "mark", "told"),
    [
        ("comparison", ".seed", "seed"),
        ("run", ".fluid .row rect", "layer1.0.conv1\nepoch"),
        ("run", ".readings rect", "epoch"),
    ],
)
def test_marks_tell_their_value_on_hover_and_touch(
    browser: Browser, pages: dict[str, Path], name: str, mark: str, told: str
) -> None:
    browser.open(pages[name], width=375)
    place = browser.evaluate(
        f"const mark = '{mark}';"
        """(() => { const seed = document.querySelector(mark);
        seed.scrollIntoView({block: "center", behavior: "instant"});
        const box = seed.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"""
    )
    tip = ""
    for i in range(40):  # the scroll event comes later, and hides the tip
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0] + i % 2, y=place[1])
        tip = browser.evaluate(
            "document.querySelector('.tip').hidden ? '' : document.querySelector('.tip').textContent"
        )
        if tip:
            break
        time.sleep(0.05)
    assert told in tip
    assert browser.evaluate("document.querySelector('.tip').getBoundingClientRect().right <= innerWidth")


def test_paper_is_light_and_shows_everything(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["comparison"], width=800, scheme="dark", media="print")
    assert browser.evaluate(GROUND) == "rgb(255, 255, 255)"
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate("[...document.querySelectorAll('details')].every((e) => e.open)")
    assert len(browser.call("Page.printToPDF")["data"]) > 10_000
