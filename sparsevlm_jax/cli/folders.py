"""`sparsevlm convert`, `export` and `info`: checkpoint folders in and out, and what one holds."""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .. import progress
from .options import Commands, Parser, add_vision_tower, command

if TYPE_CHECKING:
    from ..checkpoints.sources import CheckpointInfo

CONVERT = """\
examples:
  sparsevlm convert llava-hf/llava-1.5-7b-hf llava-7b/          a hub id
  sparsevlm convert ~/checkpoints/llava-1.5-7b-hf llava-7b/     a local folder, safetensors or .bin, sharded or not
  sparsevlm convert liuhaotian/llava-v1.5-7b out/ --vision-tower openai/clip-vit-large-patch14-336

The converted folder loads faster, holds tokenizer and processor files too, and either is there whole or not at all."""

EXPORT = """\
examples:
  sparsevlm export llava-7b/ llava-7b-hf/                 what `convert` made, as a Hugging Face folder again
  sparsevlm export llava-7b/ small/ --dtype bfloat16      in another type

Every `transformers` since 4.36 loads the folder as LlavaForConditionalGeneration."""

INFO = """\
examples:
  sparsevlm info llava-7b/
  sparsevlm info llava-7b/ --json
  sparsevlm info llava-7b/ --verify      reads everything and checks it against the hashes that `convert` recorded"""


def add_convert(commands: Commands) -> None:
    parser = command(commands, "convert", "convert a PyTorch checkpoint into this library's own form", CONVERT)
    parser.set_defaults(run=run_convert)
    parser.add_argument("source", metavar="SRC", help="a Hugging Face or original LLaVA folder, or a hub id")
    _add_target(parser)


def add_export(commands: Commands) -> None:
    parser = command(commands, "export", "write a checkpoint as a Hugging Face folder", EXPORT)
    parser.set_defaults(run=run_export)
    parser.add_argument("source", metavar="SRC", help="a checkpoint folder of any kind, or a hub id")
    _add_target(parser)


def _add_target(parser: Parser) -> None:
    parser.add_argument("target", metavar="DST", help="the folder to write; it must not exist")
    add_vision_tower(parser)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as stored")
    parser.add_argument("--overwrite", action="store_true", help="replace DST if it is such a checkpoint")


def run_convert(args: argparse.Namespace) -> None:
    with progress.step("starting"):
        from ..checkpoints.sources import convert_checkpoint
    _write(args, "converting", convert_checkpoint)
    print(f"converted: {args.target}")


def run_export(args: argparse.Namespace) -> None:
    with progress.step("starting"):
        from ..checkpoints.sources import export_checkpoint
    _write(args, "exporting", export_checkpoint)
    print(f"exported: {args.target}")


def _write(args: argparse.Namespace, doing: str, write: Callable[..., object]) -> None:
    with progress.step(doing):
        write(args.source, args.target, dtype=args.dtype, vision_tower=args.vision_tower, overwrite=args.overwrite)


def add_info(commands: Commands) -> None:
    parser = command(commands, "info", "say what a checkpoint holds, without reading its weights", INFO)
    parser.set_defaults(run=run_info)
    parser.add_argument("model", metavar="DIR", help="a checkpoint folder of any kind, or a hub id")
    add_vision_tower(parser)
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON object")
    output.add_argument("--verify", action="store_true", help="check every byte against the hashes that were recorded")


def run_info(args: argparse.Namespace) -> None:
    with progress.step("starting"):
        from ..checkpoints import sources
    if args.verify:
        with progress.step("verifying"):
            print(sources.verify_checkpoint(args.model, vision_tower=args.vision_tower).summary)
        return
    info = sources.inspect_checkpoint(args.model, vision_tower=args.vision_tower)
    if args.json:
        print(json.dumps({**info._asdict(), "folder": str(info.folder), "config": dataclasses.asdict(info.config)}))
        return
    for line in _describe(info):
        print(line)


def _describe(info: "CheckpointInfo") -> Iterator[str]:
    text = info.config.text
    dtypes = ", ".join(f"{count:,} {dtype}" for dtype, count in info.dtypes.items())
    yield f"{info.folder}: {info.kind} checkpoint, names of layout {info.layout}"
    yield f"parameters      {info.parameters:,} ({dtypes}; {info.bytes / 1e9:.3g} GB)"
    yield f"vision tower    {info.config.describe_vision()}"
    yield (
        f"language model  {text.num_hidden_layers} layers of {text.hidden_size}, {text.num_attention_heads} heads "
        f"({text.num_key_value_heads} of keys), {text.vocab_size:,} words, {text.max_position_embeddings:,} positions"
    )
