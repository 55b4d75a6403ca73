"""`sllm`: all commands, by what they are for."""

import os
from typing import Annotated

import typer

from sllm import config
from sllm.cli import (
    batches,
    certs,
    checkpoints,
    cluster,
    deployments,
    embeddings,
    events,
    gateway,
    generate,
    keys,
    kubernetes,
    listings,
    logs,
    migrations,
    models,
    node_server,
    operations,
    receipts,
    run,
    servers,
    stores,
    tenants,
    top,
)
from sllm.cli.extras import NeedsGateway, NeedsOperator, NeedsServer
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
    tls_ca: Annotated[
        str | None,
        typer.Option(
            "--tls-ca",
            envvar=config.TLS_CA_VARIABLE,
            help="PEM file of the authority of the control plane's certificate, or system.",
            show_default="no TLS",
        ),
    ] = None,
) -> None:
    if tls_ca is not None:
        os.environ[config.TLS_CA_VARIABLE] = tls_ca
    if context.invoked_subcommand is None:
        welcome(config.control_address())


app.command(cls=NeedsServer, rich_help_panel="Run it")(cluster.up)
app.command(cls=NeedsServer, rich_help_panel="Run it")(servers.control)
app.command(cls=NeedsServer, rich_help_panel="Run it")(node_server.node)
app.command(cls=NeedsGateway, rich_help_panel="Run it")(gateway.gateway)
app.command(cls=NeedsOperator, rich_help_panel="Run it")(kubernetes.operator)
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
app.command(rich_help_panel="Look at it")(logs.logs)
app.command(rich_help_panel="Look at it")(receipts.receipt)
app.command(rich_help_panel="Look at it")(operations.explain)
app.command(rich_help_panel="Operate it")(operations.prefetch)
app.command(rich_help_panel="Operate it")(operations.pin)
app.command(rich_help_panel="Operate it")(operations.unpin)
app.command(rich_help_panel="Operate it")(operations.pins)
app.command(rich_help_panel="Operate it")(operations.drain)
app.command(rich_help_panel="Operate it")(migrations.migrate)
app.add_typer(tenants.app, name="tenants", rich_help_panel="Operate it")
app.add_typer(keys.app, name="keys", rich_help_panel="Secure it")
app.command(cls=NeedsServer, rich_help_panel="Operate it")(stores.migrate_store)
app.add_typer(certs.app, name="certs", rich_help_panel="Secure it")
app.command(cls=NeedsServer, rich_help_panel="Checkpoints, without a cluster")(checkpoints.pack)
app.command(cls=NeedsServer, rich_help_panel="Checkpoints, without a cluster")(checkpoints.verify)
app.command(cls=NeedsServer, rich_help_panel="Checkpoints, without a cluster")(checkpoints.inspect)
