"""What several runs of one prompt cost, side by side."""

from collections.abc import Callable, Iterator, Mapping

from .accounting import Report

_ROWS: tuple[tuple[str, Callable[[Report], float | None], str], ...] = (
    ("image tokens entering a layer, mean", lambda report: report.mean_entering_layers, "{:,.1f}"),
    ("image tokens left after a layer, mean", lambda report: report.mean_after_layers, "{:,.1f}"),
    ("GFLOPs, images and prompt", lambda report: report.flops / 1e9, "{:,.3g}"),
    ("MB of KV cache, prompt", lambda report: report.kv_bytes / 1e6, "{:,.3g}"),
    ("ms for the images", lambda report: report.timing.encode_ms, "{:,.1f}"),
    ("ms for the prompt", lambda report: report.timing.prefill_ms, "{:,.1f}"),
    ("ms for a token of the answer", lambda report: report.timing.decode_ms_per_token, "{:,.1f}"),
)


def table(reports: Mapping[str, Report]) -> Iterator[str]:
    """A line for each figure, a column for each of the named reports. A budget counts tokens left after a layer, a
    pruning layer counted as pruned already; what layers work on is what enters them."""
    label = max(len(name) for name, _, _ in _ROWS)
    width = max(12, *(len(name) + 2 for name in reports))
    yield " " * label + "".join(f"{name:>{width}}" for name in reports)
    for name, figure, form in _ROWS:
        values = [figure(report) for report in reports.values()]
        if any(value is not None for value in values):
            cells = ("-" if value is None else form.format(value) for value in values)
            yield f"{name:{label}}" + "".join(f"{cell:>{width}}" for cell in cells)
