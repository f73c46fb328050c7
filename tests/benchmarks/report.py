"""The result file, and what is shown of it: a table for the terminal, a page for the docs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")
PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
HEADER = ("row", "ours", "theirs", "ratio", "spread", "must", "aim", "verdict")

Results = Mapping[str, Mapping[str, Any]]


def load(path: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of a result file, if there is one."""
    return json.loads(path.read_text()) if path.exists() else {}


def merge(path: Path, rows: Results) -> None:
    """Write rows to a result file, one to a line; others keep their entry."""
    merged = load(path) | dict(rows)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in merged.items())
    path.write_text(f"{{\n{lines}\n}}\n")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cells(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what the table says of a row."""
    sign = "≥" if row["measure"] == "rate" else "≤"
    goals = [f"{sign} {_number(row[goal])}" for goal in ("must", "aim")]
    if "error" in row:
        return (name, "", "", "", "", *goals, "FAILED")
    theirs, ratio = "", ""
    ours = f"{_number(row['ours']['median'])} {row['unit']}"
    if row["best"] is not None:
        best = row["theirs"][row["best"]]
        theirs = f"{_number(best['median'])} ({best['name']})"
        ratio = f"{row['ratio']:.2f}"
    spread = " - ".join(map(_number, row["spread"]))
    return (name, ours, theirs, ratio, spread, *goals, row["verdict"])


def table(results: Results) -> str:
    """Return an aligned table, with the errors of rows that failed below it."""
    lines = [HEADER, *(_cells(name, row) for name, row in results.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)) for line in lines]
    errors = [f"\n{name} failed: {row['error']}" for name, row in results.items() if "error" in row]
    return "\n".join(line.rstrip() for line in [*text, *errors])


def page(results: Results) -> str:
    """Return the page of the docs."""
    head = (
        "| work | ours | best of theirs | ratio | spread | at least | aim | verdict |",
        "|---" * 8 + "|",
    )
    lines = [
        "| " + " | ".join((row["title"], *_cells(name, row)[1:])) + " |"
        for name, row in results.items()
    ]
    details = [f"### `{name}`: {row['title']}\n\n{_details(row)}" for name, row in results.items()]
    versions: dict[str, set[str]] = {}
    for row in results.values():
        for package, version in row.get("versions", {}).items():
            versions.setdefault(package, set()).add(version)
    told = ", ".join(f"{k} {' and '.join(sorted(v))}" for k, v in sorted(versions.items()))
    return "\n".join(
        [
            "# Benchmarks",
            "",
            "Made by `python -m tests.benchmarks.report` from `tests/benchmarks/results.json`.",
            "",
            "Every contender runs in a process of its own, which is stopped while another one runs. After a",
            "pass that warms up, passes alternate; medians are shown, and a ratio is of medians, ours over the",
            "best of theirs. Its spread is over single rounds. Sums over what is delivered agree in every pass.",
            "",
            *head,
            *lines,
            "",
            "## Settings and passes",
            "",
            "\n\n".join(details),
            "",
            "## Versions",
            "",
            told,
            "",
        ]
    )


def _details(row: Mapping[str, Any]) -> str:
    m = row["machine"]
    where = (
        f"`{row['command']}`, {row['date']}, on {m['cpu']}, {m['cores']} cores, {m['memory_gb']} GB; "
        f"load {row['load'][0]} before and {row['load'][1]} after."
    )
    if "error" in row:
        return f"FAILED: {row['error'].splitlines()[-1]}\n\n{where}"
    lines = [
        f"- {each['name']}: {_number(each['median'])} ({_number(each['min'])} - {_number(each['max'])}) "
        f"{row['unit']}; {each['cpu_seconds']:.3g} CPU seconds a pass; peak memory {_peak(each)}"
        + (f"; {each['label']}" if each["label"] else "")
        for each in (row["ours"], *row["theirs"])
    ]
    return "\n".join([*lines, "", f"{row['rounds']} rounds; {where}"])


def _peak(each: Mapping[str, Any]) -> str:
    known = [peak for peak in each["peak_mb"] if peak is not None]
    return f"{max(known):,.0f} MB" if known else "unknown"


if __name__ == "__main__":
    PAGE.write_text(page(load(RESULTS)))
