"""`sllm keys`: who may call, for admins."""

import time
from typing import Annotated

import typer

from sllm.cli.common import Control, Json, connect, diagnostics, output, print_json
from sllm.cli.durations import duration_option
from sllm.cli.tables import Listing
from sllm.client.types.keys import Key
from sllm.config import DEFAULT_CONTROL

app = typer.Typer(no_args_is_help=True, help="Make keys for callers, list and revoke them.")


@app.command()
def create(
    role: Annotated[str, typer.Option(help="user, operator or admin.")] = "user",
    tenant: Annotated[str, typer.Option(help="Whose it is.")] = "default",
    expires: Annotated[
        float | None, duration_option("Ends after this time, such as 30d.", "never")
    ] = None,
    note: Annotated[str, typer.Option(help="What it is for.")] = "",
    control: Control = DEFAULT_CONTROL,
    as_json: Json = False,
) -> None:
    """Make a key, and print its secret, which nobody is told again."""
    with connect(control) as client:
        created = client.create_key(role=role, tenant=tenant, ttl=expires, note=note)
    if as_json:
        print_json(created)
    else:
        typer.echo(created.secret)
        diagnostics().print(f"{created.key.key_id}: SLLM_API_KEY has callers show it")


@app.command()
def ls(control: Control = DEFAULT_CONTROL, as_json: Json = False) -> None:
    """List keys, those included that count no more."""
    with connect(control) as client:
        found = client.keys()
    if as_json:
        print_json(found)
        return
    listing = Listing("KEY", "TENANT", "ROLE", "STATE", "CREATED", "NOTE", folded=["NOTE"])
    for key in found:
        made = time.strftime("%Y-%m-%d", time.localtime(key.created_at))
        listing.add_row(key.key_id, key.tenant, key.role.lower(), _state(key), made, key.note)
    output().print(listing)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="Id of the key.", show_default=False)],
    control: Control = DEFAULT_CONTROL,
    as_json: Json = False,
) -> None:
    """Have a key count no more. Streams that have begun with it go on to their end."""
    with connect(control) as client:
        key = client.revoke_key(key_id)
    if as_json:
        print_json(key)
    else:
        typer.echo(f"{key.key_id}: revoked")


def _state(key: Key) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is None:
        return "good"
    if key.expires_at <= time.time():
        return "expired"
    return time.strftime("good until %Y-%m-%d %H:%M", time.localtime(key.expires_at))
