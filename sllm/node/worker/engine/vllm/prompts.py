"""Logprobs of prompts on vLLM, from what its runner computes in each step.

The runner's own way makes logits of all of a prompt's tokens in a step at once: with 152,000 tokens
in the vocabulary 660 MB, for which no node has set memory aside. So a method of it is replaced by
one that takes a few rows after the other. A newer runner, which takes few at once by itself, has
no such method; there vLLM's own logprobs are asked for.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import torch

from sllm.node.worker.engine.vllm.batch import Running

_METHOD: Final = "_get_prompt_logprobs_dict"
"""Called with the hidden states of a step."""


class PromptReader:
    """Belongs to the engine's thread, once it is attached."""

    def __init__(self, running: Callable[[str], Running | None]) -> None:
        """`running` gives the request of an id in the core, if anybody wants its tokens."""
        self._running = running
        self.attached = False
        """Whether prompts are read here, and vLLM is not to be asked."""

    def attach(self, core: Any) -> None:
        """Has a core's runner show what it computes, if it is one that does."""
        runner = core.model_executor.driver_worker.worker.model_runner
        self.attached = hasattr(runner, _METHOD)
        if self.attached:
            setattr(runner, _METHOD, partial(self._read, runner))

    def _read(
        self, runner: Any, hidden_states: torch.Tensor, scheduled: Mapping[str, int]
    ) -> dict[str, None]:
        """Reads the parts of prompts in a step; of vLLM's own logprobs there are none.

        Args:
            runner: Whose step it is.
            hidden_states: [tokens, width], as the last layer has left them.
            scheduled: Tokens of each request, by its id in the core.
        """
        for key, count in scheduled.items():
            running = self._running(key)
            if running is None or running.scores is None:
                continue
            row = int(runner.query_start_loc.np[runner.input_batch.req_id_to_index[key]])
            first = runner.requests[key].num_computed_tokens
            if part := running.scores.part(row, first, count):
                hidden = hidden_states[row : row + part.count]
                running.scores.put(first, hidden, runner.model.compute_logits)
        return {}
