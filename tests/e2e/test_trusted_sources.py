"""What may be deployed, that secrets stay where they are, and that no checkpoint's code runs."""

import json
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import boto3
import pytest
from make_models import make_model

from sllm import ChatMessage
from sllm.errors import InvalidSource, SllmError, SourceNotAllowed
from tests.collector import Collector
from tests.e2e.cluster import Cluster, running
from tests.s3 import BUCKET, serving

PLANTED = "pl4nted"
"""Part of every secret here."""
KEY = f"{PLANTED}-key"
LIST = """
[[source]]
url = "file://{directory}/allowed"

[[source]]
url = "s3://models/private"
options.endpoint = "{endpoint}"
options.region = "us-east-1"
secrets.access_key_id = "{directory}/id"
secrets.secret_access_key = "{directory}/key"

[[source]]
url = "https://models.invalid"
secrets.token = "{directory}/key"
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("trusted")
    make_model("tiny-llama", made / "allowed" / "tiny")
    return made


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector.running() as collector:
        yield collector


@pytest.fixture(scope="module")
def cluster(directory: Path, collector: Collector) -> Iterator[Cluster]:
    """One node, whose environment has no credentials, and a list of sources with files of them."""
    with ExitStack() as stack:
        environment = stack.enter_context(serving(KEY))
        (directory / "id").write_text(environment["AWS_ACCESS_KEY_ID"])
        (directory / "key").write_text(KEY)
        upload(directory / "allowed" / "tiny", environment["AWS_ENDPOINT_URL"])
        sources = directory / "sources.toml"
        endpoint = environment["AWS_ENDPOINT_URL"]
        sources.write_text(LIST.format(directory=directory, endpoint=endpoint))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", collector.endpoint)
            patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
            options = [f"--sources={sources}"]
            started = running(directory, nodes=1, dram_mib=64, kv_mib=64, node_options=options)
            cluster = stack.enter_context(started)
        yield cluster


def upload(model: Path, endpoint: str) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="somebody",
        aws_secret_access_key=KEY,
    )
    for path in model.iterdir():
        client.upload_file(str(path), BUCKET, f"private/tiny/{path.name}")


def test_what_is_listed_is_served_with_what_files_hold(cluster: Cluster, directory: Path) -> None:
    for name, source in {
        "near": f"{directory}/allowed/tiny",
        "far": "s3://models/private/tiny",
    }.items():
        cluster.client.deploy(name, source, kv_cache_tokens=64)
        assert cluster.client.complete(name, "a", max_tokens=1).text is not None
        cluster.client.delete(name)


def test_all_else_is_refused(cluster: Cluster, directory: Path) -> None:
    make_model("tiny-llama", directory / "elsewhere")
    (directory / "allowed" / "link").symlink_to(directory / "elsewhere")
    for source in (
        f"{directory}/elsewhere",
        f"{directory}/allowed/link",
        f"file://{directory}/allowed/../elsewhere",
        "s3://models/public",
        "hf://Qwen/Qwen3-0.6B",
        "http://169.254.169.254/latest",
    ):
        with pytest.raises(SourceNotAllowed, match="--sources"):
            cluster.client.deploy("x", source)
    assert not cluster.client.deployments()


@pytest.mark.parametrize(
    "source",
    [
        f"https://user:{PLANTED}@models.invalid/x",
        f"https://models.invalid/x?X-Amz-Signature={PLANTED}",
        f"https://models.invalid/x#{PLANTED}",
        f"s3://{PLANTED}:{PLANTED}@models/private/tiny",
        f"hf://user:{PLANTED}@organisation/model",
        f"hf://organisation/model?token={PLANTED}",
        f"ftp://user:{PLANTED}@models.invalid/x",
        f"file://user:{PLANTED}@models.invalid/x",
        f"https://[user:{PLANTED}@x/y",
    ],
)
def test_a_url_with_a_secret_is_refused_and_not_repeated(cluster: Cluster, source: str) -> None:
    with pytest.raises(InvalidSource) as refused:
        cluster.client.deploy("x", source)
    assert PLANTED not in str(refused.value)


def test_a_secret_is_in_no_failure(cluster: Cluster) -> None:
    """The host is listed, with a token, and nobody answers there."""
    with pytest.raises(SllmError) as failed:
        cluster.client.deploy("x", "https://models.invalid/x")
    assert PLANTED not in f"{failed.value} {failed.value.metadata}"


class Payload:
    """Pickled, it makes a directory when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_no_code_of_a_checkpoint_runs(cluster: Cluster, directory: Path) -> None:
    """Neither when it is deployed, nor when it is served or asked about."""
    model, marker = make_model("tiny-llama", directory / "allowed" / "evil"), directory / "marker"
    making = f"import os; os.mkdir({str(marker)!r})"
    for name in ("configuration_evil", "modeling_evil", "tokenization_evil", "__init__"):
        (model / f"{name}.py").write_text(making)
    change(
        model / "config.json",
        auto_map={
            "AutoConfig": "configuration_evil.Config",
            "AutoModelForCausalLM": "modeling_evil.Model",
        },
    )
    template = f"{{{{ cycler.__init__.__globals__.os.mkdir({str(marker)!r}) }}}}x"
    change(
        model / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["tokenization_evil.Tokenizer", None]},
        chat_template=template,
    )
    for name in ("pytorch_model.bin", "model.pt", "optimizer.pt", "training_args.bin"):
        (model / name).write_bytes(pickle.dumps(Payload(marker)))
    said = [ChatMessage(role="user", content="a")]
    outcomes = [
        attempt(lambda: cluster.client.deploy("evil", model, kv_cache_tokens=64)),
        attempt(lambda: cluster.client.complete("evil", "a", max_tokens=1)),
        attempt(lambda: cluster.client.complete("evil", messages=said, max_tokens=1)),
    ]
    assert not marker.exists(), outcomes
    (model / "model.safetensors").unlink()
    with pytest.raises(InvalidSource, match="can run code"):
        cluster.client.deploy("pickled", model)
    assert not marker.exists()
    pickle.loads((model / "pytorch_model.bin").read_bytes())
    assert marker.exists(), "the payload is none"


def attempt(call: Callable[[], object]) -> str:
    """What comes of a call: that it may fail is its own affair."""
    try:
        return repr(call())
    except SllmError as error:
        return repr(error)


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_no_secret_is_in_any_log_or_span(
    cluster: Cluster, collector: Collector, directory: Path
) -> None:
    """After all of the above; last in this file."""
    assert "sllm.generate" in collector.span_names()
    assert not [one for one in collector.traces.requests if PLANTED in str(one)]
    told = [path for path in directory.rglob("*") if path.is_file() and path.name != "key"]
    assert [part for part in cluster.parts if part.log_text()]
    assert not [path for path in told if PLANTED.encode() in path.read_bytes()]
