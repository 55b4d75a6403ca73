"""Vectors and scores through the whole system, held against transformers called directly."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import sllm
from sllm import checkpoint, errors
from tests.e2e import workers
from tests.e2e.cluster import Cluster
from tests.e2e.engines import ENGINES
from tests.e2e.generations import busiest
from tests.encoders import POSITIONS, change, hidden, make_encoder
from tests.fuzz.calls import make_call, send
from tests.fuzz.valid import Facts
from tests.support import assert_eventually

TEXTS = [
    "Once upon a time",
    "a",
    "Ünïcode 🦙\n\t x",
    "the for statement is used to iterate over the elements of a sequence " * 2,
    "Once upon a time there was a for statement",
]
LONG = "the for statement is used to iterate over the elements of a sequence " * 20
DOCUMENTS = ["the while statement", "a", "an elephant that never forgets what it has been told"]


@contextmanager
def deployed(cluster: Cluster, directory: Path, **options: Any) -> Iterator[str]:
    """A deployment of a model, deleted in the end."""
    name = directory.name.replace("_", "-")
    options = {"engine": "auto", "keep_alive": 60.0, **options}
    cluster.client.deploy(name, f"file://{directory}", **options)
    yield name
    cluster.client.delete(name)
    cluster.wait_for_instances(0, name)


def assert_close(found: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-5)


def vectors(found: sllm.Embeddings) -> torch.Tensor:
    return torch.tensor([list(one) for one in found.vectors])


def expected(directory: Path, pooling: str, ids: Sequence[Sequence[int]]) -> torch.Tensor:
    """Vectors by transformers, each text alone and pooled by hand; not normalised."""
    model = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    ways: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "mean": lambda rows: rows.mean(0),
        "cls": lambda rows: rows[0],
        "last": lambda rows: rows[-1],
        "max": lambda rows: rows.amax(0),
    }
    return torch.stack([ways[pooling](hidden(model, one)) for one in ids])


def tokens_of(directory: Path, texts: Sequence[str], **options: Any) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return [tokenizer(text, **options)["input_ids"] for text in texts]


# --- models that embed ------------------------------------------------------------------------

EMBEDDING: dict[str, tuple[dict[str, Any], str, bool]] = {
    "bert": ({"pooling": "mean_tokens", "normalize": True}, "mean", True),
    "bert-cls": ({"pooling": "cls_token"}, "cls", False),
    "bert-bare": ({}, "mean", True),
    "roberta": ({"pooling": "max_tokens"}, "max", False),
    "xlm-roberta": ({"pooling": "cls_token", "normalize": True}, "cls", True),
    "modernbert": ({"pooling": "mean_tokens"}, "mean", False),
    "mpnet": ({"pooling": "mean_tokens"}, "mean", False),
    "qwen3": ({"pooling": "lasttoken", "normalize": True}, "last", True),
    "qwen3-bare": ({}, "last", True),
    "qwen3-head": ({"pooling": "lasttoken", "head": "causal"}, "last", False),
    "bert-head": ({"pooling": "mean_tokens", "head": "masked"}, "mean", False),
}
"""What is made, how it pools, and whether its vectors have the length 1."""


@pytest.mark.parametrize("case", EMBEDDING)
def test_vectors_are_those_of_transformers(cluster: Cluster, tmp_path: Path, case: str) -> None:
    made, pooling, normalizes = EMBEDDING[case]
    kind = case.partition("-")[0] if not case.startswith("xlm") else case
    directory = make_encoder(kind, tmp_path / case, **made)
    ids = tokens_of(directory, TEXTS)
    plain = expected(directory, pooling, ids)
    unit = torch.nn.functional.normalize(plain)
    with deployed(cluster, directory) as name:
        found = cluster.client.embed(name, TEXTS)
        assert_close(vectors(found), unit if normalizes else plain)
        assert [one.prompt_tokens for one in found.embeddings] == list(map(len, ids))
        assert not any(one.truncated for one in found.embeddings)
        # Alone as together, and as tokens; with the length that is asked for.
        alone = cluster.client.embed(name, TEXTS[3], normalize=False)
        assert_close(vectors(alone), plain[3:4])
        by_ids = cluster.client.embed(name, ids, normalize=True)
        assert_close(vectors(by_ids), unit)
        told = cluster.client.model(name)
        assert told.engine == "transformers"
        assert told.info.purpose.task == "embed"
        assert told.info.purpose.dimensions == plain.shape[1]
        assert (told.info.purpose.pooling, told.info.purpose.normalizes) == (pooling, normalizes)
        assert told.info.kv_bytes_per_token > 0  # of a pass: it is in the node's books


def test_weights_are_used_where_the_agent_holds_them(cluster: Cluster, tmp_path: Path) -> None:
    directory = make_encoder("bert", tmp_path / "held", pooling="mean_tokens")
    with deployed(cluster, directory) as name:
        cluster.client.embed(name, TEXTS)
        (socket,) = workers.sockets(cluster)
        status = workers.status(socket)
        end = status.mapping_address + status.mapping_bytes
        assert len(status.parameters) > 30
        assert all(
            status.mapping_address <= one.address <= end - one.size_bytes
            for one in status.parameters
        )


def test_what_is_packed_pools_as_it_did(cluster: Cluster, tmp_path: Path) -> None:
    """How it pools lies in a directory of its own, which checkpoints have not."""
    directory = make_encoder("bert", tmp_path / "loose", pooling="lasttoken", normalize=True)
    plain = expected(directory, "last", tokens_of(directory, TEXTS))
    with deployed(cluster, directory, pack=True, dtype="float32") as name:
        found = vectors(cluster.client.embed(name, TEXTS, normalize=False))
        assert_close(found, plain)
        assert cluster.client.model(name).info.purpose.pooling == "last"
    packed = tmp_path / "packed"
    checkpoint.pack(directory, packed)
    with deployed(cluster, packed) as name:
        found = vectors(cluster.client.embed(name, TEXTS, normalize=False))
        assert_close(found, plain)


def test_shorter_vectors_of_models_made_for_them(cluster: Cluster, tmp_path: Path) -> None:
    directory = make_encoder("bert", tmp_path / "dolls", pooling="mean_tokens", normalize=True)
    change(directory, matryoshka_dimensions=[8, 32])
    plain = expected(directory, "mean", tokens_of(directory, TEXTS))
    with deployed(cluster, directory) as name:
        short = vectors(cluster.client.embed(name, TEXTS, dimensions=8))
        assert_close(short, torch.nn.functional.normalize(plain[:, :8]))
        for dimensions in (0, -1, 9, 65):
            with pytest.raises(errors.InvalidArgument, match="can have 8, 32"):
                cluster.client.embed(name, TEXTS, dimensions=dimensions)
        assert cluster.client.model(name).info.purpose.matryoshka_dimensions == (8, 32)


def test_what_is_too_long_is_refused_or_cut(cluster: Cluster, tmp_path: Path) -> None:
    directory = make_encoder("bert", tmp_path / "long", pooling="mean_tokens")
    cut = tokens_of(directory, [LONG], truncation=True, max_length=POSITIONS)
    with deployed(cluster, directory) as name:
        for inputs in (["short", LONG], [[7] * (POSITIONS + 1)]):
            with pytest.raises(errors.ContextExceeded, match=f"{POSITIONS}"):
                cluster.client.embed(name, inputs)
        found = cluster.client.embed(name, ["short", LONG, LONG * 1000], truncate=True)
        assert [one.truncated for one in found.embeddings] == [False, True, True]
        assert [one.prompt_tokens for one in found.embeddings][1:] == [POSITIONS] * 2
        plain = expected(directory, "mean", cut)
        assert_close(vectors(found)[1:2], plain)
        assert_close(vectors(found)[2:], plain)
        by_ids = cluster.client.embed(name, [cut[0] + [7]], truncate=True)
        assert_close(vectors(by_ids), plain)
    change(directory, "tokenizer_config.json", model_max_length=8)
    (directory / "sentence_bert_config.json").write_text('{"max_seq_length": 8}')
    with deployed(cluster, directory) as name:
        found = cluster.client.embed(name, [LONG], truncate=True)
        assert found.prompt_tokens == 8
        assert cluster.client.model(name).context_tokens == 8


BAD: tuple[tuple[Any, type[errors.SllmError], str], ...] = (
    ([], errors.InvalidPrompt, "0 inputs"),
    (["a"] * 2049, errors.InvalidPrompt, "2049 inputs"),
    (["a", ""], errors.InvalidPrompt, r"inputs\[1\] is empty"),
    ([[]], errors.InvalidPrompt, r"inputs\[0\] is empty"),
    ([[7, 10**6]], errors.InvalidPrompt, "1000000 is not in the model's vocabulary"),
    ([[-1]], errors.InvalidPrompt, "-1 is not in the model's vocabulary"),
    (["\ud800"], errors.InvalidArgument, "UTF-8"),
)


def test_bad_inputs_are_refused(cluster: Cluster, tmp_path: Path, models: Path) -> None:
    directory = make_encoder("bert", tmp_path / "strict")
    with deployed(cluster, directory) as name:
        for inputs, kind, message in BAD:
            with pytest.raises(kind, match=message):
                cluster.client.embed(name, inputs)
        with pytest.raises(errors.InvalidArgument, match="not made to be cut"):
            cluster.client.embed(name, ["a"], dimensions=8)
        with pytest.raises(errors.InvalidPrompt, match="give one"):
            cluster.client.score(name, None, ["a"])
        with pytest.raises(errors.NotServed, match="strict does not generate; it embeds"):
            cluster.client.complete(name, "Once upon a time", max_tokens=1)
        assert cluster.client.embed(name, ["a"]).receipt.instance_id
    with deployed(cluster, models / "tiny-llama") as name:
        with pytest.raises(errors.NotServed, match="does not embed; it generates"):
            cluster.client.embed(name, ["a"])
        with pytest.raises(errors.NotServed, match="does not score; it generates"):
            cluster.client.score(name, "a", ["b"])


@pytest.mark.skipif("vllm" not in ENGINES, reason="vLLM is not installed")
def test_vllm_says_that_it_does_not_run_them(cluster: Cluster, tmp_path: Path) -> None:
    directory = make_encoder("bert", tmp_path / "elsewhere")
    with pytest.raises(errors.UnsupportedModel, match="which transformers runs here, and not vLLM"):
        cluster.client.deploy("elsewhere", f"file://{directory}", engine="vllm")


async def test_wrong_messages_get_typed_answers(cluster: Cluster, tmp_path: Path) -> None:
    directory = make_encoder("bert", tmp_path / "fuzzed")
    with deployed(cluster, directory) as name:
        instance_id = cluster.client.embed(name, ["a"]).receipt.instance_id
        node = next(one for one in cluster.client.instances() if one.instance_id == instance_id)
        address = cluster.node_of(node.node_id).address
        addresses = {"control": cluster.control.address, "node": address}
        facts = Facts(f"file://{directory}", name, node.node_id, instance_id, node.digest)
        async with AsyncExitStack() as stack:
            channels = {
                server: await stack.enter_async_context(grpc.aio.insecure_channel(where))
                for server, where in addresses.items()
            }
            answers = Counter[str]()
            for number in range(6000):
                call = make_call(0, number, facts)
                if call.method.service.endswith("EmbeddingService"):
                    outcome = await send(channels[call.method.server], call)
                    assert not outcome.faults, (call, outcome)
                    answers[outcome.reason or outcome.code] += 1
        assert answers["OK"]
        assert answers["INVALID_PROMPT"]
        assert cluster.client.embed(name, ["a"]).receipt.instance_id == instance_id


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dense": (
        {"modules.json": '[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]'},
        "names Dense",
    ),
    "no pooling": (
        {"modules.json": '[{"type": "sentence_transformers.models.Pooling", "path": "../../etc"}]'},
        "there is no config.json there",
    ),
    "two poolings": (
        {
            "1_Pooling/config.json": '{"pooling_mode_cls_token": true, '
            '"pooling_mode_mean_tokens": true}'
        },
        "pools in another way",
    ),
    "no list": ({"modules.json": "{}"}, "no JSON list"),
    "no JSON": ({"modules.json": "["}, "modules.json cannot be used"),
    "no length": ({"sentence_bert_config.json": '{"max_seq_length": 0}'}, "max_seq_length"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_pooled_is_not_deployed(cluster: Cluster, tmp_path: Path, case: str) -> None:
    files, message = REFUSED[case]
    directory = make_encoder("bert", tmp_path / "spoiled", pooling="mean_tokens")
    for file, content in files.items():
        (directory / file).write_text(content)
    with pytest.raises(errors.UnsupportedModel, match=message):
        cluster.client.deploy("spoiled", f"file://{directory}", engine="transformers")


# --- models that score ------------------------------------------------------------------------


@cache
def _classifier(directory: Path) -> tuple[Any, Any]:
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(directory)


@torch.inference_mode()
def logits(directory: Path, *texts: Sequence[str], **options: Any) -> torch.Tensor:
    """By transformers, each document or pair alone: [documents, labels]."""
    model, tokenizer = _classifier(directory)
    encoded = [tokenizer(*one, return_tensors="pt", **options) for one in zip(*texts, strict=True)]
    return torch.stack([model(**one).logits[0] for one in encoded])


def values(found: sllm.Scores) -> torch.Tensor:
    return torch.tensor([one.values for one in found.scores])


SCORING: dict[str, dict[str, Any]] = {
    "bert": {},
    "xlm-roberta": {},
    "modernbert": {},
    "qwen3": {},
    "qwen3-unpadded": {"pad_token_id": None},
}


@pytest.mark.parametrize("case", SCORING)
def test_rerankers_score_as_transformers_does(cluster: Cluster, tmp_path: Path, case: str) -> None:
    kind = case.removesuffix("-unpadded")
    directory = make_encoder(kind, tmp_path / f"rank-{case}", labels=1, **SCORING[case])
    query = "the for statement"
    own = logits(directory, [query] * len(DOCUMENTS), DOCUMENTS)
    with deployed(cluster, directory) as name:
        found = cluster.client.score(name, query, DOCUMENTS)
        assert_close(values(found), own.sigmoid())
        raw = cluster.client.score(name, [query] * len(DOCUMENTS), DOCUMENTS, raw=True)
        assert_close(values(raw), own)
        assert found.ranking == own[:, 0].argsort(descending=True).tolist()
        _, tokenizer = _classifier(directory)
        counts = [len(tokenizer(query, one)["input_ids"]) for one in DOCUMENTS]
        assert [one.prompt_tokens for one in found.scores] == counts
        assert cluster.client.model(name).info.purpose.task == "score"


def test_a_pair_that_is_too_long_keeps_its_query(cluster: Cluster, tmp_path: Path) -> None:
    directory = make_encoder("bert", tmp_path / "pairs", labels=1)
    own = logits(directory, ["a query"], [LONG], truncation="only_second", max_length=POSITIONS)
    with deployed(cluster, directory) as name:
        with pytest.raises(errors.ContextExceeded, match=r"documents\[0\] has"):
            cluster.client.score(name, "a query", LONG)
        found = cluster.client.score(name, "a query", LONG, raw=True, truncate=True)
        assert_close(values(found), own)
        assert found.scores[0].truncated
        assert found.prompt_tokens == POSITIONS
        with pytest.raises(errors.ContextExceeded):
            cluster.client.score(name, LONG, "a document", truncate=True)


def test_a_classifier_tells_of_each_label(cluster: Cluster, tmp_path: Path) -> None:
    directory = make_encoder("modernbert", tmp_path / "sorts", labels=3)
    change(directory, id2label={"0": "good", "1": "bad", "2": "so so"})
    own = logits(directory, TEXTS)
    with deployed(cluster, directory) as name:
        found = cluster.client.score(name, None, TEXTS)
        assert_close(values(found), own.softmax(-1))
        assert cluster.client.model(name).info.purpose.labels == ("good", "bad", "so so")


def test_models_that_embed_score_by_cosines(cluster: Cluster, tmp_path: Path) -> None:
    directory = make_encoder("bert", tmp_path / "near", pooling="mean_tokens")
    plain = expected(directory, "mean", tokens_of(directory, [TEXTS[0], *DOCUMENTS]))
    near = torch.nn.functional.cosine_similarity(plain[:1], plain[1:])
    counts = list(map(len, tokens_of(directory, [TEXTS[0], *DOCUMENTS])))
    with deployed(cluster, directory) as name:
        found = cluster.client.score(name, TEXTS[0], DOCUMENTS)
        assert_close(values(found)[:, 0], near)
        assert found.prompt_tokens == sum(counts)
        pairs = cluster.client.score(name, DOCUMENTS, DOCUMENTS)
        assert_close(values(pairs)[:, 0], torch.ones(len(DOCUMENTS)))


# --- instances --------------------------------------------------------------------------------


def test_an_instance_starts_with_the_first_and_ends_when_idle(
    cluster: Cluster, tmp_path: Path
) -> None:
    directory = make_encoder("bert", tmp_path / "sleepy")
    with deployed(cluster, directory, keep_alive=0.2) as name:
        assert not [one for one in cluster.client.instances() if one.deployment == name]
        for _ in range(2):
            receipt = cluster.client.embed(name, TEXTS).receipt
            assert receipt.cold
            assert receipt.engine == "transformers"
            assert cluster.client.explain(name).why
            assert "PREFILL" in [phase.kind for phase in receipt.phases]
            cluster.wait_for_instances(0, name)
        assert cluster.client.embed(name, TEXTS, keep_alive=60.0).receipt.cold
        assert not cluster.client.embed(name, TEXTS).receipt.cold


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes seconds for the texts of `MANY`."""
    directory = tmp_path_factory.mktemp("slow") / "slow"
    sizes: dict[str, Any] = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 4}
    return make_encoder("bert", directory, pooling="mean_tokens", **sizes)


MANY = [[number % 900 + 10] * 90 for number in range(160)]


@pytest.fixture
async def caller(cluster: Cluster) -> AsyncIterator[sllm.AsyncClient]:
    async with sllm.AsyncClient(cluster.control.address) as client:
        yield client


def idle(socket: Path) -> bool:
    return not workers.status(socket).counters.running_requests


async def test_a_worker_that_is_killed_amid_a_request_is_no_matter(
    cluster: Cluster, caller: sllm.AsyncClient, slow: Path
) -> None:
    with deployed(cluster, slow) as name:
        asked = asyncio.create_task(caller.embed(name, MANY))
        instance = await busiest(caller, name)
        cluster.signal_worker(instance.instance_id, signal.SIGKILL)
        found = await asked
        assert found.receipt.instance_id != instance.instance_id
        again = await caller.embed(name, MANY[:8])
        assert_close(vectors(found)[:8], vectors(again))


async def test_who_leaves_ends_the_work(
    cluster: Cluster, caller: sllm.AsyncClient, slow: Path
) -> None:
    with deployed(cluster, slow) as name:
        await caller.embed(name, MANY[:1])
        (socket,) = workers.sockets(cluster)
        left = asyncio.create_task(caller.embed(name, MANY))
        await assert_eventually(lambda: not idle(socket))
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        await assert_eventually(lambda: idle(socket))
        with pytest.raises(errors.DeadlineExceeded):
            await caller.embed(name, MANY, timeout=0.3)
        await assert_eventually(lambda: idle(socket))
        assert workers.status(socket).counters.cancelled_requests == 2
        assert (await caller.embed(name, MANY[:1])).vectors


async def test_a_short_request_does_not_wait_for_a_long_one(
    cluster: Cluster, caller: sllm.AsyncClient, slow: Path
) -> None:
    with deployed(cluster, slow) as name:
        await caller.embed(name, MANY[:1])
        long = asyncio.create_task(caller.embed(name, MANY * 2))
        await busiest(caller, name)
        await asyncio.gather(*(caller.embed(name, [one]) for one in MANY[:4]))
        assert not long.done()
        await long


async def test_a_drained_node_ends_what_it_has(
    cluster: Cluster, caller: sllm.AsyncClient, slow: Path
) -> None:
    with deployed(cluster, slow) as name:
        asked = asyncio.create_task(caller.embed(name, MANY))
        instance = await busiest(caller, name)
        await caller.drain(instance.node_id)
        found = await asked
        assert found.receipt.instance_id == instance.instance_id
        await caller.undrain(instance.node_id)
