"""How long computing a token of a prompt takes."""

import time
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

_LEAST_TOKENS: Final = 16
"""Of a step whose time tells it."""
_HALF_LIFE_TOKENS: Final = 2048


class Pace:
    """What steps of many tokens tell of it.

    In the engine's thread.
    """

    def __init__(self) -> None:
        self.seconds_per_token: float | None = None
        """None: no such step was seen."""
        self._began = 0.0
        self._tokens = 0

    def begin(self, tokens: int) -> None:
        """A step of so many tokens begins."""
        self._began, self._tokens = time.monotonic(), tokens

    def ending(self, mark: Callable[..., Any]) -> Callable[..., Any]:
        """What marks pages, and ends the step first.

        transformers has a step's tokens then, from whichever device.
        """

        @wraps(mark)
        def marked(*args: Any, **kwargs: Any) -> Any:
            self.end()
            return mark(*args, **kwargs)

        return marked

    def end(self) -> None:
        """The step has ended. A second call does nothing."""
        tokens, self._tokens = self._tokens, 0
        if tokens < _LEAST_TOKENS:
            return
        seen = (time.monotonic() - self._began) / tokens
        known = seen if self.seconds_per_token is None else self.seconds_per_token
        kept = 0.5 ** (tokens / _HALF_LIFE_TOKENS)
        self.seconds_per_token = kept * known + (1 - kept) * seen
