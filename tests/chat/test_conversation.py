"""What can be said of a conversation without a model, and how it comes out of the protocol."""

from typing import Any

import pytest
from serverlessllm.v1 import types_pb2 as pb

from sllm.chat.conversation import (
    MAX_JSON,
    MAX_TOOLS,
    RESERVED,
    ChatMessage,
    Conversation,
    Tool,
    ToolCall,
)
from sllm.chat.wire import conversation
from sllm.errors import InvalidPrompt

HELLO = (ChatMessage("user", "Hello"),)
CALL = ToolCall("1", "add", '{"a": 1}')
TOOL = Tool("add", "Adds.", '{"type": "object"}')


@pytest.mark.parametrize(
    "good",
    [
        Conversation(HELLO),
        Conversation((ChatMessage("assistant", tool_calls=(CALL,)),), tools=(TOOL,) * MAX_TOOLS),
        Conversation((ChatMessage("user", parts=("a", "b")),), tools=(Tool("f", "", ""),)),
        Conversation(HELLO, arguments='{"enable_thinking": false}'),
        Conversation(HELLO, add_generation_prompt=False, continue_final_message=True),
    ],
)
def test_what_can_be_is_let_through(good: Conversation) -> None:
    good.validate()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "content and parts": (
        {"messages": (*HELLO, ChatMessage("user", "a", ("b",)))},
        r"messages\[1\] has both",
    ),
    "a call of nothing": (
        {"messages": (ChatMessage("assistant", tool_calls=(CALL, ToolCall("", " ", "{}"))),)},
        r"messages\[0\].tool_calls\[1\].name is empty",
    ),
    "arguments that are no JSON": (
        {"messages": (ChatMessage("assistant", tool_calls=(ToolCall("", "f", "{a"),)),)},
        r"messages\[0\].tool_calls\[0\].arguments is no JSON: .*line 1 column 2",
    ),
    "arguments that are no object": (
        {"messages": (ChatMessage("assistant", tool_calls=(ToolCall("", "f", "[1]"),)),)},
        r"arguments must be a JSON object",
    ),
    "too much JSON": (
        {"tools": (Tool("f", "", "{" + " " * (MAX_JSON - 1) + "}"),)},
        f"{MAX_JSON + 1} letters of JSON",
    ),
    "a tool without a name": ({"tools": (TOOL, Tool("", "", ""))}, r"tools\[1\].name is empty"),
    "a tool that takes no JSON": ({"tools": (Tool("f", "", "x"),)}, r"tools\[0\].parameters"),
    "too many tools": ({"tools": (TOOL,) * (MAX_TOOLS + 1)}, str(MAX_TOOLS)),
    "half a character": ({"arguments": '{"a": "\\ud800"}'}, "half a character"),
    "nothing to go on with": (
        {
            "messages": (ChatMessage("assistant", tool_calls=(CALL,)),),
            "add_generation_prompt": False,
            "continue_final_message": True,
        },
        "needs a last message of text",
    ),
    "variables that are no JSON": ({"arguments": "{"}, "template_arguments is no JSON"),
    "deep variables": ({"arguments": '{"a":' * 50_000}, "template_arguments is no JSON"),
    "both ends": ({"continue_final_message": True}, "set one of them"),
    **{
        f"{name} as a variable": ({"arguments": f'{{"{name}": 1}}'}, f"cannot set {name}")
        for name in sorted(RESERVED)
    },
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_is_refused_with_the_place(what: str) -> None:
    fields, said = BAD[what]
    with pytest.raises(InvalidPrompt, match=said):
        Conversation(**{"messages": HELLO, **fields}).validate()


def test_all_of_a_message_comes_out_of_the_protocol() -> None:
    calls = [pb.ToolCall(id="1", name="add", arguments="{}")]
    said = pb.ChatMessage(
        role="r",
        content="c",
        parts=[pb.ContentPart(text="p"), pb.ContentPart(text="q")],
        tool_calls=calls,
        tool_call_id="2",
        name="n",
    )
    chat = pb.ChatMessages(
        messages=[said],
        tools=[pb.Tool(name="add", description="d", parameters="{}")],
        template_arguments="{}",
    )
    assert conversation(chat) == Conversation(
        messages=(ChatMessage("r", "c", ("p", "q"), (ToolCall("1", "add", "{}"),), "2", "n"),),
        tools=(Tool("add", "d", "{}"),),
        arguments="{}",
    )


def test_a_part_that_is_unknown_is_refused() -> None:
    said = pb.ChatMessage(role="user", parts=[pb.ContentPart(text="a"), pb.ContentPart()])
    with pytest.raises(InvalidPrompt, match="neither text nor an image"):
        conversation(pb.ChatMessages(messages=[said]))


def test_a_conversation_is_answered_unless_it_is_gone_on_with() -> None:
    assert conversation(pb.ChatMessages()).add_generation_prompt
    goes_on = conversation(pb.ChatMessages(continue_final_message=True))
    assert not goes_on.add_generation_prompt
    neither = conversation(pb.ChatMessages(add_generation_prompt=False))
    assert not neither.add_generation_prompt
    both = pb.ChatMessages(add_generation_prompt=True, continue_final_message=True)
    assert conversation(both).add_generation_prompt
