import pytest

from sllm.embedding.purpose import Purpose, Task
from sllm.node.worker.messages import (
    Describe,
    Described,
    Exited,
    Failed,
    Fork,
    Forked,
    Message,
    ModelDescription,
    Ready,
    Serving,
    from_packet,
    to_packet,
)

EMBEDS = Purpose(
    Task.EMBED, dimensions=64, pooling="mean", matryoshka=True, matryoshka_dimensions=(8, 32)
)


@pytest.mark.parametrize(
    "message",
    [
        Ready(),
        Fork(1, "i-1", "/run/ä.sock", {"OTEL_SERVICE_NAME": "x"}),
        Forked(1, 42),
        Serving(42),
        Exited(42, 9),
        Describe(2, "/models/m", None, ["0123456789abcdef"]),
        Described(
            2,
            ModelDescription("LlamaForCausalLM", 512, 1536, "float32", 1024),
            "0123456789abcdef",
            "model.layers.9.w",
        ),
        Described(3, ModelDescription("BertModel", 512, 0, "float32", 1024, EMBEDS), "", ""),
        Failed(3, 9, "UNSUPPORTED_MODEL", "no", {"architecture": "X"}),
    ],
)
def test_every_message_survives_its_packet(message: Message) -> None:
    assert from_packet(to_packet(message)) == message
