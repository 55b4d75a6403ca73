"""What directories of object stores and web servers hold."""

from collections.abc import Iterable, Iterator
from typing import Any

from sllm.checkpoint.format import strict_json
from sllm.checkpoint.format.manifest_file import FORMAT, MANIFEST_FILE
from sllm.checkpoint.remote.listing import Listing, RemoteFile, make_listing
from sllm.checkpoint.remote.objects import Objects
from sllm.checkpoint.sources.file_names import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    INDEX,
    MODULES,
    POOLING_FILE,
    WEIGHTS,
    matters,
)
from sllm.errors import SourceNotFound

KNOWN_NAMES = (
    CONFIG,
    WEIGHTS,
    INDEX,
    MANIFEST_FILE,
    POOLING_FILE,
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "config_sentence_transformers.json",
    "merges.txt",
    MODULES,
    "preprocessor_config.json",
    "processor_config.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""What a web server is asked for, since it gives no lists."""


async def list_objects(objects: Objects) -> Listing:
    """What an object store lists, as far as it belongs to a model.

    Raises:
        SourceNotFound, SourceForbidden, SourceUnavailable: it cannot be had.
    """
    found = await objects.list_all()
    if any(file.name == MODULES for file in found):  # no other directory within is looked into
        found += await objects.find([POOLING_FILE])
    return await of_model(objects, found)


async def of_model(objects: Objects, found: Iterable[RemoteFile]) -> Listing:
    """The files of a directory that belong to its model; those of a packed one its manifest names.

    Raises:
        SourceNotFound, SourceForbidden, SourceUnavailable: the manifest cannot be had.
    """
    files = make_listing(found)
    packed = await _names_of_manifest(objects, files)
    return make_listing(file for file in files.files if matters(file.name) or file.name in packed)


async def find_on_web(objects: Objects) -> Listing:
    """What a web server has of the files that a model may consist of.

    Raises:
        SourceNotFound, SourceForbidden, SourceUnavailable: it cannot be had.
    """
    found = make_listing(await objects.find(KNOWN_NAMES))
    if not found.files:
        raise SourceNotFound(
            f"{objects.url} has none of the files of a model: neither {CONFIG} nor {MANIFEST_FILE}"
        )
    packed = await _names_of_manifest(objects, found)
    named = packed | await _names_of_index(objects, found)
    more = await objects.find(sorted(named - found.names))
    return make_listing(
        file for file in (*found.files, *more) if matters(file.name) or file.name in packed
    )


async def _names_of_manifest(objects: Objects, found: Listing) -> set[str]:
    """The files of a packed checkpoint, its manifest included; none if it is not packed."""
    content = await _json(objects, found, MANIFEST_FILE)
    if content.get("format") != FORMAT:
        return set()
    partitions = (entry.get("file") for entry in _entries(content.get("partitions")))
    files = (entry.get("name") for entry in _entries(content.get("files")))
    return {MANIFEST_FILE, *_names(partitions), *_names(files)}


async def _names_of_index(objects: Objects, found: Listing) -> set[str]:
    content = await _json(objects, found, INDEX)
    shards = content.get("weight_map")
    return set(_names(iter(shards.values()))) if isinstance(shards, dict) else set()


async def _json(objects: Objects, found: Listing, name: str) -> dict[str, Any]:
    """A file's content, if it is there and makes sense; what is wrong with it is said later."""
    if name not in found.names:
        return {}
    try:
        content = strict_json.parse(await objects.content(found[name]))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _entries(values: Any) -> Iterator[dict[str, Any]]:
    return (value for value in values or () if isinstance(value, dict))


def _names(values: Iterator[Any]) -> Iterator[str]:
    """Those that can be names of files in the same directory."""
    return (
        value
        for value in values
        if isinstance(value, str) and value and "/" not in value and not value.startswith(".")
    )
