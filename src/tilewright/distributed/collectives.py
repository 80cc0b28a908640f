"""Sums, maxima and gathers over all processes. With one process they change nothing."""

from typing import Any

import torch
from torch import Tensor, distributed


def process_rank() -> int:
    """Returns the rank of this process, also before the processes are connected."""
    return distributed.get_rank() if num_processes() > 1 else 0


def num_processes() -> int:
    """Returns the number of connected processes."""
    is_connected = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if is_connected else 1


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Sums a tensor over all processes, in place. All processes must call it."""
    if num_processes() > 1:
        distributed.all_reduce(tensor)
    return tensor


def max_over_processes(value: int, device: torch.device) -> int:
    """Returns the largest value of all processes. All processes must call it."""
    if num_processes() == 1:
        return value
    largest = torch.tensor(value, device=device)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return int(largest)


def copy_from_first(tensor: Tensor) -> Tensor:
    """Replaces a tensor by that of the first process, in place. All processes must call it."""
    if num_processes() > 1:
        distributed.broadcast(tensor, 0)
    return tensor


def gather_objects(value: Any) -> list[Any]:
    """Returns the value of each process. All processes must call it."""
    values = [value] * num_processes()
    if len(values) > 1:
        distributed.all_gather_object(values, value)
    return values


def gather_sizes(size: int, device: torch.device) -> Tensor:
    """Returns the sizes [P] of all processes. All processes must call it."""
    sizes = torch.zeros(num_processes(), dtype=torch.long, device=device)
    sizes[process_rank()] = size
    return sum_over_processes(sizes)
