"""Training with pruning on: the model learns to answer from the tokens that its own raters keep.

Nothing here is special to training. It is `sparsevlm_jax.runtime.prefill`'s own pieces, run on prompt and answer
together: which tokens are kept is a choice and carries no gradient, but everything that flows through the kept and the
merged tokens does, and that is all backpropagation needs. Raters are chosen among the question's words alone, so the
answer does not help to find itself.

B batch · G segments · Q tokens of a segment · V visual tokens · R rows, B*G · C slots of the last stage · W vocabulary
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from sparsevlm_jax.models.families.family import language_model
from sparsevlm_jax.models.families.llava import LlavaConfig, encode_images
from sparsevlm_jax.runtime.prefill import PrefillInputs, segments, start
from sparsevlm_jax.runtime.segment import Stage, run_segment
from sparsevlm_jax.sparsify import Bucket, SparsityConfig, TokenStream, apply

from . import tokenizer
from .language import Batch
from .packing import PREFIX_IDS, SEGMENT


def logits(params: dict, data: Batch, whole: LlavaConfig, sparsity: SparsityConfig) -> Float[Array, "B G Q W"]:
    """Next-token logits of every segment, each a prompt of its own, pruned on the way.

    Raises:
        ValueError: the budget or its layers do not fit the model.
    """
    visual = whole.tokens_per_image
    bucket = Bucket(len(PREFIX_IDS) + SEGMENT, visual)
    lm = language_model(params, whole)
    own = jnp.asarray(data.segments.ids).reshape(-1, SEGMENT)
    before = jnp.array([*PREFIX_IDS, *[tokenizer.IMAGE] * visual])
    ids = jnp.concatenate([jnp.broadcast_to(before, (len(own), len(before))), own], axis=1)
    features = encode_images(params, jnp.asarray(data.pixel_values), config=whole, implementation="xla")
    features = jnp.repeat(features, data.segments.ids.shape[1], axis=0)
    asked = jnp.argmax(own == tokenizer.ASSISTANT, axis=1) + 1
    used = jnp.sum(own != tokenizer.PAD, axis=1)
    prompt = PrefillInputs.of(ids, len(before) + asked, features, tokenizer.IMAGE)
    stream, _ = start(lm, prompt, sparsity=sparsity, bucket=bucket)
    stream = stream._replace(length=len(before) + used)
    total = jnp.full(len(own), visual)
    for layers, plan in segments(whole.text.num_hidden_layers, sparsity, bucket):
        stage = None if plan is None else Stage(plan, sparsity, total)
        run = run_segment(lm, stream, layers, stage, implementation="xla", whole=True)
        stream = run.stream
        if stage is not None and run.decision is not None:
            stream, _ = apply(stream, run.decision, stage.plan, sparsity)
    return lm.logits(_tail(stream, used)).reshape(*data.segments.ids.shape, -1)


def _tail(stream: TokenStream, used: Array) -> Float[Array, "R Q D"]:
    """The segment's tokens, which stand last: slots length - used, length - used + 1, ..."""
    slot = (stream.length - used)[:, None] + jnp.arange(SEGMENT)
    return jnp.take_along_axis(stream.hidden, jnp.minimum(slot, stream.hidden.shape[1] - 1)[..., None], axis=1)
