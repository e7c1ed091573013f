"""What type checkers make of the public functions: checked by pyright, never run."""

from pathlib import Path
from typing import TYPE_CHECKING, assert_type

import numpy as np
from PIL import Image

import sparsevlm_jax as sv
from sparsevlm_jax import SparsityConfig, methods

if TYPE_CHECKING:

    def one_prompt_has_one_answer(vlm: sv.VLM, array: np.ndarray, picture: Image.Image, path: Path, data: bytes):
        assert_type(sv.generate(vlm, "what?"), sv.Output)
        for image in (array, picture, path, data, "street.png", None):
            assert_type(sv.generate(vlm, "what?", image, max_new_tokens=4, seed=3), sv.Output)
        assert_type(sv.generate(vlm, "what?", [array, array]), sv.Output)
        assert_type(sv.generate(vlm, "what?", image=(path, path)), sv.Output)
        assert_type(sv.generate(vlm, [{"role": "user", "content": "what?"}]), sv.Output)
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
        assert_type(sv.generate(vlm, chat, array), sv.Output)

    def a_list_of_prompts_has_a_list_of_answers(vlm: sv.VLM, array: np.ndarray, arrays: list[np.ndarray]):
        questions, chat = ["what?", "where?"], [{"role": "user", "content": "what?"}]
        assert_type(sv.generate(vlm, questions), list[sv.Output])
        assert_type(sv.generate(vlm, questions, array, seed=[1, 2]), list[sv.Output])
        assert_type(sv.generate(vlm, questions, arrays), list[sv.Output])
        assert_type(sv.generate(vlm, questions, [arrays, None]), list[sv.Output])
        assert_type(sv.generate(vlm, [chat, chat], [[array], [array]]), list[sv.Output])

    def sparsity_is_a_config_an_amount_or_a_name(vlm: sv.VLM, array: np.ndarray):
        for sparsity in (SparsityConfig.sparsevlm("1/3"), methods.create("divprune", 64), 64, 0.25, "fastv", None):
            assert_type(sv.generate(vlm, "what?", array, sparsity=sparsity), sv.Output)
            for piece in sv.stream(vlm, "what?", array, sparsity=sparsity):
                assert_type(piece, str)

    def a_trace_takes_what_an_answer_takes(vlm: sv.VLM, arrays: list[np.ndarray]):
        assert_type(sv.trace_prefill(vlm, "what?", arrays, sparsity="1/3"), sv.SparsityTrace)
