"""The clients of other languages, generated from the protocol, against a real cluster."""

import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "clients"
BUILT = ROOT / "build" / "clients"
TINY = ROOT / "examples" / "tiny-llama"
BUILD_SECONDS = 400
RUN_SECONDS = 60
GOCODE = Path("/usr/share/gocode/src")
JARS = Path("/usr/share/java")


@dataclass(frozen=True, slots=True)
class Language:
    """What the client of a language is built with."""

    name: str
    """Its directory."""
    programs: tuple[str, ...]
    """On the path."""
    files: tuple[Path, ...] = ()
    """Of libraries that are installed beside them."""

    def lacking(self) -> list[str]:
        """What of it is not on this machine."""
        programs = [name for name in self.programs if shutil.which(name) is None]
        return programs + [str(path) for path in self.files if not path.exists()]


LANGUAGES = (
    Language("typescript", ("node", "npm")),
    Language(
        "go",
        ("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc"),
        (
            GOCODE / "google.golang.org/grpc",
            GOCODE / "google.golang.org/genproto",
            GOCODE / "google.golang.org/protobuf",
            GOCODE / "github.com/golang/protobuf/proto/wire.go",  # of 1.5, not of 1.3
        ),
    ),
    Language(
        "cpp",
        ("g++", "protoc", "grpc_cpp_plugin", "pkg-config"),
        (Path("/usr/include/grpcpp/grpcpp.h"),),
    ),
    Language(
        "java",
        ("javac", "java", "protoc", "grpc_java_plugin"),
        tuple(
            JARS / f"{name}.jar"
            for name in ("grpc-netty", "netty-all", "perfmark-api", "proto-google-common-protos")
        ),
    ),
)


def _built(language: Language) -> Path:
    """Its example, built anew only if the protocol or the client has changed."""
    directory = BUILT / language.name
    stamp, digest = directory / "digest", _digest(language)
    if not stamp.exists() or stamp.read_text() != digest:
        shutil.rmtree(directory, ignore_errors=True)
        done = subprocess.run(
            [CLIENTS / language.name / "build", directory],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BUILD_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        stamp.write_text(digest)
    return directory / "example"


def _digest(language: Language) -> str:
    sources = [ROOT / "protos", CLIENTS / "googleapis", CLIENTS / language.name]
    digest = hashlib.sha256(str(ROOT).encode())
    for path in sorted(file for source in sources for file in source.rglob("*") if file.is_file()):
        if not {"node_modules", "gen"} & set(path.parts):
            digest.update(path.read_bytes())
    return digest.hexdigest()


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda one: one.name)
@pytest.mark.timeout(BUILD_SECONDS + RUN_SECONDS)
def test_a_generated_client_does_what_callers_do(language: Language, cluster: Cluster) -> None:
    if lacking := language.lacking():
        pytest.skip(f"not installed (tools/install-toolchains): {', '.join(lacking)}")
    example = _built(language)
    done = subprocess.run(
        [example, cluster.control.address, TINY],
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    text = said.pop("streamed")
    assert text == _expected(cluster)
    assert said.pop("refused").split()[-1] == "DEPLOYMENT_NOT_FOUND"
    assert said == {"cancelled": "Canceled", "resumed": text}
    assert cluster.client.deployments() == []
    cluster.wait_for_instances(0)  # nothing goes on of what was cancelled or broken off


def _expected(cluster: Cluster) -> str:
    cluster.client.deploy("expected", TINY, engine="transformers")
    text = cluster.client.complete(
        "expected", "The for statement", max_tokens=6, temperature=0.0, ignore_eos=True
    ).text
    cluster.client.delete("expected")
    return text


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda one: one.name)
def test_each_client_says_how_it_is_generated(language: Language) -> None:
    text = (CLIENTS / language.name / "README.md").read_text()
    assert "protos" in text
    assert "./build" in text
