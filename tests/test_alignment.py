"""Sources of the same single cells in one batch: each row and window is that of its cell, or of none."""

import cooler
import numpy as np
import numpy.testing as npt
import pytest

import xloader as xl
from tests.doubles import Rows
from tests.test_together import contacts
from xloader.errors import PlanError, SchemaError
from xloader.schema import cells_dataset

N_GENES = 30


def expression(names, seed=0, *, genes=N_GENES):
    """Return cells that are stored sparse, and their dense values."""
    rng = np.random.default_rng(seed)
    dense = rng.poisson(0.4, (len(names), genes)).astype(np.float32)
    kinds = rng.choice(["B", "T"], len(names)).astype(object)
    ds = cells_dataset(
        {"X": (("cell", "gene"), Rows(dense), {})},
        cell=np.array(names, object),
        gene=np.array([f"g{k}" for k in range(genes)], object),
        obs={"kind": (kinds, {}), "depth": (dense.sum(axis=1), {})},
        var={},
    )
    return ds, dense


def single_cells(names, seed=0):
    """Return maps of single cells, and their counts."""
    ds = contacts(400, 1, weight=False)
    n = ds.sizes["bin1"]
    upper = np.triu(np.random.default_rng(seed).poisson(0.7, (len(names), n, n)))
    counts = (upper + np.triu(upper, 1).transpose(0, 2, 1)).astype(np.int32)
    maps = ds.drop_vars("count").assign_coords(cell=np.array(names, object))
    maps = maps.assign(count=(("cell", "bin1", "bin2"), counts)).chunk(cell=1)
    return maps, counts


RNA = [f"c{k}" for k in (3, 1, 4, 0, 5, 9, 2, 6)]
MAPS = [f"c{k}" for k in (7, 4, 3, 8, 2)]


def check_batch(batch, rna, maps, dim="sample"):
    """Hold a batch against plain values of each cell; return the names of its cells."""
    (values, counts), names = (rna[1], maps[1]), batch["cell"].values.tolist()
    assert batch["rna"].dims == (dim, "gene")
    assert batch["contacts"].dims == (dim, "bin1", "bin2")
    npt.assert_array_equal(batch.rna_present, [c in RNA for c in names])
    npt.assert_array_equal(batch.contacts_present, [c in MAPS for c in names])
    for k, name in enumerate(names):
        row = batch["rna"].data[k : k + 1].todense()[0]
        expected = values[RNA.index(name)] if name in RNA else np.zeros(N_GENES)
        npt.assert_array_equal(row, expected)
        window = batch["contacts"].values[k]
        at = np.ix_(batch["bin1"].values[k], batch["bin2"].values[k])
        expected = counts[MAPS.index(name)][at] if name in MAPS else np.zeros(window.shape)
        npt.assert_array_equal(window, expected)
        kind = batch["rna_kind"].values[k]
        assert kind == rna[0].kind.values[RNA.index(name)] if name in RNA else kind is None
        depth = batch["rna_depth"].values[k]
        assert depth == values[RNA.index(name)].sum() if name in RNA else np.isnan(depth)
    return names


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("shift", [1, 3])
def test_windows_and_rows__are_of_the_same_cell(shuffle, shift):
    rna, maps = expression(RNA), single_cells(MAPS)
    shape = xl.windows.diagonal(size=4, stride=4, shift=shift)
    loader = xl.Loader(
        {"rna": rna[0], "contacts": maps[0]}, windows=shape, batch_size=7, shuffle=shuffle, seed=3
    )
    alone = xl.Loader(maps[0], windows=shape, batch_size=7)
    n_windows = len(alone.plan.windows)
    assert loader.plan.n_samples == n_windows * len({*RNA, *MAPS})
    seen: dict[str, int] = {}
    for batch in loader:
        for name in check_batch(batch, rna, maps):
            seen[name] = seen.get(name, 0) + 1
    assert seen == dict.fromkeys([*RNA, "c7", "c8"], n_windows)
    again = [loader.batch(0, k).rna.data.todense() for k in (1, 0)]
    npt.assert_array_equal(again[0], loader.batch(0, 1).rna.data.todense())


def test_inner__keeps_the_cells_of_all():
    rna, maps = expression(RNA), single_cells(MAPS)
    merged = xl.merge({"rna": rna[0], "contacts": maps[0]}, join="inner")
    assert merged["cell"].values.tolist() == ["c3", "c4", "c2"]
    loader = xl.Loader(merged, windows=xl.windows.diagonal(size=8), batch_size=5)
    names = {name for batch in loader for name in check_batch(batch, rna, maps)}
    assert names == {"c2", "c3", "c4"}


def test_selection_of_cells__chooses_them_in_every_source():
    rna, maps = expression(RNA), single_cells(MAPS)
    merged = xl.merge({"rna": rna[0], "contacts": maps[0]})
    assert merged.rna_kind.dims == ("cell",)
    both = merged.query(cell="rna_present and contacts_present")
    loader = xl.Loader(both, windows=xl.windows.diagonal(size=8), batch_size=5)
    names = [name for batch in loader for name in check_batch(batch, rna, maps)]
    assert set(names) == {"c2", "c3", "c4"}


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("layout", [None, "dense"])
def test_rows_of_two_modalities__are_of_the_same_cell(shuffle, layout):
    rna, other = expression(RNA), expression(MAPS, 5, genes=7)
    sources = {"rna": rna[0], "protein": other[0]}
    loader = xl.Loader(sources, batch_size=3, shuffle=shuffle, labels=["rna_kind"], layout=layout)
    assert loader.ds["protein"].dims == ("protein_cell", "protein_gene")
    seen = []
    for batch in loader:
        seen += (names := batch["cell"].values.tolist())
        for name, labels, values in (("rna", RNA, rna[1]), ("protein", MAPS, other[1])):
            data = batch[name].data
            expected = [
                values[labels.index(c)] if c in labels else np.zeros(values.shape[1]) for c in names
            ]
            npt.assert_array_equal(data if layout else data.todense(), expected)
            npt.assert_array_equal(batch[f"{name}_present"], [c in labels for c in names])
        # packed rows are one selection away
        packed = batch["protein"].isel(cell=batch.protein_present.values)
        assert packed.sizes["cell"] == batch.protein_present.sum()
    assert sorted(seen) == sorted({*RNA, *MAPS})
    assert loader.categories == {"rna_kind": ["B", "T"]}


def test_equal_cells__share_their_dimension():
    rna, other = expression(RNA), expression(RNA, 5)
    merged = xl.merge({"spliced": rna[0], "unspliced": other[0]})
    assert merged.spliced.dims == merged.unspliced.dims == ("cell", "gene")
    batch = xl.Loader(merged, batch_size=8)[0]
    npt.assert_array_equal(batch.spliced.data.todense(), rna[1])
    npt.assert_array_equal(batch.unspliced.data.todense(), other[1])


def test_each_cell__of_one_file_by_itself():
    maps, counts = single_cells(MAPS)
    shape = xl.windows.diagonal(size=4, stride=4)
    loader = xl.Loader(maps, windows=shape, input_dims={"cell": 1}, batch_size=6, labels=["cell"])
    assert loader.categories == {"cell": sorted(MAPS)}
    n = 0
    for batch in loader:
        for k, name in enumerate(batch["cell"].values):
            at = np.ix_(batch["bin1"].values[k], batch["bin2"].values[k])
            npt.assert_array_equal(batch["count"].values[k], counts[MAPS.index(name)][at])
            n += 1
    assert (
        n
        == len(loader.plan.windows)
        == 5 * len(xl.Loader(maps, windows=shape, batch_size=6).plan.windows)
    )
    with pytest.raises(PlanError, match=r"beside `windows`, for maps of single cells, input_dims="):
        xl.Loader(maps, windows=shape, input_dims={"cell": 2}, batch_size=6)


def test_what_does_not_go_together__is_told():
    rna, maps = expression(RNA)[0], single_cells(MAPS)[0]
    strangers = maps.assign_coords(cell=[f"{c}-1" for c in MAPS])
    with pytest.raises(
        SchemaError, match=r"no cell of 'contacts' is in the sources before it.*'c7-1'"
    ):
        xl.merge({"rna": rna, "contacts": strangers})
    with pytest.raises(SchemaError, match="'gene', like one of their dimensions .*another name"):
        xl.merge({"gene": rna, "contacts": maps})
    twice = rna.isel(cell=[0, 1, 1])
    with pytest.raises(SchemaError, match=r"1 cells of source 'rna' have the same name.*\['c1'\]"):
        xl.merge({"rna": twice, "contacts": maps})
    with pytest.raises(SchemaError, match="source 'contacts' has cells without names"):
        xl.merge({"rna": rna, "contacts": maps.drop_vars("cell")})


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly:UserWarning")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_tensors__of_both_come_from_workers():
    torch = pytest.importorskip("torch")
    import xloader.torch as xt

    rna, maps = expression(RNA), single_cells(MAPS)
    shape = xl.windows.diagonal(size=4, stride=4)
    loader = xl.Loader(
        {"rna": rna[0], "contacts": maps[0]},
        windows=shape,
        batch_size=7,
        shuffle=True,
        labels=["rna_kind"],
    )
    here = [xt.to_tensors(loader.batch(0, k), loader) for k in range(len(loader))]
    there = list(xt.make_loader(loader, num_workers=2))
    assert len(here) == len(there)
    for a, b in zip(here, there, strict=True):
        assert (
            set(a) == set(b) >= {"rna", "contacts", "rna_kind", "rna_present", "contacts_present"}
        )
        assert a["contacts"].shape[1:] == (4, 4)
        torch.testing.assert_close(a["contacts"], b["contacts"])
        torch.testing.assert_close(a["rna"].to_dense(), b["rna"].to_dense())
        torch.testing.assert_close(a["rna_kind"], b["rna_kind"])
        torch.testing.assert_close(a["rna_kind"] < 0, ~a["rna_present"])


def test_real_single_cells__have_their_windows_beside_their_expression(real_data):
    path = real_data / "hic" / "scool_5cells_100kb.scool"
    maps = xl.open_contacts(path, view=["19", "X"])
    names = maps["cell"].values.tolist()
    mine = [*names[3:], "elsewhere", *names[:2]]
    rna, values = expression(mine)
    shape = xl.windows.diagonal(size=64, stride=64)
    loader = xl.Loader(
        {"rna": rna, "contacts": maps}, windows=shape, batch_size=9, shuffle=True, seed=1
    )
    n = 0
    for batch in loader:
        for k, name in enumerate(batch["cell"].values):
            n += 1
            row = batch["rna"].data[k : k + 1].todense()[0]
            expected = values[mine.index(name)] if name in mine else np.zeros(N_GENES)
            npt.assert_array_equal(row, expected)
            window = batch["contacts"].values[k]
            if name == "elsewhere":
                assert not window.any()
                assert not batch.contacts_present.values[k]
                continue
            clr = cooler.Cooler(f"{path}::/cells/{name}")
            at = [batch[c].values[k] for c in ("chrom1", "start1", "end1")]
            region = (at[0][0], int(at[1][0]), int(at[2][-1]))
            npt.assert_array_equal(window, clr.matrix(balance=False).fetch(region))
    assert n == len(loader.plan.windows)
    assert n % 6 == 0


def test_cells_that_are_lost_after_merging__are_told():
    rna, maps = expression(RNA)[0], single_cells(MAPS)[0]
    merged = xl.merge({"rna": rna, "contacts": maps})
    shape = xl.windows.diagonal(size=8)
    for changed, message in (
        (
            merged.assign_coords(cell=[f"p/{c}" for c in merged["cell"].values]),
            "are not along 'rna_cell'|are not along 'contacts_cell'",
        ),
        (
            merged.isel(contacts_cell=slice(2)),
            "3 cells are said to be in 'contacts', but are not along",
        ),
        (merged.drop_vars("rna_present"), "`rna_present`, is not there"),
        (merged.rename(rna_cell="other_cell"), "`other_present`, is not there"),
    ):
        with pytest.raises(SchemaError, match=message):
            xl.Loader(changed, windows=shape, batch_size=2)


def test_merged_sources__are_converted_and_exported_one_by_one(tmp_path):
    merged = xl.merge({"rna": expression(RNA)[0], "prot": expression(MAPS, 5, genes=7)[0]})
    with pytest.raises(
        PlanError, match=r"several of different cells \(\['rna_cell', 'prot_cell'\]\)"
    ):
        xl.convert(merged, tmp_path / "a", progress=False)
    with pytest.raises(SchemaError, match="export each source by itself"):
        xl.export(merged, tmp_path / "a.h5ad", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_leakage__of_windows_of_single_cells_is_that_of_the_cells():
    sources = {"rna": expression(RNA)[0], "contacts": single_cells(MAPS)[0]}
    merged = xl.merge(sources)
    train, val = merged.isel(cell=slice(6)), merged.isel(cell=slice(6, None))
    xl.check_leakage({"train": train, "val": val})
    with pytest.raises(PlanError, match=r"overlap in 1 cells: \['c9'\]"):
        xl.check_leakage({"train": train, "val": merged.isel(cell=slice(5, None))})


def test_masks_of_a_source__stay_masks():
    rna = expression(RNA)[0].assign_coords(prot_present=("cell", np.arange(8) % 2 == 0))
    merged = xl.merge({"mu": rna, "contacts": single_cells(MAPS)[0]})
    there = merged.mu_prot_present
    assert there.dtype == bool
    assert there.values.tolist() == [k % 2 == 0 for k in range(8)] + [False] * 2
