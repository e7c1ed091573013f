"""What the scenes are pasted together from: letters, signs and cars, each drawn once with Pillow and kept.

Sprites are drawn at four times their size and scaled down, which gives smooth edges; a scene then only pastes.
Letters use the typeface that Pillow carries inside, so a scene looks the same on every machine.
"""

from functools import cache
from typing import Final

from PIL import Image, ImageDraw, ImageFont

Rgb = tuple[int, int, int]

PATCH: Final = 14
"""Pixels between two letters of a sign, and the side of a patch of the vision tower."""

COLOURS: Final[dict[str, Rgb]] = {
    "red": (204, 38, 42),
    "blue": (36, 78, 186),
    "green": (38, 136, 62),
    "yellow": (240, 204, 48),
    "white": (244, 244, 238),
    "black": (28, 28, 32),
    "orange": (238, 128, 34),
    "purple": (128, 54, 158),
}
CAR_COLOURS: Final = ("red", "blue", "green", "yellow", "white", "black")
SHAPES: Final = ("square", "round", "pointed", "notched")
CAR_SIZE: Final = (40, 20)

_SCALE: Final = 4
_DARK, _LIGHT = (24, 24, 28), (250, 250, 246)
_DARK_LETTERS: Final = ("yellow", "white", "orange")


def letter_colour(sign_colour: str) -> Rgb:
    return _DARK if sign_colour in _DARK_LETTERS else _LIGHT


@cache
def glyph(letter: str) -> Image.Image:
    """A letter's ink as an 8-bit mask of one cell, centred, wide letters narrowed to fit."""
    font = ImageFont.load_default(size=17 * _SCALE)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(letter, stroke_width=2))
    ink = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(ink).text((-left, -top), letter, fill=255, font=font, stroke_width=2)
    width, height = min(12, max(3, round(ink.width / _SCALE))), min(13, round(ink.height / _SCALE))
    cell = Image.new("L", (PATCH, PATCH))
    cell.paste(ink.resize((width, height), Image.Resampling.LANCZOS), ((PATCH - width) // 2, (PATCH - height) // 2))
    return cell


def _outline(shape: str, width: int, height: int, inset: int) -> list[tuple[float, float]]:
    """Corners of a sign, clockwise from the upper left; `inset` is how far its ends point out or in."""
    left, right, middle = 1, width - 2, height / 2
    if shape == "pointed":
        return [
            (inset, 1),
            (right - inset, 1),
            (right, middle),
            (right - inset, height - 2),
            (inset, height - 2),
            (left, middle),
        ]
    return [(left, 1), (right, 1), (right - inset, middle), (right, height - 2), (left, height - 2), (inset, middle)]


@cache
def sign(shape: str, colour: str, width: int, height: int) -> Image.Image:
    """An empty sign board, RGBA, with a thin border in the colour of its letters."""
    size = (width * _SCALE, height * _SCALE)
    board = Image.new("RGBA", size)
    draw = ImageDraw.Draw(board)
    fill, border, line = COLOURS[colour], letter_colour(colour), _SCALE
    box = (1, 1, size[0] - 2, size[1] - 2)
    if shape == "square":
        draw.rectangle(box, fill=fill, outline=border, width=line)
    elif shape == "round":
        draw.rounded_rectangle(box, radius=size[1] // 2, fill=fill, outline=border, width=line)
    else:
        corners = _outline(shape, *size, inset=(6 if shape == "pointed" else 3) * _SCALE)
        draw.polygon(corners, fill=fill, outline=border, width=line)
    return board.resize((width, height), Image.Resampling.LANCZOS)


@cache
def car(colour: str, faces_left: bool) -> Image.Image:
    """A small car seen from the side, RGBA."""
    width, height = (side * _SCALE for side in CAR_SIZE)
    picture = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(picture)
    body = COLOURS[colour]
    draw.rounded_rectangle((1, 0.36 * height, width - 2, 0.84 * height), radius=12, fill=body, outline=_DARK, width=2)
    cabin = [(0.24 * width, 0.38 * height), (0.34 * width, 2), (0.70 * width, 2), (0.84 * width, 0.38 * height)]
    draw.polygon(cabin, fill=body, outline=_DARK, width=2)
    for left, right in ((0.33, 0.50), (0.54, 0.73)):
        draw.rectangle((left * width, 0.1 * height, right * width, 0.34 * height), fill=(176, 208, 224))
    for hub in (0.24, 0.76):
        draw.ellipse((hub * width - 16, height - 33, hub * width + 16, height - 1), fill=_DARK)
        draw.ellipse((hub * width - 6, height - 23, hub * width + 6, height - 11), fill=(170, 170, 174))
    picture = picture.resize(CAR_SIZE, Image.Resampling.LANCZOS)
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if faces_left else picture
