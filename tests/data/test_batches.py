"""Rows of each batch: in training, in validation, on several processes, and after resuming."""

from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from helpers.gray import Noise, TinySource, batches, flatten, row_indices
from tilewright.data.batches import mark_updates
from tilewright.errors import UserError


def test_each_epoch_has_all_rows_in_a_new_order(make):
    data = make(TinySource(rows=10))
    trained = flatten(map(row_indices, batches(data, data.train_dataloader(), 5)))
    assert len(trained) == 20
    first, second = trained[:10], trained[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second != list(range(10)) != first
    assert [len(row_indices(batch)) for batch in data.val_dataloader()] == [4, 4, 2]


def test_fewer_rows_than_the_batch_size_repeat_within_a_batch(make):
    data = make(TinySource(rows=3))
    (batch,) = batches(data, data.train_dataloader(), 1)
    assert sorted(row_indices(batch)[:3]) == [0, 1, 2]
    assert len(row_indices(batch)) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_do_not_depend_on_the_global_generator(make, tokenizer, workers):
    def train(seed, workers=0):
        data = make(train_transform=Noise(), tokenizer=tokenizer, seed=seed, num_workers=workers)
        torch.rand(workers + 1)  # changes the state of the global generator
        return batches(data, data.train_dataloader(), 4)

    first, repeated, reseeded = train(1), train(1, workers), train(2)
    for key in ("image", "text"):
        values, same, different = (
            [batch[key] for batch in training] for training in (first, repeated, reseeded)
        )
        assert all(map(torch.equal, values, same))
        assert not all(map(torch.equal, values, different))
    assert [batch["caption"] for batch in first] == [batch["caption"] for batch in repeated]


def test_reading_does_not_change_the_global_generator(make):
    data = make(train_transform=Noise())
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    batches(data, data.train_dataloader(), 2)
    assert torch.equal(torch.rand(3), expected)


class Trainer:
    """Trainer with the attributes that the data module reads."""

    training = True
    accumulate_grad_batches = 1

    def __init__(self, rank=0, world_size=1):
        self.global_rank, self.world_size = rank, world_size
        self.strategy = SimpleNamespace(root_device=torch.device("cpu"))


def indices_by_batch(make, loader, count=None, rows=11, **trainer):
    data = make(TinySource(rows=rows))
    data.trainer = Trainer(**trainer)
    batches = islice(getattr(data, loader)(), count)
    return [row_indices(batch)[: batch["rows"]] for batch in batches]


def test_processes_share_the_batches_of_a_single_process(make):
    alone = indices_by_batch(make, "train_dataloader", 6)
    parts = [
        indices_by_batch(make, "train_dataloader", 6, rank=rank, world_size=2) for rank in (0, 1)
    ]
    assert [first + second for first, second in zip(*parts, strict=True)] == alone


@pytest.mark.parametrize("rows", [1, 8, 9, 10, 11, 13])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_evaluate_each_row_once_in_the_same_number_of_batches(make, rows, processes):
    ranks = range(processes)
    parts = [
        indices_by_batch(make, "val_dataloader", rows=rows, rank=rank, world_size=processes)
        for rank in ranks
    ]
    assert len({len(part) for part in parts}) == 1
    assert all(parts[0])  # the first process shows images of the first batch
    assert sorted(flatten(flatten(parts))) == list(range(rows))
    if processes == 2:  # a limit on batches means the same as on one process
        alone = indices_by_batch(make, "val_dataloader", rows=rows)
        assert sorted(flatten(part[0] for part in parts)) == sorted(alone[0])


def train(make, count, state=None, **arguments):
    """Returns the rows of each of the next batches, and the state of the data after them."""
    data = make(TinySource(rows=11), **arguments)
    data.trainer = Trainer()
    if state is not None:
        data.load_state_dict(state)
    rows = list(map(row_indices, batches(data, data.train_dataloader(), count)))
    return rows, data.state_dict()


def test_resumed_training_continues_with_the_next_batch(make):
    expected, _ = train(make, 7)
    first, state = train(make, 2)
    second, state = train(make, 2, state)
    third, _ = train(make, 3, state)
    assert first + second + third == expected


def test_training_resumed_with_other_batch_sizes_continues_with_the_next_row(make):
    expected, _ = train(make, 8)
    first, state = train(make, 2)
    second, state = train(make, 3, state, batch_size=6)
    third, _ = train(make, 1, state, batch_size=5)
    assert flatten(first + second + third) == flatten(expected)[: 8 + 18 + 5]


def test_updates_of_a_run_that_resumes_with_another_accumulation_end_at_its_multiples():
    loader = [{"text": torch.tensor([[index]]), "rows": 1} for index in range(10, 18)]
    batches = list(mark_updates(loader, 4, start=10))
    assert [batch["update_index"] for batch in batches] == [0, 1, 0, 1, 2, 3, 0, 1]
    assert [int(text) for text in batches[2]["update_text"]] == [12, 13, 14, 15]


def test_overfitting_repeats_the_first_batches_exactly(make, tokenizer):
    plain, data = make(tokenizer=tokenizer), make(tokenizer=tokenizer, overfit_batches=2)
    first = batches(plain, plain.train_dataloader(), 2)
    assert set(flatten(map(row_indices, first))) == set(range(8))
    for index, batch in enumerate(batches(data, data.train_dataloader(), 6)):
        # Each image has two captions. The same one is chosen each time.
        assert batch["caption"] == first[index % 2]["caption"]
        for name in ("image", "text"):  # BPE dropout is the same each time
            torch.testing.assert_close(batch[name], first[index % 2][name], rtol=0, atol=0)


def test_overfitting_validates_on_its_rows(make, tokenizer):
    data = make(TinySource(rows=30), tokenizer=tokenizer, overfit_batches=1)
    (trained,) = batches(data, data.train_dataloader(), 1)
    (validated,) = batches(data, data.val_dataloader())
    assert row_indices(validated) == row_indices(trained)
    assert [int(caption.split()[1]) for _, caption in data.examples("validation", 4)] == (
        row_indices(trained)
    )


def test_overfitting_streaming_data_is_an_error(make):
    with pytest.raises(UserError, match=r"data\.source\.streaming=false"):
        make(TinySource(streaming=True), overfit_batches=1).setup()


def test_negative_overfit_batches_are_an_error(make):
    with pytest.raises(UserError, match=r"data\.overfit_batches=-1"):
        make(overfit_batches=-1)
