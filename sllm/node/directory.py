"""What an agent keeps in its directory beside checkpoints: the node's id, and workers' sockets."""

import shutil
import tempfile
import uuid
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import structlog

from sllm.errors import InvalidArgument
from sllm.node.config import MAX_SOCKET_PATH, NodeConfig
from sllm.node.tiers.disk_refusals import REFUSALS

log = structlog.get_logger()


def kept_node_id(directory: Path) -> str:
    """The id in the directory, made and kept there at the first start.

    On a disk that takes no file every start has an id of its own.
    """
    path = directory / "node-id"
    with suppress(FileNotFoundError):
        if kept := path.read_text().strip():
            return kept
    made = f"node-{uuid.uuid4().hex[:8]}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{made}\n")
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        log.warning("node.id_not_kept", node_id=made, problem=str(error))
    return made


def with_sockets(config: NodeConfig, stack: ExitStack | AsyncExitStack) -> NodeConfig:
    """With a directory for sockets: beside the temporary files, if the node's own cannot be.

    That is, if its path is too long for sockets, or its disk takes none.

    Raises:
        InvalidArgument: The path of the directory for temporary files is too long as well.
    """
    try:
        if config.sockets_fit:
            _clear_sockets(config.socket_dir)
            return config
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
    elsewhere = Path(tempfile.mkdtemp(prefix="sllm-run-"))
    stack.callback(shutil.rmtree, elsewhere, ignore_errors=True)
    moved = replace(config, run_directory=elsewhere)
    if not moved.sockets_fit:
        raise InvalidArgument(
            f"{config.socket_dir} and {elsewhere} are too long for the paths of sockets, of "
            f"{MAX_SOCKET_PATH} bytes at most: give a shorter --dir, or a shorter TMPDIR"
        )
    return moved


def _clear_sockets(directory: Path) -> None:
    """Makes the sockets' directory; removes those of an agent that was killed.

    Called once the store has locked the node's directory: no other agent uses it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.glob("*.sock"):
        left.unlink()
    tempfile.TemporaryFile(dir=directory).close()  # a read-only disk says so here
