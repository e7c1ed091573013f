"""LLaVA-NeXT (Liu et al., 2024): a LLaVA that sees pictures of any size, whole and cut into tiles ("anyres").

`encode` is a LLaVA's on each tile; its tokens are then put into the order of `processing.tiles`, with a learnt
separator ("newline") after each row of patches.

N tiles of all pictures · T tokens of a tile · V visual tokens of all pictures · S patches that one is made of · D model
dim
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from ...hf.known_fields import LLAVA_NEXT, LLAVA_SPELLINGS, NEXT_PINPOINTS
from ...hf.reader import ConfigReader
from ...processing import Prepared, ProcessedInputs, Processor, Shown, preprocess
from ...processing.tiles import Cut, Size, best_canvas, read_pinpoints, tiled_picture, tiles_of, untiled
from ...sparsify.tower import ImageContext, TowerMerging, TowerReduction
from ..decoders.llama import LlamaConfig
from ..nn.attention import Implementation
from ..towers.clip import ClipVisionConfig
from ..towers.vision_transformer import VisionConfig
from . import llava
from .family import Encoded, Family, register
from .llava import OWN_FIELDS, LlavaParts

_WITH_CLASS = 'expected "default": tiles are squares of patches, without a class token'


@dataclass(frozen=True, kw_only=True)
class LlavaNextConfig(LlavaParts):
    """The sizes of a LLaVA that sees tiles.

    Attributes:
        image_grid_pinpoints: (height, width) in pixels of the canvases that pictures are put on, in whole tiles.
    """

    image_grid_pinpoints: tuple[Size, ...] = NEXT_PINPOINTS

    kinds: ClassVar = {"llava_next": {**LLAVA_NEXT, **LLAVA_SPELLINGS, **OWN_FIELDS}}
    architectures: ClassVar = {"llava_next": "LlavaNextForConditionalGeneration"}

    def __post_init__(self):
        super().__post_init__()
        if self.skipped_tokens != self.vision.class_tokens:
            raise ValueError(f"vision_feature_select_strategy = {self.vision_feature_select_strategy!r}, {_WITH_CLASS}")
        if complaint := _not_in_tiles(self.image_grid_pinpoints, self.vision.image_size):
            raise ValueError(f"image_grid_pinpoints = {self.image_grid_pinpoints}, {complaint}")

    @property
    def tokens_per_image(self) -> None:
        """It depends on the picture: see `cut`."""

    @property
    def picture(self) -> None:
        """Likewise."""

    @property
    def most_tiles(self) -> int | None:
        """The patches of more tiles than so many are scaled down; None: never."""
        return None

    def cut(self, size: Size) -> tuple[Size, Cut]:
        """The canvas for a picture of (height, width) pixels, and its visual tokens."""
        canvas, vision = best_canvas(size, self.image_grid_pinpoints), self.vision
        cut = tiled_picture(size, canvas, tile=vision.image_size, patch=vision.patch_size, most_tiles=self.most_tiles)
        return canvas, cut

    @classmethod
    def _read_own(cls, read: ConfigReader, vision: VisionConfig) -> dict[str, Any]:
        read.seen.add("image_grid_pinpoints")
        read.only("use_image_newline_parameter", True)  # of the first versions
        given = read.config.get("image_grid_pinpoints")
        canvases = read_pinpoints(cls.image_grid_pinpoints if given is None else given)
        complaint = _not_in_tiles(canvases, vision.image_size) if canvases else "expected a list of [height, width]"
        if complaint:
            read.complain("image_grid_pinpoints", cls.image_grid_pinpoints if given is None else given, complaint)
        if vision.class_tokens and read.config.get("vision_feature_select_strategy") == "full":
            read.complain("vision_feature_select_strategy", "full", _WITH_CLASS)
        return {"image_grid_pinpoints": canvases}

    def describe_vision(self) -> str:
        """The tower, and how many tokens a picture becomes."""
        vision = self.vision
        tiles = [height * width // vision.image_size**2 for height, width in self.image_grid_pinpoints]
        return (
            f"{vision.num_hidden_layers} layers of {vision.hidden_size}, {vision.image_size} pixels in patches of "
            f"{vision.patch_size}: {self.tokens_per_tile} tokens of an image, and up to as many of each of "
            f"{min(tiles)} to {max(tiles)} tiles of it"
        )

    def to_hf(self) -> dict:
        """The `config.json` that `from_hf` reads back to an equal config."""
        return {**super().to_hf(), "image_grid_pinpoints": [list(canvas) for canvas in self.image_grid_pinpoints]}


def _not_in_tiles(canvases: Sequence[Size], tile: int) -> str:
    """What is wrong with canvases that are not whole tiles; else nothing."""
    wrong = [canvas for canvas in canvases if canvas[0] % tile or canvas[1] % tile]
    return f"expected multiples of image_size = {tile}, got {list(wrong[0])}" if wrong else ""


class Newline(nnx.Module):
    """The separator after a row of patches."""

    def __init__(self, config: LlavaNextConfig, *, rngs: nnx.Rngs):
        dim = config.text.hidden_size
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (dim,)) * dim**-0.5)


def modules(config: LlavaNextConfig) -> dict:
    """A LLaVA's parts, and the separator."""
    return {**llava.modules(config), "image_newline": (Newline, config)}


class LlavaNextProcessor(Processor):
    """Prompts and pictures of any size into inputs, equal to Hugging Face's `LlavaNextProcessor` with its PIL image
    processor. `pixel_values` has the tiles of all pictures [N, 3, H, W]; of each visual token the `source` [V, S], the
    number of its patch among those of all tiles, -1 in a separator; and its `weight`s, where it is made of several.
    What follows the last token is padding.

    Raises:
        ValueError: preprocessing and model do not belong together.
    """

    config: LlavaNextConfig

    def __init__(self, tokenizer: Any, config: LlavaNextConfig, **options: Any):
        super().__init__(tokenizer, config, **options)
        pixels, edge = self.pixels, config.image_size
        if (pixels.size or (pixels.shortest_edge,) * 2) != (edge, edge):
            size = pixels.size or pixels.shortest_edge
            raise ValueError(f"the vision tower sees tiles of {edge} x {edge} pixels, preprocessing has size = {size}")
        if pixels.do_pad:
            raise ValueError(
                "pictures of this model are put on canvases, with black around them: they cannot be padded"
            )
        if pixels.image_grid_pinpoints not in (None, config.image_grid_pinpoints):
            raise ValueError(
                f"image_grid_pinpoints are {pixels.image_grid_pinpoints} to preprocessing, "
                f"{config.image_grid_pinpoints} to the model"
            )

    def prepare(self, images: Sequence[Shown]) -> Prepared:
        tiles: list[np.ndarray] = []
        cuts: list[Cut] = []
        sources: list[np.ndarray] = []
        for shown in images:
            before = len(tiles) * self.config.tokens_per_tile
            squares, cut = self.cut(shown)
            tiles += squares
            cuts.append(cut)
            sources.append(np.where(cut.source < 0, -1, cut.source + before).astype(np.int32))
        edge, several = self.config.image_size, max((cut.source.shape[1] for cut in cuts), default=1)
        # As long as any so many tiles can make it: programs of the tower differ by the number of tiles alone.
        most = len(tiles) * (self.config.tokens_per_tile + self.config.vision.patches_per_side)
        values = {
            "tiles": np.stack(tiles) if tiles else np.zeros((0, 3, edge, edge), np.float32),
            "source": _stacked(sources, several, most),
        }
        if several > 1:
            values["weight"] = _stacked([cut.weight for cut in cuts], several, most)
        return Prepared(values, [cut.picture for cut in cuts])

    def cut(self, shown: Shown) -> tuple[list[Float[np.ndarray, "3 H W"]], Cut]:
        """The pixels of an image's tiles, and its visual tokens."""
        image = self.open(shown.image)
        canvas, cut = self.config.cut((image.height, image.width))
        resample = Image.Resampling(self.pixels.resample)
        squares = tiles_of(image, canvas, self.config.image_size, resample)
        return [preprocess(square, self.pixels) for square in squares], cut

    def restore(self, inputs: ProcessedInputs, image: int) -> list[UInt8[np.ndarray, "H W 3"]]:
        """The whole picture as one tile, in its own shape again, and the tiles joined, without what is around the
        picture; of one that was not cut, the square that the tower saw."""
        first = sum(inputs.layout.tiles[:image])
        tiles = inputs.pixel_values["tiles"][first : first + inputs.layout.tiles[image]]
        size, pixels = inputs.layout.sizes[image], self.pixels.restore(tiles)
        if len(pixels) == 1:
            return [pixels[0]]
        return untiled(pixels, size, best_canvas(size, self.config.image_grid_pinpoints))


def _stacked(fields: Sequence[np.ndarray], several: int, most: int) -> np.ndarray:
    """Of all pictures, each token of as many patches; 0 where there are fewer, and in what fills up `most` tokens."""
    widened = [np.pad(field, ((0, 0), (0, several - field.shape[1]))) for field in fields]
    whole = np.concatenate(widened) if widened else np.zeros((0, several), np.int32)
    return np.pad(whole, ((0, most - len(whole)), (0, 0)))


def encode(
    params: dict,
    pixel_values: dict[str, Array],
    *,
    config: LlavaNextConfig,
    implementation: Implementation,
    context: bool = False,
    merging: TowerMerging | TowerReduction | None = None,
) -> Encoded:
    """The tiles as a LLaVA's pictures, put into order, the separator after each row.

    Args:
        context: as `llava.encode` gives it; a separator's is 0.
        merging: as in `llava.encode`, in each tile. Separators are left out, unless nothing is merged, and so is what
            has the place of a patch around the picture.

    Raises:
        ValueError: as `llava.encode`; or merged tokens would have to be scaled down.
    """
    if merging is not None and "weight" in pixel_values:
        raise ValueError(
            "the tokens of so large a picture are scaled down between tower and language model, and those that a "
            "method has merged in the tower cannot be: use a smaller picture, or a method that chooses in the language "
            "model or before it (sparsevlm, fastv, divprune, ...)"
        )
    tiles = llava.encode(
        params, pixel_values["tiles"], config=config, implementation=implementation, context=context, merging=merging
    )
    newline = params["image_newline"]["embedding"].astype(tiles.tokens.dtype)
    source, weight = pixel_values["source"], pixel_values.get("weight")
    tokens = jnp.where(source[:, :1] < 0, newline, _of_patches(tiles.tokens, source, weight))
    seen = tiles.context

    def placed(field: Array) -> Array:
        is_separator = (source[:, 0] < 0).reshape(-1, *(1,) * (field.ndim - 1))
        return jnp.where(is_separator, 0, _of_patches(field, source, weight))

    if merging is None or seen is None:
        return Encoded(tokens, None if seen is None else ImageContext(*(f if f is None else placed(f) for f in seen)))
    assert seen.size is not None and seen.order is not None
    if llava.tokens_left(config, merging) == config.tokens_per_tile:
        return Encoded(tokens, ImageContext(size=jnp.ones(len(source)), order=jnp.arange(len(source))))
    first = jnp.arange(len(seen.order)) // config.tokens_per_tile * config.tokens_per_tile  # one tile after the other
    return Encoded(tokens, ImageContext(size=placed(seen.size), order=placed(first + seen.order)))


def _of_patches(
    field: Float[Array, "N*T ..."], source: Int[Array, "V S"], weight: Float[Array, "V S"] | None
) -> Float[Array, "V ..."]:
    """Each token from the one patch that it is, or as the weighted mean of several, in float32."""
    if weight is None:
        return field[source[:, 0]]
    total = jnp.einsum("vs,vs...->v...", weight, field[source], precision="highest", preferred_element_type=jnp.float32)
    return total.astype(field.dtype)


def dummy() -> LlavaNextConfig:
    """Tiles of four patches by four, up to four of them."""
    vision = ClipVisionConfig(32, 64, 2, 2, image_size=16, patch_size=4)
    text = LlamaConfig(448, 32, 64, 4, 4, 2, 8, rms_norm_eps=1e-5, rope_theta=1e4, max_position_embeddings=1024)
    canvases = ((16, 32), (32, 16), (32, 32), (48, 16), (16, 48))
    return LlavaNextConfig(vision=vision, text=text, image_token_id=400, image_grid_pinpoints=canvases)


register(
    Family(
        name="llava_next",
        config=LlavaNextConfig,
        matches=lambda table: table.get("model_type") == "llava_next",
        modules=modules,
        encode=encode,
        encoder_flops=llava.encoder_flops,
        processor=LlavaNextProcessor,
        about=(
            "LLaVA-NeXT, as transformers saves it (model_type 'llava_next') or as the original code does (1.6, "
            "mm_patch_merge_type 'spatial_unpad')"
        ),
        dummy=dummy,
    )
)
