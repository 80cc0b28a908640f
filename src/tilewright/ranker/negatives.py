"""Pairs that are nearly right, for the ranker to learn from.

In a batch drawn by lot most wrong pairs differ in everything, and a model that knows which words
and things occur, but not what belongs to what, tells them apart. The candidates of a prior are not
so kind: the right colours on the wrong shapes, a whole that only has good parts.
"""

import torch
from torch import Tensor

TRIES = 32  # pairs of words that are looked at for each caption


def patchwork(images: Tensor) -> Tensor:
    """Images [B, 3, H, W] that each have a rectangle of the next one, at the same place.

    A prior's bad candidates are of this kind: every part is fine and the whole is not.
    """
    batch, _, height, width = images.shape

    def covered(side: int) -> Tensor:
        """Between two random places: [B, side]."""
        ends = torch.rand(batch, 2, device=images.device).sort(dim=1).values * side
        at = torch.arange(side, device=images.device) + 0.5
        return (ends[:, :1] <= at) & (at < ends[:, 1:])

    rectangle = covered(height)[:, None, :, None] & covered(width)[:, None, None, :]
    return torch.where(rectangle, images.roll(1, dims=0), images)


def exchanged(text: Tensor) -> Tensor:
    """Captions in which two words have changed places, as far as they still read like captions.

    That is told from the batch: wherever a word comes to stand, it stands between neighbours that
    it has somewhere in these captions as well.

    Args:
        text: text tokens [B, T], negative past their end.

    Returns:
        Text tokens [M, T] of the captions in which two words could be exchanged.
    """
    batch = len(text)
    ends = text.new_full((batch, 1), -1)
    framed = torch.cat([ends, text.clamp(min=-1), ends], dim=1)
    base = int(framed.max()) + 2

    def pair(left: Tensor, right: Tensor) -> Tensor:
        return (left + 1) * base + right + 1

    known = pair(framed[:, :-1], framed[:, 1:]).unique()
    words = (text >= 0).sum(dim=1, keepdim=True)
    ends_ = torch.rand(2, batch, TRIES, device=text.device) * words
    first, second = ends_.long().sort(dim=0).values

    def at(places: Tensor) -> Tensor:
        return framed.gather(1, places)

    a, b = at(first + 1), at(second + 1)
    meetings = [
        pair(at(first), b),
        pair(b, at(first + 2)),
        pair(at(second), a),
        pair(a, at(second + 2)),
    ]
    reads_well = torch.isin(torch.stack(meetings), known).all(dim=0)
    possible = reads_well & (second > first + 1) & (a != b)
    chosen = possible.int().argmax(dim=1, keepdim=True)
    first, second = first.gather(1, chosen), second.gather(1, chosen)
    swapped = text.scatter(1, first, text.gather(1, second))
    swapped = swapped.scatter(1, second, text.gather(1, first))
    return swapped[possible.any(dim=1)]
