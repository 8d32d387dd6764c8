"""GGUF's blocks of 256 columns (K-quants): q6_k, q5_k, q4_k, q3_k, q2_k."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from converter_core.api import QuantFormat, Quantizer, TensorSpec, hookimpl

from . import _gguf_loops, _gguf_search
from ._bits import admit, by_pieces
from ._gguf_bytes import SMALLEST_HALF, from_half, join, split, to_half
from ._gguf_k_bytes import (
    from_bit,
    from_low_nibbles,
    from_pairs_of_bits,
    from_scales,
    from_signed_scales,
    pack_bit,
    pack_low_nibbles,
    pack_pairs_of_bits,
    pack_scales,
    pack_signed_scales,
)
from ._gguf_search import Affine, Symmetric
from .gguf_blocks import Q8_0, WIDTH

if TYPE_CHECKING:
    from converter_core.api import Parts

BLOCK = 256


class KQuant(Quantizer):
    """Integer scales of groups, and fp16 units of these for each block of 256 columns.

    The layout is ggml's (ggml-common.h, ``block_q4_K`` ...), the search for scales our own (``_gguf_search``).

    Parts: ``weight`` uint8 [O, I / 256 * nbytes].

    bits: of a code. nbytes: of a block. kind: what is searched for.
    """

    row_block: ClassVar[int | None] = 1

    bits: ClassVar[int]
    nbytes: ClassVar[int]
    kind: ClassVar[Affine | Symmetric]

    @property
    def format(self) -> QuantFormat:
        symmetric = isinstance(self.kind, Symmetric)
        return QuantFormat(
            self.name, f"int{self.bits}", self.bits, "group", self.kind.width, "F16", symmetric, f"gguf {self.name}"
        )

    def fallback(self, spec: TensorSpec, /) -> Quantizer | None:
        """``q8_0`` where the columns fill no block of 256 but blocks of 32."""
        columns = spec.shape[-1] if len(spec.shape) == 2 else 0
        return Q8_0() if columns % BLOCK and not columns % WIDTH else None

    def quantize(self, weight: Tensor, /) -> Parts:
        weight = admit(weight, BLOCK)
        if weight.device.type == "meta":  # hundreds of operations, which cost the most where they compute nothing
            shape = (weight.shape[0], weight.shape[1] // BLOCK * self.nbytes)
            return {"weight": torch.empty(shape, dtype=torch.uint8, device="meta")}
        if _gguf_loops.suit(self.name, weight):
            return {"weight": _gguf_loops.quantize(self.name, weight, BLOCK, self.nbytes)}

        def packed(rows: Tensor) -> Tensor:
            blocks = rows.float().view(-1, BLOCK // self.kind.width, self.kind.width)
            return self._packed(blocks).view(rows.shape[0], -1)

        return {"weight": by_pieces(packed, weight)}

    def dequantize(self, parts: Parts, /) -> Tensor:
        packed = parts["weight"]
        codes, scale, minimum = self._unpacked(packed.reshape(-1, self.nbytes))
        values = codes.view(-1, BLOCK // self.kind.width, self.kind.width) * scale
        if minimum is not None:
            values.sub_(minimum)
        return values.view(packed.shape[0], -1)

    def quantization_step(self, parts: Parts, /) -> Tensor:
        packed = parts["weight"]
        _, scale, _ = self._unpacked(packed.reshape(-1, self.nbytes))
        return scale.abs().clamp_(min=SMALLEST_HALF).expand(-1, -1, self.kind.width).reshape(packed.shape[0], -1)

    @abstractmethod
    def _packed(self, blocks: Tensor) -> Tensor:
        """float32 [B, groups, width] -> uint8 [B, nbytes]."""

    @abstractmethod
    def _unpacked(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """uint8 [B, nbytes] -> codes [B, 256], scales and minima [B, groups, 1]; float32."""


class AffineK(KQuant):
    """``scale * code - minimum``."""

    kind: ClassVar[Affine]

    def _packed(self, blocks: Tensor) -> Tensor:
        scale, low, d, dmin = _gguf_search.affine(blocks, self.kind)
        codes = _gguf_search.codes(blocks, d * scale, dmin * low, 0, self.kind.top).view(-1, BLOCK)
        units = to_half(join(d.flatten(1), dmin.flatten(1)))
        return self._joined(codes, scale.flatten(1).to(torch.uint8), low.flatten(1).to(torch.uint8), units)

    @abstractmethod
    def _joined(self, codes: Tensor, scale: Tensor, low: Tensor, units: Tensor) -> Tensor: ...


class SymmetricK(KQuant):
    """``scale * code``."""

    kind: ClassVar[Symmetric]

    def _packed(self, blocks: Tensor) -> Tensor:
        scale, d = _gguf_search.symmetric(blocks, self.kind)
        half = self.kind.half
        codes = _gguf_search.codes(blocks, d * scale, torch.zeros_like(d), -half, half - 1).view(-1, BLOCK)
        return self._joined(codes, scale.flatten(1).to(torch.int8), to_half(d.flatten(1)))

    @abstractmethod
    def _joined(self, codes: Tensor, scale: Tensor, unit: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Q6_K(SymmetricK):
    """GGUF Q6_K: 6-bit codes, 8-bit scales per 16 columns, 6.56 bits per weight."""

    name: ClassVar[str] = "q6_k"
    bits: ClassVar[int] = 6
    nbytes: ClassVar[int] = 210
    kind: ClassVar[Symmetric] = Symmetric(16, 32, -128, 127, 2.0**15)

    def _joined(self, codes: Tensor, scale: Tensor, unit: Tensor) -> Tensor:
        return join(pack_low_nibbles(codes, 64), pack_pairs_of_bits(codes >> 4), scale.view(torch.uint8), unit)

    def _unpacked(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        low, high, scale, unit = split(packed, 128, 64, 16)
        codes = from_low_nibbles(low, 64) | from_pairs_of_bits(high) << 4
        scales = from_half(unit) * scale.contiguous().view(torch.int8).float()
        return codes.float().sub_(32), scales.unsqueeze(2), None


@dataclass(frozen=True)
class Q3_K(SymmetricK):
    """GGUF Q3_K: 3-bit codes, 6-bit scales per 16 columns, 3.44 bits per weight."""

    name: ClassVar[str] = "q3_k"
    bits: ClassVar[int] = 3
    nbytes: ClassVar[int] = 110
    kind: ClassVar[Symmetric] = Symmetric(16, 4, -32, 31, 2.0**18)

    def _joined(self, codes: Tensor, scale: Tensor, unit: Tensor) -> Tensor:
        scales = pack_signed_scales((scale + 32).view(torch.uint8))
        return join(pack_bit(codes, 2), pack_pairs_of_bits(codes & 3), scales, unit)

    def _unpacked(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        high, low, scale, unit = split(packed, 32, 64, 12)
        codes = from_pairs_of_bits(low) | from_bit(high) << 2
        scales = from_half(unit) * from_signed_scales(scale).float().sub_(32)
        return codes.float().sub_(4), scales.unsqueeze(2), None


@dataclass(frozen=True)
class Q5_K(AffineK):
    """GGUF Q5_K: 5-bit codes, 6-bit scales and minima per 32 columns, 5.5 bits per weight."""

    name: ClassVar[str] = "q5_k"
    bits: ClassVar[int] = 5
    nbytes: ClassVar[int] = 176
    kind: ClassVar[Affine] = Affine(32, 31, 63, 2.0**14)

    def _joined(self, codes: Tensor, scale: Tensor, low: Tensor, units: Tensor) -> Tensor:
        return join(units, pack_scales(scale, low), pack_bit(codes, 4), pack_low_nibbles(codes, 32))

    def _unpacked(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        units, scales, high, low = split(packed, 4, 12, 32)
        return (from_low_nibbles(low, 32) | from_bit(high) << 4).float(), *_scaled(units, *from_scales(scales))


@dataclass(frozen=True)
class Q4_K(AffineK):
    """GGUF Q4_K: 4-bit codes, 6-bit scales and minima per 32 columns, 4.5 bits per weight."""

    name: ClassVar[str] = "q4_k"
    bits: ClassVar[int] = 4
    nbytes: ClassVar[int] = 144
    kind: ClassVar[Affine] = Affine(32, 15, 63, 2.0**15)

    def _joined(self, codes: Tensor, scale: Tensor, low: Tensor, units: Tensor) -> Tensor:
        return join(units, pack_scales(scale, low), pack_low_nibbles(codes, 32))

    def _unpacked(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        units, scales, low = split(packed, 4, 12)
        return from_low_nibbles(low, 32).float(), *_scaled(units, *from_scales(scales))


@dataclass(frozen=True)
class Q2_K(AffineK):
    """GGUF Q2_K: 2-bit codes, 4-bit scales and minima per 16 columns, 2.63 bits per weight."""

    name: ClassVar[str] = "q2_k"
    bits: ClassVar[int] = 2
    nbytes: ClassVar[int] = 84
    kind: ClassVar[Affine] = Affine(16, 3, 15, 2.0**18)

    def _joined(self, codes: Tensor, scale: Tensor, low: Tensor, units: Tensor) -> Tensor:
        return join(scale | low << 4, pack_pairs_of_bits(codes), units)

    def _unpacked(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        scales, codes, units = split(packed, 16, 64)
        return from_pairs_of_bits(codes).float(), *_scaled(units, scales & 15, scales >> 4)


def _scaled(units: Tensor, scale: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima [B, groups, 1] of fp16 units [B, 4 bytes] and integers [B, groups]."""
    d, dmin = from_half(units).split(1, 1)  # type: ignore[no-untyped-call]
    return (d * scale.float()).unsqueeze(2), (dmin * low.float()).unsqueeze(2)


@hookimpl
def converter_quantizers() -> Sequence[type[Quantizer]]:
    return [Q6_K, Q5_K, Q4_K, Q3_K, Q2_K]
