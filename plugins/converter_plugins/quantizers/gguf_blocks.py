"""GGUF's blocks of 32 columns: q8_0, q5_1, q5_0, q4_1, q4_0."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from converter_core.api import QuantFormat, Quantizer, hookimpl

from . import _gguf_loops
from ._bits import admit, by_pieces, magnitudes
from ._gguf_bytes import (
    SMALLEST_HALF,
    from_half,
    from_high_bits,
    from_nibbles,
    high_bits,
    join,
    nibbles,
    reciprocal,
    split,
    to_half,
)

if TYPE_CHECKING:
    from converter_core.api import Parts

WIDTH = 32


class Block(Quantizer):
    """A block: an fp16 scale, for some an fp16 minimum, the codes. Codes follow the scale before it is rounded.

    The bytes are those of ``gguf.quants.quantize`` (gguf-py), which are ggml's, with two exceptions where gguf-py's
    are of no use: a scale or minimum beyond fp16 is +-65504 and not infinite, and codes of a block whose largest
    magnitude is below about 2^-128 are those of zero. Of zeros of both signs -0 is the smaller.

    Parts: ``weight`` uint8 [O, I / 32 * nbytes].

    bits: of a code. affine: whether a minimum is stored. nbytes: of a block.
    """

    row_block: ClassVar[int | None] = 1

    bits: ClassVar[int]
    affine: ClassVar[bool] = False
    nbytes: ClassVar[int]

    @property
    def format(self) -> QuantFormat:
        return QuantFormat(
            self.name, f"int{self.bits}", self.bits, "group", WIDTH, "F16", not self.affine, f"gguf {self.name}"
        )

    def quantize(self, weight: Tensor, /) -> Parts:
        weight = admit(weight, WIDTH)
        if _gguf_loops.suit(self.name, weight):
            return {"weight": _gguf_loops.quantize(self.name, weight, WIDTH, self.nbytes)}

        def packed(rows: Tensor) -> Tensor:
            return self._packed(rows.view(-1, WIDTH)).view(rows.shape[0], -1)

        return {"weight": by_pieces(packed, weight)}

    def dequantize(self, parts: Parts, /) -> Tensor:
        packed = parts["weight"]
        return self._values(packed.reshape(-1, self.nbytes)).view(packed.shape[0], -1)

    def quantization_step(self, parts: Parts, /) -> Tensor:
        packed = parts["weight"]
        scale = from_half(packed.reshape(-1, self.nbytes)[:, :2]).abs_().clamp_(min=SMALLEST_HALF)
        return scale.expand(-1, WIDTH).reshape(packed.shape[0], -1)

    @abstractmethod
    def _packed(self, blocks: Tensor) -> Tensor:
        """Blocks [B, 32] in their own dtype -> uint8 [B, nbytes]."""

    @abstractmethod
    def _values(self, packed: Tensor) -> Tensor:
        """uint8 [B, nbytes] -> float32 [B, 32]."""


@dataclass(frozen=True)
class Q8_0(Block):
    """GGUF Q8_0: 8-bit codes and an fp16 scale per 32 columns, 8.5 bits per weight; closer than int8 per row."""

    name: ClassVar[str] = "q8_0"
    bits: ClassVar[int] = 8
    nbytes: ClassVar[int] = 34

    def _packed(self, blocks: Tensor) -> Tensor:
        amax = magnitudes(blocks).amax(1, keepdim=True).view(blocks.dtype).float()
        scale = amax / torch.full_like(amax, 127)
        values = blocks.float() * reciprocal(scale)
        size = values.abs()
        whole = size.floor()
        codes = whole.add_(size.sub_(whole) >= 0.5).copysign_(values)  # halves away from zero
        return join(to_half(scale), codes.to(torch.int8).view(torch.uint8))

    def _values(self, packed: Tensor) -> Tensor:
        scale, codes = split(packed, 2)
        return codes.contiguous().view(torch.int8).float().mul_(from_half(scale))


class Centred(Block):
    """Codes around half of 2^bits. The scale is the value of largest magnitude, with its sign, over minus that half."""

    def _packed(self, blocks: Tensor) -> Tensor:
        half = 1 << (self.bits - 1)
        at = magnitudes(blocks).argmax(1, keepdim=True)  # the first of equals
        extreme = blocks.gather(1, at).float()
        scale = extreme / torch.full_like(extreme, -half)
        codes = (blocks.float() * reciprocal(scale)).add_(half + 0.5).clamp_(max=2 * half - 1).to(torch.uint8)
        high = (high_bits(codes),) if self.bits == 5 else ()
        return join(to_half(scale), *high, nibbles(codes))

    def _values(self, packed: Tensor) -> Tensor:
        scale, *rest = split(packed, 2, *(4,) * (self.bits - 4))
        return _codes(rest).sub_(1 << (self.bits - 1)).mul_(from_half(scale))


@dataclass(frozen=True)
class Q4_0(Centred):
    """GGUF Q4_0: 4-bit codes and an fp16 scale per 32 columns, 4.5 bits per weight."""

    name: ClassVar[str] = "q4_0"
    bits: ClassVar[int] = 4
    nbytes: ClassVar[int] = 18


@dataclass(frozen=True)
class Q5_0(Centred):
    """GGUF Q5_0: 5-bit codes and an fp16 scale per 32 columns, 5.5 bits per weight."""

    name: ClassVar[str] = "q5_0"
    bits: ClassVar[int] = 5
    nbytes: ClassVar[int] = 22


class Affine(Block):
    """Codes from the smallest value of the block, which is stored as an fp16 minimum, to the largest."""

    affine: ClassVar[bool] = True

    def _packed(self, blocks: Tensor) -> Tensor:
        top = (1 << self.bits) - 1
        keys = _ordered(blocks)
        low = _ordered(keys.amin(1, keepdim=True)).view(blocks.dtype).float()
        high = _ordered(keys.amax(1, keepdim=True)).view(blocks.dtype).float()
        scale = (high - low) / torch.full_like(low, top)
        inverse = reciprocal(scale)
        steps = (blocks.float() - low).mul_(inverse).masked_fill_(inverse == 0, 0)
        codes = steps.add_(0.5).clamp_(max=top).to(torch.uint8)
        head = (high_bits(codes),) if self.bits == 5 else ()
        return join(to_half(scale), to_half(low), *head, nibbles(codes))

    def _values(self, packed: Tensor) -> Tensor:
        scale, low, *rest = split(packed, 2, 2, *(4,) * (self.bits - 4))
        return _codes(rest).mul_(from_half(scale)).add_(from_half(low))


@dataclass(frozen=True)
class Q4_1(Affine):
    """GGUF Q4_1: 4-bit codes, an fp16 scale and an fp16 minimum per 32 columns, 5 bits per weight."""

    name: ClassVar[str] = "q4_1"
    bits: ClassVar[int] = 4
    nbytes: ClassVar[int] = 20


@dataclass(frozen=True)
class Q5_1(Affine):
    """GGUF Q5_1: 5-bit codes, an fp16 scale and an fp16 minimum per 32 columns, 6 bits per weight."""

    name: ClassVar[str] = "q5_1"
    bits: ClassVar[int] = 5
    nbytes: ClassVar[int] = 24


def _codes(rest: Sequence[Tensor]) -> Tensor:
    """Of the bytes after scale and minimum: nibbles, or high bits and nibbles. float32 [B, 32]."""
    codes = from_nibbles(rest[-1])
    if len(rest) == 2:
        codes = codes | from_high_bits(rest[0]) << 4
    return codes.float()


def _ordered(bits: Tensor) -> Tensor:
    """Numbers as integers in the same order, -0 below +0; its own inverse."""
    if bits.dtype is torch.float32 or bits.dtype is torch.int32:
        bits = bits.view(torch.int32)
        return bits ^ (bits >> 31 & 0x7FFFFFFF)
    bits = bits.view(torch.int16)
    return bits ^ (bits >> 15 & 0x7FFF)


@hookimpl
def converter_quantizers() -> Sequence[type[Quantizer]]:
    return [Q8_0, Q5_1, Q5_0, Q4_1, Q4_0]
