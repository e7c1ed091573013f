"""Tables and the figure of `latency.py`, also of several of its runs together.

    python benchmarks/latency_report.py latency/results.json other/results.json --out together
    python benchmarks/latency_report.py benchmarks/results/nvidia-h100-80gb-hbm3.json --part peers

Prints the tables; `--out` takes results.md and results.png.
"""

import argparse
import json
from pathlib import Path
from typing import Any

PREFILL = (
    ("encode ms", "encode_ms", ".1f"),
    ("prefill ms", "prefill_ms", ".1f"),
    ("spread", "spread", ".1%"),
    ("queued ms", "queued_ms", ".1f"),
    ("faster than dense", "speedup", ".2f"),
    ("allowed by rows", "allowed_by_rows", ".2f"),
    ("by roofline", "allowed_by_roofline", ".2f"),
    ("reached, of rows", "share_reached", ".0%"),
    ("stages", "stages_of_dense", ".2%"),
    ("MFU", "mfu", ".0%"),
)
ANSWER = (
    ("decode ms a step", "decode_ms", ".2f"),
    ("tokens/s", "tokens_per_s", ".1f"),
    ("MBU", "mbu", ".0%"),
    ("of read", "of_read", ".0%"),
    ("answer ms", "answer_ms", ".0f"),
    ("working MB", "working_mb", ".0f"),
    ("KV MB", "kv_mb", ".1f"),
    ("compile s", "cold_s", ".1f"),
    ("cached s", "cached_s", ".1f"),
)


def tables(result: dict[str, Any]) -> str:
    """Prefill, then what a whole answer takes, of one batch and number of words."""
    return "\n\n".join((_title(result), *(_table(result["rows"], columns) for columns in (PREFILL, ANSWER))))


def _title(result: dict[str, Any]) -> str:
    sizes = "batch {batch}, {visual} image tokens, {text} words"
    return ("{model}, {dtype}, " + sizes).format(**result)


def _table(rows: dict[str, dict[str, Any]], columns: tuple[tuple[str, str, str], ...]) -> str:
    columns = tuple(column for column in columns if any(column[1] in row for row in rows.values()))
    lines = ["| |" + "|".join(f" {head} " for head, _, _ in columns) + "|", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = [format(row[key], form) if key in row else "" for _, key, form in columns]
        if any(cells):
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Prefill of every variant, a panel for each batch; a mark where the roofline's speed-up over dense would be."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.8 + 0.36 * sum(len(r["rows"]) for r in results)), dpi=130, layout="constrained")
    axes = figure.subplots(len(results), squeeze=False, height_ratios=[len(r["rows"]) for r in results])[:, 0]
    for result, own in zip(results, axes, strict=True):
        names = list(result["rows"])[::-1]
        times = [result["rows"][name]["prefill_ms"] for name in names]
        colours = ["tab:blue" if "layer_rows" in result["rows"][name] else "tab:grey" for name in names]
        bars = own.barh(names, times, color=colours)
        own.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
        dense = result["rows"]["dense"]["prefill_ms"]
        for place, name in enumerate(names):
            if "allowed_by_roofline" in result["rows"][name]:
                own.plot(
                    [dense / result["rows"][name]["allowed_by_roofline"]] * 2, [place - 0.4, place + 0.4], "k-", lw=1.2
                )
        own.margins(x=0.1)  # room for the labels
        own.set(
            xlabel="prefill, ms (line: dense over the speed-up that the roofline allows)",
            title=_title(result),
        )
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--part", default="latency", help="of a file by gpu_pass.py (default: latency)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = [result for path in options.results for result in _results(json.loads(path.read_text()), options.part)]
    print("\n\n".join(map(tables, results)))
    if options.out:
        write(results, options.out)


def _results(record: dict[str, Any], part: str) -> list[dict[str, Any]]:
    """The results in a file by `latency.py`, or in one part of a file by `gpu_pass.py`."""
    return (record if "results" in record else record[part]["result"])["results"]


def write(results: list[dict[str, Any]], out: Path) -> None:
    """results.md and results.png in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.md").write_text("\n\n".join(map(tables, results)) + "\n")
    plot(results, out / "results.png")


if __name__ == "__main__":
    main()
