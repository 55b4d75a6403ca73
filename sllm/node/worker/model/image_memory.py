"""What images take of a worker's memory, foretold of its model; on the high side."""

from dataclasses import dataclass
from math import prod
from typing import Any, Final

import torch

from sllm.chat.images import MAX_IMAGES, MAX_PIXELS, MAX_PIXELS_OF_ALL

_READ_BYTES_PER_PIXEL: Final = 28
"""Of images that are read side by side: decoded, in other forms, as numbers."""
_MADE_COPIES: Final = 3
"""Of their inputs while those are made."""
_LARGE_REQUESTS: Final = 64
"""Requests as large as can be whose inputs are kept at a time, if they are small even so."""
_KEPT_BYTES: Final = 256 << 20
"""Of inputs that are kept at a time, unless a single request has more."""
_INPUT_COPIES: Final = 4
"""Of a step's inputs: put side by side, and in the order that the first layer's kernel wants."""
_HIDDEN_COPIES: Final = 8
"""Of a step's hidden states that are there at once in a layer: queries, keys and values too."""
_WIDEST_COPIES: Final = 4
"""The same of what its widest part gives."""
_SCRATCH: Final = 64 << 20
"""Bytes of the tower's kernels, and of what the allocator keeps."""
_OUTPUT_COPIES: Final = 4
"""Of what comes of the images of a step: those that are kept may keep others of their step."""
_USUAL_PATCH: Final = 8
"""Pixels on each side of a patch, where the configuration names none."""
_USUAL_WIDENING: Final = 4


@dataclass(frozen=True, slots=True)
class LargestImage:
    """What the model's processor makes of an image that is as large as it takes any."""

    nbytes: int
    """Of the inputs."""
    numbers: int
    """In them."""
    places: int
    """Tokens of the prompt in which it is seen."""
    side_by_side: int = 1
    """Images of one request that are read together."""


@dataclass(frozen=True, slots=True)
class ImageMemory:
    """Bytes on a processor."""

    kept: int
    """What the inputs of all requests under way may take."""
    request: int
    """The same of one request."""
    reading: int
    """Reading one request's images."""
    step: int
    """A step of the tower, and what has come of earlier ones."""

    @property
    def total(self) -> int:
        """With a request that has been read, and waits for others' inputs to go."""
        return self.kept + self.request + self.reading + self.step


def image_memory(
    config: Any, dtype: torch.dtype, largest: LargestImage, step_places: int, context: int
) -> ImageMemory:
    """What the images of all requests take that a worker is asked at a time.

    Args:
        config: the model's.
        dtype: in which it is run.
        largest: of images.
        step_places: tokens in whose places images are seen in one step, if one image has no more.
        context: tokens that a request may have.
    """
    per_request = min(MAX_IMAGES, context // largest.places + 1)  # the last may be refused
    request = per_request * largest.nbytes
    kept = max(request, min(_LARGE_REQUESTS * request, _KEPT_BYTES))
    images = max(1.0, step_places / largest.places)
    step = _SCRATCH + int(images * _step_bytes(config, dtype, largest))
    return ImageMemory(kept, request, _read_bytes(largest, dtype), step)


def _read_bytes(largest: LargestImage, dtype: torch.dtype) -> int:
    """What reading images takes; their inputs are made in float32."""
    pixels = min(largest.side_by_side * MAX_PIXELS, MAX_PIXELS_OF_ALL)
    made = largest.side_by_side * largest.nbytes * torch.float32.itemsize // dtype.itemsize
    return _READ_BYTES_PER_PIXEL * pixels + _MADE_COPIES * made


def _step_bytes(config: Any, dtype: torch.dtype, largest: LargestImage) -> int:
    """What one image takes in a step of the tower, and what comes of it."""
    vision = getattr(config, "vision_config", None)
    hidden, widest = _widths(vision, config)
    patches = -(-largest.numbers // _patch_numbers(vision))
    tower = patches * (_HIDDEN_COPIES * hidden + _WIDEST_COPIES * widest)
    levels = 1 + len(getattr(vision, "deepstack_visual_indexes", None) or ())
    seen = largest.places * levels * int(config.get_text_config().hidden_size)
    return dtype.itemsize * (tower + _OUTPUT_COPIES * seen) + _INPUT_COPIES * largest.nbytes


def _widths(vision: Any, config: Any) -> tuple[int, int]:
    """Of hidden states, and of a layer's widest part; families call them differently."""
    hidden = _most(vision, "hidden_size", "embed_dim") or int(config.get_text_config().hidden_size)
    ratio = getattr(vision, "mlp_ratio", None) or _USUAL_WIDENING
    return hidden, _most(vision, "intermediate_size", "mlp_dim") or int(ratio * hidden)


def _patch_numbers(vision: Any) -> int:
    """Numbers of the inputs that become one of the tower's tokens."""
    size = getattr(vision, "patch_size", None) or _USUAL_PATCH
    sides = (size, size) if isinstance(size, int) else tuple(size)
    channels = _most(vision, "num_channels", "in_channels", "in_chans") or 3
    return channels * int(prod(sides)) * int(getattr(vision, "temporal_patch_size", None) or 1)


def _most(vision: Any, *names: str) -> int:
    return max(int(getattr(vision, name, None) or 0) for name in names)
