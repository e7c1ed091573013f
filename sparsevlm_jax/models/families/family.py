"""The seam between model families and the rest of the library: all that it knows of a family is said here.

A family is its config, its processor, and `encode`, which makes visual tokens of pixels; one value in a registry. What
follows, the decoder with its stages, is the same for all: the processor says where each visual token stands in the
prompt, and the runtime puts it there.

V visual tokens of all pictures · D model dim
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from jaxtyping import Array, Float

from ...hf.reader import UnsupportedConfig
from ...processing import PictureSize, Processor
from ...sparsify import ImageContext, TowerMerging, TowerReduction
from ..decoders.llama import CausalLM, LlamaConfig
from ..nn.params import bind


class ModelConfig(Protocol):
    """What every family's config has, as a frozen dataclass: the decoder's, and the ids that begin, end and pad.

    `tokens_per_image`: of every picture; None where it depends on the picture.
    """

    @property
    def text(self) -> LlamaConfig: ...
    @property
    def tokens_per_image(self) -> int | None: ...
    @property
    def bos_token_id(self) -> int: ...
    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...
    @property
    def pad_token_id(self) -> int: ...
    def to_hf(self) -> dict: ...
    def not_in_hf(self) -> str:
        """What of it `transformers` has no class for; empty: there is one."""
        ...

    def describe_vision(self) -> str:
        """The towers, and how many tokens a picture becomes, in a line."""
        ...


class Encoded(NamedTuple):
    """What the towers made of some pictures: visual tokens in the order of the processor's layout, separators included,
    then padding. One encoded picture serves many questions.

    `context`: what the tower says of each token, where a method asked. `deepstack`: what is added to the hidden states
    of these tokens after layers 0, 1, ... of the decoder.
    """

    tokens: Float[Array, "V D"]
    context: ImageContext | None = None
    deepstack: tuple[Float[Array, "V D"], ...] = ()


class Encode(Protocol):
    """Pixels, as the family's processor gives them, to visual tokens; called inside jit."""

    def __call__(
        self,
        params: dict,
        pixel_values: Any,
        *,
        config: Any,
        implementation: Any,
        context: bool = False,
        merging: TowerMerging | TowerReduction | None = None,
    ) -> Encoded:
        """
        Args:
            context: give what the tower knows of each token, as far as it has it.
            merging: merge tokens inside the tower, or between it and the projector. Every token keeps its place in the
                layout; the places that are left over are 0, and so is their `context.size`.

        Raises:
            ValueError: the tower does not have what the method needs.
        """
        ...


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: HF's `model_type`, and the name of its table in `convert`.
        config: its `ModelConfig`, with `from_hf`.
        matches: whether a `config.json` is of it; `model_type` alone does not always tell.
        modules: the parts of the model and their configs, by the name their parameters have at the top of the tree. The
            decoder's part, "", spreads over `DECODER`.
        encode: see `Encode`.
        encoder_flops: exact matmul FLOPs of encoding pictures of these sizes, with a method that merges in the tower or
            without.
        processor: of its checkpoints; called as `processor.from_folder(folder, config, ...)`.
        about: what of it can be read, in words, for messages.
        dummy: the smallest config that has all parts, for tests, benchmarks and docs.
    """

    name: str
    config: Any
    matches: Callable[[Mapping[str, Any]], bool]
    modules: Callable[[Any], dict]
    encode: Encode
    encoder_flops: Callable[[Any, Sequence[PictureSize], TowerMerging | TowerReduction | None], int]
    processor: type[Processor]
    about: str
    dummy: Callable[[], Any]


FAMILIES: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Enters a family into the registry; a second of the name replaces the first."""
    FAMILIES[family.name] = family
    return family


def family_of(config: Any) -> Family:
    """The family whose config this is.

    Raises:
        TypeError: it is none of a registered family.
    """
    for family in FAMILIES.values():
        if type(config) is family.config:  # a family's config may be made of another's
            return family
    raise TypeError(f"expected a config of one of {', '.join(FAMILIES)}, got {type(config).__name__}")


def config_from_hf(table: Mapping[str, Any], *, where: str = "config.json") -> Any:
    """The config that a `config.json` describes, by the family that it is of.

    Raises:
        UnsupportedConfig: it is of no family, or asks for something that is not implemented.
    """
    for family in FAMILIES.values():
        if family.matches(table):
            return family.config.from_hf(table, where=where)
    kind = table.get("model_type")
    raise UnsupportedConfig(f"{where}: model_type {kind!r} is none of the supported {', '.join(FAMILIES)}")


#: The parts of a parameter tree that the decoder reads; `encode` reads the others.
DECODER = ("language_model", "lm_head")


def language_model(params: dict, config: ModelConfig) -> CausalLM:
    """The decoder around its parameters; call it inside jit."""
    return bind(CausalLM, config.text, {name: params[name] for name in DECODER if name in params})
