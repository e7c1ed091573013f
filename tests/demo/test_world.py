"""Scenes follow from their seed, splits share nothing, and what is drawn is where the scene says."""

import numpy as np
import pytest

from sparsevlm_jax.demo import world
from sparsevlm_jax.demo.sprites import COLOURS
from sparsevlm_jax.demo.words import SEEN_WORDS, UNSEEN_WORDS
from sparsevlm_jax.demo.world import Mix

SPLITS: tuple[world.Split, ...] = ("train", "validation", "test")


def combinations(split: world.Split, scenes: int = 300) -> set[tuple[str, str, int, str]]:
    signs = [sign for seed in range(scenes) for sign in world.sample(seed, split, Mix()).signs]
    return {(sign.word, sign.colour, sign.row, sign.side) for sign in signs}


@pytest.mark.parametrize("split", SPLITS)
def test_a_seed_draws_the_same_picture_every_time(split):
    first, again = world.sample(7, split), world.sample(7, split)
    assert first == again
    assert first.draw().tobytes() == again.draw().tobytes()


def test_another_seed_or_split_draws_another_picture():
    pictures = {world.sample(seed, split).draw().tobytes() for seed in range(5) for split in SPLITS}
    assert len(pictures) == 15


def test_splits_share_no_combination_of_word_colour_and_place():
    train, validation, test = (combinations(split) for split in SPLITS)
    assert not train & validation and not train & test and not validation & test


def test_splits_share_words_colours_and_places_one_by_one():
    train, test = combinations("train"), combinations("test")
    for part in (1, 2, 3):
        assert {sign[part] for sign in train} == {sign[part] for sign in test}
    assert len({sign[0] for sign in train} & {sign[0] for sign in test}) > 100


def test_training_never_shows_an_unseen_word_and_the_test_does():
    train = {sign.word for seed in range(500) for sign in world.sample(seed, "train").signs}
    test = {sign.word for seed in range(500) for sign in world.sample(seed, "test").signs}
    assert not train & set(UNSEEN_WORDS)
    assert test & set(UNSEEN_WORDS) and test & set(SEEN_WORDS)


def test_signs_lie_inside_the_picture_apart_from_each_other_in_colours_of_their_own():
    for seed in range(300):
        signs = world.sample(seed, "train", Mix(signs=(1, 8))).signs
        assert len({sign.colour for sign in signs}) == len(signs)
        boxes = [sign.box for sign in signs]
        assert all(
            0 <= left < right <= world.SIZE and 0 <= top < bottom <= world.SIZE for left, top, right, bottom in boxes
        )
        for index, one in enumerate(boxes):
            for other in boxes[index + 1 :]:
                assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_a_sign_has_its_colour_where_the_scene_says():
    for seed in range(50):
        scene = world.sample(seed, "test")
        picture = np.asarray(scene.draw())
        for sign in scene.signs:
            left, top, right, _ = sign.box
            strip = picture[top + 2, left + 12 : right - 12]  # above the letters, below the border
            assert (np.abs(strip.astype(int) - COLOURS[sign.colour]) <= 16).all()  # resampling rings a little


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="'dev', expected one of train, validation, test"):
        world.sample(0, "dev")  # pyright: ignore[reportArgumentType]
