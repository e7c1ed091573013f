"""Whatever arguments the public functions are called with, they answer or refuse in this library's words.

The long form is `python tests/fuzz_calls.py --calls 10000`.
"""

import pytest

from tests.fuzz_calls import fuzz, world


@pytest.mark.slow
def test_calls_are_answered_or_refused_by_this_library(tmp_path):
    counts, faults = fuzz(world(tmp_path), 200, seed=0)
    assert not faults, "\n".join(faults)
    outcomes = [came for (_, came), count in counts.items() for _ in range(count)]
    assert outcomes.count("refused") > 100 and outcomes.count("answered") >= 3  # one call in sixty is right
