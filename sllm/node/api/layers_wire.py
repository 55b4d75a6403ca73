"""What another node asks for of layers, between the protocol's messages and the node's types."""

from serverlessllm.v1 import layers_pb2
from serverlessllm.v1 import peer_service_pb2 as pb

from sllm import bounds, errors
from sllm.node.api.wire import engine_spec
from sllm.node.instances.lending import LayersWish
from sllm.node.tiers.first_use import FirstUse

_MOST_LAYERS = 4096


def layers_wish(message: pb.LayersWanted) -> LayersWish:
    """What a RunLayers call asks for first.

    Raises:
        errors.InvalidArgument: It asks for no layers, or a name or a number is out of its bounds.
    """
    if not message.digest:
        raise errors.InvalidArgument("digest is empty; the first message names the checkpoint")
    use = message.first_use
    return LayersWish(
        deployment=bounds.name(message.deployment, "deployment"),
        source=message.source,
        identity=message.identity,
        engine=engine_spec(message.engine),
        kv_bytes=bounds.count(message.kv_bytes, "kv_bytes"),
        digest=message.digest,
        layers=_layers(message.layers),
        first_use=FirstUse(tuple(use.tensors), use.at_once) if use.tensors else None,
    )


def _layers(message: layers_pb2.LayerRange) -> range:
    first = bounds.count(message.first, "layers.first", most=_MOST_LAYERS)
    count = bounds.count(message.count, "layers.count", least=1, most=_MOST_LAYERS)
    return range(first, first + count)
