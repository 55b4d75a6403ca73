"""`sllm` alone: what to type first."""

import socket
from typing import Final

import typer

_CONNECT_SECONDS: Final = 0.5

_NO_CLUSTER: Final = """\
No cluster is reachable at {control}.

  sllm up                          start one on this machine
  sllm ls --control HOST:PORT      or name another; SLLM_CONTROL does it for good
"""
_CLUSTER: Final = """\
A cluster is reachable at {control}.

  sllm run SOURCE "Once upon"      deploy a model, generate, and remove it again
  sllm deploy NAME SOURCE          deploy one to stay: then sllm generate NAME, sllm chat NAME
  sllm ls                          what is deployed; also sllm ps, sllm nodes, sllm top
"""
_MORE: Final = """\
  sllm --help                      all commands
  sllm --install-completion        have the shell complete them
"""


def welcome(control: str) -> None:
    """Says what to type next, by whether something listens at `control`."""
    told = _CLUSTER if _listens(control) else _NO_CLUSTER
    typer.echo(told.format(control=control) + _MORE, nl=False)


def _listens(control: str) -> bool:
    """Whether a connection comes about; what answers there, the first command finds out."""
    host, _, port = control.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS):
            return True
    except (OSError, ValueError):
        return False
