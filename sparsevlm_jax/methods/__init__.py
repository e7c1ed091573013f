"""Token-reduction methods, each a value made of the same parts: where, how scored, how many, and what of the rest.

    from sparsevlm_jax import methods
    sv.generate(vlm, prompt, image, sparsity=methods.create("divprune", tokens=64))
    methods.METHODS                       # name -> function(tokens, ...) -> SparsityConfig

Every module of this package is imported here and may register methods: a new one is a new file, and a row in
docs/methods.md.
"""

import importlib
import pkgutil

from .registry import METHODS, TokenBudget, create, method, options, parse_options, says_budget, summary

__all__ = [
    "METHODS",
    "TokenBudget",
    "create",
    "method",
    "options",
    "parse_options",
    "says_budget",
    "summary",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
