"""The command line: ``xloader convert``, ``finalise``, ``verify``, ``export`` and ``demo``."""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from xloader.errors import XloaderError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="xloader")
def cli() -> None:
    """Labelled, fast and reproducible loading of contact matrices and single-cell arrays."""


def _part(context: click.Context, option: click.Parameter, value: str | None) -> Any:
    """Turn ``2/8`` into two numbers."""
    part, slash, n = (value or "").partition("/")
    if value is None:
        return None
    if not (slash and part.isdecimal() and n.isdecimal()):
        msg = f"{value!r} is no part of some number of parts, such as 2/8"
        raise click.BadParameter(msg, context, option)
    return int(part), int(n)


@cli.command()
@click.argument("source", type=click.Path())
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--shuffle", is_flag=True, help="Write cells in a random order.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of that order.")
@click.option("--codec", type=click.Choice(["fast", "small"]), default="fast")
@click.option("--memory-budget", default="1GB", help="Most memory to use.")
@click.option(
    "--max-distance", type=click.IntRange(0), help="Leave out contacts farther apart, in bp."
)
@click.option("--overwrite", is_flag=True, help="Replace a store that exists.")
@click.option("--append", is_flag=True, help="Add cells to a store that exists.")
@click.option(
    "--part",
    callback=_part,
    metavar="I/N",
    help="Do one part of N, such as 2/8 in a job array; then run `xloader finalise STORE`.",
)
@click.option("--progress/--no-progress", default=True, help="Show a progress bar.")
def convert(
    source: str, store: Path, part: tuple[int, int] | None, *, append: bool, **options: Any
) -> None:
    """Write SOURCE (.cool, .mcool, .hic, .h5ad) as a training store STORE."""
    from xloader.conversion import convert as run
    from xloader.conversion import convert_part

    if part is None:
        click.echo(run(source, store, append=append, **options))
        return
    if append:
        msg = "--append adds cells in one piece; leave out --part"
        raise click.UsageError(msg)
    if convert_part(source, store, *part, **options):
        click.echo(f"part {part[0]} of {part[1]} is complete")
    else:
        click.echo(
            f"part {part[0]} of {part[1]} has put its rows in order; run it again when all parts have"
        )


@cli.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace a store that exists.")
@click.option("--progress/--no-progress", default=True, help="Show a progress bar.")
def finalise(store: Path, **options: Any) -> None:
    """Make STORE of the parts that `xloader convert --part` wrote."""
    from xloader.conversion import finalise as run

    click.echo(run(store, **options))


@cli.command()
@click.argument("store")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--progress/--no-progress", default=True, help="Show a progress bar.")
def verify(store: str, *, as_json: bool, progress: bool) -> None:
    """Read every file of STORE again and compare every checksum; exit with 1 if any differs."""
    from xloader.verification import verify as run

    found = run(store, progress=progress)
    if as_json:
        told = {"store": found.store, "files": found.n_files, "bytes": found.nbytes}
        damaged = [dataclasses.asdict(each) for each in found.damaged]
        click.echo(json.dumps({**told, "damaged": damaged}))
    else:
        for each in found.damaged:
            click.echo(f"{each.file}: {each.reason}")
        whole = f"{len(found.damaged)} damaged" if found.damaged else "all as they were written"
        click.echo(f"{found.n_files} files, {found.nbytes / 1e6:,.1f} MB: {whole}")
    sys.exit(0 if found.is_whole else 1)


@cli.command()
@click.argument("store", type=click.Path())
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--variable", help="What to write, or what becomes X.  [default: count or X]")
@click.option(
    "--resolution", "resolutions", type=int, multiple=True, help="Bin size, in bp; again for more."
)
@click.option("--overwrite", is_flag=True, help="Replace a file that exists.")
def export(
    store: str, file: Path, variable: str | None, resolutions: tuple[int, ...], *, overwrite: bool
) -> None:
    """Write STORE, or any file, as FILE: .cool or .mcool of contact maps, .h5ad or .zarr of cells."""
    from xloader.exporting import export as run

    sizes = list(resolutions) or None
    click.echo(run(store, file, variable=variable, resolutions=sizes, overwrite=overwrite))


@cli.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default="xloader-demo", help="Output folder."
)
@click.option("--contacts", type=click.Path(), help="Your own .cool, .mcool, .hic or store.")
@click.option("--resolution", type=int, help="Bin size, in bp.  [default: the finest]")
@click.option("--held-out-chromosome", help="Chromosome to validate on.  [default: a middle one]")
@click.option("--cells", type=click.Path(), help="Your own .h5ad or store.")
@click.option("--label", help="Column to predict.  [default: a usual name, such as cell_type]")
@click.option("--split-by", help="Column to hold out by.  [default: a usual name, such as donor]")
@click.option("--held-out", help="Value of that column to hold out.  [default: the last]")
@click.option("--variable", default="X", help="Counts to learn from: X or a layer.")
@click.option("--steps", type=click.IntRange(1), help="Training steps.  [default: 200 and 300]")
@click.option("--seed", default=0, help="Seed of everything random.")
def demo(
    out: Path,
    contacts: str | None,
    resolution: int | None,
    held_out_chromosome: str | None,
    cells: str | None,
    steps: int | None,
    seed: int,
    **cells_options: Any,
) -> None:
    """
    Train on contact maps and on cells, from file to validated predictions.

    Simulates both kinds of data, or takes your own files.
    """
    try:
        from xloader import demo as job
    except ImportError as e:
        msg = f"the demo needs torch and matplotlib ({e}): pip install 'xloader[torch,plot]'"
        raise click.ClickException(msg) from e
    started = time.perf_counter()
    common: dict[str, Any] = {"seed": seed} | ({} if steps is None else {"steps": steps})
    results = job.run(
        out,
        contacts=contacts,
        cells=cells,
        contacts_options={"resolution": resolution, "held_out": held_out_chromosome, **common},
        cells_options={**cells_options, **common},
    )
    for result in results:
        click.echo(
            f"\n{result.name}\n"
            f"  {result.metric}: {result.model:.4f}, baseline {result.baseline:.4f} "
            f"({'better' if result.better else 'NOT better'})\n"
            f"  {result.samples_per_second:,.0f} samples/s in training, "
            f"{result.wait_share:.1%} of the time waiting for data"
        )
    click.echo(f"\n{time.perf_counter() - started:.0f} s in all; see {out / 'demo.png'}")
    click.echo(f"predictions: {out / 'predictions.zarr'} (groups contacts, cells)")


def main() -> None:
    """Run the command line; errors of xloader are one message, not a traceback."""
    try:
        cli()
    except XloaderError as e:
        click.echo(f"xloader: {e}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
