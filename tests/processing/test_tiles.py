"""Tiles of pictures: where each visual token says it is, the picture shows what it is made of."""

import numpy as np
import pytest
from PIL import Image

from sparsevlm_jax.processing.tiles import best_canvas, tiled_picture, tiles_of, untiled, whole_picture

TILE = 60


def gradient(height: int, width: int) -> Image.Image:
    """Red grows downwards, green to the right: a colour says where it is."""
    row, column = np.mgrid[:height, :width]
    values = np.stack([(row + 0.5) / height, (column + 0.5) / width, np.zeros((height, width))], axis=2)
    return Image.fromarray(np.uint8(np.rint(values * 255)))


@pytest.mark.parametrize("most_tiles", [None, 4])
@pytest.mark.parametrize("patch", [10, 14])  # 14: four pixels of a tile are in no patch
@pytest.mark.parametrize("size", [(200, 300), (300, 200), (250, 250), (90, 400), (61, 59)], ids=str)
def test_a_token_lies_where_its_patches_come_from(size, patch, most_tiles):
    canvas = best_canvas(size, [(TILE * rows, TILE * columns) for rows in range(1, 5) for columns in range(1, 5)])
    tiles = np.stack([np.asarray(tile) for tile in tiles_of(gradient(*size), canvas, TILE, Image.Resampling.BICUBIC)])
    side = TILE // patch
    seen = tiles[:, : side * patch, : side * patch].reshape(len(tiles), side, patch, side, patch, 3) / 255
    colours = seen.mean(axis=(2, 4)).reshape(-1, 3)
    cut = tiled_picture(size, canvas, tile=TILE, patch=patch, most_tiles=most_tiles)
    assert cut.is_scaled == (most_tiles is not None and cut.picture.tiles > 1 + 1.21 * most_tiles)
    is_patch = cut.source[:, 0] >= 0
    assert (cut.picture.cell[~is_patch] == -1).all() and not cut.picture.box[~is_patch].any()
    box = cut.picture.box[is_patch]
    found = np.einsum("vs,vsc->vc", cut.weight[is_patch], colours[cut.source[is_patch]])[:, :2]
    middle = (box[:, :2] + box[:, 2:]) / 2
    # At the edge of the picture a patch shows black, too.
    inside = (box > 0.02).all(axis=1) & (box < 0.98).all(axis=1)
    assert inside.sum() > len(box) / 3
    tolerance = 0.02 if not cut.is_scaled else 0.05  # a scaled token is made of four patches about its middle
    np.testing.assert_allclose(found[inside], middle[inside], atol=tolerance)
    cells = cut.picture.cell[is_patch]
    assert len(np.unique(cells, axis=0)) == len(cells)


def test_what_was_cut_is_shown_whole_again():
    size, image = (200, 300), gradient(200, 300)
    canvas = best_canvas(size, [(120, 180)])
    tiles = np.stack([np.asarray(tile) for tile in tiles_of(image, canvas, TILE, Image.Resampling.BICUBIC)])
    whole, joined = untiled(tiles, size, canvas)
    assert whole.shape == (40, 60, 3) and joined.shape == (120, 180, 3)
    for shown in (whole, joined):
        expected = np.asarray(gradient(*shown.shape[:2]), np.float32)
        assert np.abs(shown.astype(np.float32) - expected).max() < 6


def test_the_canvas_that_keeps_most_of_a_picture_and_wastes_least():
    canvases = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]
    wanted = {(480, 640): (672, 672), (100, 400): (336, 672), (2000, 500): (1008, 336), (100, 100): (336, 672)}
    assert {size: best_canvas(size, canvases) for size in wanted} == wanted


def test_a_picture_that_is_not_cut_has_one_separator():
    cut = whole_picture(3)
    assert cut.source[:, 0].tolist() == [*range(9), -1] and cut.picture.tiles == 1
    assert cut.picture.cell[-1].tolist() == [-1] * 4 and not cut.picture.box[-1].any()
