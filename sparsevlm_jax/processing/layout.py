"""Where the visual tokens of pictures are, and where they stand in a prompt: plain numbers, made on the host.

Shapes of programs depend on how many tokens there are, never on where they are: a picture of another form runs the same
program with other numbers.

V visual tokens · L tokens of a prompt · A position axes
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32

from ..sparsify import question_mask


class Picture(NamedTuple):
    """The visual tokens of one picture, in order: `cell` is (grid, time, row, column), -1 in all four of a token that
    has no place, such as a separator or a class token; `box` the part of the picture that it sees, (top, left, bottom,
    right) from 0 to 1, all 0 where there is none. The tower sees the picture in so many `tiles`, each of which costs a
    run; `size` is the picture's own, (height, width) in pixels, where the family asks for it again."""

    cell: Int32[np.ndarray, "V 4"]
    box: Float32[np.ndarray, "V 4"]
    tiles: int = 1
    size: tuple[int, int] = (0, 0)


class PictureSize(NamedTuple):
    """What a picture costs by: its visual tokens, and the tiles of it that the tower sees."""

    tokens: int
    tiles: int = 1


class Layout(NamedTuple):
    """The visual tokens of all pictures, packed in order: the number of the picture each is of, and as in `Picture`;
    and the tiles and the size of each picture."""

    media: Int32[np.ndarray, " V"]
    cell: Int32[np.ndarray, "V 4"]
    box: Float32[np.ndarray, "V 4"]
    tiles: tuple[int, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, pictures: Sequence[Picture]) -> "Layout":
        nowhere = Picture(np.zeros((0, 4), np.int32), np.zeros((0, 4), np.float32))
        cells, boxes, tiles, sizes = zip(nowhere, *pictures, strict=True)
        counts = [len(picture.cell) for picture in pictures]
        media = np.repeat(np.arange(len(pictures), dtype=np.int32), counts)
        return cls(media, np.concatenate(cells), np.concatenate(boxes), tiles[1:], sizes[1:])

    def rows_of(self, picture: int) -> Int32[np.ndarray, " v"]:
        """The numbers of a picture's tokens."""
        return np.flatnonzero(self.media == picture).astype(np.int32)

    def size_of(self, picture: int) -> PictureSize:
        return PictureSize(int((self.media == picture).sum()), self.tiles[picture])


class PromptRow(NamedTuple):
    """A prompt as tokens: ids; which visual token stands in each slot, -1 for words; positions for RoPE, and that of
    the token which follows; and the words that may rate."""

    input_ids: Int32[np.ndarray, " L"]
    visual_index: Int32[np.ndarray, " L"]
    position_ids: Int32[np.ndarray, "L ..."]
    next_position: int
    is_question: Bool[np.ndarray, " L"]

    @property
    def visual_count(self) -> int:
        return int((self.visual_index >= 0).sum())


def prompt_row(
    input_ids: Int32[np.ndarray, " L"], is_visual: Bool[np.ndarray, " L"], tokens: Sequence[Int32[np.ndarray, " v"]]
) -> PromptRow:
    """A prompt whose visual slots hold `tokens`, picture after picture; positions count from 0, and the words after the
    last picture may rate.

    Raises:
        ValueError: there are not as many slots as tokens.
    """
    numbers = np.concatenate([np.zeros(0, np.int32), *tokens])
    if is_visual.sum() != len(numbers):
        raise ValueError(f"expected {len(numbers)} image tokens for {len(tokens)} images, got {is_visual.sum()}")
    visual_index = np.full(len(input_ids), -1, np.int32)
    visual_index[is_visual] = numbers
    return PromptRow(
        input_ids=input_ids,
        visual_index=visual_index,
        position_ids=np.arange(len(input_ids), dtype=np.int32),
        next_position=len(input_ids),
        is_question=question_mask(is_visual[None], np.ones((1, len(input_ids)), bool))[0],
    )


@functools.lru_cache(maxsize=16)
def square_picture(side: int, *, first: int = 0, extent: float = 1.0) -> Picture:
    """Rows of `side` x `side` patches, after `first` tokens that have no place; `extent` is the part of the picture's
    height and width that lies in patches."""
    row, column = np.divmod(np.arange(side * side), side)
    nothing = np.zeros_like(row)
    cell = np.stack([nothing, nothing, row, column], axis=1)
    box = np.stack([row, column, row + 1, column + 1], axis=1) * (extent / side)
    no_place = np.full((first, 4), -1)
    return Picture(
        np.concatenate([no_place, cell]).astype(np.int32), np.concatenate([no_place * 0, box]).astype(np.float32)
    )
