"""What the caller of a carried generation has, and what its leader knows of that."""

from serverlessllm.v1 import inference_service_pb2 as pb

from sllm.control.requests.progress import Progress
from sllm.control.tenants.names import new_id
from sllm.control.wire import generations


class Transcript:
    """One stream's. Its sequences have no gaps, whoever leads."""

    def __init__(self, request: pb.GenerateRequest) -> None:
        """`request` is as its caller sent it; it gets an id and a seed, to go on anywhere."""
        request.request_id = request.request_id or new_id(request.deployment)
        generations.settle_seed(request)
        self._request = request
        self._sequence = generations.resumes_from(request) or 0
        had = request.continuation
        self._progress = Progress(
            had.token_ids, had.identity, prompt_told=generations.prompt_told(request)
        )
        self._told = len(had.token_ids)
        """Tokens that the leader knows of."""
        self._known_to_nodes = False
        self._queued = self._started = False
        """Whether the caller has had these events."""

    def stamp(self, event: pb.GenerateResponse) -> pb.GenerateResponse:
        """Gives an event the next number of the caller's stream."""
        event.sequence = self._sequence
        self._sequence += 1
        return event

    @property
    def untold(self) -> bool:
        """Whether the caller has tokens that the leader does not know of."""
        return self._told < len(self._progress.token_ids)

    def request(self) -> pb.GenerateRequest:
        """What whoever leads is asked for: all of it, or what the caller does not have yet."""
        asked = pb.GenerateRequest()
        asked.CopyFrom(self._request)
        if self._known_to_nodes:
            self.go_on(asked)
            asked.continuation.prompt_logprobs = self._progress.prompt_told
            asked.resume_from_sequence = self._sequence
        self._told = len(self._progress.token_ids)
        return asked

    def go_on(self, request: pb.GenerateRequest) -> None:
        """Has a request go on after what the caller has, for it may have got more meanwhile."""
        done = self._progress
        if self._known_to_nodes or done.token_ids:
            generations.go_on(request, done.prompt, done.token_ids, done.identity)
        self._known_to_nodes = True

    def news(self, event: pb.GenerateResponse) -> pb.GenerateResponse | None:
        """An event of the leader's, unless the caller has had it."""
        match event.WhichOneof("event"):
            case "queued":
                had, self._queued = self._queued, True
                return None if had else event
            case "started":
                return self._take_start(event)
            case "prompt_logprobs":
                told = event.prompt_logprobs
                self._progress.known_of_prompt(told.first_index, len(told.tokens))
            case "tokens":
                if event.tokens.first_index < len(self._progress.token_ids):
                    return None
                self.carry(event.tokens)
                self._told = len(self._progress.token_ids)
        return event

    def _take_start(self, event: pb.GenerateResponse) -> pb.GenerateResponse | None:
        started = event.started
        self._progress.prompt = started.prompt_token_ids or self._progress.prompt
        self._progress.identity = started.identity
        had, self._started = self._started, True
        return None if had and self._progress.token_ids else event

    def carry(self, tokens: pb.Tokens) -> None:
        """Takes in tokens that the caller is about to get.

        Raises:
            errors.Internal: They are not those that follow.
        """
        self._progress.add(tokens.first_index, tokens.token_ids, 0.0)

    def tell(self) -> pb.Tokens | None:
        """The ids of tokens that the leader does not know of; it does from now on."""
        if not self.untold:
            return None
        first, self._told = self._told, len(self._progress.token_ids)
        return pb.Tokens(first_index=first, token_ids=self._progress.token_ids[first:])
