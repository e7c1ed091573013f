"""Calls of the public functions with right, wrong and hostile arguments.

    python tests/fuzz_calls.py --calls 10000 --seed 0

Each call is answered, or refused by an error of this library: a ValueError or OSError raised in its own code, with a
short message. What is known to be wrong must be refused, what is known to be right must be answered. Prints how often
which outcome came, and ends with 1 where a call went another way.
"""

import argparse
import collections
import copy
import decimal
import fractions
import io
import random
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from PIL import Image

import sparsevlm_jax as sv
from sparsevlm_jax import methods
from sparsevlm_jax.report import visualize
from sparsevlm_jax.sparsify import KeptTokens, RankScale, RaterScore, Recycle, Share, SparsityConfig, Tokens

PACKAGE = Path(sv.__file__).parent
PICTURE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
TWO = ["What is it?", "Where?"]


class Raising:
    """Raises whatever is asked of it."""

    def _raise(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("hostile")

    __repr__ = __str__ = __len__ = __iter__ = __getitem__ = __eq__ = __bool__ = __hash__ = __index__ = _raise
    __float__ = __int__ = __fspath__ = __array__ = __call__ = __contains__ = __getattr__ = _raise


class RaisingList(list):
    raising: Any = Raising._raise
    __len__ = __iter__ = __getitem__ = __repr__ = __eq__ = raising
    __hash__ = None  # type: ignore[assignment]


def recursive() -> list:
    entries: list = []
    entries.append(entries)
    return entries


def closed() -> Image.Image:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, "PNG")
    image = Image.open(io.BytesIO(buffer.getvalue()))
    image.close()
    return image


#: Made anew for each call; no argument takes one of them, but for what `Argument.takes` names.
HOSTILE: dict[str, Callable[[], Any]] = {
    "object": object,
    "raising": Raising,
    "raising list": RaisingList,
    "generator": lambda: (n for n in range(3)),
    "set": lambda: {1, 2},
    "dict": lambda: {"a": 1},
    "empty dict": dict,
    "class": lambda: SparsityConfig,
    "function": lambda: len,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "minus one": lambda: -1,
    "huge": lambda: 10**400,
    "huge negative": lambda: -(10**5000),
    "half": lambda: 2.5,
    "complex": lambda: 1j,
    "array": lambda: np.zeros(3),
    "array of bools": lambda: np.array([True, False]),
    "empty array": lambda: np.zeros((0, 4)),
    "objects": lambda: np.array([object(), None], object),
    "jax array": lambda: jnp.ones((2, 2)),
    "date": lambda: np.datetime64("2026-01-01"),
    "decimal": lambda: decimal.Decimal("NaN"),
    "recursive": recursive,
    "nested": lambda: [[[[]]]],
    "surrogate": lambda: "\ud800 what?",
    "nul": lambda: "\0",
    "bytes": lambda: b"what?",
    "memory": lambda: memoryview(b"abc"),
    "range": lambda: range(3),
    "ellipsis": lambda: ...,
    "none in a list": lambda: [None],
    "objects in a list": lambda: [object(), Raising()],
    "long": lambda: "https://" + "x" * 10**6,
}


class Argument(NamedTuple):
    """Values that are right, values that are wrong, and the hostile ones that happen to be right."""

    right: tuple
    wrong: tuple = ()
    takes: frozenset[str] = frozenset()


def message(role: Any = "user", content: Any = "What is it?") -> dict:
    return {"role": role, "content": content}


ANY_TEXT = frozenset({"long", "nul"})
NUMBERS = ("1", "", None, [1], True, np.bool_(True), np.zeros(()), "many", np.array([1]))
WRONG_AMOUNTS = (0, "0", "4/3", "1/0", "150%", 1.5, "1e99999999", "1e-99999999", "9" * 10**5, True, "many", [64], 2**40)
HALF = fractions.Fraction(1, 2)
AMOUNTS = (16, "1/2", "50%", 0.5, np.int64(16), np.float32(0.5), HALF, Share(HALF))
METHODS = tuple(sorted(methods.METHODS))
THIRDS = (
    "1/3",
    fractions.Fraction(1, 3),
    Share(fractions.Fraction(1, 3)),
    "sparsevlm",
    SparsityConfig.sparsevlm("1/3"),
)

ARGUMENTS: dict[str, Argument] = {
    "prompt": Argument(
        ("What is it?", "Where is <image>?", [message()], TWO, [[message()], [message()]]),
        (
            *("", " ", "<image>", None, 5, [], [""], [None], ["a", 5], [["a"]], [*TWO, None], "a <image> <image>?"),
            *(
                [message("assistant")],
                [message("magic")],
                [message(None)],
                [message(np.array(["user"]))],
                [message([])],
            ),
            *([message(content=None)], [message(content=5)], [message(content=[5])], [message(content=[{}])]),
            *(
                [message(content=[{"type": "text"}])],
                [message(content=[{"type": "text", "text": 5}])],
                [{"role": "user"}],
            ),
            *(
                [message(content=[{"type": np.zeros(2), "text": "a"}])],
                [message(content="\udfff")],
                [{}],
                [{"content": "a"}],
            ),
            *([message(), 5], [message(), None], [message(Raising())], [message(content=Raising())]),
        ),
        frozenset({"nul"}),
    ),
    "one prompt": Argument(("What is it?", [message()]), (TWO, [[message()], [message()]]), frozenset({"nul"})),
    "image": Argument(
        (PICTURE, Image.fromarray(PICTURE)),
        (
            *(
                5,
                1.5,
                {},
                {"a"},
                object(),
                "",
                "nowhere.png",
                "\0",
                b"",
                b"\x89PNG",
                "https://example.org/a.png",
                Path("/"),
            ),
            *(PICTURE.astype(float), PICTURE[:0], PICTURE[..., :2], np.zeros(3, np.uint8), np.array("a"), [[PICTURE]]),
            *(
                [None],
                [PICTURE, 5],
                Image.new("F", (4, 4)),
                "data:image/png;base64," + "A" * 10**6,
                "data:,",
                {"url": "a"},
            ),
        ),
    ),
    "sparsity": Argument(
        (*THIRDS, None, "dense"),  # two programs; the others are made, not run
        (*WRONG_AMOUNTS, "", "FastV", SparsityConfig, THIRDS, b"fastv", methods.create, {"tokens": 5}),
    ),
    "max_new_tokens": Argument((1, 2, np.int64(2), np.uint8(1)), (0, -1, 1.0, 2.5, 5000, 2**31, *NUMBERS)),
    "temperature": Argument(
        (0, 0.0, 1, 0.7, 1e-40, 1e300, np.float32(1), fractions.Fraction(1, 2)),
        (-1, -1e-9, *NUMBERS),
        frozenset({"half"}),
    ),
    "top_k": Argument((0, 1, 5, 2**31 - 1, np.int32(3)), (-1, 1.0, 2**31, *NUMBERS)),
    "top_p": Argument((1, 0.5, 1e-50, np.float16(0.5)), (0, -0.5, 1.5, *NUMBERS), frozenset()),
    "seed": Argument((0, 7, 2**32 - 1, np.int64(3), np.uint32(5)), (-1, 2**32, 1.0, (), [1, 2, 3], "a", None, True)),
    "vlm": Argument((), (None, 5, "model", sv.VLM, {}, SparsityConfig)),
    "tokens": Argument((192, *AMOUNTS), (*WRONG_AMOUNTS, None, "")),
    "method": Argument(METHODS, ("", "FastV", None, 5, ["fastv"], ("fastv",))),
    "layer": Argument((1, 2, np.int64(3)), (0, 2.0, "2", None, True)),
    "scale": Argument((0.8, 1, np.float32(0.5)), ("0.8", None, True, [0.8], -2e6), frozenset({"minus one", "half"})),
    "capacity": Argument((None, 5, np.int64(5)), (-1, 2.5, "5", True)),
    "kept": Argument((8, 0, np.int64(3)), (-1, 1.5, "8", None, True)),
    "path": Argument((), ("", "nowhere.npz", "/", 5, None, b"\0", ["a"]), frozenset()),
    "trace": Argument((), (None, 5, "trace.npz", (), ("a",) * 10, sv.SparsityTrace)),
    "traces": Argument((), (None, 5, [], ["a"], [None], (), {})),
    "stage": Argument((0, 1), (-1, 99, 1.0, None, "0", True)),
    "answers": Argument((["a"], ()), (["a", "b"], 5, None, "ab", [5])),
    "source": Argument((), ("", "nowhere", "a/b/c/d", 5, b"x", [], Path("/dev/zero"), "no such/../place")),
    "dtype": Argument(("float32", None, np.float32), ("int8", "float64", "float", 5, int, "", "magic", [])),
    "attention": Argument(("xla", None), ("cudnn", "flash", "", 5, True)),
    "pad_to_square": Argument((True, False, None, np.bool_(True)), (0, 1, "yes", np.array([True, False]), [])),
    "flag": Argument((True, False, np.bool_(True)), (None, 0, 1, "yes", np.array([True, False]), [])),
    "budget": Argument((Tokens(8), KeptTokens((3,)), RankScale(1.0)), (None, 8, "1/3", Tokens, {})),
    "layers": Argument((None, (1,), [1, 2], (np.int64(1),)), (1, "12", (1.5,), (None,), (-2,), (True,))),
    "score": Argument((RaterScore(), RaterScore(heads="1/2")), (None, RaterScore, "attention", len)),
    "recycle": Argument((None, Recycle()), (True, Recycle, "mean", {}, 0)),
    "positions": Argument(("keep", "repack"), ("kept", None, True, ["keep"])),
    "name": Argument(("mine", "\0"), (None, 5, b"mine"), ANY_TEXT),
    "heads": Argument((None, 2, "1/2", 0.5), (0, -1, 1.5, "many", True)),
    "cluster_size": Argument((1, 10, np.int64(3)), (0, 1.0, None, True)),
}


class World(NamedTuple):
    """What valid calls need."""

    vlm: sv.VLM
    folder: Path
    trace: sv.SparsityTrace
    saved: Path


def world(folder: Path) -> World:
    from tests.tiny import save_tiny_checkpoint

    vlm = sv.load(save_tiny_checkpoint(folder / "llava"))
    trace = sv.trace_prefill(vlm, "What is it?", PICTURE)
    return World(vlm, folder, trace, sv.save_trace(folder / "trace.npz", trace))


class Call(NamedTuple):
    """A function, its arguments that stay, and the names in `ARGUMENTS` of those that may go wrong."""

    run: Callable[..., Any]
    fixed: dict[str, Any]
    varied: dict[str, str]
    weight: int = 1


def same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def calls(w: World) -> dict[str, Call]:
    """The public functions, with arguments that are right."""
    drawing = same("temperature", "top_k", "top_p", "seed", "max_new_tokens", "sparsity", "prompt", "image", "vlm")
    asked: dict[str, Any] = dict(vlm=w.vlm, prompt="What is it?", image=PICTURE, max_new_tokens=2)

    def stream(**arguments: Any) -> str:
        return "".join(sv.stream(**arguments))

    def load(**arguments: Any) -> Any:
        return sv.load(**{"source": w.folder / "llava", **arguments})

    def kept(**arguments: Any) -> SparsityConfig:
        return SparsityConfig.kept(arguments["kept"], layers=arguments.get("layers", (1,)))

    def fastv(**arguments: Any) -> Any:
        return methods.create("fastv", **arguments)

    config = same("budget", "layers", "score", "recycle", "positions", "name")
    return {
        "generate": Call(sv.generate, asked, drawing, 60),
        "stream": Call(stream, asked, {**drawing, "prompt": "one prompt"}, 15),
        "trace_prefill": Call(
            sv.trace_prefill,
            {k: asked[k] for k in ("vlm", "prompt", "image")},
            {**same("vlm", "image", "sparsity"), "prompt": "one prompt"},
            8,
        ),
        "load": Call(load, {}, same("source", "dtype", "attention", "pad_to_square"), 3),
        "create": Call(methods.create, {"name": "divprune"}, {"name": "method", "tokens": "tokens"}, 5),
        "create fastv": Call(fastv, {}, same("tokens", "layer"), 3),
        "sparsevlm": Call(SparsityConfig.sparsevlm, {}, same("tokens"), 3),
        "sparsevlm_v1": Call(SparsityConfig.sparsevlm_v1, {}, {**same("scale", "capacity"), "bias": "scale"}, 3),
        "kept": Call(kept, {"kept": 8}, same("kept", "layers"), 3),
        "SparsityConfig": Call(SparsityConfig, {"budget": Tokens(8)}, config, 8),
        "RaterScore": Call(RaterScore, {}, {"heads": "heads", "gravity": "flag"}, 2),
        "Recycle": Call(Recycle, {}, {"cluster_size": "cluster_size"}, 2),
        "save_trace": Call(sv.save_trace, {"path": w.folder / "again.npz", "trace": w.trace}, {"trace": "trace"}, 2),
        "load_trace": Call(sv.load_trace, {"path": w.saved}, same("path"), 4),
        "visualize": Call(visualize.visualize, {"trace": w.trace}, same("trace"), 1),
        "compare": Call(visualize.compare, {"traces": [w.trace]}, same("traces", "answers"), 2),
        "kept_picture": Call(visualize.kept_picture, {"trace": w.trace, "stage": 0}, same("trace", "stage"), 3),
        "score_map": Call(visualize.score_map, {"trace": w.trace, "stage": 0}, same("trace", "stage"), 3),
    }


def draw(rng: random.Random, call: Call) -> tuple[dict[str, Any], bool, str]:
    """Arguments of a call, whether one of them is wrong, and in words which."""
    arguments, is_wrong, told = dict(call.fixed), False, []
    for name in rng.sample(sorted(call.varied), min(len(call.varied), rng.choice((1, 1, 2, 3)))):
        argument = ARGUMENTS[call.varied[name]]
        kind = rng.choices(("right", "wrong", "hostile"), (1 if is_wrong else 0.15, 2, 2))[0]
        if kind == "right" and argument.right:
            arguments[name] = rng.choice(argument.right)
            told.append(f"{name}: right")
        elif kind == "wrong" and argument.wrong:
            index = rng.randrange(len(argument.wrong))
            arguments[name], is_wrong = copy_of(argument.wrong[index]), True
            told.append(f"{name}: wrong {index}")
        else:
            hostile = rng.choice(sorted(HOSTILE.keys() - argument.takes))
            arguments[name], is_wrong = HOSTILE[hostile](), True
            told.append(f"{name}: {hostile}")
    return arguments, is_wrong, ", ".join(told)


def copy_of(value: Any) -> Any:
    try:
        return copy.copy(value)
    except Exception:
        return value


def fits(arguments: dict[str, Any]) -> bool:
    """Whether arguments that are right each go together: marks with pictures, methods with the tiny model."""
    prompt, image = arguments.get("prompt", ""), arguments.get("image")
    return not (isinstance(prompt, str) and "<image>" in prompt and image is None)


def outcome(call: Call, arguments: dict[str, Any], is_wrong: bool) -> tuple[str, str]:
    """What came of it, and what is to be said of it where that is a fault ("" otherwise)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "a budget ", UserWarning)
            call.run(**arguments)
    except (ValueError, OSError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        if not Path(frames[-1].filename).is_relative_to(PACKAGE):
            return "foreign", f"{type(error).__name__} from {frames[-1].filename}: {str(error)[:200]}"
        if len(str(error)) > 1000:
            return "wordy", f"{len(str(error))} characters: {str(error)[:200]}"
        return "refused", "" if is_wrong else f"though right: {error}"
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return "foreign", f"{type(error).__name__} at {last.filename}:{last.lineno}: {str(error)[:200]}"
    return "answered", "though wrong" if is_wrong else ""


def fuzz(w: World, count: int, seed: int) -> tuple[collections.Counter, list[str]]:
    """Outcomes by function, and the faults."""
    rng, table = random.Random(seed), calls(w)
    counts: collections.Counter = collections.Counter()
    faults = []
    weights = [call.weight for call in table.values()]
    for number in range(count):
        name = rng.choices(list(table), weights)[0]
        arguments, is_wrong, told = draw(rng, table[name])
        came, fault = outcome(table[name], arguments, is_wrong)
        counts[name, came] += 1
        if fault:
            faults.append(f"call {number}, {name}({told}) {came}: {fault}")
    return counts, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts, faults = fuzz(world(Path(folder)), options.calls, options.seed)
    for (name, came), count in sorted(counts.items()):
        print(f"{name:16} {came:10} {count:6}")
    totals = collections.Counter()
    for (_, came), count in counts.items():
        totals[came] += count
    print(dict(totals), f"{len(faults)} faults")
    print(*faults[:200], sep="\n")
    return bool(faults)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.exit(main())
