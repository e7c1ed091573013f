"""Trains the bundled model: `python -m examples.train_demo.train --out RUN`.

The stages of `curriculum` follow one another, each starting from the last checkpoint of the one before. A run that was
stopped continues from its newest checkpoint, bit for bit as if it had not been: scenes follow from the step alone.
"""

import argparse
import functools
import itertools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from sparsevlm_jax.sparsify import SparsityConfig

from . import language, pruned, tower
from .curriculum import PRUNED, STAGES, Stage
from .progress import Progress

Params = dict[str, Any]
Loss = Callable[[Params, Any], tuple[jax.Array, dict[str, jax.Array]]]


class State(NamedTuple):
    """What a checkpoint holds: all that the next step depends on."""

    params: Params
    optimizer: optax.OptState
    step: jax.Array


class Task(NamedTuple):
    """A stage made concrete: `frozen` parameters are read but not trained."""

    params: Params
    frozen: Params
    batch: Callable[[int], Any]
    loss: Loss


def schedule(stage: Stage) -> optax.Schedule:
    """Linear warm-up, a constant rate, a cosine down to a thirtieth over the last `decay` steps."""
    pieces = [
        optax.linear_schedule(0.0, stage.rate, stage.warm_up),
        optax.constant_schedule(stage.rate),
        optax.cosine_decay_schedule(stage.rate, max(1, stage.decay), 1 / 30),
    ]
    return optax.join_schedules(pieces, [stage.warm_up, stage.steps - stage.decay])


def optimizer(stage: Stage) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule(stage), b2=0.98, weight_decay=0.02))


def task(stage: Stage, before: Params, seed: int) -> Task:
    """What a stage trains and on what, given all parameters there are before it (none before the first)."""
    scenes = functools.partial(tower.batch, size=stage.batch, mix=stage.lesson.mix)
    if stage.trains == "tower":
        return Task(before or tower.new_params(seed), {}, scenes, tower.loss)
    params = {name: part for name, part in before.items() if name != "head"}
    if "language_model" not in params:
        params = {**_with_language(params["vision_tower"], stage, seed), **params}
    params = language.grow(params, stage.layers)
    if stage.tokens is not None:
        params = language.unit_norm(params)
    whole = language.config(stage.layers)
    trained, frozen = _part(params, _TRAINED[stage.trains])
    if stage.trains == "projector":
        return Task(trained, frozen, scenes, functools.partial(language.align_loss, whole=whole))
    asked = functools.partial(language.batch, size=stage.batch, lesson=stage.lesson)
    forward = language.logits
    if stage.tokens is not None:
        forward = functools.partial(pruned.logits, sparsity=SparsityConfig.sparsevlm(stage.tokens))
    return Task(trained, frozen, asked, functools.partial(language.loss, whole=whole, forward=forward))


_TRAINED: Final = {
    "projector": ("multi_modal_projector",),
    "language": ("multi_modal_projector", "language_model", "lm_head"),
    "all": ("vision_tower", "multi_modal_projector", "language_model", "lm_head"),
}


def _part(params: Params, names: tuple[str, ...]) -> tuple[Params, Params]:
    return {name: params[name] for name in names}, {name: params[name] for name in params if name not in names}


def _with_language(vision_tower: Params, stage: Stage, seed: int) -> Params:
    pixel_values = jnp.asarray(tower.batch(0, 16, stage.lesson.mix).pixel_values)
    scale = float(jnp.std(tower.features(vision_tower, pixel_values)))
    return language.new_params(seed, stage.layers, vision_tower, scale)


def run_stage(
    stage: Stage,
    job: Task,
    folder: Path,
    *,
    save_every: int = 250,
    stop_after: float = float("inf"),
    workers: int = 0,
) -> State:
    """Trains a stage to its end, from its newest checkpoint if it has one.

    Args:
        folder: where its checkpoints lie, one folder per saved step.
        save_every: steps between checkpoints.
        stop_after: seconds after which to save and return early.
        workers: processes that draw scenes; 0 draws them on a thread of this one.
    """
    rule = optimizer(stage)
    state = State(job.params, rule.init(job.params), jnp.int32(0))
    if (newest := newest_checkpoint(folder)) is not None:
        state = restore(newest, state)
    everywhere, rows = _shardings()
    state, frozen = jax.device_put((state, job.frozen), everywhere)
    update = jax.jit(functools.partial(_update, rule=rule, loss=job.loss), donate_argnums=0)
    progress, began = Progress(stage.name, stage.steps, stage.batch), time.monotonic()
    for step, data in _ahead(job.batch, int(state.step), stage.steps, workers):
        state, metrics = update(state, frozen, jax.device_put(data, rows))
        progress.tell(step + 1, metrics)
        late = time.monotonic() - began > stop_after
        if (step + 1) % save_every == 0 or step + 1 == stage.steps or late:
            ocp.save(str(folder / f"{step + 1:06d}"), state._asdict())
        if late:
            break
    return state


def _shardings() -> tuple[NamedSharding, NamedSharding]:
    """The state on every device, the rows of a batch shared out among them."""
    mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("rows"))


def _update(state: State, frozen: Params, data: Any, *, rule: optax.GradientTransformation, loss: Loss):
    whole = lambda params: loss({**params, **frozen}, data)  # noqa: E731
    (value, accuracy), gradient = jax.value_and_grad(whole, has_aux=True)(state.params)
    updates, memory = rule.update(gradient, state.optimizer, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    return State(params, memory, state.step + 1), {"loss": value, **accuracy}


def _ahead(make: Callable[[int], Any], first: int, last: int, workers: int) -> Iterator[tuple[int, Any]]:
    """Batches in order, the next ones drawn while one is trained on."""
    with _pool(workers) as pool:
        later = iter(range(first, last))
        coming = deque(pool.submit(make, step) for step in itertools.islice(later, 2 * max(1, workers)))
        for step in range(first, last):
            yield step, coming.popleft().result()
            coming.extend(pool.submit(make, step) for step in itertools.islice(later, 1))


def _pool(workers: int) -> Executor:
    """Processes of their own, as drawing holds Python's lock; spawned, as a fork of one that runs JAX may hang."""
    return ProcessPoolExecutor(workers, get_context("spawn")) if workers else ThreadPoolExecutor(1)


def newest_checkpoint(folder: Path) -> Path | None:
    """The last step that was saved whole; Orbax renames a checkpoint into place when it is complete."""
    steps = [path for path in folder.glob("*") if path.name.isdigit() and ocp.is_orbax_checkpoint(str(path))]
    return max(steps, key=lambda path: int(path.name), default=None)


def restore(path: Path, like: State | None) -> State:
    """A checkpoint, on the default device: in the tree of `like`, or in the plain one that it was saved with."""
    here = jnp.zeros(()).sharding
    saved = ocp.metadata(str(path)).metadata if like is None else like._asdict()
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), saved)
    return State(**ocp.load(str(path), abstract))


def trained(out: Path, stages: tuple[Stage, ...] = STAGES) -> Params:
    """All parameters of a run as the newest checkpoints of these stages have them; empty where there is none."""
    params: Params = {}
    for stage in stages:
        if (newest := newest_checkpoint(out / stage.name)) is not None:
            params |= restore(newest, None).params
    return params


def run(
    out: Path,
    *,
    seed: int = 0,
    minutes: float = float("inf"),
    stages: tuple[Stage, ...] = STAGES,
    workers: int = 0,
) -> Params:
    """Goes through the stages, from the last that has a checkpoint.

    Returns:
        All parameters as they stand at the end, or when the time was up.
    """
    began = time.monotonic()
    reached = [index for index, stage in enumerate(stages) if newest_checkpoint(out / stage.name)]
    first = max(reached, default=0)
    params = trained(out, stages[:first])
    for stage in stages[first:]:
        job = task(stage, params, seed)
        left = minutes * 60 - (time.monotonic() - began)
        state = run_stage(stage, job, out / stage.name, stop_after=left, workers=workers)
        params = {**state.params, **job.frozen}
        if int(state.step) < stage.steps:
            break
    return params


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.train_demo.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an existing one is continued")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="save and stop after this long")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that draw scenes (all cores)")
    parser.add_argument(
        "--pruned", metavar="TOKENS", help="end with a stage that keeps so many image tokens, or a share"
    )
    options = parser.parse_args()
    # Two devices of a core each train a fifth faster than one of two cores; a batch must divide among them.
    jax.config.update("jax_num_cpu_devices", math.gcd(8, os.cpu_count() or 1))
    stages = STAGES if options.pruned is None else (*STAGES, PRUNED._replace(tokens=options.pruned))
    run(options.out.absolute(), seed=options.seed, minutes=options.minutes, stages=stages, workers=options.workers)


if __name__ == "__main__":
    main()
