"""
A map as large as a human one at 10 kb, converted within a memory budget.

``python -m tests.benchmarks.human FOLDER [MEMORY_BUDGET [CODEC]]`` simulates ``human.cool`` (308,600 bins, 24
chromosomes, contacts within and between them; takes about 10 minutes), converts it in a process of its own, and
prints how much memory that took.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from tests.measured import MB, status

BINSIZE = 10_000
BINS = [
    *(
        24_896,
        24_220,
        19_830,
        19_022,
        18_154,
        17_081,
        15_935,
        14_514,
        13_840,
        13_380,
        13_509,
        13_328,
    ),
    *(11_437, 10_705, 10_200, 9_034, 8_326, 8_038, 5_862, 6_445, 4_671, 5_082, 15_605, 5_486),
]
"""Bins of each chromosome, 1 to 22, X and Y."""
NEAR, FAR = 300, 60
"""Contacts of each bin with later ones of its chromosome and with those of other chromosomes."""
ROWS = 2_000


def simulate(path: Path) -> int:
    """Write the map; return how many pixels it has."""
    import cooler

    offsets = np.cumsum([0, *BINS])
    chrom = np.repeat([f"chr{k + 1}" for k in range(len(BINS))], BINS)
    start = np.concatenate([np.arange(n) for n in BINS]) * BINSIZE
    bins = pd.DataFrame({"chrom": chrom, "start": start, "end": start + BINSIZE})
    partial = path.with_suffix(".partial")
    cooler.create_cooler(
        str(partial),
        bins,
        _pixels(offsets),
        ordered=True,
        symmetric_upper=True,
        dtypes={"count": "int32"},
        ensure_sorted=False,
        boundscheck=False,
        dupcheck=False,
        triucheck=False,
    )
    partial.rename(path)
    return int(cooler.Cooler(str(path)).info["nnz"])


def _pixels(offsets: npt.NDArray[np.int64]) -> Iterator[pd.DataFrame]:
    """Yield pixels: distances within a chromosome are log-uniform, contacts between are uniform."""
    rng, n = np.random.default_rng(1), int(offsets[-1])
    for a in tqdm(range(0, n, ROWS), desc="simulate human.cool"):
        rows = np.arange(a, min(a + ROWS, n))
        room = offsets[np.searchsorted(offsets, rows, side="right")] - rows
        near = (
            np.exp(rng.random((len(rows), NEAR)) * np.log(room + 1)[:, None]).astype(np.int64) - 1
        )
        columns = np.minimum(rows[:, None] + near, (rows + room - 1)[:, None])
        far = rng.integers(0, n, (len(rows), FAR))
        columns = np.concatenate([columns, np.maximum(far, rows[:, None])], axis=1)
        keys, count = np.unique(rows[:, None] * n + columns, return_counts=True)
        yield pd.DataFrame({"bin1_id": keys // n, "bin2_id": keys % n, "count": count})


def convert(cool: str, store: str, budget: str, codec: str) -> None:
    """Convert it here, and print seconds, memory before and at the peak, and bytes of the store."""
    import xloader as xl

    before, begin = status("VmRSS"), time.perf_counter()
    xl.convert(cool, store, memory_budget=budget, codec=codec, overwrite=True)
    nbytes = sum(f.stat().st_size for f in Path(store).rglob("*") if f.is_file())
    seconds = time.perf_counter() - begin
    print(json.dumps({"s": seconds, "before": before, "peak": status("VmHWM"), "nbytes": nbytes}))


def main(folder: str, budget: str = "512MB", codec: str = "fast") -> None:
    """Simulate the map if it is not there, and convert it in a new process."""
    import cooler

    cool, store = Path(folder, "human.cool"), Path(folder, f"human.{codec}.xl")
    if not cool.exists():
        simulate(cool)
    code = f"from tests.benchmarks.human import convert; convert{(str(cool), str(store), budget, codec)}"
    told = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE).stdout
    found, n = json.loads(told.splitlines()[-1]), cooler.Cooler(str(cool)).info["nnz"]
    print(
        f"{n:,} pixels of {sum(BINS):,} bins in {found['s']:,.0f} s with memory_budget={budget!r}: peak of the "
        f"process {found['peak']:,.0f} MB ({found['before']:,.0f} MB before); store {codec!r} "
        f"{found['nbytes'] / MB:,.0f} MB, .cool {cool.stat().st_size / MB:,.0f} MB"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
