"""Transforms of cells: values against numpy and scanpy, sparse ones that stay so, and what is refused."""

import pickle

import numpy as np
import numpy.testing as npt
import pytest
import scipy.sparse
import xarray as xr

import xloader as xl
from tests.doubles import Rows, counts, to_csr
from xloader import transforms as T
from xloader.contract import SampleRandom
from xloader.csr import CSRArray
from xloader.errors import PerformanceWarning, SchemaError
from xloader.schema import lazy

N, G = 61, 17
GENES = [f"g{i}" for i in range(G)]
LAYOUTS = pytest.mark.parametrize("layout", ["csr", "dense"])


def cells(layout="dense", dtype="float32", x=None):
    x = counts(dtype=dtype) if x is None else x
    depth = np.random.default_rng(5).integers(1, 500, N)
    coords = {"cell": [f"c{i}" for i in range(N)], "gene": GENES, "n_counts": ("cell", depth)}
    data = to_csr(x) if layout == "csr" else x.copy()
    return xr.Dataset({"X": (("cell", "gene"), data, {"units": "reads"})}, coords)


def stats_of(x):
    figures = {"mean": ("gene", x.mean(0, "f8")), "std": ("gene", x.std(0, "f8", ddof=1))}
    return xr.Dataset(figures, {"gene": GENES}, {"variable": "X"})


def values(variable):
    data = variable.data
    return data.todense() if isinstance(data, CSRArray) else data


def is_sparse(variable):
    return isinstance(variable.data, CSRArray)


def random_of(ds, epoch=0):
    return SampleRandom(0, epoch=epoch, sample_id=np.arange(ds.sizes["cell"]))


# each of them: labels, what it gets, travelling, no dense arrays on the way

EVERY = {
    "normalize_total": (T.normalize_total(100), True),
    "given totals": (T.normalize_total(total="n_counts"), True),
    "log1p": (T.log1p("X"), True),
    "standardise": (T.standardise(stats_of(counts())), False),
    "not centred": (T.standardise(stats_of(counts()), zero_center=False, max_value=2), True),
    "binarise": (T.binarise("X"), True),
    "select": (T.select(gene=["g9", "g2"]), True),
    "mask_genes": (T.mask_genes(), True),
    "mask expressed": (T.mask_genes(value=-1, expressed=True), True),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_transform__keeps_labels_travels_and_does_not_change_what_it_gets(name):
    transform, stays_sparse = EVERY[name]
    results = {}
    for layout in ("csr", "dense"):
        ds = cells(layout)
        before = ds.copy(deep=True)
        loader = xl.Loader(ds, batch_size=9, shuffle=True, transform=transform)
        batch = loader[0]  # densifying would warn, which is an error in tests
        again = xl.Loader(
            cells(layout),
            batch_size=9,
            shuffle=True,
            transform=pickle.loads(pickle.dumps(transform)),
        )
        assert loader.state_dict() == again.state_dict()
        for name_, variable in again[0].variables.items():
            npt.assert_array_equal(values(variable), values(batch.variables[name_]))
        npt.assert_array_equal(values(ds.X), values(before.X))
        assert {"cell", "gene", "n_counts", "sample_id"} <= set(batch.coords)
        assert batch.X.attrs == {"units": "reads"}
        assert batch.X.dims == ("cell", "gene")
        assert is_sparse(batch.X) == (stays_sparse and layout == "csr")
        results[layout] = batch
    assert results["csr"].X.dtype == results["dense"].X.dtype
    for name_, variable in results["csr"].data_vars.items():
        npt.assert_allclose(values(variable), values(results["dense"][name_]), rtol=1e-6)


# scanpy, and its formulas


def scanpy_of():
    return pytest.importorskip("scanpy", reason="an oracle that is not installed here")


@LAYOUTS
def test_normalize_total_and_log1p__equal_scanpys_formulas(layout):
    x = counts().astype("f8")
    total = x.sum(1, keepdims=True)
    expected = np.log1p(x / np.where(total > 0, total / 1e4, 1))
    batch = T.compose(T.normalize_total(1e4), T.log1p("X"))(cells(layout))
    npt.assert_allclose(values(batch.X), expected, rtol=1e-6)
    assert batch.X.dtype == np.float32


@LAYOUTS
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize("zero_center", [False, True])
@pytest.mark.parametrize("max_value", [None, 1.2])
def test_standardise__equals_scanpys_formula(layout, dtype, zero_center, max_value):
    x = counts(dtype=dtype)
    x[:, 4] = 3  # without variation
    stats = stats_of(x)
    expected = (x - zero_center * stats["mean"].values) / stats["std"].where(
        stats["std"] > 0, 1
    ).values
    if max_value is not None:
        expected = np.clip(expected, -max_value if zero_center else None, max_value)
    transform = T.standardise(stats, zero_center=zero_center, max_value=max_value, into="z")
    batch = transform(cells(layout, x=x))
    npt.assert_allclose(values(batch.z), expected, rtol=1e-6, atol=1e-6)
    assert batch.z.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert is_sparse(batch.z) == (layout == "csr" and not zero_center)
    npt.assert_array_equal(values(batch.X), x)


@LAYOUTS
def test_transforms__equal_scanpy_itself(layout):
    sc = scanpy_of()
    anndata = pytest.importorskip("anndata")
    make = scipy.sparse.csr_matrix if layout == "csr" else np.asarray
    theirs = anndata.AnnData(make(counts()))
    sc.pp.normalize_total(theirs, target_sum=1e4)
    sc.pp.log1p(theirs)
    steps = T.compose(T.normalize_total(1e4), T.log1p("X"))
    ours = steps(cells(layout))
    dense = scipy.sparse.csr_matrix(theirs.X).toarray()
    npt.assert_allclose(values(ours.X), dense, rtol=1e-6)
    stats = xl.statistics(cells(layout), transform=steps, progress=False)
    for zero_center in (False, True):
        for max_value in (None, 1.5):
            x = theirs.X.copy() if not zero_center else dense.copy()
            options = {"zero_center": zero_center, "max_value": max_value}
            scaled = scipy.sparse.csr_matrix(sc.pp.scale(x, **options)).toarray()
            z = T.standardise(stats, into="z", **options)(ours).z
            npt.assert_allclose(values(z), scaled, rtol=2e-6, atol=1e-6)


def test_normalize_total__of_a_panel_takes_the_totals_of_all_genes_if_told():
    x, ds = counts(), cells("csr")
    ds = ds.assign_coords(total=("cell", x.sum(1)))
    both = T.normalize_total(100, total="total")(ds.sel(gene=["g3", "g8"]))
    expected = x[:, [3, 8]] / np.maximum(x.sum(1, keepdims=True), 1) * 100
    npt.assert_allclose(values(both.X), expected, rtol=1e-6)
    alone = T.normalize_total(100)(ds.sel(gene=["g3", "g8"]))
    sums = values(alone.X).sum(1)
    npt.assert_allclose(sums[sums > 0], 100, rtol=1e-6)
    with pytest.raises(SchemaError, match=r"needs \['depth'\], which the Dataset lacks"):
        T.normalize_total(total="depth")(ds)
    with pytest.raises(SchemaError, match="one number per cell, but 'gene' is .* along"):
        T.normalize_total(total="gene")(ds)
    with pytest.raises(SchemaError, match=r"target_sum=0\) is impossible"):
        T.normalize_total(0)


# figures of genes


@LAYOUTS
def test_standardise__finds_genes_by_name(layout):
    x = counts()
    stats = stats_of(x).isel(gene=np.random.default_rng(0).permutation(G))
    mixed = cells(layout).sel(gene=["g9", "g1", "g16"])
    z = T.standardise(stats)(mixed).X
    expected = (x - x.mean(0, "f8")) / x.std(0, "f8", ddof=1)
    npt.assert_allclose(values(z), expected[:, [9, 1, 16]], rtol=1e-5, atol=1e-6)


def test_standardise__genes_without_statistics_are_refused_before_anything_is_read():
    rows = Rows(counts())
    ds = xr.Dataset({"X": lazy(("cell", "gene"), rows)}, {"gene": GENES})
    stats = stats_of(counts()).isel(gene=slice(3, None))
    few = T.standardise(stats)
    with pytest.raises(
        SchemaError, match=r"no statistics of 3 of 17 along 'gene': \['g0', 'g1', 'g2'\]"
    ):
        xl.Loader(ds, batch_size=4, transform=few)
    with pytest.raises(SchemaError, match="no statistics of 3 of 17"):
        xl.Loader(ds, batch_size=4, transform=T.compose(T.log1p("X"), few))
    # a panel is what is looked up after it was chosen, and a user's function may rename everything
    panel = T.compose(T.select(gene=["g9", "g4"]), T.log1p("X"), few)
    assert xl.Loader(ds, batch_size=4, transform=panel)[0].X.shape == (4, 2)
    other = T.compose(lambda b: b.isel(gene=slice(4, None)), T.compose(few))
    assert xl.Loader(ds, batch_size=4, transform=other)[0].X.shape == (4, 13)
    nameless = ds.drop_vars("gene")
    with pytest.raises(
        SchemaError, match="statistics of 14 along 'gene' and the batch 17, without"
    ):
        xl.Loader(nameless, batch_size=4, transform=few)[0]
    whole = T.standardise(stats_of(counts()).drop_vars("gene"))
    assert xl.Loader(nameless, batch_size=4, transform=whole)[0].X.shape == (4, 17)


def test_standardise__refuses_what_it_cannot_use():
    stats = stats_of(counts())
    for wrong in (stats["mean"], stats.assign_attrs(variable=None).drop_attrs(), {"mean": 1}):
        with pytest.raises(SchemaError, match="needs the Dataset that xl.statistics"):
            T.standardise(wrong)
    with pytest.raises(SchemaError, match=r"needs \['std'\], which the Dataset lacks"):
        T.standardise(stats.drop_vars("std"))
    with pytest.raises(SchemaError, match="needs figures along one dimension, such as 'gene'"):
        T.standardise(stats.assign(std=("other", [1.0])))
    with pytest.raises(SchemaError, match=r"max_value=0\) is impossible"):
        T.standardise(stats, max_value=0)
    with pytest.raises(SchemaError, match="needs values along 'gene' last, but got"):
        T.standardise(stats)(cells().transpose("gene", "cell"))
    with pytest.raises(TypeError, match="unexpected keyword argument 'zero_centre'"):
        T.standardise(stats, zero_centre=False)


# presence


@LAYOUTS
@pytest.mark.parametrize("dtype", ["float32", "int16", "uint8", "float64"])
@pytest.mark.parametrize("threshold", [0, 2, 3.5])
def test_binarise__equals_numpy(layout, dtype, threshold):
    x = counts(dtype=dtype)
    if dtype == "float32":
        x[3, 4] = np.nan
    ours = T.binarise("X", threshold=threshold)(cells(layout, x=x)).X
    expected = (x > threshold).astype(dtype)
    npt.assert_array_equal(values(ours), np.where(np.isnan(x), np.nan, expected))
    assert ours.dtype == dtype
    assert is_sparse(ours) == (layout == "csr")
    with pytest.raises(SchemaError, match=r"threshold=-1\) is impossible"):
        T.binarise("X", threshold=-1)
    with pytest.raises(SchemaError, match="was given no variable"):
        T.binarise()


# panels


def test_select__unknown_names_are_told_before_anything_is_read():
    rows = Rows(counts())
    labels = {"gene": GENES, "symbol": ("gene", [f"Sym{i}" for i in range(G)])}
    ds = xr.Dataset({"X": lazy(("cell", "gene"), rows)}, labels)
    for transform in (
        T.select(gene=["g1", "G16x", "nothing"]),
        T.compose(T.log1p("X"), T.select(gene=["g1", "G16x", "nothing"])),
        T.compose(T.select(gene=["g1", "g2"]), T.select(gene=["G16x", "g3"])),
    ):
        with pytest.raises(
            SchemaError, match=r"select\(gene=...\) names 2 of [23] labels .*'G16x'"
        ):
            xl.Loader(ds, batch_size=4, transform=transform)
    with pytest.raises(SchemaError, match=r"'G16x' \(like 'g16'\), 'nothing'; leave them out"):
        xl.Loader(ds, batch_size=4, transform=T.select(gene=["g1", "G16x", "nothing"]))
    with pytest.raises(
        SchemaError, match=r"select\(genes=...\) needs a coordinate .*'gene', 'symbol'"
    ):
        xl.Loader(ds, batch_size=4, transform=T.select(genes=["g1"]))
    assert rows.log == []
    # a user's function may bring names of its own, and `stack` a dimension
    renamed = T.compose(
        lambda b: b.assign_coords(gene=[f"new{i}" for i in range(G)]), T.select(gene=["new3"])
    )
    assert xl.Loader(ds, batch_size=4, transform=renamed)[0].gene.values.tolist() == ["new3"]
    two = ds.assign(Y=ds.X)
    stacked = T.compose(T.stack("X", "Y", into="Z"), T.select(channel=["Y"]))
    assert xl.Loader(two, batch_size=4, layout="dense", transform=stacked)[0].Z.shape == (4, 1, G)
    by_symbol = xl.Loader(ds, batch_size=4, transform=T.select(symbol=["Sym9", "Sym2"]))
    assert by_symbol[0].gene.values.tolist() == ["g9", "g2"]
    npt.assert_array_equal(values(by_symbol[0].X), counts()[:4, [9, 2]])


def test_select__refuses_what_is_no_panel():
    with pytest.raises(SchemaError, match=r"select\(gene=...\) names \['a'\] more than once"):
        T.select(gene=["a", "b", "a"])
    with pytest.raises(SchemaError, match="would leave nothing"):
        T.select(gene=[])
    with pytest.raises(SchemaError, match=r"no list of labels; write gene=\[...\]"):
        T.select(gene="g1")


# the same on a Dataset


def test_xl_select__takes_any_coordinate_in_the_order_given():
    ds = cells("dense").assign_coords(symbol=("gene", [f"S{i}" for i in range(G)]))
    xr.testing.assert_identical(ds.xl.select(gene=["g5", "g1"]), ds.sel(gene=["g5", "g1"]))
    xr.testing.assert_identical(ds.xl.select(symbol=["S5", "S1"]), ds.sel(gene=["g5", "g1"]))
    both = ds.xl.select(gene=np.array(["g5", "g1"], object), cell=["c9"])
    xr.testing.assert_identical(both, ds.sel(gene=["g5", "g1"], cell=["c9"]))
    numbers = xr.Dataset(coords={"gene": [10, 20, 30]})
    assert numbers.xl.select(gene=[30, 10]).gene.values.tolist() == [30, 10]


def test_xl_select__says_which_names_are_wrong():
    ds = cells("dense").assign_coords(symbol=("gene", ["A", "B", "A", *"CDEFGHIJKLMNOP"]))
    with pytest.raises(
        SchemaError, match=r"ds.xl.select\(gene=...\) names 1 of 2 .*'g33' \(like 'g3'\)"
    ):
        ds.xl.select(gene=["g33", "g1"])
    with pytest.raises(
        SchemaError, match=r"names 7 of 7 .* among the 17 of 'gene': .*'x4', ...; leave"
    ):
        ds.xl.select(gene=[f"x{i}" for i in range(7)])
    with pytest.raises(SchemaError, match=r"several positions along 'gene' have: \['A'\]; choose"):
        ds.xl.select(symbol=["A", "B"])
    assert ds.xl.select(symbol=["B"]).sizes["gene"] == 1
    with pytest.raises(SchemaError, match="more than once"):
        ds.xl.select(gene=["g1", "g1"])
    with pytest.raises(SchemaError, match="needs a coordinate of one dimension; there are"):
        ds.xl.select(X=["g1"])


# hidden genes


@LAYOUTS
@pytest.mark.parametrize("expressed", [False, True])
@pytest.mark.parametrize("value", [0, -1])
def test_mask_genes__hides_what_the_mask_says_and_nothing_else(layout, expressed, value):
    x = counts()
    x[2, 3] = np.nan
    ds = cells(layout, x=x)
    batch = T.mask_genes(0.4, value=value, expressed=expressed)(ds, rng=random_of(ds))
    mask = values(batch.masked)
    npt.assert_array_equal(values(batch.X_masked), np.where(mask, value, x))
    npt.assert_array_equal(values(batch.X), x)
    assert mask.dtype == bool
    assert not mask[2, 3]
    assert not expressed or not mask[x == 0].any()
    candidates = (x != 0) if expressed else np.ones_like(mask)
    share = mask[candidates].mean()
    n = candidates.sum()
    assert abs(share - 0.4) < 4 * np.sqrt(0.24 / n)
    assert batch.X_masked.attrs == {"units": "reads"}
    assert is_sparse(batch.masked) == (layout == "csr" and expressed)
    assert is_sparse(batch.X_masked) == (layout == "csr" and (expressed or value == 0))
    if layout == "csr" and expressed:  # a loss may use the three arrays
        kept = batch.X.data.data[batch.masked.data.data]
        npt.assert_array_equal(kept, x[mask])


def test_mask_genes__is_the_same_in_every_layout_and_another_in_every_epoch():
    masks = {
        (layout, epoch): values(
            T.mask_genes(0.3)(cells(layout), rng=random_of(cells(), epoch)).masked
        )
        for layout in ("csr", "dense")
        for epoch in range(2)
    }
    npt.assert_array_equal(masks["csr", 0], masks["dense", 0])
    assert (masks["csr", 0] != masks["csr", 1]).mean() > 0.2
    assert abs(np.corrcoef(masks["csr", 0].T.astype(float)) - np.eye(G)).max() < 5 / np.sqrt(N)
    shared = values(T.mask_genes(0.3, expressed=True)(cells("csr"), rng=random_of(cells())).masked)
    npt.assert_array_equal(shared, masks["csr", 0] & (counts() != 0))


def test_mask_genes__floats_where_integers_cannot_hold_the_value():
    for dtype, value, expected in (
        ("uint8", 0, np.uint8),
        ("uint8", -1, np.float32),
        ("int32", -1, np.int32),
        ("int32", np.nan, np.float32),
    ):
        ds = cells(dtype=dtype)
        assert T.mask_genes(value=value)(ds, rng=random_of(ds)).X_masked.dtype == expected


def test_mask_genes__refuses_names_that_are_taken():
    ds = cells()
    rng = random_of(ds)
    for options in (
        {"into": "n_counts"},
        {"mask": "gene"},
        {"mask": "X"},
        {"into": "a", "mask": "a"},
    ):
        with pytest.raises(SchemaError, match="choose other names"):
            T.mask_genes(**options)(ds, rng=rng)
    assert "X_masked" not in T.mask_genes(into="X")(ds, rng=rng)
    for fraction in (0, 1, np.nan):
        with pytest.raises(SchemaError, match="choose a probability above 0 and below 1"):
            T.mask_genes(fraction)


def test_densifying__would_be_told():
    with pytest.warns(PerformanceWarning, match="has no sparse form"):
        np.exp(cells("csr").X)


def test_normalize_total__refuses_what_are_no_counts():
    x = np.ones((3, 4), np.float32)
    x[1, 2] = -9
    with pytest.raises(SchemaError, match=r"1 of 3 are negative \(-6\.0\): these are no counts"):
        T.normalize_total(100)(xr.Dataset({"X": (("cell", "gene"), x)}))
