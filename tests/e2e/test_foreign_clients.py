"""Clients that others have made, as they are, against a gateway: what their own pages show.

tools/install-clients installs them; what is not there is skipped.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sllm
from tests.e2e.cluster import Cluster, Part
from tests.e2e.conftest import TEMPLATE
from tests.support import assert_eventually

HERE = Path(__file__).parent / "foreign"
INSTALLED = Path(__file__).parents[2] / "build" / "foreign"
SECONDS = 60
SAID = "Say this is a test"
OPTIONS: dict[str, Any] = {"max_tokens": 20, "seed": 1}

Run = Callable[..., str]
"""Runs a program to its end, and gives what it has written."""


@pytest.fixture
def run(gateway: Part, tmp_path: Path) -> Run:
    own = {
        "HOME": str(tmp_path),
        "OPENAI_API_KEY": "none",
        "OPENAI_BASE_URL": f"http://{gateway.address}/v1",
    }

    def run(program: Path, *arguments: object, said: str = "", **environment: str) -> str:
        if not program.exists():
            pytest.skip("not installed (tools/install-clients)")
        done = subprocess.run(
            [program, *map(str, arguments)],
            env={**os.environ, **own, **environment},
            cwd=INSTALLED / "node",
            input=said,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def _expected(cluster: Cluster, *messages: tuple[str, str], **options: Any) -> sllm.Result:
    told: Any = [{"role": role, "content": content} for role, content in messages]
    return cluster.client.complete("http", messages=told, **{**OPTIONS, **options})


async def test_openai_for_node(chat_model: Cluster, run: Run) -> None:
    (INSTALLED / "node").mkdir(parents=True, exist_ok=True)
    script = INSTALLED / "node" / "example.js"
    if not (INSTALLED / "node" / "installed").exists():
        pytest.skip("not installed (tools/install-clients)")
    script.write_text((HERE / "openai_node.js").read_text())  # beside what it imports
    said = json.loads(run(Path("/usr/bin/env"), "node", script, "http"))
    expected = _expected(chat_model, ("user", SAID))
    assert said.pop("response")
    assert said == {
        "whole": expected.text,
        "streamed": expected.text,
        "final": expected.text,
        "tokens": expected.usage.completion_tokens,
        "models": ["http"],
        "refused": [True, 404, "DEPLOYMENT_NOT_FOUND", True],
        "named": ["chat.completion", True],
    }
    await assert_eventually(lambda: not _running(chat_model))


def _running(cluster: Cluster) -> int:
    return sum(one.running_requests for one in cluster.client.instances())


def test_langchain(chat_model: Cluster, run: Run) -> None:
    python = INSTALLED / "python" / "bin" / "python"
    said = json.loads(run(python, HERE / "langchain_chat.py", "http"))
    expected = _expected(chat_model, ("system", "You are a test"), ("user", "Say so"))
    assert isinstance(said.pop("structured"), bool)
    assert said == {
        "whole": expected.text,
        "streamed": expected.text,
        "usage": expected.usage.completion_tokens,
        "batch": [expected.text] * 2,
        "tools": ["pick"],
    }


def test_llm(chat_model: Cluster, gateway: Part, run: Run, tmp_path: Path) -> None:
    """Its models file is as its pages say; a conversation goes on, and is logged."""
    model = {"model_id": "tiny", "model_name": "http", "api_base": f"http://{gateway.address}/v1"}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))
    program, where = INSTALLED / "python" / "bin" / "llm", {"LLM_USER_PATH": str(tmp_path)}
    options = ("-m", "tiny", "-o", "max_tokens", 20, "-o", "seed", 1)
    first = _expected(chat_model, ("user", SAID)).text
    assert run(program, SAID, *options, **where) == f"{first}\n"
    again = _expected(chat_model, ("user", SAID), ("assistant", first), ("user", "Again")).text
    assert run(program, "-c", "Again", *options[2:], **where) == f"{again}\n"
    assert run(program, SAID, "--no-stream", *options, **where) == f"{first}\n"
    assert first in run(program, "chat", *options, said=f"{SAID}\nexit\n", **where)
    usage = json.loads(run(program, "logs", "-n", 1, "--json", **where))[0]
    assert usage["output_tokens"] == 20
    assert "tiny" in run(program, "models", **where)


@pytest.fixture
def counting(chat_model: Cluster, models: Path, tmp_path: Path) -> Iterator[str]:
    """A deployment whose answers end within 16 tokens, on whatever machine they are computed.

    A client that asks for no bound gets a context full of a random model's words, or not, as the
    machine rounds.
    """
    model = shutil.copytree(models / "tiny-llama", tmp_path / "counting")
    (model / "chat_template.jinja").write_text(TEMPLATE)
    _have_it_count(model)
    chat_model.client.deploy("counting", f"file://{model}", engine="transformers")
    yield "counting"
    chat_model.client.delete("counting")
    chat_model.wait_for_instances(0, "counting")


def _have_it_count(model: Path) -> None:
    """Has the id after each be the next, and each sixteenth end the answer."""
    weights = load_file(model / "model.safetensors")
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name].zero_()  # what a token becomes depends on it alone
    tokens = torch.nn.functional.normalize(weights["model.embed_tokens.weight"].float())
    head = weights["lm_head.weight"]
    weights["lm_head.weight"] = tokens.roll(1, 0).to(head.dtype).contiguous()
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    ends = [*range(0, len(tokens), 16)]
    for name in ("config.json", "generation_config.json"):
        file = model / name
        file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": ends}))


def test_a_chat_client_of_the_terminal(
    chat_model: Cluster, gateway: Part, counting: str, run: Run, tmp_path: Path
) -> None:
    program = INSTALLED / "terminal" / "bin" / "sgpt"
    where = {
        "API_BASE_URL": f"http://{gateway.address}/v1",
        "DEFAULT_MODEL": counting,
        "CHAT_CACHE_PATH": str(tmp_path / "chats"),
        "CACHE_PATH": str(tmp_path / "cache"),
    }
    told: Any = [{"role": "user", "content": SAID}]
    answer = chat_model.client.complete(counting, messages=told, temperature=0.0)
    assert 0 < answer.usage.completion_tokens <= 16
    assert run(program, "--no-md", "--no-cache", SAID, **where) == f"{answer.text}\n"
    assert run(program, "--no-md", "--chat", "mine", SAID, **where) == f"{answer.text}\n"
    assert run(program, "--no-md", "--chat", "mine", "Again", **where) == f"{answer.text}\n"
    shown = run(program, "--show-chat", "mine", **where)
    assert shown.count(f"assistant: {answer.text}") == 2
    assert SAID in shown
    assert "user: Again" in shown
