"""What a model is for, by its architecture and by what sentence-transformers keeps beside it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
)

from sllm.checkpoint.sources.file_names import CONFIG, MODULES, is_pooling, pooling_name
from sllm.embedding.purpose import GENERATES, Activation, Pooling, Purpose, Task
from sllm.errors import UnsupportedModel
from sllm.node.worker.model.refusing import refusing

_LENGTHS: Final = ("sentence_bert_config.json", "sentence_roberta_config.json")
"""Where the length is that texts are cut to; newer versions write the first name alone."""
_POOLINGS: Final = {
    "cls_token": Pooling.CLS,
    "mean_tokens": Pooling.MEAN,
    "max_tokens": Pooling.MAX,
    "lasttoken": Pooling.LAST,
}
"""What sentence-transformers calls them, after "pooling_mode_"."""
_SHORT_NAMES: Final = {"cls": Pooling.CLS, "mean": Pooling.MEAN, "max": Pooling.MAX}
_ACTIVATIONS: Final = {
    "torch.nn.modules.activation.Sigmoid": Activation.SIGMOID,
    "torch.nn.modules.linear.Identity": Activation.NONE,
    "torch.nn.modules.activation.Softmax": Activation.SOFTMAX,
}
_SCORES: Final = "ForSequenceClassification"
_MOST_LABELS: Final = 1024


@dataclass(frozen=True, slots=True)
class Use:
    """What a model is for, and how much of a text it is to see."""

    purpose: Purpose = GENERATES
    most_tokens: int | None = None
    """Of one text, as its files say. None: as many as its positions allow."""
    lowers: bool = False
    """Whether texts are given to its tokenizer in lower case."""


GENERATES_TEXT: Final = Use()
SEES_IMAGES: Final = Use(Purpose(takes_images=True))


def use_of(directory: Path, config: Any) -> Use:
    """What a model is for.

    Args:
        directory: has its small files.
        config: its configuration, from transformers.

    Raises:
        UnsupportedModel: It has parts that are not supported, or files that make no sense.
    """
    name = str((getattr(config, "architectures", None) or ("",))[0])
    if name.endswith(_SCORES):
        return Use(_scoring(config))
    modules = _read(directory / MODULES, list)
    if modules is None and not _is_bare(name, config):
        return GENERATES_TEXT
    most_tokens, lowers = _lengths(directory)
    return Use(_embedding(directory, config, modules), most_tokens, lowers)


def _is_bare(name: str, config: Any) -> bool:
    """Whether it is a model without any head, that gives what it makes of tokens."""
    bare = MODEL_MAPPING.get(type(config), None)
    reads = getattr(bare, "main_input_name", "") == "input_ids"
    return reads and name == getattr(bare, "__name__", "")


# --- models that embed ------------------------------------------------------------------------


def _embedding(directory: Path, config: Any, modules: Sequence[Any] | None) -> Purpose:
    kinds = [_kind(one) for one in modules or ()]
    unknown = set(kinds) - {"Transformer", "Pooling", "Normalize"}
    if unknown:
        raise UnsupportedModel(
            f"{MODULES} names {', '.join(sorted(unknown))}; supported are models that embed with "
            "Transformer, Pooling and Normalize alone"
        )
    pooling = _default_pooling(config)
    for module, kind in zip(modules or (), kinds, strict=True):
        if kind == "Pooling":
            pooling = _pooling(directory, str(module.get("path", "")))
    lengths = tuple(getattr(config, "matryoshka_dimensions", None) or ())
    if not all(type(one) is int and one > 0 for one in lengths):
        raise UnsupportedModel(f"matryoshka_dimensions in config.json is {lengths!r:.80}")
    return Purpose(
        task=Task.EMBED,
        dimensions=int(config.get_text_config().hidden_size),
        pooling=pooling,
        # A model that sentence-transformers knows says it; of others cosines are what is wanted.
        normalizes="Normalize" in kinds if modules is not None else True,
        matryoshka=bool(lengths or getattr(config, "is_matryoshka", False)),
        matryoshka_dimensions=lengths,
    )


def _kind(module: Any) -> str:
    """The last part of its class, such as sentence_transformers.models.Pooling."""
    return str(module.get("type", "") if isinstance(module, dict) else module).rpartition(".")[2]


def _default_pooling(config: Any) -> Pooling:
    """Where no file says it: in a model that goes on with texts, the last token has seen all."""
    kind = type(config)
    goes_on = kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING
    return Pooling.LAST if goes_on else Pooling.MEAN


def _pooling(directory: Path, path: str) -> Pooling:
    fields = _pooling_fields(directory, path)
    named = fields.get("pooling_mode")
    chosen = [
        kind for mode, kind in _POOLINGS.items() if fields.get(f"pooling_mode_{mode}") is True
    ]
    others = [
        key
        for key, value in fields.items()
        if key.startswith("pooling_mode_") and value is True and key[13:] not in _POOLINGS
    ]
    if isinstance(named, str):
        chosen = [kind for name, kind in (_SHORT_NAMES | _POOLINGS).items() if name == named]
    if len(chosen) != 1 or others:
        raise UnsupportedModel(
            f"{path[:80]}/config.json pools in another way than by one of {', '.join(Pooling)}"
        )
    return chosen[0]


def _pooling_fields(directory: Path, path: str) -> Any:
    if is_pooling(path):
        for where in (directory / pooling_name(path), directory / path / CONFIG):
            if (fields := _read(where, dict)) is not None:
                return fields
    raise UnsupportedModel(
        f"{MODULES} names {path[:80]!r} for the pooling, and there is no {CONFIG} there"
    )


def _lengths(directory: Path) -> tuple[int | None, bool]:
    """How many tokens of a text are seen, and whether it is put in lower case."""
    for name in _LENGTHS:
        if fields := _read(directory / name, dict):
            most = fields.get("max_seq_length")
            if most is not None and not (type(most) is int and most > 0):
                raise UnsupportedModel(f"max_seq_length in {name} is {most!r:.40}")
            return most, fields.get("do_lower_case") is True
    return None, False


# --- models that score ------------------------------------------------------------------------


def _scoring(config: Any) -> Purpose:
    with refusing("the model's labels in its config.json cannot be used"):
        count = int(config.num_labels)
        if not 1 <= count <= _MOST_LABELS:
            raise UnsupportedModel(f"it has {count} labels; from 1 to {_MOST_LABELS} are supported")
        named = config.id2label or {}
        labels = tuple(str(named.get(number, number))[:200] for number in range(count))
    return Purpose(task=Task.SCORE, labels=labels, activation=_activation(config, count))


def _activation(config: Any, labels: int) -> Activation:
    """As sentence-transformers or transformers would have it."""
    known = getattr(config, "sentence_transformers", None)
    named = known.get("activation_fn") if isinstance(known, Mapping) else None
    named = named or getattr(config, "sbert_ce_default_activation_function", None)
    if named is not None:
        if str(named) not in _ACTIVATIONS:
            raise UnsupportedModel(
                f"its scores are made by {named!s:.80}; supported are {', '.join(_ACTIVATIONS)}"
            )
        return _ACTIVATIONS[str(named)]
    problem = getattr(config, "problem_type", None)
    if problem == "regression":
        return Activation.NONE
    single = labels == 1 or problem == "multi_label_classification"
    return Activation.SIGMOID if single else Activation.SOFTMAX


def _read(path: Path, kind: type[Any]) -> Any:
    """What a small file has. None: it is not there."""
    if not path.is_file():
        return None
    with refusing(f"the model's {path.name} cannot be used"):
        found = json.loads(path.read_bytes())
        if not isinstance(found, kind):
            raise UnsupportedModel(f"{path.name} is no JSON {'list' if kind is list else 'object'}")
        return found
