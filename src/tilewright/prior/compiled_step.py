"""One compiled decode step for all image tokens. On CUDA it is a graph that is replayed."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from tilewright.training.compiling import raise_recompile_limit, should_compile

WARMUP_STEPS = 2  # before the graph is captured: the first compiles, the second allocates


class CompiledSteps:
    """Runs a decode step for one index after another, on tensors that keep their addresses.

    On CUDA the step is captured once as a graph and then replayed. A replay runs without Python and
    without one launch per kernel.

    Args:
        step: function of image tokens [B] and their index [1] that returns the next tokens [B].
        tokens: any tensor with the shape, dtype and device of the image tokens.
    """

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor], tokens: Tensor):
        self._step = step
        self._tokens = tokens.clone()
        self._index = torch.zeros(1, dtype=torch.long, device=tokens.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._num_steps = 0

    def __call__(self, tokens: Tensor, index: int) -> Tensor:
        """Returns the image tokens after `tokens`, which have this index."""
        self._tokens.copy_(tokens)
        self._index.fill_(index)
        if tokens.is_cuda and self._graph is None and self._num_steps >= WARMUP_STEPS:
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):  # captures without running
                self._update_tokens()
        self._num_steps += 1
        if self._graph is None:
            self._update_tokens()
        else:
            self._graph.replay()
        return self._tokens.clone()

    def _update_tokens(self) -> None:
        self._tokens.copy_(self._step(self._tokens, self._index))


def compile_function(function: Callable, device: str) -> Callable:
    """Returns the function compiled, with one graph per batch size.

    Raises:
        UserError: this machine has no compiler.
    """
    should_compile(True, device)
    raise_recompile_limit()
    return _compile(function)


@lru_cache(maxsize=8)
def _compile(function: Callable) -> Callable:
    # With a dynamic batch size inductor fails with a RecursionError.
    return torch.compile(function, dynamic=False)
