"""llguidance through its C interface (`llguidance.h`), whose calls leave Python's lock to others.

Its Python classes hold that lock while they make a tree of the vocabulary: most of a second with
150,000 tokens, in which an engine beside them computes nothing.

    tree = TokenTree(tokenizer.backend_tokenizer, tokens=1024, ends=[2])
    matcher = Matcher(tree, LLMatcher.grammar_from_regex("[a-z]+"), Limits())
    matcher.fill(mask := matcher.new_mask())
"""

import ctypes
import json
import weakref
from collections.abc import Callable, Sequence
from ctypes import (
    CFUNCTYPE,
    POINTER,
    byref,
    c_bool,
    c_char_p,
    c_int32,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import llguidance._lib
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Mask = NDArray[np.uint32]
"""One bit for each token, the first in the lowest."""

_ADDED: Final = '"added_tokens":'
_MARKER: Final = "\x02"
"""What no token begins with or ends in but its own."""
_MESSAGE_BYTES: Final = 1_000

_Tokenize = CFUNCTYPE(c_size_t, c_void_p, c_void_p, c_size_t, POINTER(c_uint32), c_size_t)
"""`LlgTokenizeFn`: of some bytes, into an array that may be too small."""


@dataclass(frozen=True)
class Limits:
    """What a text in its form may take; see `LlgParserLimits`."""

    max_lexer_states: int = 250_000
    step_lexer_fuel: int = 200_000


class _TokenizerInit(ctypes.Structure):
    """`LlgTokenizerInitV2`, which says its own size and grows at its end alone."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("vocab_size", c_uint32),
        ("tok_eos", c_uint32),
        ("token_lens", c_void_p),
        ("token_bytes", c_void_p),
        ("tokenizer_json", c_char_p),
        ("tokenize_assumes_string", c_bool),
        ("tokenize_fn", _Tokenize),
        ("use_approximate_greedy_tokenize_fn", c_bool),
        ("tokenize_user_data", c_void_p),
        ("slices", c_void_p),
        ("tok_eos_extra", POINTER(c_uint32)),
        ("tok_eos_extra_count", c_uint32),
    )


class _ParserLimits(ctypes.Structure):
    """`LlgParserLimits`."""

    _fields_ = (
        ("max_items_in_row", c_size_t),
        ("initial_lexer_fuel", c_uint64),
        ("step_lexer_fuel", c_uint64),
        ("step_max_items", c_size_t),
        ("max_lexer_states", c_size_t),
        ("max_grammar_size", c_size_t),
        ("precompute_large_lexemes", c_bool),
        ("verbose_errors", c_bool),
    )


class _MatcherInit(ctypes.Structure):
    """`LlgConstraintInit`."""

    _fields_ = (
        ("tokenizer", c_void_p),
        ("log_buffer_level", c_uint32),
        ("log_stderr_level", c_uint32),
        ("ff_tokens_ok", c_bool),
        ("backtrack_ok", c_bool),
        ("limits", _ParserLimits),
    )


_FUNCTIONS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "llg_new_tokenizer_v2": (c_void_p, (POINTER(_TokenizerInit), c_char_p, c_size_t)),
    "llg_free_tokenizer": (None, (c_void_p,)),
    "llg_constraint_init_set_defaults": (None, (POINTER(_MatcherInit), c_void_p)),
    "llg_new_matcher": (c_void_p, (POINTER(_MatcherInit), c_char_p, c_char_p)),
    "llg_free_matcher": (None, (c_void_p,)),
    "llg_matcher_get_mask_byte_size": (c_size_t, (c_void_p,)),
    "llg_matcher_compute_mask_into": (c_int32, (c_void_p, c_void_p, c_size_t)),
    "llg_matcher_consume_tokens": (c_int32, (c_void_p, POINTER(c_uint32), c_size_t)),
    "llg_matcher_get_error": (c_char_p, (c_void_p,)),
    "llg_matcher_is_stopped": (c_bool, (c_void_p,)),
}


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(llguidance._lib.__file__)
    for name, (returned, taken) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = returned, taken
    return library


class TokenTree:
    """A vocabulary as llguidance looks through it. Takes up to a second."""

    def __init__(self, tokenizer: Tokenizer, *, tokens: int, ends: Sequence[int]) -> None:
        """Takes a tokenizer.

        Args:
            tokenizer: nobody changes it any more.
            tokens: that there are, no fewer than the tokenizer has.
            ends: tokens that end a text, one at least.

        Raises:
            ValueError: It is of a kind that llguidance does not know.
        """
        # What the C side calls has to live for as long as any matcher.
        self._tokenize = _Tokenize(_into(tokenizer))
        extra = (c_uint32 * len(ends))(*ends[1:])
        init = _TokenizerInit(
            struct_size=ctypes.sizeof(_TokenizerInit),
            vocab_size=tokens,
            tok_eos=ends[0],
            tokenizer_json=_as_special(tokenizer.to_str()).encode(),
            tokenize_assumes_string=True,
            tokenize_fn=self._tokenize,
            tok_eos_extra=extra,
            tok_eos_extra_count=len(ends) - 1,
        )
        said = ctypes.create_string_buffer(_MESSAGE_BYTES)
        self.handle = _library().llg_new_tokenizer_v2(byref(init), said, _MESSAGE_BYTES)
        if not self.handle:
            raise ValueError(said.value.decode(errors="replace"))
        weakref.finalize(self, _library().llg_free_tokenizer, self.handle)


def _into(tokenizer: Tokenizer) -> Callable[..., int]:
    def tokenize(_: None, text: int, size: int, into: Any, room: int) -> int:
        tokens = text_tokens(tokenizer, ctypes.string_at(text, size).decode())
        for place, token in enumerate(tokens[:room]):
            into[place] = token
        return len(tokens)

    return tokenize


def text_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text that goes on from another: without the space that some begin with."""
    marked, marker = (_tokens(tokenizer, one) for one in (_MARKER + text, _MARKER))
    goes_on = marked[: len(marker)] == marker
    return marked[len(marker) :] if goes_on else _tokens(tokenizer, text)


def _tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    found = tokenizer.encode(text, add_special_tokens=False)
    return [token for token, told in zip(found.ids, found.attention_mask, strict=True) if told]


def _as_special(tokenizer: str) -> str:
    """Has added tokens in angle brackets as special ones, which grammars name and texts lack.

    That is what llguidance's Python classes do by themselves.
    """
    start = tokenizer.index(_ADDED) + len(_ADDED)
    added, end = json.JSONDecoder().raw_decode(tokenizer, start)
    for token in added:
        token["special"] |= token["content"].startswith("<") and token["content"].endswith(">")
    return tokenizer[:start] + json.dumps(added) + tokenizer[end:]


class Matcher:
    """A text's place in its grammar. Belongs to one thread at a time."""

    def __init__(self, tree: TokenTree, grammar: str, limits: Limits) -> None:
        """Begins. Whether that went well, `problem` tells.

        Args:
            tree: the vocabulary; the matcher keeps it.
            grammar: as the functions `LLMatcher.grammar_from_…` give it.
            limits: of what it takes.
        """
        library = _library()
        self._tree = tree
        init = _MatcherInit()
        library.llg_constraint_init_set_defaults(byref(init), tree.handle)
        init.log_stderr_level = 0
        init.limits.max_lexer_states = limits.max_lexer_states
        init.limits.step_lexer_fuel = limits.step_lexer_fuel
        self._handle = library.llg_new_matcher(byref(init), b"llguidance", grammar.encode())
        weakref.finalize(self, library.llg_free_matcher, self._handle)

    def problem(self) -> str:
        """What has brought it to its end; empty while nothing has."""
        said = _library().llg_matcher_get_error(self._handle)
        return said.decode(errors="replace") if said else ""

    def is_stopped(self) -> bool:
        """Whether nothing can come any more, be it for a problem."""
        return bool(_library().llg_matcher_is_stopped(self._handle))

    def consume(self, tokens: Sequence[int]) -> bool:
        """Goes on by tokens; whether the grammar has them."""
        taken = (c_uint32 * len(tokens))(*tokens)
        return bool(_library().llg_matcher_consume_tokens(self._handle, taken, len(tokens)) == 0)

    def new_mask(self) -> Mask:
        """One that `fill` fills."""
        size = _library().llg_matcher_get_mask_byte_size(self._handle)
        return np.zeros(size // np.uint32().nbytes, np.uint32)

    def fill(self, mask: Mask) -> None:
        """Has set the bits of the tokens that may come next; none where there is a problem."""
        filled = _library().llg_matcher_compute_mask_into(
            self._handle, mask.ctypes.data, mask.nbytes
        )
        if filled != 0:
            mask[:] = 0
