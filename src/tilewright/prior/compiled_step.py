"""One compiled step for every position of a picture; on CUDA a graph that is replayed."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from tilewright.training.compiling import allow_many_shapes, compiles

WARM_UP = 2  # steps before a graph is captured: the first compiles, the second allocates


class CompiledSteps:
    """Calls a step for one number after another, on tensors that stay where they are.

    On CUDA what a step starts is captured once and then replayed, without Python and without a
    launch for each of its kernels.

    Args:
        step: image tokens [B] and the number [1] of the token that they are, to the next tokens.
        tokens: any of the shape and on the device of those that will be.
    """

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor], tokens: Tensor):
        self._step = step
        self._tokens = tokens.clone()
        self._number = torch.zeros(1, dtype=torch.long, device=tokens.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._steps = 0

    def __call__(self, tokens: Tensor, number: int) -> Tensor:
        """The tokens after image token `number`, which is `tokens`."""
        self._tokens.copy_(tokens)
        self._number.fill_(number)
        if tokens.is_cuda and self._graph is None and self._steps >= WARM_UP:
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):  # which runs nothing
                self._advance()
        self._steps += 1
        if self._graph is None:
            self._advance()
        else:
            self._graph.replay()
        return self._tokens.clone()

    def _advance(self) -> None:
        self._tokens.copy_(self._step(self._tokens, self._number))


def compiled(function: Callable, device: str) -> Callable:
    """The function compiled, once for each number of pictures at a time.

    Raises:
        UserError: this machine has no compiler.
    """
    compiles(True, device)
    allow_many_shapes()
    return _compiled(function)


@lru_cache(maxsize=8)
def _compiled(function: Callable) -> Callable:
    # Of a batch of any size inductor ends in a RecursionError.
    return torch.compile(function, dynamic=False)
