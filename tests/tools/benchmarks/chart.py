"""Draw bars with Pillow, which is installed anyway for the screenshots: a row a subject, a column a kind of figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tests.tools.benchmarks.cases import GENERATOR
from tests.tools.benchmarks.meter import BYTES, CLIENT, DATABASE
from tests.tools.benchmarks.report import Result, number

WIDTH, MARGIN, LABELS, COLUMN, VALUES, BAR, GAP, HEAD = 1200, 24, 216, 312, 76, 20, 8, 60
INK, SOFT = "#1b1f24", "#57606a"
OURS, OTHERS = ("#0b7a75", "#7fc4bf"), ("#8b95a1", "#ccd3da")  # a bar's parts: client, database
COLUMNS = {
    "{unit}": ("",),
    "processor, microseconds an event: client + database": (CLIENT, DATABASE),  # the font has no µ
    "bytes on disk an event": (BYTES,),
}


def draw(results: Sequence[Result], file: Path) -> None:
    """Draw the medians of the cases marked ``chart``. Each column of a case has its own scale."""
    drawn = [result for result in results if result.case.chart and result.measured]
    height = 2 * MARGIN + sum(HEAD + len(_subjects(result)) * (BAR + GAP) + GAP for result in drawn)
    image = Image.new("RGB", (WIDTH, height), "white")
    pen = ImageDraw.Draw(image)
    top = MARGIN
    for result in drawn:
        top = _draw_case(pen, result, top)
    image.save(file, optimize=True)


def _subjects(result: Result) -> list[str]:
    """Return all but the load generator, which shows only what the others could reach."""
    return [subject for subject in result.measured if subject != GENERATOR]


def _draw_case(pen: ImageDraw.ImageDraw, result: Result, top: int) -> int:
    title = result.case.title
    pen.text((MARGIN, top), title[0].upper() + title[1:], INK, ImageFont.load_default(18))
    rows = top + HEAD - GAP
    for row, subject in enumerate(_subjects(result)):
        middle = (MARGIN + LABELS - 12, rows + row * (BAR + GAP) + BAR // 2)
        pen.text(middle, subject, INK, ImageFont.load_default(13), anchor="rm")
    for column, (heading, figures) in enumerate(COLUMNS.items()):
        left = MARGIN + LABELS + column * COLUMN
        if any(result.median(subject, figures[0]) for subject in _subjects(result)):
            pen.text((left, rows - 22), heading.format(unit=result.case.unit), SOFT, ImageFont.load_default(11))
            _draw_bars(pen, result, figures, left, rows)
    return rows + len(_subjects(result)) * (BAR + GAP) + 2 * GAP


def _draw_bars(pen: ImageDraw.ImageDraw, result: Result, figures: Sequence[str], left: int, top: int) -> None:
    medians = {subject: [result.median(subject, name) for name in figures] for subject in _subjects(result)}
    scale = (COLUMN - VALUES - GAP) / max(map(sum, medians.values()))
    for subject, parts in medians.items():
        end = float(left)
        for part, color in zip(parts, OURS if subject.startswith("ours") else OTHERS, strict=False):
            if part:
                pen.rectangle((end, top, max(end + part * scale, end + 1), top + BAR), color)
            end += part * scale
        text = number(sum(parts))
        pen.text((end + 8, top + BAR // 2), text, INK, ImageFont.load_default(13), anchor="lm")
        top += BAR + GAP
