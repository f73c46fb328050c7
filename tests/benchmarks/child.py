"""One contender in a process of its own: for every line that it reads, it runs a pass."""

import gc
import importlib
import importlib.metadata
import json
import os
import platform
import re
import resource
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.benchmarks.runner import Pass

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def _memory(field: str) -> int | None:
    """Return a field of the status of this process, in bytes."""
    if not _STATUS.exists():
        return None
    found = re.search(rf"{field}:\s+(\d+) kB", _STATUS.read_text())
    return 1024 * int(found[1]) if found else None


def _cpu() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure(run: Callable[[], Any], baseline: int | None) -> Pass:
    """Run one pass: its time, processor time, and peak memory above the baseline."""
    gc.collect()
    try:
        _RESET.write_text("5")  # the peak starts again from here
        known = baseline is not None
    except OSError:
        known = False
    cpu, start = _cpu(), time.perf_counter()
    result = run()
    seconds, cpu = time.perf_counter() - start, _cpu() - cpu
    done = result if isinstance(result, Pass) else Pass(seconds, *result)
    done.n, done.check = int(done.n), {k: float(v) for k, v in done.check.items()}
    done.cpu = cpu
    peak = _memory("VmHWM") if known else None
    if done.peak_mb is None and peak is not None and baseline is not None:
        done.peak_mb = round((peak - baseline) / 1e6, 1)
    return done


def versions() -> dict[str, str]:
    """Return the versions of all packages that were imported, and of Python."""
    found = {"python": platform.python_version()}
    for module, names in importlib.metadata.packages_distributions().items():
        if module in sys.modules:
            found |= {name: importlib.metadata.version(name) for name in names}
    if "xloader" in sys.modules:
        found["xloader"] = sys.modules["xloader"].__version__
    return found


def main() -> None:
    """Make the contender, then answer questions until there are no more."""
    spec = json.loads(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def reply(answer: Any) -> None:
        replies.write(json.dumps(answer) + "\n")
        replies.flush()

    try:
        for name in spec["imports"]:
            importlib.import_module(name)
        module, name = spec["make"].split(":")
        make = getattr(importlib.import_module(module), name)
        baseline = _memory("VmRSS")
        run = make(Path(spec["folder"]), **spec["options"])
        reply({"label": getattr(run, "label", "")})
        for line in sys.stdin:
            reply(asdict(measure(run, baseline)) if line == "pass\n" else versions())
    except Exception:  # noqa: BLE001  the parent tells it
        reply({"error": traceback.format_exc()})


if __name__ == "__main__":
    main()
