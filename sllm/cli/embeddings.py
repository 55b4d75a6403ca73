"""`sllm embed` and `score`: vectors and scores of whole texts."""

from collections.abc import Sequence
from typing import Annotated

import typer

from sllm.cli.common import Control, Json, connect, output, print_json
from sllm.cli.deployments import Name
from sllm.cli.durations import duration_option
from sllm.cli.tables import Listing
from sllm.client.types.embeddings import Scores
from sllm.config import DEFAULT_CONTROL

Truncate = Annotated[
    bool, typer.Option("--truncate", help="Leave out the end of what is too long.")
]
Timeout = Annotated[float | None, duration_option("Time for all of it, such as 30s.")]


def embed(
    name: Name,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Texts to embed.")],
    normalize: Annotated[
        bool | None,
        typer.Option(help="Give vectors the length 1.", show_default="as the model's files say"),
    ] = None,
    dimensions: Annotated[
        int | None, typer.Option(help="Only the first numbers of each vector.", show_default="all")
    ] = None,
    truncate: Truncate = False,
    timeout: Timeout = None,
    control: Control = DEFAULT_CONTROL,
) -> None:
    """Make vectors of texts, and print them as JSON."""
    with connect(control) as client:
        found = client.embed(
            name,
            texts,
            normalize=normalize,
            dimensions=dimensions,
            truncate=truncate,
            timeout=timeout,
        )
    print_json(found)


def score(
    name: Name,
    query: Annotated[str, typer.Argument(help='What documents are held against; "": nothing.')],
    documents: Annotated[list[str], typer.Argument(metavar="DOC...", help="Documents.")],
    raw: Annotated[
        bool, typer.Option("--raw", help="The model's own numbers, without its activation.")
    ] = False,
    truncate: Truncate = False,
    timeout: Timeout = None,
    control: Control = DEFAULT_CONTROL,
    as_json: Json = False,
) -> None:
    """Score documents, and show the best first."""
    with connect(control) as client:
        labels = [] if as_json else client.model(name).info.purpose.labels
        found = client.score(
            name, query or None, documents, raw=raw, truncate=truncate, timeout=timeout
        )
    if as_json:
        print_json(found)
    else:
        output().print(_table(found, documents, labels or ["SCORE"]))


def _table(found: Scores, documents: Sequence[str], labels: Sequence[str]) -> Listing:
    heads = ("SCORE",) if len(labels) == 1 else labels
    table = Listing(*heads, "DOCUMENT", folded=("DOCUMENT",))
    for index in found.ranking:
        table.add_row(*(f"{value:.4f}" for value in found.scores[index].values), documents[index])
    return table
