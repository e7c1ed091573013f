"""What a run costs: tokens, FLOPs, bytes; counted, with the paper's figures and the true ones under separate names.

Two ways to count FLOPs. The *paper's*: multiply-accumulates of the decoder in prefill, 4 n d^2 + 2 n^2 d + 3 n d m per
layer over the n tokens entering it (section 3.4, and the official counter). The *exact*: floating-point operations
(2 per multiply-accumulate) of every matrix product that runs, tower, projector, grouped-query attention and head
included. Neither counts padding, norms or softmaxes.

n tokens entering a layer · d model dim · m ffn
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from ..models.decoders.llama import LlamaConfig
from ..models.families.family import ModelConfig, family_of
from ..processing import PictureSize
from ..sparsify import AdaptiveBudget, Sizes, SparsityConfig, TowerMerging, TowerReduction
from . import comparison


@dataclass(frozen=True)
class StageCost:
    """One stage's operations, in multiply-accumulates, by what each part of the method says it costs (for SparseVLM's
    the paper's formulas, sections 3.2 to 3.4): choosing raters, once; scores; the count, where it depends on the
    picture; selection; recycling."""

    layer: int
    raters: int
    score: int
    count: int
    select: int
    recycle: int

    @property
    def total(self) -> int:
        return self.raters + self.score + self.count + self.select + self.recycle


@dataclass(frozen=True)
class Timing:
    """Milliseconds on the wall, compilation apart; of the whole batch. A part that did not run is None."""

    encode_ms: float | None
    prefill_ms: float
    decode_ms_per_token: float | None
    compile_ms: float


@dataclass(frozen=True)
class Report:
    """What one row's answer took.

    Attributes:
        visual_tokens: visual tokens entering each layer.
        text_tokens: the other tokens of the prompt.
        mean_after_layers: the paper's count: tokens left after a layer, a pruning layer counted as pruned already.
        mean_entering_layers: the tokens layers really work on.
        overflow: tokens that budgets wanted to keep but the static capacity did not hold, per stage.
        paper_macs, paper_macs_dense: the paper's formula, with this run's pruning and with none.
        flops, flops_dense: exact, of encoding and prefill, of this row as if alone: rows that share a picture each
            count its encoding in full, which ran once.
        kv_bytes, kv_bytes_dense: keys and values of the prompt.
        stages: the price of pruning, by the paper's formulas.
        timing: measured, for the batch this row was in.
    """

    method: str
    visual_tokens: tuple[int, ...]
    text_tokens: int
    mean_after_layers: float
    mean_entering_layers: float
    overflow: tuple[int, ...]
    paper_macs: int
    paper_macs_dense: int
    flops: int
    flops_dense: int
    kv_bytes: int
    kv_bytes_dense: int
    stages: tuple[StageCost, ...]
    timing: Timing

    def __repr__(self) -> str:
        tokens = " ".join(map(str, dict.fromkeys(self.visual_tokens)))
        return (
            f"Report({self.method!r}: image tokens {tokens}, {self.mean_after_layers:.1f} after a layer; "
            f"{self.flops / 1e9:.3g} of {self.flops_dense / 1e9:.3g} GFLOPs; prefill {self.timing.prefill_ms:.1f} ms)"
        )

    def __str__(self) -> str:
        return "\n".join(comparison.table({self.method: self}))

    def _repr_html_(self) -> str:
        return comparison.html_table(self)

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        return asdict(self)


def tokens_entering(total: int, layers: Sequence[int], leaving: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Visual tokens entering each layer, when after `layers[i]` (-1: before the first) there are `leaving[i]`."""
    stages = dict(zip(layers, leaving, strict=True))
    counts, now = [], stages.get(-1, total)
    for layer in range(num_layers):
        counts.append(now)
        now = stages.get(layer, now)
    return tuple(counts)


def paper_macs(tokens: Sequence[int], config: LlamaConfig) -> int:
    """Multiply-accumulates of prefill over `tokens` (visual and text) entering each layer, by the paper's formula."""
    d, m = config.hidden_size, config.intermediate_size
    return sum(4 * n * d * d + 2 * n * n * d + 3 * n * d * m for n in tokens)


def decoder_flops(tokens: Sequence[int], config: LlamaConfig, feed_forward: Mapping[int, int] | None = None) -> int:
    """Exact matmul FLOPs of prefill over `tokens` entering each layer. `feed_forward[layer]` tokens pass that layer's
    feed-forward; where it does not say, all of them, but one in the last layer. The head sees one."""
    passing = {len(tokens) - 1: 1, **(feed_forward or {})}
    layers = sum(layer_flops(n, config, feed_forward=passing.get(layer, n)) for layer, n in enumerate(tokens))
    return layers + 2 * config.hidden_size * config.vocab_size


def layer_flops(n: int, config: LlamaConfig, *, feed_forward: int) -> int:
    """Exact matmul FLOPs of one layer: projections with their true widths, full n x n attention, and a feed-forward of
    so many tokens."""
    d, m, query = config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    return 2 * (n * d * (2 * query + 2 * key) + 2 * n * n * query + 3 * feed_forward * d * m)


def kv_bytes(tokens: Sequence[int], config: LlamaConfig, itemsize: int) -> int:
    """Keys and values of `tokens` in each layer."""
    return sum(tokens) * 2 * config.num_key_value_heads * config.head_dim * itemsize


def stage_cost(layer: int, method: SparsityConfig, sizes: Sizes, *, first: bool) -> StageCost:
    """What one row's stage of `sizes` costs. Raters are chosen at the `first` one, if they are: where the rule looks at
    relevance and a part asks for them, for the paper's 2 L_t L_v D."""
    are_chosen = first and "raters" in method.needs and method.raters in ("greater", "greater_equal")
    return StageCost(
        layer=layer,
        raters=2 * sizes.text * sizes.visual * sizes.dim if are_chosen else 0,
        score=method.score.cost(sizes),
        count=method.budget.cost(sizes) if isinstance(method.budget, AdaptiveBudget) else 0,
        select=method.select.cost(sizes),
        recycle=method.recycle.cost(sizes) if method.recycle else 0,
    )


def mean_after_layers(entering: Sequence[int], last_leaving: int) -> float:
    """The paper's "192 tokens": what is left after each layer is what enters the next."""
    return (sum(entering[1:]) + last_leaving) / len(entering)


def report(
    *,
    method: str,
    config: ModelConfig,
    pictures: Sequence[PictureSize],
    text_tokens: int,
    layers: Sequence[int],
    leaving: Sequence[int],
    overflow: Sequence[int],
    stages: Sequence[StageCost],
    itemsize: int,
    timing: Timing,
    merging: TowerMerging | TowerReduction | None = None,
    feed_forward: Mapping[int, int] | None = None,
) -> Report:
    """Everything `Report` says of one row with `pictures` of these sizes, from the visual tokens `leaving` the pruning
    `layers`. `feed_forward` is as in `decoder_flops`."""
    text, encoder_flops = config.text, family_of(config).encoder_flops
    total = sum(picture.tokens for picture in pictures)
    entering = tokens_entering(total, layers, leaving, text.num_hidden_layers)
    sparse, dense = [v + text_tokens for v in entering], [total + text_tokens] * text.num_hidden_layers
    return Report(
        method=method,
        visual_tokens=entering,
        text_tokens=text_tokens,
        mean_after_layers=mean_after_layers(entering, leaving[-1] if leaving else total),
        mean_entering_layers=sum(entering) / len(entering),
        overflow=tuple(overflow),
        paper_macs=paper_macs(sparse, text),
        paper_macs_dense=paper_macs(dense, text),
        flops=encoder_flops(config, pictures, merging) + decoder_flops(sparse, text, feed_forward),
        flops_dense=encoder_flops(config, pictures, None) + decoder_flops(dense, text),
        kv_bytes=kv_bytes(sparse, text, itemsize),
        kv_bytes_dense=kv_bytes(dense, text, itemsize),
        stages=tuple(stages),
        timing=timing,
    )
