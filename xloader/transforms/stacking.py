"""Several variables as one, along a dimension of channels or samples."""

import numpy as np
import xarray as xr

from xloader.contract import Transform
from xloader.errors import SchemaError
from xloader.schema import require
from xloader.transforms.base import Batchwise


def stack(*variables: str, into: str, dim: str = "channel") -> Transform:
    """
    Put several variables of one shape together, as channels of a network or as samples of a study.

    Parameters
    ----------
    *variables : str
        Which variables, in the order wanted; of contact maps with the same bins.
    into : str
        Name of the variable that holds them.
    dim : str, optional
        Name of the new dimension, after that of the windows; its coordinate holds their names.

    Returns
    -------
    Transform
        `into` has one dimension more, and the type that holds them all; masks stay. The variables
        are gone. Windows become ``(sample, channel, bin1, bin2)``.

    Raises
    ------
    SchemaError
        If fewer than one is named, or one twice; when it runs, if shapes differ or a name is taken.

    Examples
    --------
    >>> sides = ("sample", "bin1", "bin2")
    >>> ds = xr.Dataset({"raw": (sides, np.ones((1, 2, 2))), "full": (sides, np.zeros((1, 2, 2)))})
    >>> both = stack("raw", "full", into="x")(ds)
    >>> both.x.dims, both.channel.values.tolist()
    (('sample', 'channel', 'bin1', 'bin2'), ['raw', 'full'])
    """
    if not variables or len(set(variables)) < len(variables):
        msg = f"stack{variables} needs at least one variable, each once; name them, such as 'raw'"
        raise SchemaError(msg)
    return Batchwise("stack", _stack, variables=variables, into=into, dim=dim)


def _stack(batch: xr.Dataset, *, variables: tuple[str, ...], into: str, dim: str) -> xr.Dataset:
    require(batch, variables, "transform 'stack'")
    parts = [batch.variables[name] for name in variables]
    shapes = {name: dict(v.sizes) for name, v in zip(variables, parts, strict=True)}
    if len({tuple(s.items()) for s in shapes.values()}) > 1:
        msg = f"stack() needs variables of one shape, not {shapes}; coarsen or crop some of them first"
        raise SchemaError(msg)
    taken = sorted({into, dim} & {*map(str, batch.variables), *map(str, batch.dims)} - {*variables})
    if taken:
        msg = f"stack() would make {taken}, which the batch has already; choose another name"
        raise SchemaError(msg)
    first, *further = parts[0].dims
    attrs = {k: v for k, v in parts[0].attrs.items() if all(p.attrs.get(k) == v for p in parts)}
    values = np.stack([p.values for p in parts], axis=1)
    whole = xr.Variable((first, dim, *further), values, attrs)
    names = xr.Variable(dim, np.array(variables, object))
    return batch.drop_vars(variables).assign({into: whole}).assign_coords({dim: names})
