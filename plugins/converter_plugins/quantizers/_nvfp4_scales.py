"""Block scales of nvfp4 that are better than absmax / 6, among those that E4M3 can hold.

How much better a neighbouring scale is, is a sum over the block of a function of one number: the magnitude in steps of
the absmax scale. That function, for each neighbour and each mantissa of the scale, is tabulated in fine bins, and each
entry is the least favourable value in its bin: what the table calls better is better, and no block gets worse. Entries
are integers small enough for float32 to add exactly, so the sums are the same in any order and on any device.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from . import _loops
from ._bits import by_pieces
from ._fp4 import VALUES, scaled

E4M3_MAX = 448.0
TOP_CODE = 0x7E

STEPS = (0, -1, 1, 4, 5, 3, -2, 6)
"""From the E4M3 code of absmax / 6 to the codes that ``mse`` tries. The block's largest magnitude then lies at 6 or
beyond (0, -1, -2), below 6 (1) or near 4 (3...6). The steps left out win in two blocks of a thousand (2) or none."""

FIRST_SEARCHED = 16
"""Below this code E4M3's subnormal numbers are among the neighbours, whose ratios differ. Such a block is 14000 times
smaller than the weight's largest value; it keeps absmax."""

BINS = 2048
BINS_PER_STEP = 320
"""Up to 6.4: absmax / 6 rounded down by half an E4M3 step leaves 6 * 17/16 = 6.375."""

UNIT = 2.0**18
"""Of the table's integers. The sum of 16 stays below 2^24."""

NEVER = 1 << 24


def block_codes(exact: Tensor) -> Tensor:
    """Scales that are not negative, float32 -> E4M3 codes, int32; saturated."""
    return exact.clamp(max=E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8).to(torch.int32)


def divisors(codes: Tensor) -> Tensor:
    """E4M3 codes, int32 -> their values, float32; 1 for code 0, over which all of such a block rounds to zero."""
    return (codes << 20).view(torch.float32).mul_(2.0**120).add_((codes == 0).float())


def compiled(weight: Tensor, whole: Tensor, rule: str) -> tuple[Tensor, Tensor] | None:
    """Codes, E4M3 [O, I / 16], and ``whole`` over their values, in one pass; None where only torch can."""
    if not _loops.suit(weight) or rule not in ("absmax", "mse"):
        return None
    device = weight.device
    search = _steps(device), _allowed(device), _changes(device), float(BINS_PER_STEP)
    codes, per_step = _loops.nvfp4_scales(weight, whole, search if rule == "mse" else None)
    return codes.view(torch.float8_e4m3fn), per_step


@cache
def _steps(device: torch.device) -> Tensor:
    return torch.tensor(STEPS, dtype=torch.int8, device=device)


def better_codes(
    weight: Tensor, first: Tensor, global_scale: Tensor, over_four: Tensor | None = None, shares: Tensor | None = None
) -> Tensor:
    """Codes, int32 [O, I / 16], whose squared error is the smallest in each block; at a tie the given ones.

    first: codes of absmax / 6. over_four: where given, the codes of absmax / 4, which are the only others to try.
    shares: how much each column counts, float32 [I]; None: all alike.
    """
    device = first.device
    bins_per_unit = (global_scale * divisors(first).reciprocal_()).mul_(BINS_PER_STEP)
    shift = ((first & 7) * BINS).float()
    allowed = _allowed(device).index_select(0, first.view(-1))
    if over_four is not None:
        allowed &= _the_first_and(device).index_select(0, (over_four - first).view(-1).clamp_(max=7))
    best = _best_steps(weight, bins_per_unit, shift, allowed.view(first.shape), shares).view(-1)
    return torch.tensor(STEPS, dtype=torch.int32, device=device).index_select(0, best).view(first.shape) + first


def _best_steps(weight: Tensor, bins_per_unit: Tensor, shift: Tensor, allowed: Tensor, shares: Tensor | None) -> Tensor:
    """Which of ``STEPS`` changes the error of each block least, of those whose bits are set in ``allowed``, int32."""
    table = _changes(weight.device)
    if _loops.suit(weight):
        return _loops.best_steps(weight, bins_per_unit, shift, allowed, table, shares).to(torch.int32)

    def best(rows: Tensor, bins_per_unit: Tensor, shift: Tensor, allowed: Tensor) -> Tensor:
        bins = scaled(rows, bins_per_unit).add_(shift.unsqueeze(-1)).to(torch.int32).clamp_(0, len(table) - 1)
        flat = bins.view(-1, bins.shape[-1])
        if shares is not None:
            sums = _weighted_sums(flat, table, shares.view(-1, flat.shape[1]).repeat(len(rows), 1))
            closed = ~(allowed.view(-1, 1).to(torch.int32) >> torch.arange(len(STEPS), device=rows.device)) & 1
            return _first_least(sums.masked_fill(closed.bool(), torch.inf)).view(shift.shape)
        change = embedding_bag(flat, table, mode="sum").to(torch.int32)
        number = torch.arange(len(STEPS), dtype=torch.int32, device=rows.device)
        change += (~allowed.view(-1, 1).to(torch.int32) >> number & 1).mul_(NEVER)
        # the least change and, in the last three bits, whose it is
        return ((change << 3).add_(number).amin(1) & 7).view(shift.shape)

    return by_pieces(best, weight, bins_per_unit, shift, allowed)


def _weighted_sums(bins: Tensor, table: Tensor, shares: Tensor) -> Tensor:
    """[blocks, steps]: those of even columns are added, one after the other, those of odd ones, then both."""
    halves = []
    for begin in (0, 1):
        total = torch.zeros(len(bins), table.shape[1], device=bins.device)
        for column in range(begin, bins.shape[1], 2):
            total += table.index_select(0, bins[:, column]).mul_(shares[:, column].unsqueeze(1))
        halves.append(total)
    return halves[0] + halves[1]


def _first_least(numbers: Tensor) -> Tensor:
    """The position of the first of the least in each row, int32."""
    position = torch.arange(numbers.shape[1], dtype=torch.int32, device=numbers.device)
    return torch.where(numbers == numbers.amin(1, keepdim=True), position, len(STEPS)).amin(1)


@cache
def _allowed(device: torch.device) -> Tensor:
    """[127] uint8: for each code the bits of the steps that do not lead out of E4M3 and are in the table."""
    codes = range(TOP_CODE + 1)
    masks = [_mask(step for step in STEPS if not step or FIRST_SEARCHED <= code <= TOP_CODE - step) for code in codes]
    return torch.tensor(masks, dtype=torch.uint8, device=device)


@cache
def _the_first_and(device: torch.device) -> Tensor:
    """[8] uint8: the bits of step 0 and of the step that is the row's number."""
    masks = [_mask(step for step in STEPS if step in (0, row)) for row in range(8)]
    return torch.tensor(masks, dtype=torch.uint8, device=device)


def _mask(steps: Iterable[int]) -> int:
    return sum(1 << STEPS.index(step) for step in steps)


@cache
def _changes(device: torch.device) -> Tensor:
    """[8 mantissas * bins, steps] float32: by how much the squared error grows with each step, in units of
    2^-18 squared absmax scales, rounded up from the largest growth within the bin.

    Within a bin the growth is piecewise linear (both errors have the same square), so its largest value is at an end of
    the bin or where one of the two roundings jumps. Bins overlap a little for what float32 rounds on the way.
    """
    grid = torch.tensor(VALUES, dtype=torch.float64)
    jumps = (grid[1:] + grid[:-1]) / 2
    start = (torch.arange(BINS, dtype=torch.float64) - 1 / 64).div_(BINS_PER_STEP).unsqueeze(1)
    end = start + (1 + 1 / 32) / BINS_PER_STEP

    def squared_error(values: Tensor, scale: float) -> Tensor:
        steps = values / scale
        return (steps - grid[torch.bucketize(steps, jumps)]).mul_(scale).square_()

    table = torch.empty(8, BINS, len(STEPS), dtype=torch.float64)
    for mantissa in range(8):
        for column, step in enumerate(STEPS):
            octave, other = divmod(mantissa + step, 8)
            scale = (8 + other) / (8 + mantissa) * 2.0**octave
            inside = torch.cat([jumps, jumps * scale]).expand(BINS, -1)
            points = torch.cat([start, end, inside.clamp(start, end)], 1)
            table[mantissa, :, column] = (squared_error(points, scale) - squared_error(points, 1.0)).amax(1)
    return table.mul_(UNIT).ceil_().view(8 * BINS, -1).float().to(device)
