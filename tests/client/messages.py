"""Messages that a control plane sends, for tests."""

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from serverlessllm.v1 import deployment_service_pb2 as deployment_pb
from serverlessllm.v1 import inference_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types

import sllm

HALF_A_SECOND = Duration(nanos=500_000_000)

QUEUED = pb.GenerateResponse(sequence=0, queued=pb.Queued(position=2, estimated_wait=HALF_A_SECOND))
LOADING = pb.GenerateResponse(
    sequence=1,
    loading=types.Loading(
        phase=types.LOAD_PHASE_READ, from_tier=types.TIER_SSD, loaded_bytes=1, total_bytes=4
    ),
)
STARTED = pb.GenerateResponse(
    sequence=2,
    started=pb.Started(instance_id="i-1", node_id="n-1", prompt_tokens=3, request_id="r-1"),
)


def tokens(sequence: int, first_index: int, *token_ids: int, text: str) -> pb.GenerateResponse:
    """Tokens, each with the same logprob."""
    logprob = types.TokenLogprob(
        logprob=-0.5, top=[types.TopLogprob(token_id=token_ids[0], logprob=-0.5)]
    )
    return pb.GenerateResponse(
        sequence=sequence,
        tokens=pb.Tokens(
            first_index=first_index,
            token_ids=token_ids,
            text=text,
            logprobs=[logprob] * len(token_ids),
        ),
    )


def prompt(sequence: int, first_index: int, *token_ids: int) -> pb.GenerateResponse:
    """Logprobs of a part of the prompt; the first token has none."""
    top = [types.TopLogprob(token_id=9, logprob=-0.25)]
    parts = [
        pb.PromptLogprob(token_id=one, logprob=-0.5, top=top)
        if place
        else pb.PromptLogprob(token_id=one)
        for place, one in enumerate(token_ids, first_index)
    ]
    told = pb.PromptLogprobs(first_index=first_index, tokens=parts)
    return pb.GenerateResponse(sequence=sequence, prompt_logprobs=told)


def finished(sequence: int) -> pb.GenerateResponse:
    """The end of a generation that a stop string ended."""
    return pb.GenerateResponse(
        sequence=sequence,
        finished=pb.Finished(
            reason=types.FINISH_REASON_STOP,
            usage=types.Usage(prompt_tokens=3, completion_tokens=3, cached_prompt_tokens=1),
            receipt=types.Receipt(
                cold=True,
                from_tier=types.TIER_SSD,
                phases=[
                    types.Phase(
                        kind=types.PHASE_KIND_READ_SSD,
                        start=Duration(nanos=1_000_000),
                        duration=HALF_A_SECOND,
                        size_bytes=4096,
                    ),
                    types.Phase(kind=types.PHASE_KIND_PREFILL, duration=HALF_A_SECOND),
                ],
                time_to_first_token=Duration(seconds=1, nanos=250_000_000),
                estimated_start=HALF_A_SECOND,
                actual_start=HALF_A_SECOND,
                node_id="n-1",
                instance_id="i-1",
            ),
            stop="END",
        ),
    )


CACHE_MOVE = types.CacheMove(
    way=types.MOVE_WAY_PAGES,
    by_tokens=Duration(seconds=2),
    by_pages=Duration(nanos=500_000_000),
    page_tokens=16,
    page_bytes=4096,
    took=Duration(seconds=1),
    why="sooner",
)
MOVED_CACHE = sllm.CacheMove(
    sllm.MoveWay.PAGES,
    by_tokens=2.0,
    by_pages=0.5,
    page_tokens=16,
    page_bytes=4096,
    took=1.0,
    why="sooner",
)
MIGRATED = pb.GenerateResponse(
    sequence=4,
    migrated=pb.Migrated(
        from_node_id="n-1",
        to_node_id="n-2",
        to_instance_id="i-2",
        pause=HALF_A_SECOND,
        reason=pb.MIGRATION_REASON_FAILOVER,
        cache=CACHE_MOVE,
    ),
)


def generation() -> list[pb.GenerateResponse]:
    """A whole cold generation."""
    return [
        QUEUED,
        LOADING,
        STARTED,
        tokens(3, 0, 10, 11, text="Once "),
        tokens(4, 2, 12, text="upon"),
        finished(5),
    ]


def deployment(
    name: str = "tiny",
    state: "deployment_pb.DeploymentState.ValueType" = deployment_pb.DEPLOYMENT_STATE_AVAILABLE,
    **fields: object,
) -> deployment_pb.Deployment:
    """A deployment."""
    return deployment_pb.Deployment(
        name=name,
        source="file:///models/tiny",
        engine=types.EngineConfig(engine="vllm", dtype="float32", max_concurrency=4),
        scaling=types.ScalingPolicy(
            min_replicas=0,
            max_replicas=2,
            keep_alive=Duration(seconds=1, nanos=500_000_000),
            target_concurrency=3,
            learn_keep_alive=True,
            target_time_per_token=Duration(nanos=50_000_000),
        ),
        model=types.ModelInfo(
            architecture="LlamaForCausalLM",
            size_bytes=4096,
            context_tokens=512,
            kv_bytes_per_token=64,
            digest="abc",
        ),
        state=state,
        created_at=Timestamp(seconds=1_700_000_000, nanos=500_000_000),
        learned=types.LearnedKeepTimes(
            instance=Duration(nanos=500_000_000), weights=Duration(seconds=9)
        ),
        tuned=types.TunedConcurrency(requests=2, time_per_token=Duration(nanos=40_000_000)),
        **fields,  # type: ignore[arg-type]  # by name
    )


def about(
    choice: int, message: pb.GenerateResponse, sequence: int | None = None
) -> pb.GenerateResponse:
    """A message that is about one of several samples; its `finished` is that one's alone."""
    one = pb.GenerateResponse()
    one.CopyFrom(message)
    one.choice = choice
    if message.HasField("finished"):
        one.choice_finished.CopyFrom(message.finished)
    if sequence is not None:
        one.sequence = sequence
    return one


def samples() -> list[pb.GenerateResponse]:
    """A whole generation of two samples, the second of which ends first."""
    return [
        QUEUED,
        about(1, STARTED, 1),
        about(1, tokens(2, 0, 20, 21, text="Twice")),
        about(0, STARTED, 3),
        about(0, tokens(4, 0, 10, text="Once ")),
        about(1, finished(5)),
        about(0, tokens(6, 1, 11, 12, text="upon")),
        about(0, finished(7)),
        finished(8),
    ]
