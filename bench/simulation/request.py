"""One simulated request: when it waits, when it is served, and what interrupted it."""

import math

from bench.simulation.hardware import MIGRATION_SECONDS, Model
from bench.simulation.workload import Arrival
from sllm.control.requests.service_times import Served


class Request:
    """What becomes of an arrival. Moments are the clock's seconds."""

    def __init__(self, arrival: Arrival, model: Model) -> None:
        self.arrival = arrival
        self.name = f"{arrival.deployment}@{arrival.at}"
        """Unique in a trace."""
        self.per_token = model.seconds_per_token
        """Seconds of decoding."""
        self.prefill_per_token = model.prefill_seconds_per_token
        """Seconds of computing the KV cache."""
        self.move_per_token = math.inf
        """Seconds of sending it instead, where a move may do that."""
        self.prefill = self.prefill_per_token * arrival.prompt_tokens
        """Seconds until its first token; less where a part of its prompt was computed before."""
        self.waited = 0.0
        """Seconds in which it was not served, from its coming on."""
        self.first_wait: float | None = None
        """Seconds until it was served for the first time. None: it has not been."""
        self.way = 0.0
        """Seconds that its first token takes from where it is served to its caller."""
        self.pace = 1.0
        """Times the time that its tokens take alone, by what it shares its instance with."""
        self.ended_at: float | None = None
        self.epoch = 0
        """Counts its interruptions; an end that was foreseen before one is void."""
        self._served = 0.0
        self._waits_since: float | None = arrival.at
        self._serving_since = 0.0

    @property
    def deployment(self) -> str:
        """Of the model that it is for."""
        return self.arrival.deployment

    @property
    def enqueued_at(self) -> float:
        """When it came, even if it was preempted since."""
        return self.arrival.at

    @property
    def turn(self) -> float:
        """Its place in the queue: all have the same priority."""
        return self.arrival.at

    @property
    def first_token(self) -> float:
        """Seconds until it had its first token."""
        assert self.first_wait is not None
        return self.first_wait + self.prefill + self.way

    def begin(self, pace: float, way: float, prefill: float | None = None) -> None:
        """It is about to be served for the first time; until its end its tokens come like this.

        One whose company changes goes on at the pace that it began with.
        """
        if self.first_wait is None:
            self.pace, self.way = pace, way
            self.prefill = self.prefill if prefill is None else prefill
            self.per_token *= pace

    @property
    def paused(self) -> float:
        """Seconds for which it was interrupted."""
        return 0.0 if not self.epoch or self.first_wait is None else self.waited - self.first_wait

    @property
    def service_seconds(self) -> float:
        """What it takes in all when nothing interrupts it."""
        return self.prefill + self.per_token * self.arrival.output_tokens

    @property
    def served(self) -> Served:
        """What is learned from it once it has ended."""
        return Served(self.prefill, self.service_seconds, self.arrival.output_tokens)

    def tokens_at(self, now: float) -> int:
        """Of its prompt, and those that it has had so far."""
        if self._waits_since is None:
            self._account(now)
        return self.tokens

    @property
    def tokens(self) -> int:
        """The same, as of the last time that it was looked at."""
        decoded = max(0.0, self._served - self.prefill) / self.per_token
        return self.arrival.prompt_tokens + int(decoded)

    def serve(self, now: float) -> float:
        """An instance has taken it; returns when it ends if nothing interrupts it.

        One that had been served before has its KV cache computed anew, for which it waits.
        """
        assert self._waits_since is not None
        again = self.resume_seconds if self._served else 0.0
        self.waited += now + again - self._waits_since
        if self.first_wait is None:
            self.first_wait = self.waited
        self._waits_since = None
        self._serving_since = now + again
        return self._serving_since + self.service_seconds - self._served

    @property
    def resume_seconds(self) -> float:
        """A * tokens + b: what it takes to go on elsewhere, by tokens or by its cache."""
        return min(self.prefill_per_token, self.move_per_token) * self.tokens + MIGRATION_SECONDS

    def interrupt(self, now: float) -> None:
        """It is served no longer, and waits."""
        assert self._waits_since is None
        self.waited -= max(0.0, self._serving_since - now)  # was to be spent on going on
        self._account(now)
        self._waits_since = now
        self.epoch += 1

    def end(self, now: float) -> None:
        """It has had all its tokens."""
        assert self.ended_at is None
        assert self._waits_since is None
        self.ended_at = now

    def _account(self, now: float) -> None:
        self._served += max(0.0, now - self._serving_since)
        self._serving_since = max(now, self._serving_since)
