"""What LangChain's pages show of ChatOpenAI. OPENAI_BASE_URL says where to."""

import json
import sys
from typing import Literal

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


@tool
def pick(b: Literal["x", "yy"]) -> str:
    """Picks one."""
    return b


class Choice(BaseModel):
    """One of two."""

    yes: bool


model = ChatOpenAI(model=sys.argv[1], max_completion_tokens=20, seed=1, max_retries=0)
messages = [SystemMessage("You are a test"), HumanMessage("Say so")]
whole = model.invoke(messages)
bounded = ChatOpenAI(model=sys.argv[1], max_completion_tokens=300, seed=1, max_retries=0)
called = bounded.bind_tools([pick], tool_choice="pick").invoke("Pick x")
print(
    json.dumps(
        {
            "whole": whole.content,
            "streamed": "".join(chunk.text for chunk in model.stream(messages)),
            "usage": whole.usage_metadata["output_tokens"],
            "batch": [one.content for one in model.batch([messages, messages])],
            "tools": [call["name"] for call in called.tool_calls],
            "structured": bounded.with_structured_output(Choice).invoke("Yes?").yes,
        }
    )
)
