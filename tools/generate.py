"""Generates the protocol's Python into a directory: `generate.py DESTINATION`."""

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
SCRIPTS = Path(sys.executable).parent  # where the stub generators are installed
GENERATORS = ("python", "grpc_python", "mypy", "mypy_grpc")


def generate(destination: Path) -> None:
    """Runs protoc with the message, gRPC and type-stub generators over every proto file."""
    sources = sorted(str(path) for path in PROTOS.rglob("*.proto"))
    status: int = protoc.main(
        [
            "protoc",
            f"--proto_path={PROTOS}",
            f"--proto_path={files('grpc_tools') / '_proto'}",
            *(f"--plugin={SCRIPTS / f'protoc-gen-{stubs}'}" for stubs in GENERATORS[2:]),
            *(f"--{generator}_out={destination}" for generator in GENERATORS),
            *sources,
        ]
    )
    if status:
        raise SystemExit(f"protoc failed with status {status}")
    for package in ("serverlessllm", "serverlessllm/v1"):
        (destination / package / "__init__.py").touch()
    (destination / "serverlessllm/py.typed").touch()


if __name__ == "__main__":
    generate(Path(sys.argv[1]))
