"""Weights in eight bits, each row with a scale of its own: a quarter of float32's memory.

A row's scale is its largest weight / 127, and each weight becomes the nearest whole multiple:

    a row      0.50  -1.27   0.13  0.0049
    rounded      50   -127     13       0    times the scale, 0.01

so no weight moves by more than half a scale, 0.4% of the row's largest. Nothing else is
rounded: a model's numbers are those of a plain one with the weights 0.50, -1.27, 0.13 and 0.

For one token a product takes as long as reading its weights does. PyTorch's int8 products
round x as well. But its sum of rows of a table of bytes, made for embeddings, is a product
too, y = sum over k of x[k] * table[k], and rounds nothing. So weights are kept as such tables:

    (tiles, n_in, 104): of each tile's 96 outputs n_in rows of weights, 128 added; each row ends
    in what PyTorch wants there, a factor and an offset: 1 and -128, as float32

Where PyTorch lacks that, and for more than a few tokens, tiles become float32, some at a time.
"""

from __future__ import annotations

import contextlib
import functools
import itertools

import torch
from torch import Tensor, nn

TILE = 96  # outputs whose sums fit into a processor's registers
END = torch.tensor([1.0, -128.0]).view(torch.uint8)  # of each row of a table
LONGEST = 1024  # terms of one sum: longer ones are made in parts, and so more exactly
FEW = 4  # tokens that are read faster one by one than with weights made float32
AT_ONCE = 2**21  # weights that a product makes float32 at a time: 8 MiB


class Int8Linear(nn.Module):
    """A linear layer's rounded weights, for its Rows to fill, and its bias as it was. rows: how
    many belong to each projection that it stacks, as in layers.Stacked."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.n_out, self.n_in = linear.weight.shape
        self.rows, self.bias = getattr(linear, "rows", [self.n_out]), linear.bias
        shape = -(-self.n_out // TILE), self.n_in, TILE + len(END)
        table = torch.empty(shape, dtype=torch.uint8, device=linear.weight.device)
        scale = torch.empty(self.n_out, device=table.device)
        self.weight, self.scale = (nn.Parameter(x, requires_grad=False) for x in (table, scale))
        self.sums = sums_of(*shape[:2])

    def pieces(self) -> list[Rows]:
        """The rows of each projection."""
        ends = itertools.accumulate(self.rows)
        return [Rows(self, end - count, count) for end, count in zip(ends, self.rows)]

    def forward(self, x: Tensor) -> Tensor:
        """(..., n_in) -> (..., n_out), without gradients: it is scaled in place."""
        tokens, y = x.reshape(-1, self.n_in), None
        if len(tokens) <= FEW and x.dtype == torch.float32 and x.device.type == "cpu":
            with contextlib.suppress(AttributeError, RuntimeError):  # a PyTorch without it
                y = torch.stack([self.of_one(token) for token in tokens])
        y = (self.of_many(tokens) if y is None else y)[:, : self.n_out].mul_(self.scale)
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], self.n_out)

    def of_one(self, x: Tensor) -> Tensor:
        """x (n_in,) times all tiles, not scaled yet: (tiles * TILE,)."""
        sum_rows = torch.ops.quantized.embedding_bag_byte_rowwise_offsets
        tiles, table = len(self.weight), self.weight.flatten(0, 1)
        y = sum_rows(table, *self.sums, False, 0, False, x.repeat(tiles), None, True)
        return y.view(tiles, -1, TILE).sum(1).flatten()

    def of_many(self, x: Tensor) -> Tensor:
        """x (T, n_in) likewise: (T, tiles * TILE)."""
        y = x.new_empty(len(x), len(self.weight), TILE)
        count = max(1, AT_ONCE // (self.n_in * TILE))
        for tiles, here in zip(self.weight.split(count), y.split(count, 1)):
            weights = x.new_empty(self.n_in, len(tiles), TILE)
            weights.copy_(tiles[..., :TILE].transpose(0, 1)).sub_(128)
            torch.mm(x, weights.flatten(1), out=here.flatten(1))
        return y.flatten(1)


def round_layers(model: nn.Module):
    """Have an Int8Linear, yet to be filled, in the place of each linear layer."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear):
            model.set_submodule(name, Int8Linear(layer))


class Rows:
    """Some rows of a layer's weights: what one tensor of a checkpoint fills."""

    def __init__(self, layer: Int8Linear, first: int, count: int):
        self.layer, self.first, self.shape = layer, first, (count, layer.n_in)

    def copy_(self, weights: Tensor, scale: Tensor | None = None):
        """Round weights of the shape, a tile at a time; int8 ones come with their scale."""
        self.layer.weight[..., TILE:] = END
        cuts = [0, *range(TILE - self.first % TILE, len(weights), TILE), len(weights)]
        for begin, end in zip(cuts, cuts[1:]):
            block, row = weights[begin:end], self.first + begin
            numbers, scales = rounded(block) if scale is None else (block, scale[begin:end])
            numbers = (numbers.view(torch.uint8) ^ 128).T.contiguous()  # 128 added
            self.layer.weight[row // TILE, :, row % TILE :][:, : len(block)] = numbers
            self.layer.scale[row : row + len(block)] = scales


def rounded(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (rows, n_in) of any dtype: int8, and the scale of each row in float32."""
    weights = weights.float()
    scale = (weights.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (weights / scale[:, None]).round().to(torch.int8), scale


@functools.cache
def sums_of(tiles: int, n_in: int) -> tuple[Tensor, Tensor]:
    """The numbers of all rows of so many tables, and where sums begin, and the last ends."""
    begins = torch.arange(tiles)[:, None] * n_in + torch.arange(0, n_in, LONGEST)
    begins = torch.cat((begins.flatten(), torch.tensor([tiles * n_in])))
    return torch.arange(tiles * n_in, dtype=torch.int32), begins.int()
