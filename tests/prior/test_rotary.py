"""Rotary positions: products of queries and keys depend on relative positions only."""

import pytest
import torch

from tilewright.prior import Stream
from tilewright.prior.rotary import Rotary, stream_angles

STREAM = Stream(text_length=5, text_vocab=5, grid=4, image_vocab=5)
FIRST = STREAM.first_image_position


def scores(width=8):
    """Returns the scores [L, L] of one query and one key, moved over all pairs of positions."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, width, dtype=torch.float64).expand(
        -1, -1, -1, STREAM.length, -1
    )
    rotary = Rotary(stream_angles(STREAM, width)).double()
    return (rotary(query) @ rotary(key).transpose(-1, -2))[0, 0]


def test_text_scores_depend_on_the_distance_only():
    text = scores()[:FIRST, :FIRST]
    for distance in range(FIRST):
        diagonal = text.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-6)
    assert len(text[-1].round(decimals=4).unique()) == FIRST


def test_image_scores_depend_on_the_offset_in_rows_and_columns():
    image = scores()[FIRST:, FIRST:]
    # 14 to 4 and 10 to 0 are both two rows down and two columns to the right.
    torch.testing.assert_close(image[14, 4], image[10, 0], rtol=0, atol=1e-6)
    # 3 and 4 are neighbors in raster order, but not in the grid.
    assert abs(image[4, 3] - image[5, 4]) > 1e-3


def test_rotation_keeps_the_norm():
    x = torch.randn(1, 1, STREAM.length, 8)
    torch.testing.assert_close(Rotary(stream_angles(STREAM, 8))(x).norm(dim=-1), x.norm(dim=-1))


def test_part_of_the_stream_is_rotated_like_the_whole():
    x = torch.randn(1, 2, STREAM.length, 8)
    rotary = Rotary(stream_angles(STREAM, 8))
    torch.testing.assert_close(rotary(x[:, :, 7:9], slice(7, 9)), rotary(x)[:, :, 7:9])
    torch.testing.assert_close(rotary(x[:, :, 7], 7), rotary(x)[:, :, 7])


def test_width_that_is_not_a_multiple_of_four_is_rejected():
    with pytest.raises(ValueError, match="multiple of 4 channels, got 6"):
        stream_angles(STREAM, 6)
