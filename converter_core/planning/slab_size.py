"""How many rows of a weight are read, computed and written at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .jobs import BoundTensor, Export, Job
from .output_schema import common_row_block

if TYPE_CHECKING:
    from torch import Tensor

WORKING_BYTES = 16
"""What one element of a span may take beside its source bytes: a float32 copy and three temporaries of that size."""


MERGING_BYTES = 12
"""What it takes beside that while LoRAs are added to it: the merged float32 and a term of that size or two."""


@dataclass(frozen=True)
class Cut:
    """How a job is cut. slab: rows that are encoded and written at a time; span: rows that are quantized at a time.

    A span divides a slab. nbytes: what it takes in memory at a time.
    """

    slab: int
    span: int
    nbytes: int


def cut(job: Job, slab_bytes: int, budget: int) -> Cut:
    """Slabs of about ``slab_bytes`` of source, lower where the budget asks for it; whole where it must be."""
    rows = job.spec.shape[0] if job.spec.shape else 1
    tall = max(rows, 1)
    row_source = -(-(job.source_nbytes + _input_bytes(job, by_rows=True)) // tall)
    row_working = job.spec.numel // tall * (WORKING_BYTES + (MERGING_BYTES if job.terms else 0))
    row_working += -(-_term_bytes(job, by_rows=True) // tall)
    row_output = -(-sum(export.nbytes for export in job.exports) // tall)
    held = _input_bytes(job, by_rows=False) + _term_bytes(job, by_rows=False) + sum(map(_prepared_bytes, job.exports))
    held += _decoding_bytes(job)

    def nbytes(slab: int, span: int) -> int:
        return held + span * (row_source + row_working) + 2 * slab * row_output

    whole = common_row_block(*(export.schema.row_block for export in job.exports)) or 1
    sources = [bound.row_block for several in job.sources.values() for bound in several]
    block = common_row_block(*(export.schema.row_block for export in job.exports), *sources)
    fine = common_row_block(*(export.quantizer.row_block for export in job.exports), *sources)
    if not block or not fine or not job.spec.numel:  # rows without elements are not worth counting
        slab = -(-rows // whole) * whole
        return Cut(slab, slab, nbytes(rows, rows))

    def fit(limit: int, per_row: int, step: int) -> int:
        return max(1, limit // max(per_row, 1) // step) * step

    # what is held may be more than there is: the weight then runs alone, in slabs that are worth the work all the same
    left = max(budget - held, budget // 8, 1)
    span = min(fit(slab_bytes, row_source, fine), fit(left // 2, row_source + row_working, fine))
    slab = min(fit(slab_bytes, row_source, block), fit(left // 2, 2 * row_output, block))
    slab = min(slab, -(-rows // block) * block)
    slab = min(slab, max(span // block, 1) * block)  # spans are copied into a slab: only where its blocks ask for it
    span = min(span, slab)
    return Cut(slab, span, nbytes(slab, span))


def _prepared_bytes(export: Export) -> int:
    specs = {name: given.spec for name, given in export.inputs.items() if isinstance(given, BoundTensor)}
    return export.quantizer.prepared_bytes(specs)


def _input_bytes(job: Job, by_rows: bool) -> int:
    """Of what quantizers take beside the weight: row by row, or whole and held as long as the job runs."""

    def size(given: BoundTensor | Tensor) -> int:
        if isinstance(given, BoundTensor):
            return given.spec.nbytes if given.ref.by_rows == by_rows else 0
        return 0 if by_rows else given.numel() * given.element_size()

    return sum(size(given) for export in job.exports for given in export.inputs.values())


def _decoding_bytes(job: Job) -> int:
    """Of what is decoded as it is read, one tensor at a time."""
    return max((bound.decoding_nbytes for several in job.sources.values() for bound in several), default=0)


def _term_bytes(job: Job, by_rows: bool) -> int:
    """Of LoRAs' tensors, as they are read and in float32: row by row, or whole and held as long as the job runs."""
    terms = (*job.terms, *(term for export in job.exports for term in export.bias_terms))
    parts = (bound for term in terms for bound in term.parts.values() if bound.ref.by_rows == by_rows)
    return sum(bound.spec.nbytes + 4 * bound.spec.numel for bound in parts)
