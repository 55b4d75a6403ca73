"""`sllm run`: one generation of a model that is deployed for it alone."""

import re
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from sllm import errors
from sllm.cli.common import Control, Json, connect, diagnostics, print_json
from sllm.cli.generate import (
    MaxTokens,
    Seed,
    Temperature,
    TopP,
    said,
    show,
)
from sllm.cli.progress import LoadingBar
from sllm.cli.receipts import waterfall
from sllm.config import DEFAULT_CONTROL

if TYPE_CHECKING:
    from sllm import Client

_NAME_CHARACTERS: Final = 48
"""Of a source's name in a deployment's, which may have 63."""


def run(
    source: Annotated[
        str, typer.Argument(help="A model: a directory or a URL.", show_default=False)
    ],
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="Text to continue; - or nothing takes it from standard input.",
            show_default=False,
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Say it as a message of a conversation.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the model deployed, under its source's name.")
    ] = False,
    engine: Annotated[str, typer.Option(help="vllm, transformers or auto.")] = "auto",
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 1.0,
    top_p: TopP = None,
    seed: Seed = None,
    receipt: Annotated[
        bool, typer.Option("--receipt", help="Show where the time to the first token went.")
    ] = False,
    control: Control = DEFAULT_CONTROL,
    as_json: Json = False,
) -> None:
    """Deploy a model, generate, and remove it again. Its weights stay for the next time."""
    text = said(prompt)
    base = name_of(source)
    name = base if keep else f"{base}-{uuid.uuid4().hex[:8]}"
    with (
        connect(control) as client,
        _deployed(client, name, source, engine, keep=keep),
        client.generate(
            name,
            None if chat else text,
            messages=[{"role": "user", "content": text}] if chat else None,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        ) as stream,
    ):
        result = stream.result() if as_json else show(stream)
    if as_json:
        print_json(result)
    if receipt:
        diagnostics().print(waterfall(result.receipt))
    if keep:
        diagnostics().print(f"{name} stays deployed: sllm generate {name}, sllm rm {name}")


def name_of(source: str) -> str:
    """A deployment's name made of the last part of a source, without the hub's revision."""
    last = source.rstrip("/").rpartition("/")[2].partition("@")[0]
    name = re.sub(r"[^a-z0-9._-]+", "-", last.lower())[:_NAME_CHARACTERS]
    return name.strip("._-") or "model"


@contextmanager
def _deployed(
    client: "Client", name: str, source: str, engine: str, *, keep: bool
) -> Iterator[None]:
    """The model is deployed within the context, however that ends, and no longer unless kept."""
    with _ended_by_sigterm():
        try:
            with LoadingBar() as bar:
                place = source if "://" in source else Path(source)
                client.deploy(name, place, engine=engine, on_progress=bar.show)
            yield
        finally:
            if not keep:
                with suppress(errors.DeploymentNotFound):  # it never came to be
                    client.delete(name)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends it as Ctrl-C does: by an exception, so that what is to be undone is."""

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
