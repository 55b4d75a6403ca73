"""Clusters, models and gateways that end-to-end tests share."""

import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from make_models import make_model

from tests.e2e.cluster import Cluster, Part, gateway_of, running
from tests.e2e.engines import ENGINES
from tests.encoders import make_encoder
from tests.fixtures import nearest_cluster

FAMILIES = ("tiny-llama", "tiny-opt", "tiny-qwen2", "tiny-gpt2")
TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}"
    "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}[assistant: "
)
FIRST_SECONDS = 600.0
"""What a test may take that comes first, and waits for what its cluster's nodes import."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Gives that time to whoever has a cluster started; another that hangs is told sooner."""
    if any(one.cached_result is None for one in nearest_cluster(item)):
        item.add_marker(pytest.mark.timeout(FIRST_SECONDS))
    return (yield)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of small random models: each family in one file, and in shards."""
    directory = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        make_model(family, directory / family)
        make_model(family, directory / f"{family}-sharded", shards=3)
    return directory


@pytest.fixture(scope="session")
def slower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes a while for a generation."""
    return make_model("small-llama", tmp_path_factory.mktemp("slower") / "model")


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that embeds."""
    return make_encoder("bert", tmp_path_factory.mktemp("encoder") / "bert", pooling="mean_tokens")


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes that have every engine; tests delete what they deploy.

    It ends where these tests do, and not with the process, which goes on with others: they look at
    processes, memory and files of their own.
    """
    with running(tmp_path_factory.mktemp("cluster"), engines=ENGINES) as cluster:
        yield cluster


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine in turn; a module's tests on one of them are run together."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def chat_model(
    cluster: Cluster, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """The cluster, with a model that has a chat template as the deployment `http`."""
    model = shutil.copytree(models / "tiny-llama", tmp_path_factory.mktemp("http") / "model")
    (model / "chat_template.jinja").write_text(TEMPLATE)
    cluster.client.deploy("http", f"file://{model}", engine="transformers", keep_alive=600.0)
    yield cluster
    cluster.client.delete("http")
    cluster.wait_for_instances(0, "http")


@pytest.fixture(scope="module")
def gateway(chat_model: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Part]:
    """A gateway before it, as a process."""
    with gateway_of(chat_model.control, tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway
