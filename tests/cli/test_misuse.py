"""Arguments that are none: told in words of ours, whatever reads them."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from sllm.cli.app import app
from sllm.cli.misuse import reworded
from tests.cli.conftest import Run

VALUES = ("bogus", "-1", "1.5", "1e99", "9" * 4400)
"""Each is wrong for some options."""
PYDANTICS = ("Input should", "Value error", "Unable to parse", "unable to", "valid")


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, one in getattr(command, "commands", {}).items():
        yield from commands(one, (*path, name))
    if not hasattr(command, "commands"):
        yield " ".join(path), command


ALL = dict(commands(typer.main.get_command(app)))


def problems(name: str) -> Iterator[tuple[str, str]]:
    """What is said of each option with each value. Nothing is run: it is the context that reads."""
    for option in (one for one in ALL[name].params if one.opts[0].startswith("-")):
        for value in () if option.is_flag else VALUES:
            try:
                ALL[name].make_context(name, [option.opts[0], value])
            except typer.BadParameter as error:
                yield f"{name} {option.opts[0]} {value[:9]}", reworded(error).message
            except (typer.Exit, typer.BadParameter.__base__):  # type: ignore[misc]  # has no name
                pass  # that value is good; another argument is missing


@pytest.mark.parametrize("name", sorted(ALL))
def test_no_option_is_refused_in_the_words_of_a_library(name: str) -> None:
    for where, message in problems(name):
        assert not any(words in message for words in PYDANTICS), f"{where}: {message}"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("migrate", "i", "--way", "bogus"), "'bogus' is not one of 'tokens', 'pages'"),
        (("tenants", "set", "acme", "--requests", "many"), "'many' is no whole number"),
        (("tenants", "set", "acme", "--weight", "much"), "'much' is no number"),
        (("logs", "--tail", "-1"), "-1 is too little: it has to be at least 0"),
        (("up", "--port", "65536"), "65536 is too much: it may be at most 65535"),
    ],
)
def test_what_is_wrong_is_told_with_what_is_not(
    run: Run, arguments: tuple[str, ...], told: str
) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    assert told in " ".join(outcome.err.replace("│", " ").split())


def test_programs_are_told_the_same(run: Run) -> None:
    told = json.loads(run("migrate", "i", "--way", "bogus", "--json").err)["error"]
    assert told["message"].endswith("'--way': 'bogus' is not one of 'tokens', 'pages'.")
