"""How weights are quantised, by what a model's config.json says; and which of it is served."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sllm.errors import UnsupportedModel

METHOD: Final = "compressed-tensors"
_SERVED: Final = (
    "served are, on vLLM and processors, compressed-tensors with int8 weights by output and int8 "
    "activations by token, and with int4 weights by groups or by output, both symmetric, of all "
    "linear layers but the head"
)
_LETTERS_SHOWN: Final = 40


@dataclass(frozen=True, slots=True)
class Quantisation:
    """Weights of linear layers in few bits, each group of them with a scale of its own."""

    bits: int
    group_size: int | None = None
    """Inputs that share a scale. None: all of an output."""
    quantises_activations: bool = False
    """Whether what they are multiplied by is quantised as well, row by row, as it comes."""

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Names of the torch dtypes in which such a model can be run."""
        return _DTYPES[self.bits]


INT8: Final = Quantisation(8, quantises_activations=True)
INT4: Final = Quantisation(4)
_DTYPES: Final[Mapping[int, tuple[str, ...]]] = {8: ("bfloat16", "float32"), 4: ("bfloat16",)}
"""By bits: vLLM's kernel for int4 gives no tokens in float32."""
_WEIGHTS_BY_CHANNEL: Final = {"type": "int", "symmetric": True, "strategy": "channel"}
_WEIGHTS_BY_GROUP: Final = {"type": "int", "symmetric": True, "strategy": "group"}
_INT8_ACTIVATIONS: Final = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "strategy": "token",
    "dynamic": True,
}
_TABLE: Final = (
    ("int-quantized", {**_WEIGHTS_BY_CHANNEL, "num_bits": 8}, _INT8_ACTIVATIONS, INT8),
    ("pack-quantized", {**_WEIGHTS_BY_CHANNEL, "num_bits": 4}, None, INT4),
    ("pack-quantized", {**_WEIGHTS_BY_GROUP, "num_bits": 4}, None, INT4),
)
"""Format, what is said of weights and of activations, and what that comes to."""
_ORDERS: Final = (None, False, "static", "weight")
"""In which weights may have been quantised: with others, a tensor beside them says how they lie."""
_HEADS: Final = (["lm_head"], ["re:.*lm_head"])
"""What alone is not quantised, as tools name it."""
_NOTHING_ELSE: Final = ("kv_cache_scheme", "sparsity_config", "transform_config")
"""What else such a configuration may tell of, and does not."""


def quantisation_of(name: str, config: Any) -> Quantisation | None:
    """What a configuration says of its model's weights. None: they are plain numbers.

    Args:
        name: of the architecture.
        config: as transformers has it.

    Raises:
        UnsupportedModel: They are quantised in a way that no engine here is known to run.
    """
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    if not isinstance(settings, dict):
        settings = settings.to_dict() if hasattr(settings, "to_dict") else {}
    try:
        found = _served(settings)
    except (KeyError, TypeError, AttributeError, ValueError):
        found = None
    if found is None:
        raise UnsupportedModel(
            f"{name} is quantised ({_told(settings)}, by quantization_config in its config.json) "
            f"in a way that is not supported; {_SERVED}: deploy such a copy, or one whose weights "
            "are plain floating point numbers",
            metadata={"architecture": name},
        )
    return found


def check_plain(name: str, config: Any, instead: str) -> None:
    """Refuses quantised weights.

    Args:
        name: of the architecture.
        config: as transformers has it.
        instead: what to do where they are of a kind that is served elsewhere.

    Raises:
        UnsupportedModel: They are quantised.
    """
    if quantisation_of(name, config) is not None:
        raise UnsupportedModel(
            f"{name} is quantised ({METHOD}), {instead}", metadata={"architecture": name}
        )


def with_groups(settings: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The same quantization_config with groups of another size, where it has any."""
    groups = {
        name: {**group, "weights": _regrouped(group["weights"], size)}
        for name, group in settings["config_groups"].items()
    }
    return {**settings, "config_groups": groups}


def _regrouped(weights: Mapping[str, Any], size: int) -> dict[str, Any]:
    return {**weights, "group_size": size} if _has_groups(weights) else {**weights}


def _has_groups(weights: Mapping[str, Any]) -> bool:
    return bool(weights["strategy"] == "group")


def _served(settings: Mapping[str, Any]) -> Quantisation | None:
    (group,) = settings["config_groups"].values()
    weights, activations = group["weights"], group.get("input_activations")
    for layout, of_weights, of_activations, found in _TABLE:
        if (
            settings["quant_method"] == METHOD
            and settings["format"] == layout
            and group.get("format") in (None, layout)
            and group["targets"] == ["Linear"]
            and group.get("output_activations") is None
            and settings["ignore"] in _HEADS
            and weights.get("actorder") in _ORDERS
            and not weights.get("dynamic")
            and not any(_says_something(settings.get(name)) for name in _NOTHING_ELSE)
            and of_weights.items() <= weights.items()
            and _are_those(of_activations, activations)
        ):
            return _of_groups(found, weights["group_size"]) if _has_groups(weights) else found
    return None


def _of_groups(found: Quantisation, size: Any) -> Quantisation | None:
    """VLLM's kernel takes pairs."""
    if type(size) is not int or size < 2 or size % 2:
        return None
    return Quantisation(found.bits, size, found.quantises_activations)


def _are_those(known: Mapping[str, Any] | None, given: Mapping[str, Any] | None) -> bool:
    if known is None or given is None:
        return known is given
    return known.items() <= given.items()


def _says_something(value: Any) -> bool:
    return bool(value) and not (isinstance(value, dict) and value.get("format") == "dense")


def _told(settings: Mapping[str, Any]) -> str:
    method = settings.get("quant_method") or "a method that it does not name"
    layout = settings.get("format")
    kind = f", {layout!s:.{_LETTERS_SHOWN}}" if method == METHOD and layout else ""
    return f"{method!s:.{_LETTERS_SHOWN}}{kind}"
