"""Key-value cache of one attention layer during sampling.

C captions are sampled with n candidates each. The keys and values of the text are computed once per
caption. Those of the image are stored per candidate, in as few slots as the pattern allows.

    n > 1   text             [2, C * H, P, D]      one copy for all candidates of a caption
            image            [2, C, H, n, slots, D]
    n = 1   text and image   [2, C, H, 1, P + slots, D]

P is the number of positions before the image: the text, and the start token if there is one.

`EagerLayerCache` takes the image token's index as an int and reads slices where it can.
`CompiledLayerCache` takes it as a tensor [1], so that one compiled step serves every index.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tilewright.prior.patterns import CacheSlots


class LayerCache(ABC):
    """Memory of the cache, and the interface of a decode step.

    Args:
        text_k, text_v: keys and values of start token and text, each [C, H, P, D].
        candidates: n, images per caption.
        slots: slots that each image token writes and reads.
        visible_text: booleans [C, P], False for text to hide. None hides nothing.
    """

    def __init__(
        self,
        text_k: Tensor,
        text_v: Tensor,
        candidates: int,
        slots: CacheSlots,
        visible_text: Tensor | None = None,
    ):
        captions, heads, text_length, width = text_k.shape
        self.candidates = candidates
        self.slots = slots
        self.text_length = text_length
        # With one candidate, text and image share a tensor, which halves attention's products.
        self.is_joint = candidates == 1
        self.first_slot = text_length if self.is_joint else 0
        length = self.first_slot + slots.count
        text_kv = torch.stack([text_k, text_v])
        # No tensor here is a view of another: a compiled step would copy every tensor that shares
        # memory with one that it writes.
        self._kv = text_k.new_zeros(2, captions, heads, candidates, length, width)
        self._text_mask = visible_text
        self._shared_text_kv: Tensor | None = None
        if self.is_joint:
            self._kv[:, :, :, 0, :text_length] = text_kv
        else:
            self._shared_text_kv = text_kv.flatten(1, 2)

    @abstractmethod
    def store(self, index: Any, k: Tensor, v: Tensor) -> None:
        """Stores the key and value [C, H, n, D] of an image token.

        Args:
            index: index of the image token in raster order.
        """

    @abstractmethod
    def attend(self, index: Any, q: Tensor) -> Tensor:
        """Returns the attention [C, H, n, D] of an image token to the text and its image keys.

        Args:
            index: index of the image token in raster order. Its own key is stored already.
            q: queries [C, H, n, D].
        """

    @property
    def nbytes(self) -> int:
        """Memory of keys and values, in bytes."""
        return sum(t.nbytes for t in (self._kv, self._shared_text_kv) if t is not None)

    def _text_kv(self) -> Tensor:
        """Returns keys and values of the text, [2, C * H, P, D]."""
        if self._shared_text_kv is not None:
            return self._shared_text_kv
        return self._kv[..., : self.text_length, :].flatten(1, 3)

    def _joint_mask(self, image_keys: int) -> Tensor | None:
        """Returns the text mask with visible image keys, [C, P + image_keys], or None."""
        if self._text_mask is None:
            return None
        return F.pad(self._text_mask, (0, image_keys), value=True)

    def _image_kv(self, slots: slice | Tensor) -> Tensor:
        """Returns keys and values of image tokens, [2, C * H * n, R, D]."""
        return self._kv[..., self.first_slot :, :][..., slots, :].flatten(1, 3)


class EagerLayerCache(LayerCache):
    """Cache whose steps take the image token's index as an int."""

    def store(self, index: int, k: Tensor, v: Tensor) -> None:
        slot = self.first_slot + self.slots.write[index]
        self._kv[0, ..., slot, :], self._kv[1, ..., slot, :] = k, v

    def attend(self, index: int, q: Tensor) -> Tensor:
        slots = self.slots.read[index]
        if isinstance(slots, Tensor):
            slots = slots.to(q.device)
        elif self.is_joint and (slots.start, slots.step) == (0, 1):
            end = self.first_slot + slots.stop
            mask = self._joint_mask(slots.stop)
            return attend_jointly(q, self._kv[..., :end, :].flatten(1, 3), mask)
        return attend_separately(q, self._text_kv(), self._image_kv(slots), self._text_mask)


class CompiledLayerCache(LayerCache):
    """Cache whose steps take the image token's index as a tensor [1].

    All steps have the same shapes: a step reads R slots, and a mask hides the unused ones.
    """

    def __init__(
        self,
        text_k: Tensor,
        text_v: Tensor,
        candidates: int,
        slots: CacheSlots,
        visible_text: Tensor | None = None,
    ):
        super().__init__(text_k, text_v, candidates, slots, visible_text)
        device = text_k.device
        self._write_slots = self.first_slot + torch.tensor(slots.write, device=device)
        self._read_slots, self._read_mask = (table.to(device) for table in slots.read_table)

    def store(self, index: Tensor, k: Tensor, v: Tensor) -> None:
        slot = self._write_slots.index_select(0, index)
        self._kv.index_copy_(-2, slot, torch.stack([k, v]).unsqueeze(-2))

    def attend(self, index: Tensor, q: Tensor) -> Tensor:
        mask = self._read_mask.index_select(0, index)  # [1, R]
        if self._read_slots.shape[1] < self.slots.count:
            slots: Tensor | slice = self._read_slots.index_select(0, index).squeeze(0)
        elif self.is_joint:
            mask = F.pad(mask, (self.text_length, 0), value=True)
            text_mask = self._joint_mask(self.slots.count)
            mask = mask if text_mask is None else mask & text_mask
            return attend_jointly(q, self._kv.flatten(1, 3), mask)
        else:
            slots = slice(None)
        return attend_separately(q, self._text_kv(), self._image_kv(slots), self._text_mask, mask)


def attend_jointly(q: Tensor, kv: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns the attention of single queries to keys that hold text and image.

    Args:
        q: queries [C, H, 1, D].
        kv: keys and values [2, C * H, R, D].
        mask: booleans [C, R] or [1, R], False for keys to hide. None hides nothing.
    """
    k, v = kv
    scores = _hide(torch.bmm(q.reshape(-1, 1, q.shape[-1]), k.mT), mask, len(q))
    return torch.bmm(_attention_weights(scores, q), v).view(q.shape)


def attend_separately(
    q: Tensor,
    text_kv: Tensor,
    image_kv: Tensor,
    text_mask: Tensor | None = None,
    image_mask: Tensor | None = None,
) -> Tensor:
    """Returns the attention of n candidates to one copy of the text and to their own image keys.

    Text and image scores share one softmax (appendix B.1).

    Args:
        q: queries [C, H, n, D].
        text_kv: keys and values [2, C * H, P, D].
        image_kv: keys and values [2, C * H * n, R, D].
        text_mask: booleans [C, P], False for text keys to hide. None hides nothing.
        image_mask: booleans [1, R], False for image keys to hide. None hides nothing.
    """
    (text_k, text_v), (image_k, image_v) = text_kv, image_kv
    text_length, width = text_k.shape[1:]
    image_q = q.reshape(-1, 1, width)  # [C * H * n, 1, D]
    text_q = image_q.view(len(text_k), -1, width)  # [C * H, n, D]
    text_scores = _hide(torch.bmm(text_q, text_k.mT), text_mask, len(q))
    image_scores = _hide(torch.bmm(image_q, image_k.mT), image_mask, len(q))
    scores = torch.cat([text_scores.view(len(image_q), 1, -1), image_scores], dim=-1)
    weights = _attention_weights(scores, q)
    text_weights = weights[..., :text_length].view(*text_q.shape[:2], -1)
    text_out = torch.bmm(text_weights, text_v).view_as(image_q)
    return torch.baddbmm(text_out, weights[..., text_length:], image_v).view(q.shape)


def _hide(scores: Tensor, mask: Tensor | None, captions: int) -> Tensor:
    """Hides keys of scores [C * rows, queries, R], by a mask [C, R] or [1, R], or None."""
    if mask is None:
        return scores
    rows = scores.view(captions, -1, scores.shape[-1])
    return rows.masked_fill(~mask[:, None], -torch.inf).view_as(scores)


def _attention_weights(scores: Tensor, q: Tensor) -> Tensor:
    """Returns the scaled softmax of q @ k.mT, computed in fp32."""
    return (scores.float() * q.shape[-1] ** -0.5).softmax(dim=-1).to(q.dtype)
