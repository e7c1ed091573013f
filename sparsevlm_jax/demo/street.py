"""The background of a scene: sky, houses with windows, a road; plain or busy. No question is about any of it."""

from random import Random

from PIL import Image, ImageDraw

from .sprites import Rgb

_WALLS: tuple[Rgb, ...] = (
    (196, 180, 158), (168, 140, 120), (150, 156, 164), (204, 196, 188), (140, 122, 112), (178, 160, 172),
    (132, 144, 134), (214, 200, 170),
)  # fmt: skip
_SKIES: tuple[Rgb, ...] = ((150, 196, 232), (186, 208, 224), (236, 206, 178), (96, 112, 150))
_PANES: tuple[Rgb, ...] = ((92, 116, 138), (70, 80, 96), (222, 204, 130), (150, 176, 192), (58, 62, 74))


def draw(rng: Random, size: int) -> Image.Image:
    """A street of `size` x `size` pixels, RGB."""
    picture = Image.new("RGB", (size, size), _tint(rng, rng.choice(_SKIES)))
    brush = ImageDraw.Draw(picture)
    kerb = int(size * 0.79) + rng.randint(-3, 3)
    left = -rng.randint(0, 20)
    while left < size:
        width = rng.randint(44, 100)
        _house(rng, brush, left, rng.randint(0, 34), left + width, kerb)
        left += width
    _road(rng, brush, kerb, size)
    return picture


def _tint(rng: Random, colour: Rgb, spread: int = 14) -> Rgb:
    shade = rng.randint(-spread, spread)
    red, green, blue = (min(255, max(0, channel + shade + rng.randint(-5, 5))) for channel in colour)
    return red, green, blue


def _house(rng: Random, brush: ImageDraw.ImageDraw, left: int, top: int, right: int, bottom: int) -> None:
    wall = _tint(rng, rng.choice(_WALLS))
    brush.rectangle((left, top, right, bottom), fill=wall)
    style = rng.random()
    if style < 0.35:
        _bricks(rng, brush, (left, top, right, bottom), wall)
    if style < 0.75:
        _windows(rng, brush, left, top, right, bottom)
    brush.line((right, top, right, bottom), fill=_tint(rng, (96, 88, 84)))


def _bricks(rng: Random, brush: ImageDraw.ImageDraw, box: tuple[int, int, int, int], wall: Rgb) -> None:
    left, top, right, bottom = box
    joint = (max(0, wall[0] - 22), max(0, wall[1] - 22), max(0, wall[2] - 22))
    for index, y in enumerate(range(top, bottom, 7)):
        brush.line((left, y, right, y), fill=joint)
        for x in range(left + (index % 2) * 6, right, 13):
            brush.line((x, y, x, y + 7), fill=joint)


def _windows(rng: Random, brush: ImageDraw.ImageDraw, left: int, top: int, right: int, bottom: int) -> None:
    step_x, step_y = rng.randint(17, 28), rng.randint(22, 34)
    frame = _tint(rng, (216, 212, 204))
    for y in range(top + 8, bottom - 18, step_y):
        for x in range(left + 6, right - 12, step_x):
            brush.rectangle((x, y, x + 9, y + 14), fill=rng.choice(_PANES), outline=frame)


def _road(rng: Random, brush: ImageDraw.ImageDraw, kerb: int, size: int) -> None:
    brush.rectangle((0, kerb, size, kerb + 5), fill=_tint(rng, (176, 172, 166)))
    brush.rectangle((0, kerb + 6, size, size), fill=_tint(rng, (84, 84, 88)))
    for x in range(rng.randint(-20, 0), size, 28):
        brush.rectangle((x, size - 8, x + 14, size - 6), fill=(206, 200, 172))
