"""The command: `python -m tests.benchmarks`."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import cells_rows, contacts, report
from tests.benchmarks.runner import Row, Runs, machine, run_row

ROWS = (*cells_rows.ROWS, *contacts.ROWS)


def main(args: Sequence[str] | None = None, rows: Sequence[Row] = ROWS) -> int:
    """Run rows, print a table, and merge the results with those of earlier runs."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--small", action="store_true", help="little data and 2 rounds")
    parser.add_argument("--rows", help=f"of {','.join(row.name for row in rows)}; default: all")
    parser.add_argument("--rounds", type=int, help="timed passes of each contender; default: 5")
    parser.add_argument(
        "--data", type=Path, default=Path(tempfile.gettempdir()) / "xloader-bench", help="folder"
    )
    parser.add_argument(
        "--out", type=Path, help="result file; default: here, or with the small data if --small"
    )
    given = parser.parse_args(args)
    known = {row.name: row for row in rows}
    names = given.rows.split(",") if given.rows else list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no rows {unknown}; there are {list(known)}")
    folder = given.data / "small" if given.small else given.data
    out = given.out or (folder / "results.json" if given.small else report.RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    rounds = given.rounds or (2 if given.small else 5)
    command = "python -m tests.benchmarks" + (" --small" if given.small else "")
    command += f" --rounds {rounds}" + (f" --rows {given.rows}" if given.rows else "")
    done: dict[Any, list[Runs]] = {}
    results = {}
    for row in map(known.__getitem__, names):
        if reason := row.skip_reason(small=given.small):
            print(f"{row.name}: skipped, {reason}")
            continue
        print(f"{row.name} ...", flush=True)
        result = run_row(row, folder, rounds=rounds, small=given.small, done=done)
        results[row.name] = result | {"command": command, "machine": machine()}
        report.merge(out, {row.name: results[row.name]})
    print(report.table(results))
    return int(any(result["verdict"] == "FAILED" for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
