"""The stream's layout, its padding tokens, and the loss over its two halves."""

import pytest
import torch
from torch.nn import functional as F

from tilewright.prior import Stream

SMALL = {"text_length": 5, "text_vocab": 10, "grid": 3, "image_vocab": 7}
TEXT = torch.tensor([[4, 9, -1, -1, -1], [0, 1, 2, 3, 4], [-1, -1, -1, -1, -1]])


def test_the_papers_layout():
    stream = Stream()
    assert stream.image_length == 1024
    assert stream.length == 256 + 1024
    assert stream.first_image_position == 257
    assert stream.text_classes == 16384 + 256
    assert stream.start_token == stream.text_classes
    assert stream.text_embeddings == stream.start_token + 1


def test_each_position_has_a_padding_token_of_its_own():
    padded = Stream(**SMALL).pad(TEXT)
    assert padded.tolist() == [[4, 9, 12, 13, 14], [0, 1, 2, 3, 4], [10, 11, 12, 13, 14]]


def test_padding_tokens_are_neither_bpe_tokens_nor_the_start():
    stream = Stream(**SMALL)
    padding = stream.pad(stream.empty_captions(1))
    assert padding.min() >= stream.text_vocab
    assert padding.max() < stream.start_token
    assert padding.unique().numel() == stream.text_length


def test_empty_captions_are_integers_without_a_token():
    empty = Stream(**SMALL).empty_captions(2)
    assert (empty.shape, empty.dtype) == ((2, 5), torch.int64)
    assert (empty < 0).all()


COUNTED = {
    "first": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]],
    "all": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
    "none": [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]],
}


@pytest.mark.parametrize("targets", COUNTED)
def test_the_loss_is_an_eighth_of_text_and_seven_of_image(targets):
    torch.manual_seed(0)
    stream = Stream(**SMALL, padding_targets=targets)
    text_logits, image_logits = torch.randn(3, 5, 15), torch.randn(3, 9, 7)
    image = torch.randint(7, (3, 3, 3))
    text_nats = [
        -F.log_softmax(text_logits[row, position], 0)[stream.pad(TEXT)[row, position]]
        for row in range(3)
        for position in range(5)
        if COUNTED[targets][row][position]
    ]
    image_nats = [
        -F.log_softmax(image_logits[row, 3 * y + x], 0)[image[row, y, x]]
        for row in range(3)
        for y in range(3)
        for x in range(3)
    ]
    text, picture = torch.stack(text_nats).mean(), torch.stack(image_nats).mean()
    terms = stream.loss(text_logits, image_logits, TEXT, image)
    torch.testing.assert_close(terms["text"], text)
    torch.testing.assert_close(terms["image"], picture)
    torch.testing.assert_close(terms["loss"], text / 8 + 7 * picture / 8)


def test_a_batch_of_empty_captions_without_padding_targets_has_a_finite_loss():
    stream = Stream(**SMALL, padding_targets="none")
    terms = stream.loss(
        torch.randn(2, 5, 15),
        torch.randn(2, 9, 7),
        stream.empty_captions(2),
        torch.zeros(2, 3, 3, dtype=torch.long),
    )
    assert terms["text"] == 0
    assert terms["loss"].isfinite()
