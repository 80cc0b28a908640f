"""Rotary positions: what the product of a query and a key knows of where they are."""

import pytest
import torch

from tilewright.prior import Stream
from tilewright.prior.rotary import Rotary

STREAM = Stream(text_length=5, text_vocab=5, grid=4, image_vocab=5)
FIRST = STREAM.first_image_position


def products(width=8):
    """[L, L] products of one query with one key as they are moved over the stream."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, width, dtype=torch.float64).expand(
        -1, -1, -1, STREAM.length, -1
    )
    rotary = Rotary(STREAM, width).double()
    return (rotary(query) @ rotary(key).transpose(-1, -2))[0, 0]


def test_in_the_text_only_the_distance_counts():
    text = products()[:FIRST, :FIRST]
    for distance in range(FIRST):
        diagonal = text.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-6)
    assert len(text[-1].round(decimals=4).unique()) == FIRST


def test_in_the_image_only_the_offset_in_rows_and_columns_counts():
    image = products()[FIRST:, FIRST:]
    # 14 to 4 and 10 to 0 are both two rows down and two columns to the right.
    torch.testing.assert_close(image[14, 4], image[10, 0], rtol=0, atol=1e-6)
    # 4 to 3 is a step in raster order, and no neighbor in the grid.
    assert abs(image[4, 3] - image[5, 4]) > 1e-3


def test_turning_keeps_the_length():
    x = torch.randn(1, 1, STREAM.length, 8)
    torch.testing.assert_close(Rotary(STREAM, 8)(x).norm(dim=-1), x.norm(dim=-1))


def test_a_part_of_the_stream_is_turned_as_in_the_whole():
    x = torch.randn(1, 2, STREAM.length, 8)
    rotary = Rotary(STREAM, 8)
    torch.testing.assert_close(rotary(x[:, :, 7:9], slice(7, 9)), rotary(x)[:, :, 7:9])
    torch.testing.assert_close(rotary(x[:, :, 7], 7), rotary(x)[:, :, 7])


def test_a_width_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="multiple of 4 channels, got 6"):
        Rotary(STREAM, 6)
