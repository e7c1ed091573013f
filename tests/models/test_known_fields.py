"""The tables of known fields are those of the installed `transformers`: a new field of it fails here."""

import dataclasses
import inspect
import re

import pytest
import transformers
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.clip import modeling_clip
from transformers.models.llama import modeling_llama
from transformers.models.llava import modeling_llava
from transformers.models.mistral import modeling_mistral
from transformers.models.phi3 import modeling_phi3
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3
from transformers.models.siglip import modeling_siglip
from transformers.models.vipllava import modeling_vipllava

from sparsevlm_jax.hf import known_fields as known

CLASSES = {
    transformers.LlavaConfig: known.LLAVA,
    transformers.VipLlavaConfig: known.VIPLLAVA,
    transformers.CLIPVisionConfig: known.CLIP_VISION,
    transformers.SiglipVisionConfig: known.SIGLIP_VISION,
    transformers.LlamaConfig: known.LLAMA,
    transformers.MistralConfig: known.MISTRAL,
    transformers.Qwen2Config: known.QWEN2,
    transformers.Qwen3Config: known.QWEN3,
    transformers.Phi3Config: known.PHI3,
}
SPELLINGS = known.VIPLLAVA_SPELLINGS.keys() | known.ROPE_SPELLINGS.keys()
EVERYWHERE = known.INERT | known.FIXED.keys() | known.DROPPED.keys() | SPELLINGS


def fields(cls) -> dict:
    return {field.name: field.default for field in dataclasses.fields(cls)}


@pytest.mark.parametrize("cls", CLASSES)
def test_every_field_of_a_class_is_known_with_its_default(cls):
    common = fields(PreTrainedConfig)
    assert {name: value for name, value in fields(cls).items() if name not in common} == CLASSES[cls]


def test_every_field_of_all_classes_is_known():
    unknown = {name: value for name, value in fields(PreTrainedConfig).items() if name not in known.INERT}
    assert unknown.items() <= known.FIXED.items()


@pytest.mark.parametrize("cls", CLASSES)
def test_every_other_name_of_a_field_is_known(cls):
    assert cls.attribute_map.keys() | set(cls.attribute_map.values()) <= EVERYWHERE | CLASSES[cls].keys()


@pytest.mark.parametrize("convert", [PreTrainedConfig.__post_init__, PreTrainedConfig.convert_rope_params_to_dict])
def test_every_legacy_name_that_a_constructor_converts_is_known(convert):
    names = set(re.findall(r'kwargs\.(?:pop|get)\(\s*"(\w+)"', inspect.getsource(convert)))
    assert len(names) > 2 and names <= EVERYWHERE


def test_generation_settings_in_a_model_config_are_known_with_their_defaults():
    settings = transformers.GenerationConfig._get_default_generation_params()
    assert {name: value for name, value in settings.items() if name not in known.INERT}.items() <= known.DROPPED.items()


@pytest.mark.parametrize("cls", [transformers.LlavaConfig, transformers.VipLlavaConfig])
def test_a_tower_that_is_not_described_is_the_one_of_hf(cls):
    assert cls.sub_configs_defaults["vision_config"].init_kwargs == known.LLAVA_VISION


MODULES = [
    *(modeling_llava, modeling_vipllava, modeling_clip, modeling_siglip),
    *(modeling_llama, modeling_mistral, modeling_phi3, modeling_qwen2, modeling_qwen3),
]


@pytest.mark.parametrize("module", MODULES)
def test_every_field_that_a_models_code_reads_is_known(module):
    code = inspect.getsource(module)
    read = set(re.findall(r'config\.([a-z]\w*)|getattr\((?:self\.)?config, "(\w+)"', code))
    names = {name for pair in read for name in pair if name}
    methods = {name for name in names if callable(getattr(PreTrainedConfig, name, None))}
    of_other_models = {"logit_scale_init_value", "projection_size"}  # CLIP's and SigLIP's, for their text halves
    tables = set().union(*CLASSES.values())
    assert len(names) > 4 and names - methods - of_other_models <= EVERYWHERE | tables
