"""How large a request may be: looked at before anything of it is copied or tokenized."""

from typing import Final

from sllm.errors import ContextExceeded

MAX_BYTES_PER_TOKEN: Final = 64
"""Bytes of a request for each token of context. Text has some four to a token; tokenizers know
longer ones, such as runs of spaces, but no prompt consists of them alone."""
BYTES_BESIDE: Final = 64 * 1024
"""That a request may have whatever the context is: stop strings, and the like."""


def check_size(request_bytes: int, context_tokens: int) -> None:
    """Refuses a request whose prompt cannot fit into the context.

    Args:
        request_bytes: Of the whole request, as it is sent.
        context_tokens: What prompt and generation may have together.

    Raises:
        ContextExceeded: With the numbers.
    """
    most = BYTES_BESIDE + MAX_BYTES_PER_TOKEN * context_tokens
    if request_bytes > most:
        raise ContextExceeded(
            f"the request has {request_bytes} bytes, and a context of {context_tokens} tokens "
            f"takes {most} at most ({MAX_BYTES_PER_TOKEN} for each token): shorten the prompt",
            metadata={
                "request_bytes": str(request_bytes),
                "max_bytes": str(most),
                "context_tokens": str(context_tokens),
            },
        )


def check_tokens(prompt_tokens: int, context_tokens: int) -> None:
    """Refuses a prompt of tokens that leaves no room for another one.

    Raises:
        ContextExceeded: With the numbers.
    """
    if prompt_tokens >= context_tokens:
        raise ContextExceeded(
            f"{prompt_tokens} prompt tokens leave nothing to generate of a context of "
            f"{context_tokens} tokens: shorten the prompt",
            metadata={
                "prompt_tokens": str(prompt_tokens),
                "context_tokens": str(context_tokens),
            },
        )
