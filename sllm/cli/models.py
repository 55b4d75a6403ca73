"""`sllm model` and `tokenize`: what a deployment's model makes of text."""

from typing import Annotated

import typer
from rich.markup import escape

from sllm.cli.common import Control, Json, connect, output, print_json
from sllm.cli.deployments import Name
from sllm.cli.generate import said
from sllm.cli.tables import Listing
from sllm.client.types.models import ModelDetails
from sllm.config import DEFAULT_CONTROL, format_bytes
from sllm.embedding.purpose import Purpose, Task


def model(name: Name, control: Control = DEFAULT_CONTROL, as_json: Json = False) -> None:
    """Show a deployment's model: context, vocabulary, special tokens, chat template."""
    with connect(control) as client:
        found = client.model(name)
    if as_json:
        print_json(found)
        return
    output().print(_table(found))
    if found.chat_template:
        typer.echo(found.chat_template)


def _table(found: ModelDetails) -> Listing:
    table = Listing("WHAT", "VALUE", folded=("VALUE",))
    named = [f"{one.text} ({one.token_id})" for one in found.special_tokens]
    rows = {
        "architecture": found.info.architecture,
        **_adapter(found),
        **_purpose(found.info.purpose),
        "engine": found.engine,
        "dtype": found.dtype,
        "size": format_bytes(found.info.size_bytes),
        "context": f"{found.context_tokens} tokens of {found.info.context_tokens}",
        "vocabulary": str(found.vocabulary_size),
        "special tokens": " ".join(named) or "none",
        "ends with": " ".join(map(str, found.stop_token_ids)) or "no token",
        "tools": "yes" if found.takes_tools else "no",
        "chat template": "below" if found.chat_template else "none",
    }
    for what, value in rows.items():
        table.add_row(what, escape(value))
    return table


def _adapter(found: ModelDetails) -> dict[str, str]:
    adapter = found.info.adapter
    if adapter is None:
        return {}
    modules = ", ".join(adapter.target_modules)
    return {"adapter": f"over {found.base}, rank {adapter.rank}, on {modules}"}


def _purpose(purpose: Purpose) -> dict[str, str]:
    """What a model is for, and what it gives."""
    rows = {"task": str(purpose.task)}
    if purpose.task is Task.EMBED:
        length = "of length 1" if purpose.normalizes else "of any length"
        shorter = ", ".join(map(str, purpose.matryoshka_dimensions)) or "any number"
        rows["vectors"] = f"{purpose.dimensions} numbers, {length}, by {purpose.pooling} pooling"
        rows["shorter ones"] = shorter if purpose.matryoshka else "none"
    if purpose.task is Task.SCORE:
        rows["scores"] = f"{', '.join(purpose.labels)} (by {purpose.activation})"
    return rows


def tokenize(
    name: Name,
    text: Annotated[
        str | None,
        typer.Argument(
            help="Text; - or nothing takes it from standard input, less the end of its last line.",
            show_default=False,
        ),
    ] = None,
    special_tokens: Annotated[
        bool, typer.Option(help="With the special tokens that the tokenizer adds.")
    ] = True,
    count: Annotated[bool, typer.Option("--count", help="Only how many there are.")] = False,
    control: Control = DEFAULT_CONTROL,
    as_json: Json = False,
) -> None:
    """Show the tokens that a model makes of a text."""
    prompt = said(text)
    with connect(control) as client:
        if count:
            counted = client.count_tokens(name, prompt, add_special_tokens=special_tokens)
        else:
            ids = client.tokenize(name, prompt, add_special_tokens=special_tokens)
    if count:
        _tell(counted, f"{counted.tokens} of {counted.context_tokens}", as_json=as_json)
    else:
        _tell({"token_ids": ids}, " ".join(map(str, ids)), as_json=as_json)


def _tell(found: object, line: str, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        typer.echo(line)
