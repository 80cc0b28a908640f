"""Tiling of sparse patterns: visible keys, views, and the number of scores."""

import pytest
import torch

from tilewright.prior import Stream
from tilewright.prior.patterns import dense_mask
from tilewright.prior.window_tiling import window_tiling


@pytest.mark.parametrize("pattern", ["row", "column", "convolutional"])
@pytest.mark.parametrize(("text", "grid", "block_size"), [(30, 4, 4), (30, 6, 9), (1, 6, 12)])
def test_windows_show_each_query_the_image_keys_of_the_dense_mask(pattern, text, grid, block_size):
    stream = Stream(text_length=text, text_vocab=5, grid=grid, image_vocab=5)
    tiling = window_tiling(pattern, stream, block_size)
    positions = torch.arange(stream.length, dtype=torch.float64).view(1, -1, 1)
    queries = tiling.blocks(positions)[0, ..., 0].long()
    keys = tiling.windows(positions)[0, ..., 0].long()
    actual = torch.zeros(stream.length, stream.length, dtype=torch.bool)
    for block, window, bias in zip(queries, keys, tiling.bias, strict=True):
        for query, row in zip(block, bias, strict=True):
            actual[query, window[row == 0]] = True
    first = stream.first_image_position
    expected = dense_mask(pattern, stream).clone()
    expected[:, :first] = False
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("pattern", ["row", "column", "convolutional"])
def test_windows_are_views_and_add_windows_is_their_gradient(pattern):
    stream = Stream(text_length=30, text_vocab=5, grid=6, image_vocab=5)
    tiling = window_tiling(pattern, stream, 12)
    x = torch.randn(2, stream.length, 3, dtype=torch.float64, requires_grad=True)
    windows = tiling.windows(x)
    assert windows.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    grad_windows = torch.randn_like(windows)
    (expected,) = torch.autograd.grad(windows, x, grad_windows)
    actual = torch.zeros_like(expected)
    tiling.add_windows(actual, grad_windows)
    torch.testing.assert_close(actual, expected)


def test_sparse_patterns_of_the_paper_compute_less_than_half_of_the_scores():
    stream = Stream()
    dense = stream.image_length * stream.length
    row, column, convolutional = (
        window_tiling(pattern, stream) for pattern in ("row", "column", "convolutional")
    )
    assert [tiling.columns for tiling in (row, column, convolutional)] == [False, True, False]
    assert row.bias.shape == (16, 64, 64 + 32)
    assert convolutional.bias.shape == (16, 64, 64 + 5 * 32 + 5)
    assert row.num_scores < 0.33 * dense
    assert column.num_scores < 0.31 * dense
    assert convolutional.num_scores < 0.44 * dense
