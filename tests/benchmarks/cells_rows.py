"""Rows about cells: who runs against whom with which settings, and the goals."""

from collections.abc import Mapping
from typing import Any

from tests.benchmarks import cells, cells_data
from tests.benchmarks.runner import IMPORTS, Contender, Row


def _ours(label: str = "", small: Mapping[str, Any] | None = None, **options: Any) -> Contender:
    return Contender("xloader", "tests.benchmarks.cells:ours", options, label, IMPORTS, small or {})


def _annbatch(chunk: int, preload: int) -> Contender:
    return Contender(
        f"annbatch {chunk}x{preload}",
        "tests.benchmarks.cells:annbatch",
        {"chunk": chunk, "preload": preload, "batch_size": 4_096},
        imports=("annbatch", "zarrs"),
        small={"chunk": chunk // 16, "preload": 512 * 16 // chunk, "batch_size": 128},
    )


def _apart(name: str, code: str, *args: str) -> Contender:
    return Contender(name, "tests.benchmarks.cells:fresh", {"code": code, "args": list(args)})


_CONVERTED = tuple(
    Contender(
        name, "tests.benchmarks.cells:converted", {"ours": name == "xloader"}, imports=imports
    )
    for name, imports in (("xloader", IMPORTS), ("annbatch", ("annbatch", "zarrs")))
)
_SIZES = {
    name: Contender(name, "tests.benchmarks.cells:size", {"store": store})
    for name, store in (
        ("fast", "cells.fast.xl"),
        ("small", "cells.small.xl"),
        ("annbatch", "cells.annbatch.zarr"),
    )
}
_BATCH = {"batch_size": 128, "rows": 512}
_POOL = {"rows": 512}
_PEERS = ("annbatch", "zarrs")

ROWS = (
    Row(
        "csr",
        "CSR batches of 4,096, shuffled",
        "cells/s",
        _ours(batch_size=4_096, rows=16_384, small=_BATCH),
        (_annbatch(256, 32), _annbatch(512, 32)),
        must=2.2,
        aim=3,
        data=cells_data.with_annbatch,
        needs=_PEERS,
    ),
    Row(
        "csr_random",
        "CSR batches of 4,096, shuffled in blocks of 32",
        "cells/s",
        _ours(batch_size=4_096, rows=8_192, small=_BATCH),
        (_annbatch(32, 256),),
        must=3.3,
        aim=4.5,
        data=cells_data.with_annbatch,
        needs=_PEERS,
    ),
    Row(
        "csr_64",
        "CSR batches of 64, shuffled",
        "cells/s",
        _ours(batch_size=64, rows=100_000, check_labels=False, small={"rows": 5_000}),
        (
            Contender(
                "homeobox",
                "tests.benchmarks.cells:homeobox",
                {"batch_size": 64, "rows": 65_536},
                imports=("homeobox",),
                small=_POOL,
            ),
        ),
        must=5,
        aim=8,
        data=cells_data.with_homeobox,
        needs=("homeobox",),
    ),
    Row(
        "batch_64",
        "CSR batches of 64 against batches of 4,096",
        "cells/s",
        _ours(batch_size=64, rows=16_384, small=_POOL),
        (_ours(batch_size=4_096, rows=16_384, small=_BATCH),),
        must=0.8,
        aim=1,
        data=cells_data.ours,
    ),
    Row(
        "dense",
        "dense batches of 4,096 against writing as many bytes",
        "cells/s",
        Contender(
            "xloader",
            "tests.benchmarks.cells:dense",
            {"batch_size": 4_096, "rows": 16_384},
            imports=IMPORTS,
            small=_BATCH,
        ),
        tuple(
            Contender(
                f"fill, {'fresh' if fresh else 'reused'} array",
                "tests.benchmarks.cells:fill",
                {"batch_size": 4_096, "fresh": fresh},
                small={"batch_size": 128},
            )
            for fresh in (False, True)
        ),
        must=0.6,
        aim=0.9,
        data=cells_data.ours,
    ),
    Row(
        "transform",
        "normalize_total and log1p in xarray against no transform",
        "cells/s",
        _ours(batch_size=4_096, rows=16_384, transform=True, small=_BATCH),
        (_ours(batch_size=4_096, rows=16_384, small=_BATCH),),
        must=0.5,
        aim=0.65,
        data=cells_data.ours,
    ),
    Row(
        "h5ad",
        "CSR batches of 4,096 from an .h5ad as it is, shuffled",
        "cells/s",
        _ours(batch_size=4_096, rows=16_384, source="cells.h5ad", small=_BATCH),
        (
            Contender(
                "anndata",
                "tests.benchmarks.cells:backed",
                {"batch_size": 4_096, "block": 64, "rows": 16_384},
                imports=("anndata",),
                small=_BATCH,
            ),
        ),
        must=1,
        aim=1,
        data=cells_data.atlas,
        needs=("anndata",),
    ),
    Row(
        "memory",
        "peak memory of a pass with memory_budget 256 MB",
        "MB",
        _ours(batch_size=4_096, budget=256_000_000, small={"batch_size": 128}),
        (),
        must=256 + 250,
        aim=256 + 150,
        data=cells_data.ours,
        measure="peak",
    ),
    Row(
        "scale",
        "1,000,000 cells against 100,000",
        "cells/s",
        _ours(batch_size=4_096, rows=16_384, source="copies.fast.xl", copies=10),
        (_ours(batch_size=4_096, rows=16_384, copies=1),),
        must=0.9,
        aim=1,
        data=cells_data.ten_times,
        only_large=True,
    ),
    Row(
        "convert",
        "conversion of an .h5ad, shuffled: speed",
        "cells/s",
        _CONVERTED[0],
        _CONVERTED[1:],
        must=1,
        aim=2,
        data=cells_data.atlas,
        needs=_PEERS,
    ),
    Row(
        "convert_memory",
        "conversion of an .h5ad, shuffled: peak memory",
        "MB",
        _CONVERTED[0],
        _CONVERTED[1:],
        must=0.25,
        aim=0.25,
        data=cells_data.atlas,
        needs=_PEERS,
        measure="peak",
    ),
    *(
        Row(
            f"size_{codec}",
            f"size of a store, codec {codec}",
            "bytes",
            _SIZES[codec],
            (_SIZES["annbatch"],),
            must=must,
            aim=aim,
            data=cells_data.both_codecs,
            needs=_PEERS,
            measure="amount",
            rounds=1,
        )
        for codec, must, aim in (("fast", 0.7, 0.6), ("small", 0.45, 0.4))
    ),
    Row(
        "batch",
        "a labelled batch of 64 cells with 8 genes, in memory",
        "ms",
        Contender(
            "xloader",
            "tests.benchmarks.cells:few_genes",
            {"batch_size": 64},
            imports=IMPORTS,
        ),
        (),
        must=0.2,
        aim=0.2,
        data=cells_data.few_genes,
        measure="ms",
    ),
    Row(
        "import",
        "import xloader against import xarray, new processes",
        "ms",
        _apart("xloader", cells.IMPORT, "xloader"),
        (_apart("xarray", cells.IMPORT, "xarray"),),
        must=1.3,
        aim=1,
        data=cells_data.nothing,
        measure="ms",
        rounds=15,
    ),
    Row(
        "import_used",
        "import xloader and what opens and loads, against import xarray, new processes",
        "ms",
        _apart("xloader", cells.IMPORT, "xloader", "open_cells", "Loader"),
        (_apart("xarray", cells.IMPORT, "xarray"),),
        must=1.3,
        aim=1,
        data=cells_data.nothing,
        measure="ms",
        rounds=15,
    ),
    Row(
        "first_batch",
        "first batch of a store in a new process, with everything that is imported for it",
        "ms",
        _apart("xloader", cells.FIRST_BATCH, "{folder}/cells.fast.xl", "4096"),
        (),
        must=500,
        aim=500,
        data=cells_data.ours,
        measure="ms",
        rounds=15,
    ),
    Row(
        "first_batch_own",
        "first batch of a store in a new process, memory_budget 256 MB, xarray, dask and numba being imported",
        "ms",
        _apart("xloader", cells.FIRST_BATCH_OWN, "{folder}/cells.fast.xl", "4096"),
        (),
        must=500,
        aim=500,
        data=cells_data.ours,
        measure="ms",
        rounds=15,
    ),
)
