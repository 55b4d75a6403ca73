"""Has a module of transformers give logits for prompts, which continuous batching leaves out.

It asks the module for the rows that a token follows from (`logits_to_keep`). Where logprobs of a
prompt are wanted, the module is asked for the rows of that part as well, and they are taken out of
what it gives before anybody else sees it: so they are the module's own, whatever it does behind
its last layer.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch

from sllm.node.worker.engine.prompt_scores import PromptRows

_KEPT: Final = "logits_to_keep"


class PromptHooks:
    """Belongs to the engine's thread."""

    def __init__(self) -> None:
        self._parts: Sequence[PromptRows] = ()
        self._handles: list[Any] = []

    def attach(self, model: Any) -> None:
        """Stands before and behind the model's passes from now on."""
        self._handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._behind, with_kwargs=True),
        ]

    def detach(self) -> None:
        """Leaves the model as it was."""
        for handle in self._handles:
            handle.remove()

    def expect(self, parts: Sequence[PromptRows]) -> None:
        """Says which parts of prompts the next pass has, of those that are asked for."""
        self._parts = parts

    def _rows(self) -> list[int]:
        return [row for part in self._parts for row in part.rows]

    def _before(self, _: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if not self._parts or _KEPT not in kwargs:
            return None
        kept = kwargs[_KEPT]
        return args, {**kwargs, _KEPT: torch.cat([kept.new_tensor(self._rows()), kept])}

    def _behind(self, _: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if not self._parts:
            return
        rows = self._rows()
        if (
            _KEPT in kwargs
        ):  # without it, the module has given all rows, of which others take theirs
            asked, output.logits = output.logits[0, : len(rows)], output.logits[:, len(rows) :]
        else:
            asked = output.logits[0, rows]
        place = 0
        for part in self._parts:
            part.scores.put(part.first_index, asked[place : place + part.count])
            place += part.count
        self._parts = ()
