"""The pages "Models", read off plans of a block of each released model: ``python docs/model_matrix.py`` writes them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from converter_core import ConverterError, Registry, load_plugins, make_plan
from converter_core.api import ModelAdapter, TableModel
from converter_core.checkpoint.synthetic import write_headers_only
from converter_core.cli.describe import summary

DOCS = Path(__file__).parent
YES, NO = "yes", "–"
TEXTS: Mapping[str, Mapping[str, str]] = {
    "models.md": {
        "title": "Models",
        "intro": (
            "What each model adapter knows, and which scheme can be written for which target. Every cell is the answer "
            "of a plan of one block of the released model with default options; a target that refuses says why: "
            "`model-converter plan`. LightX2V's own list of backends: `model-converter inspect` prints it."
        ),
        "head": "| model | released models | tensors | quantized | modules (`target_modules`) | key formats |",
        "matrix": "What can be written for `{target}`",
        "model": "model",
        "rest": (
            "The tensors and the quantized weights are those of the first released model. A model that is not named "
            "here is of the family all the same if its tensors are (fine-tunes of any size); `model-converter inspect` "
            "says so. What no adapter knows converts with `--model-type any` and `quantization.rules`; an adapter of "
            "your own takes [forty lines](your-own-model.md)."
        ),
        "roots": "Whole folders",
        "roots text": (
            "A folder as it was downloaded converts as a whole. Of Wan2.2 A14B both experts are converted into "
            "`OUTPUT/high_noise_model` and `OUTPUT/low_noise_model`, of a diffusers pipeline each transformer that its "
            "`model_index.json` names. Text and image encoders are converted by name: `--component t5` (also `clip`, "
            "`dit` where they lie beside a transformer, or the folders of a pipeline, e.g. `text_encoder`); "
            "`model-converter inspect ROOT` lists what is there. In a recipe: `source.components: [t5]`. A LoRA of a "
            "pair says whose it is: `component: high_noise_model`."
        ),
    },
    "zh/models.md": {
        "title": "模型",
        "intro": (
            "每个模型适配器认识什么，以及哪种方案可以写给哪个目标。"
            "每一格都是用默认选项对已发布模型的一个 block 做计划得到的答案；"
            "被拒绝的原因见 `model-converter plan`。LightX2V 的后端列表由 `model-converter inspect` 给出。"
        ),
        "head": "| 模型 | 已发布的模型 | 张量数 | 量化数 | 模块（`target_modules`） | 键名格式 |",
        "matrix": "可以写给 `{target}` 的方案",
        "model": "模型",
        "rest": (
            "张量数与量化数属于第一个已发布的模型。这里没有列出的模型，只要张量属于同一家族（任意大小的微调）也能转换，"
            "`model-converter inspect` 会说明。没有适配器认识的模型用 `--model-type any` 加 `quantization.rules` 转换；"
            "自己写一个适配器大约[四十行](../your-own-model.md)。"
        ),
        "roots": "整个目录",
        "roots text": (
            "下载下来的目录可以整个转换。Wan2.2 A14B 的两个专家分别写到 `OUTPUT/high_noise_model` 和 "
            "`OUTPUT/low_noise_model`；diffusers 流水线则转换 `model_index.json` 中的每个 transformer。"
            "文本和图像编码器要按名字选："
            "`--component t5`（以及 `clip`；与 transformer 同目录时的 `dit`；或流水线中的目录，如 `text_encoder`）；"
            "`model-converter inspect ROOT` 列出其中有什么。配方里写 `source.components: [t5]`。"
            "一对专家的 LoRA 要写明属于谁：`component: high_noise_model`。"
        ),
    },
}


def models(registry: Registry) -> Iterator[TableModel]:
    """Those of tables, the default first."""
    for _, cls in sorted(registry.models.items(), key=lambda item: (not item[1].default, item[1].auxiliary, item[0])):
        model = cls()
        if isinstance(model, TableModel) and model.variants:
            yield model


def answers(model: TableModel, registry: Registry, folder: Path, targets: Sequence[str]) -> dict[str, dict[str, bool]]:
    """Target -> scheme -> whether a plan of one block of the first released model is accepted."""
    sources = list(small_sources(model, folder))
    return {
        target: {
            scheme: any(accepted(model, target, scheme, source, registry) for source in sources)
            for scheme in sorted(registry.quantizers)
        }
        for target in targets
    }


def small_sources(model: TableModel, folder: Path) -> Iterator[Path]:
    """Headers of one block, in the model's own naming and as diffusers saves it."""
    size = next(iter(model.variants.values()))
    small = replace(size, blocks=dict.fromkeys(size.blocks, 1))
    for key_format in [name for name in ("original", "diffusers") if name in model.table.key_formats]:
        source = folder / f"{model.name}-{key_format}"
        write_headers_only(source, model.table.inventory(small, "BF16", key_format), shards=1)
        if key_format == "diffusers":
            (source / "config.json").write_text(json.dumps({"_class_name": next(iter(model.classes), "")}))
        yield source


def accepted(model: ModelAdapter, target: str, scheme: str, source: Path, registry: Registry) -> bool:
    (source / "tokenizer.model").write_bytes(b"spiece")
    asks = {field.name for field in fields(model)} if is_dataclass(model) else set()
    options = {"tokenizer": str(source / "tokenizer.model")} if "tokenizer" in asks else {}
    recipe = {
        "source": {"path": str(source), "type": model.name, "options": options},
        "quantization": {"method": scheme},
        "target": {"format": target},
        "output": {"path": str(source.parent / "output")},
        "performance": {"device": "cpu", "num_workers": 1},
    }
    try:
        make_plan(recipe, registry).close()
    except ConverterError:
        return False
    return True


def answers_on(page: str) -> dict[str, dict[str, dict[str, bool]]]:
    """What a page says: model -> target -> scheme; schemes that none of its columns names are not written at all."""
    found: dict[str, dict[str, dict[str, bool]]] = {}
    for target, table in re.findall(r"^## [^\n]*`(\w+)`[^\n]*\n\n(\|.*?)\n\n", page, re.M | re.S):
        head, _, *rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
        for name, *cells in rows:
            found.setdefault(name.strip("`"), {})[target] = {
                scheme: cell == YES for scheme, cell in zip(head[1:], cells, strict=True)
            }
    return found


def page(name: str, registry: Registry, found: Mapping[str, Mapping[str, Mapping[str, bool]]]) -> str:
    text = TEXTS[name]
    lines = [f"# {text['title']}", "", text["intro"], "", text["head"], "|---|---|---|---|---|---|"]
    for model in models(registry):
        inventory = model.table.inventory(next(iter(model.variants.values())))
        linear = sum(info.kind == "linear" for info in model.weights(inventory))
        cells = (
            f"`{model.name}`: {summary(type(model))}",
            ", ".join(model.variants),
            f"{len(inventory):,}",
            f"{linear:,}",
            ", ".join(model.modules),
            ", ".join(model.table.key_formats),
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", text["rest"], ""]
    targets = next(iter(found.values()))
    for target in targets:
        schemes = [one for one in targets[target] if any(answer[target][one] for answer in found.values())]
        lines += [f"## {text['matrix'].format(target=target)}", ""]
        lines += [f"| {text['model']} | {' | '.join(schemes)} |", f"|---|{'---|' * len(schemes)}"]
        for model, answer in found.items():
            lines.append(f"| `{model}` | {' | '.join(YES if answer[target][one] else NO for one in schemes)} |")
        lines.append("")
    return "\n".join([*lines, f"## {text['roots']}", "", text["roots text"], ""])


def ours() -> Registry:
    """Without plugins of others, which may be installed beside ours."""
    everything = load_plugins()
    others = {
        origin.plugin
        for catalogue in everything.catalogues()
        for origin in catalogue.origins.values()
        if origin.distribution != "model-converter"
    }
    return load_plugins(blocked=others)


if __name__ == "__main__":
    # python docs/model_matrix.py TARGET ...: these alone are asked anew, for all of them take minutes
    registry = ours()
    before = answers_on((DOCS / "models.md").read_text(encoding="utf-8")) if sys.argv[1:] else {}
    order = sorted(registry.targets, key=lambda name: (not registry.targets[name].default, name))
    with TemporaryDirectory() as scratch:
        made = {
            model.name: answers(model, registry, Path(scratch), sys.argv[1:] or order) for model in models(registry)
        }
    whole = {name: {**before.get(name, {}), **answer} for name, answer in made.items()}
    found = {name: {target: answer[target] for target in order} for name, answer in whole.items()}
    for name in TEXTS:
        (DOCS / name).write_text(page(name, registry, found), encoding="utf-8")
