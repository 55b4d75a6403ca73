"""Forms as llguidance's grammars; as a program, whether llguidance can have one.

The program is for what strangers send: a grammar may take any time and memory, or more of the stack
than there is, and then it is this process that ends. It imports nothing else of ours, to be quick.
"""

import json
import os
import resource
import sys
import threading
from collections.abc import Sequence
from typing import Any, Final

import llguidance
from llguidance.gbnf_to_lark import any_to_lark

CPU_SECONDS: Final = 5
_MEMORY_BYTES: Final = 1 << 30
_STACK_BYTES: Final = 2 << 20
"""A quarter of what threads have that use a grammar afterwards."""
_NICENESS: Final = 10
_OBJECT: Final = '{"type": "object"}'


def grammar_of(kind: str, texts: Sequence[str]) -> str:
    """A form as llguidance takes it.

    Args:
        kind: one of `Kind`.
        texts: as in `Form`.

    Raises:
        ValueError: It cannot be read at all; the message says where.
        RecursionError: It is nested too deeply.
    """
    matcher = llguidance.LLMatcher
    match kind:
        case "json_schema":
            return matcher.grammar_from_json_schema(texts[0])
        case "json_object":
            return matcher.grammar_from_json_schema(_OBJECT)
        case "regex":
            return matcher.grammar_from_regex(texts[0])
        case "choice":
            choices = " | ".join(map(_literal, texts))
            return _of_lark(f"start: {choices}")
        case _:
            return _of_lark(_lark(texts[0]))


def _of_lark(grammar: str) -> str:
    """As JSON, in which no letter ends a text for C."""
    return json.dumps({"grammars": [{"lark_grammar": grammar}]})


def _literal(text: str) -> str:
    """A text as Lark writes it, which takes no control character as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _lark(grammar: str) -> str:
    try:
        return any_to_lark(grammar)
    except RecursionError:
        raise
    except Exception as error:  # what its parser of GBNF raises
        raise ValueError(str(error)) from error


def problem(kind: str, texts: Sequence[str]) -> str:
    """What is wrong with a form, in words; empty if nothing is."""
    try:
        if kind == "json_schema" and (wrong := _wrong_in_schema(json.loads(texts[0]))):
            return wrong
        grammar = grammar_of(kind, texts)
    except RecursionError:
        return "it is nested too deeply"
    except MemoryError:
        return "it takes more memory than a form may"
    except Exception as error:  # whatever a library makes of what is no schema or grammar
        return str(error) or repr(error)
    refused, said = llguidance.LLMatcher.validate_grammar_with_warnings(grammar)
    return "; ".join(said) if refused else ""


def _wrong_in_schema(schema: Any) -> str:
    """What the standard does not allow in a schema, and at which place."""
    if type(schema) not in (dict, bool):
        return "a schema is an object, true or false"
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.validators import validator_for

    try:
        validator_for(schema, Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        return f"at {error.json_path}: {error.message}"
    return ""


def main() -> None:
    """Reads a form from standard input, and writes what is wrong with it, both as JSON."""
    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    kind, texts = json.load(sys.stdin)
    threading.stack_size(_STACK_BYTES)
    checking = threading.Thread(target=lambda: json.dump(problem(kind, texts), sys.stdout))
    checking.start()
    checking.join()


if __name__ == "__main__":
    main()
