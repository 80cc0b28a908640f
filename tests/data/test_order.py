"""Which rows a batch holds: in training, in validation, for several processes, after a stop."""

from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from helpers.gray import Noise, TinySource, batches, flat, numbers
from tilewright.errors import UserError


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


def test_overfitting_repeats_the_first_batches_to_the_bit(make, tokenizer):
    plain, data = make(tokenizer=tokenizer), make(tokenizer=tokenizer, overfit_batches=2)
    first = batches(plain, plain.train_dataloader(), 2)
    assert set(flat(map(numbers, first))) == set(range(8))
    for number, batch in enumerate(batches(data, data.train_dataloader(), 6)):
        assert batch["caption"] == first[number % 2]["caption"]  # of two, and not by turns
        for name in ("image", "text_tokens"):  # spelled at random, the same way each time
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
