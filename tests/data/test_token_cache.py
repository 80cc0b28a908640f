"""Token cache: rows are encoded once, interrupted encodings continue, files are complete."""

import multiprocessing
import os
import signal
from itertools import chain

import numpy as np
import pytest
import torch

from helpers.open_files import limited_open_files
from tilewright.data import image_tokenizer, shards, token_cache
from tilewright.data.image_tokenizer import weights_digest
from tilewright.data.images import CORRUPT, NOT_OPENED, REASONS
from tilewright.data.token_cache import TokenCache, encode_rows, unreadable_reason
from tilewright.errors import UserError


class Brightness:
    """Image tokenizer whose tokens are the brightness of the image in steps of 1/100."""

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
    """Reader of images; row i has brightness i / 100.

    Args:
        bad: reasons by row, for rows that cannot be read.
        fails_at: row at which the reader raises KeyboardInterrupt.
    """

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


def levels(tokens):
    return [int(row[0, 0]) for row in tokens]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_each_row_is_encoded_once(tmp_path):
    tokenizer, reader = Brightness(), Reader()
    folder = tmp_path / "a" / "b"
    tokens = encode_rows(100, reader, tokenizer, folder, batch_size=16)
    assert len(tokens) == 100
    assert tokens[99].shape == (2, 2)
    assert tokens[99].dtype == np.uint16
    assert levels(tokens) == list(range(100))
    assert reader.rows == list(range(100))
    assert names(folder) == ["00000.npy", "00001.npy", "00002.npy"]
    again = encode_rows(100, Reader(fails_at=0), tokenizer, folder, batch_size=16)
    assert levels(again) == list(range(100))
    assert tokenizer.encoded == 100


def test_images_are_encoded_in_batches_that_fit_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(image_tokenizer, "BATCH_PIXELS", 3 * 4**2)
    tokenizer, sizes = Brightness(), []
    encode = tokenizer.encode
    monkeypatch.setattr(
        tokenizer, "encode", lambda images: sizes.append(len(images)) or encode(images)
    )
    assert levels(encode_rows(8, Reader(), tokenizer, tmp_path)) == list(range(8))
    assert sizes == [3, 3, 2]


def test_tokens_are_read_only(tmp_path):
    tokens = encode_rows(3, Reader(), Brightness(), tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0][0] = 1


def test_unreadable_rows_store_the_reason(tmp_path):
    bad = {1: REASONS[2], 2: REASONS[0], 3: REASONS[2]}
    tokens = encode_rows(5, Reader(bad), Brightness(), tmp_path, batch_size=2)
    assert [unreadable_reason(row) for row in tokens] == [
        None,
        REASONS[2],
        REASONS[0],
        REASONS[2],
        None,
    ]
    assert levels(tokens)[::4] == [0, 4]
    assert tokens.unreadable() == {REASONS[2]: [1, 3], REASONS[0]: [2]}


def test_images_that_cannot_be_opened_are_tried_once_more(tmp_path, caplog):
    def encode(bad=(), **settings):
        reader = Reader(bad)
        return reader, encode_rows(60, reader, Brightness(), tmp_path, batch_size=8, **settings)

    unopened = dict.fromkeys((1, 20, 50), NOT_OPENED)
    _, tokens = encode({**unopened, 2: CORRUPT}, retry=True)
    assert tokens.unreadable() == {NOT_OPENED: [1, 20, 50], CORRUPT: [2]}
    reader, _ = encode()
    assert not reader.rows
    reader, tokens = encode({20: NOT_OPENED}, retry=True)
    assert reader.rows == [1, 20, 50]
    assert tokens.unreadable() == {NOT_OPENED: [20], CORRUPT: [2]}
    assert [levels(tokens)[row] for row in (0, 1, 50)] == [0, 1, 50]
    assert "1 images still cannot be opened" in caplog.text
    reader, _ = encode(retry=True)
    assert not reader.rows
    (tmp_path / "00000.npy").unlink()
    shards.map_shard.cache_clear()
    _, tokens = encode(retry=True)
    assert not tokens.unreadable()
    assert names(tmp_path) == ["00000.npy", "00001.npy"]


LARGEST_FOR_16_BITS = 2**16 - len(REASONS)


@pytest.mark.parametrize("num_tokens", [LARGEST_FOR_16_BITS, LARGEST_FOR_16_BITS + 1, 200_000])
def test_the_largest_token_of_any_codebook_differs_from_unreadable_rows(num_tokens, tmp_path):
    class LastToken(Brightness):
        def encode(self, images):
            return torch.full((len(images), 2, 2), self.num_tokens - 1)

    tokenizer = LastToken()
    tokenizer.num_tokens = num_tokens
    bad = dict(enumerate(REASONS))
    with pytest.raises(KeyboardInterrupt):  # the saved part has the same dtype
        encode_rows(20, Reader(bad, fails_at=10), tokenizer, tmp_path, batch_size=1)
    rest = Reader()
    tokens = encode_rows(20, rest, tokenizer, tmp_path, batch_size=1)
    assert rest.rows == list(range(10, 20))
    assert tokens[0].dtype == (np.uint16 if num_tokens == LARGEST_FOR_16_BITS else np.int32)
    reasons = [unreadable_reason(row) for row in tokens]
    assert reasons == [*REASONS, *[None] * (20 - len(REASONS))]
    assert levels(tokens)[len(REASONS) :] == [num_tokens - 1] * (20 - len(REASONS))
    assert sorted(tokens.unreadable()) == sorted(REASONS)
    assert all(len(rows) == 1 for rows in tokens.unreadable().values())


def test_interrupted_encoding_continues_at_the_same_row(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        encode_rows(110, Reader(fails_at=57), Brightness(), tmp_path, batch_size=1)
    rest = Reader()
    tokens = encode_rows(110, rest, Brightness(), tmp_path, batch_size=1)
    assert levels(tokens) == list(range(110))
    assert rest.rows == list(range(57, 110))


def encode_and_kill(folder, after):
    """Encodes until row `after` is read, then kills its own process."""

    def read(rows):
        if after in rows:
            os.kill(os.getpid(), signal.SIGKILL)
        return Reader()(rows)

    torch.set_num_threads(1)
    token_cache.SAVE_EVERY = 0.0
    encode_rows(110, read, Brightness(), folder, batch_size=1)


def test_killed_encoding_continues_where_it_was_saved(tmp_path):
    for after in (13, 14, 57, 109):
        process = multiprocessing.get_context("fork").Process(
            target=encode_and_kill, args=(tmp_path, after)
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    rest = Reader()
    tokens = encode_rows(110, rest, Brightness(), tmp_path, batch_size=1)
    assert rest.rows == [109]
    assert levels(tokens) == list(range(110))
    assert names(tmp_path) == ["00000.npy", "00001.npy", "00002.npy"]


def encode_and_note_rows(folder, notes, barrier):
    def read(rows):
        if not notes.exists():
            barrier.wait()  # until each process has a shard
        with notes.open("a") as file:
            file.write("".join(f"{row}\n" for row in rows))
        return Reader()(rows)

    torch.set_num_threads(1)
    encode_rows(200, read, Brightness(), folder, batch_size=5)


def test_processes_share_the_shards(tmp_path):
    notes = [tmp_path / name for name in ("a", "b", "c")]
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(len(notes), timeout=120)
    processes = [
        context.Process(
            target=encode_and_note_rows, args=(tmp_path / "image_tokens", note, barrier)
        )
        for note in notes
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    read = [[int(row) for row in note.read_text().split()] for note in notes]
    assert sorted(chain(*read)) == list(range(200))  # no row twice
    assert all(read)
    assert levels(
        encode_rows(200, Reader(fails_at=0), Brightness(), tmp_path / "image_tokens")
    ) == list(range(200))


def test_corrupt_partial_files_are_ignored(tmp_path):
    encode_rows(50, Reader(), Brightness(), tmp_path)
    complete = (tmp_path / "00001.npy").read_bytes()
    (tmp_path / "00001.npy").unlink()
    for content in (b"", complete[:100], complete[:-3]):
        (tmp_path / ".00001.npy.partial").write_bytes(content)
        reader = Reader()
        tokens = encode_rows(50, reader, Brightness(), tmp_path)
        assert reader.rows == list(range(40, 50))
        assert levels(tokens) == list(range(50))
        (tmp_path / "00001.npy").unlink()


@pytest.mark.parametrize("length", [0, 40, 200])
def test_a_truncated_shard_is_an_error(tmp_path, length):
    encode_rows(50, Reader(), Brightness(), tmp_path)
    file = tmp_path / "00000.npy"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(UserError, match=r"00000\.npy cannot be read: delete it"):
        encode_rows(50, Reader(), Brightness(), tmp_path)[3]


def test_a_cache_may_have_more_shards_than_a_process_may_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "SHARD", 1)
    count = shards.OPEN_SHARDS + 50
    for shard in range(count):
        np.save(shards.shard_file(tmp_path, shard), np.full((1, 2, 2), shard, np.uint16))
    with limited_open_files(shards.OPEN_SHARDS + 20):
        assert levels(TokenCache(tmp_path, count)) == list(range(count))


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"image tokens cannot be written to .*: free space"):
        encode_rows(5, Reader(), Brightness(), tmp_path / "file" / "image_tokens")


def test_digest_depends_on_the_weights():
    torch.manual_seed(0)
    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    assert weights_digest(first) != weights_digest(second)
    second.load_state_dict(first.state_dict())
    assert weights_digest(first) == weights_digest(second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8, torch.bool])
def test_digest_of_any_dtype_and_shape(dtype):
    ones, zeros = torch.ones(2, 3, dtype=dtype), torch.zeros(2, 3, dtype=dtype)
    assert weights_digest({"a": ones.T}) == weights_digest({"a": torch.ones(3, 2, dtype=dtype)})
    assert weights_digest({"a": ones}) != weights_digest({"a": zeros})
    assert weights_digest({"a": ones[0, 0]}) != weights_digest({"a": zeros[0, 0]})
