"""What runs cost, as tables to read: one run, or several of one prompt side by side."""

from collections.abc import Callable, Collection, Iterator, Mapping
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cost import Report

_ROWS: tuple[tuple[str, "Callable[[Report], float | None]", str], ...] = (
    ("image tokens entering a layer, mean", lambda report: report.mean_entering_layers, "{:,.1f}"),
    ("image tokens left after a layer, mean", lambda report: report.mean_after_layers, "{:,.1f}"),
    ("GFLOPs, images and prompt", lambda report: report.flops / 1e9, "{:,.3g}"),
    ("MB of KV cache, prompt", lambda report: report.kv_bytes / 1e6, "{:,.3g}"),
    ("ms for the images", lambda report: report.timing.encode_ms, "{:,.1f}"),
    ("ms for the prompt", lambda report: report.timing.prefill_ms, "{:,.1f}"),
    ("ms for a token of the answer", lambda report: report.timing.decode_ms_per_token, "{:,.1f}"),
)


def table(reports: "Mapping[str, Report]") -> Iterator[str]:
    """A line for each figure, a column for each of the named reports. A budget counts tokens left after a layer, a
    pruning layer counted as pruned already; what layers work on is what enters them."""
    label = max(len(name) for name, _, _ in _ROWS)
    width = max(12, *(len(name) + 2 for name in reports))
    yield " " * label + "".join(f"{name:>{width}}" for name in reports)
    for name, cells in figures(reports.values()):
        yield f"{name:{label}}" + "".join(f"{cell:>{width}}" for cell in cells)


def html_table(report: "Report") -> str:
    """One report for a notebook: its method, and the figures of `table`."""
    rows = [("method", [report.method]), *figures([report])]
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(cell)}</td></tr>" for name, (cell,) in rows)
    return f"<table>{cells}</table>"


def figures(reports: "Collection[Report]") -> Iterator[tuple[str, list[str]]]:
    """Each figure's name, and what each report has for it."""
    for name, figure, form in _ROWS:
        values = [figure(report) for report in reports]
        if any(value is not None for value in values):
            yield name, ["-" if value is None else form.format(value) for value in values]
