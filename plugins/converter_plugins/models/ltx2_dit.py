"""LTX-2, audio and video: the naming of the released files, which LightX2V reads, and that of diffusers.

Names: ltx_core of Lightricks/LTX-2, by diffusers' ``convert_ltx2_transformer_to_diffusers``; shapes: its class.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import ClassVar

from converter_core.api import ModelAdapter, Row, Size, Table, TableModel, hookimpl, linear, norm

ROOT = "model.diffusion_model."
BLOCK, BLOCK_D = f"{ROOT}transformer_blocks.{{}}.", "transformer_blocks.{}."

ADALN = (
    ("adaln_single", "time_embed", "dim", "time_rows", ""),
    ("audio_adaln_single", "audio_time_embed", "audio_dim", "audio_time_rows", ""),
    ("av_ca_video_scale_shift_adaln_single", "av_cross_attn_video_scale_shift", "dim", "4*dim", ""),
    ("av_ca_audio_scale_shift_adaln_single", "av_cross_attn_audio_scale_shift", "audio_dim", "4*audio_dim", ""),
    ("av_ca_a2v_gate_adaln_single", "av_cross_attn_video_a2v_gate", "dim", "dim", ""),
    ("av_ca_v2a_gate_adaln_single", "av_cross_attn_audio_v2a_gate", "audio_dim", "audio_dim", ""),
    ("prompt_adaln_single", "prompt_adaln", "dim", "2*dim", "prompt_adaln"),
    ("audio_prompt_adaln_single", "audio_prompt_adaln", "audio_dim", "2*audio_dim", "prompt_adaln"),
)
"""Name, name in diffusers, width, rows of the projection, branch."""

TABLES = (
    ("scale_shift_table", "scale_shift_table", "modulations", "dim", ""),
    ("audio_scale_shift_table", "audio_scale_shift_table", "audio_modulations", "audio_dim", ""),
    ("scale_shift_table_a2v_ca_video", "video_a2v_cross_attn_scale_shift_table", 5, "dim", ""),
    ("scale_shift_table_a2v_ca_audio", "audio_a2v_cross_attn_scale_shift_table", 5, "audio_dim", ""),
    ("prompt_scale_shift_table", "prompt_scale_shift_table", 2, "dim", "prompt"),
    ("audio_prompt_scale_shift_table", "audio_prompt_scale_shift_table", 2, "audio_dim", "prompt"),
)

ATTENTIONS = (
    ("attn1", "dim", "dim", "dim"),
    ("audio_attn1", "audio_dim", "audio_dim", "audio_dim"),
    ("attn2", "dim", "dim", "context_dim"),
    ("audio_attn2", "audio_dim", "audio_dim", "audio_context_dim"),
    ("audio_to_video_attn", "audio_dim", "dim", "audio_dim"),
    ("video_to_audio_attn", "audio_dim", "audio_dim", "dim"),
)
"""Name, width inside, of the queries and the result, of keys and values."""


def _embedding(name: str, diffusers: str, rows: str, columns: str, branch: str = "") -> Iterator[Row]:
    return linear(ROOT + name, rows, columns, also=(diffusers,), kind="embedding", branch=branch)


def _attention(name: str, inner: str, queries: str, keys: str) -> Iterator[Row]:
    for mine, theirs in (("q_norm", "norm_q"), ("k_norm", "norm_k")):
        yield from norm(f"{BLOCK}{name}.{mine}", inner, also=(f"{BLOCK_D}{name}.{theirs}",))
    for part, rows, columns in (("to_q", inner, queries), ("to_k", inner, keys), ("to_v", inner, keys)):
        yield from linear(f"{BLOCK}{name}.{part}", rows, columns, also=(f"{BLOCK_D}{name}.{part}",))
    yield from linear(f"{BLOCK}{name}.to_out.0", queries, inner, also=(f"{BLOCK_D}{name}.to_out.0",))
    gate = f"{name}.to_gate_logits"
    yield from linear(f"{BLOCK}{gate}", "heads", queries, also=(BLOCK_D + gate,), branch="gated")


def _rows() -> Iterator[Row]:
    for part, dim in (("", "dim"), ("audio_", "audio_dim")):
        yield Row(f"{ROOT}{part}scale_shift_table", (2, dim), "modulation", also=(f"{part}scale_shift_table",))
        yield from _embedding(f"{part}patchify_proj", f"{part}proj_in", dim, f"{part}in_dim")
        for number, columns in ((1, "text_dim"), (2, dim)):
            name = f"{part}caption_projection.linear_{number}"
            yield from _embedding(name, name, dim, columns, "caption")
    for name, theirs, dim, rows, branch in ADALN:
        for number, columns in ((1, "freq_dim"), (2, dim)):
            step = f"emb.timestep_embedder.linear_{number}"
            yield from _embedding(f"{name}.{step}", f"{theirs}.{step}", dim, columns, branch)
        yield from _embedding(f"{name}.linear", f"{theirs}.linear", rows, dim, branch)
    for name, theirs, count, dim, branch in TABLES:
        yield Row(BLOCK + name, (count, dim), "modulation", also=(BLOCK_D + theirs,), branch=branch)
    for attention in ATTENTIONS:
        yield from _attention(*attention)
    for part, dim, wide in (("", "dim", "ff_dim"), ("audio_", "audio_dim", "audio_ff_dim")):
        for net, rows, columns in ((f"{part}ff.net.0.proj", wide, dim), (f"{part}ff.net.2", dim, wide)):
            yield from linear(BLOCK + net, rows, columns, also=(BLOCK_D + net,))
    for part, dim in (("", "dim"), ("audio_", "audio_dim")):
        name = f"{part}proj_out"
        yield from linear(ROOT + name, f"{part}out_dim", dim, also=(name,), kind="head")


def _size(blocks: int, dim: int, audio_dim: int, text_dim: int, heads: int, *branches: str) -> Size:
    count = 9 if "prompt" in branches else 6
    dims = {"dim": dim, "ff_dim": 4 * dim, "time_rows": count * dim, "context_dim": dim, "modulations": count}
    audio = {f"audio_{name}": length * audio_dim // dim for name, length in dims.items() if name != "modulations"}
    more = {"audio_modulations": count, "text_dim": text_dim, "heads": heads, "freq_dim": 256}
    ends = dict.fromkeys(("in_dim", "out_dim", "audio_in_dim", "audio_out_dim"), 128)
    return Size(dims | audio | more | ends, {BLOCK: blocks}, frozenset(branches), frozenset({"gated"}))


class Ltx2Dit(TableModel):
    """LTX-2 transformers, audio and video: the released key format and diffusers'."""

    name: ClassVar[str] = "ltx2_dit"
    modules: ClassVar[Sequence[str]] = (*(name for name, *_ in ATTENTIONS), "ff", "audio_ff")
    table: ClassVar[Table] = Table(_rows(), ("original", "diffusers"))
    signature: ClassVar[Sequence[Collection[str]]] = (
        (f"{BLOCK}audio_to_video_attn.to_q.weight", f"{ROOT}av_ca_a2v_gate_adaln_single.linear.weight"),
    )
    shared: ClassVar[Collection[str]] = tuple(
        f"{ROOT}{name}" for name in ("scale_shift_table", "proj_out.weight", "proj_out.bias")
    )
    ignored: ClassVar[tuple[str, ...]] = ("audio_vae.", "vocoder.", "text_embedding_projection.")
    classes: ClassVar[Collection[str]] = ("LTX2VideoTransformer3DModel",)
    variants: ClassVar[Mapping[str, Size]] = {"LTX-2-19B": _size(48, 4096, 2048, 3840, 32, "caption")}
    sample: ClassVar[Size] = _size(2, 64, 32, 48, 4, "caption")


@hookimpl
def converter_models() -> Sequence[type[ModelAdapter]]:
    return [Ltx2Dit]
