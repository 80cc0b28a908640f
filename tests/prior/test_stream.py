"""The streams: layouts, padding tokens, and the loss over text and image."""

import pytest
import torch
from torch.nn import functional as F

from tilewright.errors import UserError
from tilewright.prior import CaptionStream, PlainStream, Stream

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
    padding = stream.pad(torch.full((1, 5), -1))
    assert padding.min() >= stream.text_vocab
    assert padding.max() < stream.start_token
    assert padding.unique().numel() == stream.text_length


def test_text_without_caption_has_no_token():
    empty = Stream(**SMALL).without_caption(TEXT)
    assert (empty.shape, empty.dtype) == ((3, 5), torch.int64)
    assert (empty < 0).all()
    assert (TEXT[0, 0], TEXT[1, 4]) == (4, 4)


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
        torch.full((2, 5), -1),
        torch.zeros(2, 3, 3, dtype=torch.long),
    )
    assert losses["text"] == 0
    assert losses["loss"].isfinite()


@pytest.mark.parametrize(
    ("stream", "name"),
    [
        *((kind, n) for kind in (Stream, PlainStream) for n in SMALL),
        *((CaptionStream, n) for n in ("text_length", "features", "grid", "image_vocab")),
    ],
)
def test_an_empty_part_of_the_stream_is_refused(stream, name):
    with pytest.raises(UserError, match=rf"model\.network\.stream\.{name}=0 is not possible"):
        stream(**{name: 0})


@pytest.mark.parametrize("stream", [Stream, PlainStream])
def test_unknown_padding_targets_are_refused(stream):
    with pytest.raises(UserError, match=r"padding_targets=frist is not possible: set one of first"):
        stream(**SMALL, padding_targets="frist")


@pytest.mark.parametrize("padding_token", [-1, 10])
def test_a_padding_token_outside_the_vocabulary_is_refused(padding_token):
    with pytest.raises(UserError, match=rf"padding_token={padding_token} is not possible"):
        PlainStream(**SMALL, padding_token=padding_token)


def test_a_plain_stream_begins_with_the_first_text_token():
    stream = PlainStream(**SMALL, padding_token=9)
    assert (stream.first_image_position, stream.length) == (5, 5 + 8)
    assert stream.text_inputs(TEXT[:, :3]).tolist() == [[4, 9, 9], [0, 1, 2], [9, 9, 9]]
    assert stream.unpad(torch.tensor([4, 9, 0])).tolist() == [4, -1, 0]


@pytest.mark.parametrize("padding_targets", TEXT_TARGETS)
def test_a_plain_stream_does_not_predict_the_first_text_token(padding_targets):
    torch.manual_seed(0)
    stream = PlainStream(**SMALL, padding_targets=padding_targets)
    logits, image_logits = torch.randn(3, 4, 10), torch.randn(3, 9, 7)
    image = torch.randint(7, (3, 3, 3))
    nats, _ = stream.token_nats(logits, image_logits, TEXT, image)
    assert nats[:, 0].tolist() == [0, 0, 0]
    expected = -logits.log_softmax(dim=-1).gather(2, stream.pad(TEXT)[:, 1:, None]).squeeze(2)
    torch.testing.assert_close(nats[:, 1:], expected)
    is_target = torch.tensor(TEXT_TARGETS[padding_targets])[:, 1:].bool()
    assert stream.text_targets(TEXT).tolist() == [[False, *row] for row in is_target.tolist()]
    losses = stream.loss(logits, image_logits, TEXT, image)
    torch.testing.assert_close(losses["text"], expected[is_target].mean())


def test_loss_of_caption_features_is_that_of_the_image():
    torch.manual_seed(0)
    stream = CaptionStream(text_length=5, features=2, grid=3, image_vocab=7)
    assert (stream.first_image_position, stream.length) == (5, 5 + 8)
    image_logits, image = torch.randn(3, 9, 7), torch.randint(7, (3, 3, 3))
    losses = stream.loss(torch.empty(3, 0, 0), image_logits, torch.rand(3, 5, 3), image)
    expected = F.cross_entropy(image_logits.flatten(0, 1), image.flatten())
    assert set(losses) == {"loss", "image"}
    torch.testing.assert_close(losses["loss"], expected)


def test_features_without_a_caption_keep_their_padding():
    stream = CaptionStream(text_length=3, features=2, grid=3, image_vocab=7)
    text = torch.tensor([[[0.0, 0, 0], [1, 0, 1], [2, -1, 1]], [[3.0, 1, 1], [4, 1, 1], [0, 2, 1]]])
    features, is_token, is_empty = stream.split(stream.without_caption(text))
    assert not features.any()
    assert is_token.tolist() == [[False, True, True], [True, True, True]]
    assert is_empty.tolist() == [True, True]
    assert stream.split(text)[2].tolist() == [False, False]
