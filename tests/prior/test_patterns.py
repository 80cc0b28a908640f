"""Attention patterns against a brute-force reading of the paper, and the cache slots."""

import pytest
import torch

from tilewright.prior import Stream, patterns
from tilewright.prior.patterns import (
    PATTERNS,
    attention_predicate,
    cache_slots,
    dense_mask,
    layer_patterns,
)


def brute_force_mask(pattern, side, kernel=11):
    """Returns the mask [N, N] of image tokens, from the paper's description."""
    count, radius = side * side, kernel // 2
    visible = torch.zeros(count, count, dtype=torch.bool)
    for query in range(count):
        y, x = divmod(query, side)
        if pattern == "full":
            keys = range(query + 1)
        elif pattern == "row":  # back to the same column of the row above, across the row's edge
            keys = range(max(query - side, 0), query + 1)
        elif pattern == "column":  # the same column, in this row and all rows above
            keys = [above * side + x for above in range(y + 1)]
        else:  # a centered square that wraps to the next row at the edges
            keys = {
                (y - dy) * side + x - dx
                for dy in range(-radius, radius + 1)
                for dx in range(-radius, radius + 1)
            }
            keys = [key for key in keys if 0 <= key <= query]
        visible[query, list(keys)] = True
    return visible


def image_mask(pattern, side):
    tokens = torch.arange(side * side)
    return PATTERNS[pattern](tokens[:, None], tokens[None, :], side).expand(side**2, -1).tril()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("side", [1, 4, 12, 32])
def test_patterns_equal_brute_force(pattern, side):
    assert torch.equal(image_mask(pattern, side), brute_force_mask(pattern, side))


def test_a_grid_of_one_token_has_an_empty_cache():
    slots = cache_slots("row", Stream(text_length=3, text_vocab=5, grid=1, image_vocab=4))
    assert (slots.count, slots.write, slots.read) == (0, [], [])


@pytest.mark.parametrize(("side", "kernel"), [(4, 3), (6, 3), (6, 5), (3, 5)])
def test_convolutional_pattern_with_other_kernels_equals_brute_force(monkeypatch, side, kernel):
    monkeypatch.setattr(patterns, "CONVOLUTION_KERNEL", kernel)
    expected = brute_force_mask("convolutional", side, kernel)
    assert torch.equal(image_mask("convolutional", side), expected)


def test_convolutional_pattern_with_a_kernel_of_three(monkeypatch):
    monkeypatch.setattr(patterns, "CONVOLUTION_KERNEL", 3)
    # Token 6 is at row 1, column 2 of a 4x4 grid: itself, its left, and the three above.
    assert image_mask("convolutional", 4)[6].nonzero().flatten().tolist() == [1, 2, 3, 5, 6]
    # Token 8 begins row 2: its left neighbors are the ends of earlier rows.
    assert image_mask("convolutional", 4)[8].nonzero().flatten().tolist() == [3, 4, 5, 7, 8]


def test_row_pattern_has_one_key_more_than_the_side():
    assert image_mask("row", 4)[9].nonzero().flatten().tolist() == [5, 6, 7, 8, 9]
    assert image_mask("row", 32).sum(dim=1).max() == 33


@pytest.mark.parametrize("pattern", PATTERNS)
def test_text_is_causal_and_image_tokens_attend_to_the_whole_text(pattern):
    stream = Stream(text_length=3, text_vocab=5, grid=4, image_vocab=5)
    first, length = stream.first_image_position, stream.length
    expected = torch.zeros(length, length, dtype=torch.bool)
    expected[:first, :first] = torch.ones(first, first).tril().bool()
    expected[first:, :first] = True
    # The last image token is not an input.
    expected[first:, first:] = brute_force_mask(pattern, 4)[:-1, :-1]
    positions = torch.arange(length)
    actual = attention_predicate(pattern, stream)(positions[:, None], positions[None, :])
    assert torch.equal(actual, expected)
    assert torch.equal(dense_mask(pattern, stream), expected)


def test_paper_order_of_64_layers():
    patterns = layer_patterns("paper", 64)
    assert len(patterns) == 64
    assert patterns[-1] == "convolutional"
    for i, pattern in enumerate(patterns[:-1], start=1):
        assert pattern == ("column" if (i - 2) % 4 == 0 else "row"), i
    assert patterns[:6] == ["row", "column", "row", "row", "row", "column"]


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (1, ["row"]),
        (2, ["row", "convolutional"]),
        (3, ["row", "column", "convolutional"]),
        (4, ["row", "column", "row", "convolutional"]),
        (5, ["row", "column", "row", "row", "convolutional"]),
    ],
)
def test_paper_order_of_few_layers(depth, expected):
    assert layer_patterns("paper", depth) == expected


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("side", [2, 4, 16])
def test_slots_that_a_token_reads_hold_exactly_its_visible_keys(pattern, side):
    stream = Stream(text_length=3, text_vocab=5, grid=side, image_vocab=5)
    assignment, visible = cache_slots(pattern, stream), brute_force_mask(pattern, side)
    assert len(assignment.write) == len(assignment.read) == side * side - 1
    key_in_slot = {}
    for token, (slot, read) in enumerate(zip(assignment.write, assignment.read, strict=True)):
        assert 0 <= slot < assignment.count
        key_in_slot[slot] = token
        slots = range(assignment.count)[read] if isinstance(read, slice) else read.tolist()
        keys = [key_in_slot[s] for s in slots]
        assert len(keys) == len(set(keys))
        assert sorted(keys) == visible[token].nonzero().flatten().tolist()


@pytest.mark.parametrize("pattern", ["full", "row", "column"])
def test_reads_of_regular_patterns_are_slices(pattern):
    stream = Stream(text_length=3, text_vocab=5, grid=8, image_vocab=5)
    read = cache_slots(pattern, stream).read
    if pattern == "column":
        read = read[: 7 * 8]  # slots are reused in the bottom row
    assert all(isinstance(slots, slice) for slots in read)


@pytest.mark.parametrize(
    ("pattern", "side", "count"),
    [
        ("row", 4, 5),
        ("row", 32, 33),
        ("convolutional", 16, 5 * 16 + 5 + 1),
        ("convolutional", 32, 5 * 32 + 5 + 1),
        ("full", 4, 15),
    ],
)
def test_number_of_slots_is_the_smallest_possible(pattern, side, count):
    stream = Stream(text_length=3, text_vocab=5, grid=side, image_vocab=5)
    assert cache_slots(pattern, stream).count == count
