"""``histoweave data``: public datasets, cohorts on disk, and tables that go with them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from histoweave.cli._terminal import Cohorts, print_table, say, show

data = typer.Typer(no_args_is_help=True, help="Public datasets: list, find, fetch.")


@data.command("list")
def list_rows(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """List the catalog; with --json also citations, homepages and sides."""
    from histoweave.data.catalog import datasets

    columns = ("name", "patients", "sections", "flags", "licence")
    rows = [asdict(row) | {"scope": row.scope, "flags": list(row.flags)} for row in datasets()]
    if not as_json:
        rows = [row | {"patients": len(row["patients"]), "flags": "; ".join(row["flags"])} for row in rows]
    print_table(rows, as_json, "datasets", columns)


@data.command("fetch")
def fetch_row(name: str, root: Annotated[Path | None, typer.Option(help="where to put it")] = None) -> None:
    """Download a dataset, or find it under $HISTOWEAVE_DATA."""
    from histoweave.data.catalog import fetch

    say(str(fetch(name, root)))


@data.command("show")
def show_cohort(cohort: Cohorts) -> None:
    """Read a cohort and list its sections."""
    from histoweave.data.io import read_cohort

    show(read_cohort(cohort).obs, cohort)


@data.command("gene-lengths")
def gene_lengths(
    gtf: Annotated[Path, typer.Argument(help="GTF of GENCODE or Ensembl, plain or .gz")],
    cache: Annotated[Path | None, typer.Option(help="folder of the table; default: the user's cache")] = None,
) -> None:
    """Build the table of merged-exon lengths that TPM divides by, once per GTF."""
    from histoweave.data.gene_lengths import make_lengths

    made = make_lengths(gtf, cache)
    twice = f", {made.duplicates} left out that came a second time" if made.duplicates else ""
    say(f"{made.genes} genes, {made.with_symbol} with a symbol{twice}: {made.path}")
