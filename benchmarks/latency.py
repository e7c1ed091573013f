"""What pruning saves in time: encode, prefill, decode; dense and pruned, beside PyTorch, against measured ceilings.

    python benchmarks/latency.py                     on a CPU the 1B model in float32, on a GPU the 7B in bfloat16
    python benchmarks/latency.py --batch 4 16        larger batches (SparseVLM in PyTorch takes one prompt only)
    python benchmarks/latency.py --text 32 128       other numbers of words
    python benchmarks/latency.py --methods           every registered method at 192 tokens too
    python benchmarks/latency.py --methods fastv visionzip    these
    python benchmarks/latency.py --quick             a small model in a minute, to see that it works

Random weights at real sizes, random images; a prompt is `--text` words around one image. Everything compared is run in
turns; times are medians, "spread" is the interquartile range over the median.

- *ceilings*: a large matrix product, a large copy (bytes read and written) and a large sum (bytes read), measured in
  the same run. MFU is exact matmul FLOPs over time over the first; MBU the weights and cache that a decode step reads,
  over time over the second; "of read" the same over the third, since a decode step writes next to nothing.
- *allowed*: how much faster the pruned prefill could be. By rows: a decoder layer's matrix products are timed at the
  numbers of rows that they have in each layer, the best of the runs, which says what smaller products cost here. By
  roofline: per layer the larger of FLOPs over the product's rate and bytes of weights over the better of the other two.
- *answer*: the picture encoded, the prompt prefilled, and as many steps decoded as `--decode` says.
- *stages*: raters, scores, selection, recycling and compaction of all stages as one program of their own, with the
  gathering of the tokens that a pruning layer's feed-forward runs on.
- *queued*: milliseconds a call of five prefills under way at once. What one alone takes longer is the host's turn.
- *memory*: what the compiled program needs at once beyond parameters, as XLA has planned it.

PyTorch runs where it is installed (`--no-peers` leaves it out): `transformers` dense, and SparseVLM as the official
code goes about it (see `peers.py`), both with the same parameters; last logits are compared before anything is timed.
Writes results.json (after every batch), results.md and results.png into --out; the last line printed is the JSON.
"""

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs room on the same GPU

import argparse
import dataclasses
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from environment import environment
from kernels import profile
from latency_report import tables, write
from roofline import PARTS, Ceilings, ceilings, floor, layer_products, rows_of_layers, total_ms
from shapes import MODELS, alternate, random_params, random_pictures, tokens_of
from stages import setting

from sparsevlm_jax import methods, sparsify
from sparsevlm_jax.checkpoints.trees import flatten
from sparsevlm_jax.models import LlavaConfig
from sparsevlm_jax.models.families.family import DECODER, family_of
from sparsevlm_jax.models.nn.attention import Implementation, choose_implementation
from sparsevlm_jax.report import cost as accounting
from sparsevlm_jax.runtime import decode
from sparsevlm_jax.runtime.prefill import PrefillInputs, prefill
from sparsevlm_jax.sparsify import Bucket, ImageContext, SparsityConfig

BUDGETS = (192, 128, 64)
BEFORE = 8
"""Words in front of the image."""


class Case(NamedTuple):
    """A model at a size of batch, with its parameters on the device."""

    config: Any
    params: dict
    dtype: Any
    implementation: Implementation
    batch: int
    text: int

    @property
    def visual(self) -> int:
        return tokens_of(self.config)

    @property
    def bucket(self) -> Bucket:
        return Bucket(self.text, self.visual, fewest=self.visual)

    @property
    def static(self) -> dict[str, Any]:
        return dict(config=self.config, implementation=self.implementation)

    @property
    def encoder(self) -> dict:
        return {name: tree for name, tree in self.params.items() if name not in DECODER}

    @property
    def decoder(self) -> dict:
        return {name: tree for name, tree in self.params.items() if name in DECODER}

    def inputs(self, sparsity: SparsityConfig | None) -> PrefillInputs:
        ids = np.random.default_rng(0).integers(3, 1000, (self.batch, self.text + self.visual))
        ids[:, BEFORE : BEFORE + self.visual] = self.config.image_token_id
        pixels, layout = random_pictures(self.config, self.batch, self.dtype)
        encoded = jax.jit(partial(self.encode, **self.static, **_tower(sparsity)))(self.encoder, pixels)
        length = jnp.full(self.batch, ids.shape[1])
        context = (encoded.context or ImageContext())._replace(
            media=jnp.asarray(layout.media), cell=jnp.asarray(layout.cell)
        )
        ids = jnp.asarray(ids, jnp.int32)
        return PrefillInputs.of(ids, length, encoded.tokens, self.config.image_token_id, context)

    def pixel_values(self) -> Any:
        return random_pictures(self.config, self.batch, self.dtype)[0]

    @property
    def encode(self) -> Callable:
        return family_of(self.config).encode


def _tower(sparsity: SparsityConfig | None) -> dict[str, Any]:
    return dict(context="tower" in sparsity.needs, merging=sparsity.merging) if sparsity else {}


class Compiled(NamedTuple):
    """A program, the seconds that making it took (`cold_s`; `cached_s` out of the cache on disk), and what it needs."""

    call: Callable[..., Any]
    seconds: dict[str, float]
    working_mb: float


def compiled(function: Callable, *args: Any, times: int, **static: Any) -> Compiled:
    """Compiles once, into the cache on disk, or twice, out of it again."""
    seconds = {}
    for name in ("cold_s", "cached_s")[:times]:
        jax.clear_caches()
        start = time.perf_counter()
        program = jax.jit(partial(function, **static)).lower(*args).compile()
        seconds[name] = time.perf_counter() - start
    memory = program.memory_analysis()
    assert memory is not None  # XLA plans it for every program
    return Compiled(program, seconds, (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 1e6)


def all_stages(case: Case, sparsity: SparsityConfig) -> Callable[[], Any]:
    """Every stage of a method as one program, on random streams of the sizes that enter them."""
    config, bucket = case.config.text, case.bucket
    plans = sparsity.plan(config.num_hidden_layers, bucket)
    given = [setting(config, plan.visual, case.dtype, text=case.text, batch=case.batch) for plan in plans]

    def run(given: list[dict[str, Any]]) -> Any:
        stream = given[0]["stream"]
        raters = sparsify.select_raters(
            stream.hidden, stream.is_visual, ~stream.is_visual, question_capacity=case.text, rule=sparsity.raters
        )
        left = []
        for plan, own in zip(plans, given, strict=True):
            total = jnp.full(case.batch, case.visual)
            decision = sparsify.decide(own["stream"], own["attention"], total, plan, sparsity)
            stream = own["stream"]
            if plan.skips and "hidden" not in sparsity.needs:  # what choosing the feed-forward's tokens takes
                is_needed = sparsify.needed(stream, decision, plan)
                slots, _ = sparsify.slots_of(is_needed, plan.needed)
                few = jnp.take_along_axis(stream.hidden, slots[..., None], axis=1)
                stream = stream._replace(hidden=sparsify.to_slots(few, is_needed))
            left.append(sparsify.apply(stream, decision, plan, sparsity)[0].hidden)
        return raters, left

    return partial(jax.jit(run), given)


def variants_of(case: Case, names: list[str], budgets: tuple[int, ...]) -> dict[str, SparsityConfig | None]:
    found: dict[str, SparsityConfig | None] = {"dense": None}
    found |= {f"sparsevlm {tokens}": SparsityConfig.sparsevlm(tokens) for tokens in budgets}
    for name in names:
        method = methods.create(name, budgets[0])
        assert method is not None  # only "dense" is
        if "sizes" in method.needs and case.implementation == "cudnn":
            print(f"left out: {name}, whose tokens count their size, needs XLA attention")
            continue
        found[f"{name} {budgets[0]}"] = method
    return found


def measure(case: Case, options: argparse.Namespace, rates: Ceilings) -> dict[str, Any]:
    """All of one model and batch: a row for every variant, and what they were held against."""
    found = variants_of(case, options.methods, options.budgets)
    rows: dict[str, dict[str, Any]] = {name: {} for name in found}
    calls: dict[str, Callable[[], Any]] = {}
    steps: dict[str, Callable[[], Any]] = {}
    images = case.pixel_values()
    compile_once = partial(compiled, times=1 if options.once else 2)
    tower = compile_once(case.encode, case.encoder, images, **case.static)
    encoders: dict[str, Callable[[], Any]] = {"dense": partial(tower.call, case.encoder, images)}
    logits: dict[str, np.ndarray] = {}
    for name, sparsity in found.items():
        inputs = case.inputs(sparsity)
        static = dict(**case.static, sparsity=sparsity, bucket=case.bucket, new_tokens=options.decode)
        program = compile_once(prefill, case.decoder, inputs, **static)
        calls[name] = partial(program.call, case.decoder, inputs)
        state = calls[name]()
        logits[name] = np.asarray(state.logits, np.float32)
        limit = jnp.int32(options.decode + 1)  # the first token is prefill's, each other one takes a step
        args = (case.decoder, state.logits, state.state, limit)
        answer = compile_once(decode.generate, *args, buffer=options.decode + 1, **case.static)
        steps[name] = partial(answer.call, *args)
        tokens = rows_of_layers(case.config.text, case.bucket, sparsity)
        passing = dict(enumerate(tokens.feed_forward))
        rows[name] |= dict(
            **{name: program.seconds[name] + answer.seconds[name] for name in program.seconds},
            working_mb=program.working_mb,
            kv_mb=state.state.cache.nbytes / 1e6,
            tokens_entering=float(np.mean(tokens.entering)) - case.text,
            flops=case.batch * accounting.decoder_flops(tokens.entering, case.config.text, passing),
            layer_rows=tokens,
        )
        if sparsity and sparsity.merging:
            encoders[name] = partial(
                jax.jit(partial(case.encode, **case.static, **_tower(sparsity))), case.encoder, images
            )
    peers = _peers(case, options, found, logits) if options.peers else {}
    calls |= {name: peer.prefill for name, peer in peers.items()}
    dense_peers = {name: peer for name, peer in peers.items() if hasattr(peer, "decode")}
    steps |= {name: partial(peer.decode, options.decode) for name, peer in dense_peers.items()}
    encoders |= {name: peer.encode for name, peer in dense_peers.items()}
    for name, times in alternate(calls, repeats=options.repeats).items():
        rows.setdefault(name, {}).update(prefill_ms=statistics.median(times), spread=_spread(times))
    for name, times in alternate(steps, repeats=options.repeats).items():
        rows[name]["decode_ms"] = statistics.median(times) / options.decode
    for name, times in alternate(encoders, repeats=options.repeats).items():
        rows[name]["encode_ms"] = statistics.median(times)
    for name in found if options.profile else ():
        rows[name]["queued_ms"] = queued(calls[name])
        for part, runs in (("prefill", calls), ("decode", steps)):
            if taken := profile(runs[name]):
                rows[name][f"{part}_kernels"] = taken._asdict()
    _rates(case, rows, rates, options)
    if options.bounds:
        _hold_against(case, rows, found, rates, options)
    title = dict(model=options.model, dtype=case.dtype.name, batch=case.batch, text=case.text, visual=case.visual)
    return dict(**title, rows=rows)


def queued(run: Callable[[], Any], *, calls: int = 5) -> float:
    """Milliseconds a call of `calls` that are all asked for before the first is waited for; one warm-up."""
    jax.block_until_ready(run())
    start = time.perf_counter()
    jax.block_until_ready([run() for _ in range(calls)])
    return (time.perf_counter() - start) / calls * 1e3


def _spread(times: list[float]) -> float:
    low, high = np.quantile(times, (0.25, 0.75))
    return float((high - low) / statistics.median(times))


def _rates(case: Case, rows: dict[str, dict[str, Any]], rates: Ceilings, options: argparse.Namespace) -> None:
    """The speed-up over dense, whole answers, MFU and MBU."""
    dense, read = rows["dense"], _weights(case) + case.params["language_model"]["embed_tokens"]["embedding"].nbytes
    for row in rows.values():
        row["speedup"] = dense["prefill_ms"] / row["prefill_ms"]
        if "decode_ms" in row:
            encode_ms = row.get("encode_ms", dense["encode_ms"])
            row["answer_ms"] = encode_ms + row["prefill_ms"] + options.decode * row["decode_ms"]
            row["tokens_per_s"] = case.batch / (row["decode_ms"] / 1e3)
        if "layer_rows" in row:
            row["mfu"] = row["flops"] / (row["prefill_ms"] / 1e3) / rates.product
            bytes_per_s = (read + row["kv_mb"] * 1e6) / (row["decode_ms"] / 1e3)
            row |= dict(mbu=bytes_per_s / rates.copy, of_read=bytes_per_s / rates.read)


def _weights(case: Case) -> int:
    """Bytes of the decoder's layers."""
    return sum(leaf.nbytes for name, leaf in flatten(case.decoder).items() if ".layers." in name)


def _hold_against(
    case: Case,
    rows: dict[str, dict[str, Any]],
    found: dict[str, SparsityConfig | None],
    rates: Ceilings,
    options: argparse.Namespace,
) -> None:
    """The speed-up over dense beside what rows and roofline allow, the share of the stages."""
    layers = min(4, case.config.text.num_hidden_layers)
    products = {
        (part, n): layer_products(case.config.text, case.params, part, n * case.batch, layers)
        for row in rows.values()
        for part, counts in zip(PARTS, row.get("layer_rows", ((), ())), strict=True)
        for n in counts
    }
    times = alternate(products, repeats=options.repeats)
    product_ms = {key: min(values) / layers for key, values in times.items()}
    own = {name: sparsity for name, sparsity in found.items() if sparsity and name.startswith("sparsevlm ")}
    stages = alternate({name: all_stages(case, sparsity) for name, sparsity in own.items()}, repeats=options.repeats)
    dense, weights = rows["dense"], _weights(case)
    for name, row in rows.items():
        if "layer_rows" not in row:
            continue
        row["allowed_by_rows"] = total_ms(dense["layer_rows"], product_ms) / total_ms(row["layer_rows"], product_ms)
        lowest = partial(floor, case.config.text, case.batch, weights=weights, rates=rates)
        row["allowed_by_roofline"] = lowest(dense["layer_rows"]) / lowest(row["layer_rows"])
        row["share_reached"] = row["speedup"] / row["allowed_by_rows"]
        if name in stages:
            row["stages_of_dense"] = statistics.median(stages[name]) / dense["prefill_ms"]


def _peers(
    case: Case, options: argparse.Namespace, found: dict[str, SparsityConfig | None], logits: dict[str, np.ndarray]
) -> dict[str, Any]:
    """PyTorch's programs, their last logits compared with ours."""
    try:
        import peers
        import torch
    except ImportError as error:
        print(f"no peers: {error}")
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if (device == "cuda") != (jax.default_backend() != "cpu"):
        print("no peers: PyTorch and JAX are on different devices")
        return {}
    if not isinstance(case.config, LlavaConfig):
        print("no peers: they are of LLaVA-1.5 alone")
        return {}
    torch.set_num_threads(os.cpu_count() or 1)
    exact = case.dtype == jnp.float32
    dtype = torch.float32 if exact else torch.bfloat16
    inputs = case.inputs(None)
    config = dataclasses.replace(case.config, eos_token_ids=(2,))
    model = peers.build(config, case.params, dtype, device)
    with torch.inference_mode():
        table = model.get_input_embeddings()
        ids = torch.from_numpy(np.where(inputs.input_ids == case.config.image_token_id, 0, inputs.input_ids)).to(device)
        embeddings = table(ids.long())
        tokens = peers.to_torch(inputs.encoded.tokens, dtype, device)
        embeddings[:, BEFORE : BEFORE + case.visual] = tokens.reshape(case.batch, case.visual, -1)
    images = peers.to_torch(case.pixel_values(), dtype, device)
    made: dict[str, Any] = {
        "transformers": peers.Dense(model, embeddings, images, compiled=device == "cuda" and not options.eager)
    }
    _agree("transformers", made["transformers"].prefill(), logits["dense"], exact=exact)
    if case.batch == 1:
        for tokens in options.budgets:
            sparsity = found[f"sparsevlm {tokens}"]
            assert sparsity is not None
            plans = sparsity.plan(case.config.text.num_hidden_layers, case.bucket)
            name = f"sparsevlm in torch {tokens}"
            made[name] = peers.Sparse(model, embeddings, BEFORE, case.visual, sparsity, plans)
            _agree(name, made[name].prefill(), logits[f"sparsevlm {tokens}"], exact=exact)
    if options.torch_bf16 and exact:
        half = peers.build(config, case.params, torch.bfloat16, device)
        made["transformers bf16"] = peers.Dense(half, embeddings.bfloat16(), images.bfloat16(), compiled=False)
    return made


def _agree(name: str, theirs: Any, ours: np.ndarray, *, exact: bool) -> None:
    """Raises ValueError where float32 outputs differ by more than rounding: then the two did not do the same."""
    error = float(np.linalg.norm(theirs.cpu().numpy() - ours) / np.linalg.norm(ours))
    print(f"{name}: last logits differ from ours by {error:.1e} of their norm", flush=True)
    if exact and error > 1e-3:
        raise ValueError(f"{name} computes something else: its last logits differ from ours by {error:.1e}")


def main() -> None:
    gpu = jax.default_backend() != "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="7b" if gpu else "1b")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16] if gpu else [1])
    parser.add_argument("--text", type=int, nargs="+", default=[64], help="words around the image (default: 64)")
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--decode", type=int, default=32 if gpu else 8, help="tokens decoded (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15 if gpu else 5)
    others = sorted(set(methods.METHODS) - {"dense", "sparsevlm"})
    parser.add_argument("--methods", nargs="*", choices=others, help="these methods too; every one where none is named")
    parser.add_argument(
        "--torch-bf16", action="store_true", help="`transformers` in bfloat16 too, where ours is float32"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16" if gpu else "float32")
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument("--eager", action="store_true", help="on a GPU, PyTorch without its compiler")
    parser.add_argument("--once", action="store_true", help="do not compile a second time, out of the cache on disk")
    parser.add_argument("--no-bounds", dest="bounds", action="store_false", help='neither "allowed" nor "stages"')
    parser.add_argument("--profile", action="store_true", help="on a GPU, the kernels that take longest too")
    parser.add_argument(
        "--cache", type=Path, help='keep compiled programs there: the next run\'s "compile s" are then none'
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("latency"))
    options = parser.parse_args()
    options.budgets = tuple(options.budgets)
    options.methods = others if options.methods == [] else options.methods or []
    if options.quick:
        options.model, options.batch, options.repeats, options.decode = "0.1b", [1], 3, 4
        options.budgets = (64, 32)
    config = dataclasses.replace(MODELS[options.model], eos_token_ids=(-1,))  # so that no answer ends early
    dtype = jnp.dtype(options.dtype)
    implementation = choose_implementation(dtype, head_dim=config.text.head_dim)
    params = random_params(config, dtype)
    options.out.mkdir(parents=True, exist_ok=True)
    rates = ceilings(dtype, options.quick)
    product, copy, read = rates.product / 1e12, rates.copy / 1e9, rates.read / 1e9
    print(f"{environment()}  product {product:.2f} TFLOP/s, copy {copy:.1f} GB/s, read {read:.1f} GB/s", flush=True)
    record = dict(**environment(), model=options.model, dtype=jnp.dtype(dtype).name, **rates._asdict())
    results = []
    with tempfile.TemporaryDirectory() as own:
        jax.config.update("jax_compilation_cache_dir", str(options.cache or own))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        for batch, text in itertools.product(options.batch, options.text):
            case = Case(config, params, dtype, implementation, batch, text)
            results.append(measure(case, options, rates))
            print(f"\n{tables(results[-1])}\n", flush=True)
            (options.out / "results.json").write_text(json.dumps(record | dict(results=results)) + "\n")
    write(results, options.out)
    print(json.dumps(record | dict(results=results)))


if __name__ == "__main__":
    main()
