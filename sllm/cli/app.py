"""`sllm`: all commands, by what they are for."""

from typing import Annotated

import typer

from sllm import config
from sllm.cli import (
    batches,
    checkpoints,
    cluster,
    deployments,
    embeddings,
    events,
    gateway,
    generate,
    listings,
    migrations,
    models,
    operations,
    receipts,
    run,
    servers,
    top,
)
from sllm.cli.extras import NeedsGateway, NeedsServer
from sllm.cli.failures import Commands
from sllm.cli.welcome import welcome

app = typer.Typer(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Serverless serving of large language models.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # takes longer than all the rest

        typer.echo(version("sllm"))
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    _: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        welcome(config.control_address())


app.command(cls=NeedsServer, rich_help_panel="Run it")(cluster.up)
app.command(cls=NeedsServer, rich_help_panel="Run it")(servers.control)
app.command(cls=NeedsServer, rich_help_panel="Run it")(servers.node)
app.command(cls=NeedsGateway, rich_help_panel="Run it")(gateway.gateway)
app.command(rich_help_panel="Use it")(run.run)
app.command(rich_help_panel="Use it")(deployments.deploy)
app.command(rich_help_panel="Use it")(generate.generate)
app.command(rich_help_panel="Use it")(generate.chat)
app.command(rich_help_panel="Use it")(embeddings.embed)
app.command(rich_help_panel="Use it")(embeddings.score)
app.command(rich_help_panel="Use it")(deployments.rm)
app.add_typer(batches.app, name="batch", rich_help_panel="Use it")
app.command(rich_help_panel="Look at it")(listings.ls)
app.command(rich_help_panel="Look at it")(models.model)
app.command(rich_help_panel="Look at it")(models.tokenize)
app.command(rich_help_panel="Look at it")(listings.ps)
app.command(rich_help_panel="Look at it")(listings.nodes)
app.command(rich_help_panel="Look at it")(top.top)
app.command(rich_help_panel="Look at it")(events.events)
app.command(rich_help_panel="Look at it")(receipts.receipt)
app.command(rich_help_panel="Look at it")(operations.explain)
app.command(rich_help_panel="Operate it")(operations.prefetch)
app.command(rich_help_panel="Operate it")(operations.pin)
app.command(rich_help_panel="Operate it")(operations.unpin)
app.command(rich_help_panel="Operate it")(operations.pins)
app.command(rich_help_panel="Operate it")(operations.drain)
app.command(rich_help_panel="Operate it")(migrations.migrate)
app.command(cls=NeedsServer, rich_help_panel="Checkpoints, without a cluster")(checkpoints.pack)
app.command(cls=NeedsServer, rich_help_panel="Checkpoints, without a cluster")(checkpoints.verify)
app.command(cls=NeedsServer, rich_help_panel="Checkpoints, without a cluster")(checkpoints.inspect)
