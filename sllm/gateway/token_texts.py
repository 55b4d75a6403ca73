"""Texts of single tokens, which logprobs are told with: asked for once, and kept."""

import math
from collections.abc import Iterable

from sllm import errors
from sllm.gateway.control_planes import ControlPlanes

_MOST_KEPT = 500_000


class TokenTexts:
    """Of the tokens of all models that were asked for; belongs to the event loop."""

    def __init__(self, planes: ControlPlanes) -> None:
        self._planes = planes
        self._kept: dict[tuple[str, int], str] = {}

    async def model(self, deployment: str, until: float = math.inf) -> str:
        """What tells the model of a deployment from those that it had before.

        Raises:
            errors.DeploymentNotFound: There is none of this name that was there `until` then, in
                seconds since the epoch.
        """
        found = await self._planes.ask(lambda client: client.deployment(deployment))
        if found.created_at > until:
            raise errors.DeploymentNotFound(f"{deployment} is another one by now")
        return f"{deployment}/{found.created_at}/{found.model.digest}"

    async def of(self, deployment: str, model: str, tokens: Iterable[int]) -> dict[int, str]:
        """The text of each token of a model.

        Raises:
            errors.SllmError: The deployment cannot be asked.
        """
        wanted = set(tokens)
        found = {one: self._kept[model, one] for one in wanted if (model, one) in self._kept}
        if unknown := list(wanted - found.keys()):
            texts = await self._planes.ask(lambda client: client.token_texts(deployment, unknown))
            if len(self._kept) > _MOST_KEPT:
                self._kept.clear()
            fresh = dict(zip(unknown, texts, strict=True))
            self._kept.update({(model, token): text for token, text in fresh.items()})
            found |= fresh
        return found
