"""Small 10x Genomics files for tests."""

import gzip

import h5py
import numpy as np
import scipy.io
import scipy.sparse

TAGS = {"genome": "hg", "read": "", "pattern": ""}


def counts(n_cells=53, n_features=31, density=0.2, dtype="int32", seed=0):
    """Draw counts, cells x features."""
    rng = np.random.default_rng(seed)
    m = scipy.sparse.random(n_cells, n_features, density, "csr", np.float64, rng)
    m.data = rng.integers(1, 100, m.nnz).astype(np.float64)
    return m.astype(dtype)


def barcodes(n):
    return [f"AAAC{k}-1" for k in range(n)]


def features(n, types=("Gene Expression",)):
    """Return identifiers, names of which some are equal, and types in runs."""
    names = [f"gene{k // 2}" for k in range(n)]
    return [f"ENSG{k}" for k in range(n)], names, [types[k * len(types) // n] for k in range(n)]


def _matrix(group, m, cells):
    group["shape"] = np.array(m.shape[::-1], np.int32)
    group["barcodes"] = np.array(cells, "S")
    for name, values in (("data", m.data), ("indices", m.indices), ("indptr", m.indptr)):
        dtype = values.dtype if name == "data" else np.int64
        chunks = (max(1, min(256, len(values))),)
        options = {"chunks": chunks, "maxshape": (None,), "compression": "gzip"}
        group.create_dataset(name, data=values.astype(dtype), **options)


def write_v3(path, m, types=("Gene Expression",), order=None):
    """Write the layout of Cell Ranger 3 and later; `order` rearranges the features."""
    table = np.array(features(m.shape[1], types), "S")
    table = table if order is None else table[:, order]
    with h5py.File(path, "w") as f:
        f.attrs["version"] = 2
        _matrix(group := f.create_group("matrix"), m, barcodes(m.shape[0]))
        for name, values in zip(("id", "name", "feature_type"), table, strict=True):
            group[f"features/{name}"] = values
        for name, value in TAGS.items():
            group[f"features/{name}"] = np.array([value] * m.shape[1], "S2")
        group["features/_all_tag_keys"] = np.array([*TAGS], "S")
    return path


def write_v2(path, **genomes):
    """Write the layout of Cell Ranger 2: one group for each genome."""
    with h5py.File(path, "w") as f:
        f.attrs["version"] = 2
        for genome, m in genomes.items():
            _matrix(group := f.create_group(genome), m, barcodes(m.shape[0]))
            group["genes"], group["gene_names"] = np.array(features(m.shape[1])[:2], "S")
    return path


def write_text(path, lines):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as f:
        f.writelines(f"{line}\n" for line in lines)


def write_mtx(folder, m, *, prefix="", gz=True, types=("Gene Expression",), old=False):
    """Write a folder as Cell Ranger does; `old` is version 2 of it, with `genes.tsv`."""
    folder.mkdir(exist_ok=True)
    end = ".gz" if gz else ""
    path = folder / f"{prefix}matrix.mtx{end}"
    opener = gzip.open if gz else open
    with opener(path, "wb") as f:
        scipy.io.mmwrite(f, m.T.tocsc(), comment="metadata_json: {}", symmetry="general")
    write_text(folder / f"{prefix}barcodes.tsv{end}", barcodes(m.shape[0]))
    rows = zip(*features(m.shape[1], types), strict=True)
    name = "genes" if old else "features"
    lines = ["\t".join(row[:2] if old else row) for row in rows]
    write_text(folder / f"{prefix}{name}.tsv{end}", lines)
    return path
