"""`sllm generate` and `chat`: text, as it comes."""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sllm import errors
from sllm.cli.common import Control, Json, connect, diagnostics, print_json
from sllm.cli.deployments import Name
from sllm.cli.durations import duration_option
from sllm.cli.progress import LoadingBar
from sllm.cli.receipts import waterfall
from sllm.client.types.chats import ChatMessage, ContentPart, StructuredOutput
from sllm.client.types.events import ChoiceFinished, Event, Loading, Result, Tokens
from sllm.config import DEFAULT_CONTROL

if TYPE_CHECKING:
    from sllm import Stream

MaxTokens = Annotated[
    int | None, typer.Option(help="Tokens at most.", show_default="what the context leaves")
]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopP = Annotated[float | None, typer.Option(help="Keep the likeliest tokens up to this sum.")]
TopK = Annotated[int | None, typer.Option(help="Keep this many of the likeliest tokens.")]
Seed = Annotated[int | None, typer.Option(help="Makes the draws repeatable.")]
Images = Annotated[
    list[Path] | None,
    typer.Option(
        "--image",
        help="File of an image that the model is shown before the text; may be repeated.",
        dir_okay=False,
        show_default=False,
    ),
]


def generate(
    name: Name,
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="Text to continue; - or nothing takes it from standard input, less the end of "
            "its last line.",
            show_default=False,
        ),
    ] = None,
    image: Images = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = 1.0,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1, what there was gets less likely.")
    ] = None,
    presence_penalty: Annotated[
        float | None, typer.Option(help="-2 to 2, of tokens that were generated.")
    ] = None,
    frequency_penalty: Annotated[
        float | None, typer.Option(help="-2 to 2, for each time that they were.")
    ] = None,
    min_tokens: Annotated[int | None, typer.Option(help="Do not end before.")] = None,
    bad_word: Annotated[
        list[str] | None, typer.Option(help="Text not to generate; may be repeated.")
    ] = None,
    json_schema: Annotated[
        Path | None, typer.Option(help="Generate JSON of the schema in this file.", dir_okay=False)
    ] = None,
    json_object: Annotated[
        bool, typer.Option("--json-object", help="Generate any JSON object.")
    ] = False,
    regex: Annotated[str | None, typer.Option(help="Generate what matches all of this.")] = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="Generate one of these; may be repeated.")
    ] = None,
    grammar: Annotated[
        Path | None,
        typer.Option(help="Generate what the EBNF in this file allows.", dir_okay=False),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be repeated.")
    ] = None,
    include_stop: Annotated[
        bool, typer.Option("--include-stop", help="End behind the stop text, not before it.")
    ] = False,
    special_tokens: Annotated[
        bool, typer.Option("--special-tokens", help="Show special tokens in the text.")
    ] = False,
    n: Annotated[
        int, typer.Option("--n", help="Samples to generate, shown as they end.", min=1)
    ] = 1,
    timeout: Annotated[float | None, duration_option("Time for all of it, such as 30s.")] = None,
    failover: Annotated[
        bool, typer.Option(help="Go on elsewhere if what serves it is lost.")
    ] = True,
    priority: Annotated[
        int, typer.Option(help="-100 to 100; those of a higher one are served first.")
    ] = 0,
    keep_alive: Annotated[
        float | None,
        duration_option("How long the instance stays at least when this has ended."),
    ] = None,
    zone: Annotated[
        str | None, typer.Option(help="Where you are; it is served near there.")
    ] = None,
    receipt: Annotated[
        bool, typer.Option("--receipt", help="Show where the time to the first token went.")
    ] = False,
    control: Control = DEFAULT_CONTROL,
    as_json: Json = False,
) -> None:
    """Continue a text, or say something of images. --json prints the whole result in the end."""
    text = said(prompt)
    messages = [shown(text, image)] if image else None
    form = _form(json_schema, json_object, regex, choice, grammar)
    with (
        connect(control) as client,
        client.generate(
            name,
            None if messages else text,
            messages=messages,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            min_tokens=min_tokens,
            bad_words=bad_word,
            structured_output=form,
            stop=stop or (),
            include_stop=include_stop,
            skip_special_tokens=not special_tokens,
            timeout=timeout,
            failover=failover,
            priority=priority,
            keep_alive=keep_alive,
            zone=zone,
            n=n if n > 1 else None,
        ) as stream,
    ):
        told = show if n == 1 else _show_samples
        result = stream.result() if as_json else told(stream)
    if as_json:
        print_json(result)
    if receipt:
        diagnostics().print(waterfall(result.receipt))


def said(prompt: str | None) -> str:
    """The prompt as it was given, or as it comes from standard input."""
    if prompt is not None and prompt != "-":
        return prompt
    text = "" if prompt is None and sys.stdin.isatty() else _read_all()
    if prompt is None and not text:
        raise typer.BadParameter("give a text, or write one to standard input", param_hint="PROMPT")
    return text


def shown(text: str, images: Sequence[Path]) -> ChatMessage:
    """What a user says of images."""
    seen: list[ContentPart] = [
        {"type": "image", "data": _read_bytes(one, "--image")} for one in images
    ]
    return {"role": "user", "content": [*seen, {"type": "text", "text": text}]}


def _form(
    json_schema: Path | None,
    json_object: bool,
    regex: str | None,
    choice: list[str] | None,
    grammar: Path | None,
) -> StructuredOutput | None:
    """What the options say of the text's form; more than one is for the client to refuse."""
    form = StructuredOutput()
    if json_schema is not None:
        form["json_schema"] = _read_file(json_schema, "--json-schema")
    if json_object:
        form["json_object"] = True
    if regex is not None:
        form["regex"] = regex
    if choice:
        form["choice"] = choice
    if grammar is not None:
        form["grammar"] = _read_file(grammar, "--grammar")
    return form or None


def _read_file(path: Path, option: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}", param_hint=option) from error


def _read_bytes(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}", param_hint=option) from error


def _read_all() -> str:
    """Standard input, less the end of its last line, which `echo` adds."""
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise errors.InvalidPrompt(f"standard input is not UTF-8: {error}") from error


def chat(
    name: Name,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    image: Images = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = 1.0,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    control: Control = DEFAULT_CONTROL,
) -> None:
    """Talk to a model. Ctrl-C stops an answer, Ctrl-D ends the conversation."""
    conversation: list[ChatMessage] = []
    if system is not None:
        conversation.append({"role": "system", "content": system})
    with connect(control) as client:
        while (said := _ask()) is not None:
            conversation.append(shown(said, image) if image else {"role": "user", "content": said})
            image = None  # they have been shown
            stream = client.generate(
                name,
                messages=conversation,
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                seed=seed,
            )
            conversation.append({"role": "assistant", "content": _answer(stream)})


def _ask() -> str | None:
    """What the user says next. None: nothing more."""
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None


def _answer(stream: "Stream") -> str:
    """Shows an answer, and returns what was said before the end or Ctrl-C."""
    said: list[str] = []
    with stream, suppress(KeyboardInterrupt):
        for event in _events(stream):
            _write(typer.style(event.reasoning, dim=True) if event.reasoning else "")
            _write(event.text)
            said.append(event.text)
    _write("\n")
    return "".join(said)


def show(stream: "Stream") -> Result:
    """Writes the text to stdout as it comes."""
    for event in _events(stream):
        _write(event.text)
    _write("\n")
    return stream.result()


def _show_samples(stream: "Stream") -> Result:
    """Writes each of several samples to stdout as it ends, under its number."""
    texts: dict[int, list[str]] = defaultdict(list)
    for event in _told(stream):
        if isinstance(event, Tokens):
            texts[event.choice].append(event.text)
        elif isinstance(event, ChoiceFinished):
            _write(f"[{event.choice}]\n{''.join(texts.pop(event.choice, ()))}\n")
    return stream.result()


def _events(stream: "Stream") -> Iterator[Tokens]:
    """The pieces of the answer as they come."""
    return (event for event in _told(stream) if isinstance(event, Tokens))


def _told(stream: "Stream") -> Iterator[Event]:
    """What is said of the answer as it comes; until its first piece, a cold start is shown."""
    with LoadingBar() as bar:
        for event in stream:
            if isinstance(event, Loading):
                bar.show(event)
            if isinstance(event, Tokens):
                bar.hide()
            yield event


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
