"""JSON as the safetensors library reads it: what other parsers take in silence is refused.

Python's own parser guesses encodings, takes NaN, half of a surrogate pair and repeated keys, and
nests until its stack is full. Source: serde_json, whose bounds these are.
"""

import json
import math
import re
from typing import Any

MAX_DEPTH = 127
"""Of arrays and objects inside one another."""
_UINT64 = 1 << 64
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse(content: bytes) -> Any:
    """The value that UTF-8 text stands for.

    Numbers too large for 64 bits come out as floats.

    Raises:
        ValueError: it is not JSON, or is more than the strict form allows; says what.
    """
    text = content.decode("utf-8")  # an error of its decoding is a ValueError
    try:
        value = json.loads(
            text,
            object_pairs_hook=_without_repeats,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_no_number,
        )
    except RecursionError as error:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from error
    _check_depth(value)
    if _ESCAPED_SURROGATE.search(content):
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # half of a pair has no encoding
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _integer(digits: str) -> int | float:
    # Shorter than any bound of Python's on digits, and longer than any 64-bit number.
    small = len(digits) <= 20 and digits != "-0"
    number = int(digits) if small else _finite(digits)
    return number if -_UINT64 // 2 <= number < _UINT64 else float(number)


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits[:20]} is no number of 64 bits")
    return number


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        level = [
            inner for one in level for inner in (one.values() if isinstance(one, dict) else one)
        ]
