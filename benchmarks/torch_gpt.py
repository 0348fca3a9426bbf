"""The GPT of `configs/lm/shakespeare_char.py` in PyTorch, trained as nanoGPT trains it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

BATCH, BLOCK, VOCABULARY = 12, 64, 65
LAYERS, HEADS, WIDTH = 4, 4, 128


def build(variant: str) -> Callable[[], torch.Tensor]:
    """A training step: cross entropy, gradients clipped to norm 1, AdamW. `variant` is "", "fused"
    (the optimizer) or "compile" (both)."""
    torch.manual_seed(0)
    model = GPT()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]
    tx = torch.optim.AdamW(groups, 1e-3, betas=(0.9, 0.99), fused=bool(variant))
    tokens = torch.randint(VOCABULARY, (BATCH, BLOCK + 1))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    forward = torch.compile(model) if variant == "compile" else model

    def step() -> torch.Tensor:
        logits = forward(inputs)
        loss = F.cross_entropy(logits.view(-1, VOCABULARY), targets.view(-1))
        tx.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        tx.step()
        return loss

    return step


class GPT(nn.Module):
    """Learned positions, layer norm before each sublayer, no biases, a head tied to the tokens."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(BLOCK, WIDTH)
        self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self):
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH, bias=False)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.attention_out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH, bias=False),
            nn.Linear(WIDTH, 4 * WIDTH, bias=False),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * WIDTH, WIDTH, bias=False),
        )

    def forward(self, x):
        batch, length, _ = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, HEADS, WIDTH // HEADS)
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
        h = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention_out(h.transpose(1, 2).reshape(x.shape))
        return x + self.mlp(x)
