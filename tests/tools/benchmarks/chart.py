"""Draw throughput as bars with Pillow, which is installed anyway for the screenshots."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tests.tools.benchmarks.report import Result

WIDTH, MARGIN, LABELS, VALUES, BAR, GAP = 1100, 24, 300, 110, 22, 10
INK, SOFT, OURS, OTHERS = "#1b1f24", "#57606a", "#0b7a75", "#b6bec8"


def draw(results: Sequence[Result], file: Path) -> None:
    """Draw the cases marked ``chart``, each with its own scale: medians, and a line from minimum to maximum."""
    drawn = [result for result in results if result.case.chart and result.rates]
    height = MARGIN + sum(56 + len(result.rates) * (BAR + GAP) for result in drawn)
    image = Image.new("RGB", (WIDTH, max(height, 2 * MARGIN)), "white")
    pen = ImageDraw.Draw(image)
    top = MARGIN
    for result in drawn:
        pen.text((MARGIN, top), f"{result.case.title}, {result.case.unit}", INK, ImageFont.load_default(18))
        top = _bars(pen, result, top + 34) + 22
    image.save(file, optimize=True)


def _bars(pen: ImageDraw.ImageDraw, result: Result, top: int) -> int:
    font = ImageFont.load_default(14)
    left, room = MARGIN + LABELS, WIDTH - 2 * MARGIN - LABELS - VALUES
    longest = max(max(values) for values in result.rates.values())
    for name, values in result.rates.items():
        median, middle = statistics.median(values), top + BAR // 2
        ends = [left + round(room * value / longest) for value in (min(values), median, max(values))]
        pen.text((left - 12, middle), name, INK, font, anchor="rm")
        pen.rectangle((left, top, max(ends[1], left + 1), top + BAR), OURS if name.startswith("ours") else OTHERS)
        pen.line((ends[0], middle, ends[2], middle), SOFT, 2)
        pen.text((max(ends) + 10, middle), f"{median:,.0f}", INK, font, anchor="lm")
        top += BAR + GAP
    return top
