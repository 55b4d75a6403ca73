"""What comes of a model: refused by Deploy, or served, and whether as transformers has it.

    python -m tests.node.worker.trial.outcomes docs/architectures.md

writes the table of all architectures.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

from sllm.errors import UnsupportedModel
from sllm.node.worker.backends.transformers_backend import TransformersBackend
from sllm.node.worker.engine.interface import EngineRequest
from sllm.node.worker.engine.transformers_engine import TransformersEngine
from sllm.node.worker.model.description import load_architecture
from sllm.node.worker.model.module import build_module
from sllm.node.worker.trial.trial import try_model
from sllm.sampling import Sampling
from tests.node.worker.engines import CAPACITY, running
from tests.node.worker.trial.architectures import CASES, TOKENS, Case, make
from tests.node.worker.trial.encoders import ENCODERS, EncoderCase
from tests.node.worker.trial.encoders import expected as transformers_makes
from tests.node.worker.trial.encoders import served as encoded

NEW_TOKENS = 20
LENGTHS = (4, 18, 33, 7)


def refused(directory: Path) -> str:
    """Why `Deploy` would refuse the model; empty: it would not."""
    try:
        try_model(directory, None, (), TransformersBackend())
    except UnsupportedModel as refusal:
        return refusal.message
    return ""


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(9, TOKENS, (n,), generator=generator).tolist() for n in LENGTHS]


def generated(reference: Any) -> list[list[int]]:
    """What transformers gives for each prompt alone."""
    return [
        reference.generate(
            torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1
        )[0, len(prompt) :].tolist()
        for prompt in prompts()
    ]


def served(directory: Path) -> list[list[int]]:
    """What a worker would give for all of them side by side, with the weights of the files."""
    weights = {
        name: tensor
        for file in sorted(directory.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
    return generated_by(build_module(load_architecture(directory), weights))


def generated_by(module: Any) -> list[list[int]]:
    """What the engine gives for all prompts side by side."""
    asked = [
        EngineRequest(str(number), tuple(prompt), Sampling(temperature=0, seed=0), NEW_TOKENS)
        for number, prompt in enumerate(prompts())
    ]
    with running(TransformersEngine(module, CAPACITY)) as harness:
        results = harness.generate(asked)
    return [results.ids(request.request_id) for request in asked]


def outcome(case: Case) -> tuple[str, str]:
    """Of one architecture: in a word, and why if it is refused."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        reference = make(case, directory)
        if refusal := refused(directory):
            return "refused", refusal.partition("; supported are")[0]
        same = served(directory) == generated(reference)
        return ("served", "") if same else ("WRONG", "other tokens than transformers gives")


_HEAD = """# Architectures

What `Deploy` says of each, and whether the tokens are those of transformers. Every row is a small
model with random weights, made from the configuration that transformers has for the architecture
(`tests/node/worker/trial/architectures.py`). *Served*: greedy tokens in float32 are those of
`generate`, for several requests side by side. *Refused*: `Deploy` answers `UNSUPPORTED_MODEL` with
the reason. What is not listed is tried by `Deploy` all the same.

Written by `make architectures` with transformers {version}.

| architecture | `model_type` | outcome | reason |
| --- | --- | --- | --- |
"""


_ENCODERS_HEAD = """
## Models that embed or score

The same for vectors and scores (`tests/node/worker/trial/encoders.py`). *Served*: in float32, what
comes of texts of several lengths side by side is what transformers makes of each alone.

| `model_type` | what it does | outcome | reason |
| --- | --- | --- | --- |
"""


def encoder_outcome(case: EncoderCase) -> tuple[str, str]:
    """Of a model that embeds or scores: in a word, and why if it is refused."""
    with TemporaryDirectory() as name:
        directory = case.make(Path(name))
        if refusal := refused(directory):
            return "refused", refusal.partition("; supported are")[0]
        pooling = load_architecture(directory).use.purpose.pooling
        same = torch.allclose(
            encoded(directory), transformers_makes(directory, pooling), rtol=1e-3, atol=1e-4
        )
        return ("served", "") if same else ("WRONG", "other numbers than transformers gives")


def _encoders() -> tuple[str, int]:
    """The table of models that embed or score, and how many are not as they are to be."""
    rows, wrong = [], 0
    for case in ENCODERS:
        word, why = encoder_outcome(case)
        wrong += word != ("refused" if case.refused else "served")
        does = "scores" if case.labels else "embeds"
        rows.append(f"| `{case.model_type}` | {does} | {word} | {why} |\n")
    return _ENCODERS_HEAD + "".join(rows), wrong


def main(path: Path) -> int:
    """Writes the tables; gives how many outcomes are not as they are to be."""
    rows, wrong = [], 0
    for case in CASES:
        word, why = outcome(case)
        print(f"{case.name}: {word} {why}", flush=True)  # noqa: T201 - it takes minutes
        wrong += word != ("refused" if case.refused else "served")
        why = why.replace("|", "\\|")
        rows.append(f"| {case.name} | `{case.model_type}` | {word} | {why} |\n")
    encoders, wrong_encoders = _encoders()
    path.write_text(_HEAD.format(version=transformers.__version__) + "".join(rows) + encoders)
    return wrong + wrong_encoders


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
