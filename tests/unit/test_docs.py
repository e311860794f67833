"""Check the pages for people: links and anchors, what is made from the code, and the length of the README."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tools import configuration_page

TOP = Path(__file__).parents[2]
PAGES = sorted([*TOP.glob("*.md"), *TOP.glob("docs/*.md"), TOP / "tests" / "README.md"])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """Return the page without its code blocks."""
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_links_lead_to_what_is_there(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_readme_is_one_page() -> None:
    assert len((TOP / "README.md").read_text().splitlines()) <= 150


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    links = set(LINK.findall(prose(TOP / "README.md")))
    assert {f"docs/{page.name}" for page in TOP.glob("docs/*.md")} <= {link.partition("#")[0] for link in links}


def test_configuration_page_is_made_from_the_schema() -> None:
    """If it fails: python -m tests.tools.configuration_page"""
    page = configuration_page.PAGE.read_text()
    assert configuration_page.render(page) == page


def test_glossary_has_one_entry_for_each_word_in_order() -> None:
    words = re.findall(r"^\| \*\*(.*?)\*\*", (TOP / "docs" / "glossary.md").read_text(), re.MULTILINE)
    assert words == sorted(set(words), key=str.lower)
