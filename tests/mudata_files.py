"""MuData files as mudata 0.3 writes them, made with anndata alone."""

import anndata as ad
import h5py
import numpy as np
import pandas as pd


def write_mudata(path, mods, *, obs=None, maps=True, axis=0, obsm=None, drop=()):
    """Write modalities over the union of their cells and return the names of all cells."""
    cells = list(dict.fromkeys(c for m in mods.values() for c in m.obs_names))
    frame = pd.DataFrame(index=cells) if obs is None else obs
    for name, m in mods.items():
        for column in m.obs:
            values = m.obs[column].convert_dtypes(convert_integer=False, convert_string=False)
            frame[f"{name}:{column}"] = values[~m.obs_names.duplicated()].reindex(frame.index)
    names = np.concatenate([m.var_names for m in mods.values()])
    with h5py.File(path, "w") as f:
        f.attrs.update({"encoding-type": "MuData", "encoding-version": "0.1.0", "axis": axis})
        ad.io.write_elem(f, "obs", frame)
        ad.io.write_elem(f, "var", pd.DataFrame(index=names))
        f.create_group("mod").attrs["mod-order"] = list(mods)
        for name, m in mods.items():
            ad.io.write_elem(f["mod"], name, m)
        for table in ("obsm", "obsmap"):
            f.create_group(table)
        for name, m in mods.items() if maps else ():
            place = m.obs_names.get_indexer(frame.index) + 1
            f["obsm"][name] = place > 0
            f["obsmap"][name] = place.astype("u4")
        for name, values in (obsm or {}).items():
            ad.io.write_elem(f["obsm"], name, values)
        for name in drop:
            del f[name]
    return list(frame.index)
