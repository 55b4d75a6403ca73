"""`sllm certs`: a small certificate authority, for clusters that have none."""

import datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from sllm.cli.common import Json, output, print_json
from sllm.cli.extras import NeedsServer
from sllm.cli.tables import Listing

app = typer.Typer(
    no_args_is_help=True, help="Make certificates by which a cluster's processes know each other."
)

AUTHORITY: Final = Path("certs")

Authority = Annotated[
    Path, typer.Option("--ca", help="Directory of the authority.", file_okay=False)
]


@app.command(cls=NeedsServer)
def init(
    authority: Authority = AUTHORITY,
    days: Annotated[int, typer.Option(min=1, help="For which it is good.")] = 3650,
) -> None:
    """Make an authority: ca.crt for everybody, and ca.key, which stays where it is made."""
    from sllm.tls.authority import make_authority

    typer.echo(make_authority(authority, days))


@app.command(cls=NeedsServer)
def issue(
    roles: Annotated[
        list[str],
        typer.Argument(help="control, node, gateway or metrics; several of one process."),
    ],
    authority: Authority = AUTHORITY,
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address by which callers reach it, too; repeatable."),
    ] = None,
    cluster: Annotated[
        str, typer.Option(help="Tells clusters apart that share an authority.")
    ] = "default",
    into: Annotated[
        Path | None,
        typer.Option("--into", help="Where it is put.", show_default="CA/ROLE", file_okay=False),
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="For which it is good.")] = 90,
) -> None:
    """Issue a certificate, or one in the place of another: servers take it up as they run."""
    from sllm.tls.authority import issue as issued
    from sllm.tls.identity import name_of, role_of

    chosen = [role_of(role) for role in roles]
    names = [name_of(role, cluster) for role in chosen]
    made = issued(authority, [*names, *(host or ())], into or authority / chosen[0], days)
    typer.echo(f"{made.directory}: {', '.join(made.names)}, until {made.expires_at:%Y-%m-%d}")


@app.command(cls=NeedsServer)
def revoke(
    certificate: Annotated[
        Path, typer.Argument(help="The certificate, or its directory.", show_default=False)
    ],
    authority: Authority = AUTHORITY,
) -> None:
    """Have a certificate count no more, wherever the authority's ca.crl lies beside ca.crt."""
    from sllm.tls.authority import revoke as revoked

    typer.echo(f"{revoked(authority, certificate)}: put it beside tls.crt of every process")


@app.command(cls=NeedsServer)
def show(
    directory: Annotated[
        Path, typer.Argument(help="With tls.crt, tls.key and ca.crt.", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """Tell what a certificate is for, and how long it is good."""
    from sllm.tls.certificates import read

    found = read(directory)
    left = found.expires_at - datetime.datetime.now(datetime.UTC)
    if as_json:
        print_json({"names": sorted(found.names), "expires_at": found.expires_at.isoformat()})
        return
    listing = Listing("NAMES", "EXPIRES", "LEFT")
    listing.add_row(
        ", ".join(sorted(found.names)), f"{found.expires_at:%Y-%m-%d %H:%M}", f"{left.days} d"
    )
    output().print(listing)
