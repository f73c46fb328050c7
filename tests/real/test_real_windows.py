"""Windows of every shape on a real map equal what cooler reads at the places that their labels tell."""

import cooler
import numpy as np
import pandas as pd
import pytest

import xloader as xl

NAME = "scer_w303_g1_2kb_SRR8769554.cool"


def shapes(clr):
    """Return a shape of each kind, for the names and lengths of this map."""
    names, lengths = clr.chromnames, clr.chromsizes.tolist()
    middle = [n // 2 for n in lengths]
    bed = pd.DataFrame({"chrom": names, "start": middle, "end": [m + 999 for m in middle]})
    ends = bed.assign(start=0, end=1_500)
    pairs = bed[:-1].add_suffix("1").join(bed[1:].add_suffix("2").reset_index(drop=True))
    black = pd.DataFrame({"chrom": names, "start": 0, "end": [n // 3 for n in lengths]})
    return {
        "diagonal": xl.windows.diagonal(size="64kb", stride=40, shift="80kb"),
        "grid": xl.windows.grid(size=32, max_distance="200kb", triangle="upper", shift=9),
        "between": xl.windows.between(size=(40, "32kb"), pairs=[(names[0], names[2]), (names[3], names[1])]),
        "bed": xl.windows.regions(bed, size=25),
        "bedpe": xl.windows.regions(pairs, size=(24, 16)),
        "ends": xl.windows.regions(ends, size=24),
        "excluded": xl.windows.diagonal(size=32, shift=20).excluding(masked=0.2, overlap=black),
    }  # fmt: skip


KINDS = ["diagonal", "grid", "between", "bed", "bedpe", "ends", "excluded"]


@pytest.mark.parametrize("kind", KINDS)
def test_windows__equal_cooler_at_the_places_their_labels_tell(kind, real_data):
    path = real_data / "hic" / NAME
    clr, ds = cooler.Cooler(str(path)), xl.open_contacts(path)
    shape = shapes(clr)[kind]
    options = {"windows": shape, "batch_size": 8, "shuffle": True, "remainder": "pad"}
    loader = xl.Loader(ds, **options)
    matrix = clr.matrix(balance=False)
    served = 0
    for step in range(min(3, len(loader))):
        batch = loader.batch(1, step)
        for k in range(len(batch.sample_id)):
            one = batch.isel(sample=k)
            real = [one[f"bin{s}"].values >= 0 for s in "12"]
            regions = []
            for s, kept in zip("12", real, strict=True):
                place = one.isel({f"bin{s}": kept})
                start, end = int(place[f"start{s}"][0]), int(place[f"end{s}"][-1])
                regions.append((str(place[f"chrom{s}"].values[0]), start, end))
            expected = matrix.fetch(*regions)
            got = one["count"].values
            np.testing.assert_array_equal(got[np.ix_(*real)], expected)
            assert got.sum() == expected.sum()  # nothing beyond the ends
            served += 1
            if kind == "ends":
                assert regions[0][1] == 0
                assert (~real[0]).sum() == 12  # the middle, 750 bp, is nearest to the start
            if kind == "excluded":
                length = clr.chromsizes[regions[0][0]]
                assert regions[0][1] + 2_000 > length // 3
                assert np.isnan(one.weight1.values).mean() <= 0.2
    assert served > 8
    counted = loader.plan.windows
    if kind == "ends":
        assert counted.n_padded == len(counted) == len(clr.chromnames)
    if kind == "excluded":
        everything = xl.Loader(ds, **{**options, "windows": xl.windows.diagonal(size=32, shift=20)})
        assert len(counted) + sum(counted.left_out.values()) == len(everything.plan.windows)
