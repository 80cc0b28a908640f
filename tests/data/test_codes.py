"""Image tokens on disk: encoded once, resumed, never torn."""

import contextlib
import json

import numpy as np
import pytest
import torch

from tilewright.data.codes import UNREADABLE, encode_rows, weights_digest


class Brightness:
    """Tells a picture's brightness, in steps of 1/100, as the token of all its tiles."""

    image_size, grid, num_tokens = 4, 2, 1000

    def __init__(self):
        self.encoded = 0

    def encode(self, images):
        self.encoded += len(images)
        level = (images.mean(dim=(1, 2, 3)) * 100).round().long()
        return level[:, None, None].expand(-1, 2, 2)

    def decode(self, tokens):
        raise NotImplementedError


class Reader:
    """Row i is of brightness i / 100; `bad` rows cannot be read; at row `fails_at` it breaks."""

    def __init__(self, bad=(), fails_at=None):
        self.bad, self.fails_at = bad, fails_at
        self.rows = []

    def __call__(self, rows):
        if self.fails_at is not None and self.fails_at in rows:
            raise KeyboardInterrupt
        self.rows += rows
        return [None if i in self.bad else torch.full((3, 4, 4), i / 100) for i in rows]


def level(tokens):
    return tokens[:, 0, 0].tolist()


def test_encodes_every_row_once(tmp_path):
    tokenizer, reader = Brightness(), Reader()
    tokens = encode_rows(10, reader, tokenizer, tmp_path / "a" / "b", batch_size=4)
    assert tokens.shape == (10, 2, 2)
    assert tokens.dtype == np.uint16
    assert level(tokens) == list(range(10))
    assert reader.rows == list(range(10))
    again = encode_rows(10, Reader(fails_at=0), tokenizer, tmp_path / "a" / "b", batch_size=4)
    assert np.array_equal(again, tokens)
    assert tokenizer.encoded == 10


def test_tokens_cannot_be_written(tmp_path):
    tokens = encode_rows(3, Reader(), Brightness(), tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


def test_unreadable_rows_are_marked(tmp_path):
    tokens = encode_rows(5, Reader(bad={1, 2, 3}), Brightness(), tmp_path, batch_size=2)
    assert level(tokens) == [0, UNREADABLE, UNREADABLE, UNREADABLE, 4]
    assert (tokens[1:4] == UNREADABLE).all()


def test_interrupted_encoding_goes_on(tmp_path):
    tokenizer = Brightness()
    with pytest.raises(KeyboardInterrupt):
        encode_rows(110, Reader(fails_at=57), tokenizer, tmp_path, batch_size=1)
    rest = Reader()
    tokens = encode_rows(110, rest, tokenizer, tmp_path, batch_size=1)
    assert level(tokens) == list(range(110))
    # Progress is written every 50 batches, so a few rows are read again, and no more than that.
    assert rest.rows == list(range(51, 110))


def test_every_interruption_makes_progress(tmp_path):
    read = []
    for fails_at in (60, 120, 180, None):
        reader = Reader(fails_at=fails_at)
        with contextlib.suppress(KeyboardInterrupt):
            tokens = encode_rows(200, reader, Brightness(), tmp_path, batch_size=1)
        read.append(reader.rows[0])
    assert read[0] == 0
    assert read == sorted(set(read))
    assert level(tokens) == list(range(200))


def test_last_batch_that_is_not_full_is_kept(tmp_path):
    encode_rows(7, Reader(), Brightness(), tmp_path, batch_size=3)
    assert json.loads((tmp_path / "progress.json").read_text()) == {"rows": 7}


def test_progress_is_replaced_whole(tmp_path, monkeypatch):
    """A process killed while it writes leaves the old progress, or none; never half a file."""
    with pytest.raises(KeyboardInterrupt):
        encode_rows(60, Reader(fails_at=55), Brightness(), tmp_path, batch_size=1)
    before = (tmp_path / "progress.json").read_text()

    def killed(self, text, *args, **kwargs):
        with self.open("w") as file:
            file.write(text[: len(text) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            encode_rows(60, Reader(), Brightness(), tmp_path, batch_size=1)
    assert (tmp_path / "progress.json").read_text() == before
    assert level(encode_rows(60, Reader(), Brightness(), tmp_path, batch_size=1)) == list(range(60))


@pytest.mark.parametrize("content", ["", '{"ro', '{"rows"', "[]", "null"])
def test_torn_progress_is_never_taken_for_whole(tmp_path, content):
    encode_rows(5, Reader(), Brightness(), tmp_path)
    (tmp_path / "progress.json").write_text(content)
    reader = Reader()
    tokens = encode_rows(5, reader, Brightness(), tmp_path)
    assert reader.rows == list(range(5))
    assert level(tokens) == list(range(5))


def test_codebook_must_fit_16_bits(tmp_path):
    tokenizer = Brightness()
    tokenizer.num_tokens = 70_000
    with pytest.raises(ValueError, match="16 bits"):
        encode_rows(1, Reader(), tokenizer, tmp_path)


def test_digest_follows_the_weights():
    torch.manual_seed(0)
    one, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    assert weights_digest(one) != weights_digest(other)
    other.load_state_dict(one.state_dict())
    assert weights_digest(one) == weights_digest(other)
