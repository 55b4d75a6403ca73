"""Images in conversations: their bounds, and what is in them, looked at without trust."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Final

from sllm.errors import InvalidImage

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MAX_IMAGES: Final = 16
"""In one request."""
MAX_BYTES: Final = 8 << 20
"""Of one file."""
MAX_BYTES_OF_ALL: Final = 32 << 20
"""Of all files of a request: two of them fit into one message between servers."""
MAX_PIXELS: Final = 1 << 24
"""Of one image, whose decoding takes four bytes for each at most."""
MAX_PIXELS_OF_ALL: Final = 1 << 26
"""Of all images of a request, which are decoded side by side where a model is to see them."""
MAX_SIDE: Final = 16_384
"""Pixels in one direction."""
MAX_SCANS: Final = 100
"""Of one JPEG, which has a dozen. For each, a few bytes have all pixels gone over once more."""
_SCAN: Final = b"\xff\xda"
_TYPES: Final = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WEBP": "image/webp",
    "GIF": "image/gif",
}
"""The formats that are decoded, as Pillow calls them: it knows forty more, which nobody needs."""
_MPO: Final = "MPO"
"""What Pillow calls a JPEG with another picture behind it, as many cameras write them."""
_ALSO: Final = {"image/jpg": "image/jpeg"}


@dataclass(frozen=True, slots=True)
class Image:
    """An image file."""

    data: bytes
    media_type: str = ""
    """What it is said to be. Empty: nothing is said."""


def check_sizes(images: Sequence[Image]) -> None:
    """Refuses a request's images by what can be seen from outside.

    Raises:
        InvalidImage: They are too many or too large; says which, and what would do.
    """
    if len(images) > MAX_IMAGES:
        raise InvalidImage(f"there are {len(images)} images; a request may have {MAX_IMAGES}")
    for number, one in enumerate(images):
        if not one.data:
            raise InvalidImage(f"images[{number}] is empty; set its data or its url")
        if len(one.data) > MAX_BYTES:
            raise InvalidImage(
                f"images[{number}] has {len(one.data)} bytes, and may have {MAX_BYTES}: make it "
                "smaller, models scale it down anyway"
            )
    if (size := sum(len(one.data) for one in images)) > MAX_BYTES_OF_ALL:
        raise InvalidImage(
            f"the images have {size} bytes together, and may have {MAX_BYTES_OF_ALL}"
        )


def decode(image: Image, where: str) -> "Picture":
    """The pixels of an image, as RGB and the way up that its camera says. Takes a while.

    Nothing is decoded before its size is known to be within bounds.

    Raises:
        InvalidImage: It is no image that is known, is damaged, too large, or of another type
            than it is said to be; says `where` it is.
    """
    from PIL import Image as pillow  # a client has no need of it
    from PIL import ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are looked at below
            found = pillow.open(BytesIO(image.data), formats=tuple(_TYPES))
    except UnidentifiedImageError as error:
        raise InvalidImage(f"{where} is none of {', '.join(_TYPES.values())}") from error
    except Exception as error:  # decoders fail over bad bytes in many ways
        raise InvalidImage(f"{where} cannot be read: {error}") from error
    _check_found(image, where, "JPEG" if found.format == _MPO else str(found.format), found.size)
    try:
        ImageOps.exif_transpose(found, in_place=True)
        return found.convert("RGB")
    except Exception as error:
        raise InvalidImage(f"{where} is damaged: {error}") from error


def decoded(images: Iterable[Image]) -> Iterator["Picture"]:
    """The pixels of a request's images, one after the other; see `decode`.

    Raises:
        InvalidImage: As `decode`; or they have too many pixels together.
    """
    pixels = 0
    for number, one in enumerate(images):
        picture = decode(one, f"images[{number}]")
        pixels += picture.width * picture.height
        if pixels > MAX_PIXELS_OF_ALL:
            raise InvalidImage(
                f"images[0] to images[{number}] have {pixels} pixels together, and may have "
                f"{MAX_PIXELS_OF_ALL}: make them smaller, models scale them down anyway"
            )
        yield picture
        del picture  # one at a time, unless whoever reads them keeps them


def _check_found(image: Image, where: str, form: str, size: tuple[int, int]) -> None:
    said, found = image.media_type.lower().partition(";")[0].strip(), _TYPES[form]
    if said and _ALSO.get(said, said) != found:
        raise InvalidImage(f"{where} is said to be {said:.80}, and is {found}")
    width, height = size
    if width * height > MAX_PIXELS or max(size) > MAX_SIDE:
        raise InvalidImage(
            f"{where} has {width} x {height} pixels; {MAX_PIXELS} are taken, and {MAX_SIDE} in one "
            "direction"
        )
    if found == "image/jpeg" and (scans := image.data.count(_SCAN)) > MAX_SCANS:
        raise InvalidImage(f"{where} is written in {scans} scans; {MAX_SCANS} are taken")
