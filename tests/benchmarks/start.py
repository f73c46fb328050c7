"""
Where the time of the first batch goes: ``python -m tests.benchmarks.start STORE`` (a store of cells).

Medians of nine new processes; each line is what comes on top of the lines above it.
"""

import statistics
import subprocess
import sys

STEPS = {
    "numpy, pandas, xarray": "import xarray",
    "dask.array (with scipy)": "import dask.array",
    "numba and its registries": "import numba, numcodecs.blosc; numba.njit(lambda: 0)()",
    "xloader": "import xloader as xl; xl.open_cells; xl.Loader",
    "open_cells": "ds = xl.open_cells(sys.argv[1])",
    "Loader": "loader = xl.Loader(ds, batch_size=4096, shuffle=True, memory_budget='256MB')",
    "first batch": "batch = next(iter(loader))",
}


def seconds(store: str) -> list[float]:
    code = "import sys, time\n" + "\n".join(
        f"t = time.perf_counter()\n{step}\nprint(time.perf_counter() - t)"
        for step in STEPS.values()
    )
    args = [sys.executable, "-c", code, store]
    return list(map(float, subprocess.check_output(args, text=True).split()))


if __name__ == "__main__":
    taken = [seconds(sys.argv[1]) for _ in range(9)]
    medians = [statistics.median(column) * 1e3 for column in zip(*taken, strict=True)]
    for name, ms in zip(STEPS, medians, strict=True):
        print(f"{name:25s} {ms:6.0f} ms")
    print(f"{'sum':25s} {sum(medians):6.0f} ms")
