"""Imports run one way: no circle among modules, sparsify knows no model, and nothing above the families names one."""

import ast
import os
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import sparsevlm_jax

ROOT = Path(sparsevlm_jax.__file__).parent


def modules() -> dict[str, Path]:
    """Every module of the package by its name; `convert` is a link, which globs do not follow."""
    files = [Path(folder, name) for folder, _, names in os.walk(ROOT, followlinks=True) for name in names]
    named = {path: ".".join((ROOT.name, *path.relative_to(ROOT).with_suffix("").parts)) for path in files}
    return {name.removesuffix(".__init__"): path for path, name in named.items() if path.suffix == ".py"}


MODULES = modules()


def imported(name: str) -> Iterator[str]:
    """The modules of the package that are imported with `name`, at its top level."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                if inner in MODULES or source in MODULES:
                    yield inner if inner in MODULES else source


GRAPH = {name: set(imported(name)) - {name} for name in MODULES}


def test_no_module_imports_itself_by_way_of_others():
    assert len(GRAPH) > 100
    assert len(list(TopologicalSorter(GRAPH).static_order())) >= len(GRAPH)  # raises CycleError, which names the circle


def test_sparsify_imports_nothing_but_itself_and_the_checks_of_arguments():
    inside = "sparsevlm_jax.sparsify"
    found = {other for name, others in GRAPH.items() if name.startswith(inside) for other in others}
    assert {other for other in found if not other.startswith(inside)} == {"sparsevlm_jax.checks"}


def test_only_models_and_convert_name_a_family():
    families = {name for name in MODULES if name.startswith("sparsevlm_jax.models.families.")}
    families -= {"sparsevlm_jax.models.families.family"}
    naming = {name for name, others in GRAPH.items() if others & families}
    assert naming and all(name.startswith(("sparsevlm_jax.models", "sparsevlm_jax.convert")) for name in naming)
