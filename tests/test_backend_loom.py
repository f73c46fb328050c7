"""Loom files are shown as cells x genes, chunk by chunk; names and shapes that disagree are refused."""

import io

import h5py
import numpy as np
import pytest
import xarray as xr

import xloader as xl
from tests.tenx_files import barcodes, counts, features
from xloader import trace
from xloader.backends import hdf5_chunks
from xloader.errors import ReadError, SchemaError, XloaderWarning
from xloader.open import identify


def write(path, x, chunks=(16, 8)):
    n_cells, n_genes = x.shape
    with h5py.File(path, "w") as f:
        f.attrs["LOOM_SPEC_VERSION"] = "3.0.0"
        f.create_dataset("matrix", data=x.T, chunks=chunks, compression="gzip")
        f.create_dataset("layers/spliced", data=x.T * 2, chunks=chunks)
        f["col_attrs/CellID"] = np.array(barcodes(n_cells), object)
        f["col_attrs/cluster"] = np.arange(n_cells) % 3
        f["col_attrs/kind"] = np.array(["B", "T"], object)[np.arange(n_cells) % 2]
        f["col_attrs/pca"] = np.arange(n_cells * 2.0).reshape(-1, 2)
        f["row_attrs/Accession"] = np.array(features(n_genes)[0], "S")
        f["row_attrs/Gene"] = np.array(features(n_genes)[1], object)
        f["row_attrs/loading"] = np.ones((n_genes, 3), np.float32)
        f.create_group("col_graphs")
    return path


def opened(path, **kwargs):
    return xr.open_dataset(path, engine="loom", **kwargs)


def test_loom__equals_h5py(tmp_path):
    x = counts(dtype="float32").toarray()
    path = write(tmp_path / "a", x)
    assert identify(path) == ("loom", "cells")
    for ds in (opened(path), xl.open_cells(path)):
        assert {k: v.dims for k, v in ds.data_vars.items()} == {
            "X": ("cell", "gene"),
            "spliced": ("cell", "gene"),
            "pca": ("cell", "pca_dim"),
            "loading": ("gene", "loading_dim"),
        }
        np.testing.assert_array_equal(ds.X.values, x)
        np.testing.assert_array_equal(ds.spliced.values, 2 * x)
        np.testing.assert_array_equal(ds.X[3:40:5, 7].values, x[3:40:5, 7])
        np.testing.assert_array_equal(ds.X[[30, 2], [5, 1]].values, x[[30, 2]][:, [5, 1]])
        assert ds.cell.values.tolist() == barcodes(53)
        assert ds.gene.values.tolist() == features(31)[0]
        assert ds.Gene.values.tolist() == features(31)[1]
        assert ds.cluster.values.tolist() == [k % 3 for k in range(53)]
        assert ds.kind.values.tolist() == [["B", "T"][k % 2] for k in range(53)]
        np.testing.assert_array_equal(ds.pca.values, np.arange(106.0).reshape(53, 2))
    ds = xl.open_cells(path).drop_vars("loading")
    seen = []
    for batch in xl.Loader(ds, batch_size=8, order="shuffled"):
        np.testing.assert_array_equal(batch.X.values, x[batch.row.values])
        np.testing.assert_array_equal(batch.pca.values[:, 0], 2 * batch.row.values)
        seen += batch.row.values.tolist()
    assert sorted(seen) == list(range(53))
    stored = xl.convert(ds, tmp_path / "s", progress=False)
    assert stored.compute().identical(ds.compute())


def test_loom__few_cells_read_few_chunks(tmp_path, monkeypatch):
    x = counts(200, 100).toarray()
    ds = opened(write(tmp_path / "a", x))
    decoded = []
    decode = hdf5_chunks.Chunks._decode
    monkeypatch.setattr(
        hdf5_chunks.Chunks,
        "_decode",
        lambda self, place: decoded.append(place) or decode(self, place),
    )
    np.testing.assert_array_equal(ds.X[17:30].values, x[17:30])
    assert sorted(decoded) == [(g, c) for g in range(0, 100, 16) for c in (16, 24)]
    assert trace.view(ds.X.variable).array.unit == (8, 16)


def test_loom__names_are_chosen(tmp_path):
    path = write(tmp_path / "a", counts().toarray())
    with h5py.File(path, "r+") as f:
        f["row_attrs/Gene"][:] = np.array([f"G{k}" for k in range(31)], object)
        f["col_attrs/sample"] = np.array([f"s{k}" for k in range(53)], object)
    with opened(path, cell="sample", gene="Gene") as ds:
        assert ds.cell.values.tolist() == [f"s{k}" for k in range(53)]
        assert ds.gene.values.tolist() == [f"G{k}" for k in range(31)]
        assert ds.Accession.values.tolist() == features(31)[0]
    with h5py.File(path, "r+") as f:
        del f["col_attrs/CellID"]
    with pytest.raises(SchemaError, match=r"no gene names symbol in `row_attrs`, which has \['Acc"):
        opened(path, gene="symbol", cell="sample")
    with pytest.raises(
        SchemaError, match=r"no cell names \['CellID', .*engine='loom', cell=\.\.\."
    ):
        opened(path)


def short_layer(f):
    del f["layers/spliced"]
    f["layers/spliced"] = np.ones((31, 52))


def short_label(f):
    del f["col_attrs/cluster"]
    f["col_attrs/cluster"] = np.ones(52)


def same_names(f):
    f["col_attrs/CellID"][4] = "AAAC1-1"


def no_matrix(f):
    del f["matrix"]
    f["matrix"] = np.ones(3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (short_layer, r"`layers/spliced` of .* has shape \(31, 52\), `matrix` has \(31, 53\)"),
        (short_label, r"`col_attrs/cluster` of .* has shape \(52,\), but the matrix asks for 53"),
        (same_names, "two names in `col_attrs/CellID` of .*, numbers 2 and 5, .*'AAAC1-1'"),
        (no_matrix, r"`matrix` of .* has shape \(3,\), not genes x cells"),
    ],
)
def test_bad_input__what_disagrees(tmp_path, damage, message):
    path = write(tmp_path / "a", counts().toarray())
    with h5py.File(path, "r+") as f:
        damage(f)
    with pytest.raises(SchemaError, match=message):
        opened(path)


def test_bad_input__what_is_left_out_is_said(tmp_path):
    path = write(tmp_path / "a", counts().toarray())
    with h5py.File(path, "r+") as f:
        f["col_attrs/pair"] = np.zeros(53, [("a", "i4"), ("b", "f4")])
    with pytest.warns(XloaderWarning, match=r"were left out: \['col_attrs/pair'\]"):
        opened(path)


def test_bad_input__other_files(tmp_path):
    with h5py.File(tmp_path / "b", "w") as f:
        f["matrix"] = np.eye(3)
    with pytest.raises(SchemaError, match=r"is no loom file: it has \['matrix'\]"):
        opened(tmp_path / "b")
    with pytest.raises(ReadError, match="cannot open a BytesIO as loom"):
        opened(io.BytesIO())


@pytest.mark.parametrize("name", ["matrix", "layers/spliced", "col_attrs/cluster"])
def test_untrusted__links_into_other_files_are_not_followed(tmp_path, name):
    path = write(tmp_path / "a", counts().toarray())
    write(tmp_path / "secret", counts().toarray())
    with h5py.File(path, "r+") as f:
        del f[name]
        f[name] = h5py.ExternalLink("secret", name)
    with pytest.raises(ReadError, match=f"`{name}` of '.*a' lies in another file"):
        opened(path)
