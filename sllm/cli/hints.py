"""What to type next: one command, or a few, for each reason that a command may fail for."""

from collections.abc import Mapping
from typing import Final

_HELP: Final = "`sllm {command} --help`"

HINTS: Final[Mapping[str, str]] = {
    "INVALID_ARGUMENT": f"{_HELP} says what it takes",
    "INVALID_NAME": f"{_HELP} says what it takes; `sllm ls` lists the names there are",
    "INVALID_PROMPT": f"{_HELP} says what it takes; `sllm tokenize NAME TEXT` shows tokens",
    "INVALID_IMAGE": f"{_HELP} says what it takes; PNG, JPEG, WebP and GIF are read",
    "INVALID_SAMPLING": f"{_HELP} says what it takes",
    "INVALID_STRUCTURED_OUTPUT": f"{_HELP} says which forms there are",
    "INVALID_CHAT_TEMPLATE": f"{_HELP} says how one is given; `sllm model NAME` shows a model's",
    "INVALID_SOURCE": "`sllm {command} --help` says what it may be; `sllm inspect PATH` looks",
    "CONTEXT_EXCEEDED": "`sllm model NAME` tells the context, `sllm tokenize NAME TEXT` counts",
    "BATCH_NOT_FOUND": "`sllm batch ls` lists them",
    "DEPLOYMENT_NOT_FOUND": "`sllm ls` lists them, `sllm deploy NAME SOURCE` makes one",
    "INSTANCE_NOT_FOUND": "`sllm ps` lists them",
    "NODE_NOT_FOUND": "`sllm nodes` lists them",
    "PIN_NOT_FOUND": "`sllm pins` lists them",
    "REQUEST_NOT_FOUND": "`sllm top` shows what runs, `sllm receipt` what ended last",
    "CHECKPOINT_NOT_FOUND": "`sllm prefetch NAME` brings it to a node",
    "KEY_NOT_FOUND": "`sllm keys ls` lists them",
    "SOURCE_NOT_FOUND": "`sllm deploy NAME SOURCE` with a path or URL that nodes can read",
    "DEPLOYMENT_EXISTS": "`sllm ls` shows its source; `sllm rm NAME` ends it, or take another name",
    "REQUEST_ID_IN_USE": "`sllm batch ls` lists the ids of batches; take another id",
    "UNSUPPORTED_MODEL": "`sllm deploy NAME SOURCE --engine transformers`, where that may run it",
    "UNSUPPORTED_ADAPTER": f"{_HELP} says how adapters are deployed; `sllm ls` shows their bases",
    "ADAPTERS_LEFT": "`sllm ls` shows the adapters, `sllm rm NAME` ends one",
    "NO_CHAT_TEMPLATE": "`sllm generate NAME TEXT` continues a text",
    "MODEL_TOO_LARGE": "`sllm nodes` tells what each has; `sllm node --memory` gives one more",
    "CHECKPOINT_LEASED": "`sllm ps` shows what uses it",
    "DEVICE_UNAVAILABLE": "`sllm node --device cpu` serves on the processors",
    "ENGINE_UNAVAILABLE": "`sllm nodes` tells which node has which engine",
    "NOT_SERVED": "`sllm ls` tells what each is for: `sllm generate`, `embed` or `score`",
    "IMAGE_URL_REFUSED": "`sllm deploy NAME SOURCE --image-host HOST` allows a host",
    "SOURCE_CHANGED": "`sllm deploy NAME SOURCE` again rolls over to what is there now",
    "BATCH_UNDER_WAY": "`sllm batch cancel ID` ends it",
    "STALE_TERM": "`sllm nodes` asks whoever leads now",
    "NODE_DRAINING": "`sllm drain NODE --undo` has it take work again",
    "NODE_NEEDED": "`sllm drain NODE --force` does it all the same",
    "SOURCE_FORBIDDEN": "start `sllm node` with the source's credentials in its environment",
    "SOURCE_NOT_ALLOWED": "`sllm node --sources FILE` lists what may be read",
    "UNAUTHENTICATED": "SLLM_API_KEY holds a key; an admin makes one: `sllm keys create`",
    "PERMISSION_DENIED": "`sllm keys ls` tells an admin what keys may do",
    "CHECKPOINT_CORRUPT": "get a sound copy, and `sllm verify PATH` it",
    "NO_CAPACITY": "`sllm explain NAME` tells what is in the way, `sllm nodes` what each node has",
    "QUEUE_FULL": "`sllm top` shows what waits",
    "TENANT_LIMIT": "`sllm tenants ls` shows what each tenant has and may have",
    "NO_NODES": "`sllm node --control HOST:PORT` adds one; `sllm nodes` lists them",
    "NODE_LOST": "`sllm nodes` lists those that are left",
    "WORKER_DIED": "`sllm ps` shows what runs; the node's log tells why",
    "START_FAILED": "`sllm ls` and `sllm explain NAME` tell of deployments, logs of servers",
    "SOURCE_UNAVAILABLE": "`sllm deploy NAME SOURCE` again, once the source answers",
    "IMAGE_UNAVAILABLE": "`sllm generate NAME PROMPT --image FILE` sends the image itself",
    "CHECKPOINT_UNREADABLE": "`sllm nodes` tells of disks that refuse",
    "DEPLOYMENT_FAILED": "`sllm ls` tells why; `sllm deploy NAME SOURCE` tries again",
    "DEVICE_FAILED": "`sllm nodes` tells what each node's devices have",
    "SHUTTING_DOWN": "`sllm ls`, once it is up again; `sllm up` starts one",
    "STATE_UNAVAILABLE": "`sllm control --dir` says where it keeps its files: make room there",
    "NOT_LEADER": "`sllm nodes` again asks whoever leads now",
    "NO_LEADER": "try again; logs of `sllm control` tell what keeps them from leading",
    "UNREACHABLE": "`sllm up` starts a cluster; --control or SLLM_CONTROL names another",
    "DEADLINE_EXCEEDED": "`sllm explain NAME` tells what a start takes; give a longer --timeout",
    "CANCELLED": "`sllm top` shows what runs",
    "INTERNAL": "`sllm nodes` shows who is up; servers' logs have more",
}
"""By reason. `{command}` stands for the command that has failed."""


def hint(reason: str, command: str) -> str:
    """What to type next. Empty: nothing is known for this reason."""
    return HINTS.get(reason, "").format(command=command)
