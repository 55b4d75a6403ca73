"""Images are looked at without trust: what is none, or too much, is refused with its reason."""

import struct
import zlib
from io import BytesIO

import pytest
from PIL import Image as pillow

from sllm.chat.images import (
    MAX_BYTES,
    MAX_IMAGES,
    MAX_SCANS,
    MAX_SIDE,
    Image,
    check_sizes,
    decode,
    decoded,
)
from sllm.errors import InvalidImage
from tests.vision import picture


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_what_is_known_is_decoded_whatever_it_is_called(form: str) -> None:
    data = picture(0, form=form)
    for media_type in ("", f"image/{form.lower()}", f"IMAGE/{form}; q=1"):
        found = decode(Image(data, media_type), "images[0]")
        assert (found.mode, found.size) == ("RGB", (50, 40))


def test_it_is_the_way_up_that_its_camera_says() -> None:
    file, exif = BytesIO(), pillow.Exif()
    exif[0x0112] = 6  # on its side
    pillow.open(BytesIO(picture())).save(file, "JPEG", exif=exif)
    assert decode(Image(file.getvalue()), "images[0]").size == (40, 50)


def test_a_photo_with_another_behind_it_is_a_jpeg() -> None:
    """As cameras write them that keep a preview, or how bright a part is."""
    file, one = BytesIO(), pillow.open(BytesIO(picture()))
    one.save(file, "MPO", save_all=True, append_images=[one])
    assert decode(Image(file.getvalue(), "image/jpeg"), "images[0]").size == (50, 40)


def test_one_of_many_scans_is_refused_before_they_are_gone_over() -> None:
    """A few bytes have all pixels gone over: a small file could take minutes."""
    file = BytesIO()
    pillow.new("RGB", (4_096, 4_096)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    assert decode(Image(data), "images[0]").size == (4_096, 4_096)
    many = data[:last] + data[last:-2] * MAX_SCANS + data[last:]
    with pytest.raises(InvalidImage, match=r"images\[0\] is written in 1\d\d scans"):
        decode(Image(many), "images[0]")


def test_their_pixels_are_bounded_together() -> None:
    file = BytesIO()
    pillow.new("L", (4_096, 4_096)).save(file, "PNG")
    large = Image(file.getvalue())
    assert len(list(decoded([large] * 4))) == 4
    with pytest.raises(InvalidImage, match=r"images\[0\] to images\[4\] have 83886080 pixels"):
        list(decoded([large] * 5))


def png(width: int, height: int) -> bytes:
    """The beginning of a file that says how large it is, and no pixel of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b""))


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (Image(b"GIF"), "is none of image/png, image/jpeg, image/webp, image/gif"),
        (Image(b"%PDF-1.7"), "is none of"),
        (Image(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "is none of"),
        (Image(picture(0, form="BMP")), "is none of"),
        (Image(picture(0, form="TIFF")), "is none of"),
        (Image(picture()[:-200]), "is damaged"),
        (Image(picture(form="JPEG")[:-200]), "is damaged"),
        (Image(picture(), "image/jpeg"), "said to be image/jpeg, and is image/png"),
        (Image(png(60_000, 60_000)), "3600000000 pixels"),
        (Image(png(5_000, 5_000)), "5000 x 5000 pixels"),
        (Image(png(2**31 - 1, 2**31 - 1)), "cannot be read|pixels"),
        (Image(png(MAX_SIDE + 1, 1)), "in one direction"),
        (Image(png(8, 8)), "is damaged"),
    ],
)
def test_others_are_refused_before_their_pixels_are_made(image: Image, why: str) -> None:
    with pytest.raises(InvalidImage, match=why) as failure:
        decode(image, "images[3]")
    assert "images[3]" in failure.value.message


def test_many_and_large_ones_are_refused_unseen() -> None:
    check_sizes([Image(b"x")] * MAX_IMAGES)
    with pytest.raises(InvalidImage, match=f"{MAX_IMAGES + 1} images"):
        check_sizes([Image(b"x")] * (MAX_IMAGES + 1))
    with pytest.raises(InvalidImage, match=r"images\[1\] has 8388609 bytes"):
        check_sizes([Image(b"x"), Image(bytes(MAX_BYTES + 1))])
    with pytest.raises(InvalidImage, match="together"):
        check_sizes([Image(bytes(MAX_BYTES))] * 5)
    with pytest.raises(InvalidImage, match=r"images\[0\] is empty"):
        check_sizes([Image(b"")])
