"""A trace of the shape of Azure's: how often functions are asked for, how long LLM requests are.

Nothing of the traces themselves is here, but what was published of them. Of functions (Shahrad et
al., "Serverless in the Wild", ATC '20): 45 % of all applications are invoked at most once an hour,
81 % at most once a minute, and the rest, 19 %, have 99.6 % of all invocations; some are invoked as
regularly as a timer, others vary more than a Poisson process: here a fifth and two fifths. Of LLM
requests (Patel et al., "Splitwise", ISCA '24, conversation): 1,020 tokens of prompt and 129 of
answer, at the median.
"""

from collections.abc import Mapping

import numpy as np

from bench.simulation.hardware import Model
from bench.simulation.workload import Arrival, Dataset, Trace

CONVERSATION = Dataset("Azure-like", prompt_tokens=1020.0, output_tokens=129.0, most_tokens=4096)
_DAY, _HOUR, _MINUTE = 86_400.0, 3600.0, 60.0
_MOST_OFTEN = 2.0
"""Seconds between two requests of the model that is asked for most."""
_CLASSES = ((0.45, _DAY, _HOUR), (0.36, _HOUR, _MINUTE), (0.19, _MINUTE, _MOST_OFTEN))
"""Shares of the models, and between which their mean time between two requests lies."""
_VARIATIONS = ((0.2, 0.05), (0.4, 1.0), (0.4, 4.0))
"""Shares of the models, and the standard deviation of that time over its mean."""


def azure_trace(models: Mapping[str, Model], *, seconds: float, seed: int) -> Trace:
    """`seconds` of requests for `models`; which model is how popular is drawn."""
    random = np.random.default_rng(seed)
    names = [str(name) for name in random.permutation(sorted(models))]
    arrivals: list[Arrival] = []
    for name, mean, variation in zip(
        names, _means(len(names), random), _drawn(_VARIATIONS, len(names), random), strict=True
    ):
        moments = _moments(mean, variation, seconds, random)
        prompts = _lengths(CONVERSATION.prompt_tokens, len(moments), random)
        outputs = _lengths(CONVERSATION.output_tokens, len(moments), random)
        arrivals += [
            Arrival(float(at), name, int(prompt), int(output))
            for at, prompt, output in zip(moments, prompts, outputs, strict=True)
        ]
    return Trace(models, sorted(arrivals, key=lambda one: one.at))


def _means(count: int, random: np.random.Generator) -> list[float]:
    """Mean seconds between two requests, of as many models of each class as its share says."""
    found: list[float] = []
    for share, longest, shortest in _CLASSES:
        many = round(share * count)
        found += [*np.exp(random.uniform(np.log(shortest), np.log(longest), many))]
    return (found + [_DAY] * count)[:count]


def _drawn(
    shares: tuple[tuple[float, float], ...], count: int, random: np.random.Generator
) -> np.ndarray:
    weights, values = zip(*shares, strict=True)
    return random.choice(values, count, p=weights)


def _moments(
    mean: float, variation: float, seconds: float, random: np.random.Generator
) -> np.ndarray:
    """Requests of one model, from anywhere in a pause on."""
    shape = variation**-2
    moments: list[np.ndarray] = []
    last = -mean * random.uniform()
    while last < seconds:
        gaps = random.gamma(shape, mean / shape, size=max(16, round(seconds / mean)))
        moments.append(last + np.cumsum(gaps))
        last = moments[-1][-1]
    found = np.concatenate(moments)
    return found[(found >= 0) & (found < seconds)]


def _lengths(median: float, count: int, random: np.random.Generator) -> np.ndarray:
    drawn = random.lognormal(np.log(median), CONVERSATION.sigma, count)
    return np.clip(np.round(drawn), 1, CONVERSATION.most_tokens / 2)
