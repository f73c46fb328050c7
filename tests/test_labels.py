"""Labels: one code for a class in every part of the data, numbers as they are, weights as sklearn's."""

import json
import pickle
import warnings

import numpy as np
import numpy.testing as npt
import pandas as pd
import pytest
import xarray as xr

import xloader as xl
from tests.doubles import CELLS, cells, cells_in
from xloader.errors import SchemaError, XloaderWarning
from xloader.labels import codes

NA = np.nan


def labelled(values, **attrs):
    values = np.asarray(values) if not isinstance(values, np.ndarray) else values
    x = np.arange(len(values), dtype="float32")
    return xr.Dataset({"x": ("cell", x)}, {"label": ("cell", values, attrs)})


def tensor(ds, labels=("label",), name="label"):
    """Return a label of all samples as the tensors say it."""
    from xloader.torch import make_loader

    pytest.importorskip("torch")
    loader = xl.Loader(ds, batch_size=2, labels=labels, shuffle=True)
    parts = list(make_loader(loader, layout="dense"))
    ids = np.concatenate([p["sample_id"] for p in parts])
    return np.concatenate([p[name].numpy() for p in parts])[np.argsort(ids)]


KINDS = {
    "none": (np.array(["b", None, "a"], object), ["a", "b"], [1, -1, 0]),
    "nan": (np.array(["b", NA, "a"], object), ["a", "b"], [1, -1, 0]),
    "text": (np.array(["y", "x", "y"]), ["x", "y"], [1, 0, 1]),
    "all missing": (np.array([None, NA, None], object), [], [-1, -1, -1]),
    "bool": (np.array([True, True, True]), [False, True], [1, 1, 1]),
    "nullable bool": (np.array([True, NA, False], object), [False, True], [1, -1, 0]),
    "date": (np.array(["2001", "NaT", "1999"], "M8[ns]"), None, [1, -1, 0]),
    "float": (np.array([2.0, NA, 0.1]), None, [2.0, NA, 0.1]),
    "integer": (np.array([7, -3, 2**24]), None, [7, -3, 2**24]),
    "nullable integer": (np.array([7, None, 5], object), None, [7, NA, 5]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_labels__are_classes_or_numbers(kind):
    values, known, expected = KINDS[kind]
    loader = xl.Loader(labelled(values), batch_size=2, labels=["label"])
    is_class = isinstance(expected[0], int) and "integer" not in kind
    assert ("label" in loader.categories) == is_class
    if known is not None:
        assert loader.categories["label"] == known
    got = tensor(labelled(values))
    assert got.dtype == (np.int64 if is_class else np.float32)
    npt.assert_array_equal(got, np.array(expected, got.dtype))
    assert pd.Series(loader[0]["label"].values).equals(pd.Series(values[:2]))  # as it is


def test_labels__of_a_file_have_its_own_order_of_classes():
    values, known = np.array([2.0, NA, 1.0]), [3, 2, 1]
    assert tensor(labelled(values, categories=known)).tolist() == [1, -1, 2]


@pytest.mark.parametrize("form", CELLS)
@pytest.mark.parametrize("part", ["T", "B"])
def test_codes__of_a_part_without_some_class_are_those_of_the_whole(form, part, tmp_path):
    ds = cells_in(form, tmp_path)
    views = xl.split(ds, {"one": [part], "other": "rest"}, by="cell_type")
    known = sorted({"T", "B", "NK"})
    for view in views.values():
        loader = xl.Loader(view, batch_size=5, labels=["cell_type"])
        assert loader.categories == {"cell_type": known}
        npt.assert_array_equal(
            tensor(view, ["cell_type"], "cell_type"),
            [known.index(v) for v in view.cell_type.values],
        )


def test_codes__of_views_are_the_same_whatever_brings_the_label():
    # nothing but a coordinate: a view made by hand forgets the classes that it lacks, one of split does not
    values = np.array(["c", "a", "b", "c", "a", None] * 4, object)
    ds = labelled(values).assign_coords(
        cell=[f"c{i}" for i in range(24)], donor=("cell", list("xxyyzz") * 4)
    )
    views = xl.split(ds, {"train": "rest", "val": "y"}, by="donor")
    for view in views.values():
        loader = xl.Loader(view, batch_size=4, labels=["label", "donor"])
        assert loader.categories == {"label": ["a", "b", "c"], "donor": ["x", "y", "z"]}
    assert set(tensor(views["val"])) == {1, 2}
    by_hand = ds.isel(cell=ds.donor.values == "y")
    assert xl.Loader(by_hand, batch_size=4, labels=["label"]).categories == {"label": ["b", "c"]}
    train = xl.Loader(views["train"], batch_size=4, labels=["label"])
    kept = json.loads(json.dumps(train.categories))
    assert tensor(by_hand, kept).tolist() == tensor(views["val"]).tolist()
    assert "categories" not in ds["label"].attrs  # the user's own Dataset is left alone


def test_split__leaves_alone_what_is_no_label():
    names = np.array([f"barcode {i}" for i in range(5000)], object)
    ds = xr.Dataset(
        {"x": ("cell", np.arange(5000))},
        {"cell": names, "other": ("cell", names), "depth": ("cell", np.arange(5000))},
    )
    view = xl.split(ds, {"a": 0.5})["a"]
    assert [c for c in view.coords if "categories" in view[c].attrs] == []


@pytest.mark.parametrize("workers", [0, 2])
def test_codes__are_the_same_on_every_rank_and_worker_and_epoch(workers):
    from xloader.torch import make_loader

    pytest.importorskip("torch")
    ds = cells()
    expected = [["B", "NK", "T"].index(v) for v in ds.cell_type.values]
    for rank in (0, 1):
        loader = xl.Loader(
            ds, batch_size=8, labels={"cell_type": None, "depth": None}, shuffle=True,
            rank=rank, world_size=2,
        )  # fmt: skip
        assert pickle.loads(pickle.dumps(loader)).categories == loader.categories
        torch_loader = make_loader(loader, num_workers=workers, layout="dense")
        for _ in range(2):
            for batch in torch_loader:
                ids = batch["sample_id"].numpy()
                npt.assert_array_equal(batch["cell_type"], np.array(expected)[ids])
                npt.assert_array_equal(batch["depth"], ds.depth.values[ids].astype("float32"))


def test_vocabulary__that_is_given_decides():
    ds = labelled(np.array(["b", None, "a"], object))
    assert tensor(ds, {"label": ["z", "b", "a"]}).tolist() == [1, -1, 2]
    assert tensor(labelled([3, 5, 3]), {"label": [3, 5]}).tolist() == [0, 1, 0]
    assert tensor(labelled([1.0, NA, 0.0]), {"label": np.array([0, 1])}).tolist() == [1, -1, 0]
    loader = xl.Loader(ds, batch_size=2, labels={"label": ("a", "b")})
    assert loader.categories == {"label": ["a", "b"]}
    assert "labels: label (2 classes)" in repr(loader)


def test_vocabulary__unknown_classes_are_refused_or_made_missing():
    ds = labelled(np.array(["b", "c", "a", "c"], object), categories=["a", "b", "c"])
    known = ["a", "b"]
    with pytest.raises(SchemaError, match=r"2 of 4 samples have a 'label' .*: \['c'\]; it has \['a', 'b'\]\. Leave"):  # fmt: skip
        xl.Loader(ds, batch_size=2, labels={"label": known})
    missing = ds.assign_coords(
        label=ds["label"].where(ds["label"].isin(known))
    )  # what the message says
    assert tensor(missing, {"label": known}).tolist() == [1, -1, 0, -1]
    assert tensor(missing).tolist() == [1, -1, 0, -1]
    stale = ds.assign_coords(label=("cell", list("BCAC"), ds["label"].attrs))
    with pytest.raises(SchemaError, match=r"4 of 4 samples .* \['B', 'C', 'A'\]; it has \['a'"):
        xl.Loader(stale, batch_size=2, labels=["label"])


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        (["a"], "label", r"write labels=\['label'\]"),
        (["a"], {"label": "abc"}, "a vocabulary is a list of classes"),
        (["a"], {"label": [["a"], ["b"]]}, "a vocabulary is a list of classes"),
        (["a"], {"label": ["a", "a"]}, r"names \['a'\] twice"),
        (["a"], {"label": ["a", None]}, r"names \[None\] twice, or as a missing value"),
        (["a"], ["type"], r"'type' is no coordinate of single samples; there are \['label'\]"),
        (np.array(["a", 1], object), ["label"], r"several types, such as 'a', 1"),
        (np.array([1j]), ["label"], "several types"),
        ([2**24 + 1], ["label"], "beyond 16,777,216"),
        ([-(2**31)], ["label"], "beyond 16,777,216"),
    ],
    ids=["text", "word", "table", "twice", "missing", "unknown", "mixed", "complex", "large", "negative"],
)  # fmt: skip
def test_labels__what_is_impossible_is_told(values, labels, message):
    with pytest.raises(SchemaError, match=message):
        xl.Loader(labelled(values), batch_size=1, labels=labels)


def test_codes__of_what_a_transform_makes_are_never_guessed():
    from xloader.torch.tensors import to_tensors

    pytest.importorskip("torch")

    def rename(batch):
        return batch.assign_coords(label=batch["label"].str.upper())

    loader = xl.Loader(labelled(["a", "b"]), batch_size=2, labels=["label"], transform=rename)
    with pytest.raises(SchemaError, match=r"2 of 2 samples have a 'label' .* \['A', 'B'\]"):
        to_tensors(loader[0], loader)
    assert codes(np.array([], object), ["a"], "label").tolist() == []


def test_class_weights__equal_sklearn():
    from sklearn.utils.class_weight import compute_class_weight

    ds = cells()
    loader = xl.Loader(ds, batch_size=4, labels=["cell_type"])
    expected = compute_class_weight("balanced", classes=np.array(["B", "NK", "T"]), y=ds.cell_type.values)  # fmt: skip
    got = loader.class_weights("cell_type")
    assert got.dtype == np.float32
    npt.assert_allclose(got, expected, rtol=1e-6)
    assert got[[["B", "NK", "T"].index(v) for v in ds.cell_type.values]].mean() == pytest.approx(1)


def test_class_weights__are_those_of_what_the_order_serves():
    ds = labelled(np.array(["b", "c", None, "b", "b"], object), categories=["a", "b", "c"])

    def weights(**options):
        return xl.Loader(ds, batch_size=2, labels=["label"], **options).class_weights("label")

    message = r"1 of 3 classes of 'label' have no sample .* weight 0: \['a'\]"
    with pytest.warns(XloaderWarning, match=message):
        npt.assert_allclose(weights(), [0, 4 / (2 * 3), 4 / (2 * 1)])
    with pytest.warns(XloaderWarning, match=message):
        balanced = weights(order=xl.orders.balanced("label", classes=["b", "c"]))
    npt.assert_allclose(balanced, [0, 1, 1])
    with pytest.warns(XloaderWarning, match=message):  # b is drawn as often as c
        npt.assert_allclose(weights(order=xl.orders.weighted([1, 3, 9, 1, 1])), [0, 1, 1])
    with pytest.warns(XloaderWarning, match="2 of 3 classes"):
        npt.assert_allclose(weights(order=lambda _plan, _rng: np.array([0, 3])), [0, 1, 0])
    with pytest.raises(SchemaError, match="no sample that this Loader serves has a 'label'"):
        weights(order=lambda _plan, _rng: np.array([2]))
    with pytest.raises(SchemaError, match=r"'depth' is no label of classes; this Loader has \['c"):
        xl.Loader(cells(), batch_size=3, labels=["cell_type", "depth"]).class_weights("depth")


def test_class_weights__are_what_cross_entropy_takes():
    torch = pytest.importorskip("torch")
    from xloader.torch.tensors import to_tensors

    ds = labelled(np.array(["b", "a", None, "b", "b"], object))
    loader = xl.Loader(ds, batch_size=5, labels=["label"])
    weight = loader.class_weights("label")
    target = to_tensors(loader[0], loader)["label"]
    logits = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    loss = torch.nn.CrossEntropyLoss(torch.from_numpy(weight), ignore_index=-1)(logits, target)
    each = -torch.log_softmax(logits, 1).numpy()
    kept, which = np.array([0, 1, 3, 4]), np.array([1, 0, 1, 1])
    w = weight[which]
    assert loss.item() == pytest.approx((w * each[kept, which]).sum() / w.sum(), rel=1e-5)


@pytest.mark.real
@pytest.mark.parametrize("name", ["pbmc68k_reduced", "wu2020_200_vdj", "czi_small_perturbations"])
def test_labels__of_a_real_file_are_pandas_codes(name, real_data):
    import anndata

    path = real_data / "sc" / f"{name}.h5ad"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata, about the age of the files
        obs = anndata.read_h5ad(path).obs.select_dtypes("category")
    some = xl.open_cells(path).isel(cell=slice(0, 50))
    labels = [c for c in obs.columns if c in some.coords]
    loader = xl.Loader(some, batch_size=50, labels=labels)
    assert len(labels) >= 3
    for label in labels:
        assert loader.categories[label] == obs[label].cat.categories.tolist()
        got = codes(some[label].values, loader.categories[label], label)
        npt.assert_array_equal(got, obs[label].cat.codes.to_numpy()[:50])
