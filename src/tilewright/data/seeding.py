"""Seeds that depend on the position in the training, not on previous random numbers."""

import contextlib
from collections.abc import Iterator

import torch
from numpy.random import SeedSequence

# Seed of the order of the rows of each split. It is not a setting, so that runs with different
# seeds are validated and evaluated on the same rows.
ROW_ORDER_SEED = 0


def derive_seed(*numbers: int) -> int:
    """Returns one seed from several non-negative integers. Close inputs give unrelated seeds."""
    return int(SeedSequence(numbers).generate_state(1)[0])


@contextlib.contextmanager
def temporary_seed(*numbers: int) -> Iterator[None]:
    """Seeds torch's CPU generator inside the block, then restores its previous state."""
    # torch's fork_rng and manual_seed also handle all devices, which takes longer than the rest.
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(derive_seed(*numbers))
    try:
        yield
    finally:
        generator.set_state(state)
