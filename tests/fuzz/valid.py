"""For every RPC a request that is, or may well be, valid: what the fuzz begins with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from serverlessllm.v1 import batch_service_pb2 as batch
from serverlessllm.v1 import cluster_service_pb2 as cluster
from serverlessllm.v1 import deployment_service_pb2 as deployment
from serverlessllm.v1 import embedding_service_pb2 as embedding
from serverlessllm.v1 import inference_service_pb2 as inference
from serverlessllm.v1 import key_service_pb2 as key
from serverlessllm.v1 import layers_pb2 as layers
from serverlessllm.v1 import migration_service_pb2 as migration
from serverlessllm.v1 import model_service_pb2 as model
from serverlessllm.v1 import node_service_pb2 as node
from serverlessllm.v1 import peer_service_pb2 as peer
from serverlessllm.v1 import tenant_service_pb2 as tenant
from serverlessllm.v1 import types_pb2 as types

from tests.fuzz.ghosts import NOWHERE, reports

_KV_BYTES: Final = 16 * 1024 * 1024
_SERVICES: Final = (
    "",
    "serverlessllm.v1.BatchService",
    "serverlessllm.v1.NodeService",
    "serverlessllm.v1.ClusterService",
    "serverlessllm.v1.InferenceService",
    "serverlessllm.v1.ModelService",
    "serverlessllm.v1.TenantService",
    "serverlessllm.v1.EmbeddingService",
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What there is in the cluster now, for requests to name."""

    source: str
    """URL of a model that can be served."""
    deployment: str
    """Name of a deployment of it."""
    node_id: str
    instance_id: str
    """Of a ready instance; empty if there is none."""
    digest: str
    """Of a checkpoint that the node holds; empty if it holds none."""

    def names(self) -> tuple[str, ...]:
        """All of them, for fields that want another one."""
        return (self.source, self.deployment, self.node_id, self.instance_id, self.digest)


Maker = Callable[[Facts, Random], list[Message]]
"""Makes the messages of one call: one, unless the caller sends a stream."""


def _id(rng: Random, kind: str = "request") -> str:
    """One of few ids, so that calls meet those of others."""
    return f"fuzz-{kind}-{rng.randrange(32)}"


def _name(facts: Facts, rng: Random) -> str:
    return rng.choice((facts.deployment, facts.deployment, f"fuzz-{rng.randrange(4)}"))


def _tier(rng: Random) -> types.Tier.ValueType:
    return rng.choice((types.TIER_SSD, types.TIER_DRAM))


def _engine() -> types.EngineConfig:
    return types.EngineConfig(
        engine="transformers", kv_cache_tokens=1024, max_concurrency=8, tensor_parallel=1
    )


# --- deployments and the cluster --------------------------------------------------------------


def _deploy(facts: Facts, rng: Random) -> list[Message]:
    scaling = types.ScalingPolicy(
        min_replicas=0,
        max_replicas=1,
        keep_alive=Duration(seconds=2),
        target_concurrency=4,
        learn_keep_alive=True,
        target_time_per_token=Duration(nanos=10**7),
    )
    name = f"fuzz-{rng.randrange(4)}"
    return [
        deployment.DeployRequest(
            request_id=f"{name}-{rng.randrange(1000)}",
            name=name,
            source=facts.source,
            engine=_engine(),
            scaling=scaling,
            base=rng.choice(("", "", "", facts.deployment)),
        )
    ]


def _list_instances(facts: Facts, rng: Random) -> list[Message]:
    return [cluster.ListInstancesRequest(deployment=_name(facts, rng), page_size=rng.randrange(3))]


def _prefetch(facts: Facts, rng: Random) -> list[Message]:
    what = rng.choice(({"deployment": facts.deployment}, {"source": facts.source}))
    ttl, tier = Duration(seconds=rng.randrange(1, 9)), _tier(rng)
    return [cluster.PrefetchRequest(node_id=facts.node_id, tier=tier, ttl=ttl, **what)]


def _pin(facts: Facts, rng: Random) -> list[Message]:
    return [
        cluster.PinRequest(
            deployment=_name(facts, rng),
            tier=_tier(rng),
            node_id=facts.node_id,
            ttl=Duration(seconds=5) if rng.random() < 0.5 else None,
        )
    ]


def _drain(facts: Facts, rng: Random) -> list[Message]:
    grace = Duration(seconds=rng.randrange(3))
    return [cluster.DrainNodeRequest(node_id=facts.node_id, grace=grace)]


def _migrate(facts: Facts, rng: Random) -> list[Message]:
    asked = cluster.MigrateRequest(to_node_id=facts.node_id, way=rng.choice(types.MoveWay.values()))
    if rng.random() < 0.5:
        asked.request_id = _id(rng)
    else:
        asked.instance_id = facts.instance_id
    return [asked]


# --- generations ------------------------------------------------------------------------------


def _generate(facts: Facts, rng: Random) -> list[Message]:
    return [_generation(facts, rng, _name(facts, rng))]


def _generate_at_node(facts: Facts, rng: Random) -> list[Message]:
    return [_generation(facts, rng, facts.deployment)]


def _generation(facts: Facts, rng: Random, name: str) -> inference.GenerateRequest:
    message = types.ChatMessage(role="user", content="Hello")
    tool = types.Tool(name="add", parameters='{"type": "object"}')
    choice = types.ToolChoice(mode=types.TOOL_CHOICE_MODE_AUTO)
    prompt = rng.choice(
        (
            {"text": "The for statement"},
            {"token_ids": types.TokenIds(ids=[1, 5, 9])},
            {"messages": types.ChatMessages(messages=[message])},
            {"messages": types.ChatMessages(messages=[message], tools=[tool], tool_choice=choice)},
        )
    )
    sampling = types.SamplingParams(
        temperature=0.8,
        top_p=0.9,
        top_k=40,
        min_p=0.01,
        seed=7,
        repetition_penalty=1.1,
        presence_penalty=0.5,
        frequency_penalty=0.2,
        logit_bias={5: 1.0},
        min_tokens=1,
        bad_words=["never"],
        allowed_token_ids=[4, 5, 6, 7, 8],
    )
    form = rng.choice(
        (
            None,
            types.StructuredOutput(json_schema='{"enum": [1, 2]}'),
            types.StructuredOutput(json_object=True),
            types.StructuredOutput(regex="[ab]+"),
            types.StructuredOutput(choice=types.Choice(texts=["a", "b"])),
            types.StructuredOutput(grammar='root ::= "a" root | "b"'),
        )
    )
    return inference.GenerateRequest(
        deployment=name,
        request_id=_id(rng),
        sampling=sampling,
        stop=["\n\n"],
        stop_token_ids=[3],
        max_tokens=rng.randrange(1, 16),
        logprobs=rng.choice((None, 0, 2)),
        instance_id=facts.instance_id,
        continuation=inference.Continuation(token_ids=[7, 8]) if rng.random() < 0.2 else None,
        priority=rng.randrange(-3, 3),
        keep_alive=Duration(seconds=1),
        zone=rng.choice((None, "", "edge")),
        resume_from_sequence=rng.choice((None, None, None, 0, 2)),
        linger=Duration(seconds=rng.randrange(2)),
        structured_output=form,
        include_stop=rng.random() < 0.5,
        skip_special_tokens=rng.choice((None, False, True)),
        parsing=types.OutputParsing(tools=[tool]) if rng.random() < 0.2 else None,
        n=rng.choice((None, None, 1, 2)),
        prompt_logprobs=rng.choice((None, None, 0, 3)),
        choices=[_choice(rng)] if rng.random() < 0.1 else None,
        **prompt,
    )


def _choice(rng: Random) -> inference.ChoiceContinuation:
    ended = inference.Finished(usage=types.Usage(completion_tokens=2))
    return inference.ChoiceContinuation(
        choice=rng.randrange(2),
        continuation=inference.Continuation(token_ids=[7, 8]),
        finished=ended if rng.random() < 0.5 else None,
    )


def _embed(facts: Facts, rng: Random) -> list[Message]:
    text = embedding.EmbedInput(text="The for statement")
    tokens = embedding.EmbedInput(token_ids=types.TokenIds(ids=[1, 5, 9]))
    return [
        embedding.EmbedRequest(
            deployment=_name(facts, rng),
            inputs=[text, tokens],
            normalize=rng.choice((None, False, True)),
            dimensions=rng.choice((None, 8)),
            truncate=rng.random() < 0.5,
            priority=rng.randrange(-3, 3),
            keep_alive=Duration(seconds=1),
            instance_id=facts.instance_id,
        )
    ]


def _score(facts: Facts, rng: Random) -> list[Message]:
    return [
        embedding.ScoreRequest(
            deployment=_name(facts, rng),
            queries=rng.choice(([], ["Hello"], ["Hello", "again"])),
            documents=["The for statement", "The while statement"],
            raw=rng.random() < 0.5,
            truncate=rng.random() < 0.5,
            priority=rng.randrange(-3, 3),
            keep_alive=Duration(seconds=1),
            instance_id=facts.instance_id,
        )
    ]


def _migration(facts: Facts, rng: Random) -> list[Message]:
    request_id = _id(rng, "migrated")
    request = inference.GenerateRequest(
        deployment=facts.deployment,
        request_id=request_id,
        token_ids=types.TokenIds(ids=[1, 5, 9]),
        sampling=types.SamplingParams(temperature=0),
        max_tokens=8,
        instance_id=facts.instance_id,
    )
    opened = migration.MigrationOpen(instance_id=facts.instance_id, from_node_id="ghost-0")
    first = migration.MigrationRound(request_id=request_id, request=request, token_ids=[4, 5])
    cutover = migration.MigrationCutover(
        request_id=request_id, token_ids=[6], total_tokens=3, digest=b"\0" * 16
    )
    message = migration.MigrationServiceMigrateRequest
    return [
        message(open=opened),
        message(round=first),
        message(cutover=cutover),
        message(drop=migration.MigrationDrop(request_id=request_id)),
    ]


# --- the node ---------------------------------------------------------------------------------


def _promote(facts: Facts, rng: Random) -> list[Message]:
    return [
        node.PromoteRequest(
            source=facts.source,
            tier=_tier(rng),
            hold_id=rng.choice(("", _id(rng, "hold"))),
            hold_ttl=Duration(seconds=2),
            pack=rng.random() < 0.1,
            give_up=rng.random() < 0.5,
        )
    ]


def _start_instance(facts: Facts, rng: Random) -> list[Message]:
    return [
        node.StartInstanceRequest(
            instance_id=_id(rng, "instance"),
            deployment="fuzz-own",
            source=facts.source,
            engine=_engine(),
            kv_bytes=_KV_BYTES,
        )
    ]


def _stop_instance(facts: Facts, rng: Random) -> list[Message]:
    instance_id = rng.choice((facts.instance_id, _id(rng, "instance")))
    grace, keep = Duration(nanos=10**8), Duration(seconds=1)
    return [node.StopInstanceRequest(instance_id=instance_id, grace=grace, keep_weights=keep)]


def _origin(facts: Facts) -> peer.CheckpointOrigin:
    return peer.CheckpointOrigin(source=facts.source, fingerprint="0" * 32)


def _start_migration(facts: Facts, rng: Random) -> list[Message]:
    return [
        node.StartMigrationRequest(
            instance_id=facts.instance_id,
            request_ids=[_id(rng)] if rng.random() < 0.5 else [],
            to_node_id="ghost-0",
            to_address=NOWHERE,
            to_instance_id="ghost-0-instance",
            reason=inference.MIGRATION_REASON_OPERATOR,
        )
    ]


def _multiplex(facts: Facts, rng: Random) -> list[Message]:
    calls = [
        node.CallBegin(number=number, request=_generation(facts, rng, facts.deployment))
        for number in range(2)
    ]
    begun = [node.MultiplexRequest(begin=call) for call in calls]
    return [*begun, node.MultiplexRequest(hang_up=rng.randrange(3))]


def _asking(make: Callable[..., Message]) -> Maker:
    """A question about text, to a control plane by a name, to a node by a source."""

    def maker(facts: Facts, rng: Random) -> list[Message]:
        source = model.ModelSource(source=facts.source, engine="transformers")
        return [make(deployment=_name(facts, rng), model=source, **_text(make, rng))]

    return maker


def _text(make: Callable[..., Message], rng: Random) -> dict[str, object]:
    said = types.ChatMessages(messages=[types.ChatMessage(role="user", content="Hi")])
    if make is model.GetModelRequest:
        return {}
    if make is model.DetokenizeRequest:
        return {"token_ids": [1, 5, 9], "skip_special_tokens": rng.choice((None, False))}
    if make is model.RenderChatRequest or rng.random() < 0.5:
        return {"messages": said}
    return {"text": "Once upon a time", "add_special_tokens": rng.choice((None, False))}


_MODEL: Mapping[str, Maker] = {
    "ModelService.GetModel": _asking(model.GetModelRequest),
    "ModelService.Tokenize": _asking(model.TokenizeRequest),
    "ModelService.CountTokens": _asking(model.CountTokensRequest),
    "ModelService.Detokenize": _asking(model.DetokenizeRequest),
    "ModelService.RenderChat": _asking(model.RenderChatRequest),
}

# --- tenants ----------------------------------------------------------------------------------


def _set_tenant(facts: Facts, rng: Random) -> list[Message]:
    """Bounds that hinder nobody: the campaign itself is of the default tenant."""
    limits = tenant.TenantLimits(
        requests=rng.choice((None, 10**6)),
        tokens_per_minute=rng.choice((None, 10**12)),
        weight=rng.choice((None, 0.5, 1000.0)),
        calls_per_second=rng.choice((None, 1e9)),
        ssd_bytes=rng.choice((None, 1 << 60)),
        dram_bytes=rng.choice((None, 1 << 60)),
        device_bytes=rng.choice((None, 1 << 60)),
    )
    names = ("default", "acme", "a-1")
    return [tenant.SetTenantRequest(request_id=_id(rng), tenant=rng.choice(names), limits=limits)]


_TENANT: Mapping[str, Maker] = {
    "TenantService.SetTenant": _set_tenant,
    "TenantService.ListTenants": lambda facts, rng: [
        tenant.ListTenantsRequest(page_size=rng.choice((0, 1, 1000)))
    ],
}

# --- batches ----------------------------------------------------------------------------------


def _submit_batch(facts: Facts, rng: Random) -> list[Message]:
    header = batch.BatchHeader(batch_id=_id(rng, "batch"), time_limit=Duration(seconds=5))
    requests = [_generation(facts, rng, facts.deployment) for _ in range(rng.randrange(1, 4))]
    for number, request in enumerate(requests):
        request.request_id = rng.choice(("", f"item-{number}"))
        for foreign in (
            *("instance_id", "continuation", "resume_from_sequence"),
            *("linger", "priority", "keep_alive"),
        ):
            request.ClearField(foreign)
    return [
        batch.SubmitBatchRequest(header=header),
        *(batch.SubmitBatchRequest(request=request) for request in requests),
        batch.SubmitBatchRequest(end=batch.BatchEnd(requests=len(requests))),
    ]


def _read_batch_results(facts: Facts, rng: Random) -> list[Message]:
    return [
        batch.ReadBatchResultsRequest(
            batch_id=_id(rng, "batch"), from_number=rng.randrange(3), follow=rng.random() < 0.5
        )
    ]


_BATCH: Mapping[str, Maker] = {
    "BatchService.SubmitBatch": _submit_batch,
    "BatchService.GetBatch": lambda facts, rng: [batch.GetBatchRequest(batch_id=_id(rng, "batch"))],
    "BatchService.ListBatches": lambda facts, rng: [
        batch.ListBatchesRequest(page_size=rng.randrange(3), page_token="f")
    ],
    "BatchService.ReadBatchResults": _read_batch_results,
    "BatchService.CancelBatch": lambda facts, rng: [
        batch.CancelBatchRequest(batch_id=_id(rng, "batch"))
    ],
    "BatchService.DeleteBatch": lambda facts, rng: [
        batch.DeleteBatchRequest(batch_id=_id(rng, "batch"))
    ],
}

# --- all of them ------------------------------------------------------------------------------

_CONTROL: Mapping[str, Maker] = {
    "DeploymentService.Deploy": _deploy,
    "DeploymentService.GetDeployment": lambda facts, rng: [
        deployment.GetDeploymentRequest(name=_name(facts, rng))
    ],
    "DeploymentService.ListDeployments": lambda facts, rng: [
        deployment.ListDeploymentsRequest(page_size=rng.randrange(3), page_token="f")
    ],
    "DeploymentService.DeleteDeployment": lambda facts, rng: [
        deployment.DeleteDeploymentRequest(name=f"fuzz-{rng.randrange(4)}")
    ],
    "DeploymentService.WatchDeployment": lambda facts, rng: [
        deployment.WatchDeploymentRequest(name=_name(facts, rng))
    ],
    "InferenceService.Generate": _generate,
    "InferenceService.Cancel": lambda facts, rng: [inference.CancelRequest(request_id=_id(rng))],
    "ClusterService.ListNodes": lambda facts, rng: [
        cluster.ListNodesRequest(page_size=rng.randrange(3), page_token="f")
    ],
    "ClusterService.ListInstances": _list_instances,
    "ClusterService.GetReceipt": lambda facts, rng: [
        cluster.GetReceiptRequest(request_id=rng.choice(["", _id(rng)]))
    ],
    "ClusterService.ExplainPlacement": lambda facts, rng: [
        cluster.ExplainPlacementRequest(deployment=_name(facts, rng))
    ],
    "ClusterService.Prefetch": _prefetch,
    "ClusterService.Pin": _pin,
    "ClusterService.Unpin": lambda facts, rng: [
        cluster.UnpinRequest(deployment=_name(facts, rng), node_id=facts.node_id)
    ],
    "ClusterService.ListPins": lambda facts, rng: [
        cluster.ListPinsRequest(deployment=_name(facts, rng), page_size=rng.randrange(3))
    ],
    "ClusterService.DrainNode": _drain,
    "ClusterService.UndrainNode": lambda facts, rng: [
        cluster.UndrainNodeRequest(node_id=facts.node_id)
    ],
    "ClusterService.WatchCluster": lambda facts, rng: [cluster.WatchClusterRequest()],
    "ClusterService.Migrate": _migrate,
    "KeyService.CreateKey": lambda facts, rng: [
        key.CreateKeyRequest(
            role=key.CallerRole.ValueType(rng.randrange(1, 4)), tenant=rng.choice(("a", "b"))
        )
    ],
    "KeyService.ListKeys": lambda facts, rng: [key.ListKeysRequest(page_size=rng.randrange(3))],
    "KeyService.RevokeKey": lambda facts, rng: [key.RevokeKeyRequest(key_id=_id(rng, "key"))],
    "FleetService.Report": lambda facts, rng: reports(f"ghost-{rng.randrange(4)}", facts.source),
}
_NODE: Mapping[str, Maker] = {
    "NodeService.InspectSource": lambda facts, rng: [
        node.InspectSourceRequest(
            source=facts.source,
            dtype=rng.choice(("", "float32")),
            base=node.AdapterBase(source=facts.source, max_adapter_rank=8)
            if rng.random() < 0.2
            else None,
        )
    ],
    "NodeService.Promote": _promote,
    "NodeService.ReleaseHold": lambda facts, rng: [
        node.ReleaseHoldRequest(hold_id=_id(rng, "hold"))
    ],
    "NodeService.StartInstance": _start_instance,
    "NodeService.StopInstance": _stop_instance,
    "NodeService.StartMigration": _start_migration,
    "NodeService.Multiplex": _multiplex,
    "NodeService.Evict": lambda facts, rng: [
        node.EvictRequest(digest=facts.digest, tier=_tier(rng))
    ],
    "InferenceService.Generate": _generate_at_node,
    "InferenceService.Cancel": lambda facts, rng: [inference.CancelRequest(request_id=_id(rng))],
    "MigrationService.Migrate": _migration,
    "PeerService.FollowChunks": lambda facts, rng: [
        peer.FollowChunksRequest(
            origin=_origin(facts),
            wants_manifest=rng.random() < 0.5,
            caller=peer.Fellow(node_id="ghost-0", address=NOWHERE) if rng.random() < 0.5 else None,
        )
    ],
    "PeerService.Fetch": lambda facts, rng: [
        peer.FetchRequest(origin=_origin(facts), chunk=rng.randrange(3), offset=4096),
        peer.FetchRequest(origin=peer.CheckpointOrigin(digest="0" * 32), file="form.json"),
    ],
    "PeerService.FetchPages": lambda facts, rng: [
        peer.FetchPagesRequest(keys=[rng.randbytes(16) for _ in range(3)], page_bytes=4096)
    ],
    "PeerService.RunLayers": lambda facts, rng: [
        peer.RunLayersRequest(
            wanted=peer.LayersWanted(
                deployment="fuzz",
                source=_origin(facts).source,
                digest=facts.digest,
                layers=layers.LayerRange(first=rng.randrange(2), count=1 + rng.randrange(2)),
                kv_bytes=1 << 20,
            )
        )
    ],
}
_EMBEDDING: Mapping[str, Maker] = {
    "EmbeddingService.Embed": _embed,
    "EmbeddingService.Score": _score,
}
_COMMON: Mapping[str, Maker] = {
    "Health.Check": lambda facts, rng: [
        health_pb2.HealthCheckRequest(service=rng.choice(_SERVICES))
    ],
    "Health.List": lambda facts, rng: [health_pb2.HealthListRequest()],
    "Health.Watch": lambda facts, rng: [
        health_pb2.HealthCheckRequest(service=rng.choice(_SERVICES))
    ],
    "ServerReflection.ServerReflectionInfo": lambda facts, rng: [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=rng.choice(_SERVICES)),
    ],
}
VALID: Mapping[str, Mapping[str, Maker]] = {
    "control": {**_BATCH, **_CONTROL, **_MODEL, **_EMBEDDING, **_TENANT, **_COMMON},
    "node": {**_NODE, **_MODEL, **_EMBEDDING, **_COMMON},
}
"""By server and `Method.key`."""
