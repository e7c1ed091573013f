"""What Orbax and its threads would report is silent while somebody reads or writes, and only then."""

import logging
import sys
import warnings
from contextlib import ExitStack

from sparsevlm_jax.checkpoints.storage import without_foreign_reports


def listeners():
    levels = [logging.getLogger(name).level for name in ("absl", "asyncio")]
    return levels, sys.unraisablehook, list(warnings.filters)


def test_of_two_at_once_the_last_that_ends_gives_the_listeners_back():
    before = listeners()
    first, second = ExitStack(), ExitStack()
    first.enter_context(without_foreign_reports())
    silent = listeners()
    second.enter_context(without_foreign_reports())
    first.close()
    assert listeners() == silent and silent != before
    second.close()
    assert listeners() == before
