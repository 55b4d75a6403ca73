"""An object store as Amazon's is, on loopback, and the environment that it is found by."""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

import boto3

from tests.processes import started
from tests.support import wait_until

BUCKET: Final = "models"
_START_TIMEOUT: Final = 60.0
_ADDRESS = re.compile(r"Running on (http://\S+)")


@contextmanager
def serving(secret: str) -> Iterator[Mapping[str, str]]:
    """Runs moto's server with one bucket; gives the variables that AWS's own tools read.

    It is a process of its own: what it imports refuses to be looked at, which engines do to all
    that a process has imported.
    """
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", "0"]
    with (
        NamedTemporaryFile("w+") as log,
        started(command, stdout=log.file, stderr=subprocess.STDOUT),
    ):
        environment = {
            "AWS_ENDPOINT_URL": _address(Path(log.name)),
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        boto3.client(
            "s3",
            endpoint_url=environment["AWS_ENDPOINT_URL"],
            region_name=environment["AWS_DEFAULT_REGION"],
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=secret,
        ).create_bucket(Bucket=BUCKET)
        yield environment


def _address(log: Path) -> str:
    wait_until(lambda: _ADDRESS.search(log.read_text()), timeout=_START_TIMEOUT)
    (address,) = _ADDRESS.findall(log.read_text())
    return str(address)
