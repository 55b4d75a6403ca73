"""`sllm deploy` and `rm`."""

from pathlib import Path
from typing import Annotated

import typer

from sllm.cli.common import Control, Json, connect, print_json
from sllm.cli.completion import deployment_names
from sllm.cli.durations import duration_option
from sllm.cli.listings import engine_label
from sllm.cli.progress import LoadingBar
from sllm.cli.sizes import size_option
from sllm.config import DEFAULT_CONTROL, format_bytes

Name = Annotated[
    str,
    typer.Argument(
        help="Name of the deployment.", show_default=False, autocompletion=deployment_names
    ),
]


def deploy(
    name: Name,
    source: Annotated[
        str,
        typer.Argument(
            help="Path of a model's directory, or its URL: file, s3, gs, az, http, https or hf.",
            show_default=False,
        ),
    ],
    keep_alive: Annotated[
        float, duration_option("How long an idle instance stays, such as 90s or 10m.", "60s")
    ] = 60.0,
    min_replicas: Annotated[int, typer.Option(help="Instances kept without requests.")] = 0,
    max_replicas: Annotated[int, typer.Option(help="Instances at most.")] = 1,
    engine: Annotated[
        str,
        typer.Option(help="vllm, transformers, or auto: the first of a node's that can run it."),
    ] = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="torch dtype to convert the weights to, once.")
    ] = None,
    kv_cache_tokens: Annotated[
        int | None, typer.Option(help="Tokens that an instance's KV cache can hold.")
    ] = None,
    max_concurrency: Annotated[
        int | None, typer.Option(help="Requests that an instance works on at once.")
    ] = None,
    target_concurrency: Annotated[
        int | None,
        typer.Option(help="Requests that an instance should have before another is started."),
    ] = None,
    target_time_per_token: Annotated[
        float | None,
        duration_option(
            "Time between two tokens, such as 50ms, for which fewer requests run at once."
        ),
    ] = None,
    learn_keep_alive: Annotated[
        bool | None,
        typer.Option(
            help="End idle instances sooner where the pauses between requests say so.",
            show_default="as the control plane is set up",
        ),
    ] = None,
    pack: Annotated[
        bool,
        typer.Option(
            help="Pack local safetensors on each node; else they stay in place, unless they are a "
            "mixture of experts."
        ),
    ] = False,
    tool_parser: Annotated[
        str, typer.Option(help="vLLM's parser of tool calls, such as hermes.", show_default=False)
    ] = "",
    reasoning_parser: Annotated[
        str, typer.Option(help="vLLM's parser of thoughts, such as qwen3.", show_default=False)
    ] = "",
    tensor_parallel: Annotated[
        int,
        typer.Option(
            min=1,
            help="Devices of one node that an instance runs on together, each with its part of the "
            "model; on nodes without accelerators, processes. It needs vllm.",
        ),
    ] = 1,
    expert_memory: Annotated[
        int | None,
        size_option(
            "Memory for an instance's experts; others stay on SSD until they are used. It needs "
            "transformers.",
            "all in memory",
        ),
    ] = None,
    base: Annotated[
        str,
        typer.Option(
            help="Name of a deployment over which the source is a LoRA adapter.",
            show_default=False,
        ),
    ] = "",
    max_adapters: Annotated[
        int, typer.Option(help="Adapters over it that an instance has at once.")
    ] = 0,
    max_adapter_rank: Annotated[
        int | None, typer.Option(help="The greatest rank of adapters over it. Unset: 64.")
    ] = None,
    chat_template: Annotated[
        Path | None,
        typer.Option(
            help="Jinja file with which conversations are rendered; else the model's own.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    image_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Host that images may be fetched from, *.NAME or *; may be repeated.",
            show_default=False,
        ),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until a node holds the checkpoint.")] = True,
    timeout: Annotated[float | None, duration_option("How long to wait at most.")] = None,
    control: Control = DEFAULT_CONTROL,
    as_json: Json = False,
) -> None:
    """Create a deployment, or change the policy of one."""
    with connect(control) as client, LoadingBar() as bar:
        deployment = client.deploy(
            name,
            source if "://" in source else Path(source),
            keep_alive=keep_alive,
            min_replicas=min_replicas,
            max_replicas=max_replicas,
            engine=engine,
            dtype=dtype,
            kv_cache_tokens=kv_cache_tokens,
            max_concurrency=max_concurrency,
            target_concurrency=target_concurrency,
            learn_keep_alive=learn_keep_alive,
            target_time_per_token=target_time_per_token,
            pack=pack,
            tool_parser=tool_parser,
            reasoning_parser=reasoning_parser,
            tensor_parallel=tensor_parallel,
            expert_memory=expert_memory,
            base=base,
            max_adapters=max_adapters,
            max_adapter_rank=max_adapter_rank,
            chat_template=chat_template.read_text() if chat_template else "",
            image_hosts=image_host or (),
            wait=wait,
            timeout=timeout,
            on_progress=bar.show,
        )
    if as_json:
        print_json(deployment)
    else:
        size = format_bytes(deployment.model.size_bytes)
        adapter = deployment.model.adapter
        kind = f"adapter over {base}, rank {adapter.rank}" if adapter else ""
        what = f"{kind or deployment.model.architecture}, {size}, on {engine_label(deployment)}"
        why = f": {deployment.message}" if deployment.message else ""
        typer.echo(f"{name}: {what}, {deployment.state}{why}")


def rm(name: Name, control: Control = DEFAULT_CONTROL, as_json: Json = False) -> None:
    """End a deployment. Its weights stay until something else needs the room."""
    with connect(control) as client:
        client.delete(name)
    if as_json:
        print_json({"name": name, "deleted": True})
