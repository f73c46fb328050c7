"""Windows of contact maps: balanced, log1p, float32, shuffled, in batches of 32."""

import importlib.util
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import xarray as xr

from tests.benchmarks.contacts_data import N_TINY, Cut, Map, big, tiny, yeast
from tests.benchmarks.runner import IMPORTS, Contender, Pass, Row

CUTS = {
    "yeast_diag": Cut(on_diagonal=True, stride=8),
    "yeast_grid": Cut(on_diagonal=False, stride=32, max_distance=100),
    "big_diag": Cut(on_diagonal=True, stride=128),
    "big_grid": Cut(on_diagonal=False, stride=128, max_distance=200),
}
BATCH = 32
PIPELINE = "zarrs" if importlib.util.find_spec("zarrs") else "zarr"

Array = npt.NDArray[Any]
Batches = Iterator[tuple[Array, Array]]
Run = Callable[[], tuple[int, dict[str, float]]]


class Windows:
    """What both sides deliver: the windows of a map, and which of them peers take."""

    def __init__(self, folder: Path, cut: str, first: int) -> None:
        self.path = folder / f"{cut.partition('_')[0]}.cool"
        self.map = Map.of(self.path)
        self.cut = CUTS[cut]
        self.places = self.cut.draw(self.map)
        self.first = np.random.default_rng(0).permutation(len(self.places))[:first]

    def in_bins(self, k: int) -> tuple[int, int]:
        """Return the first row and column of a window in bins of the whole map."""
        chrom, i, j = self.places[k]
        return int(self.map.offsets[chrom] + i), int(self.map.offsets[chrom] + j)

    def passes(self, batches: Callable[[], Batches], delivered: Array, at_least: int = 0) -> Run:
        """
        Return a pass over `batches`, repeated until `at_least` windows came.

        Sums over the windows that peers take are made here, before anything is timed; they grow
        differently with rows and columns, so that a transposed window shows. A pass only compares a
        few values of each window with those seen here.
        """
        ramp = np.linspace(0, 1, 256)
        tilted, missing = np.full((2, len(self.places)), np.nan)
        probes = np.zeros((len(self.places), 16), np.float32)
        while np.isnan(tilted[delivered]).any():
            for ids, x in batches():
                if x.dtype != np.float32 or x.shape[1:] != (256, 256):
                    msg = f"windows of {x.dtype} and shape {x.shape}"
                    raise TypeError(msg)
                tilted[ids] = np.einsum("nij,i,j", np.nan_to_num(x), 1 + ramp, 3 - ramp**2)
                missing[ids] = np.isnan(x).sum((1, 2))
                probes[ids] = x[:, 100, ::16]
        check = {
            "tilted sum": float(tilted[self.first].sum()),
            "missing": float(missing[self.first].sum()),
        }

        def run() -> tuple[int, dict[str, float]]:
            n = 0
            while n == 0 or n < at_least:
                for ids, x in batches():
                    if not np.array_equal(x[:, 100, ::16], probes[ids], equal_nan=True):
                        msg = f"windows {ids} changed between passes"
                        raise ValueError(msg)
                    n += len(ids)
            return n, check

        return run

    def one_by_one(self, load: Callable[[int, Array], None]) -> Run:
        """Return a pass over what peers take, of which `load` writes one window."""

        def batches() -> Batches:
            for k in range(0, len(self.first), BATCH):
                ids = self.first[k : k + BATCH]
                batch = np.empty((len(ids), 256, 256), np.float32)
                for window, out in zip(ids.tolist(), batch, strict=True):
                    load(window, out)
                yield ids, batch

        return self.passes(batches, self.first)


def expression(ds: xr.Dataset) -> xr.Dataset:
    """Balance and log1p as a user of xarray writes it."""
    w1, w2 = (ds[f"weight{k}"].astype("float32") for k in (1, 2))
    return ds.assign(count=np.log1p(ds["count"].astype("float32") * w1 * w2))


def shape_of(cut: Cut) -> Any:
    """Ask xloader for the same windows."""
    from xloader import windows

    if cut.on_diagonal:
        return windows.diagonal(size=cut.size, stride=cut.stride)
    return windows.grid(size=cut.size, stride=cut.stride, max_distance=cut.max_distance)


def ours(
    folder: Path,
    *,
    cut: str,
    first: int,
    source: str = "fast",
    plain: bool = False,
    at_least: int = 2_000,
) -> Run:
    """
    Load windows with xloader, reading and decoding the map in every epoch.

    A loader holds a map that fits its memory budget, and reads it in the first epoch only. Here it
    forgets the map after each epoch, as peers read in every pass.
    """
    import xloader as xl

    windows = Windows(folder, cut, first)
    transforms = xl.transforms.balance(), xl.transforms.log1p("count")
    loader = xl.Loader(
        xl.open_contacts(windows.path.with_suffix(f".{source}")),
        batch_size=min(BATCH, len(windows.places)),
        windows=shape_of(windows.cut),
        shuffle=True,
        remainder="drop",
        transform=expression if plain else xl.transforms.compose(*transforms),
    )
    epochs = itertools.count()
    expected = [windows.in_bins(k) for k in range(len(windows.places))]
    np.testing.assert_array_equal(loader.plan.windows.starts, expected)

    def batches() -> Batches:
        loader._pools.clear()
        loader.set_epoch(next(epochs))
        for batch in loader:
            yield batch["sample_id"].values, batch["count"].values

    return windows.passes(batches, np.arange(len(expected)), at_least)


def hictkpy(folder: Path, *, cut: str, first: int) -> Run:
    """Load windows with one open handle; those below the diagonal as their mirror image."""
    import hictkpy as htk

    windows = Windows(folder, cut, first)
    file = htk.File(str(windows.path), windows.map.binsize)

    def load(k: int, out: Array) -> None:
        chrom, i, j = windows.places[k].tolist()
        rows, columns = (windows.map.region(chrom, x, 256) for x in sorted((i, j)))
        counts = file.fetch(rows, columns, normalization="weight").to_numpy()
        np.log1p(counts if i <= j else counts.T, out=out)

    return windows.one_by_one(load)


def cooler(folder: Path, *, cut: str, first: int) -> Run:
    """Load windows with one open handle."""
    import cooler as clr

    windows = Windows(folder, cut, first)
    matrix = clr.Cooler(h5py.File(windows.path)).matrix(balance=True)

    def load(k: int, out: Array) -> None:
        i, j = windows.in_bins(k)
        np.log1p(matrix[i : i + 256, j : j + 256], out=out)

    return windows.one_by_one(load)


def xbatcher(folder: Path, *, cut: str, first: int) -> Run:
    """Load windows with a generator for each chromosome of a dense zarr array."""
    import xbatcher as xb
    import zarr

    if PIPELINE == "zarrs":
        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    windows = Windows(folder, cut, first)
    ds = xr.open_dataset(folder / "dense.zarr", engine="zarr", chunks=None, consolidated=False)
    ds = ds.assign_coords({name: ds[name].load() for name in ("weight1", "weight2")})
    ends, stride = windows.map.offsets, windows.cut.stride
    bins = [slice(a, b) for a, b in itertools.pairwise(ends)]
    generators = {
        chrom: xb.BatchGenerator(
            ds.isel(bin1=bins[chrom], bin2=bins[chrom]),
            input_dims={"bin1": 256, "bin2": 256},
            input_overlap={"bin1": 256 - stride, "bin2": 256 - stride},
        )
        for chrom in np.unique(windows.places[:, 0]).tolist()
    }
    across = (np.diff(ends) - 256) // stride + 1

    def load(k: int, out: Array) -> None:
        chrom, i, j = windows.places[k].tolist()
        window = generators[chrom][i // stride * int(across[chrom]) + j // stride]
        w1, w2 = window["weight1"].values, window["weight2"].values
        np.multiply(window["count"].values, w1[:, None], out=out)
        np.multiply(out, w2, out=out)
        np.log1p(out, out=out)

    return windows.one_by_one(load)


def labelled(folder: Path, *, at_least: int = 3_000) -> Run:
    """Make batches of windows so small that their labels are all the work."""
    import xloader as xl

    cut = Cut(on_diagonal=False, stride=1, size=8)
    ds = xl.open_contacts(folder / "tiny.fast")
    loader = xl.Loader(ds, batch_size=BATCH, windows=shape_of(cut), shuffle=True, remainder="drop")
    with h5py.File(folder / "tiny.cool") as f:
        i, j, count = (f[f"pixels/{name}"][:] for name in ("bin1_id", "bin2_id", "count"))
    dense = np.zeros((N_TINY, N_TINY), np.int64)
    dense[i, j] = dense[j, i] = count
    sums = np.lib.stride_tricks.sliding_window_view(dense, (8, 8)).sum((2, 3)).ravel()
    for batch in loader:
        np.testing.assert_array_equal(batch["count"].sum(("bin1", "bin2")), sums[batch.sample_id])
    check = {"contacts": float(dense.sum())}

    def run() -> tuple[int, dict[str, float]]:
        n = 0
        while n < at_least:
            for batch in loader:
                n += batch["count"].shape[0] // BATCH
        return n, check

    return run


def contacts_of(ds: xr.Dataset) -> dict[str, float]:
    """Return the sum of a symmetric map."""
    return {"contacts": float(ds["count"].sum(dtype=np.int64))}


def store_bytes(folder: Path, *, codec: str) -> Run:
    """Weigh the store of yeast."""
    import xloader as xl

    store = folder / f"yeast.{codec}"
    check = contacts_of(xl.open_contacts(store))
    n = sum(p.stat().st_size for p in store.rglob("*") if p.is_file())
    return lambda: (n, check)


def cool_bytes(folder: Path) -> Run:
    """Weigh the cooler of yeast."""
    path = folder / "yeast.cool"
    check = {"contacts": pixels_of(path)[1]}
    return lambda: (path.stat().st_size, check)


def pixels_of(cool: Path) -> tuple[int, float]:
    """Return the number of stored pixels, and the sum of the whole symmetric map."""
    with h5py.File(cool) as f:
        i, j, count = (f[f"pixels/{name}"][:] for name in ("bin1_id", "bin2_id", "count"))
    total = 2 * count.sum(dtype=np.int64) - count[i == j].sum(dtype=np.int64)
    return len(count), float(total)


def convert(folder: Path) -> Callable[[], Pass]:
    """Convert the large map, then see that no contact is missing, which is not timed."""
    import xloader as xl

    with h5py.File(folder / "big.cool") as f:
        n = len(f["pixels/count"])

    def run() -> Pass:
        start = time.perf_counter()
        ds = xl.convert(folder / "big.cool", folder / "again", overwrite=True, progress=False)
        seconds = time.perf_counter() - start
        return Pass(seconds, n, contacts_of(ds))

    return run


def _ours(cut: str, first: int, label: str, **options: Any) -> Contender:
    return Contender(
        "xloader",
        f"{__name__}:ours",
        {"cut": cut, "first": first, **options},
        label,
        IMPORTS,
        {"at_least": 100},
    )


def _peer(name: str, cut: str, first: int, label: str) -> Contender:
    options = {"cut": cut, "first": first}
    return Contender(name, f"{__name__}:{name}", options, f"{label}, {first} windows a pass")


_LABELS = {
    "hictkpy": "open handle, below the diagonal the mirror image",
    "cooler": "open handle",
    "xbatcher": f"dense int32 zarr, tiles of 256, lz4, {PIPELINE}",
}
_NEEDS = {
    "hictkpy": ("cooler", "hictkpy"),
    "cooler": ("cooler",),
    "xbatcher": ("cooler", "xbatcher"),
}
_TITLES = {
    "yeast_diag": "yeast 2 kb, windows on the diagonal, stride 8",
    "yeast_grid": "yeast 2 kb, windows on a grid, stride 32, up to 100 bins off",
    "big_diag": "24,896 bins of 10 kb, windows on the diagonal, stride 128",
    "big_grid": "24,896 bins of 10 kb, windows on a grid, stride 128, up to 200 bins off",
}
_GOALS = {"hictkpy": (12, 40), "cooler": (75, 250), "xbatcher": (14, 45)}
_STORE = "store (fast), balance and log1p built in, opened and read again in each epoch"


def _windows(cut: str, peer: str, must: float, aim: float, first: int) -> Row:
    return Row(
        f"{cut}_{peer}",
        f"{_TITLES[cut]}: {peer}",
        "windows/s",
        _ours(cut, first, _STORE),
        (_peer(peer, cut, first, _LABELS[peer]),),
        must,
        aim,
        yeast if cut.startswith("yeast") else big,
        _NEEDS[peer],
    )


def _plain(kind: str) -> Row:
    cut = f"yeast_{kind}"
    return Row(
        f"yeast_xarray_{kind}",
        f"{_TITLES[cut]}, plain xarray expressions: xbatcher",
        "windows/s",
        _ours(cut, 64, "store (fast), np.log1p(count * weight1 * weight2)", plain=True),
        (_peer("xbatcher", cut, 64, _LABELS["xbatcher"]),),
        5,
        7,
        yeast,
        _NEEDS["xbatcher"],
    )


def _size(codec: str) -> Row:
    return Row(
        f"contacts_size_{codec}",
        f"bytes of the store of yeast, codec {codec}: .cool",
        "bytes",
        Contender("xloader", f"{__name__}:store_bytes", {"codec": codec}, "all files of the store"),
        (Contender("cooler", f"{__name__}:cool_bytes", {}, "the file, gzip 6"),),
        1.0,
        0.65,
        yeast,
        measure="amount",
        rounds=1,
    )


_CONVERT = Contender("xloader", f"{__name__}:convert", {}, "xl.convert, big map", IMPORTS)

ROWS: list[Row] = [
    *(
        _windows(f"yeast_{kind}", peer, *goals, 64)
        for kind in ("diag", "grid")
        for peer, goals in _GOALS.items()
    ),
    _windows("big_diag", "hictkpy", 150, 300, 32),
    _windows("big_grid", "hictkpy", 200, 500, 32),
    _plain("diag"),
    _plain("grid"),
    _size("small"),
    _size("fast"),
    Row(
        "contacts_convert",
        "conversion of the 24,896-bin map",
        "pixels/s",
        _CONVERT,
        (),
        4e6,
        7e6,
        big,
        rounds=3,
    ),
    Row(
        "contacts_convert_memory",
        "conversion of the 24,896-bin map, peak memory",
        "MB",
        _CONVERT,
        (),
        1_000,
        600,
        big,
        measure="peak",
        rounds=3,
    ),
    Row(
        "cool",
        f"{_TITLES['yeast_grid']}, the file unconverted",
        "windows/s",
        _ours("yeast_grid", 64, "xl.Loader on the .cool", source="cool", at_least=400),
        (
            _peer("cooler", "yeast_grid", 64, _LABELS["cooler"]),
            _peer("xbatcher", "yeast_grid", 64, _LABELS["xbatcher"]),
        ),
        1,
        2,
        yeast,
        _NEEDS["xbatcher"],
    ),
    Row(
        "batch_contacts",
        "one labelled batch of 32 windows, beyond its arrays",
        "ms",
        Contender("xloader", f"{__name__}:labelled", {}, "windows of 8 x 8", IMPORTS),
        (),
        1.0,
        0.3,
        tiny,
        measure="ms",
    ),
]
