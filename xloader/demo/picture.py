"""The picture of the demo; matplotlib is imported when it is drawn."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def demo_figure(path: Path, examples: Mapping[str, Mapping[str, Any]]) -> None:
    """
    Draw what the demo learned: a restored contact window, and a batch of cells.

    Parameters
    ----------
    path : Path
        PNG file to write.
    examples : mapping of str to mapping
        By title: `input`, `prediction` and `target` windows ``(bins, bins)``, or `values`
        ``(cells, genes)`` with `types` and `predicted` ``(cells,)``.

    Raises
    ------
    ImportError
        If matplotlib is not installed; the message names the command.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        msg = "pictures need matplotlib: pip install 'xloader[plot]' or conda install matplotlib"
        raise ImportError(msg) from e
    figure = Figure(figsize=(12, 4.4 * len(examples)), layout="constrained")
    rows = figure.subfigures(len(examples), 1, squeeze=False)[:, 0]
    for part, (title, example) in zip(rows, examples.items(), strict=True):
        part.suptitle(title)
        if "target" in example:
            _windows(part, example)
        else:
            _cells(part, example)
    figure.savefig(path, dpi=110)


def _windows(part: Any, example: Mapping[str, Any]) -> None:
    axes = part.subplots(1, 3)
    top = float(np.nanpercentile(example["target"], 99.5))
    for axis, name in zip(axes, ("input", "prediction", "target"), strict=True):
        image = axis.imshow(example[name], cmap="magma_r", vmin=0, vmax=top)
        axis.set_title(name)
        axis.set_xlabel("bin")
    axes[0].set_ylabel("bin")
    part.colorbar(image, ax=axes, label="log(1 + count)", shrink=0.9)


def _cells(part: Any, example: Mapping[str, Any]) -> None:
    values, types, predicted = example["values"], example["types"], example["predicted"]
    left, right = part.subplots(1, 2, width_ratios=[2.2, 1])
    order = np.argsort(types, kind="stable")
    means = np.stack([values[types == t].mean(axis=0) for t in np.unique(types)])
    # the genes that differ most between types, grouped by the type they mark
    genes = np.argsort(means.var(axis=0))[::-1][:60]
    genes = genes[np.argsort(means[:, genes].argmax(axis=0), kind="stable")]
    image = left.imshow(
        values[order][:, genes], aspect="auto", cmap="viridis", interpolation="none"
    )
    left.set_title("batch of cells, by type")
    left.set_xlabel("most variable genes")
    edges = np.flatnonzero(types[order][1:] != types[order][:-1]) + 1
    starts, ends = np.append(0, edges), np.append(edges, len(order))
    left.set_yticks((starts + ends) / 2, types[order][starts])
    for edge in edges:
        left.axhline(edge - 0.5, color="white", linewidth=1)
    part.colorbar(image, ax=left, label="value")
    names = np.unique(np.concatenate([types, predicted]))
    table = np.array([[np.sum((types == a) & (predicted == b)) for b in names] for a in names])
    right.imshow(
        table / np.maximum(table.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1
    )
    right.set_xticks(range(len(names)), names, rotation=60, ha="right")
    right.set_yticks(range(len(names)), names)
    right.set_xlabel("predicted")
    right.set_ylabel("true")
    right.set_title("this batch, validation")
