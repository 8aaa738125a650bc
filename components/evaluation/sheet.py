"""The sample sheet: a labelled grid of pictures, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from components.evaluation.extractor import Pictures

_CELL = 136  # side of a picture on the sheet, in pixels
_GAP = 14
_LINES = 3  # of a caption
_LINE = 14
_HEAD = 58
_INK, _MUTED, _PAPER, _CARD = (28, 30, 36), (108, 112, 122), (246, 246, 243), (255, 255, 255)
_RIGHT, _WRONG, _NEUTRAL = (30, 148, 82), (206, 58, 48), (206, 206, 202)


@dataclass(frozen=True)
class Sample:
    """A picture for the sheet; ``correct`` is None where nobody graded it."""

    picture: Pictures  # uint8 [H, W, 3]
    prompt: str
    correct: bool | None


def draw_sheet(samples: Sequence[Sample], title: str, subtitle: str, columns: int = 8) -> Image.Image:
    """The samples as one RGB picture: prompt below, frame and mark green or red by the verdict."""
    columns = max(1, min(columns, len(samples)))
    rows = -(-len(samples) // columns)
    high = _CELL + _LINES * _LINE + 12
    sheet = Image.new("RGB", (columns * (_CELL + _GAP) + _GAP, _HEAD + rows * (high + _GAP) + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 12), title, _INK, ImageFont.load_default(18))
    draw.text((_GAP, 36), subtitle, _MUTED, ImageFont.load_default(12))
    for index, sample in enumerate(samples):
        x = _GAP + index % columns * (_CELL + _GAP)
        y = _HEAD + index // columns * (high + _GAP)
        _card(sheet, draw, sample, x, y, high)
    return sheet


def _card(sheet: Image.Image, draw: ImageDraw.ImageDraw, sample: Sample, x: int, y: int, high: int) -> None:
    frame = _NEUTRAL if sample.correct is None else _RIGHT if sample.correct else _WRONG
    draw.rounded_rectangle((x - 4, y - 4, x + _CELL + 3, y + high), 6, _CARD, (226, 226, 222))
    draw.rectangle((x - 2, y - 2, x + _CELL + 1, y + _CELL + 1), frame)
    sheet.paste(_scaled(sample.picture), (x, y))
    if sample.correct is not None:
        _mark(draw, x + _CELL - 11, y + 11, sample.correct)
    font = ImageFont.load_default(11)
    for line, text in enumerate(_wrapped(sample.prompt, font, _CELL)):
        draw.text((x, y + _CELL + 7 + line * _LINE), text, _INK, font)


def _scaled(picture: Pictures) -> Image.Image:
    """Small pictures by nearest neighbour, so that their pixels stay visible; large ones smoothly."""
    image = Image.fromarray(picture)
    scale = _CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    if image.size == (_CELL, _CELL):
        return image
    square = Image.new("RGB", (_CELL, _CELL), _CARD)
    square.paste(image, ((_CELL - image.width) // 2, (_CELL - image.height) // 2))
    return square


def _mark(draw: ImageDraw.ImageDraw, x: int, y: int, correct: bool) -> None:
    draw.ellipse((x - 8, y - 8, x + 8, y + 8), _RIGHT if correct else _WRONG, _CARD)
    strokes = [[(-4, 0), (-1, 3), (4, -3)]] if correct else [[(-3, -3), (3, 3)], [(-3, 3), (3, -3)]]
    for stroke in strokes:
        draw.line([(x + dx, y + dy) for dx, dy in stroke], _CARD, 2)


def _wrapped(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines, current = [], ""
    for word in text.split():
        longer = f"{current} {word}".strip()
        if font.getlength(longer) <= width or not current:
            current = longer
        else:
            lines.append(current)
            current = word
    lines.append(current)
    if len(lines) > _LINES:
        lines = lines[:_LINES]
        lines[-1] += "…"
    return [_cut(line, font, width) for line in lines]


def _cut(line: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    while len(line) > 1 and font.getlength(line) > width:
        line = line.removesuffix("…")[:-1] + "…"
    return line
