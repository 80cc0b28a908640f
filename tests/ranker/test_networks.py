"""Encoders and loss of the ranker."""

import math

import pytest
import torch
from torch.nn import functional as F

from tilewright.errors import UserError
from tilewright.ranker.networks import (
    DualEncoder,
    ImageEncoder,
    contrastive_loss,
    make_cutmix_negatives,
)


@pytest.fixture
def network():
    torch.manual_seed(0)
    sizes = {"embedding": 8, "dim": 16, "heads": 2, "text_depth": 1, "image_depth": 1}
    return DualEncoder(text_vocab=9, text_length=5, image_size=16, grid=4, **sizes).eval()


def test_embeddings_are_unit_vectors(network):
    text = network.encode_text(torch.tensor([[1, 2, -1, -1, -1], [3, 4, 5, 6, 7]]))
    images = network.encode_images(torch.rand(3, 3, 16, 16))
    assert (text.shape, images.shape) == ((2, 8), (3, 8))
    torch.testing.assert_close(text.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(images.norm(dim=1), torch.ones(3))


def test_padding_does_not_change_a_captions_embedding(network):
    alone = network.encode_text(torch.tensor([[1, 2, -1, -1, -1]]))
    padded_batch = network.encode_text(torch.tensor([[1, 2, -1, -1, -1], [3, 4, 5, 6, 7]]))
    torch.testing.assert_close(alone, padded_batch[:1])
    other_padding = torch.tensor([[1, 2, -3, -1, -2]])
    torch.testing.assert_close(alone, network.encode_text(other_padding))


def test_the_order_of_words_matters(network):
    ab, ba = network.encode_text(torch.tensor([[1, 2, -1, -1, -1], [2, 1, -1, -1, -1]]))
    assert (ab - ba).abs().max() > 1e-4


def test_an_empty_caption_has_a_finite_embedding(network):
    assert network.encode_text(torch.full((2, 5), -1)).isfinite().all()


def test_positions_in_the_image_matter(network):
    image = torch.zeros(2, 3, 16, 16)
    image[0, :, :8], image[1, :, 8:] = 1, 1
    top, bottom = network.encode_images(image)
    assert (top - bottom).abs().max() > 1e-4


@pytest.mark.parametrize("grid", [16, 5, 32])
def test_a_grid_that_does_not_divide_the_image_by_a_power_of_two_is_an_error(grid):
    with pytest.raises(ValueError, match=f"grid={grid} times 2"):
        ImageEncoder(16, grid, dim=16, depth=1, heads=2)


def test_images_of_another_size_are_an_error(network):
    with pytest.raises(ValueError, match="16, 16"):
        network.encode_images(torch.rand(1, 3, 32, 32))


def test_the_loss_equals_the_formula():
    text = F.normalize(torch.randn(3, 4, dtype=torch.float64), dim=1)
    images = F.normalize(torch.randn(3, 4, dtype=torch.float64), dim=1)
    expected = 0.0
    for i in range(3):
        row = [5 * float(text[i] @ images[j]) for j in range(3)]
        column = [5 * float(text[j] @ images[i]) for j in range(3)]
        for scores in (row, column):
            expected += math.log(sum(map(math.exp, scores))) - scores[i]
    loss = contrastive_loss(text, images, torch.tensor(5.0, dtype=torch.float64))
    assert float(loss) == pytest.approx(expected / 6)


def test_negatives_enter_only_the_loss_of_captions():
    torch.manual_seed(0)
    text, images, negatives = (F.normalize(torch.randn(3, 4), dim=1) for _ in range(3))
    scale = torch.tensor(5.0)
    loss = contrastive_loss(text, images, scale, negatives)
    logits = 5 * text @ torch.cat([images, negatives]).T
    text_loss = F.cross_entropy(logits, torch.arange(3))
    image_loss = F.cross_entropy(5 * images @ text.T, torch.arange(3))
    torch.testing.assert_close(loss, (text_loss + image_loss) / 2)
    assert loss > contrastive_loss(text, images, scale)
    is_negative = torch.tensor([True, False, True])
    some = contrastive_loss(text, images, scale, negatives, is_negative)
    torch.testing.assert_close(some, contrastive_loss(text, images, scale, negatives[::2]))


BATCH, HEIGHT, WIDTH = 200, 8, 12


@pytest.fixture(scope="module")
def cutmix():
    """Negatives of images whose channels hold each pixel's image index, row and column."""
    torch.manual_seed(0)
    axes = [torch.arange(float(size)) for size in (BATCH, HEIGHT, WIDTH)]
    images = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=1)
    return images.long(), make_cutmix_negatives(images).long()


def test_a_cutmix_negative_replaces_one_rectangle(cutmix):
    images, negatives = cutmix
    replaced = (negatives != images).any(dim=1)
    for mask in replaced:
        rows, columns = mask.any(dim=1), mask.any(dim=0)
        assert torch.equal(mask, rows[:, None] & columns[None, :])
        for side in (rows, columns):
            positions = side.nonzero().flatten()
            assert len(positions) == 0 or positions[-1] - positions[0] + 1 == len(positions)
    assert 0.05 < replaced.float().mean() < 0.2  # the expected area is (1/3)^2


def test_a_cutmix_rectangle_is_from_the_previous_image_or_from_the_image_shifted(cutmix):
    images, negatives = cutmix
    from_other_image = []
    for i, (source, row, column) in enumerate(negatives):
        mask = (negatives[i] != images[i]).any(dim=0)
        if not mask.any():
            continue
        foreign = (source[mask] != i).float().mean()
        from_other_image.append(foreign)
        if foreign:
            assert (source[mask] == (i - 1) % BATCH).all()
            assert torch.equal(row, images[i, 1])
            assert torch.equal(column, images[i, 2])
        else:  # one cyclic shift for the whole rectangle, by at most a quarter of the image
            (down,) = ((row - images[i, 1]) % HEIGHT)[mask].unique()
            (right,) = ((column - images[i, 2]) % WIDTH)[mask].unique()
            assert min(down, HEIGHT - down) <= HEIGHT / 4
            assert min(right, WIDTH - right) <= WIDTH / 4
    assert set(torch.stack(from_other_image).tolist()) == {0.0, 1.0}
    assert 0.3 < torch.stack(from_other_image).mean() < 0.7


@pytest.mark.parametrize("name", ["embedding", "dim", "heads", "text_depth", "image_depth", "grid"])
def test_an_impossible_size_is_refused(name):
    sizes = {"text_vocab": 9, "text_length": 5, "image_size": 16, "grid": 4, name: 0}
    with pytest.raises(UserError, match=rf"model\.network\.{name}=0 is not possible"):
        DualEncoder(**sizes)
