"""Images with more than 8 bits per sample: 12 bits in 16-bit files, floats, color, tags."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from tilewright.data.images import decode_image

RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def encode(samples, form="TIFF", **options):
    file = io.BytesIO()
    Image.fromarray(samples).save(file, form, **options)
    return file.getvalue()


def decode(data):
    return np.asarray(decode_image({"bytes": data}))


def assert_is_ramp(data, brightness=1.0, tolerance=1):
    pixels = decode(data)
    expected = np.round(RAMP * 255 * brightness)[..., None]
    assert pixels.shape == (8, 8, 3)
    np.testing.assert_allclose(pixels, np.broadcast_to(expected, (8, 8, 3)), atol=tolerance)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("form", ["TIFF", "PNG", "PPM", "JPEG2000"])
@pytest.mark.parametrize("brightness", [1.0, 0.8])
def test_the_largest_sample_gives_the_depth_of_integers(bits, form, brightness):
    samples = np.round(RAMP * brightness * (2**bits - 1)).astype(np.uint16)
    # Contrast is not stretched: 80% brightness stays 80%.
    assert_is_ramp(encode(samples, form), brightness)


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_are_read(order):
    data = encode(np.round(RAMP * 4095).astype(np.uint16))
    if order == ">":
        data = tiff([(258, 16), (277, 1)], np.round(RAMP * 4095).astype(">u2").tobytes(), order)
        assert Image.open(io.BytesIO(data)).mode == "I;16B"
    assert_is_ramp(data)


@pytest.mark.parametrize("white", [255, 4095, 65535, 2**24 - 1])
def test_32_bit_integers_are_scaled(white):
    assert_is_ramp(encode(np.round(RAMP * white).astype(np.int32)))


@pytest.mark.parametrize("white", [1, 255, 65535])
def test_floats_are_scaled(white):
    assert_is_ramp(encode((RAMP * white).astype(np.float32)))
    assert_is_ramp(encode((RAMP * white * 0.8).astype(np.float32)), 0.8)


def test_floats_slightly_above_1_are_clipped():
    samples = RAMP.astype(np.float32)
    samples[-1, -1] = 1.05
    assert_is_ramp(encode(samples))


@pytest.mark.parametrize(
    ("value", "expected"),
    [(np.nan, 0), (np.inf, 255), (-np.inf, 0), (-1.0, 0), (np.float32(3e38), None)],
)
def test_values_that_are_not_in_range_are_black_or_white(value, expected):
    samples = RAMP.astype(np.float32)
    samples[0, 1] = value
    pixels = decode(encode(samples))
    if expected is not None:
        assert pixels[0, 1].tolist() == [expected] * 3
        assert pixels[4, 4].tolist() == pytest.approx([146] * 3, abs=1)


@pytest.mark.parametrize("value", [0.0, np.nan, -5.0])
def test_images_without_a_positive_sample_are_black(value):
    assert decode(encode(np.full((8, 8), value, np.float32))).max() == 0


def test_negative_integers_are_black():
    samples = np.round(RAMP * 4095).astype(np.int32) - 2000
    pixels = decode(encode(samples))
    assert pixels[0, 0, 0] == 0
    assert pixels[-1, -1, 0] == pytest.approx(2095 * 255 / 4095, abs=1)


def tiff(tags, strip, order="<"):
    """Writes a gray TIFF of 8 x 8 pixels: pairs of (tag, value), and the bytes of the samples."""
    tags = {256: 8, 257: 8, 259: 1, 262: 1, 278: 8, 279: len(strip), **dict(tags)}
    tags[273] = 8 + 2 + 12 * (len(tags) + 1) + 4
    header = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, 4, 1) + struct.pack(f"{order}I", tags[tag])
        for tag in sorted(tags)
    )
    return header + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + strip


def test_a_tag_of_12_bits_beats_the_largest_sample():
    samples = np.round(RAMP * 900).astype(int).ravel()
    bits = "".join(f"{sample:012b}" for sample in samples)
    strip = int(bits, 2).to_bytes(len(bits) // 8, "big")
    assert_is_ramp(tiff([(258, 12)], strip), 900 / 4095)


def test_0_is_white_if_the_tag_says_so():
    samples = np.round((1 - RAMP) * 65535).astype("<u2")
    assert_is_ramp(tiff([(258, 16), (262, 0)], samples.tobytes()))


def png(samples):
    """Encodes 16-bit color, which Pillow does not write."""
    height, width, channels = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def color_tiff(samples, compression):
    """Encodes 16-bit color as TIFF, by relabeling a gray image three times as wide."""
    height, width, channels = samples.shape
    file = io.BytesIO()
    ifd = TiffImagePlugin.ImageFileDirectory_v2()
    gray = Image.fromarray(samples.reshape(height, width * channels).astype(np.uint16))
    gray.save(file, "TIFF", tiffinfo=ifd, compression=compression)
    data = bytearray(file.getvalue())
    (offset,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, offset)
    entries = {}
    for n in range(count):
        entry = data[offset + 2 + 12 * n : offset + 14 + 12 * n]
        entries[struct.unpack_from("<H", entry)[0]] = bytes(entry)
    bits = len(data)
    data += struct.pack("<3H", 16, 16, 16)
    entries[256] = struct.pack("<HHII", 256, 4, 1, width)
    entries[258] = struct.pack("<HHII", 258, 3, 3, bits)
    entries[262] = struct.pack("<HHII", 262, 3, 1, 2)
    entries[277] = struct.pack("<HHII", 277, 3, 1, 3)
    directory = len(data)
    data += struct.pack("<H", len(entries))
    data += b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    struct.pack_into("<I", data, 4, directory)
    return bytes(data)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("form", ["png", "raw", "tiff_lzw"])
def test_16_bit_color_is_scaled_with_all_its_bits(bits, form):
    samples = np.round(RAMP[..., None] * [1, 0.5, 0] * (2**bits - 1))
    data = png(samples) if form == "png" else color_tiff(samples, form)
    expected = np.round(RAMP[..., None] * [255, 127.5, 0])
    np.testing.assert_allclose(decode(data), expected, atol=1)


def test_16_bit_color_with_an_alpha_channel():
    samples = np.full((8, 8, 4), 4095)
    samples[..., 2] = 0
    samples[..., 3] = 65535
    samples[4:, :, 3] = 0
    pixels = decode(png(samples))
    assert (pixels[:4] == (255, 255, 0)).all()
    assert (pixels[4:] == 255).all()
