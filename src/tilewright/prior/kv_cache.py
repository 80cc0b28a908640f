"""What a sampled layer remembers: keys and values of the caption and of the picture so far."""

import torch
from torch import Tensor
from torch.nn import functional as F

from tilewright.prior.patterns import CachePlan


class LayerCache:
    """One layer's keys and values while `candidates` pictures are drawn for each caption.

    The start and text positions are held once a caption and shared by its candidates; each
    candidate's image positions are held in as few slots as the pattern allows.

    Args:
        text_k, text_v: keys and values of start and text, each [C, H, 1 + T, D].
        candidates: n, pictures drawn for each caption.
        plan: where image keys are kept and which of them a token reads.
    """

    def __init__(self, text_k: Tensor, text_v: Tensor, candidates: int, plan: CachePlan):
        captions, heads, text, width = text_k.shape
        self.candidates = candidates
        self.plan = plan
        self.text = text
        # A picture that shares its caption with none has text and image in one tensor: what it
        # reads of both is then mostly one slice, and attention half as many products.
        self._alone = candidates == 1
        self._first = text if self._alone else 0  # slot of an image key
        slots = self._first + plan.slots
        self._kv = text_k.new_zeros(2, captions, heads, candidates, slots, width)
        text_kv = torch.stack([text_k, text_v])
        # None of these tensors is a part of another: a compiler copies all that shares memory with
        # what a step writes.
        self._shared: Tensor | None = None
        if self._alone:
            self._kv[:, :, :, 0, :text] = text_kv
        else:
            self._shared = text_kv.flatten(1, 2)
        # For tokens whose numbers are tensors: one and the same step then does for all of them.
        self._write = self._first + torch.tensor(plan.write, device=text_k.device)
        self._slots, self._seen = (t.to(text_k.device) for t in plan.table)

    @property
    def nbytes(self) -> int:
        """Memory of its keys and values."""
        return sum(t.nbytes for t in (self._kv, self._shared) if t is not None)

    def store(self, token: int | Tensor, k: Tensor, v: Tensor) -> None:
        """Keys and values [C, H, n, D] of image token number `token`."""
        if isinstance(token, Tensor):
            slots = self._write.index_select(0, token)
            self._kv.index_copy_(-2, slots, torch.stack([k, v]).unsqueeze(-2))
            return
        slot = self._first + self.plan.write[token]
        self._kv[0, ..., slot, :], self._kv[1, ..., slot, :] = k, v

    def attend(self, token: int | Tensor, q: Tensor) -> Tensor:
        """Attention [C, H, n, D] of image token number `token` to the text and to its mask."""
        slots, seen = self._reads(token)
        alone = q.reshape(-1, 1, q.shape[-1])  # a query to keys of its own, [C * H * n, 1, D]
        if self._alone and isinstance(slots, slice) and (slots.start, slots.step) == (0, 1):
            k, v = self._kv[..., : self.text + slots.stop, :].flatten(1, 3)
            scores = torch.bmm(alone, k.mT)
            if seen is not None:
                scores = scores.masked_fill(~F.pad(seen, (self.text, 0), value=True), -torch.inf)
            return torch.bmm(_softmax(scores, q), v).view(q.shape)
        k, v = self._kv[..., self._first :, :][..., slots, :].flatten(1, 3)
        text_k, text_v = self._text_kv()
        # A caption's candidates are so many queries to the same text keys.
        together = alone.view(len(text_k), -1, q.shape[-1])
        to_text, to_image = torch.bmm(together, text_k.mT), torch.bmm(alone, k.mT)
        if seen is not None:
            to_image = to_image.masked_fill(~seen, -torch.inf)
        # Text and image keys share one softmax (appendix B.1).
        scores = torch.cat([to_text.view(len(alone), 1, -1), to_image], dim=-1)
        weights = _softmax(scores, q)
        from_text = torch.bmm(weights[..., : self.text].view(*together.shape[:2], -1), text_v)
        from_both = torch.baddbmm(from_text.view_as(alone), weights[..., self.text :], v)
        return from_both.view(q.shape)

    def _text_kv(self) -> Tensor:
        """Keys and values of the text, [2, C * H, 1 + T, D]."""
        if self._shared is not None:
            return self._shared
        return self._kv[..., : self.text, :].flatten(1, 3)

    def _reads(self, token: int | Tensor) -> tuple[slice | Tensor, Tensor | None]:
        """The slots that a token reads, and which of them it sees; None is all."""
        if not isinstance(token, Tensor):
            slots = self.plan.read[token]
            return slots if isinstance(slots, slice) else slots.to(self._kv.device), None
        seen = self._seen.index_select(0, token)
        if self._slots.shape[1] == self.plan.slots:
            return slice(0, self.plan.slots, 1), seen
        return self._slots.index_select(0, token).squeeze(0), seen


def _softmax(scores: Tensor, q: Tensor) -> Tensor:
    """The weights of scores, in fp32, of queries that are not scaled."""
    return (scores.float() * q.shape[-1] ** -0.5).softmax(dim=-1).to(q.dtype)
