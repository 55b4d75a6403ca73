"""Between what nodes are told to do and say of it, and the protocol's messages."""

from serverlessllm.v1 import node_service_pb2 as pb

from sllm import errors
from sllm.control.cluster.instances import Instance
from sllm.control.cluster.specs import Deployment
from sllm.control.types.migrations import Ended, Moved, News, Round, Stayed
from sllm.control.wire import common as wire
from sllm.control.wire.deployments import engine_message


def start_request(deployment: Deployment, one: Instance) -> pb.StartInstanceRequest:
    """What a node is told to start."""
    return pb.StartInstanceRequest(
        instance_id=one.instance_id,
        deployment=deployment.name,
        source=deployment.spec.source,
        engine=engine_message(deployment.spec.engine),
        kv_bytes=one.kv_bytes,
    )


def migration_news(response: pb.StartMigrationResponse) -> News:
    """What a node says of a generation that it moves."""
    request_id = response.request_id
    match response.WhichOneof("event"):
        case "progress":
            one = response.progress
            return Round(request_id, one.round, one.computed_tokens, one.gap_tokens)
        case "done":
            done = response.done
            times = wire.seconds(done.duration), wire.seconds(done.cutover)
            return Moved(request_id, done.rounds, done.tokens, *times, done.gap_tokens)
        case "failure":
            failure = response.failure
            error = errors.make_error(failure.code, failure.reason, failure.message)
            return Stayed(request_id, error)
        case _:
            return Ended(request_id)
