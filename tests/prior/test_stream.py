"""The stream: layout, padding tokens, and the loss over text and image."""

import pytest
import torch
from torch.nn import functional as F

from tilewright.errors import UserError
from tilewright.prior import Stream

SMALL = {"text_length": 5, "text_vocab": 10, "grid": 3, "image_vocab": 7}
TEXT = torch.tensor([[4, 9, -1, -1, -1], [0, 1, 2, 3, 4], [-1, -1, -1, -1, -1]])


def test_default_layout_is_the_one_of_the_paper():
    stream = Stream()
    assert stream.image_length == 1024
    assert stream.length == 256 + 1024
    assert stream.first_image_position == 257
    assert stream.text_classes == 16384 + 256
    assert stream.start_token == stream.text_classes
    assert stream.text_embeddings == stream.start_token + 1


def test_each_position_has_its_own_padding_token():
    padded = Stream(**SMALL).pad(TEXT)
    assert padded.tolist() == [[4, 9, 12, 13, 14], [0, 1, 2, 3, 4], [10, 11, 12, 13, 14]]


def test_padding_tokens_differ_from_bpe_tokens_and_the_start_token():
    stream = Stream(**SMALL)
    padding = stream.pad(stream.empty_captions(1))
    assert padding.min() >= stream.text_vocab
    assert padding.max() < stream.start_token
    assert padding.unique().numel() == stream.text_length


def test_empty_captions_have_no_token():
    empty = Stream(**SMALL).empty_captions(2)
    assert (empty.shape, empty.dtype) == ((2, 5), torch.int64)
    assert (empty < 0).all()


TEXT_TARGETS = {
    "first": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]],
    "all": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
    "none": [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]],
}


@pytest.mark.parametrize("padding_targets", TEXT_TARGETS)
def test_loss_is_one_eighth_text_and_seven_eighths_image(padding_targets):
    torch.manual_seed(0)
    stream = Stream(**SMALL, padding_targets=padding_targets)
    text_logits, image_logits = torch.randn(3, 5, 15), torch.randn(3, 9, 7)
    image = torch.randint(7, (3, 3, 3))
    text_nats = [
        -F.log_softmax(text_logits[row, position], 0)[stream.pad(TEXT)[row, position]]
        for row in range(3)
        for position in range(5)
        if TEXT_TARGETS[padding_targets][row][position]
    ]
    image_nats = [
        -F.log_softmax(image_logits[row, 3 * y + x], 0)[image[row, y, x]]
        for row in range(3)
        for y in range(3)
        for x in range(3)
    ]
    text_mean, image_mean = torch.stack(text_nats).mean(), torch.stack(image_nats).mean()
    losses = stream.loss(text_logits, image_logits, TEXT, image)
    torch.testing.assert_close(losses["text"], text_mean)
    torch.testing.assert_close(losses["image"], image_mean)
    torch.testing.assert_close(losses["loss"], text_mean / 8 + 7 * image_mean / 8)


def test_loss_of_empty_captions_without_padding_targets_is_finite():
    stream = Stream(**SMALL, padding_targets="none")
    losses = stream.loss(
        torch.randn(2, 5, 15),
        torch.randn(2, 9, 7),
        stream.empty_captions(2),
        torch.zeros(2, 3, 3, dtype=torch.long),
    )
    assert losses["text"] == 0
    assert losses["loss"].isfinite()


@pytest.mark.parametrize("name", ["text_length", "text_vocab", "grid", "image_vocab"])
def test_an_empty_part_of_the_stream_is_refused(name):
    with pytest.raises(UserError, match=rf"model\.network\.stream\.{name}=0 is not possible"):
        Stream(**{name: 0})
