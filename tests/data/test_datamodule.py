"""Batches over a tiny source: their keys, captions, broken pictures, image tokens."""

import io
import logging
from dataclasses import dataclass
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image, IterableDatasetDict, List, Value
from PIL import Image as PILImage

from tilewright.data import BytePairTokenizer, CaptionedImages
from tilewright.data.folder import FolderSource
from tilewright.data.sources import ParquetSource
from tilewright.data.transforms import CenterCrop
from tilewright.errors import UserError

SIZE = 16
FEATURES = Features({"image": Image(), "caption": List(Value("string"))})


def png(level):
    file = io.BytesIO()
    PILImage.new("RGB", (SIZE, SIZE), (level, level, level)).save(file, "PNG")
    return file.getvalue()


class TinySource:
    """Grey pictures of level 10 i, captioned "grey i" and "gray i"; `broken` ones are no PNG."""

    def __init__(self, rows=8, broken=(), stream=False):
        self.rows, self.broken, self.stream = rows, broken, stream

    def load(self):
        images = [
            {"bytes": b"no picture" if i in self.broken else png(10 * i), "path": None}
            for i in range(self.rows)
        ]
        captions = [[f"grey {i}", f"gray {i}"] for i in range(self.rows)]
        rows = Dataset.from_dict({"image": images, "caption": captions}, features=FEATURES)
        if self.stream:
            rows = rows.cast_column("image", Image(decode=False)).to_iterable_dataset()
            return IterableDatasetDict({"train": rows, "validation": rows})
        return DatasetDict({"train": rows, "validation": rows})


class Levels(torch.nn.Module):
    """An image tokenizer: a picture's level, 0 to 255, is the token of its 2 x 2 tiles."""

    image_size, grid, num_tokens = SIZE, 2, 256

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.encoded = 0

    def encode(self, images):
        self.encoded += len(images)
        level = (images[:, 0, 0, 0] * 255).round().long()
        return level[:, None, None].expand(-1, 2, 2)

    def decode(self, tokens):
        raise NotImplementedError


@pytest.fixture
def make(tmp_path):
    def make(source=None, **arguments):
        return CaptionedImages(
            source or TinySource(),
            **{
                "image_size": SIZE,
                "batch_size": 4,
                "train_transform": CenterCrop(SIZE),
                "eval_transform": CenterCrop(SIZE),
                "cache": tmp_path / "codes",
                **arguments,
            },
        )

    return make


@pytest.fixture
def tokenizer():
    made = BytePairTokenizer(vocab_size=300, length=12, dropout=0.5)
    made.train(["grey 1", "gray 2"] * 10)
    return made


def batches(data, loader, count=None):
    """Batches as a training step sees them; those of training have no end."""
    return [data.on_after_batch_transfer(batch, 0) for batch in islice(loader, count)]


def numbers(batch):
    return [int(caption.split()[1]) for caption in batch["caption"]]


def flat(lists):
    return [item for items in lists for item in items]


def test_dvae_batches(make):
    data = make()
    found = batches(data, data.train_dataloader(), 2)
    for batch in found:
        assert set(batch) == {"image", "caption"}
        assert batch["image"].shape == (4, 3, SIZE, SIZE)
        assert batch["image"].dtype == torch.float32
        levels = (batch["image"][:, 0, 0, 0] * 255).round() / 10
        assert levels.tolist() == numbers(batch)  # each picture with its own caption
    assert sorted(flat(map(numbers, found))) == list(range(8))


def test_prior_batches(make, tokenizer):
    data = make(tokenizer=tokenizer, image_tokenizer=Levels())
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for batch in batches(data, loader, 2):
            assert set(batch) == {"caption", "text_tokens", "image_tokens"}
            assert batch["text_tokens"].shape == (4, 12)
            assert batch["image_tokens"].shape == (4, 2, 2)
            assert batch["image_tokens"].dtype == torch.long
            assert (batch["image_tokens"][:, 0, 0] // 10).tolist() == numbers(batch)
            assert tokenizer.decode(batch["text_tokens"]) == batch["caption"]


def test_captions_are_random_in_training_and_first_in_validation(make):
    data = make()
    trained = [c for batch in batches(data, data.train_dataloader(), 8) for c in batch["caption"]]
    assert {caption.split()[0] for caption in trained} == {"grey", "gray"}
    validated = [c for b in data.val_dataloader() for c in b["caption"]]
    assert validated == [f"grey {i}" for i in range(8)]


def test_every_epoch_of_training_has_every_row_in_a_new_order(make):
    data = make(TinySource(rows=10))
    trained = flat(map(numbers, batches(data, data.train_dataloader(), 5)))
    assert len(trained) == 20
    first, second = trained[:10], trained[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second != list(range(10)) != first
    assert [len(numbers(batch)) for batch in data.val_dataloader()] == [4, 4, 2]


def test_fewer_rows_than_a_batch_fill_one(make):
    data = make(TinySource(rows=3))
    (batch,) = batches(data, data.train_dataloader(), 1)
    assert sorted(numbers(batch)[:3]) == [0, 1, 2]
    assert len(numbers(batch)) == 4


@dataclass(frozen=True)  # its name is one in every process
class Noise:
    """A transform that draws at random, as an augmentation does."""

    def __call__(self, image):
        level = int(torch.randint(256, ()))
        return PILImage.new("RGB", image.size, (level, level, level))


@pytest.mark.parametrize("workers", [0, 2])
def test_training_repeats_itself_whatever_was_drawn_before(make, tokenizer, workers):
    def train(seed, workers=0):
        data = make(train_transform=Noise(), tokenizer=tokenizer, seed=seed, num_workers=workers)
        torch.rand(workers + 1)  # the state of the global generator is of no account
        return batches(data, data.train_dataloader(), 4)

    first, again, other = train(1), train(1, workers), train(2)
    for key in ("image", "text_tokens"):
        values, same, others = ([batch[key] for batch in one] for one in (first, again, other))
        assert all(map(torch.equal, values, same))
        assert not all(map(torch.equal, values, others))
    assert [batch["caption"] for batch in first] == [batch["caption"] for batch in again]


def test_reading_leaves_the_global_generator_alone(make):
    data = make(train_transform=Noise())
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    batches(data, data.train_dataloader(), 2)
    assert torch.equal(torch.rand(3), expected)


class Trainer:
    """What the data asks of a trainer: which process this is, and how far the training is."""

    def __init__(self, rank=0, world_size=1, batches=0):
        self.global_rank, self.world_size = rank, world_size
        self.fit_loop = SimpleNamespace(total_batch_idx=batches - 1)
        self.strategy = SimpleNamespace(root_device=torch.device("cpu"))


def seen(make, loader, count=None, rows=11, **trainer):
    data = make(TinySource(rows=rows))
    data.trainer = Trainer(**trainer)
    return [numbers(batch) for batch in islice(getattr(data, loader)(), count)]


def test_processes_share_the_batches_of_one(make):
    alone = seen(make, "train_dataloader", 6)
    parts = [seen(make, "train_dataloader", 6, rank=rank, world_size=2) for rank in (0, 1)]
    assert [first + second for first, second in zip(*parts, strict=True)] == alone


@pytest.mark.parametrize("rows", [8, 9, 10, 11, 13])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_evaluate_each_row_once_in_equally_many_batches(make, rows, processes):
    ranks = range(processes)
    parts = [
        seen(make, "val_dataloader", rows=rows, rank=rank, world_size=processes) for rank in ranks
    ]
    assert len({len(part) for part in parts}) == 1
    assert all(batch for part in parts for batch in part)
    assert sorted(flat(flat(parts))) == list(range(rows))
    if processes == 2:  # the first batches are those of one process, so a limit means the same
        first = sorted(flat(part[0] for part in parts))
        assert first == [0, 1, 2, 3]


def test_training_goes_on_with_the_next_batch(make):
    assert seen(make, "train_dataloader", 3, batches=4) == seen(make, "train_dataloader", 7)[4:]


def test_dropout_in_training_only(make, tokenizer):
    data = make(TinySource(rows=1), tokenizer=tokenizer)

    def spellings(split, training):
        rows = data.rows(split, training)
        return {tuple(rows[0]["text_tokens"].tolist()) for _ in range(20)}

    assert len(spellings("train", True)) > 2  # of two captions
    assert len(spellings("validation", False)) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tokens", [False, True])
def test_broken_picture_is_skipped_counted_and_warned_of_once(make, caplog, stream, tokens):
    data = make(
        TinySource(broken={2, 5}, stream=stream), image_tokenizer=Levels() if tokens else None
    )
    with caplog.at_level(logging.WARNING):
        found = batches(data, data.val_dataloader())
    assert flat(map(numbers, found)) == [0, 1, 3, 4, 6, 7]
    assert all("skipped" not in batch for batch in found)
    assert data.skips.total == 2
    assert len([r for r in caplog.records if "skipped" in r.getMessage()]) == 1
    caplog.clear()
    data.teardown("fit")
    assert "2 of 8 rows were skipped: 2 × not a picture" in caplog.text


def test_batch_of_broken_pictures_takes_the_next_good_one(make):
    data = make(TinySource(broken={0, 1, 2, 3}))
    first, second = batches(data, data.val_dataloader())
    assert numbers(first) == [4]
    assert numbers(second) == [4, 5, 6, 7]
    assert data.skips.total == 4


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tokens", [False, True])
def test_all_broken_is_an_error(make, stream, tokens):
    data = make(
        TinySource(rows=4, broken=range(4), stream=stream),
        image_tokenizer=Levels() if tokens else None,
    )
    with pytest.raises(UserError, match=r"none of the data's rows can be used: .* not a picture"):
        batches(data, data.val_dataloader())
    with pytest.raises(UserError, match="no picture of the split train"):
        data.examples("train", 3)


def test_image_size_of_another_dvae_is_an_error(make):
    with pytest.raises(UserError, match=r"data.image_size=16") as caught:
        make(image_size=32, image_tokenizer=Levels())
    assert "\n" not in str(caught.value)


def test_tokens_are_encoded_once(make):
    tokenizer = Levels()
    data = make(image_tokenizer=tokenizer)
    for _ in range(2):
        batches(data, data.train_dataloader(), 2)
    assert tokenizer.encoded == 8
    again = Levels()  # the same weights in another process
    batches(data, make(image_tokenizer=again).train_dataloader(), 2)
    assert again.encoded == 0
    other = Levels()
    other.weight.data += 1
    batches(data, make(image_tokenizer=other).train_dataloader(), 2)
    assert other.encoded == 8


@pytest.mark.parametrize("form", ["folder", "parquet"])
def test_a_picture_that_is_exchanged_is_encoded_again(make, form, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    files = [tmp_path / "pictures" / f"{level}.png" for level in range(8)]
    files[0].parent.mkdir()
    for level, file in enumerate(files):
        PILImage.new("L", (SIZE, SIZE), level).save(file)
        file.with_suffix(".txt").write_text(f"grey {level}")
    source = FolderSource(str(files[0].parent), validation_fraction=0.3)
    if form == "parquet":
        rows = {"image": [file.name for file in files], "caption": ["grey"] * len(files)}
        Dataset.from_dict(rows).to_parquet(files[0].parent / "a.parquet")
        source = ParquetSource(str(files[0].parent), validation_fraction=0.3)

    def tokens():
        data = make(source, image_tokenizer=Levels())
        splits = [data.encode(split, quiet=True)[0] for split in ("train", "validation")]
        return sorted(int(row[0, 0]) for codes in splits for row in codes)

    assert tokens() == list(range(8))
    made = len(list((tmp_path / "codes").iterdir()))
    assert tokens() == list(range(8))
    assert len(list((tmp_path / "codes").iterdir())) == made  # they were there
    PILImage.new("L", (SIZE, SIZE), 200).save(files[3])
    assert tokens() == [0, 1, 2, 4, 5, 6, 7, 200]


def test_augmented_tokens_are_encoded_at_every_step(make):
    tokenizer = Levels()
    data = make(image_tokenizer=tokenizer, augmented_tokens=True)
    for _ in range(2):
        for batch in batches(data, data.train_dataloader(), 2):
            assert set(batch) == {"caption", "image_tokens"}
            assert (batch["image_tokens"][:, 0, 0] // 10).tolist() == numbers(batch)
    assert tokenizer.encoded == 16
    batches(data, data.val_dataloader())
    batches(data, data.val_dataloader())
    assert tokenizer.encoded == 24  # validation's come from disk


def test_stream(make, tokenizer):
    data = make(TinySource(stream=True), tokenizer=tokenizer, image_tokenizer=Levels())
    for loader in (data.train_dataloader(), data.val_dataloader()):
        found = batches(data, loader, 2)
        assert sorted(flat(map(numbers, found))) == list(range(8))
        for batch in found:
            assert set(batch) == {"caption", "text_tokens", "image_tokens"}
            assert (batch["image_tokens"][:, 0, 0] // 10).tolist() == numbers(batch)


def test_unknown_split_is_an_error(make):
    with pytest.raises(UserError, match="no split zeroshot; it has train, validation"):
        make().dataloader("zeroshot")


def test_captions_are_all_of_them(make):
    assert list(make(TinySource(rows=2)).captions()) == ["grey 0", "gray 0", "grey 1", "gray 1"]


def test_examples_are_the_first_that_can_be_read(make):
    found = make(TinySource(broken={1})).examples("validation", 3)
    assert [caption for _, caption in found] == ["grey 0", "grey 2", "grey 3"]
    assert found[0][0].shape == (3, SIZE, SIZE)


def test_workers_read_the_same(make):
    data = make(TinySource(broken={2}), num_workers=2)
    assert flat(map(numbers, batches(data, data.val_dataloader()))) == [0, 1, 3, 4, 5, 6, 7]
    assert data.skips.total == 1


class Speckles(Levels):
    """An image tokenizer that shows which crop it was given: the levels of its first pixels."""

    def encode(self, images):
        self.encoded += len(images)
        return (images[:, 0, :2, :2] * 255).round().long()


def test_views_are_encoded_once_and_taken_by_turns(make):
    def train(tokenizer, epochs=1, **settings):
        data = make(image_tokenizer=tokenizer, train_transform=Noise(), views=3, **settings)
        seen = [{} for _ in range(epochs)]
        loader = data.train_dataloader()
        for number, batch in enumerate(batches(data, loader, 2 * epochs)):
            for row, tokens in zip(numbers(batch), batch["image_tokens"], strict=True):
                seen[number // 2][row] = tuple(tokens.flatten().tolist())
        return seen

    tokenizer = Speckles()
    seen = train(tokenizer, epochs=6)
    assert tokenizer.encoded == 3 * 8
    for row in range(8):
        views = [epoch[row] for epoch in seen]
        assert views[:3] == views[3:]  # by turns
        assert len(set(views[:3])) == 3  # each crop is another
    again = Speckles()
    assert train(again, epochs=6) == seen
    assert again.encoded == 0
    assert train(Speckles(), epochs=6, seed=1) != seen


def test_views_are_of_training_only(make):
    tokenizer = Levels()
    data = make(image_tokenizer=tokenizer, train_transform=Noise(), views=2)
    for batch in batches(data, data.val_dataloader()):
        assert (batch["image_tokens"][:, 0, 0] // 10).tolist() == numbers(batch)
    assert tokenizer.encoded == 8


def test_overfitting_repeats_the_first_batches_to_the_bit(make, tokenizer):
    plain, data = make(tokenizer=tokenizer), make(tokenizer=tokenizer, overfit_batches=2)
    first = batches(plain, plain.train_dataloader(), 2)
    assert set(flat(map(numbers, first))) == set(range(8))
    for number, batch in enumerate(batches(data, data.train_dataloader(), 6)):
        assert batch["caption"] == first[number % 2]["caption"]  # of two, and not by turns
        for name in ("image", "text_tokens"):  # spelt at random, the same way each time
            torch.testing.assert_close(batch[name], first[number % 2][name], rtol=0, atol=0)


def test_overfitting_validates_on_its_rows(make, tokenizer):
    data = make(TinySource(rows=30), tokenizer=tokenizer, overfit_batches=1)
    (trained,) = batches(data, data.train_dataloader(), 1)
    (validated,) = batches(data, data.val_dataloader())
    assert numbers(validated) == numbers(trained)
    assert [int(caption.split()[1]) for _, caption in data.examples("validation", 4)] == (
        numbers(trained)
    )


def test_what_cannot_be_overfitted(make):
    with pytest.raises(UserError, match=r"data\.source\.streaming=false"):
        make(TinySource(stream=True), overfit_batches=1).setup()
    with pytest.raises(UserError, match=r"data\.overfit_batches=-1"):
        make(overfit_batches=-1)
