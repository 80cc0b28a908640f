"""Pairs that are nearly right."""

import torch

from tilewright.ranker.negatives import exchanged, patchwork


def test_a_patchwork_has_a_rectangle_of_the_next():
    torch.manual_seed(0)
    levels = torch.arange(50.0)
    images = levels[:, None, None, None].expand(50, 3, 8, 6).clone()
    made = patchwork(images)
    areas = []
    for number, image in enumerate(made):
        foreign = image[0] != number
        assert (image == image[:1]).all()  # of all three channels
        assert (image[0][foreign] == (number - 1) % 50).all()
        rows, columns = foreign.any(dim=1), foreign.any(dim=0)
        assert torch.equal(foreign, rows[:, None] & columns[None, :])
        for inside in (rows, columns):  # one stretch, without a gap
            at = inside.nonzero().flatten()
            assert len(at) == 0 or at[-1] - at[0] + 1 == len(at)
        areas.append(foreign.float().mean())
    assert 0.05 < torch.stack(areas).mean() < 0.2  # (1/3)^2 in the mean


# a red circle above a blue ring; a blue circle; a red ring above a: words 0 to 6, "a" is 0.
A, RED, BLUE, CIRCLE, RING, ABOVE = range(6)


def test_words_change_places_where_they_may_stand():
    torch.manual_seed(0)
    first = [A, RED, CIRCLE, ABOVE, A, BLUE, RING, -1]
    others = [[A, BLUE, CIRCLE, ABOVE, A, RED, RING, -1], [A, BLUE, RING, -1, -1, -1, -1, -1]]
    others += [[A, RED, RING, ABOVE, A, RED, CIRCLE, -1]]
    seen = set()
    for _ in range(20):
        seen |= {tuple(caption) for caption in exchanged(torch.tensor([first, *others])).tolist()}
    assert (A, BLUE, CIRCLE, ABOVE, A, RED, RING, -1) in seen  # the colours
    assert (A, RED, RING, ABOVE, A, BLUE, CIRCLE, -1) in seen  # the shapes
    for caption in seen:  # grammar is kept
        words = [word for word in caption if word >= 0]
        kinds = ["article" if w == A else "colour" if w in (RED, BLUE) else "other" for w in words]
        assert kinds[:2] == ["article", "colour"]


def test_every_negative_is_an_exchange_of_two_different_words():
    torch.manual_seed(1)
    text = torch.randint(4, (64, 6))
    made = exchanged(text)
    assert len(made) > 16
    for caption in made:
        different = (caption != text).sum(dim=1)
        assert 2 in different.tolist() or 0 in different.tolist()
        assert any(torch.equal(caption.sort().values, other.sort().values) for other in text)


def test_captions_that_allow_no_exchange_give_none():
    assert exchanged(torch.tensor([[1, 2, -1], [3, -1, -1], [-1, -1, -1]])).shape == (0, 3)
    assert exchanged(torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])).shape == (0, 4)
