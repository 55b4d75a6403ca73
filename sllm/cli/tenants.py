"""`sllm tenants`: who shares the cluster, and what each may take."""

from collections.abc import Sequence
from typing import Annotated

import typer

from sllm.cli.common import Control, Json, connect, output, print_json
from sllm.cli.sizes import size_option
from sllm.cli.tables import Listing
from sllm.client.types.tenants import Tenant, TenantLimits
from sllm.config import DEFAULT_CONTROL, format_bytes

app = typer.Typer(help="Tenants: what each may take of the cluster, and what each has used.")


@app.command("ls")
def list_tenants(control: Control = DEFAULT_CONTROL, as_json: Json = False) -> None:
    """List the tenants, with what each has of what it may have, and what it has used."""
    with connect(control) as client:
        found = client.tenants()
    if as_json:
        print_json(found)
    else:
        output().print(tenants_table(found))


@app.command("set")
def set_tenant(
    tenant: Annotated[str, typer.Argument(help='Its name; "default" for those who name none.')],
    requests: Annotated[
        int | None, typer.Option(help="Requests under way at once.", show_default="no bound")
    ] = None,
    queued: Annotated[
        int | None, typer.Option(help="Requests that wait at once.", show_default="no bound")
    ] = None,
    tokens_per_minute: Annotated[
        int | None,
        typer.Option(help="Tokens of prompts and generations.", show_default="no bound"),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(help="Instances of all its models.", show_default="no bound")
    ] = None,
    pinned: Annotated[
        int | None, size_option("Bytes of checkpoints that its pins keep.", "no bound")
    ] = None,
    ssd: Annotated[
        int | None, size_option("Bytes of its checkpoints on the disks of all nodes.", "no bound")
    ] = None,
    dram: Annotated[int | None, size_option("The same in the memory of nodes.", "no bound")] = None,
    device: Annotated[
        int | None, size_option("The same in the memory of accelerators.", "no bound")
    ] = None,
    calls_per_second: Annotated[
        float | None, typer.Option(help="Calls of any kind.", show_default="no bound")
    ] = None,
    weight: Annotated[
        float, typer.Option(help="Its share of instances, where there is no room for all.")
    ] = 1.0,
    control: Control = DEFAULT_CONTROL,
    as_json: Json = False,
) -> None:
    """Bound what a tenant may take. What is not named here is not bounded any more."""
    limits = TenantLimits(
        requests=requests,
        queued=queued,
        tokens_per_minute=tokens_per_minute,
        replicas=replicas,
        pinned_bytes=pinned,
        weight=weight,
        calls_per_second=calls_per_second,
        ssd_bytes=ssd,
        dram_bytes=dram,
        device_bytes=device,
    )
    with connect(control) as client:
        found = client.set_tenant(tenant, limits)
    if as_json:
        print_json(found)
    else:
        output().print(tenants_table([found]))


def tenants_table(tenants: Sequence[Tenant]) -> Listing:
    """One row for each tenant: what it has, of what it may have, and what it has used."""
    table = Listing(
        *("TENANT", "REQUESTS", "INSTANCES", "PINNED", "TIERS", "TOKENS/MIN", "CALLS/S", "WEIGHT"),
        *("SERVED", "PROMPT", "GENERATED", "DEVICE TIME"),
    )
    for one in tenants:
        limits, usage, pinned = one.limits, one.usage, one.limits.pinned_bytes
        table.add_row(
            one.tenant,
            _of(str(one.requests_under_way), limits.requests),
            _of(str(one.instances), limits.replicas),
            _of(format_bytes(one.pinned_bytes), None if pinned is None else format_bytes(pinned)),
            _on_tiers(one),
            "-" if limits.tokens_per_minute is None else str(limits.tokens_per_minute),
            "-" if limits.calls_per_second is None else f"{limits.calls_per_second:g}",
            f"{limits.weight:g}",
            str(usage.requests),
            str(usage.prompt_tokens),
            str(usage.generated_tokens),
            f"{usage.device_seconds:.0f} s",
        )
    return table


def _on_tiers(tenant: Tenant) -> str:
    """What it has on each tier on which it is bounded."""
    bounds = {
        "SSD": tenant.limits.ssd_bytes,
        "DRAM": tenant.limits.dram_bytes,
        "DEVICE": tenant.limits.device_bytes,
    }
    told = [
        f"{tier} {format_bytes(tenant.tier_bytes.get(tier, 0))}/{format_bytes(most)}"
        for tier, most in bounds.items()
        if most is not None
    ]
    return ", ".join(told) or "-"


def _of(has: str, most: object) -> str:
    return has if most is None else f"{has}/{most}"
