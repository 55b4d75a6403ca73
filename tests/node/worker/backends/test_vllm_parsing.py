"""vLLM's parsers, token by token: what they find is what they find in the whole text."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

pytest.importorskip("vllm")

from sllm.chat.conversation import Tool
from sllm.errors import InvalidPrompt, UnsupportedModel
from sllm.node.worker.backends.vllm_backend import VllmBackend
from sllm.node.worker.messages import NO_PARSERS, ParserNames
from sllm.node.worker.model.module import make_vocabulary
from sllm.node.worker.model.parsing import Parsed, Parsing, ToolCallDelta, joined
from sllm.node.worker.model.text import TextStream

EXAMPLES = Path(__file__).parents[4] / "examples"
ADD = Tool("add", "adds", '{"type": "object", "properties": {"a": {"type": "integer"}}}')
NOW = Tool("now", "", "")

HERMES = '<tool_call>\n{"name": "add", "arguments": {"a": 12}}\n</tool_call>'
CODER = "<tool_call>\n<function=add>\n<parameter=a>\n12\n</parameter>\n</function>\n</tool_call>"
CASES: dict[str, tuple[ParserNames, str, Parsed]] = {
    "hermes": (ParserNames("hermes"), f"So {HERMES}", Parsed("So")),
    "pythonic": (ParserNames("pythonic"), "[add(a=12)]", Parsed()),
    "an engine of theirs": (ParserNames("qwen3_coder"), f"So {CODER}", Parsed("So")),
    "thoughts before": (
        ParserNames("hermes", "qwen3"),
        f"<think>I see</think>So {HERMES}",
        Parsed("So", "I see"),
    ),
    "both of an engine": (
        ParserNames("qwen3_coder", "qwen3"),
        f"<think>I see</think>So {CODER}",
        Parsed("So", "I see"),
    ),
}
PLAIN = ["if a <", "<tool_call>", "<tool_call>hello</tool_call> you", 'x<tool_call>{"nam":1}', ""]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(EXAMPLES / "tiny-llama")


def taken_apart(
    tokenizer: Any, names: ParserNames, text: str, parsing: Parsing | None = None
) -> Parsed:
    parsers = VllmBackend().parsers(names, tokenizer)
    assert parsers is not None
    parser = parsers.begin(
        parsing or Parsing((ADD, NOW)), (1, 5), "request", skips_special_tokens=True
    )
    stream = TextStream(make_vocabulary(tokenizer), skip_special_tokens=parser.skips_special_tokens)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    said, thought = "", ""
    calls: tuple[ToolCallDelta, ...] = ()
    for number, token in enumerate(tokens, 1):
        piece = stream.push(token, may_stop=True).text
        finished = number == len(tokens)
        piece += stream.finish(may_stop=True).text if finished else ""
        parsed = parser.push(piece, token, finished=finished)
        said, thought = said + parsed.text, thought + parsed.reasoning
        calls = joined(calls, parsed.tool_calls)
    return Parsed(said, thought, calls)


@pytest.mark.parametrize("name", CASES)
def test_an_answer_is_taken_apart(tokenizer: Any, name: str) -> None:
    names, text, expected = CASES[name]
    found = taken_apart(tokenizer, names, text)
    assert (found.text.strip(), found.reasoning.strip()) == (expected.text, expected.reasoning)
    (call,) = found.tool_calls
    assert (call.index, call.name, json.loads(call.arguments)) == (0, "add", {"a": 12})
    assert call.call_id


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_no_call_is_text(tokenizer: Any, text: str) -> None:
    assert taken_apart(tokenizer, ParserNames("hermes"), text) == Parsed(text)


@pytest.mark.parametrize("text", PLAIN[:2])
def test_what_may_have_become_a_call_is_text(tokenizer: Any, text: str) -> None:
    """What engines of theirs drop between the marks of a call is lost with them."""
    assert taken_apart(tokenizer, ParserNames("qwen3_coder"), text) == Parsed(text)


def test_without_tools_calls_are_text(tokenizer: Any) -> None:
    found = taken_apart(tokenizer, ParserNames("hermes"), HERMES, Parsing())
    assert found == Parsed(HERMES)


def test_the_tokenizer_of_the_model_stays_as_it_is(tokenizer: Any) -> None:
    before = dict(vars(tokenizer))
    VllmBackend().parsers(ParserNames("hermes"), tokenizer)
    assert vars(tokenizer) == before


def test_there_is_nothing_to_do_without_names(tokenizer: Any) -> None:
    assert VllmBackend().parsers(NO_PARSERS, tokenizer) is None


@pytest.mark.parametrize("names", [ParserNames("nobody"), ParserNames("", "nobody")])
def test_unknown_parsers_are_refused_with_those_that_there_are(
    tokenizer: Any, names: ParserNames
) -> None:
    with pytest.raises(UnsupportedModel, match=r"it has .*deepseek"):
        VllmBackend().parsers(names, tokenizer)


@pytest.mark.parametrize(
    "parsing",
    [
        Parsing((Tool("a b", "", ""),), arguments='{"tokenize": 1}'),
        Parsing((Tool("", "", ""),)),
        Parsing((Tool("a", "", "["),)),
        Parsing((ADD,) * 300),
    ],
)
def test_what_no_conversation_could_say_is_refused(parsing: Parsing) -> None:
    with pytest.raises(InvalidPrompt):
        parsing.validate()
