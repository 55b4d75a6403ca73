"""Images through the whole system: what is seen is what transformers sees, wherever it goes on."""

import base64
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from aiohttp import web

import sllm
from sllm import errors
from sllm.chat.images import MAX_PIXELS
from tests.e2e.cluster import Cluster, Part, gateway_of
from tests.e2e.generations import moved, read_to, same, steps, two_instances
from tests.e2e.nights import paired
from tests.node.worker.engines import needs_vllm
from tests.vision import expected, make_seeing_model, picture

pytestmark = needs_vllm
GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
DRAWN: dict[str, Any] = {"temperature": 1.0, "seed": 3, "ignore_eos": True}
ONE, TWO = picture(1), picture(2)
PROMPT = "user: Say what <image> and <image> are\nassistant: "


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_seeing_model(tmp_path_factory.mktemp("seeing") / "model")


@pytest.fixture(scope="module")
def seeing(cluster: Cluster, model: Path) -> Iterator[Cluster]:
    with two_instances(cluster, "seeing", model, "vllm", image_hosts=["127.0.0.1"]):
        yield cluster


@pytest.fixture
async def client(seeing: Cluster) -> AsyncIterator[sllm.AsyncClient]:
    async with sllm.AsyncClient(seeing.control.address) as client:
        yield client


def part(data: bytes) -> Any:
    return {"type": "image", "data": data}


def at(url: str) -> Any:
    return {"type": "image_url", "image_url": {"url": url}}


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def asked(first: Any, second: Any) -> Any:
    """What PROMPT is the rendering of."""
    parts = ["Say what ", first, " and ", second, " are"]
    texts = [{"type": "text", "text": one} if isinstance(one, str) else one for one in parts]
    return [{"role": "user", "content": texts}]


async def test_what_is_seen_is_what_transformers_sees(
    client: sllm.AsyncClient, model: Path
) -> None:
    for first, second in ((ONE, TWO), (TWO, ONE), (ONE, ONE), (ONE, TWO)):
        result = await client.complete(
            "seeing", messages=asked(part(first), at(data_url(second))), max_tokens=24, **GREEDY
        )
        assert list(result.token_ids) == expected(model, PROMPT, [first, second], 24)
    told = await client.model("seeing")
    assert told.info.purpose.takes_images
    own = [one.own_bytes for one in await client.instances("seeing")]
    assert min(own) > 24 * MAX_PIXELS, own  # what reading a large image takes is in the books


async def test_the_cache_tells_images_apart(client: sllm.AsyncClient, model: Path) -> None:
    """Their places hold the same tokens, whatever is seen there."""
    instance = (await client.instances("seeing"))[0].instance_id
    prompt = PROMPT.replace("what", "again what")
    messages = asked(part(ONE), part(TWO))
    messages[0]["content"][0]["text"] = "Say again what "
    cached = []
    for _ in range(4):
        result = await client.complete("seeing", messages=messages, max_tokens=8, **GREEDY)
        assert list(result.token_ids) == expected(model, prompt, [ONE, TWO], 8)
        cached.append(result.usage.cached_prompt_tokens)
    assert cached[-1] >= 64, (instance, cached)
    messages[0]["content"][1] = part(TWO)
    result = await client.complete("seeing", messages=messages, max_tokens=8, **GREEDY)
    assert result.usage.cached_prompt_tokens == 0
    assert list(result.token_ids) == expected(model, prompt, [TWO, TWO], 8)


@pytest.mark.parametrize(("after", "options"), paired(steps(1, 33), [GREEDY, DRAWN]))
async def test_it_moves_at_any_step(
    client: sllm.AsyncClient, after: int, options: dict[str, Any]
) -> None:
    ask: dict[str, Any] = {"messages": asked(part(ONE), part(TWO)), "max_tokens": 240, **options}
    whole = await client.generate("seeing", **ask).result()
    stream, migration = await moved(client, lambda: client.generate("seeing", **ask), after)
    same([await stream.result()], [whole])
    assert [one.outcome for one in migration.requests] == ["MOVED"]


async def test_it_goes_on_where_its_worker_dies(
    client: sllm.AsyncClient, seeing: Cluster, model: Path
) -> None:
    messages = asked(part(TWO), part(ONE))
    whole = await client.complete("seeing", messages=messages, max_tokens=240, n=2, seed=5)
    stream = client.generate("seeing", messages=messages, max_tokens=240, n=2, seed=5)
    started = None
    while not isinstance(event := await stream.receive(), sllm.Tokens):
        started = event if isinstance(event, sllm.Started) else started
    assert started is not None
    seeing.signal_worker(started.instance_id, signal.SIGKILL)
    result = await stream.result()
    assert [one.token_ids for one in result.choices] == [one.token_ids for one in whole.choices]
    assert {one.reason for one in result.migrations} <= {"FAILOVER"}
    seeing.wait_for_instances(2, "seeing")


async def test_it_is_read_on_after_a_restart(client: sllm.AsyncClient, seeing: Cluster) -> None:
    ask: dict[str, Any] = {"messages": asked(part(ONE), part(TWO)), "max_tokens": 300, **GREEDY}
    whole = await client.generate("seeing", **ask).result()
    stream = client.generate("seeing", **ask)
    await read_to(stream, 3)
    seeing.control.kill()
    seeing.control.restart()
    assert (await stream.result()).token_ids == whole.token_ids
    seeing.wait_for_nodes(2)
    seeing.wait_for_instances(2, "seeing")


async def test_urls_are_followed_as_the_deployment_allows(
    client: sllm.AsyncClient, model: Path
) -> None:
    app = web.Application()

    async def image(request: web.Request) -> web.Response:
        return web.Response(body=TWO)

    app.router.add_get("/two.png", image)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/two.png"
    messages = asked(part(ONE), at(url))
    result = await client.complete("seeing", messages=messages, max_tokens=24, **GREEDY)
    assert list(result.token_ids) == expected(model, PROMPT, [ONE, TWO], 24)
    elsewhere = asked(part(ONE), at(url.replace("127.0.0.1", "localhost")))
    with pytest.raises(errors.ImageUrlRefused, match="image_hosts"):
        await client.complete("seeing", messages=elsewhere, max_tokens=1)
    await runner.cleanup()


@pytest.mark.parametrize(
    ("second", "kind", "why"),
    [
        (part(b"no image"), errors.InvalidImage, r"images\[1\] is none of image/png"),
        (part(ONE[:-100]), errors.InvalidImage, r"images\[1\] is damaged"),
        (part(picture(0, (6000, 4000))[:2000]), errors.InvalidImage, "6000 x 4000 pixels"),
        (part(bytes((8 << 20) + 1)), errors.InvalidImage, "may have 8388608"),
        ({**part(ONE), "media_type": "image/gif"}, errors.InvalidImage, "said to be image/gif"),
        (at("file:///etc/passwd"), errors.ImageUrlRefused, "http and https alone"),
        (at("data:image/png;base64,?"), errors.InvalidImage, "no base64"),
    ],
)
async def test_what_cannot_be_seen_is_refused_before_it_is_queued(
    client: sllm.AsyncClient, second: Any, kind: type[errors.SllmError], why: str
) -> None:
    def ask() -> sllm.AsyncStream:
        return client.generate("seeing", messages=asked(part(ONE), second), max_tokens=1)

    with pytest.raises(kind, match=why):
        await ask().receive()  # which would be `Queued`


async def test_other_models_and_calls_say_that_they_see_none(
    client: sllm.AsyncClient, seeing: Cluster, models: Path, model: Path
) -> None:
    messages = asked(part(ONE), part(TWO))
    await client.deploy("blind", f"file://{models / 'tiny-llama'}", engine="transformers")
    with pytest.raises(errors.NotServed, match="takes text alone"):
        await client.complete("blind", messages=messages, max_tokens=1)
    await client.delete("blind")
    many: Any = [{"role": "user", "content": [part(ONE)] * 17}]
    with pytest.raises(errors.InvalidImage, match="17 images"):
        await client.complete("seeing", messages=many, max_tokens=1)
    with pytest.raises(errors.InvalidPrompt, match="seen by Generate alone"):
        await client.count_tokens("seeing", messages=messages)
    with pytest.raises(errors.InvalidPrompt, match="seen by Generate alone"):
        await client.render_chat("seeing", messages)
    full: Any = [{"role": "user", "content": [part(ONE)] * 16}]
    with pytest.raises(errors.ContextExceeded, match="exceed the context"):
        await client.complete("seeing", messages=full, max_tokens=96)
    source = f"file://{model}"
    for options, why in (
        ({"engine": "transformers"}, "which vLLM runs here"),
        ({"engine": "vllm", "tensor_parallel": 2}, "tensor_parallel 1"),
        ({"engine": "vllm", "max_adapters": 1}, "without max_adapters"),
    ):
        with pytest.raises(errors.UnsupportedModel, match=why):
            await client.deploy("other", source, **options)


async def test_a_batch_takes_them_as_bytes(client: sllm.AsyncClient, model: Path) -> None:
    def request(second: Any) -> sllm.BatchRequest:
        return {
            "deployment": "seeing",
            "messages": asked(part(ONE), second),
            "max_tokens": 12,
            "temperature": 0.0,
            "ignore_eos": True,
        }

    batch = await client.submit_batch([request(part(TWO)), request(part(ONE))])
    found = {one.request_id: one async for one in client.batch_results(batch.batch_id)}
    for number, second in enumerate((TWO, ONE)):
        result = found[str(number)].result
        assert result is not None
        assert list(result.token_ids) == expected(model, PROMPT, [ONE, second], 12)
    with pytest.raises(errors.ImageUrlRefused, match="a batch fetches none"):
        await client.submit_batch([request(at("http://127.0.0.1/x.png"))])


@pytest.fixture
def gateway(seeing: Cluster, tmp_path: Path) -> Iterator[Part]:
    with gateway_of(seeing.control, tmp_path) as gateway:
        yield gateway


async def test_by_http_in_the_words_of_each_protocol(seeing: Cluster, gateway: Part) -> None:
    whole = seeing.client.complete(
        "seeing", messages=asked(part(ONE), part(TWO)), max_tokens=12, temperature=0.0
    ).text
    url = f"http://{gateway.address}"
    messages: Any = asked(at(data_url(ONE)), at(data_url(TWO)))
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        chat = await client.chat.completions.create(
            model="seeing", messages=messages, max_tokens=12, temperature=0
        )
        assert chat.choices[0].message.content == whole
        seen: Any = [
            {"type": "input_text", "text": one["text"]}
            if one["type"] == "text"
            else {"type": "input_image", "image_url": one["image_url"]["url"], "detail": "auto"}
            for one in messages[0]["content"]
        ]
        response = await client.responses.create(
            model="seeing",
            input=[{"role": "user", "content": seen}],
            max_output_tokens=12,
            temperature=0,
        )
        assert response.output_text == whole
        bad: Any = asked(at(data_url(ONE)), at(data_url(b"nothing")))
        with pytest.raises(openai.BadRequestError, match="is none of"):
            await client.chat.completions.create(model="seeing", messages=bad, max_tokens=1)
    blocks: Any = [
        one
        if one["type"] == "text"
        else {
            "type": "image",
            "source": {
                "type": "base64",
                "media_type": "image/png",
                "data": one["image_url"]["url"].partition(",")[2],
            },
        }
        for one in messages[0]["content"]
    ]
    async with anthropic.AsyncAnthropic(base_url=url, api_key="x", max_retries=0) as other:
        message = await other.messages.create(
            model="seeing",
            messages=[{"role": "user", "content": blocks}],
            max_tokens=12,
            extra_body={"temperature": 0},
        )
        assert message.content[0].type == "text"
        assert message.content[0].text == whole


def test_by_the_command_line(seeing: Cluster, model: Path, tmp_path: Path) -> None:
    for number, data in enumerate((ONE, TWO)):
        (tmp_path / f"{number}.png").write_bytes(data)
    options = ["--control", seeing.control.address, "--json", "--max-tokens=12", "--temperature=0"]
    images = [f"--image={tmp_path / f'{number}.png'}" for number in range(2)]
    command = [sys.executable, "-m", "sllm.cli.main", "generate", "seeing", "Say", *images]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    prompt = "user: <image><image>Say\nassistant: "
    found = json.loads(done.stdout)["token_ids"]
    assert found == expected(model, prompt, [ONE, TWO], 12)[: len(found)]
