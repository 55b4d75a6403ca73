"""Whether the experts of a model can be read as they are used, known from its configuration."""

import torch

from sllm.errors import UnsupportedModel
from sllm.node.worker.experts.modules import has_experts, is_told
from sllm.node.worker.model.description import Architecture
from sllm.node.worker.model.refusing import refusing
from sllm.node.worker.trial.shrinking import tiny


def check_experts(architecture: Architecture) -> None:
    """Refuses a model whose layers do not say which experts they are going to use.

    Raises:
        UnsupportedModel: Names what does not.
    """
    with refusing("the model's experts cannot be told"), torch.device("meta"):
        model = architecture.made(tiny(architecture.config))
        found = [module for module in model.modules() if has_experts(module)]
        untold = sorted({type(module).__name__ for module in found if not is_told(module)})
    if not found:
        raise UnsupportedModel(
            f"{architecture.name} is no mixture of experts that transformers runs as one: deploy "
            "it without expert_memory"
        )
    if untold:
        raise UnsupportedModel(
            f"{architecture.name} computes with {', '.join(untold)}, which may use any of its "
            "experts at any time: deploy it without expert_memory"
        )
