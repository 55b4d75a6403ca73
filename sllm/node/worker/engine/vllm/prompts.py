"""Logprobs of prompts on vLLM, from what its runner computes in each step.

The runner's own way makes logits of all of a prompt's tokens in a step at once: with 152,000 tokens
in the vocabulary 660 MB, for which no node has set memory aside. So a method of it is replaced by
one that takes a few rows after the other. A newer runner, which takes few at once by itself, has
no such method; there vLLM's own logprobs are asked for.

All ranks of a model have to make logits together. So they go by what is said in the core's request,
also where nobody wants it any more.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

import torch

from sllm.node.worker.engine.prompt_scores import PromptScores, in_pieces
from sllm.node.worker.engine.vllm.batch import Running

SCORED: Final = "scored"
"""Which of the extra arguments of a request says that its prompt's logprobs are wanted."""
_METHOD: Final = "_get_prompt_logprobs_dict"
"""Called with the hidden states of a step."""


class _Part(NamedTuple):
    """Of a prompt, in a step."""

    key: str
    """Of its request in the core."""
    first: int
    """Index in the prompt of its first token."""
    hidden: torch.Tensor
    """[tokens, width], of those that are followed by another."""


class PromptReader:
    """Belongs to the engine's thread, once it is attached."""

    def __init__(self, running: Callable[[str], Running | None]) -> None:
        """`running` gives the request of an id in the core, if anybody wants its tokens."""
        self._running = running
        self.attached = False
        """Whether prompts are read here, and vLLM is not to be asked."""

    def attach(self, runner: Any) -> None:
        """Has a runner of vLLM's show what it computes, if it is one that does."""
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
        vocabulary = runner.model_config.get_vocab_size()
        for part in _parts(runner, hidden_states, scheduled):
            scores = self._scores(part.key)
            for start, some in in_pieces(part.hidden, vocabulary):
                logits = runner.model.compute_logits(some)
                if scores is not None:
                    scores.put(part.first + start, logits)
        return {}

    def _scores(self, key: str) -> PromptScores | None:
        running = self._running(key)
        return running.scores if running else None


def _parts(
    runner: Any, hidden_states: torch.Tensor, scheduled: Mapping[str, int]
) -> Iterator[_Part]:
    for key, count in scheduled.items():
        request = runner.requests[key]
        if not request.sampling_params.extra_args.get(SCORED):
            continue
        first = request.num_computed_tokens
        count = min(count, request.num_prompt_tokens - 1 - first)
        if count > 0:
            row = int(runner.query_start_loc.np[runner.input_batch.req_id_to_index[key]])
            yield _Part(key, first, hidden_states[row : row + count])
