"""Asking the demo model held-out questions by any method, quickly: pictures are encoded once, questions go in batches.

B questions of a batch · V visual tokens · D model dim
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsevlm_jax.demo import world
from sparsevlm_jax.demo.questions import Question, exam
from sparsevlm_jax.models.families.family import Encoded
from sparsevlm_jax.models.families.llava import encode
from sparsevlm_jax.processing import Layout, PictureSize, ProcessedInputs, prompt_row
from sparsevlm_jax.report import cost as accounting
from sparsevlm_jax.report.cost import Timing
from sparsevlm_jax.runtime import decode
from sparsevlm_jax.runtime.batching import assemble
from sparsevlm_jax.runtime.prefill import PrefillInputs, prefill
from sparsevlm_jax.sparsify import Bucket, ImageContext, SparsityConfig
from sparsevlm_jax.vlm import VLM

BATCH, NEW_TOKENS = 64, 10

_encode = jax.jit(encode, static_argnames=("config", "implementation", "context", "merging"))
_prefill = jax.jit(prefill, static_argnames=("config", "sparsity", "bucket", "implementation", "new_tokens"))
_generate = jax.jit(decode.generate, static_argnames=("config", "implementation", "buffer"), donate_argnums=(2,))


@dataclass(frozen=True)
class Exam:
    """Questions and the number of the scene each is about; the same for every method."""

    scenes: tuple[int, ...]
    questions: tuple[Question, ...]
    split: world.Split

    @classmethod
    def draw(cls, count: int, split: world.Split = "test") -> "Exam":
        scenes, questions, seed = [], [], 0
        while len(questions) < count:
            asked = exam(seed, split)[1]
            scenes += [seed] * len(asked)
            questions += asked
            seed += 1
        return cls(tuple(scenes[:count]), tuple(questions[:count]), split)


@dataclass(frozen=True)
class Cost:
    """Of one question on average: the paper's mean, the true mean, multiply-accumulates (dense and not), KV bytes."""

    mean_after_layers: float
    mean_entering_layers: float
    paper_macs: float
    paper_macs_dense: float
    kv_bytes: float
    kv_bytes_dense: float


@dataclass
class Examiner:
    """Asks an exam's questions; keeps what pictures were encoded to."""

    vlm: VLM
    exam: Exam
    _pictures: dict[Any, Any] = field(default_factory=dict)

    def ask(self, sparsity: SparsityConfig | None, count: int | None = None) -> tuple[list[str], Cost]:
        """Answers to the first `count` questions (None: all), and what a prompt of the first batch cost."""
        answers: list[str] = []
        cost = None
        count = len(self.exam.questions) if count is None else count
        for start in range(0, count, BATCH):
            rows = [min(row, count - 1) for row in range(start, start + BATCH)]  # a full batch: one program for all
            told, leaving, lengths = self._ask(rows, sparsity)
            answers += told[: min(BATCH, count - start)]
            cost = cost or self._cost(sparsity, leaving, lengths)
        assert cost is not None
        return answers, cost

    def right(self, answers: Sequence[str]) -> np.ndarray:
        """Which answers are exactly the true ones, as 0 or 1."""
        asked = self.exam.questions[: len(answers)]
        return np.array([told.strip() == q.answer for told, q in zip(answers, asked, strict=True)], np.float64)

    def inputs(self, rows: Sequence[int], sparsity: SparsityConfig | None) -> tuple[PrefillInputs, Bucket]:
        """The questions of `rows` and their encoded pictures, padded."""
        config = self.vlm.config
        ids = [self._ids(self.exam.questions[row].text) for row in rows]
        empty = np.zeros((0, 3, config.vision.image_size, config.vision.image_size), np.float32)
        layout = Layout.of([config.picture] * len(rows))
        prompts = [
            prompt_row(row, row == config.image_token_id, [layout.rows_of(index)]) for index, row in enumerate(ids)
        ]
        processed = ProcessedInputs(prompts, empty, layout, (1,) * len(rows), tuple(range(len(rows))))
        batch = assemble(processed, config, new_tokens=NEW_TOKENS)
        encoded = self._encoded([self.exam.scenes[row] for row in rows], sparsity)
        media, cell = jnp.asarray(layout.media), jnp.asarray(layout.cell)
        context = (encoded.context or ImageContext())._replace(media=media, cell=cell)
        return batch.inputs(encoded._replace(context=context)), batch.bucket

    def _ask(self, rows: list[int], sparsity: SparsityConfig | None) -> tuple[list[str], np.ndarray, np.ndarray]:
        inputs, bucket = self.inputs(rows, sparsity)
        static: dict[str, Any] = dict(config=self.vlm.config, implementation=self.vlm.implementation)
        out = _prefill(self.vlm.params, inputs, sparsity=sparsity, bucket=bucket, new_tokens=NEW_TOKENS, **static)
        real, limit = len(rows), jnp.int32(NEW_TOKENS)
        answer = (self.vlm.params, out.logits, out.state, limit, None, jnp.int32(real))
        generated, _ = _generate(*answer, buffer=NEW_TOKENS, **static)
        tokens, counts = np.asarray(generated.tokens)[:real], np.asarray(generated.count)[:real]
        told = [self.vlm.processor.decode(row[:size]) for row, size in zip(tokens, counts, strict=True)]
        return told, np.asarray(out.visual_count)[:, :real], np.asarray(inputs.length)[:real]

    def _ids(self, text: str) -> np.ndarray:
        """A question's ids; the processor wants a picture, any will do."""
        blank = np.zeros((8, 8, 3), np.uint8)
        if text not in self._pictures:
            self._pictures[text] = self.vlm.processor([text], [[blank]]).input_ids[0]
        return self._pictures[text]

    def _encoded(self, scenes: list[int], sparsity: SparsityConfig | None) -> Encoded:
        """The scenes, encoded once for all methods that want the tower as it is."""
        needs = bool(sparsity and "tower" in sparsity.needs)
        merging = sparsity.merging if sparsity else None
        missing = [scene for scene in dict.fromkeys(scenes) if (scene, needs, merging) not in self._pictures]
        for start in range(0, len(missing), 8):
            self._encode(missing[start : start + 8], needs, merging)
        found = [self._pictures[scene, needs, merging] for scene in scenes]
        return jax.tree.map(lambda *parts: jnp.asarray(np.concatenate(parts)), *found)

    def _encode(self, scenes: list[int], needs: bool, merging: Any) -> None:
        pictures = [world.sample(scene, self.exam.split).draw() for scene in scenes]
        pixels = self.vlm.processor.encode_images(pictures + [pictures[-1]] * (8 - len(pictures)))
        encoded: Encoded = _encode(
            self.vlm.params,
            pixels,
            config=self.vlm.config,
            implementation=self.vlm.implementation,
            context=needs,
            merging=merging,
        )
        on_host, visual = jax.device_get(encoded), self.vlm.config.tokens_per_image
        for index, scene in enumerate(scenes):
            own = slice(index * visual, (index + 1) * visual)
            self._pictures[scene, needs, merging] = jax.tree.map(lambda part, own=own: part[own], on_host)

    def _cost(self, sparsity: SparsityConfig | None, leaving: np.ndarray, lengths: np.ndarray) -> Cost:
        config, text = self.vlm.config, self.vlm.config.text
        layers = sparsity.pruning_layers(text.num_hidden_layers) if sparsity else ()
        reports = [
            accounting.report(
                method="",
                config=config,
                pictures=[PictureSize(config.tokens_per_image)],
                text_tokens=int(length) - config.tokens_per_image,
                layers=layers,
                leaving=[int(count) for count in leaving[:, row]],
                overflow=(),
                stages=(),
                itemsize=self.vlm.dtype.itemsize,
                timing=Timing(None, 0.0, None, 0.0),
            )
            for row, length in enumerate(lengths)
        ]
        return Cost(*(float(np.mean([getattr(r, name) for r in reports])) for name in Cost.__dataclass_fields__))
