"""The tokenizer spells words letter by letter, decodes them joined, and means the same to `transformers`."""

import pytest
from transformers import AutoTokenizer

from examples.train_demo import tokenizer
from examples.train_demo.packing import PREFIX_IDS
from sparsevlm_jax.demo import questions, world


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.for_transformers().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


ASKED = [question for seed in range(60) for question in questions.about(world.sample(seed, "test"))]


def test_every_answer_survives_the_round_trip(loaded):
    for question in ASKED:
        ids = [*tokenizer.encode(question.answer), tokenizer.EOS]
        assert loaded.decode(ids, skip_special_tokens=True).strip() == question.answer


def test_a_word_is_one_token_a_letter():
    assert len(tokenizer.encode("CAFE")) == 4
    assert len(tokenizer.encode("blue")) == 1


def test_the_pieces_trained_on_are_the_prompt_a_user_sends(loaded):
    for question in ASKED:
        prompt = f"USER: <image>\n{question.text} ASSISTANT:"
        pieces = [*PREFIX_IDS, tokenizer.IMAGE, *tokenizer.encode(question.text + " ASSISTANT:")]
        assert loaded(prompt).input_ids == pieces


def test_special_tokens_are_where_the_config_says(loaded):
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (1, 2, 3)
    assert loaded.convert_tokens_to_ids("<image>") == tokenizer.IMAGE


def test_american_spelling_and_a_missing_capital_are_understood():
    assert tokenizer.encode("what color is the round sign?") == tokenizer.encode("What colour is the round sign?")


def test_a_word_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="lacks a word of 'Where is the giraffe"):
        tokenizer.encode("Where is the giraffe?")
