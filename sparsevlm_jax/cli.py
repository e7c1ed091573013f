"""The command `sparsevlm`: answer questions about images, convert checkpoints, and say what one holds.

Each subcommand is one parser function and one function that runs it; both are named in `COMMANDS`. What is heavy (JAX,
the model) is imported when a command runs, so `--help` answers at once. Whatever a user can get wrong ends in one line
on stderr and exit code 2; SPARSEVLM_TRACEBACK=1 shows where it came from.
"""

import argparse
import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from .sources import CheckpointInfo
    from .sparsify import SparsityConfig
    from .vlm import VLM

DESCRIPTION = """\
Vision-language models in JAX that drop most image tokens on the way (SparseVLM, arXiv 2410.04417).

  sparsevlm demo
  sparsevlm generate --model DIR --image street.png --prompt "What is written on the blue sign?"
  sparsevlm info DIR
  sparsevlm convert DIR OUT
  sparsevlm visualize TRACE

`sparsevlm COMMAND --help` has more examples."""

GENERATE = """\
examples:
  one answer, with a third of the image tokens (192 of LLaVA-1.5's 576, the default)
    sparsevlm generate --model llava-hf/llava-1.5-7b-hf --image street.png --prompt "What is on the blue sign?"
  fewer tokens, as a number or a share; or all of them
    sparsevlm generate --model DIR --image street.png --prompt "..." --tokens 64
    sparsevlm generate --model DIR --image street.png --prompt "..." --tokens 1/9
    sparsevlm generate --model DIR --image street.png --prompt "..." --method dense
  two images, each where its <image> stands; without marks, images go first
    sparsevlm generate --model DIR --image a.png b.png --prompt "Is <image> the same place as <image>?"
  sampled, printed as it comes
    sparsevlm generate --model DIR --image a.png --prompt "..." --temperature 0.7 --top-p 0.9 --seed 1 --stream
  for a program: one JSON object with the text, and what it cost
    sparsevlm generate --model DIR --image a.png --prompt "..." --json"""

CONVERT = """\
examples:
  sparsevlm convert llava-hf/llava-1.5-7b-hf llava-7b/          a hub id
  sparsevlm convert ~/checkpoints/llava-1.5-7b-hf llava-7b/     a local folder, safetensors or .bin, sharded or not
  sparsevlm convert liuhaotian/llava-v1.5-7b out/ --vision-tower openai/clip-vit-large-patch14-336

The converted folder loads faster, holds tokenizer and processor files too, and either is there whole or not at all."""

DEMO = """\
examples:
  sparsevlm demo                              a street nobody has seen, three questions, all tokens and a third
  sparsevlm demo --seed 7 --save street.png   another street, and its picture
  sparsevlm demo --tokens 1/9                 fewer image tokens"""

INFO = """\
examples:
  sparsevlm info llava-7b/
  sparsevlm info llava-7b/ --json"""

VISUALIZE = """\
examples:
  what was kept for one question, stage by stage
    sparsevlm generate --model DIR --image street.png --prompt "What is on the blue sign?" --trace blue.npz
    sparsevlm visualize blue.npz --output blue.png
  several questions about one picture, side by side
    sparsevlm visualize blue.npz red.npz car.npz --output questions.svg"""

METHODS = """\
examples:
  sparsevlm methods
  sparsevlm generate --model DIR --image street.png --prompt "..." --method divprune --tokens 64"""

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    warnings.showwarning = _show_warning
    try:
        _compilation_cache()
        args.run(args)
        sys.stdout.flush()
    except (ValueError, OSError) as error:
        if os.environ.get("SPARSEVLM_TRACEBACK") == "1":
            raise
        if isinstance(error, BrokenPipeError):  # whoever read our output has gone; nothing is left to say
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            return 141
        print(f"sparsevlm: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparsevlm", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add, run in COMMANDS:
        add(commands).set_defaults(run=run)
    return parser


def _command(commands: Commands, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_generate(commands: Commands) -> argparse.ArgumentParser:
    parser = _command(commands, "generate", "answer a question about images", GENERATE)
    parser.add_argument(
        "--model", metavar="DIR", help="a checkpoint folder of any kind, or a hub id (default: the demo)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="to compute in (default: bfloat16 on a GPU, float32 on a CPU)",
    )
    parser.add_argument("--image", metavar="FILE", nargs="+", action="extend", default=[], help="images of the prompt")
    parser.add_argument("--prompt", metavar="TEXT", required=True, help="the question")
    pruning = parser.add_argument_group("pruning")
    pruning.add_argument(
        "--method",
        metavar="NAME",
        default="sparsevlm",
        help="one of those that `sparsevlm methods` lists (default: %(default)s)",
    )
    pruning.add_argument(
        "--tokens",
        metavar="N",
        default="1/3",
        help="image tokens to keep: 192, 1/3, 0.25 or 25%% (default: %(default)s)",
    )
    sampling = parser.add_argument_group("answer")
    sampling.add_argument("--max-new-tokens", metavar="N", type=int, default=64, help="default: %(default)s")
    sampling.add_argument("--temperature", metavar="T", type=float, default=0.0, help="0 takes the likeliest (default)")
    sampling.add_argument("--top-p", metavar="P", type=float, default=1.0, help="smallest set of that probability")
    sampling.add_argument("--top-k", metavar="K", type=int, default=0, help="only the K likeliest; 0 is all of them")
    sampling.add_argument("--seed", metavar="S", type=int, default=0, help="of the sampling (default: %(default)s)")
    parser.add_argument("--trace", metavar="FILE", help="save every pruning decision, for `sparsevlm visualize`")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--stream", action="store_true", help="print the answer as it comes")
    output.add_argument("--json", action="store_true", help="print one JSON object: text and report")
    return parser


def _generate(args: argparse.Namespace) -> None:
    from . import methods
    from . import vlm as sv

    sparsity = methods.create(args.method, args.tokens)
    model = sv.load(args.model, dtype=args.dtype)
    options: dict[str, Any] = dict(
        image=args.image,
        prompt=args.prompt,
        sparsity=sparsity,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        seed=args.seed,
    )
    if args.trace:
        _save_trace(args.trace, model, args.prompt, args.image, sparsity)
    if args.stream:
        for piece in sv.stream(model, **options):
            print(piece, end="", flush=True)
        print()
        return
    out = sv.generate(model, **options)
    print(json.dumps({"text": out.text, "report": out.report.to_dict()}) if args.json else out.text)


def _save_trace(path: str, model: "VLM", prompt: str, images: list[str], sparsity: "SparsityConfig | None") -> None:
    from .trace import save_trace, trace_prefill

    if sparsity is None:
        raise ValueError("a dense run prunes nothing, there is no trace to save")
    save_trace(path, trace_prefill(model, prompt, images, sparsity=sparsity))


def _add_convert(commands: Commands) -> argparse.ArgumentParser:
    parser = _command(commands, "convert", "convert a PyTorch checkpoint into this library's own form", CONVERT)
    parser.add_argument("source", metavar="SRC", help="a Hugging Face or original LLaVA folder, or a hub id")
    parser.add_argument("target", metavar="DST", help="the folder to write; it must not exist")
    parser.add_argument("--vision-tower", metavar="DIR", help="CLIP's folder or hub id, where SRC has no tower inside")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as stored")
    parser.add_argument("--overwrite", action="store_true", help="replace DST if it is a converted checkpoint")
    return parser


def _convert(args: argparse.Namespace) -> None:
    from .sources import convert_checkpoint

    convert_checkpoint(
        args.source, args.target, dtype=args.dtype, vision_tower=args.vision_tower, overwrite=args.overwrite
    )
    print(f"converted: {args.target}")


def _add_info(commands: Commands) -> argparse.ArgumentParser:
    parser = _command(commands, "info", "say what a checkpoint holds, without reading its weights", INFO)
    parser.add_argument("model", metavar="DIR", help="a checkpoint folder of any kind, or a hub id")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _info(args: argparse.Namespace) -> None:
    from .sources import inspect_checkpoint

    info = inspect_checkpoint(args.model)
    if args.json:
        print(json.dumps({**info._asdict(), "folder": str(info.folder), "config": dataclasses.asdict(info.config)}))
        return
    for line in _describe(info):
        print(line)


def _describe(info: "CheckpointInfo") -> Iterator[str]:
    config, vision, text = info.config, info.config.vision, info.config.text
    dtypes = ", ".join(f"{count:,} {dtype}" for dtype, count in info.dtypes.items())
    yield f"{info.folder}: {info.kind} checkpoint, names of layout {info.layout}"
    yield f"parameters      {info.parameters:,} ({dtypes}; {info.bytes / 1e9:.3g} GB)"
    yield (
        f"vision tower    {vision.num_hidden_layers} layers of {vision.hidden_size}, {vision.image_size} pixels "
        f"in patches of {vision.patch_size}: {config.tokens_per_image} tokens an image"
    )
    yield (
        f"language model  {text.num_hidden_layers} layers of {text.hidden_size}, {text.num_attention_heads} heads "
        f"({text.num_key_value_heads} of keys), {text.vocab_size:,} words, {text.max_position_embeddings:,} positions"
    )


def _add_demo(commands: Commands) -> argparse.ArgumentParser:
    parser = _command(commands, "demo", "draw a street and ask about it, with all image tokens and with some", DEMO)
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="which street (default: %(default)s)")
    parser.add_argument("--tokens", metavar="N", default="1/3", help="image tokens to keep (default: %(default)s)")
    parser.add_argument(
        "--save", metavar="FILE", type=Path, default=Path("street.png"), help="the picture (default: %(default)s)"
    )
    return parser


def _demo(args: argparse.Namespace) -> None:
    from .demo import show

    for line in show.lines(show.run_demo(seed=args.seed, tokens=args.tokens, save_to=args.save)):
        print(line)
    print(f"\npicture: {args.save}")


def _add_methods(commands: Commands) -> argparse.ArgumentParser:
    return _command(commands, "methods", "list the pruning methods that --method takes", METHODS)


def _methods(args: argparse.Namespace) -> None:
    from . import methods

    width = max(map(len, methods.METHODS))
    for name in sorted(methods.METHODS):
        print(f"{name:{width}}  {methods.summary(name)}")


def _add_visualize(commands: Commands) -> argparse.ArgumentParser:
    parser = _command(commands, "visualize", "draw what a traced run kept", VISUALIZE)
    parser.add_argument("traces", metavar="TRACE", nargs="+", help="files that `sparsevlm generate --trace` saved")
    parser.add_argument("--output", metavar="FILE", default="trace.png", help="PNG or SVG (default: %(default)s)")
    return parser


def _visualize(args: argparse.Namespace) -> None:
    from . import visualize
    from .trace import load_trace

    traces = [load_trace(path) for path in args.traces]
    figure = visualize.visualize(traces[0]) if len(traces) == 1 else visualize.compare(traces)
    visualize.save(figure, args.output)
    print(f"drawn: {args.output}")


COMMANDS = (
    (_add_demo, _demo),
    (_add_generate, _generate),
    (_add_convert, _convert),
    (_add_info, _info),
    (_add_methods, _methods),
    (_add_visualize, _visualize),
)


def _compilation_cache() -> None:
    """Keep compiled programs between runs; JAX_COMPILATION_CACHE_DIR says where, and empty means nowhere."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") == "":
        return  # before JAX is imported
    from .compilation_cache import enable_compilation_cache

    enable_compilation_cache()


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    print(f"sparsevlm: warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
