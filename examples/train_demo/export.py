"""Writes a trained model as a Hugging Face folder: `python -m examples.train_demo.export --run RUN --to FOLDER`.

Float16 weights in shards below 16 MB, tokenizer, chat template and pixel settings: what the package carries.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Final

import jax.numpy as jnp

from sparsevlm_jax.convert.export import export_hf
from sparsevlm_jax.models.families.llava import LlavaConfig
from sparsevlm_jax.processing.prompts import LLAVA_1_5

from . import language, tokenizer, train
from .pixels import MEAN, STD

SHARD_BYTES: Final = 15_000_000


def write_processor_files(folder: Path, config: LlavaConfig) -> None:
    """Tokenizer, chat template and image settings, as `LlavaProcessor` and this library read them."""
    tokenizer.for_transformers().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(LLAVA_1_5)
    edge = config.vision.image_size
    pixel_settings = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": edge},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": edge, "width": edge},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [MEAN] * 3,
        "image_std": [STD] * 3,
    }
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": config.vision.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": 1,
    }
    generation = {"bos_token_id": tokenizer.BOS, "eos_token_id": tokenizer.EOS, "pad_token_id": tokenizer.PAD}
    for name, content in {
        "preprocessor_config": pixel_settings,
        "processor_config": processor,
        "generation_config": generation,
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def export(params: dict, config: LlavaConfig, target: Path) -> None:
    """Writes the folder, replacing one that is there; a model card beside the weights is kept."""
    card = target / "README.md"
    kept = card.read_text() if card.is_file() else None
    with tempfile.TemporaryDirectory() as files:
        write_processor_files(Path(files), config)
        export_hf(
            params,
            config,
            target,
            dtype=jnp.float16,
            max_shard_bytes=SHARD_BYTES,
            processor_files_from=files,
            overwrite=True,
        )
    if kept is not None:
        card.write_text(kept)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.train_demo.export", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of a training run")
    parser.add_argument("--to", type=Path, required=True, help="where to write the checkpoint")
    options = parser.parse_args()
    params = train.trained(options.run.absolute())
    if "language_model" not in params:
        parser.error(f"{options.run} holds no checkpoint of a stage that trains the language model")
    layers = len(params["language_model"]["layers"])
    model = {name: part for name, part in params.items() if name != "head"}  # the tower's, of no use to LLaVA
    export(language.unit_norm(model), language.config(layers), options.to)


if __name__ == "__main__":
    main()
