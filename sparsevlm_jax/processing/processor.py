"""The processor of a checkpoint: prompts and pictures in, token ids and pixel values out, and ids back into text.

`Processor` is LLaVA's: every picture becomes a square of pixels and the same number of tokens. Ids equal those of
Hugging Face's `LlavaProcessor` and pixels those of its PIL image processor. A family with pictures of another kind
says in a subclass how they are prepared, what a mark expands to and which positions tokens have.

Nothing here needs torch, and a plain tokenizer no `transformers`. Nothing is padded: rows have their own lengths.

Dims: I images of all rows together, H height, W width, L tokens of a row, A position axes.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np
from jaxtyping import Bool, Float, Int32, UInt8
from PIL import Image

from ..errors import short
from .files import read_pixel_config, read_template
from .generation_config import read_generation_config
from .images import MAX_PIXELS, ImageSource, open_image
from .layout import Layout, Picture, PromptRow, prompt_row
from .pixels import PixelConfig, preprocess
from .prompts import IMAGE_MARK, LLAVA_1_5, Prompt, PromptError, read_prompt, read_raw, render
from .tokenizer import TextTokenizer, read_tokenizer


class ProcessedInputs(NamedTuple):
    """A batch before padding. Row i owns the next `images_per_row[i]` of the marks.

    `pixel_values`: what the family's `encode` takes; arrays with an entry for each image.
    `layout`: where the visual tokens are that it makes of them.
    `image_of_mark`: which of the images each mark shows; an object that was given for several marks is one image.
    """

    rows: list[PromptRow]
    pixel_values: Any
    layout: Layout
    images_per_row: tuple[int, ...]
    image_of_mark: tuple[int, ...]

    @property
    def input_ids(self) -> list[Int32[np.ndarray, " L"]]:
        """Each row's, with each image mark expanded to as many ids as the image has tokens."""
        return [row.input_ids for row in self.rows]

    def images_of(self, row: int) -> tuple[int, ...]:
        """The images that a row's marks show."""
        first = sum(self.images_per_row[:row])
        return self.image_of_mark[first : first + self.images_per_row[row]]


class Shown(NamedTuple):
    """An image, and whether it is the only one of its prompt; said only where the family asks."""

    image: ImageSource
    is_alone: bool


class Prepared(NamedTuple):
    """Images as `encode` takes them, and where the visual tokens of each are."""

    pixel_values: Any
    pictures: list[Picture]


class ImageModel(Protocol):
    """What the processor asks of a model's config."""

    @property
    def image_token_id(self) -> int: ...
    @property
    def image_size(self) -> int: ...
    @property
    def picture(self) -> Picture | None: ...
    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...


class Processor:
    """Turns prompts and images into model inputs, and generated ids into text.

    Args:
        tokenizer: a Hugging Face tokenizer.
        config: the model's, an `ImageModel`, which fixes the image token's id, where the tokens of a picture are and
            the tower's image size.
        pixels: preprocessing of pictures.
        template: Jinja chat template.
        eos_token_ids: ids that end an answer; default: the model config's.
        allow_http: fetch pictures that are given as http(s) addresses.
        max_pixels: of a picture; more are refused, but for a JPEG that can be decoded at a smaller size.

    Raises:
        ValueError: tokenizer, preprocessing and model do not belong together.
    """

    #: Whether an image that is alone in its prompt is prepared in another way than one of several. Of a family's own.
    alone_matters: ClassVar[bool] = False

    def __init__(
        self,
        tokenizer: TextTokenizer,
        config: Any,
        *,
        pixels: PixelConfig,
        template: str = LLAVA_1_5,
        eos_token_ids: tuple[int, ...] | None = None,
        allow_http: bool = False,
        max_pixels: int = MAX_PIXELS,
    ):
        self.config: ImageModel = config
        self.tokenizer, self.pixels, self.template = tokenizer, pixels, template
        self.allow_http, self.max_pixels = allow_http, max_pixels
        self.eos_token_ids = config.eos_token_ids if eos_token_ids is None else eos_token_ids
        edge = config.image_size
        if pixels.output_size != (edge, edge):
            raise ValueError(f"the vision tower sees {edge} x {edge} pixels, preprocessing gives {pixels.output_size}")
        self._knows_mark = IMAGE_MARK in tokenizer.get_vocab()
        mark_id = tokenizer.convert_tokens_to_ids(IMAGE_MARK)
        if self._knows_mark and mark_id != config.image_token_id:
            raise ValueError(f"{IMAGE_MARK} is token {mark_id} to the tokenizer, {config.image_token_id} to the model")

    @classmethod
    def from_folder(
        cls,
        folder: str | os.PathLike[str],
        config: Any,
        *,
        pad_to_square: bool | None = None,
        allow_http: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> Self:
        """Read the processor files of a checkpoint folder (`files.PROCESSOR_FILES`), of any transformers since 4.36.

        Args:
            pad_to_square: True pads pictures to a square as the original LLaVA does, False crops them as llava-hf
                does; None does what the checkpoint says.
            allow_http, max_pixels: as above.

        Raises:
            CheckpointError: a file is missing or cannot be read.
            ValueError: a setting that is not implemented, by name.
        """
        folder = Path(folder)
        pixels = read_pixel_config(folder, config.image_size)
        if pad_to_square is not None:
            pixels = dataclasses.replace(pixels, do_pad=pad_to_square)
        tokenizer = read_tokenizer(folder)
        return cls(
            tokenizer,
            config,
            pixels=pixels,
            template=read_template(folder),
            eos_token_ids=read_generation_config(folder, config.eos_token_ids),
            allow_http=allow_http,
            max_pixels=max_pixels,
        )

    def __repr__(self) -> str:
        kind, (height, width) = type(self.tokenizer).__name__, self.pixels.output_size
        return f"Processor({kind} of {len(self.tokenizer)} tokens, images of {height} x {width} pixels)"

    def __call__(
        self, prompts: Sequence[Prompt], images: Sequence[Sequence[ImageSource]] | None = None, *, raw: bool = False
    ) -> ProcessedInputs:
        """Process a batch.

        Args:
            prompts: per row a question, or chat messages in the HF form (`prompts.read_prompt` has the details).
            images: per row its images, in the order of their `<image>` marks; where a row has no mark, they go first.
            raw: the prompts are the whole text, template words included (`USER: <image>\\n... ASSISTANT:`).

        Raises:
            PromptError: a prompt without words, or marks that are not as many as the images.
            ImageError, OSError: a picture that cannot be read.
        """
        if not isinstance(prompts, list | tuple):
            given = "one text" if isinstance(prompts, str) else short(prompts)
            raise PromptError(f"expected a list of prompts and as many lists of images, got {given}")
        images = [()] * len(prompts) if images is None else images
        if not isinstance(images, list | tuple) or not all(isinstance(row, list | tuple) for row in images):
            raise PromptError(f"expected a list of images for each prompt, got {short(images)}")
        if len(prompts) != len(images):
            raise PromptError(
                f"expected a list of prompts and as many lists of images, got {len(prompts)} prompts and {len(images)}"
            )
        rows = [self._read_row(prompt, row, raw) for prompt, row in zip(prompts, images, strict=True)]
        of_marks = [Shown(image, self.alone_matters and len(row) == 1) for _, row in rows for image in row]
        distinct = {(id(image), is_alone): Shown(image, is_alone) for image, is_alone in of_marks}
        number = {key: index for index, key in enumerate(distinct)}
        image_of_mark = tuple(number[id(image), is_alone] for image, is_alone in of_marks)
        prepared = self.prepare(list(distinct.values()))
        layout = Layout.of(prepared.pictures)
        tokens = [layout.rows_of(picture) for picture in range(len(distinct))]
        marks = iter(image_of_mark)
        processed = []
        for text, row in rows:
            shown = [next(marks) for _ in row]
            ids, is_visual = self._expand(text, [prepared.pictures[image] for image in shown])
            prompt = prompt_row(ids, is_visual, [tokens[image] for image in shown])
            processed.append(self.place(prompt, layout))
        return ProcessedInputs(
            rows=processed,
            pixel_values=prepared.pixel_values,
            layout=layout,
            images_per_row=tuple(len(row) for _, row in rows),
            image_of_mark=image_of_mark,
        )

    def prepare(self, images: Sequence[Shown]) -> Prepared:
        """Pixels of images, and where the visual tokens of each are. Of a family's own."""
        assert self.config.picture is not None
        pixels = self.encode_images([image for image, _ in images])
        return Prepared(pixels, [self.config.picture] * len(images))

    def expand(self, picture: Picture) -> tuple[Int32[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """The ids that a picture's mark becomes, and which of them are its visual tokens. Of a family's own."""
        count = len(picture.cell)
        return np.full(count, self.config.image_token_id, np.int32), np.ones(count, bool)

    def place(self, row: PromptRow, layout: Layout) -> PromptRow:
        """A row with the positions of the family, and its words that may rate. Of a family's own; here as it is."""
        return row

    def encode(self, text: str, pictures: Sequence[Picture] | None = None) -> Int32[np.ndarray, " L"]:
        """Token ids of a rendered prompt, each image mark expanded to a picture's tokens.

        A BOS is there if the tokenizer adds one or the text begins with it, and never for both reasons: so does the
        chat template of Hugging Face's processors.

        Args:
            pictures: of the marks; None: as many as there are, each of which the model's tower sees whole.

        Raises:
            ValueError: the pictures are not given, and tokens depend on them.
        """
        return self._expand(text, pictures)[0]

    def _expand(
        self, text: str, pictures: Sequence[Picture] | None
    ) -> tuple[Int32[np.ndarray, " L"], Bool[np.ndarray, " L"]]:
        ids = np.array(self._tokenize(text), np.int32)
        (marks,) = np.nonzero(ids == self.config.image_token_id)
        if pictures is None:
            picture = self.config.picture
            if picture is None and len(marks):
                raise ValueError("how many tokens a picture becomes depends on its size: give those of the marks")
            pictures = [] if picture is None else [picture] * len(marks)
        parts, start = [], 0
        for mark, picture in zip(marks, pictures, strict=True):
            parts += [(ids[start:mark], np.zeros(mark - start, bool)), self.expand(picture)]
            start = mark + 1
        parts.append((ids[start:], np.zeros(len(ids) - start, bool)))
        expanded, is_visual = zip(*parts, strict=True)
        return np.concatenate(expanded), np.concatenate(is_visual)

    def encode_images(self, images: Sequence[ImageSource]) -> Float[np.ndarray, "I 3 H W"]:
        """Pixel values of images, [I, 3, H, W] float32; of none, an array with I = 0."""
        pixels = np.empty((len(images), 3, *self.pixels.output_size), np.float32)
        for row, image in zip(pixels, images, strict=True):
            row[:] = preprocess(self.open(image), self.pixels)
        return pixels

    def open(self, image: ImageSource) -> Image.Image:
        """An image as an RGB picture the right way up."""
        return open_image(image, allow_http=self.allow_http, max_pixels=self.max_pixels)

    def restore(self, inputs: ProcessedInputs, image: int) -> list[UInt8[np.ndarray, "H W 3"]]:
        """One of the images, as the model saw it, once for each grid of its tokens' cells; the boxes of these tokens
        are parts of it. Of a family's own."""
        return [self.pixels.restore(inputs.pixel_values[image : image + 1])[0]]

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Text of generated ids; ids no tokenizer knows (image placeholders, padding rows) are left out."""
        known = [int(token) for token in ids if 0 <= int(token) < len(self.tokenizer)]
        return str(self.tokenizer.decode(known, skip_special_tokens=skip_special_tokens))

    def decode_settled(self, ids: Sequence[int]) -> str:
        """The part of `decode(ids)` that no later id can change, for streaming.

        A tokenizer that spells rare characters in byte tokens decodes a run of them as a whole, and into nothing but
        replacement characters where it is no UTF-8: such a run waits for its end, and half a character for its rest.
        """
        end, silent = len(ids), set(self.tokenizer.all_special_ids)  # these vanish, and may part a run of bytes
        while end and (ids[end - 1] in silent or _is_byte(self.tokenizer.convert_ids_to_tokens(int(ids[end - 1])))):
            end -= 1
        return self.decode(ids[:end]).rstrip("\N{REPLACEMENT CHARACTER}")

    def _read_row(self, prompt: Prompt, images: Sequence[ImageSource], raw: bool) -> tuple[str, Sequence[ImageSource]]:
        if raw:
            return read_raw(prompt, images), images
        conversation = read_prompt(prompt, images)
        return render(conversation, self.tokenizer, self.template), conversation.images

    def _tokenize(self, text: str) -> list[int]:
        bos = self.tokenizer.special_tokens_map.get("bos_token")
        add = bos is None or not text.startswith(bos)
        if self._knows_mark:
            return list(self._ids(text, add))
        # A tokenizer from before llava-hf does not know the mark: its chunks are tokenised apart, as the original does.
        first, *others = text.split(IMAGE_MARK)
        ids = list(self._ids(first, add))
        for chunk in others:
            ids += [self.config.image_token_id, *self._ids(chunk, False)]
        return ids

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        return self.tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]


def _is_byte(token: object) -> bool:
    return isinstance(token, str) and re.fullmatch("<0x[0-9A-F]{2}>", token) is not None
