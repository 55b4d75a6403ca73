"""A request of a batch is what `generate` would send with the same arguments."""

import inspect
from typing import Any

import pytest
from serverlessllm.v1 import batch_service_pb2 as pb

import sllm
from sllm import errors
from sllm.client.wire import batches

NOT_THEIRS = {
    "attach",
    "self",
    "attempt",
    "priority",
    "keep_alive",
    "linger",
    "reattach",
    "timeout",
    "zone",
}
"""Arguments of `generate` that have no sense where nobody waits, or no place in the one answer."""
OF_EMBEDDINGS = {"inputs", "dimensions", "normalize", "truncate"}
"""What a request has in the place of all those."""


def test_it_has_the_arguments_of_generate() -> None:
    arguments = inspect.signature(sllm.AsyncClient.generate).parameters.keys() - NOT_THEIRS
    assert set(sllm.BatchRequest.__annotations__) - OF_EMBEDDINGS == arguments
    given: dict[str, Any] = dict.fromkeys(arguments)
    request = batches.request({**given, "deployment": "d", "prompt": "p"})
    assert request == batches.request({"deployment": "d", "prompt": "p"})


def test_what_is_left_out_is_left_open() -> None:
    request = batches.request({"deployment": "d", "prompt": "p"})
    assert {field.name for field, _ in request.ListFields()} == {"deployment", "text", "sampling"}
    assert not request.sampling.ListFields()


def test_json_is_taken_as_it_is() -> None:
    request = batches.request(
        {
            "deployment": "d",
            "messages": [{"role": "user", "content": "Hi"}],
            "template_arguments": {"enable_thinking": False},
            "logit_bias": {"7": 1.5},
            "structured_output": {"json_schema": {"type": "integer"}},
            "stop": "x",
            "failover": False,
        }
    )
    assert request.messages.messages[0].role == "user"
    assert "enable_thinking" in request.messages.template_arguments
    assert dict(request.sampling.logit_bias) == {7: 1.5}
    assert request.structured_output.json_schema
    assert list(request.stop) == ["x"]
    assert request.no_failover


@pytest.mark.parametrize("name", [*sorted(NOT_THEIRS - {"self"}), "max_token"])
def test_an_argument_that_is_none_of_theirs_is_refused(name: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=name):
        batches.request({"deployment": "d", "prompt": "p", name: 1})


def test_a_failure_is_the_error_that_it_was() -> None:
    failure = pb.BatchResult(request_id="a")
    failure.failure.code, failure.failure.reason = 3, "CONTEXT_EXCEEDED"
    failure.failure.message = "9 tokens"
    result = batches.result(failure)
    assert isinstance(result.error, errors.ContextExceeded)
    assert result.result is None
