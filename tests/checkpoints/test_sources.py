"""One loader for every kind of folder, and for hub ids."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from sparsevlm_jax.checkpoints import sources
from sparsevlm_jax.checkpoints.sources import (
    convert_checkpoint,
    export_checkpoint,
    inspect_checkpoint,
    load_checkpoint,
    resolve_source,
    verify_checkpoint,
)
from sparsevlm_jax.checkpoints.trees import flatten
from sparsevlm_jax.convert import write_random_checkpoint
from sparsevlm_jax.errors import CheckpointError, CheckpointWarning
from sparsevlm_jax.processing import Processor
from tests import tiny
from tests.convert import fuzz


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return fuzz.make_folders(tmp_path_factory.mktemp("folders"))


def assert_same(first, second):
    assert first.config == second.config
    first, second = flatten(first.params), flatten(second.params)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name, strict=True)


@pytest.mark.parametrize("kind", ["sharded", "bin", "converted"])
def test_every_kind_of_folder_gives_the_same_model(folders, kind):
    assert_same(load_checkpoint(folders[kind]), load_checkpoint(folders["single"]))


def test_the_original_form_gives_the_same_weights(folders):
    original, single = (flatten(load_checkpoint(folders[kind]).params) for kind in ("original", "single"))
    assert all(np.array_equal(original[name], single[name]) for name in single)


def test_hugging_face_to_here_to_orbax_and_back_is_bit_equal(tmp_path, folders):
    convert_checkpoint(folders["sharded"], tmp_path / "orbax")
    convert_checkpoint(tmp_path / "orbax", tmp_path / "again")
    export_checkpoint(tmp_path / "again", tmp_path / "hf", max_shard_bytes=30_000)
    for name in ("orbax", "again", "hf"):
        assert_same(load_checkpoint(tmp_path / name), load_checkpoint(folders["sharded"]))


def test_a_conversion_can_change_the_dtype(tmp_path, folders):
    convert_checkpoint(folders["single"], tmp_path / "wide", dtype="float32")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(load_checkpoint(tmp_path / "wide").params)} == {"float32"}
    assert_same(load_checkpoint(tmp_path / "wide"), load_checkpoint(folders["single"], dtype="float32"))


def test_the_processor_works_from_every_form(tmp_path):
    source = tiny.save_tiny_checkpoint(tmp_path / "source")
    convert_checkpoint(source, tmp_path / "converted")
    export_checkpoint(source, tmp_path / "exported")
    config = load_checkpoint(source).config
    first, *others = (
        Processor.from_folder(tmp_path / name, config)(["what?"], [[tiny.random_image()]])
        for name in ("source", "converted", "exported")
    )
    for other in others:
        np.testing.assert_array_equal(first.input_ids[0], other.input_ids[0])
        np.testing.assert_array_equal(first.pixel_values, other.pixel_values)


class TestWhatIsWrittenWorks:
    """Tokenizer and processor are tried before a weight is read: "converted" means that the folder answers."""

    @pytest.fixture
    def source(self, folders, tmp_path):
        return shutil.copytree(folders["single"], tmp_path / "source")

    @pytest.mark.parametrize(
        "name, content",
        [
            ("tokenizer.json", None),
            ("tokenizer.json", "[]"),
            ("tokenizer.json", '{"version": "1.0", '),
            ("preprocessor_config.json", None),
            ("preprocessor_config.json", '{"crop_size": 336, "size": 336}'),  # of another tower
            ("chat_template.json", "{}"),
        ],
    )
    @pytest.mark.parametrize("write", [convert_checkpoint, export_checkpoint])
    def test_a_processor_that_fails_is_found_first(self, source, tmp_path, monkeypatch, name, content, write):
        (source / "chat_template.jinja").unlink()  # it would be read instead of the older file
        (source / name).unlink() if content is None else (source / name).write_text(content)
        monkeypatch.setattr("sparsevlm_jax.convert.read_params", lambda *_, **__: pytest.fail("weights were read"))
        with pytest.raises(CheckpointError, match="source would be of no use once written, its processor fails: "):
            write(source, tmp_path / "target")
        assert [path.name for path in tmp_path.iterdir()] == ["source"]

    @pytest.mark.parametrize("write", [convert_checkpoint, export_checkpoint])
    def test_a_target_that_is_taken_is_found_first(self, folders, tmp_path, monkeypatch, write):
        (tmp_path / "thesis").write_text("years of work")
        monkeypatch.setattr("sparsevlm_jax.convert.read_params", lambda *_, **__: pytest.fail("weights were read"))
        with pytest.raises(CheckpointError, match="thesis already exists"):
            write(folders["single"], tmp_path / "thesis")
        with pytest.raises(CheckpointError, match="thesis exists and is not a checkpoint"):
            write(folders["single"], tmp_path / "thesis", overwrite=True)
        with pytest.raises(CheckpointError, match="^cannot write .*thesis/model: Not a directory$"):
            write(folders["single"], tmp_path / "thesis" / "model")


def test_an_original_folder_takes_its_pixels_and_prompts_along(tmp_path):
    """They are in its code, not in its files: padded to a square, and Vicuna's system sentence."""
    model = tiny.tiny_llava()
    tiny.write_shards(tmp_path, tiny.layout(model.state_dict(), "original"))
    config = tiny.original_config(model) | {"vision_config": model.config.vision_config.to_dict()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tiny.tiny_tokenizer(marks=False).save_pretrained(tmp_path)
    convert_checkpoint(tmp_path, tmp_path.with_name(tmp_path.name + "-converted"))
    before, after = tmp_path, tmp_path.with_name(tmp_path.name + "-converted")
    llava = load_checkpoint(after).config
    first, second = (
        Processor.from_folder(folder, llava)(["what?"], [[tiny.random_image()]]) for folder in (before, after)
    )
    np.testing.assert_array_equal(first.input_ids[0], second.input_ids[0])
    np.testing.assert_array_equal(first.pixel_values, second.pixel_values)
    assert json.loads((after / "preprocessor_config.json").read_text())["do_pad"] is True


def test_a_vision_tower_elsewhere_is_found_by_the_name_in_the_config(tmp_path, monkeypatch):
    model = tiny.tiny_llava()
    (tmp_path / "llava").mkdir()
    (tmp_path / "clip").mkdir()
    state = tiny.layout(model.state_dict(), "original")
    tower = "model.vision_tower.vision_tower."
    tiny.write_shards(tmp_path / "llava", {k: v for k, v in state.items() if not k.startswith(tower)}, kind="bin")
    tiny.write_shards(tmp_path / "clip", {k.removeprefix(tower): v for k, v in state.items() if k.startswith(tower)})
    model.config.vision_config.save_pretrained(tmp_path / "clip")
    (tmp_path / "llava" / "config.json").write_text(json.dumps(tiny.original_config(model)))
    asked = []

    def from_hub(name):
        asked.append(name)
        return tmp_path / "clip"

    monkeypatch.setattr(sources, "_from_hub", from_hub)
    found = load_checkpoint(tmp_path / "llava")
    assert asked == ["openai/clip-vit-large-patch14-336"]
    assert_same(found, load_checkpoint(tmp_path / "llava", vision_tower=tmp_path / "clip"))
    monkeypatch.setattr(sources, "_from_hub", lambda name: resolve_source(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="has no vision tower inside, give its folder as vision_tower"):
        load_checkpoint(tmp_path / "llava")


@pytest.mark.parametrize("kind", ["single", "converted"])
class TestAVisionTowerThatIsNotNeeded:
    ACTIONS = (load_checkpoint, inspect_checkpoint, verify_checkpoint)

    @pytest.fixture
    def folder(self, kind, folders):
        return folders[kind]

    @pytest.mark.parametrize("action", ACTIONS)
    def test_it_must_be_there_all_the_same(self, folder, tmp_path, action):
        with pytest.raises(CheckpointError, match="there is no folder .*nowhere"):
            action(folder, vision_tower=tmp_path / "nowhere")

    @pytest.mark.parametrize("action", ACTIONS)
    def test_its_owner_is_told_that_it_is_not_read(self, folder, tmp_path, action):
        with pytest.warns(CheckpointWarning) as told:
            action(folder, vision_tower=tmp_path)
        expected = f"{folder} has a vision tower inside: the weights of {tmp_path} are not read"
        assert [str(warning.message) for warning in told] == [expected]


def test_a_strange_config_is_told_of_once_in_each_of_load_info_and_convert(folders, tmp_path):
    source = shutil.copytree(folders["single"], tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"surprise": 1}))
    for action in (
        lambda: load_checkpoint(source),
        lambda: inspect_checkpoint(source),
        lambda: convert_checkpoint(source, tmp_path / "converted"),
        lambda: export_checkpoint(source, tmp_path / "exported"),
        lambda: verify_checkpoint(source),
    ):
        with pytest.warns(CheckpointWarning) as told:
            action()
        assert ["surprise" in str(warning.message) for warning in told] == [True]
    load_checkpoint(tmp_path / "converted")  # which holds what is the model's, and no more


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("single", ("huggingface", "A", {"float16"})),
        ("bin", ("huggingface", "A", {"float16"})),
        ("original", ("original", "original", {"float16"})),
        ("converted", ("converted", "sparsevlm-jax", {"float16"})),
    ],
)
def test_inspection_tells_what_a_folder_is_without_reading_it(folders, kind, expected):
    info = inspect_checkpoint(folders[kind])
    assert (info.kind, info.layout, set(info.dtypes)) == expected
    assert info.parameters == sum(leaf.size for leaf in jax.tree.leaves(load_checkpoint(folders[kind]).params))
    assert info.bytes == 2 * info.parameters


@pytest.mark.parametrize("names", ["A", "B", "C", "D"])
def test_inspection_knows_the_layouts(tmp_path, names):
    tiny.save_llava(tmp_path, tiny.tiny_llava(), names=names)
    assert inspect_checkpoint(tmp_path).layout == names


def test_source_and_target_must_lie_apart(folders):
    single = folders["single"]
    for target in (single, single / "inside", single.parent):
        with pytest.raises(CheckpointError, match="lie in one another"):
            convert_checkpoint(single, target, overwrite=True)
    assert load_checkpoint(single)


class TestHub:
    """A hub id goes through huggingface_hub; here its network is replaced, its cache is real."""

    @pytest.fixture
    def cache(self, tmp_path, monkeypatch):
        """A cache that holds one repository, somebody/tiny, as the hub's client would have left it."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        repository = tmp_path / "models--somebody--tiny"
        write_random_checkpoint(repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567", fuzz.CONFIG)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
        return repository

    def test_the_cache_is_used_offline(self, cache, folders, monkeypatch):
        import huggingface_hub

        real = huggingface_hub.snapshot_download
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: real(*a, cache_dir=cache.parent, **k))
        assert_same(load_checkpoint("somebody/tiny"), load_checkpoint(folders["single"]))

    def test_what_cannot_be_had_is_one_sentence(self, cache):
        with pytest.raises(CheckpointError) as error:
            load_checkpoint("somebody/else")
        assert str(error.value).startswith(
            "there is no folder somebody/else, and the Hugging Face hub cannot give it (HF"
        )
        assert "\n" not in str(error.value)

    def test_safetensors_are_preferred_and_other_weights_not_fetched(self, tmp_path, monkeypatch):
        asked = []

        def download(name, allow_patterns):
            asked.append(allow_patterns)
            if "pytorch_model*.bin" in allow_patterns:
                (tmp_path / "pytorch_model.bin").write_bytes(b"")
            return str(tmp_path)

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        assert resolve_source("some/bins") == tmp_path
        assert [patterns[-1] for patterns in asked] == ["model*.safetensors", "pytorch_model*.bin"]

    def test_a_repository_without_weights_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(tmp_path))
        with pytest.raises(CheckpointError, match=r"repository some/where holds no model\*\.safetensors or pytorch"):
            resolve_source("some/where")


class TestPaths:
    """A checkpoint is written and found under whatever path a user gives it."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "target",
        (
            *("out", "out/", "./out", "a/b/out", "over/../out", "my models", "modèle", "a#b", "a%20b", "-out", "a\nb"),
            *("a?b", "[v1]*", "a\\b", "a:b", "gs:/bucket"),  # which Orbax reads as patterns, separators and addresses
        ),
    )
    def test_a_relative_path(self, folders, tmp_path, monkeypatch, target):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "over").mkdir()
        convert_checkpoint(folders["single"], target)
        assert_same(load_checkpoint(target), load_checkpoint(folders["single"]))
        assert_same(load_checkpoint(Path(target).absolute()), load_checkpoint(folders["single"]))
        assert inspect_checkpoint(target).kind == "converted"

    def test_the_folder_one_stands_in(self, folders, monkeypatch):
        for kind in ("converted", "single"):
            monkeypatch.chdir(folders[kind])
            for here in (".", "", "../" + folders[kind].name):
                assert_same(load_checkpoint(here), load_checkpoint(folders["single"]))

    def test_a_home_and_a_link(self, folders, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        convert_checkpoint(folders["single"], "~/models/out")
        (tmp_path / "link").symlink_to(tmp_path / "models")
        for name in ("~/models/out", tmp_path / "link" / "out", tmp_path / "models" / "out"):
            assert_same(load_checkpoint(name), load_checkpoint(folders["single"]))

    @pytest.mark.parametrize("name", [None, 3, b"out", "a\0b", "x" * 5000, "~nobody-has-this-name/out", "a\ud800"])
    def test_what_names_no_folder_is_one_error(self, folders, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(CheckpointError):
            load_checkpoint(name)
        if not str(name).startswith("~"):  # a folder of that name could be made
            with pytest.raises(CheckpointError):
                convert_checkpoint(folders["single"], name)
            assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("write", [convert_checkpoint, export_checkpoint])
def test_a_target_behind_links_that_lead_nowhere_is_one_error(folders, tmp_path, write):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(CheckpointError, match="a/out: Too many levels of symbolic links$"):
        write(folders["single"], tmp_path / "a" / "out")


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "../up", "owner/", "/abs/olute", "", "a b/c"])
def test_what_is_neither_folder_nor_hub_id_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    if name == "":
        assert resolve_source(name) == Path(".")  # as everywhere
        return
    with pytest.raises(CheckpointError, match="there is no folder .*, and it is not a hub id"):
        resolve_source(name)


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file is a file, expected the folder of a checkpoint"):
        resolve_source(tmp_path / "file")
