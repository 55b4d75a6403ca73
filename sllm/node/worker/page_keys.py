"""The names of pages of KV caches: the same for the same tokens, whoever computes them."""

import hashlib
from array import array

from sllm.node.worker.engine.pages import PageLayout, Prefix

KEY_BYTES = 16


def space_key(scope: str, layout: PageLayout) -> bytes:
    """What all keys of one scope follow from.

    Pages are told by more than their tokens: whoever could have others' pages found for tokens of
    their own would learn, by the time that a prompt takes, what others have sent.
    """
    return _digest(b"", f"{len(scope)} {scope} {layout.name}".encode())


def page_keys(space: bytes, layout: PageLayout, prefix: Prefix, count: int) -> list[bytes]:
    """Of the first pages of a prefix; each follows from the one before, and from its tokens."""
    key = _digest(space, prefix.adapter.name.encode()) if prefix.adapter else space
    keys: list[bytes] = []
    for begin in range(0, count * layout.tokens, layout.tokens):
        tokens = array("q", prefix.tokens[begin : begin + layout.tokens])
        key = _digest(key, tokens.tobytes())
        keys.append(key)
    return keys


def _digest(before: bytes, content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=KEY_BYTES, key=before).digest()
