"""Drives a report.html in headless Chromium as a reader would, and fails on whatever a reader would stumble over.

    pip install playwright                   # the browser itself: Debian's, or any Chromium
    npm pack axe-core && tar xzf axe-core-*.tgz
    python -m benchmarks.report_in_browser report.html --out shots --axe package/axe.min.js

Opened from disk, at 1,280 and 390 px, light and dark: filters, search, pages and links give what the page's own data
say; everything is reached by keyboard; nothing is asked of a network, nothing is written to the console, no text of a
model runs; nothing is wider than the screen; axe-core finds no serious violation. Screenshots and a PDF go to --out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

WIDTHS = (1280, 390)
HEIGHT = 1100
SERIOUS = ("serious", "critical")
PAGE_OF_ITEMS = 20


@contextmanager
def opened(browser: Browser, report: Path, *, width: int, scheme: str) -> Iterator[Page]:
    """The report in a page that fails on any request, console line or uncaught error."""
    context = browser.new_context(viewport={"width": width, "height": HEIGHT}, color_scheme=scheme)
    page = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"uncaught: {error}"))
    page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
    page.goto(report.resolve().as_uri())
    page.wait_for_selector("#filters:not([hidden])")
    yield page
    beyond = [url for url in asked if url != report.resolve().as_uri() and not url.startswith("data:")]
    check(not beyond, f"requests of the page: {beyond}")
    check(not said, f"console: {said}")
    context.close()


def check(good: bool, what: str) -> None:
    """Ends the run on the first thing that is not as it should be."""
    if not good:
        raise SystemExit(f"FAILED: {what}")


def until(good: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    """Waits for it, not for ever. (Playwright's own waiting evaluates strings, which the page's policy forbids.)"""
    end = time.monotonic() + seconds
    while not good():
        check(time.monotonic() < end, what)
        time.sleep(0.01)


def found(page: Page) -> int:
    """How many items the status line says there are."""
    return int(page.inner_text("#count").split(" of ")[0].replace(",", ""))


def expect(page: Page, what: str, wanted: int) -> None:
    """The status line shows that many items, and the list holds its first page."""
    until(lambda: found(page) == wanted, f"{what}: {wanted} items, the page says {page.inner_text('#count')!r}")
    articles = page.locator("#list article").count()
    check(articles == min(wanted, PAGE_OF_ITEMS), f"{what}: {articles} articles for {wanted} items")
    print(f"  {what}: {wanted} items")


def filters(page: Page, data: dict[str, Any]) -> None:
    """Every filter against a count made here from the page's data."""
    models, answers, places = data["models"], data["answers"], range(len(data["ids"]))

    def right(model: int, place: int) -> bool:
        return bool(answers[model]["right"][place] & 1)

    def count(test: Callable[[int], bool]) -> int:
        return sum(test(place) for place in places)

    all_right = {place: [right(model, place) for model in range(len(models))] for place in places}
    page.select_option("#agreement", "disagree")
    expect(page, "models disagree", count(lambda place: len(set(all_right[place])) == 2))
    page.select_option("#agreement", "wrong")
    expect(page, "every model wrong", count(lambda place: not any(all_right[place])))
    page.click("button[type=reset]")
    expect(page, "all items", len(places))
    if len(models) > 1:
        page.select_option("#right", "0")
        page.select_option("#wrong", "1")
        wanted = count(lambda place: right(0, place) and not right(1, place))
        expect(page, f"right for {models[0]}, wrong for {models[1]}", wanted)
        page.click("button[type=reset]")
    for error, name in enumerate(data["errors"][:3]):
        page.select_option("#error", str(error))
        expect(page, f"error {name}", count(lambda place, e=error: any(a["errors"][place] == e for a in answers)))
        page.select_option("#of", "0")
        expect(page, f"error {name} of {models[0]}", count(lambda place, e=error: answers[0]["errors"][place] == e))
        page.click("button[type=reset]")
    if data["leaks"]:
        page.check("#leaks")
        expect(page, "flagged as leaked", len(data["leaks"]))
        page.click("button[type=reset]")
    expect(page, "all items", len(places))


def search(page: Page, data: dict[str, Any]) -> None:
    """Search by id finds that item; nonsense finds none and says so."""
    wanted = data["ids"][-1]
    page.fill("#text", wanted)
    until(lambda: page.inner_text("#list h3 >> nth=0").startswith(wanted), f"search finds {wanted}")
    page.fill("#text", "no such text anywhere in it")
    expect(page, "search for nonsense", 0)
    check("no item passes" in page.inner_text("#count"), "an empty list says so")
    page.fill("#text", "")
    expect(page, "search cleared", len(data["ids"]))


def marks(page: Page) -> None:
    """Differences from gold are marked somewhere in the list, and no element came out of a model's text."""
    check(page.locator("#list del, #list ins").count() > 0, "no difference is marked")
    check(page.locator("#list script, #list img, #list a").count() == 0, "text of a model became an element")
    check("owned" not in page.title(), "text of a model ran")


def keyboard(page: Page, data: dict[str, Any]) -> None:
    """Tab reaches the skip link first and every control; the focus is visible; pages turn by keyboard."""
    page.reload()
    page.wait_for_selector("#filters:not([hidden])")
    page.keyboard.press("Tab")
    check(page.evaluate("document.activeElement.className") == "skip", "the first Tab reaches the skip link")
    page.keyboard.press("Enter")
    seen: set[str] = set()
    for _ in range(400):
        page.keyboard.press("Tab")
        here = page.evaluate("[document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle]")
        check(here[0] == "" or here[1] != "none", f"the focus on #{here[0]} cannot be seen")
        seen.add(here[0])
        if here[0] == "next":
            break
    wanted = {"text", "metric", "agreement", "right", "wrong", "error", "of", "order"}
    check(wanted <= seen, f"Tab does not reach {wanted - seen}")
    if len(data["ids"]) > PAGE_OF_ITEMS:
        check("next" in seen, "Tab does not reach the next page")
        page.keyboard.press("Enter")
        check(f"showing {PAGE_OF_ITEMS + 1} to" in page.inner_text("#count"), "Enter turns the page")
        check(page.evaluate("document.activeElement.id") == "items-title", "the focus moves to the list's head")
    page.focus("#text")
    page.keyboard.type(data["ids"][0])
    page.keyboard.press("Enter")
    check(found(page) >= 1, "Enter in the search field searches at once")
    page.fill("#text", "")


def links(page: Page) -> None:
    """A count in the table of tests leads to exactly so many items."""
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
    link = page.locator("a.show").first
    if link.count():
        wanted = int(link.inner_text().replace(",", ""))
        link.click()
        expect(page, "items behind a test", wanted)
        page.click("button[type=reset]")


def accessibility(page: Page, axe: Path) -> None:
    """axe-core over the whole page, every part of it unfolded."""
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
    page.evaluate(axe.read_text(encoding="utf-8"))
    result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    lines = [f"{v['id']} ({v['impact']}): {v['nodes'][0]['html'][:160]}" for v in result["violations"]]
    bad = [v for v in result["violations"] if v["impact"] in SERIOUS]
    print(f"  axe {result['testEngine']['version']}: {len(lines)} violations, {len(bad)} serious or critical")
    for line in lines:
        print(f"    {line}")
    check(not bad, "axe finds serious violations")


def fits(page: Page, width: int) -> None:
    """Nothing but a scrolling region is wider than the screen."""
    wide = page.evaluate("document.documentElement.scrollWidth")
    check(wide <= width, f"the page is {wide} px wide on a screen of {width} px")


def screenshots(page: Page, folder: Path) -> None:
    """What a reader sees of every part: one screen from its head on (the whole page may be 100,000 px high)."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in page.evaluate("['', ...Array.from(document.querySelectorAll('section'), part => part.id)]"):
        if part:
            page.evaluate("id => document.getElementById(id).scrollIntoView()", part)
        page.screenshot(path=folder / f"{part or 'top'}.png")
    page.evaluate("scrollTo(0, 0)")


def timing(page: Page) -> None:
    """How long opening took and how long one filter takes."""
    loaded = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    started = time.perf_counter()
    page.select_option("#agreement", "disagree")
    found(page)
    filtered = time.perf_counter() - started
    page.click("button[type=reset]")
    started = time.perf_counter()
    page.fill("#text", "zebra")
    until(lambda: found(page) == 0, "search for what is not there")
    searched = time.perf_counter() - started
    page.fill("#text", "")
    until(lambda: found(page) > 0, "search cleared")
    print(f"  ready after {loaded:.0f} ms; a filter {1000 * filtered:.0f} ms, a first search {1000 * searched:.0f} ms")


def drive(report: Path, out: Path, axe: Path | None, chromium: str) -> None:
    """The whole visit."""
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width in WIDTHS:
            for scheme in ("light", "dark"):
                print(f"{report.name}, {width} px, {scheme}")
                with opened(browser, report, width=width, scheme=scheme) as page:
                    visit(page, out, axe, width=width, scheme=scheme)
        browser.close()
    print(f"all good; screenshots in {out}")


def visit(page: Page, out: Path, axe: Path | None, *, width: int, scheme: str) -> None:
    """One size and colour scheme; the reader's steps once, the checks of layout and axe every time."""
    fits(page, width)
    screenshots(page, out / f"{width}-{scheme}")
    if scheme == "light":
        data = json.loads(page.inner_text("#data") or page.text_content("#data") or "{}")
        timing(page)
        filters(page, data)
        search(page, data)
        marks(page)
        keyboard(page, data)
        links(page)
        fits(page, width)
    if scheme == "light" and width == WIDTHS[0]:
        page.pdf(path=out / "print.pdf", format="A4")
    if axe is not None:
        accessibility(page, axe)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--out", type=Path, default=Path("report-screens"))
    parser.add_argument("--axe", type=Path, help="axe.min.js of the npm package axe-core")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    given = parser.parse_args()
    drive(given.report, given.out, given.axe, given.chromium)
