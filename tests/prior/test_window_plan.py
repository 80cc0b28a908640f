"""How sparse patterns are cut: what is computed, and which positions the views are of."""

import pytest
import torch

from tilewright.prior import Stream
from tilewright.prior.patterns import dense_mask
from tilewright.prior.window_plan import window_plan


@pytest.mark.parametrize("pattern", ["row", "column", "convolutional"])
@pytest.mark.parametrize(("text", "grid", "block"), [(30, 4, 4), (30, 6, 9), (1, 6, 12)])
def test_the_windows_show_each_query_the_image_keys_of_its_mask(pattern, text, grid, block):
    stream = Stream(text_length=text, text_vocab=5, grid=grid, image_vocab=5)
    plan = window_plan(pattern, stream, block)
    positions = torch.arange(stream.length, dtype=torch.float64).view(1, -1, 1)
    queries, keys = plan.blocks(positions)[0, ..., 0], plan.windows(positions)[0, ..., 0]
    seen = torch.zeros(stream.length, stream.length, dtype=torch.bool)
    for of_block, window, bias in zip(queries.long(), keys.long(), plan.bias, strict=True):
        for query, row in zip(of_block, bias, strict=True):
            seen[query, window[row == 0]] = True
    first = stream.first_image_position
    visible = dense_mask(pattern, stream).clone()
    visible[:, :first] = False
    assert torch.equal(seen, visible)


@pytest.mark.parametrize("pattern", ["row", "column", "convolutional"])
def test_windows_are_views_and_are_added_where_they_came_from(pattern):
    stream = Stream(text_length=30, text_vocab=5, grid=6, image_vocab=5)
    plan = window_plan(pattern, stream, 12)
    x = torch.randn(2, stream.length, 3, dtype=torch.float64, requires_grad=True)
    windows = plan.windows(x)
    assert windows.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    parts = torch.randn_like(windows)
    (gradient,) = torch.autograd.grad(windows, x, parts)
    total = torch.zeros_like(gradient)
    plan.add_windows(total, parts)
    torch.testing.assert_close(total, gradient)


def test_what_the_papers_context_costs():
    papers = Stream()
    dense = papers.image_length * papers.length
    row, column, convolutional = (
        window_plan(pattern, papers) for pattern in ("row", "column", "convolutional")
    )
    assert [plan.columns for plan in (row, column, convolutional)] == [False, True, False]
    assert row.bias.shape == (16, 64, 64 + 32)
    assert convolutional.bias.shape == (16, 64, 64 + 5 * 32 + 5)
    assert row.scores < 0.33 * dense
    assert column.scores < 0.31 * dense
    assert convolutional.scores < 0.44 * dense
