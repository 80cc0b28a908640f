"""The ranker's encoders and its loss."""

import math

import pytest
import torch
from torch.nn import functional as F

from tilewright.ranker.networks import DualEncoder, ImageEncoder, contrastive_loss, patchwork


@pytest.fixture
def network():
    torch.manual_seed(0)
    sizes = {"embedding": 8, "dim": 16, "heads": 2, "text_depth": 1, "image_depth": 1}
    return DualEncoder(text_vocab=9, text_length=5, image_size=16, grid=4, **sizes).eval()


def test_vectors_have_length_one(network):
    text = network.encode_text(torch.tensor([[1, 2, -1, -1, -1], [3, 4, 5, 6, 7]]))
    images = network.encode_images(torch.rand(3, 3, 16, 16))
    assert (text.shape, images.shape) == ((2, 8), (3, 8))
    torch.testing.assert_close(text.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(images.norm(dim=1), torch.ones(3))


def test_what_lies_past_a_caption_changes_nothing(network):
    alone = network.encode_text(torch.tensor([[1, 2, -1, -1, -1]]))
    beside_a_longer_one = network.encode_text(torch.tensor([[1, 2, -1, -1, -1], [3, 4, 5, 6, 7]]))
    torch.testing.assert_close(alone, beside_a_longer_one[:1])
    padding = torch.tensor([[1, 2, -3, -1, -2]])
    torch.testing.assert_close(alone, network.encode_text(padding))


def test_the_order_of_words_counts(network):
    ab, ba = network.encode_text(torch.tensor([[1, 2, -1, -1, -1], [2, 1, -1, -1, -1]]))
    assert (ab - ba).abs().max() > 1e-4


def test_an_empty_caption_has_a_vector(network):
    assert network.encode_text(torch.full((2, 5), -1)).isfinite().all()


def test_where_things_are_counts(network):
    image = torch.zeros(2, 3, 16, 16)
    image[0, :, :8], image[1, :, 8:] = 1, 1
    top, bottom = network.encode_images(image)
    assert (top - bottom).abs().max() > 1e-4


@pytest.mark.parametrize("grid", [16, 5, 32])
def test_a_grid_that_does_not_fit(grid):
    with pytest.raises(ValueError, match="grid times 2"):
        ImageEncoder(16, grid, dim=16, depth=1, heads=2)


def test_pictures_of_another_size(network):
    with pytest.raises(ValueError, match="16, 16"):
        network.encode_images(torch.rand(1, 3, 32, 32))


def test_the_loss_by_hand():
    text = F.normalize(torch.randn(3, 4, dtype=torch.float64), dim=1)
    images = F.normalize(torch.randn(3, 4, dtype=torch.float64), dim=1)
    want = 0.0
    for i in range(3):
        row = [5 * float(text[i] @ images[j]) for j in range(3)]
        column = [5 * float(text[j] @ images[i]) for j in range(3)]
        for scores in (row, column):
            want += math.log(sum(map(math.exp, scores))) - scores[i]
    loss = contrastive_loss(text, images, torch.tensor(5.0, dtype=torch.float64))
    assert float(loss) == pytest.approx(want / 6)


def test_the_scale_is_bounded(network):
    network.log_scale.data.fill_(20.0)
    assert network.scale.item() == pytest.approx(100.0)


def test_wrong_ones_stand_in_the_others_way_only():
    torch.manual_seed(0)
    text, images, wrong = (F.normalize(torch.randn(3, 4), dim=1) for _ in range(3))
    scale = torch.tensor(5.0)
    without = contrastive_loss(text, images, scale)
    logits = 5 * text @ torch.cat([images, wrong]).T
    of_text = F.cross_entropy(logits, torch.arange(3))
    of_images = F.cross_entropy(5 * images @ text.T, torch.arange(3))
    with_images = contrastive_loss(text, images, scale, wrong)
    torch.testing.assert_close(with_images, (of_text + of_images) / 2)
    assert with_images > without


def test_a_patchwork_has_a_rectangle_of_the_next_or_of_its_own():
    """Pixels say where they come from: of which picture, from which row and which column."""
    torch.manual_seed(0)
    number, height, width = 200, 8, 12
    at = [torch.arange(float(size)) for size in (number, height, width)]
    images = torch.stack(torch.meshgrid(*at, indexing="ij"), dim=1)
    made = patchwork(images).long()
    areas, kinds = [], []
    for i, (of, row, column) in enumerate(made):
        foreign = (made[i] != images[i]).any(dim=0)
        rows, columns = foreign.any(dim=1), foreign.any(dim=0)
        assert torch.equal(foreign, rows[:, None] & columns[None, :])
        for inside in (rows, columns):  # one stretch, without a gap
            places = inside.nonzero().flatten()
            assert len(places) == 0 or places[-1] - places[0] + 1 == len(places)
        areas.append(foreign.float().mean())
        if not foreign.any():
            continue
        kinds.append((of[foreign] != i).float().mean())
        if kinds[-1]:
            assert (of[foreign] == (i - 1) % number).all()
            assert torch.equal(row, images[i, 1].long())
            assert torch.equal(column, images[i, 2].long())
        else:  # all of it from as far away, no more than a quarter of the picture
            down = ((row - images[i, 1].long()) % height)[foreign].unique()
            across = ((column - images[i, 2].long()) % width)[foreign].unique()
            assert len(down) == len(across) == 1
            assert min(down, height - down) <= height / 4
            assert min(across, width - across) <= width / 4
    assert set(torch.stack(kinds).tolist()) == {0.0, 1.0}
    assert 0.3 < torch.stack(kinds).mean() < 0.7
    assert 0.05 < torch.stack(areas).mean() < 0.2  # (1/3)^2 in the mean


def test_a_scale_that_was_saved_as_a_number_is_read(network):
    state = network.state_dict()
    network.load_state_dict(state | {"log_scale": torch.tensor(1.5)})
    assert network.scale.item() == pytest.approx(math.exp(1.5))
