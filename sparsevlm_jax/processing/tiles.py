"""Pictures of any size as tiles ("anyres" of LLaVA-NeXT and LLaVA-OneVision): steps that such families compose.

A picture is scaled to fit the best of some canvases, with black around it, and the canvas is cut into tiles as large as
what the tower sees at once; the whole picture, squeezed into one such square, goes before them. Patches of the joined
tiles that show nothing but black are left out again ("unpadding"), and each row of the others ends in a separator.
LLaVA-OneVision scales the rows and columns down where they are very many.

Reference: `image_processing_utils` and the models `llava_next` and `llava_onevision` of transformers 5, to which the
tests hold pixels, counts and order.

Sizes are (height, width), in pixels unless something else is said.

V visual tokens of one picture · S patches of the tower that a token is made of
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image

from .layout import Picture, square_picture

Size = tuple[int, int]


class Cut(NamedTuple):
    """How the patches of a picture's tiles, numbered tile after tile, become its visual tokens.

    `source`: of each token the patches that it is made of; -1 in a separator. `weight`: and their shares; 1 where there
    is one patch.
    """

    picture: Picture
    source: Int32[np.ndarray, "V S"]
    weight: Float32[np.ndarray, "V S"]

    @property
    def is_scaled(self) -> bool:
        """Whether tokens are made of several patches each."""
        return self.source.shape[1] > 1


def read_pinpoints(value: Any) -> tuple[Size, ...] | None:
    """The canvases of a config, pairs of (height, width); None if that is not what it holds."""
    if not isinstance(value, list | tuple) or not value:
        return None
    pairs: list[Size] = []
    for pair in value:
        if not (isinstance(pair, list | tuple) and len(pair) == 2):
            return None
        if not all(type(edge) is int and 0 < edge < 1 << 16 for edge in pair):
            return None
        pairs.append((pair[0], pair[1]))
    return tuple(pairs)


def original_pinpoints(value: Any) -> Any:
    """The canvases of an original LLaVA's config, which says (width, height), the other way around."""
    is_list = isinstance(value, list) and all(isinstance(pair, list) for pair in value)
    return [pair[::-1] for pair in value] if is_list else value


def best_canvas(size: Size, canvases: Sequence[Size]) -> Size:
    """The canvas that keeps most of a picture's pixels, and of several such the one with the least room to spare; of
    equals the first."""
    height, width = size

    def kept_and_spare(canvas: Size) -> tuple[int, int]:
        scale = min(canvas[1] / width, canvas[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - canvas[0] * canvas[1]

    return max(canvases, key=kept_and_spare)


def fitted(size: Size, canvas: Size) -> Size:
    """The size that a picture has on a canvas: as large as it can be."""
    height, width = size
    down, across = canvas[0] / height, canvas[1] / width
    if across < down:
        return min(math.ceil(height * across), canvas[0]), canvas[1]
    return canvas[0], min(math.ceil(width * down), canvas[1])


def corner(size: Size, canvas: Size) -> tuple[int, int]:
    """(top, left) of a picture of that size in the middle of a canvas."""
    return (canvas[0] - size[0]) // 2, (canvas[1] - size[1]) // 2


def tiles_of(image: Image.Image, canvas: Size, tile: int, resample: Image.Resampling) -> list[Image.Image]:
    """The whole picture squeezed into a square of `tile` pixels, then the tiles of the canvas, row by row."""
    size = fitted((image.height, image.width), canvas)
    top, left = corner(size, canvas)
    whole = Image.new("RGB", (canvas[1], canvas[0]))
    whole.paste(image.resize((size[1], size[0]), resample=resample), (left, top))
    corners = [(x, y) for y in range(0, canvas[0], tile) for x in range(0, canvas[1], tile)]
    squeezed = image.resize((tile, tile), resample=resample)
    return [squeezed, *(whole.crop((x, y, x + tile, y + tile)) for x, y in corners)]


def untiled(tiles: UInt8[np.ndarray, "N H W 3"], size: Size, canvas: Size) -> list[UInt8[np.ndarray, "height width 3"]]:
    """What `tiles_of` made of a picture of that size, to show to people: the squeezed one in the picture's own shape
    again, and the tiles joined, without what is around the picture."""
    edge = tiles.shape[1]
    height, width = fitted(size, canvas)
    top, left = corner((height, width), canvas)
    grid = tiles[1:].reshape(canvas[0] // edge, canvas[1] // edge, edge, edge, 3)
    joined = grid.transpose(0, 2, 1, 3, 4).reshape(*canvas, 3)[top : top + height, left : left + width]
    shape = [max(1, round(side * edge / max(height, width))) for side in (width, height)]
    whole = np.asarray(Image.fromarray(tiles[0]).resize((shape[0], shape[1])))
    return [whole, joined]


def whole_picture(side: int, *, extent: float = 1.0) -> Cut:
    """A picture that the tower sees at once, `side` x `side` patches, and one separator after it."""
    base = square_picture(side, extent=extent)
    source = np.append(np.arange(side * side), -1).astype(np.int32)
    return Cut(_with_separator(base), source[:, None], np.ones((len(source), 1), np.float32))


def tiled_picture(size: Size, canvas: Size, *, tile: int, patch: int, most_tiles: int | None = None) -> Cut:
    """A picture of that size, cut.

    Args:
        tile: what the tower sees at once, `tile` x `tile` pixels, in patches of `patch` x `patch`.
        most_tiles: more patches than so many tiles have are scaled down to about as many, bilinearly.
    """
    side = tile // patch
    rows, columns = canvas[0] // tile * side, canvas[1] // tile * side
    above, before = _unpadding(size, (rows, columns))
    height, width = rows - 2 * above, columns - 2 * before
    # Numbers in the order of the tower, tile after tile, where the patches stand on the canvas.
    number = np.arange(rows * columns).reshape(rows // side, columns // side, side, side)
    number = number.transpose(0, 2, 1, 3).reshape(rows, columns)
    number = side * side + number[above : rows - above, before : columns - before]
    source, weight = number.reshape(-1, 1), np.ones((number.size, 1), np.float32)
    shown = (height, width)
    if most_tiles is not None and (ratio := math.sqrt(height * width / (most_tiles * side**2))) > _WORTH_SCALING:
        shown = (int(height // ratio), int(width // ratio))
        source, weight = _bilinear(number, shown)

    on_canvas = fitted(size, canvas)
    top, left = corner(on_canvas, canvas)
    vertical = (_edges(shown[0], above, height, side, tile, patch) - top) / on_canvas[0]
    horizontal = (_edges(shown[1], before, width, side, tile, patch) - left) / on_canvas[1]
    row, column = np.divmod(np.arange(shown[0] * (shown[1] + 1)), shown[1] + 1)
    is_patch = column < shown[1]
    row, column = row[is_patch], column[is_patch]
    cell, box = np.full((len(is_patch), 4), -1), np.zeros((len(is_patch), 4))
    cell[is_patch] = np.stack([np.ones_like(row), np.zeros_like(row), row, column], axis=1)
    edges = [vertical[0, row], horizontal[0, column], vertical[1, row], horizontal[1, column]]
    box[is_patch] = np.clip(np.stack(edges, axis=1), 0, 1)
    base = square_picture(side, extent=side * patch / tile)
    joined = Picture(
        np.concatenate([base.cell, cell]).astype(np.int32),
        np.concatenate([base.box, box]).astype(np.float32),
        tiles=1 + canvas[0] // tile * (canvas[1] // tile),
        size=size,
    )
    return Cut(joined, *_packed(side, is_patch, source, weight))


_WORTH_SCALING = 1.1  # of the edges


def _unpadding(size: Size, patches: Size) -> tuple[int, int]:
    """Rows of patches to leave out above and below a picture, and columns on either side of it; the rounding is that of
    the reference."""
    (height, width), (rows, columns) = size, patches
    if width / height > columns / rows:
        return (rows - int(round(height * (columns / width), 7))) // 2, 0
    return 0, (columns - int(round(width * (rows / height), 7))) // 2


def _edges(cells: int, first: int, count: int, side: int, tile: int, patch: int) -> np.ndarray:
    """Pixels of the canvas at which each of `cells` equal parts of `count` patches, the first of them the `first`,
    begins and ends, [2, cells]. Tiles may have pixels over that no patch sees."""
    border = first + np.arange(cells + 1) * count / max(cells, 1)
    start, end = border[:-1], border[1:]
    of_start, of_end = start // side, np.ceil(end / side) - 1
    return np.stack(
        [of_start * tile + (start - of_start * side) * patch, of_end * tile + (end - of_end * side) * patch]
    )


def _bilinear(number: np.ndarray, shown: Size) -> tuple[np.ndarray, np.ndarray]:
    """Of each of `shown` tokens the four patches around it and their weights, as PyTorch's `interpolate` has them
    (corners not aligned), [tokens, 4] each."""
    (row0, row1, down), (column0, column1, across) = map(_neighbours, number.shape, shown)
    source = [number[rows][:, columns] for rows in (row0, row1) for columns in (column0, column1)]
    weight = [np.outer(a, b) for a in (1 - down, down) for b in (1 - across, across)]
    return np.stack(source, -1).reshape(-1, 4), np.stack(weight, -1).reshape(-1, 4)


def _neighbours(have: int, want: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scale = np.float32(have) / np.float32(want)
    at = np.maximum((np.arange(want, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), np.float32(0))
    low = at.astype(np.int32)
    return low, np.minimum(low + 1, have - 1), at - low


def _packed(side: int, is_patch: np.ndarray, source: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sources and weights of the whole picture, one patch each, then those of the tiles and separators."""
    count = side * side + len(is_patch)
    sources = np.zeros((count, source.shape[1]), np.int32)
    weights = np.zeros(sources.shape, np.float32)
    weights[:, 0] = 1
    whole, of_tiles = np.split(sources, [side * side])
    whole[:, 0] = np.arange(side * side)
    of_tiles[~is_patch], of_tiles[is_patch] = -1, source
    weights[side * side :][is_patch] = weight
    return sources, weights


def _with_separator(picture: Picture) -> Picture:
    nothing = Picture(np.full((1, 4), -1, np.int32), np.zeros((1, 4), np.float32))
    return Picture(*(np.concatenate(both) for both in zip(picture[:2], nothing[:2], strict=True)), tiles=picture.tiles)
