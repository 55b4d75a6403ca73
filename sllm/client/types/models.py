"""What a deployment's model knows of text."""

from dataclasses import dataclass

from sllm.client.types.deployments import Model


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A token that stands for no text."""

    token_id: int
    text: str
    """How it is written."""
    roles: tuple[str, ...]
    """What the tokenizer uses it for: "bos", "eos", "pad" and the like. Often empty."""


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Bounds of requests that do not depend on the model."""

    max_stop: int
    """Stop strings."""
    max_logprobs: int
    """Alternatives for every token."""
    max_tools: int
    """Tools of a conversation."""
    max_letters: int
    """Letters of a text that is tokenized by itself."""


@dataclass(frozen=True, slots=True)
class ModelDetails:
    """A model as those who write to it need to know it."""

    info: Model
    """What it needs from a node."""
    engine: str
    """That it runs on."""
    context_tokens: int
    """What prompt and generation of one request may have together."""
    vocabulary_size: int
    """Token ids are less than this."""
    dtype: str
    """Name of the torch dtype in which it is served."""
    special_tokens: tuple[SpecialToken, ...]
    """In order of their ids."""
    stop_token_ids: tuple[int, ...]
    """With which it ends its text."""
    chat_template: str
    """In Jinja. Empty: it has none, and takes no conversations."""
    takes_tools: bool
    """Whether the template tells the model of tools."""
    limits: RequestLimits
    """Of what requests may have."""
    base: str = ""
    """Of an adapter, the deployment that it is over. Empty: it is a model of its own."""


@dataclass(frozen=True, slots=True)
class TokenCount:
    """The length of a prompt."""

    tokens: int
    context_tokens: int
    """What prompt and generation of one request may have together."""

    @property
    def left(self) -> int:
        """Tokens that can be generated after it. Negative: it does not fit."""
        return self.context_tokens - self.tokens
