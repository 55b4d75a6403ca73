"""`sllm migrate-store`: from one control plane on SQLite to several on etcd, and back."""

from typing import Annotated

import typer

from sllm.cli.interrupts import interrupts_end_it
from sllm.cli.servers import EtcdCa, EtcdCert, EtcdKey


def migrate_store(
    source: Annotated[
        str, typer.Argument(metavar="FROM", help="sqlite:DIR or etcd://HOST:PORT,…/PREFIX.")
    ],
    target: Annotated[str, typer.Argument(metavar="TO", help="The same; nothing is in it yet.")],
    etcd_ca: EtcdCa = None,
    etcd_cert: EtcdCert = None,
    etcd_key: EtcdKey = None,
) -> None:
    """Copy all that is stored into another store. No control plane may run on either."""
    with interrupts_end_it():
        from sllm.control.config import TlsFiles, store_at
        from sllm.control.move_store import move

    tls = TlsFiles(etcd_ca, etcd_cert, etcd_key)
    moved = move(store_at(source, tls), store_at(target, tls))
    typer.echo(
        f"{moved.deployments} deployments, {moved.pins} pins, {moved.drained_nodes} drained nodes "
        f"and {moved.batches} batches are in {target}"
    )
