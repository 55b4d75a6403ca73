"""Who asks for what, and when: bursts of requests for models of uneven popularity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.simulation.hardware import Model

ARRIVAL_CV = 8.0
"""Standard deviation of the time between two requests for one model, over its mean."""
POPULARITY_EXPONENT = 0.5
"""Popularity falls with this power of a model's rank (as AlpaServe's traces, OSDI '23)."""
LONGER = 3.7
"""ShareGPT's conversations run that many times longer than GSM8K's answers."""
BURN_IN = 64
"""Mean times between two requests until a model's arrivals no longer depend on their start."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """How long prompts and answers are: log-normal, in tokens."""

    name: str
    prompt_tokens: float
    """Mean."""
    output_tokens: float
    """Mean."""
    sigma: float = 0.6
    """Standard deviation of the logarithm."""
    most_tokens: int = 2048
    """OPT's context, which cuts both off."""


GSM8K = Dataset("GSM8K-like", prompt_tokens=60.0, output_tokens=110.0)
SHAREGPT = Dataset("ShareGPT-like", LONGER * GSM8K.prompt_tokens, LONGER * GSM8K.output_tokens)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request."""

    at: float
    """Seconds since the trace began."""
    deployment: str
    prompt_tokens: int
    output_tokens: int
    zone: str = ""
    """Where its caller is. Empty: it does not say."""
    conversation: str = ""
    """That it belongs to. Empty: it stands alone."""
    known_tokens: int = 0
    """Of its prompt, those that the conversation had before."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in the order of their coming, and the models they are for."""

    models: Mapping[str, Model]
    """By the name of the deployment."""
    arrivals: Sequence[Arrival]

    @property
    def seconds(self) -> float:
        """Until the last request comes."""
        return self.arrivals[-1].at if self.arrivals else 0.0


def deployments(replicas: Mapping[Model, int]) -> dict[str, Model]:
    """Distinct models of each size, by name."""
    return {
        f"{model.name}-{number:04d}": model
        for model, count in replicas.items()
        for number in range(count)
    }


def bursty_trace(
    models: Mapping[str, Model], dataset: Dataset, *, rate: float, requests: int, seed: int
) -> Trace:
    """Bursts of requests for `models`; see `bursty_arrivals`."""
    return Trace(models, bursty_arrivals(sorted(models), dataset, rate, requests, seed))


def bursty_arrivals(
    names: Sequence[str],
    dataset: Dataset,
    rate: float,
    requests: int,
    seed: int,
    cv: float = ARRIVAL_CV,
) -> list[Arrival]:
    """`requests` requests at `rate` per second over all deployments, in the order of their coming.

    The time between two requests for one model is Gamma-distributed with `cv`, so that most come
    in bursts; the models' shares fall with a power of their rank, and ranks are drawn. As
    few bursts make up a trace, its time is stretched so that the mean rate is `rate`.
    """
    random = np.random.default_rng(seed)
    shares = _shares(len(names), random)
    times, owners = _earliest(shares * rate, requests, cv, random)
    scale = requests / rate / times[-1]
    prompts = _lengths(dataset.prompt_tokens, dataset, requests, random)
    outputs = _lengths(dataset.output_tokens, dataset, requests, random)
    return [
        Arrival(float(at * scale), names[owner], int(prompt), int(output))
        for at, owner, prompt, output in zip(times, owners, prompts, outputs, strict=True)
    ]


def _shares(count: int, random: np.random.Generator) -> np.ndarray:
    """Each model's share of the requests; which model has which rank is drawn."""
    weights = np.arange(1, count + 1) ** -POPULARITY_EXPONENT
    return random.permutation(weights / weights.sum())


def _earliest(
    rates: np.ndarray, requests: int, cv: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The first `requests` moments after the burn-in over all models, and whose they are."""
    window = 2.0 * requests / rates.sum()
    while True:
        streams = [_moments(rate, window, cv, random) for rate in rates]
        times = np.concatenate(streams)
        if len(times) >= requests:
            break
        window *= 2
    owners = np.repeat(np.arange(len(rates)), [len(stream) for stream in streams])
    order = np.argsort(times, kind="stable")[:requests]
    return times[order], owners[order]


def _moments(rate: float, window: float, cv: float, random: np.random.Generator) -> np.ndarray:
    """One model's requests in `window` seconds after its burn-in."""
    shape = cv**-2
    begin = BURN_IN / rate
    end, last = begin + window, 0.0
    parts = []
    while last < end:
        gaps = random.gamma(shape, 1 / (rate * shape), size=max(64, round(rate * (end - last))))
        parts.append(last + np.cumsum(gaps))
        last = parts[-1][-1]
    moments = np.concatenate(parts)
    return moments[(moments >= begin) & (moments < end)] - begin


def _lengths(mean: float, dataset: Dataset, count: int, random: np.random.Generator) -> np.ndarray:
    """Log-normal lengths of this mean, at least one token."""
    location = np.log(mean) - dataset.sigma**2 / 2
    drawn = random.lognormal(location, dataset.sigma, count)
    return np.clip(np.round(drawn), 1, dataset.most_tokens / 2)
