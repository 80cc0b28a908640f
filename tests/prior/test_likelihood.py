"""The joint model's other readings: likelihoods by brute force, captions carried on."""

from itertools import product

import torch

from tilewright.prior import Sampling, Stream, Transformer, complete, log_likelihood

STREAM = Stream(text_length=2, text_vocab=2, grid=2, image_vocab=2)


def tiny(stream=STREAM):
    torch.manual_seed(0)
    network = Transformer(stream, dim=16, depth=2, heads=2).eval()
    with torch.no_grad():  # as at 0.02 every logit is nearly zero
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def every_picture():
    return torch.tensor(list(product(range(2), repeat=4))).view(16, 2, 2)


def test_the_pictures_of_a_caption_share_a_probability_of_one():
    images = every_picture()
    text = torch.tensor([[1, -1]]).expand(16, -1)
    of_text, of_image = log_likelihood(tiny(), text, images)
    torch.testing.assert_close(of_image.exp().sum(), torch.tensor(1.0))
    torch.testing.assert_close(of_text, of_text[:1].expand(16))  # it comes before the picture
    assert of_image.std() > 0.1


def test_captions_share_at_most_a_probability_of_one():
    captions = [
        [-1, -1],
        *([a, -1] for a in range(2)),
        *([a, b] for a in range(2) for b in range(2)),
    ]
    of_text, _ = log_likelihood(tiny(), torch.tensor(captions), torch.zeros(7, 2, 2).long())
    # The rest is the mass of padding tokens in others' places.
    assert 0.2 < of_text.exp().sum() <= 1


def test_completions_follow_the_models_own_probabilities():
    network, count = tiny(), 4000
    text = complete(network, torch.full((count, 2), -1), seed=3)
    captions, drawn = text.unique(dim=0, return_counts=True)
    expected = []
    for caption in captions:
        of_text, _ = log_likelihood(network, caption[None], torch.zeros(1, 2, 2).long())
        expected.append(of_text.exp())
    # A padding token of another place ends a caption too, so the short ones come a little oftener.
    whole = captions[:, 1] >= 0
    torch.testing.assert_close(drawn[whole] / count, torch.cat(expected)[whole], rtol=0, atol=0.03)


def test_completion_keeps_what_is_given_and_ends():
    stream = Stream(text_length=6, text_vocab=9, grid=2, image_vocab=2)
    text = torch.full((3, 6), -1)
    text[0, :2], text[1, :4], text[2] = torch.tensor([1, 2]), 3, 5
    before = text.clone()
    whole = complete(tiny(stream), text, seed=1)
    assert torch.equal(text, before)
    assert torch.equal(whole[text >= 0], text[text >= 0])
    assert whole.max() < 9
    for row in whole:  # nothing follows a caption's end
        ended = (row < 0).int().cumsum(dim=0) > 0
        assert (row[ended] == -1).all()
    assert torch.equal(complete(tiny(stream), text, seed=1), whole)
    likeliest = complete(tiny(stream), text, sampling=Sampling(temperature=0))
    assert torch.equal(likeliest, complete(tiny(stream), text, sampling=Sampling(top_k=1), seed=7))


def test_the_next_text_token_is_the_forwards():
    stream = Stream(text_length=6, text_vocab=9, grid=2, image_vocab=2)
    network, text = tiny(stream), torch.randint(9, (2, 6))
    expected, _ = network(text, torch.zeros(2, 2, 2).long())
    for position in range(6):
        actual = network.next_text(text[:, :position])
        torch.testing.assert_close(actual, expected[:, position], rtol=1e-5, atol=1e-5)
