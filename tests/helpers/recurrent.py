"""A prior that is not a Transformer: a recurrent network, whose cache is its hidden state."""

import torch
from torch import nn

from tilewright.prior import Stream


class RecurrentBlock(nn.Module):
    """A minimal gated recurrent layer in a residual branch."""

    def __init__(self, dim):
        super().__init__()
        self.gate_and_candidate = nn.Linear(2 * dim, 2 * dim)

    def forward(self, x, hidden):
        """Reads inputs [B, n, dim]; returns outputs [B, n, dim] and the last state [B, dim]."""
        outputs = []
        for x_t in x.unbind(dim=1):
            y = self.gate_and_candidate(torch.cat([x_t, hidden], dim=-1))
            gate, candidate = y.chunk(2, dim=-1)
            hidden = hidden + gate.sigmoid() * (candidate.tanh() - hidden)
            outputs.append(hidden)
        return x + torch.stack(outputs, dim=1), hidden


class RecurrentPrior(nn.Module):
    """Implements `tilewright.prior.Prior` with a stack of recurrent layers."""

    block_types = (RecurrentBlock,)

    def __init__(self, stream: Stream, dim: int = 16, depth: int = 2):
        super().__init__()
        self.stream = stream
        self.text_embedding = nn.Embedding(stream.text_embeddings, dim)
        self.image_embedding = nn.Embedding(stream.image_vocab, dim)
        self.blocks = nn.ModuleList(RecurrentBlock(dim) for _ in range(depth))
        self.text_head = nn.Linear(dim, stream.text_classes)
        self.image_head = nn.Linear(dim, stream.image_vocab)
        self.initialize(self.modules())

    @property
    def cache_bytes(self):
        return 4 * len(self.blocks) * self.image_embedding.embedding_dim

    def initialize(self, modules):
        for module in modules:
            for parameter in module.parameters(recurse=False):
                nn.init.normal_(parameter, std=0.3)

    def embed_text(self, text):
        start = text.new_full((len(text), 1), self.stream.start_token)
        return self.text_embedding(torch.cat([start, self.stream.pad(text)], dim=1))

    def run_blocks(self, x, states=None):
        """Returns outputs [B, n, dim] and the last state [B, dim] of each block."""
        states = states or [torch.zeros_like(x[:, 0])] * len(self.blocks)
        new_states = []
        for block, state in zip(self.blocks, states, strict=True):
            x, state = block(x, state)
            new_states.append(state)
        return x, new_states

    def forward(self, text, image, image_dropout_mask=None):
        states = self.image_embedding(image.flatten(1)[:, :-1])
        if image_dropout_mask is not None:
            states = states.masked_fill(image_dropout_mask.flatten(1)[:, :-1, None], 0.0)
        x, _ = self.run_blocks(torch.cat([self.embed_text(text), states], dim=1))
        text_x, image_x = x.split([self.stream.text_length, self.stream.image_length], dim=1)
        return self.text_head(text_x).float(), self.image_head(image_x).float()

    def prefill(self, text, candidates, compiled_steps=False):
        x, states = self.run_blocks(self.embed_text(text))
        logits = self.image_head(x[:, -1]).float().repeat_interleave(candidates, dim=0)
        return logits, [state.repeat_interleave(candidates, dim=0) for state in states]

    def step(self, tokens, index, caches):
        x, states = self.run_blocks(self.image_embedding(tokens[:, None]), caches)
        for cache, state in zip(caches, states, strict=True):
            cache.copy_(state)
        return self.image_head(x[:, 0]).float()

    def next_text(self, text):
        x, _ = self.run_blocks(self.embed_text(text))
        return self.text_head(x[:, -1]).float()
