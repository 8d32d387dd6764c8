"""The pages "Recipe keys", read off the dataclasses of a recipe: ``python docs/recipe_keys.py`` writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

from converter_core.recipe.schema import describe, hints
from converter_core.recipe.values import Recipe

DOCS = Path(__file__).parent
FLAGS: Mapping[str, str] = {
    "source.path": "--source",
    "source.type": "--model-type",
    "source.components": "--component",
    "source.loras[].path": "--lora-path",
    "source.loras[].strength": "--lora-strength",
    "source.loras[].alpha": "--lora-alpha",
    "quantization.method": "--scheme",
    "output.path": "--output",
    "output.name": "--output-name",
    "output.state_folder": "--state-folder",
    "output.copy_metadata": "--copy-no-weight-files",
    "target.format": "--target",
    "target.layout": "--single-file, --save-by-block",
    "target.chunk_size": "--chunk-size",
    "target.dtype": "--non-linear-dtype",
    "performance.parallel": "--parallel, --no-parallel",
    "performance.device": "--device",
    "performance.executor": "--executor",
}
VALUES: Mapping[str, str] = {
    "source.format": "the name of a container",
    "source.path": "a path or a URL",
    "source.calibration": "a path",
    "source.loras[].path": "a path",
    "source.lora_numerics": "exact or the name of a target",
    "output.path": "a path or a URL",
    "output.state_folder": "a path",
    "output.name": "the name of a file",
    "performance.num_workers": "a whole number from 1 to 4 x cores",
    "performance.max_memory": "a size such as 1GiB",
    "quantization.rules[].match": "a glob of at most 512 characters",
    "performance.executor": "threads or ray",
}
TEXTS = {
    "recipe.md": (
        "# Recipe keys",
        "Every key of a recipe. `--set key=value` sets one and wins over the file; a list is given whole.",
        "| key | values | default | flag |",
        "required",
        [
            "`outputs` stands in place of the top-level `quantization`, `output` and `target`, and gives each output "
            "sections of its own; two outputs cannot share a folder.",
            "`--also SCHEME[:TARGET[:LAYOUT]]` adds an output to a recipe of one, as often as it is given: the same "
            "source, read once, with another method (its options left out) and maybe another target and layout. Then "
            "each output, the recipe's own too, goes into `OUTPUT/<target>_<scheme>_<layout>`.",
            "`per_channel: true` and `symmetric: true` are taken by every method; `false` only where a method has it.",
            "`parallel: false` and more than one worker contradict each other: given in one place they are refused; "
            "otherwise a flag or `--set` wins over the file.",
            "`source.options` needs `source.type`. `options` are those of the plugin.",
            "With `executor: ray` the workers are processes of a cluster: `num_workers` may be any number (default: as "
            "many as the cluster has CPUs, or GPUs), `max_memory` is of each worker (default 512 MiB), and `device` is "
            "the workers', one card each. Keys of a batch file: [many conversions](scale.md).",
            "`output.state_folder` is for an output on a URL: where parts that are not sent yet lie "
            "([Storages](storages.md)).",
            "LoRAs are merged in the order given; what `strength` and `alpha` do: [LoRA](lora.md).",
        ],
    ),
    "zh/recipe.md": (
        "# 配方的键",
        "配方中的所有键。`--set key=value` 设置一个键，并优先于文件；列表要整个给出。",
        "| 键 | 取值 | 默认值 | 命令行参数 |",
        "必填",
        [
            "`outputs` 代替顶层的 `quantization`、`output` 和 `target`，每个输出有自己的这三节；"
            "两个输出不能用同一个目录。",
            "`--also SCHEME[:TARGET[:LAYOUT]]` 给只有一个输出的配方增加一个输出，可重复："
            "同一源权重只读一次，换一种方法（不带其选项），也可换目标和布局。"
            "此时每个输出（包括配方自己的）写入 `OUTPUT/<target>_<scheme>_<layout>`。",
            "所有方法都接受 `per_channel: true` 和 `symmetric: true`；只有具有该选项的方法才接受 `false`。",
            "`parallel: false` 与多个 worker 互相矛盾：写在同一处会被拒绝；否则命令行参数或 `--set` 优先于文件。",
            "`source.options` 需要 `source.type`。`options` 是插件自己的选项。",
            "`executor: ray` 时，worker 是集群中的进程：`num_workers` 可为任意整数（默认为集群的 CPU 数或 GPU 数），"
            "`max_memory` 是每个 worker 的上限（默认 512 MiB），`device` 指 worker 的设备，每个一张卡。"
            "批处理文件的键见 [scale](../scale.md)。",
            "`output.state_folder` 用于写到 URL 的输出："
            "尚未上传的部分存放在这个目录（见 [Storages](../storages.md)）。",
            "LoRA 按给出的顺序合并；`strength` 与 `alpha` 的含义见 [LoRA](lora.md)。",
        ],
    ),
}
CHINESE: Mapping[str, str] = {
    "true or false": "true 或 false",
    "a number": "数",
    "exact or the name of a target": "exact 或某个 target 的名字",
    "a path": "路径",
    "a path or a URL": "路径或 URL",
    "the name of a file": "文件名",
    "text": "文本",
    "the name of a container": "容器的名称",
    "a mapping": "映射",
    "a whole number or text": "整数或文本",
    "a whole number from 1 to 4 x cores": "1 到 4 x 核数的整数",
    "threads or ray": "threads 或 ray",
    "a size such as 1GiB": "大小，如 1GiB",
    "a glob of at most 512 characters": "通配符，最多 512 个字符",
}


def keys(cls: Any, path: str = "") -> Iterator[tuple[str, Field[Any], Any]]:
    """Every key that has a value of its own, with its field and its type."""
    for field in fields(cls):
        if field.metadata.get("internal"):
            continue
        hint, key = hints(cls)[field.name], path + field.name
        items = [one for one in get_args(hint) if is_dataclass(one)]
        if is_dataclass(hint):
            yield from keys(hint, f"{key}.")
        elif items:
            yield from keys(items[0], f"{key}[].")
        else:
            yield key, field, hint


def page(name: str) -> str:
    title, intro, head, required, remarks = TEXTS[name]
    lines = [title, "", intro, "", head, "|---|---|---|---|"]
    for key, field, hint in keys(Recipe):
        if key.startswith("outputs[]."):
            continue
        values = VALUES.get(key) or describe(hint)
        shown = CHINESE.get(values, values.replace(" or ", " 或 ")) if name.startswith("zh/") else values
        flags = ", ".join(f"`{flag}`" for flag in FLAGS.get(key, "").split(", ") if flag)
        lines.append(f"| `{key}` | {shown} | {default(field, required)} | {flags} |")
    lines += ["", *(f"* {remark}" for remark in remarks), ""]
    return "\n".join(lines)


def default(field: Field[Any], required: str) -> str:
    if field.default is MISSING and field.default_factory is MISSING:
        return required
    value = field.default
    if value is MISSING or value is None or value == ():
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    for name in TEXTS:
        (DOCS / name).write_text(page(name), encoding="utf-8")
