"""A worker process, from its fork to its end."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import transformers
import uvloop
from serverlessllm.v1 import embedding_service_pb2, model_service_pb2, worker_service_pb2
from serverlessllm.v1.embedding_service_pb2_grpc import add_EmbeddingServiceServicer_to_server
from serverlessllm.v1.model_service_pb2_grpc import add_ModelServiceServicer_to_server
from serverlessllm.v1.worker_service_pb2_grpc import add_WorkerServiceServicer_to_server

from sllm import rpc, telemetry
from sllm.node.worker.backends.interface import Backend
from sllm.node.worker.embedding_service import EmbeddingServicer
from sllm.node.worker.engine.group import Rank
from sllm.node.worker.host import ModelHost
from sllm.node.worker.messages import Fork
from sllm.node.worker.model_service import ModelServicer
from sllm.node.worker.ranks import fork_ranks, serve_rank
from sllm.node.worker.service import WorkerServicer
from sllm.process import until_terminated

STOP_GRACE = 1.0
"""Seconds that the last outputs have to leave."""

END_TIMEOUT = 5
"""Seconds after which the kernel ends a worker that does not manage to."""

EXPORT_TIMEOUT = 0.5
"""Seconds that the last spans and metrics have to be exported."""

_SERVICES = (
    worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"],
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"],
    embedding_service_pb2.DESCRIPTOR.services_by_name["EmbeddingService"],
)


def run(
    worker: Fork,
    pool_fd: int,
    backend: Backend,
    threads: int,
    on_serving: Callable[[], None],
    on_rank: Callable[[], None],
) -> int:
    """Serves until SIGTERM or a failure of the engine; gives the exit status.

    Args:
        worker: What was asked for.
        pool_fd: The pool's memfd.
        backend: Of the engine.
        threads: Those that compute.
        on_serving: Called once calls are taken.
        on_rank: Called in each process that is forked to run the model with this one.
    """
    os.environ.update(worker.environment)

    def serve(pipe: Connection, rank: Rank) -> int:
        on_rank()
        return serve_rank(backend, pool_fd, threads, pipe, rank)

    ranks = fork_ranks(worker.ranks, serve)
    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    # Not `uvloop.run`: what it tidies up afterwards takes threads, which a process that is out of
    # memory may not get, and ends with the process anyway.
    loop = uvloop.new_event_loop()
    host = partial(ModelHost, pool_fd, backend, ranks)
    status: int = loop.run_until_complete(_serve(worker, host, on_serving))
    return status


async def _serve(
    worker: Fork, make_host: Callable[[], ModelHost], on_serving: Callable[[], None]
) -> int:
    exporters = telemetry.configure("sllm-worker", instance_id=worker.instance_id)
    host = make_host()
    server = rpc.Server(rpc.PROCESS_OPTIONS)
    add_WorkerServiceServicer_to_server(WorkerServicer(host), server.grpc)
    add_ModelServiceServicer_to_server(ModelServicer(host), server.grpc)
    add_EmbeddingServiceServicer_to_server(EmbeddingServicer(host), server.grpc)
    await server.start(rpc.unix_address(Path(worker.socket)), _SERVICES)
    on_serving()
    terminated = asyncio.create_task(until_terminated())
    await asyncio.wait([terminated, host.failed], return_when=asyncio.FIRST_COMPLETED)
    terminated.cancel()
    signal.alarm(END_TIMEOUT)
    failed = host.failed.done()
    await host.close()
    await server.stop(STOP_GRACE)
    _export_the_rest(exporters)
    return 1 if failed else 0


def _export_the_rest(exporters: telemetry.Telemetry) -> None:
    """Waits for a moment only: while no collector answers, the room of this worker is wanted."""
    if not exporters.exporting:
        return
    exporting = threading.Thread(target=exporters.shutdown, daemon=True)
    exporting.start()
    exporting.join(EXPORT_TIMEOUT)
