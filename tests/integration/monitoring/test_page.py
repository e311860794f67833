"""The status page in a real browser."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from ingestor.core.entries import canonical_json
from ingestor.errors import DatabaseUnavailable
from ingestor.monitoring.coverage_strips import StateSpan
from ingestor.monitoring.status import DatabaseStatus, Heartbeat, RecentError, StandbyStatus, SubscriptionStatus
from tests.support.faulty_simulator import FaultySimulator

from ...support.browser import Browser, chromium
from ...support.daemon import InProcessDaemon, until, write_config
from ...support.node_server import install_package
from ...unit.monitoring.healthy_status import HOST1, HOST2
from .status_server import GOOD, StatusContent, row

pytestmark = pytest.mark.chromium

CROWD, VOLUME = "/real-time/crowd-sentiment", "/real-time/tweet-volume"
MARKUP = "<img src=x onerror=pwned=1>"
# Hostile ticker → the text that must be shown.
HOSTILE = {
    MARKUP: MARKUP,
    "A\nB": "A\\u{a}B",
    "\x1b[31mred": "\\u{1b}[31mred",
    "\u202edrow": "\\u{202e}drow",
    "${7*7}": "${7*7}",
    "W" * 64: "W" * 64,
}
TICKERS = "[...document.querySelectorAll('#rows .row:not([hidden]) .ticker')].map(cell => cell.textContent)"
ROWS = "document.querySelectorAll('#rows .row:not([hidden])').length"


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
async def browser(window: Browser) -> Browser:
    """The browser with a desktop-sized window."""
    await window.size(1280, 900)
    return window


@asynccontextmanager
async def page(browser: Browser, url: str | None) -> AsyncIterator[None]:
    """Open a page. Fails if the browser logged a warning or an error in the end."""
    await browser.console()
    await browser.open(str(url))
    try:
        yield
        assert await browser.console() == []
    finally:
        await browser.open("about:blank")  # before the server ends


@pytest.fixture
def content() -> StatusContent:
    return StatusContent()


def text(selector: str) -> str:
    """Return an expression for the visible text of an element."""
    return f"document.querySelector('{selector}').innerText.replace(/\\s+/g, ' ')"


def subscription(ticker: str, state: str = "live", **changes: Any) -> SubscriptionStatus:
    params = canonical_json({"ticker": ticker} if ticker else {})
    status = SubscriptionStatus(path=CROWD, params=params, feed="crowd-sentiment", state=state)  # type: ignore[arg-type]
    return replace(status, **changes)


# With a real daemon.

# Makes the page poll at once.
POLL_NOW = "document.dispatchEvent(new Event('visibilitychange'))"


async def test_page_follows_a_daemon_through_an_outage(
    browser: Browser, make_simulator: Callable[..., Any], tmp_path: Path
) -> None:
    simulator: FaultySimulator = await make_simulator(restate_every=2)
    subscriptions = {CROWD: ["AAPL", "TSLA", "ON"], VOLUME: ["AAPL"]}
    config = write_config(
        tmp_path, url=simulator.url, database_url=f"sqlite:///{tmp_path}/x.db", subscriptions=subscriptions
    )
    async with InProcessDaemon(config, simulator.api_key) as daemon, page(browser, daemon.url):
        await browser.until(f"{text('#verdict')} === 'Receiving'")
        await browser.until(f"{ROWS} === 4")
        cells = "[...document.querySelector('#rows .row').children].map(cell => cell.textContent)"
        await browser.until(f"{cells}[7] > 3")  # restated
        state, ticker, feed, value, _, age, rows, _ = await browser.run(f"return {cells}")
        assert (state, ticker, feed) == ("live", "AAPL", "crowd-sentiment")
        assert -1 <= float(value) <= 1
        assert re.fullmatch(r"\d s", age)
        await browser.until(f"{cells}[3] !== '{value}' && +{cells}[6].replace(',', '') > {rows.replace(',', '')}")
        assert len(await browser.run("return document.querySelector('.row .trace').getAttribute('points')")) > 100
        await browser.until("document.querySelectorAll('#charts .line').length === 3")
        await browser.until("document.querySelectorAll('.strip .live, .strip .missed').length >= 2")
        cards = await browser.run(f"return {text('#cards')}")
        assert re.search("Connections 2 of 2 up .* 4 of 4 live .* new .* restated .* up SQLite .* left", cards)

        await simulator.stop()
        await until(lambda: set(daemon.states) == {"disconnected"})
        await browser.run(POLL_NOW)  # before the daemon waits longer between its attempts
        await browser.until(f"{text('#verdict')}.startsWith('Not ready 2 connections are not connected: ')")
        await browser.until(f"{cells}[0] === 'disconnected'")
        assert await browser.run("return document.querySelector('.row use').getAttribute('href')") == "#shape-triangle"
        await browser.until(f"{text('#errors')}.includes('disconnected')")
        assert await browser.run(f"return {text('#states')}") == "all 4 disconnected 4"
        await simulator.start()
        await browser.until(f"{text('#verdict')} === 'Receiving'")


async def test_hostile_names_are_shown_as_text(
    browser: Browser, make_simulator: Callable[..., Any], tmp_path: Path
) -> None:
    simulator: FaultySimulator = await make_simulator(tickers=tuple(HOSTILE))
    subscriptions: dict[str, list[str]] = {"crowd-sentiment": []}
    config = write_config(
        tmp_path, url=simulator.url, database_url=f"sqlite:///{tmp_path}/x.db", subscriptions=subscriptions
    )
    async with InProcessDaemon(config, simulator.api_key) as daemon, page(browser, daemon.url):
        await browser.until(f"{ROWS} === {len(HOSTILE) + 1}")
        assert set(await browser.run(f"return {TICKERS}")) == {"all tickers", *HOSTILE.values()}
        await simulator.send_event("err", {"message": MARKUP})
        await browser.until(f"{text('#errors')}.includes('{MARKUP}')")
        await browser.run(f"document.querySelectorAll('#rows .ticker')[{TICKERS}.indexOf('{MARKUP}')].click()")
        assert await browser.run(f"return {text('#detail-title')}") == MARKUP
        assert await browser.run("return [document.querySelectorAll('img, b').length, typeof pwned]") == [
            0,
            "undefined",
        ]


async def test_injected_markup_cannot_run(browser: Browser, content: StatusContent) -> None:
    async with content.server() as server, page(browser, server.url):
        violations = await browser.run(ATTACK, MARKUP)
        assert violations.count("TypeError") == 3
        assert {"img-src", "connect-src", "undefined"} <= set(violations)
        assert len(await browser.console()) >= 3


ATTACK = """
const violations = [];
document.addEventListener("securitypolicyviolation", (event) => violations.push(event.effectiveDirective));
for (const name of ["innerHTML", "outerHTML"]) {
  try { document.getElementById("keys")[name] = arguments[0]; } catch (error) { violations.push(error.name); }
}
document.body.append(Object.assign(document.createElement("img"), { src: "http://127.0.0.1:9/x" }));
await fetch("http://127.0.0.1:9/").catch((error) => violations.push(error.name));
for (let tries = 0; tries < 100 && !violations.includes("img-src"); tries++)
  await new Promise((resolve) => setTimeout(resolve, 20));
return violations.concat(typeof pwned);
"""


# With a server whose content the test sets.


async def test_five_thousand_subscriptions_render_visible_rows_only(browser: Browser, content: StatusContent) -> None:
    names = [f"T{number:04}" for number in range(5000)]
    states = {7: "refused", 4000: "silent"}
    crowd = tuple(subscription(name, states.get(number, "live")) for number, name in enumerate(names))
    content.status = replace(GOOD, subscriptions=crowd)
    content.values.add_rows([row(name, value=number / 5000) for number, name in enumerate(names)])
    async with content.server() as server, page(browser, server.url):
        await browser.until(f"{text('#count')} === '5,000' && {ROWS} > 10")
        assert (await browser.run(f"return {TICKERS}"))[:4] == ["T0007", "T4000", "T0000", "T0001"]
        assert await browser.run(f"return {text('#states')}") == "all 5,000 live 4,998 silent 1 refused 1"
        await browser.run("const rows = document.getElementById('rows'); rows.scrollTop = rows.scrollHeight")
        last = "[...document.querySelectorAll('.row')].find((row) => row.innerText.includes('T4999'))"
        await browser.until(f"{last}?.querySelector('.value').textContent === '0.9998'")
        assert await browser.run("return document.querySelectorAll('.row').length") < 60

        await search(browser, "t49 crowd")
        await browser.until(f"{text('#count')} === '100 of 5,000'")
        await search(browser, "refused")
        await browser.until(f"{TICKERS}.join() === 'T0007'")
        await search(browser, "")
        await browser.run("document.querySelector('[data-state=silent]').click()")
        await browser.until(f"{TICKERS}.join() === 'T4000'")
        await browser.run("document.querySelector('[data-state=\"\"]').click()")
        await sort_by(browser, "value")
        await browser.until(f"{TICKERS}.includes('T4999') && !{TICKERS}.includes('T0000')")


async def search(browser: Browser, words: str) -> None:
    await set_field(browser, "search", words, "input")


async def sort_by(browser: Browser, order: str) -> None:
    await set_field(browser, "sort", order, "change")


async def set_field(browser: Browser, field: str, value: str, event: str) -> None:
    script = "document.getElementById(arguments[0]).value = arguments[1];"
    script += "document.getElementById(arguments[0]).dispatchEvent(new Event(arguments[2]))"
    await browser.run(script, field, value, event)


async def test_page_can_be_used_by_keyboard(browser: Browser, content: StatusContent) -> None:
    crowd = tuple(subscription(f"T{number:02}", reason="Restricted") for number in range(40))
    content.status = replace(GOOD, subscriptions=crowd)
    focus = "return document.activeElement.id || document.activeElement.className"
    async with content.server() as server, page(browser, server.url):
        await browser.until(f"{ROWS} > 10")
        await browser.press("Tab")
        assert await browser.run(focus) == "skip"
        await browser.press("Enter")  # moves the focus to the search
        assert await browser.run(focus) == "search"
        await browser.press("Tab", "Tab", "Tab", "Tab")  # past sort order and states
        assert await browser.run(focus) == "rows"
        await browser.press("/", "T", "3", "ArrowDown")
        assert await browser.run(focus) == "rows"
        assert (await browser.run(f"return {TICKERS}"))[0] == "T30"
        await browser.press("ArrowDown", "End", "Enter")
        await browser.until("document.getElementById('detail').open")
        assert await browser.run(f"return {text('#detail-title')}") == "T39"
        assert "reason Restricted path /real-time/crowd-sentiment" in await browser.run(
            f"return {text('#detail-list')}"
        )
        await browser.press("Escape")
        await browser.until("!document.getElementById('detail').open")
        assert await browser.run(focus) == "rows"
        active = "document.getElementById(document.getElementById('rows').getAttribute('aria-activedescendant'))"
        assert "T39" in await browser.run(f"return {active}.innerText")


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
async def test_no_window_width_scrolls_horizontally(browser: Browser, content: StatusContent, width: int) -> None:
    long_text = "x" * 200
    content.status = replace(
        GOOD,
        instance=long_text,
        subscriptions=(subscription("W" * 64, "refused", feed="y" * 64, reason=long_text), subscription("ON")),
        connections=tuple(
            replace(connection, path=long_text, connected=False, last_error=long_text)
            for connection in GOOD.connections
        ),
        database=replace(GOOD.database, up=False, last_error=long_text),
        last_errors=(RecentError(at=GOOD.at, kind="refused", text=long_text),),
    )
    now = datetime.now(UTC)
    content.spans = [
        StateSpan(
            feed="z" * 64,
            state="live",
            from_at=now - timedelta(days=2),
            to_at=now - timedelta(hours=9),
            subscriptions=1,
        )
    ]
    await browser.size(width, 800, phone=width < 700)
    async with content.server() as server, page(browser, server.url):
        await browser.until(f"{ROWS} === 2 && document.querySelector('.strip')")
        assert await browser.run("return document.documentElement.scrollWidth") <= width
        await browser.run("document.querySelector('.row').click()")
        await browser.until("document.getElementById('detail').open")
        assert await browser.run("return document.documentElement.scrollWidth") <= width
        heights = (
            "[...document.querySelectorAll('button, input, select, .row')].map((field) => field.offsetHeight || 99)"
        )
        assert await browser.run(f"return Math.min(...{heights})") >= (40 if width < 700 else 32)


async def test_coverage_strip_has_shapes_and_names_its_gaps(browser: Browser, content: StatusContent) -> None:
    edge = datetime.fromtimestamp(datetime.now(UTC).timestamp() // 3600 * 3600, UTC)
    spans = [("live", 24, 5), ("disconnected", 5, 4), ("live", 4, 3), ("silent", 3, 2.5), ("live", 2.5, 0)]
    content.spans = [
        StateSpan(
            feed="tweet-buzz",
            state=state,
            from_at=edge - timedelta(hours=start),
            to_at=edge - timedelta(hours=end),
            subscriptions=3,
        )
        for state, start, end in spans
    ]
    async with content.server() as server, page(browser, server.url):
        await browser.until("document.querySelector('.strip')")
        hours = [f"{edge - timedelta(hours=hour):%H:%M}" for hour in (5, 4, 3, 2.5)]
        gaps = f"{hours[0]}–{hours[1]} disconnected · {hours[2]}–{hours[3]} silent"
        assert gaps in await browser.run(f"return {text('.day')}")
        fills = "return [...document.querySelectorAll('.strip .missed')].map(rect => getComputedStyle(rect).fill)"
        assert [fill for fill in await browser.run(fills) if "height" not in fill] == [
            'url("#missed-bad")',
            'url("#missed-warn")',
        ]


VERDICTS = {
    "Receiving": GOOD,
    "Receiving, instance silent instance host2 is silent": replace(GOOD, instances=(HOST1, HOST2)),
    "Receiving, config rejected the changed config was rejected, the previous one is in use": replace(
        GOOD, config_reload_successful=False
    ),
    "Partly receiving 1 of 2 subscriptions is not live": replace(
        GOOD, subscriptions=(subscription("AAPL"), subscription("ON", "silent"))
    ),
    "Not ready the database is unavailable: database is locked": replace(
        GOOD, database=DatabaseStatus(kind="sqlite", last_error="database is locked")
    ),
    "Starting tweet-buzz: not connected": replace(GOOD, connections=(replace(GOOD.connections[0], connected=False),)),
    "Not ready tweet-buzz: not connected: the API key was refused": replace(
        GOOD,
        connections=(
            replace(
                GOOD.connections[0],
                connected=False,
                last_error="the API key was refused (2 failed attempts, the next one in 9 s)",
            ),
        ),
    ),
    "Standing by instance 3 (host2) receives": replace(
        GOOD,
        connections=(replace(GOOD.connections[0], connected=False),),
        subscriptions=(subscription("AAPL", "standby"),),
        standby=StandbyStatus(role="standby", reason="instance 3 (host2) receives"),
    ),
    "Stuck spool has not advanced for 99 s (limit 30 s)": replace(
        GOOD, pulses=(Heartbeat(name="spool", age_seconds=99, limit_seconds=30),)
    ),
}


@pytest.mark.node
async def test_no_state_violates_accessibility_rules(browser: Browser, content: StatusContent) -> None:
    axe = (install_package("axe-core", "4.10.2") / "node_modules/axe-core/axe.min.js").read_text()
    content.spans = [a_live_day()]
    async with content.server() as server, page(browser, server.url):
        await browser.run(axe)
        for width in (1280, 390):
            await browser.size(width, 900, phone=width < 700)
            for verdict, content.status in VERDICTS.items():
                await browser.run(POLL_NOW)
                await browser.until(f"{text('#verdict')} === '{verdict}' && document.querySelector('.strip')")
                assert await browser.run(AXE) == [], (verdict, width)


AXE = """
const { violations } = await axe.run();
return violations.map(({ id, nodes }) => [id, ...nodes.map((node) => `${node.target}: ${node.failureSummary}`)]);
"""


async def test_page_keeps_the_strip_and_names_the_trouble_of_a_database_outage(
    browser: Browser, content: StatusContent
) -> None:
    content.spans = [a_live_day()]
    async with content.server() as server, page(browser, server.url):
        await browser.until("document.querySelector('.strip .live')")
        assert "none since the daemon started" in await browser.run(f"return {text('#errors')}")
        content.failure = DatabaseUnavailable("FATAL: role does not exist")
        content.status = replace(
            GOOD,
            database=DatabaseStatus(kind="postgresql", last_error="it cannot be reached", lag_seconds=7),
            spool=replace(GOOD.spool, entries=4),
        )
        await browser.until(f"{text('#errors')} === 'now database unavailable it cannot be reached'")
        charts = await browser.run(f"return {text('#charts')}")
        assert "Spool 4 entries waiting" in charts
        assert "Commit lag 7.0 s" in charts
        await browser.until("!document.getElementById('coverage-stale').hidden")
        stale = await browser.run(f"return {text('#coverage-stale')}")
        assert re.fullmatch(r"The database cannot be read: this is the state of \d\d:\d\d:\d\d UTC\.", stale)
        assert await browser.run("return document.querySelectorAll('.strip .live').length") > 0
        await browser.size(390, 900, phone=True)
        assert await browser.run(f"return {CLIPPED}") == []


# What is wider than the box that hides the rest of it.
CLIPPED = """[...document.querySelectorAll('header *, main *')]
  .filter((node) => node.scrollWidth > node.clientWidth + 1 && getComputedStyle(node).overflowX === 'hidden')
  .filter((node) => !node.matches('.unseen')).map((node) => `${node.className}: ${node.textContent}`)"""


def a_live_day() -> StateSpan:
    now = datetime.now(UTC)
    return StateSpan(feed="tweet-buzz", state="live", from_at=now - timedelta(days=2), to_at=now, subscriptions=1)


async def test_verdict_names_the_state_and_its_reasons(browser: Browser, content: StatusContent) -> None:
    async with content.server() as server, page(browser, server.url):
        for verdict, content.status in VERDICTS.items():
            await browser.run(POLL_NOW)
            await browser.until(f"{text('#verdict')} === '{verdict}'")
            if content.status.instances:
                cards = await browser.run(f"return {text('#cards')}")
                assert "Instances 1 of 2 alive host1 (1, this daemon): 3 s behind" in cards
                assert "host2 (2): silent for 1 min, repair" in cards


async def test_page_marks_its_data_as_old_if_the_daemon_is_gone(browser: Browser, content: StatusContent) -> None:
    async with content.server() as server:
        await browser.console()
        await browser.open(str(server.url))
        await browser.until(f"{text('#verdict')} === 'Receiving'")
        assert await browser.console() == []
        port = urlsplit(str(server.url)).port or 0
    await browser.until("!document.getElementById('outage').hidden")
    assert await browser.run(f"return {text('#outage')}") == (
        "The daemon does not respond. The data shown here is from 2026-11-01 12:00:00 UTC."
        " Trying again every 2 seconds."
    )
    assert await browser.run(f"return {text('#verdict')}") == "No response"
    assert await browser.run("return getComputedStyle(document.querySelector('main')).opacity") == "0.5"
    assert (await browser.run("return document.title")).startswith("✕")
    content.status = replace(content.status, started_at=GOOD.at + timedelta(minutes=1))
    async with content.server(port=port):
        await browser.until("document.getElementById('outage').hidden")
        assert await browser.run(f"return {text('#verdict')}") == "Receiving"
        await browser.open("about:blank")
    messages = await browser.console()
    assert messages
    assert all("ERR_CONNECTION_REFUSED" in text or "ERR_CONNECTION_RESET" in text for text in messages)
