"""10x .h5 files open by structure, read by rows as h5py does, and lies of a file are refused."""

import io
import pickle

import h5py
import numpy as np
import pytest
import xarray as xr

import xloader as xl
from tests.tenx_files import barcodes, counts, features, write_v2, write_v3
from xloader import trace
from xloader.backends import sizes
from xloader.backends.hdf5 import close_hdf5
from xloader.backends.tenx import CountsGroup
from xloader.errors import ReadError, SchemaError
from xloader.open import identify

CITE = ("Gene Expression", "Antibody Capture", "Peaks", "CRISPR Guide Capture", "Custom-made !")
DIMS = {
    "rna": "gene",
    "prot": "protein",
    "atac": "peak",
    "crispr": "guide",
    "custom_made": "custom_made_feature",
}


def opened(path, **kwargs):
    return xr.open_dataset(path, engine="tenx", **kwargs)


def test_v3__equals_scipy(tmp_path):
    m = counts()
    path = write_v3(tmp_path / "a", m)
    assert identify(path) == ("tenx", "cells")
    for ds in (opened(path), xl.open_cells(path)):
        assert list(ds.data_vars) == ["X"]
        assert ds.X.dims == ("cell", "gene")
        assert ds.X.dtype == np.int32
        assert ds.X.attrs == {"feature_type": "Gene Expression"}
        np.testing.assert_array_equal(ds.X.values, m.toarray())
        np.testing.assert_array_equal(ds.X[::-3, [4, 2]].values, m.toarray()[::-3, [4, 2]])
        assert ds.cell.values.tolist() == barcodes(53)
        ids, names, _ = features(31)
        assert ds.gene.values.tolist() == ds.gene_id.values.tolist() == ids
        assert ds.gene_name.values.tolist() == names
        assert set(ds.gene_genome.values) == {"hg"}
        assert "gene_read" not in ds.coords  # empty in the file
        assert ds.row.values.tolist() == list(range(53))
        assert ds.column.values.tolist() == list(range(31))
        assert ds.sel(gene="ENSG7").X.values.tolist() == m.toarray()[:, 7].tolist()


def test_v3__unsorted_rows_are_put_in_order(tmp_path):
    m = counts()
    backwards = m.copy()
    for a, b in zip(m.indptr[:-1], m.indptr[1:], strict=True):
        backwards.indices[a:b] = m.indices[a:b][::-1]
        backwards.data[a:b] = m.data[a:b][::-1]
    backwards.has_sorted_indices = False
    path = write_v3(tmp_path / "a", backwards)
    np.testing.assert_array_equal(opened(path).X.values, m.toarray())
    batch = xl.Loader(opened(path), batch_size=53)[0]
    np.testing.assert_array_equal(batch.X.data.indices, m.sorted_indices().indices)


@pytest.mark.parametrize("scattered", [False, True])
def test_v3__each_type_is_a_variable(tmp_path, scattered):
    m = counts(n_features=40)
    order = np.random.default_rng(0).permutation(40) if scattered else np.arange(40)
    ds = opened(write_v3(tmp_path / "a", m, CITE, order), chunks={})
    types = np.array(features(40, CITE)[2], object)[order]
    ids = np.array(features(40, CITE)[0], object)[order]
    assert {name: v.dims for name, v in ds.data_vars.items()} == {
        name: ("cell", dim) for name, dim in DIMS.items()
    }
    for kind, (name, dim) in zip(CITE, DIMS.items(), strict=True):
        at = types == kind
        np.testing.assert_array_equal(ds[name].values, m.toarray()[:, at])
        assert ds[dim].values.tolist() == ids[at].tolist()
        assert ds[name].attrs["feature_type"] == kind
        assert ds[f"{name}_present"].values.all()
        assert ds[f"{name}_present"].dims == ("cell",)
        assert ds[f"{name}_column"].values.tolist() == np.flatnonzero(at).tolist()
        assert isinstance(trace.view(ds[name].variable).array, CountsGroup)
    loader = xl.Loader(ds, batch_size=8, order="shuffled", seed=3)
    for batch in loader:
        for kind, name in zip(CITE, DIMS, strict=True):
            expected = m.toarray()[:, types == kind][batch.row.values]
            np.testing.assert_array_equal(batch[name].data.todense(), expected)
    stored = xl.convert(tmp_path / "a", tmp_path / "s", progress=False)
    assert stored.compute().identical(ds.compute())


def test_v3__columns_are_those_that_the_file_lists(tmp_path):
    path = write_v3(tmp_path / "a", counts())
    with h5py.File(path, "r+") as f:
        f["matrix/features/target_sets/panel"] = np.arange(5)  # as of targeted panels
        f["matrix/features/read"][:] = b"R2"
    assert set(opened(path).coords) == {
        "cell", "row", "gene", "column", "gene_id", "gene_name", "gene_genome", "gene_read",
    }  # fmt: skip
    close_hdf5(str(path))
    with h5py.File(path, "r+") as f:
        del f["matrix/features/_all_tag_keys"]
    assert {"gene_genome", "gene_read"} & set(opened(path).coords) == {"gene_genome"}


def test_v3__one_type_is_x_whatever_its_dimension(tmp_path):
    m = counts(dtype="float32")
    ds = opened(write_v3(tmp_path / "a", m, ("Peaks",)))
    assert ds.X.dims == ("cell", "peak")
    np.testing.assert_array_equal(ds.X.values, m.toarray())


def test_v2__one_genome_or_one_of_several(tmp_path):
    m = {"hg19": counts(seed=1), "mm10": counts(20, 17, seed=2)}
    one, two = write_v2(tmp_path / "one", mm10=m["mm10"]), write_v2(tmp_path / "two", **m)
    paths = {one: "mm10", f"{one}::mm10": "mm10", f"{two}::hg19": "hg19", f"{two}::/mm10": "mm10"}
    for path, genome in paths.items():
        assert identify(path) == ("tenx", "cells")
        ds = xl.open_cells(path)
        np.testing.assert_array_equal(ds.X.values, m[genome].toarray())
        assert set(ds.gene_genome.values) == {genome}
        n = m[genome].shape[1]
        assert ds.gene.values.tolist() == features(n)[0]
        assert ds.gene_name.values.tolist() == features(n)[1]
    with pytest.raises(
        SchemaError, match=r"2 matrices, .*\['hg19', 'mm10'\].*such as '.*two::hg19'"
    ):
        xl.open_cells(two)
    with pytest.raises(SchemaError, match=r"no genome 'dm6'; it has \['hg19', 'mm10'\]"):
        opened(f"{two}::dm6")


def test_v3__genomes_are_in_one_matrix(tmp_path):
    path = write_v3(tmp_path / "a", counts())
    with pytest.raises(
        SchemaError, match=r"select afterwards: ds.isel\(gene=ds.gene_genome == 'hg'"
    ):
        opened(f"{path}::hg")
    ds = opened(path)
    assert ds.isel(gene=ds.gene_genome == "hg").sizes["gene"] == 31


def test_dataset__is_small_when_pickled_and_closes(tmp_path):
    m = counts()
    path = write_v3(tmp_path / "a", m)
    with opened(path, drop_variables=["gene_name"]) as ds:
        assert "gene_name" not in ds.coords
        again = pickle.loads(pickle.dumps(ds))
        np.testing.assert_array_equal(again.X.values, m.toarray())
    path.write_bytes(path.read_bytes() + b"0")
    with pytest.raises(ReadError, match="was replaced or changed after it was opened"):
        ds.X.load()


def change(path, name, values):
    with h5py.File(path, "r+") as f:
        del f[name]
        f[name] = values


def lying_barcodes(f):
    del f["matrix/barcodes"]
    f["matrix/barcodes"] = np.array(barcodes(52), "S")


def lying_features(f):
    del f["matrix/features/name"]
    f["matrix/features/name"] = np.array(["x"] * 30, "S")


def same_barcode(f):
    f["matrix/barcodes"][9] = f["matrix/barcodes"][2]


def same_feature(f):
    f["matrix/features/id"][30] = f["matrix/features/id"][0]


def falling_indptr(f):
    f["matrix/indptr"][5] = f["matrix/indptr"][3]
    f["matrix/indptr"][4] = f["matrix/indptr"][6]


def overrunning_indptr(f):
    f["matrix/indptr"][53] += 4


def short_indptr(f):
    values = f["matrix/indptr"][:-1]
    del f["matrix/indptr"]
    f["matrix/indptr"] = values


def no_shape(f):
    del f["matrix/shape"]
    f["matrix/shape"] = 7


def a_group(f):
    del f["matrix/data"]
    f.create_group("matrix/data")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (a_group, "`matrix/data` of '.*a' is a group, not an array"),
        (lying_barcodes, r"`matrix/barcodes` of '.*a' has shape \(52,\), .* 53 cells and 31 feat"),
        (lying_features, r"`matrix/features/name` of '.*a' has shape \(30,\)"),
        (
            same_barcode,
            r"two cells \(barcodes\) of '.*a', numbers 3 and 10, are both called 'AAAC2-1'",
        ),
        (same_feature, "type 'Gene Expression' of .*, numbers 1 and 31, are both called 'ENSG0'"),
        (falling_indptr, r"`matrix/indptr` of '.*a' .* does not fit"),
        (
            overrunning_indptr,
            r"`matrix/indptr` of '.*a' \(from 0 to \d+\) does not fit its \d+ val",
        ),
        (short_indptr, r"`matrix/indptr` of '.*a' has 53 entries, its shape asks for 54"),
        (no_shape, "`matrix/shape` of '.*a' is no pair"),
    ],
)
def test_bad_input__what_disagrees(tmp_path, damage, message):
    path = write_v3(tmp_path / "a", counts())
    with h5py.File(path, "r+") as f:
        damage(f)
    with pytest.raises(SchemaError, match=message):
        xl.open_cells(path)


@pytest.mark.parametrize(
    ("dtype", "value", "shown"), [("int32", -3, "-3"), ("float32", np.nan, "nan")]
)
def test_bad_input__counts_that_are_none(tmp_path, dtype, value, shown):
    m = counts(dtype=dtype)
    m.data[40] = value
    row = int(np.searchsorted(m.indptr, 40, "right")) - 1
    ds = opened(write_v3(tmp_path / "a", m))
    message = f"`matrix/data` of '.*a' holds {shown} for cell {row}, feature {m.indices[40]} "
    with pytest.raises(ReadError, match=message):
        ds.X.load()
    with pytest.raises(ReadError, match=message):
        xl.Loader(ds.isel(cell=[row]), batch_size=1)[0]
    assert (ds.X[: row - 1].values == m.toarray()[: row - 1]).all()


@pytest.mark.parametrize(("index", "message"), [(31, r"outside \[0, 31\)"), (-1, "holds -1 to")])
def test_bad_input__indices_out_of_range(tmp_path, index, message):
    path = write_v3(tmp_path / "a", counts())
    with h5py.File(path, "r+") as f:
        f["matrix/indices"][7] = index
    with pytest.raises(ReadError, match=f"`matrix/indices` of .*{message}"):
        opened(path).X.load()


@pytest.mark.parametrize("name", ["data", "barcodes"])
def test_bad_input__values_that_were_never_written(tmp_path, name):
    """HDF5 gives zeros for them."""
    path = write_v3(tmp_path / "a", counts())
    with h5py.File(path, "r+") as f:
        values = f[f"matrix/{name}"][()]
        del f[f"matrix/{name}"]
        dataset = f.create_dataset(f"matrix/{name}", values.shape, values.dtype, chunks=(20,))
        dataset[:30] = values[:30]
    n = -(-len(values) // 20)
    with pytest.raises(ReadError, match=f"`matrix/{name}` of '.*a' has 2 of its {n} chunks"):
        opened(path)


def test_bad_input__truncated_or_another_kind(tmp_path):
    path = write_v3(tmp_path / "a", counts())
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-900])
    with pytest.raises(ReadError, match="as HDF5: it is truncated"):
        opened(tmp_path / "cut")
    with h5py.File(tmp_path / "other", "w") as f:
        f["matrix"] = np.eye(3)
    with pytest.raises(SchemaError, match=r"is no 10x matrix: it has \['matrix'\]"):
        opened(tmp_path / "other")
    with pytest.raises(ReadError, match="cannot open a BytesIO as 10x.*pass the path"):
        opened(io.BytesIO())
    with pytest.raises(ReadError, match="No such file"):
        opened(tmp_path / "none.h5")


@pytest.mark.parametrize("name", ["matrix", "matrix/data", "matrix/features", "matrix/features/id"])
def test_untrusted__links_into_other_files_are_not_followed(tmp_path, name):
    path = write_v3(tmp_path / "a", counts())
    write_v3(tmp_path / "secret", counts())
    with h5py.File(path, "r+") as f:
        del f[name]
        f[name] = h5py.ExternalLink("secret", name)
    root = name == "matrix"
    message = r"no 10x matrix" if root else r"of '.*a' lies in another file"
    with pytest.raises(SchemaError if root else ReadError, match=message):
        opened(path)


@pytest.mark.parametrize("kind", ["external", "virtual"])
def test_untrusted__values_outside_of_the_file(tmp_path, kind):
    path = write_v3(tmp_path / "a", counts())
    (tmp_path / "secret").write_bytes(bytes(8000))
    with h5py.File(path, "r+") as f:
        n = len(f["matrix/data"])
        del f["matrix/data"]
        if kind == "external":
            where = [(str(tmp_path / "secret"), 0, 4 * n)]
            f.create_dataset("matrix/data", (n,), "i4", external=where)
        else:
            layout = h5py.VirtualLayout((n,), "i4")
            layout[:] = h5py.VirtualSource(str(tmp_path / "b"), "x", (n,), "i4")
            f.create_virtual_dataset("matrix/data", layout)
    with pytest.raises(ReadError, match=r"`matrix/data` of '.*a' lies in another file"):
        opened(path)


def test_untrusted__sizes_are_checked_before_memory_is_taken(tmp_path, monkeypatch):
    path, n = write_v3(tmp_path / "a", counts()), 10**13
    monkeypatch.setattr(sizes, "available_memory", lambda: 9_000)
    with pytest.raises(
        ReadError, match=r"opening .*53 cells, 31 .* kiB of memory, and there is 8.79"
    ):
        opened(path)
    monkeypatch.undo()
    close_hdf5(str(path))
    with h5py.File(path, "r+") as f:
        del f["matrix/shape"], f["matrix/barcodes"], f["matrix/indptr"]
        f["matrix/shape"] = [31, n]
        for name, dtype, length in (("barcodes", "S18", n), ("indptr", "i8", n + 1)):
            f.create_dataset(f"matrix/{name}", (length,), dtype, chunks=(1000,))  # never written
    with pytest.raises(ReadError, match=r"`matrix/indptr` of .* has 0 of its 10000000001 chunks"):
        opened(path)


def test_memory__is_that_of_the_machine_and_of_its_control_group(tmp_path, monkeypatch):
    whole = sizes.available_memory()
    assert 2**20 < whole < 2**60
    group = tmp_path / "memory.max"
    monkeypatch.setattr(sizes, "_CGROUP", group)
    for text, expected in (("5000\n", 5000), ("max\n", None)):
        group.write_text(text)
        found = sizes.available_memory()
        assert found == expected if expected else found > 2**20
