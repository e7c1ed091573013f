"""Tiny random LLaVA checkpoints as `transformers` writes them, with tokenizer and processor; no network needed.

`transformers` 5 saves a fresh model under names that no hub file has (layout D in `convert/tables.py`), so the
weights are renamed here: to layout A, the hub's, unless another one is asked for.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor

VOCAB, IMAGE_ID, PAD_ID = 448, 400, 401  # text tokens below 400, then the two special ones, then room
IMAGE_SIZE, PATCH_SIZE = 56, 14  # 16 patches
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CORPUS = (
    "USER: what is written on the blue sign? ASSISTANT: it says stop.",
    "a photograph of a street with two dogs, a red car and a bicycle",
    "how many people are in the picture, and where do they stand?",
)


def tiny_config(*, kv_heads: int = 4, tied: bool = False, layers: int = 4) -> transformers.LlavaConfig:
    """Sizes of the tiny model: 4 + 4 layers of width 64."""
    width: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    vision = transformers.CLIPVisionConfig(num_hidden_layers=4, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, **width)
    text = transformers.LlamaConfig(
        vocab_size=VOCAB,
        num_hidden_layers=layers,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=PAD_ID,
        tie_word_embeddings=tied,
        **width,
    )
    return transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_ID,
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=tied,
    )


def tiny_llava(*, seed: int = 0, **sizes) -> Any:
    """A random float32 model whose norms and biases are random too, so that no wrong one goes unseen."""
    torch.manual_seed(seed)
    model = transformers.LlavaForConditionalGeneration(tiny_config(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def layout(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """A state dict of transformers 5 (layout C) under the names of layout "A", "B", "C", "D" or "original"."""
    rules = {
        "A": (
            (r"model\.language_model\.", "language_model.model."),
            (r"lm_head\.", "language_model.lm_head."),
            (r"model\.vision_tower\.", "vision_tower.vision_model."),
            (r"model\.multi_modal_projector\.", "multi_modal_projector."),
        ),
        "B": ((r"model\.vision_tower\.", "model.vision_tower.vision_model."),),
        "C": (),
        "D": (
            (r"model\.language_model\.", "language_model.model."),
            (r"lm_head\.", "language_model.lm_head."),
            (r"model\.(vision_tower|multi_modal_projector)\.", r"\1."),
        ),
        "original": (
            (r"model\.language_model\.", "model."),
            (r"model\.vision_tower\.", "model.vision_tower.vision_tower.vision_model."),
            (r"model\.multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
            (r"model\.multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
            (r"model\.multi_modal_projector\.", "model.mm_projector."),
        ),
    }[name]

    def rename(key: str) -> str:
        for pattern, replacement in rules:
            renamed, count = re.subn("^" + pattern, replacement, key)
            if count:
                return renamed
        return key

    return {rename(key): value.contiguous() for key, value in state.items()}


def stored_state(model: Any) -> dict[str, Tensor]:
    """What a writer saves: a tied head is left out."""
    tied = model.config.text_config.tie_word_embeddings
    return {k: v for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}


def save_llava(folder: Path, model: Any, *, names: str = "A", shards: int = 1, kind: str = "safetensors") -> Path:
    """Saves a tiny model: `names` is the layout, `kind` is "safetensors" or "bin"."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    write_shards(folder, layout(stored_state(model), names), shards=shards, kind=kind)
    return folder


def write_shards(folder: Path, state: dict[str, Tensor], *, shards: int = 1, kind: str = "safetensors") -> None:
    """A state dict into one file, or into `shards` files and their index."""
    stem, suffix = ("pytorch_model", ".bin") if kind == "bin" else ("model", ".safetensors")
    save = torch.save if kind == "bin" else safetensors.torch.save_file
    if shards == 1:
        save(state, folder / f"{stem}{suffix}")
        return
    weight_map = {}
    for i in range(shards):
        part = {key: state[key] for key in list(state)[i::shards]}
        file = f"{stem}-{i + 1:05}-of-{shards:05}{suffix}"
        save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": "0"}, "weight_map": weight_map}  # a string, as one public copy has it
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index))


def original_config(model: Any) -> dict:
    """The same model's config as the original LLaVA code writes it."""
    text = model.config.text_config
    names = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size"
    names += " rms_norm_eps max_position_embeddings bos_token_id eos_token_id pad_token_id hidden_act"
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        **{name: getattr(text, name) for name in names.split()},
        "tie_word_embeddings": False,
        "rope_scaling": None,
        "image_aspect_ratio": "pad",
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": model.config.vision_config.hidden_size,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "freeze_mm_mlp_adapter": False,
        "torch_dtype": "float16",
        "transformers_version": "4.31.0",
    }


def tiny_tokenizer(*, marks: bool = True) -> transformers.LlamaTokenizer:
    """A Llama tokenizer learnt on three sentences: 3 specials, 256 bytes, pieces up to 400, then <image> and <pad>.

    `marks=False` leaves the last two out, as the original LLaVA's tokenizer does.
    """
    learner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    learner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=IMAGE_ID - 259, show_progress=False))
    learnt = json.loads(learner.to_str())["model"]
    pieces = sorted(learnt["vocab"], key=learnt["vocab"].get)
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    names += [f"<unused{i}>" for i in range(IMAGE_ID - len(names))]
    tokenizer = transformers.LlamaTokenizer(
        vocab={name: i for i, name in enumerate(names)},
        merges=[tuple(merge) for merge in learnt["merges"]],
        add_bos_token=True,
        padding_side="left",
    )
    if marks:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    return tokenizer


def load_in_transformers(
    folder: Path, kind: Any = transformers.LlavaForConditionalGeneration
) -> tuple[Any, dict[str, Any]]:
    """The model as `transformers` loads it, and what it says of missing and unexpected keys."""
    return kind.from_pretrained(folder, output_loading_info=True)


def tiny_processor() -> Any:
    """HF's processor for the tiny model: PIL backend, so that neither torch nor torchvision is asked for."""
    images = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    return transformers.LlavaProcessor(
        image_processor=images,
        tokenizer=tiny_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def save_tiny_checkpoint(folder: Path, *, seed: int = 0, processor: bool = True, **sizes) -> Path:
    """A whole llava-hf folder in hub layout A: config, weights and, unless told otherwise, tokenizer and processor."""
    save_llava(folder, tiny_llava(seed=seed, **sizes))
    if processor:
        tiny_processor().save_pretrained(folder)
    return folder


def random_image(seed: int = 0, height: int = 60, width: int = 90) -> np.ndarray:
    """A photograph of nothing: uint8 noise, [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
