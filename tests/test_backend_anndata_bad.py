"""AnnData files that are missing, cut, damaged or of another kind are refused, with the reason."""

import io

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from tests.anndata_files import (
    LAYOUTS,
    counts,
    opened,
    stored,
    write,
    write_example,
)
from xloader.backends.hdf5 import close_hdf5
from xloader.errors import ReadError, SchemaError


@pytest.fixture
def example(tmp_path):
    return write_example(tmp_path)


def test_bad_input__missing_file(tmp_path):
    with pytest.raises(ReadError, match=r"none\.h5ad.*No such file.*check the path"):
        opened(tmp_path / "none.h5ad")


def test_bad_input__not_a_path(example):
    with pytest.raises(ReadError, match="cannot open a BytesIO as AnnData.*pass the path"):
        opened(io.BytesIO(example[0].read_bytes()))


def test_bad_input__not_hdf5(tmp_path):
    path = tmp_path / "x.h5ad"
    path.write_text("cell,gene,count\n")
    with pytest.raises(ReadError, match=r"x\.h5ad' \(16 bytes\) as HDF5"):
        opened(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_bad_input__truncated(example, share):
    path = example[0]
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ReadError, match="truncated, damaged or of another format.*get a new copy"):
        opened(path)


def test_bad_input__a_hole_where_values_lie(tmp_path):
    path = tmp_path / "x.h5ad"
    adata = ad.AnnData(counts(500, 100))
    adata.write_h5ad(path, compression="gzip")
    with h5py.File(path, "r") as f:
        chunk = f["X/data"].id.get_chunk_info(0)
    with path.open("r+b") as f:
        f.seek(chunk.byte_offset)
        f.write(bytes(chunk.size))
    ds = opened(path)
    with pytest.raises(ReadError, match=r"cannot read 'X/data' of .*x\.h5ad.*truncated or damaged"):
        ds.X.load()


def test_bad_input__a_hole_where_names_lie(tmp_path):
    path = tmp_path / "x.h5ad"
    adata = ad.AnnData(counts(500, 100))
    adata.write_h5ad(path, compression="gzip")
    with h5py.File(path, "r") as f:
        chunk = f["obs/_index"].id.get_chunk_info(0)
    with path.open("r+b") as f:
        f.seek(chunk.byte_offset)
        f.write(bytes(chunk.size))
    with pytest.raises(ReadError, match=r"cannot read 'obs/_index' of .*truncated or damaged"):
        opened(path)


def test_bad_input__another_kind_of_hdf5(tmp_path):
    path = tmp_path / "x.cool"
    with h5py.File(path, "w") as f:
        for name in ("bins", "chroms", "pixels", "indexes"):
            f.create_group(name)
    expected = r"x\.cool' is not an AnnData file: it has \['bins', 'chroms', 'indexes', 'pixels'\]"
    with pytest.raises(SchemaError, match=expected):
        opened(path)


def test_bad_input__tables_without_an_index(tmp_path):
    path = tmp_path / "x.h5ad"
    write(path, counts(4, 3))
    with h5py.File(path, "r+") as f:
        del f["obs"].attrs["_index"]
    with pytest.raises(SchemaError, match=r"`obs` of .* is no table.*`_index`.*write it again"):
        opened(path)
    close_hdf5(str(path))
    with h5py.File(path, "r+") as f:
        del f["obs"]
        f["obs"] = np.zeros(4)
    with pytest.raises(SchemaError, match=r"`obs` of .* is an array and no table"):
        opened(path)


def damage_indptr(f):
    values = f["X/indptr"][:-1]
    del f["X/indptr"]
    f["X/indptr"] = values


def damage_shape(f):
    f["X"].attrs["shape"] = [54, 31]
    values = np.append(f["X/indptr"][()], f["X/indptr"][-1])
    del f["X/indptr"]
    f["X/indptr"] = values


def damage_data(f):
    values = f["X/data"][:-7]
    del f["X/data"]
    f["X/data"] = values


def damage_column(f):
    f["obs/n"] = np.arange(52)
    f["obs"].attrs["column-order"] = ["n"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_indptr, r"`X/indptr` of .* has 53 entries, its shape asks for 54"),
        (damage_shape, r"`X` of .* has shape \(54, 31\), but its `obs` has 53 rows"),
        (
            damage_data,
            r"`X/indptr` of .* \(from 0 to \d+\) does not fit its \d+ values and \d+ ind",
        ),
        (damage_column, "column 'n' of `obs` has 52 values, its index 53"),
    ],
)
def test_bad_input__shapes_that_disagree(tmp_path, damage, message):
    path = tmp_path / "x.h5ad"
    write(path, counts())
    with h5py.File(path, "r+") as f:
        damage(f)
    with pytest.raises(SchemaError, match=message):
        opened(path)


def test_bad_input__codes_beyond_the_categories(tmp_path):
    path = tmp_path / "x.h5ad"
    obs = pd.DataFrame({"kind": pd.Categorical(list("abab"))}, index=list("wxyz"))
    write(path, counts(4, 3), obs=obs)
    with h5py.File(path, "r+") as f:
        f["obs/kind/codes"][0] = 5
    with pytest.raises(ReadError, match="kind/codes.* holds codes 0 to 5 for 2 categories"):
        opened(path)


@pytest.mark.parametrize("layout", ["csr", "csc"])
def test_bad_input__indices_out_of_range_or_twice(tmp_path, layout):
    x = LAYOUTS[layout](counts())

    def set_index(value):
        return lambda group: group["indices"].__setitem__(3, value)

    array = stored(tmp_path / "a.h5", x, set_index(1000))
    with pytest.raises(ReadError, match=r"`m/indices` of .* holds 0 to 1000 .* outside \[0, "):
        array.read_rows(0, 53)
    array = stored(tmp_path / "b.h5", x, set_index(x.indices[2]))
    with pytest.raises(ReadError, match="stores an element twice, .*sum_duplicates"):
        array.read_rows(0, 53)


def unwritten(name, n=None):
    """Return what replaces an array by one whose chunks from `n` on were never written."""

    def damage(f):
        values = f[name][()]
        del f[name]
        f.create_dataset(name, values.shape, values.dtype, chunks=(16,))[:n] = values[:n]

    return damage


def huge(name, shape):
    def damage(f):
        dtype = f[name].dtype
        del f[name]
        f.create_dataset(name, shape, dtype, chunks=(2**20,))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            unwritten("X/data", 48),
            r"`X/data` of .* lacks the chunks of values 48 to \d+, .* copy it",
        ),
        (unwritten("X/indices", 16), r"`X/indices` of .* lacks the chunks of values 16 to \d+,"),
        (unwritten("obs/_index", 32), "`obs/_index` of .* lacks the names from 32 on"),
        (huge("obs/_index", (10**12,)), "`obs/_index` of .* lacks the names from 0 on"),
        (huge("X/indptr", (10**12,)), "`X/indptr` of .* has 1000000000000 entries"),
        (huge("obs/n", (10**12,)), "column 'n' of `obs` has 1000000000000 values, its index 53"),
    ],
    ids=["data", "indices", "names", "many names", "many rows", "many values"],
)
def test_bad_input__what_was_never_written(tmp_path, damage, message):
    path = tmp_path / "x.h5ad"
    obs = pd.DataFrame({"n": range(53)}, index=[f"c{k}" for k in range(53)])
    write(path, counts(), obs=obs)
    with h5py.File(path, "r+") as f:
        damage(f)
    with pytest.raises((ReadError, SchemaError), match=message):
        opened(path)
