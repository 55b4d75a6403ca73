"""What a request says of single tokens: it rules them out, or changes their logits.

All that is kept follows from the request and the tokens so far, so that a generation goes on
anywhere as it would have. The order is that of vLLM's sampler (`vllm/v1/sample/sampler.py`).
"""

from collections.abc import Sequence

import numpy as np
import torch

from sllm.node.worker.engine.interface import EngineRequest
from sllm.sampling import Sampling

_OUT = -torch.inf


def shapes(request: EngineRequest, position: int) -> bool:
    """Whether a request says anything of the single token at a position of its generation."""
    sampling = request.sampling
    return bool(
        sampling.logit_bias
        or sampling.allowed_token_ids
        or request.forbidden
        or request.grammar
        or position < sampling.min_tokens
        or _has_penalties(sampling)
    )


class Shape:
    """Follows one request's tokens."""

    def __init__(self, request: EngineRequest, vocabulary: int, device: torch.device) -> None:
        """Begins where the request does.

        Args:
            request: with the tokens of its generation so far at the end of its prompt.
            vocabulary: columns of the logits.
            device: where they are.
        """
        self._sampling = request.sampling
        self._forbidden = request.forbidden
        self._grammar = request.grammar
        end = len(request.prompt) - request.first_position
        self._generated = list(request.prompt[end:])
        stops = sorted(token for token in request.stop_token_ids if 0 <= token < vocabulary)
        self._stops = _index(stops, device)
        self._biased = _index([token for token, _ in self._sampling.logit_bias], device)
        self._biases = torch.tensor([bias for _, bias in self._sampling.logit_bias], device=device)
        self._ruled_out = _all_but(self._sampling.allowed_token_ids, vocabulary, device)
        self._times: torch.Tensor | None = None
        """How often each token was generated."""
        self._in_prompt: torch.Tensor | None = None
        if _has_penalties(self._sampling):
            self._times = _times(self._generated, vocabulary, device)
            self._in_prompt = torch.zeros(vocabulary, dtype=torch.bool, device=device)
            self._in_prompt[_index(request.prompt[:end], device)] = True

    def take(self, token_id: int) -> None:
        """Notes the next token of the generation."""
        self._generated.append(token_id)
        if self._grammar is not None:
            self._grammar.take(token_id)
        if self._times is not None:
            self._times[token_id] += 1

    def apply(self, logits: torch.Tensor) -> None:
        """Changes the logits of the next token, float32 [vocabulary], in place.

        Where that leaves no token, texts that are not to be generated are allowed after all, and a
        text that has its form and could not have more of it ends before `min_tokens`.
        """
        if self._ruled_out is not None:
            logits.masked_fill_(self._ruled_out, _OUT)
        self._keep_form(logits)
        allowed = logits.clone() if self._forbidden else logits
        self._forbid(logits)
        if len(self._generated) < self._sampling.min_tokens and not self._must_end(allowed):
            logits[self._stops] = _OUT
            allowed[self._stops] = _OUT
        if self._forbidden and logits.amax() == _OUT:
            logits.copy_(allowed)
        logits[self._biased] += self._biases
        self._penalise(logits)

    def _keep_form(self, logits: torch.Tensor) -> None:
        if self._grammar is None or (allowed := self._grammar.allowed()) is None:
            return
        if logits.device.type == "cpu":
            # In this thread alone: torch's would wait for each other, and one of them for the
            # processor on which the next tokens of the form are being found out.
            np.copyto(logits.numpy(), _OUT, where=~allowed.numpy())
        else:
            logits.masked_fill_(~allowed.to(logits.device), _OUT)

    def _must_end(self, logits: torch.Tensor) -> bool:
        """Whether the form allows nothing but an end."""
        if self._grammar is None:
            return False
        others = logits.clone()
        others[self._stops] = _OUT
        return bool(others.amax() == _OUT)

    def _forbid(self, logits: torch.Tensor) -> None:
        for *before, last in self._forbidden:
            if not before or self._generated[-len(before) :] == before:
                logits[last] = _OUT

    def _penalise(self, logits: torch.Tensor) -> None:
        if self._times is None or self._in_prompt is None:
            return
        sampling, generated = self._sampling, self._times > 0
        if sampling.repetition_penalty != 1:
            factor = torch.where(
                logits > 0, 1 / sampling.repetition_penalty, sampling.repetition_penalty
            )
            logits *= torch.where(self._in_prompt | generated, factor, 1.0)
        logits -= sampling.frequency_penalty * self._times
        logits -= sampling.presence_penalty * generated


def _has_penalties(sampling: Sampling) -> bool:
    return (
        sampling.repetition_penalty != 1
        or sampling.presence_penalty != 0
        or sampling.frequency_penalty != 0
    )


@torch.inference_mode(False)
def _times(tokens: Sequence[int], vocabulary: int, device: torch.device) -> torch.Tensor:
    """How often each token is there. Tokens are counted outside of an engine's steps as well."""
    times = torch.zeros(vocabulary, device=device)
    return times.index_add_(0, _index(tokens, device), torch.ones(len(tokens), device=device))


def _index(tokens: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(tokens, dtype=torch.int64, device=device)


def _all_but(allowed: Sequence[int], vocabulary: int, device: torch.device) -> torch.Tensor | None:
    if not allowed:
        return None
    ruled_out = torch.ones(vocabulary, dtype=torch.bool, device=device)
    ruled_out[_index(allowed, device)] = False
    return ruled_out
