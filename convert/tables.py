"""The names of each family's checkpoints, and of towers that lie in folders of their own.

A LLaVA, of any of its families, is found under four sets of names, by the version of `transformers` that wrote it, and
under those of the original code (haotian-liu/LLaVA). X stands for the names inside a part:

    layout    written by              language model          head                    vision tower
    A         4.36 to 4.57; the hub   language_model.model.X  language_model.lm_head  vision_tower.vision_model.X
    B         4.52 to 4.57 in memory  model.language_model.X  lm_head                 model.vision_tower.vision_model.X
    C         5.x in memory           model.language_model.X  lm_head                 model.vision_tower.X
    D         5.x, saved afresh       language_model.model.X  language_model.lm_head  vision_tower.X
    original  haotian-liu/LLaVA       model.X                 lm_head                 model.vision_tower twice, as in B

Export writes A, which every version loads: each part's first prefix. A new family adds its table to `TABLES`.
"""

from sparsevlm_jax.errors import CheckpointError
from sparsevlm_jax.models import ModelConfig, family_of
from sparsevlm_jax.models.families.llava import MAX_PROJECTOR_LAYERS

from .parts import HEAD, LLAMA, VISION_TRANSFORMER
from .rows import Names, Part, Row, Table, layer_norm, linear

_TOWER_PREFIXES = (
    "vision_tower.vision_model.",
    "vision_tower.",
    "model.vision_tower.vision_model.",
    "model.vision_tower.",
    "model.vision_tower.vision_tower.vision_model.",
    "model.vision_tower.vision_tower.",
    "vision_tower.vision_tower.vision_model.",
    "vision_tower.vision_tower.",
)
_TEXT_PREFIXES = (
    "language_model.model.",
    "model.language_model.",
    "model.language_model.model.",
    "language_model.",
    "model.",
)
_PROJECTOR = Names(rows=(*layer_norm("projector_layernorm"), *linear("linear_#")))
# A bare linear layer (LLaVA-1.0), or a sequence whose odd places are activations.
_ORIGINAL_PROJECTOR = Names(
    rows=(
        *(row for i in range(MAX_PROJECTOR_LAYERS) for row in linear(f"{2 * i}", f"linear_{i + 1}")),
        Row("weight", "linear_1.kernel"),
        Row("bias", "linear_1.bias"),
    )
)

LLAVA = Table(
    parts=(
        Part(LLAMA, _TEXT_PREFIXES, "language_model."),
        Part(HEAD, ("language_model.", ""), ""),
        Part(VISION_TRANSFORMER, _TOWER_PREFIXES, "vision_tower."),
        Part(_PROJECTOR, ("multi_modal_projector.", "model.multi_modal_projector."), "multi_modal_projector."),
        Part(_ORIGINAL_PROJECTOR, ("model.mm_projector.",), "multi_modal_projector."),
    ),
    layouts=(
        ("original", r"model\.(?:embed_tokens|layers|norm|mm_projector)\..*|model\.vision_tower\.vision_tower\..*"),
        ("A", r"vision_tower\.vision_model\..*"),
        ("B", r"model\.vision_tower\.vision_model\..*"),
        ("C", r"model\.vision_tower\..*"),
        ("D", r"vision_tower\..*"),
    ),
)

# A CLIP folder of its own, as the original LLaVA reads its tower: the text half of a full CLIPModel is left alone.
CLIP = Table(
    parts=(Part(VISION_TRANSFORMER, ("vision_model.", ""), "vision_tower."),),
    ignored_beside=(r"text_model\..*", r"(?:text|visual)_projection\.weight", r"logit_scale"),
)

# The separator lies at the top level, under one name in all layouts but B, C and the original code's.
_NEWLINE = Part(Names(rows=(Row("image_newline", "embedding"),)), ("", "model."), "image_newline.")
LLAVA_NEXT = LLAVA._replace(parts=(*LLAVA.parts, _NEWLINE))

# By the names of families.
TABLES: dict[str, Table] = {"llava": LLAVA, "llava_next": LLAVA_NEXT, "llava_onevision": LLAVA_NEXT}


def table_of(config: ModelConfig) -> Table:
    """The table of the family that a config is of.

    Raises:
        CheckpointError: there is none.
    """
    name = family_of(config).name
    if name not in TABLES:
        raise CheckpointError(f"the family {name!r} has no table of its checkpoints' names: enter one into TABLES")
    return TABLES[name]
