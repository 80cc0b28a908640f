"""Image tokens on disk: encoded once, resumed, never torn."""

import multiprocessing
import os
import signal
from itertools import chain

import numpy as np
import pytest
import torch

from tilewright.data import token_cache
from tilewright.data.images import KINDS
from tilewright.data.token_cache import encode_rows, kind_of, weights_digest
from tilewright.errors import UserError


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
        self.bad, self.fails_at = dict(bad), fails_at
        self.rows = []

    def __call__(self, rows):
        if self.fails_at is not None and self.fails_at in rows:
            raise KeyboardInterrupt
        self.rows += rows
        return [self.bad.get(i, torch.full((3, 4, 4), i / 100)) for i in rows]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(token_cache, "SHARD", 40)


def level(tokens):
    return [int(row[0, 0]) for row in tokens]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_encodes_every_row_once(tmp_path):
    tokenizer, reader = Brightness(), Reader()
    folder = tmp_path / "a" / "b"
    tokens = encode_rows(100, reader, tokenizer, folder, batch_size=16)
    assert len(tokens) == 100
    assert tokens[99].shape == (2, 2)
    assert tokens[99].dtype == np.uint16
    assert level(tokens) == list(range(100))
    assert reader.rows == list(range(100))
    assert names(folder) == ["00000.npy", "00001.npy", "00002.npy"]
    again = encode_rows(100, Reader(fails_at=0), tokenizer, folder, batch_size=16)
    assert level(again) == list(range(100))
    assert tokenizer.encoded == 100


def test_tokens_cannot_be_written(tmp_path):
    tokens = encode_rows(3, Reader(), Brightness(), tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0][0] = 1


def test_a_row_that_cannot_be_used_tells_why(tmp_path):
    bad = {1: KINDS[2], 2: KINDS[0], 3: KINDS[2]}
    tokens = encode_rows(5, Reader(bad), Brightness(), tmp_path, batch_size=2)
    assert [kind_of(row) for row in tokens] == [None, KINDS[2], KINDS[0], KINDS[2], None]
    assert level(tokens)[::4] == [0, 4]
    assert tokens.wrong() == {KINDS[2]: 2, KINDS[0]: 1}


def test_interrupted_encoding_goes_on_where_it_was(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        encode_rows(110, Reader(fails_at=57), Brightness(), tmp_path, batch_size=1)
    rest = Reader()
    tokens = encode_rows(110, rest, Brightness(), tmp_path, batch_size=1)
    assert level(tokens) == list(range(110))
    assert rest.rows == list(range(57, 110))


def kill(folder, after):
    """A process that ends itself, as by SIGKILL, when it has been asked for row `after`."""

    def read(rows):
        if after in rows:
            os.kill(os.getpid(), signal.SIGKILL)
        return Reader()(rows)

    torch.set_num_threads(1)
    token_cache.SAVE_EVERY = 0.0
    encode_rows(110, read, Brightness(), folder, batch_size=1)


def test_killed_encoding_goes_on_where_it_was_saved(tmp_path):
    for after in (13, 14, 57, 109):
        process = multiprocessing.get_context("fork").Process(target=kill, args=(tmp_path, after))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    rest = Reader()
    tokens = encode_rows(110, rest, Brightness(), tmp_path, batch_size=1)
    assert rest.rows == [109]
    assert level(tokens) == list(range(110))
    assert names(tmp_path) == ["00000.npy", "00001.npy", "00002.npy"]


def encode_with_others(folder, notes, others):
    def read(rows):
        if not notes.exists():
            others.wait()  # nobody goes on before each has a shard
        with notes.open("a") as file:
            file.write("".join(f"{row}\n" for row in rows))
        return Reader()(rows)

    torch.set_num_threads(1)
    encode_rows(200, read, Brightness(), folder, batch_size=5)


def test_processes_share_the_shards(tmp_path):
    notes = [tmp_path / name for name in ("a", "b", "c")]
    context = multiprocessing.get_context("fork")
    others = context.Barrier(len(notes), timeout=120)
    everyone = [
        context.Process(target=encode_with_others, args=(tmp_path / "codes", note, others))
        for note in notes
    ]
    for one in everyone:
        one.start()
    for one in everyone:
        one.join()
        assert one.exitcode == 0
    read = [[int(row) for row in note.read_text().split()] for note in notes]
    assert sorted(chain(*read)) == list(range(200))  # nothing twice
    assert all(read)
    assert level(encode_rows(200, Reader(fails_at=0), Brightness(), tmp_path / "codes")) == list(
        range(200)
    )


def test_what_is_not_whole_is_never_taken_for_whole(tmp_path):
    encode_rows(50, Reader(), Brightness(), tmp_path)
    whole = (tmp_path / "00001.npy").read_bytes()
    (tmp_path / "00001.npy").unlink()
    for content in (b"", whole[:100], whole[:-3]):
        (tmp_path / ".00001.npy.part").write_bytes(content)
        reader = Reader()
        tokens = encode_rows(50, reader, Brightness(), tmp_path)
        assert reader.rows == list(range(40, 50))
        assert level(tokens) == list(range(50))
        (tmp_path / "00001.npy").unlink()


@pytest.mark.parametrize("cut", [0, 40, 200])
def test_a_shard_that_a_disk_has_cut_is_told_of(tmp_path, cut):
    encode_rows(50, Reader(), Brightness(), tmp_path)
    file = tmp_path / "00000.npy"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"00000\.npy cannot be read: remove it"):
        encode_rows(50, Reader(), Brightness(), tmp_path)[3]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"image tokens cannot be written to .*: mend that"):
        encode_rows(5, Reader(), Brightness(), tmp_path / "file" / "codes")


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
