"""
Passes of contenders, each in a process of its own, interleaved and compared.

A module of rows has `ROWS: tuple[Row, ...]`. A contender is made by a function
``make(folder, **options)``, which returns a function without arguments: one whole pass, which returns
``(n, check)``, or a `Pass` where it takes its own time.
"""

import hashlib
import importlib.util
import json
import multiprocessing
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

ROOT = Path(__file__).parents[2]
Measure = Literal["rate", "ms", "peak", "amount"]

# what a loader imports, at the latest when it reads; it does not count as memory of a pass
IMPORTS = ("xloader", "dask.array", "h5py", "numba", "scipy.sparse", "xarray", "zarr")


@dataclass
class Pass:
    """What one pass took, and sums over what it delivered."""

    seconds: float
    n: int
    check: dict[str, float]
    peak_mb: float | None = None
    cpu: float = 0.0


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a row."""

    name: str
    make: str  # "module:function"
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    imports: tuple[str, ...] = ()  # before the memory that counts as its own
    small: Mapping[str, Any] = field(default_factory=dict)  # options where data are small


@dataclass(frozen=True)
class Row:
    """
    A goal: ours over the best of theirs, or an absolute value where there are no peers.

    `measure` is what is compared: samples per second, or what should be low: milliseconds per
    sample, peak memory in MB, or the amount `n`.
    """

    name: str
    title: str
    unit: str
    ours: Contender
    theirs: tuple[Contender, ...]
    must: float
    aim: float
    data: Callable[[Path, bool], None]
    needs: tuple[str, ...] = ()
    small: Mapping[str, Any] = field(default_factory=dict)  # the same for every contender
    measure: Measure = "rate"
    rounds: int | None = None  # instead of what the command says
    only_large: bool = False

    def skip_reason(self, *, small: bool) -> str | None:
        """Say why the row cannot run here."""
        missing = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if missing:
            return f"{', '.join(missing)} not installed"
        return "needs the large data" if small and self.only_large else None


class Failure(Exception):
    """A contender failed, or delivered something else."""


def apart(function: Callable[..., None], *args: Any) -> None:
    """Call a function in a process of its own, so that its memory and settings are gone after."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(function, *args).result()


def code_stamp() -> str:
    """Return a digest of the code that writes stores, to know which ones are out of date."""
    digest = hashlib.sha256()
    package = ROOT / "xloader"
    for path in sorted([*package.glob("store/*.py"), package / "conversion.py"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def machine() -> dict[str, Any]:
    """Return what the results depend on, apart from the software."""
    cpu, memory = platform.processor(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*: (.*)", info.read_text())):
        cpu = found[1]
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gb": round(memory / 1e9)}


class _Child:
    """A process that waits, stopped, for its next pass."""

    def __init__(self, contender: Contender, folder: Path, options: Mapping[str, Any]) -> None:
        self.name = contender.name
        spec = {
            "make": contender.make,
            "folder": str(folder),
            "options": dict(options),
            "imports": contender.imports,
        }
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed on exit
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.child", json.dumps(spec)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # works on a stopped process, too
        self.process.communicate()
        self.log.close()

    def reply(self) -> Any:
        """Return the next answer and stop the process."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            msg = f"{self.name} died with status {self.process.wait()}: {self.log.read()[-4000:]}"
            raise Failure(msg)
        self.process.send_signal(signal.SIGSTOP)
        answer = json.loads(line)
        if "error" in answer:
            msg = f"{self.name}: {answer['error']}"
            raise Failure(msg)
        return answer

    def ask(self, question: str) -> Any:
        """Let the process go on until it has answered."""
        assert self.process.stdin is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return self.reply()


def compare(reference: Mapping[str, float], check: Mapping[str, float], name: str) -> None:
    """Refuse sums that are not the same."""
    if not check or reference.keys() != check.keys():
        msg = f"{name} checks {sorted(check)}, not {sorted(reference)}"
        raise Failure(msg)
    for key, value in check.items():
        if not abs(value - reference[key]) <= 1e-5 * abs(reference[key]):
            msg = f"{name} delivered {key} {value!r}, not {reference[key]!r}"
            raise Failure(msg)


@dataclass(frozen=True)
class Runs:
    """The timed passes of one contender, and the label it gave itself."""

    contender: Contender
    passes: list[Pass]
    versions: dict[str, str]


def run_row(
    row: Row, folder: Path, *, rounds: int, small: bool, done: dict[Any, list[Runs]]
) -> dict[str, Any]:
    """
    Run a row; return what the result file says of it, a failure included.

    `done` keeps passes for other rows with the same contenders.
    """
    begin = os.getloadavg()[0]
    result: dict[str, Any] = {
        "title": row.title,
        "unit": row.unit,
        "measure": row.measure,
        "must": row.must,
        "aim": row.aim,
        "small": small,
        "date": time.strftime("%Y-%m-%d"),
    }
    try:
        row.data(folder, small)
        key = repr((row.ours, row.theirs, row.small, row.rounds))
        if key not in done:
            some = row.rounds if row.rounds and not small else rounds
            done[key] = _run(row, folder, rounds=some, small=small)
        result |= _summary(row, done[key])
    except Exception as e:  # noqa: BLE001  a row that fails says so, and the others run
        result |= {"verdict": "FAILED", "error": str(e) if isinstance(e, Failure) else repr(e)}
    if small and "error" not in result:
        result["verdict"] = "not judged"
    return result | {"load": [round(begin, 2), round(os.getloadavg()[0], 2)]}


def _run(row: Row, folder: Path, *, rounds: int, small: bool) -> list[Runs]:
    """Run all passes of a row, each contender in turn, in alternating order."""
    with ExitStack() as stack:
        children, runs = [], []
        for contender in (row.ours, *row.theirs):
            reduced = {**row.small, **contender.small} if small else {}
            child = _Child(contender, folder, {**contender.options, **reduced})
            children.append(stack.enter_context(child))
            label = child.reply()["label"] or contender.label
            runs.append(Runs(replace(contender, label=label), [], {}))
        for k in range(rounds + 1):
            for i in sorted(range(len(runs)), reverse=k % 2 == 0):
                runs[i].passes.append(Pass(**children[i].ask("pass")))
                compare(runs[-1].passes[0].check, runs[i].passes[-1].check, runs[i].contender.name)
        for child, each in zip(children, runs, strict=True):
            del each.passes[0]  # it warmed up
            each.versions.update(child.ask("versions"))
    return runs


def _value(row: Row, done: Pass) -> float:
    if row.measure == "peak":
        if done.peak_mb is None:
            msg = "peak memory is not known on this system"
            raise Failure(msg)
        return done.peak_mb
    if row.measure == "amount":
        return float(done.n)
    return done.n / done.seconds if row.measure == "rate" else 1e3 * done.seconds / done.n


def _summary(row: Row, runs: Sequence[Runs]) -> dict[str, Any]:
    """Return medians, ratios and the verdict."""
    values = [[_value(row, done) for done in each.passes] for each in runs]
    medians = [statistics.median(each) for each in values]
    sign = 1 if row.measure == "rate" else -1
    shown = [
        {
            "name": each.contender.name,
            "label": each.contender.label,
            "median": median,
            "min": min(value),
            "max": max(value),
            "n": each.passes[0].n,
            "seconds": [round(done.seconds, 6) for done in each.passes],
            "cpu_seconds": round(statistics.median(done.cpu for done in each.passes), 4),
            "peak_mb": [done.peak_mb for done in each.passes],
        }
        for each, value, median in zip(runs, values, medians, strict=True)
    ]
    best = max(range(1, len(runs)), key=lambda i: sign * medians[i], default=0)
    ratio = medians[0] / medians[best] if best else medians[0]
    ratios = [a / b if best else a for a, b in zip(values[0], values[best], strict=True)]
    verdict = "below goal"
    for name, goal in (("goal", row.must), ("aim", row.aim)):
        if sign * ratio >= sign * goal:
            verdict = name
    return {
        "rounds": len(ratios),
        "ours": shown[0],
        "theirs": shown[1:],
        "best": best - 1 if best else None,
        "ratio": ratio,
        "spread": [min(ratios), max(ratios)],
        "verdict": verdict,
        "versions": {k: v for each in runs for k, v in each.versions.items()},
    }
