"""Decoding of images: all modes become 8-bit RGB, and other bytes are rejected."""

import contextlib
from io import BytesIO
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image

from tilewright.data import images
from tilewright.data.images import (
    NO_FILE,
    NOT_OPENED,
    UnreadableImage,
    decode_image,
    read_size,
    to_tensor,
)


def encode(image, form="PNG", **options):
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def noise(height=24, width=16, channels=3):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return pixels


def test_rgb_is_unchanged():
    pixels = noise()
    image = decode_image(encode(Image.fromarray(pixels)))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), pixels)


def test_path_is_read_when_there_are_no_bytes(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png")
    image = decode_image({"bytes": None, "path": str(tmp_path / "a.png")})
    np.testing.assert_array_equal(np.asarray(image), noise())


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    image = decode_image(encode(Image.fromarray(noise()), exif=exif))
    np.testing.assert_array_equal(np.asarray(image), np.rot90(noise(), -1))


def test_transparent_parts_become_white():
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2] = (255, 0, 0, 255)
    image = np.asarray(decode_image(encode(Image.fromarray(pixels))))
    assert (image[:2] == (255, 0, 0)).all()
    assert (image[2:] == 255).all()


def test_half_transparent_parts_are_mixed_with_white():
    image = decode_image(encode(Image.new("LA", (2, 2), (0, 128))))
    assert image.getpixel((0, 0)) == pytest.approx((127, 127, 127), abs=1)


def test_transparent_palette_entry_becomes_white():
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image = decode_image(encode(image, transparency=0))
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((1, 0)) == (40, 50, 60)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode):
    form = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    # Pillow 12 cannot read the uncompressed YCbCr that it writes.
    packed = {"compression": "tiff_lzw"} if mode == "YCbCr" else {}
    image = decode_image(encode(Image.new("RGB", (5, 7), "white").convert(mode), form, **packed))
    assert (image.mode, image.size) == ("RGB", (5, 7))
    assert min(image.getpixel((2, 2))) >= 254


def test_cmyk_jpeg_keeps_its_color():
    image = decode_image(encode(Image.new("RGB", (16, 16), (250, 10, 10)).convert("CMYK"), "JPEG"))
    assert image.getpixel((8, 8)) == pytest.approx((250, 10, 10), abs=6)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(form):
    gray = np.array([[0, 257 * 100, 65535]], np.uint16)
    image = np.asarray(decode_image(encode(Image.fromarray(gray), form)))
    np.testing.assert_array_equal(image[0, :, 0], [0, 100, 255])


def test_float_pixels_are_scaled():
    image = decode_image(encode(Image.fromarray(np.array([[0.0, 0.2, 1.0]], np.float32)), "TIFF"))
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, 51, 255]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_size_in_a_header_is_that_of_the_decoded_image(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    record = encode(Image.fromarray(noise()), form, exif=exif)
    assert read_size(record) == decode_image(record).size


@pytest.mark.parametrize(("form", "mode"), [("QOI", "RGB"), ("QOI", "RGBA"), ("XBM", "1")])
def test_formats_without_a_layout_of_samples_are_read(form, mode):
    original = Image.fromarray(noise()).convert(mode)
    image = decode_image(encode(original, form))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(original.convert("RGB")))


def test_a_raised_number_of_pixels_is_above_the_limit_of_pillow(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    record = encode(Image.fromarray(noise()))  # 384 pixels
    with pytest.raises(UnreadableImage, match="too many pixels"):
        decode_image(record, max_pixels=100)
    assert decode_image(record, max_pixels=400).size == (16, 24)
    with pytest.raises(UnreadableImage, match="too many pixels"):
        decode_image(record, max_pixels=100)


def test_images_inside_an_archive_are_read_by_their_address(tmp_path):
    archive = tmp_path / "images.zip"
    with ZipFile(archive, "w") as file:
        file.writestr("a/1.png", encode(Image.fromarray(noise()))["bytes"])
    image = decode_image({"bytes": None, "path": f"zip://a/1.png::{archive}"})
    np.testing.assert_array_equal(np.asarray(image), noise())
    for address, reason in (
        (f"zip://a/2.png::{archive}", NO_FILE),
        (f"zip://a/1.png::{tmp_path}/other.zip", NO_FILE),
        ("unknown://images/1.png", NOT_OPENED),
    ):
        with pytest.raises(UnreadableImage, match=reason):
            decode_image({"bytes": None, "path": address})


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    image = decode_image(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert image.getpixel((0, 0)) == pytest.approx((255, 0, 0), abs=2)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_truncated_file_is_rejected(form):
    record = encode(Image.fromarray(noise(64, 64)), form)
    record["bytes"] = record["bytes"][: len(record["bytes"]) // 2]
    with pytest.raises(UnreadableImage):
        decode_image(record)


@pytest.mark.parametrize(
    "record",
    [
        None,
        {},
        {"bytes": None, "path": None},
        {"bytes": b"", "path": None},
        {"bytes": b"<html>not found</html>", "path": "a.jpg"},
        {"bytes": None, "path": "/no/such/picture.png"},
    ],
)
def test_bytes_that_are_not_an_image_are_rejected(record):
    with pytest.raises(UnreadableImage):
        decode_image(record)


def test_corrupt_bytes_only_raise_unreadable_image():
    data = bytearray(encode(Image.fromarray(noise(32, 32)), "JPEG")["bytes"])
    generator = np.random.default_rng(0)
    for _ in range(100):
        corrupt = bytearray(data)
        for index in generator.integers(0, len(data), 20):
            corrupt[index] = generator.integers(256)
        with contextlib.suppress(UnreadableImage):
            assert decode_image({"bytes": bytes(corrupt)}).mode == "RGB"


def test_to_tensor_gives_floats_in_0_to_1():
    tensor = to_tensor(Image.fromarray(noise(5, 7)))
    assert tensor.shape == (3, 5, 7)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    torch.testing.assert_close(tensor[2, 4, 6], torch.tensor(noise(5, 7)[4, 6, 2] / 255).float())
    assert to_tensor(Image.new("RGB", (1, 1), "white")).max() == 1


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
@pytest.mark.parametrize("stored", ["bytes", "path"])
def test_heic_is_read_or_says_what_is_missing(brand, stored, tmp_path, monkeypatch):
    record = encode(Image.fromarray(noise(64, 64)), "HEIF")
    data = record["bytes"][:8] + brand + record["bytes"][12:]
    (tmp_path / "a.jpg").write_bytes(data)  # phones export it under other names too
    record = {"bytes": data} if stored == "bytes" else {"path": str(tmp_path / "a.jpg")}
    assert decode_image(record).size == (64, 64)
    without = tuple(name for name in images.FORMATS if name != "HEIF")
    monkeypatch.setattr(images, "FORMATS", without)
    with pytest.raises(UnreadableImage) as caught:
        decode_image(record)
    assert caught.value.reason == "HEIC image without pillow-heif"


def test_a_folder_in_place_of_a_file_is_not_called_corrupt(tmp_path):
    with pytest.raises(UnreadableImage, match="image file cannot be opened"):
        decode_image({"path": str(tmp_path)})


def test_a_machine_without_memory_does_not_make_an_image_corrupt(monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    record = encode(Image.new("RGB", (4, 4)))
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        decode_image(record)


def test_formats_that_run_programs_or_hold_movies_are_not_opened():
    assert not {"EPS", "MPEG", "FLI", "WMF"} & set(images.FORMATS)
    assert {".jfif", ".jp2", ".ppm", ".ico", ".tga", ".mpo", ".heic"} <= images.IMAGE_SUFFIXES
    assert not {".eps", ".ps", ".pdf", ".mpg", ".h5"} & images.IMAGE_SUFFIXES
