"""What shells complete beside commands and options, as the cluster has it."""

from contextlib import suppress
from typing import Final

from sllm import config, errors

_SECONDS: Final = 2.0
"""As long as someone who has pressed a key would wait."""


def deployment_names(incomplete: str) -> list[str]:
    """Names of deployments that begin so; none where no cluster answers."""
    from sllm.client.sync import Client

    with suppress(errors.SllmError), Client(config.control_address(), call_timeout=_SECONDS) as one:
        return [found.name for found in one.deployments() if found.name.startswith(incomplete)]
    return []
