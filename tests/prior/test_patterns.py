"""The masks against the paper's words, by brute force, and the cache's plan by replaying it."""

import pytest
import torch

from tilewright.prior import Stream, patterns
from tilewright.prior.patterns import PATTERNS, cache_plan, dense_mask, layer_patterns, sees


def words(pattern, side, kernel=11):
    """[N, N] booleans from the paper's words: for each image token, which ones it sees."""
    count, reach = side * side, kernel // 2
    visible = torch.zeros(count, count, dtype=torch.bool)
    for query in range(count):
        y, x = divmod(query, side)
        if pattern == "full":
            seen = range(query + 1)
        elif pattern == "row":  # back to the same column of the row above, across the boundary
            seen = range(max(query - side, 0), query + 1)
        elif pattern == "column":  # the same column, at and above the row
            seen = [above * side + x for above in range(y + 1)]
        else:  # a centered square; what leaves the row at one edge enters the next at the other
            seen = {
                (y - dy) * side + x - dx
                for dy in range(-reach, reach + 1)
                for dx in range(-reach, reach + 1)
            }
            seen = [key for key in seen if 0 <= key <= query]
        visible[query, list(seen)] = True
    return visible


def image_mask(pattern, side):
    tokens = torch.arange(side * side)
    return PATTERNS[pattern](tokens[:, None], tokens[None, :], side).expand(side**2, -1).tril()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("side", [1, 4, 12, 32])
def test_the_patterns_are_the_papers_words(pattern, side):
    assert torch.equal(image_mask(pattern, side), words(pattern, side))


@pytest.mark.parametrize(("side", "kernel"), [(4, 3), (6, 3), (6, 5), (3, 5)])
def test_a_convolution_of_another_kernel(monkeypatch, side, kernel):
    monkeypatch.setattr(patterns, "CONVOLUTION_KERNEL", kernel)
    assert torch.equal(image_mask("convolutional", side), words("convolutional", side, kernel))


def test_a_convolution_of_three_spelled_out(monkeypatch):
    monkeypatch.setattr(patterns, "CONVOLUTION_KERNEL", 3)
    # Token 6 lies at row 1, column 2 of a 4x4 grid: itself, its left, and the three above.
    assert image_mask("convolutional", 4)[6].nonzero().flatten().tolist() == [1, 2, 3, 5, 6]
    # Token 8 begins row 2: its left neighbors are the ends of the rows before.
    assert image_mask("convolutional", 4)[8].nonzero().flatten().tolist() == [3, 4, 5, 7, 8]


def test_a_row_holds_one_more_than_the_side():
    assert image_mask("row", 4)[9].nonzero().flatten().tolist() == [5, 6, 7, 8, 9]
    assert image_mask("row", 32).sum(dim=1).max() == 33


@pytest.mark.parametrize("pattern", PATTERNS)
def test_text_is_causal_and_every_image_token_sees_all_of_it(pattern):
    stream = Stream(text_length=3, text_vocab=5, grid=4, image_vocab=5)
    first, length = stream.first_image_position, stream.length
    expected = torch.zeros(length, length, dtype=torch.bool)
    expected[:first, :first] = torch.ones(first, first).tril().bool()
    expected[first:, :first] = True
    expected[first:, first:] = words(pattern, 4)[:-1, :-1]  # the last image token is no input
    positions = torch.arange(length)
    actual = sees(pattern, stream)(positions[:, None], positions[None, :])
    assert torch.equal(actual, expected)
    assert torch.equal(dense_mask(pattern, stream), expected)


def test_the_papers_order_of_layers():
    patterns = layer_patterns(64)
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
def test_the_order_of_few_layers(depth, expected):
    assert layer_patterns(depth) == expected


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("side", [2, 4, 16])
def test_the_slots_that_a_query_reads_hold_just_the_keys_it_sees(pattern, side):
    stream = Stream(text_length=3, text_vocab=5, grid=side, image_vocab=5)
    plan, visible = cache_plan(pattern, stream), words(pattern, side)
    assert len(plan.write) == len(plan.read) == side * side - 1
    held = {}
    for token, (slot, read) in enumerate(zip(plan.write, plan.read, strict=True)):
        assert 0 <= slot < plan.slots
        held[slot] = token
        slots = range(plan.slots)[read] if isinstance(read, slice) else read.tolist()
        keys = [held[s] for s in slots]
        assert len(keys) == len(set(keys))
        assert sorted(keys) == visible[token].nonzero().flatten().tolist()


@pytest.mark.parametrize("pattern", ["full", "row", "column"])
def test_reading_the_cache_of_a_regular_pattern_copies_nothing(pattern):
    stream = Stream(text_length=3, text_vocab=5, grid=8, image_vocab=5)
    read = cache_plan(pattern, stream).read
    if pattern == "column":
        read = read[: 7 * 8]  # in the bottom row slots change hands
    assert all(isinstance(slots, slice) for slots in read)


@pytest.mark.parametrize(
    ("pattern", "side", "slots"),
    [
        ("row", 4, 5),
        ("row", 32, 33),
        ("convolutional", 16, 5 * 16 + 5 + 1),
        ("convolutional", 32, 5 * 32 + 5 + 1),
        ("full", 4, 15),
    ],
)
def test_a_cache_is_as_small_as_the_pattern_allows(pattern, side, slots):
    stream = Stream(text_length=3, text_vocab=5, grid=side, image_vocab=5)
    assert cache_plan(pattern, stream).slots == slots
