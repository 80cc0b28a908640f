"""Log-likelihoods against enumeration of all images, and completion of captions."""

from itertools import product

import pytest
import torch

from tilewright.errors import UserError
from tilewright.prior import (
    CaptionStream,
    PlainStream,
    Sampling,
    Stream,
    Transformer,
    complete,
    log_likelihood,
)

STREAM = Stream(text_length=2, text_vocab=2, grid=2, image_vocab=2)


def make_network(stream=STREAM):
    torch.manual_seed(0)
    network = Transformer(stream, dim=16, depth=2, heads=2).eval()
    with torch.no_grad():  # larger weights, so that probabilities are not uniform
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def all_images():
    return torch.tensor(list(product(range(2), repeat=4))).view(16, 2, 2)


def test_probabilities_of_all_images_of_a_caption_sum_to_one():
    images = all_images()
    text = torch.tensor([[1, -1]]).expand(16, -1)
    log_text, log_image = log_likelihood(make_network(), text, images)
    torch.testing.assert_close(log_image.exp().sum(), torch.tensor(1.0))
    torch.testing.assert_close(log_text, log_text[:1].expand(16))  # independent of the image
    assert log_image.std() > 0.1


def test_probabilities_of_all_captions_sum_to_at_most_one():
    captions = [
        [-1, -1],
        *([a, -1] for a in range(2)),
        *([a, b] for a in range(2) for b in range(2)),
    ]
    log_text, _ = log_likelihood(
        make_network(), torch.tensor(captions), torch.zeros(7, 2, 2).long()
    )
    # The rest belongs to padding tokens at positions that are not theirs.
    assert 0.2 < log_text.exp().sum() <= 1


def test_completions_follow_the_model_probabilities():
    network, count = make_network(), 4000
    text = complete(network, torch.full((count, 2), -1), seed=3)
    captions, counts = text.unique(dim=0, return_counts=True)
    expected = []
    for caption in captions:
        log_text, _ = log_likelihood(network, caption[None], torch.zeros(1, 2, 2).long())
        expected.append(log_text.exp())
    # Only full captions: a padding token of another position ends a caption too, so that short
    # captions are slightly more frequent.
    is_full = captions[:, 1] >= 0
    actual = counts[is_full] / count
    torch.testing.assert_close(actual, torch.cat(expected)[is_full], rtol=0, atol=0.03)


def test_completion_keeps_the_prompt_and_ends():
    stream = Stream(text_length=6, text_vocab=9, grid=2, image_vocab=2)
    network = make_network(stream)
    text = torch.full((3, 6), -1)
    text[0, :2], text[1, :4], text[2] = torch.tensor([1, 2]), 3, 5
    before = text.clone()
    completed = complete(network, text, seed=1)
    assert torch.equal(text, before)
    assert torch.equal(completed[text >= 0], text[text >= 0])
    assert completed.max() < 9
    for caption in completed:  # no token follows a caption's end
        ended = (caption < 0).int().cumsum(dim=0) > 0
        assert (caption[ended] == -1).all()
    assert torch.equal(complete(network, text, seed=1), completed)
    greedy = complete(network, text, sampling=Sampling(temperature=0))
    assert torch.equal(greedy, complete(network, text, sampling=Sampling(top_k=1), seed=7))


def test_next_text_equals_the_logits_of_the_whole_stream():
    stream = Stream(text_length=6, text_vocab=9, grid=2, image_vocab=2)
    network, text = make_network(stream), torch.randint(9, (2, 6))
    expected, _ = network(text, torch.zeros(2, 2, 2).long())
    for position in range(6):
        actual = network.next_text(text[:, :position])
        torch.testing.assert_close(actual, expected[:, position], rtol=1e-5, atol=1e-5)


def test_a_plain_stream_completes_captions_that_have_a_word():
    network = make_network(PlainStream(6, text_vocab=9, grid=2, image_vocab=2, padding_token=7))
    text = torch.full((40, 6), -1)
    text[:, 0] = torch.arange(40) % 7
    completed = complete(network, text, seed=1)
    assert torch.equal(completed[:, 0], text[:, 0])
    assert (completed != 7).all()
    lengths = (completed >= 0).sum(dim=1)
    assert lengths.min() < 6
    assert len(lengths.unique()) > 2
    log_text, _ = log_likelihood(network, completed, torch.zeros(40, 2, 2).long())
    assert (log_text < 0).all()
    text[3] = -1
    with pytest.raises(UserError, match="no start token and cannot complete an empty caption"):
        complete(network, text)


def test_caption_features_have_no_likelihood_and_no_completion():
    network = make_network(CaptionStream(text_length=2, features=3, grid=2, image_vocab=2))
    text, images = torch.rand(1, 2, 4), all_images()
    log_text, log_image = log_likelihood(network, text.expand(16, -1, -1), images)
    assert log_text.isnan().all()
    torch.testing.assert_close(log_image.exp().sum(), torch.tensor(1.0))
    with pytest.raises(UserError, match="cannot complete captions"):
        complete(network, text)
