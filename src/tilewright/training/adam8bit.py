"""AdamW with moments of 8 bits (Dettmers et al. 2022), from the optional package bitsandbytes."""

from typing import Any

from bitsandbytes.optim import AdamW8bit


class EightBitAdamW(AdamW8bit):
    """bitsandbytes' AdamW, whose moments take a quarter of the memory.

    Tensors with fewer than 4,096 values keep moments of 32 bits.
    """

    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
        """Loads a state, then calls the hooks that bitsandbytes leaves out."""
        super().load_state_dict(state_dict, move_to_device)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)
