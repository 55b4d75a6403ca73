"""Becomes a zygote: `python -m sllm.node.worker ENGINE SOCKET_FD POOL_FD AGENT_PID`.

Importing takes seconds, and this process must not outlive its agent for so long: what ends it with
its agent comes before what it imports.
"""

import gc
import os
import sys

from sllm.process import die_with_parent


def run(engine: str, agent_fd: int, pool_fd: int, agent_pid: int) -> None:
    """Serves forks until the agent is gone."""
    die_with_parent(agent_pid)
    # Ctrl-C is for the agent, which ends the rest in order. No session of its own: the kernel
    # shares processors out to sessions, and niceness counts within one alone.
    os.setpgid(0, 0)
    gc.disable()  # what is imported stays: to look through it again and again takes a tenth longer
    from sllm.node.worker import zygote

    zygote.serve(engine, agent_fd, pool_fd)


if __name__ == "__main__":
    run(sys.argv[1], *map(int, sys.argv[2:]))
