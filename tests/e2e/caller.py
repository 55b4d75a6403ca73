"""A caller in a process of its own: `python -m tests.e2e.caller CONTROL NUMBER TOKENS ID`.

Prints the node that has begun with it, and in the end all that has come.
"""

import asyncio
import json
import sys

import sllm
from tests.e2e.generations import ask


async def main(address: str, number: int, tokens: int, request_id: str) -> None:
    """Asks, and reads to the end."""
    async with sllm.AsyncClient(address) as client:
        stream = ask(client, number, max_tokens=tokens, request_id=request_id)
        while not isinstance(event := await stream.receive(), sllm.Started):
            assert event is not None
        say(event.node_id)
        result = await stream.result()
        say(json.dumps({"token_ids": result.token_ids, "text": result.text}))


def say(line: str) -> None:
    """To whoever has started this process."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
