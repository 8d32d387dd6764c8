"""Which quantizer each weight gets: the first rule whose glob matches, else the recipe's method."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate

from .errors import unknown
from .interfaces import ModelAdapter, Quantizer
from .keep import Keep
from .recipe import Recipe, make_quantizer
from .registry import Registry
from .specs import WeightInfo

DEFAULT_MATCH = "(target_modules)"
"""Stands for the weights that the recipe's own method gets."""


@dataclass(frozen=True)
class RuleUse:
    """A rule and how many weights it decided; the recipe's own method comes last, as ``DEFAULT_MATCH``."""

    match: str
    method: str
    matched: int


@dataclass(frozen=True)
class Choice:
    """A weight's quantizer and the rule that chose it, in words."""

    info: WeightInfo
    quantizer: Quantizer
    rule: str


@dataclass(frozen=True)
class Selection:
    choices: tuple[Choice, ...]
    rules: tuple[RuleUse, ...]
    problems: tuple[str, ...]


def rule_name(name: str) -> str:
    """What a rule's glob is matched against: ``blocks.0.self_attn.q`` for ``blocks.0.self_attn.q.weight``."""
    return name.removesuffix(".weight")


def select(
    recipe: Recipe, registry: Registry, adapter: ModelAdapter, names: Mapping[str, WeightInfo], dtype: str | None
) -> Selection:
    """names: weight by its name in the target. dtype: what floating tensors that are not quantized are cast to.

    A weight is quantizable if its kind is ``linear``; a rule with a method speaks of those only, ``none`` of all.
    """
    section = recipe.quantization
    problems: list[str] = []
    modules = section.options.get("target_modules", adapter.modules)
    problems += [
        unknown("target module", module, adapter.modules) for module in modules if module not in adapter.modules
    ]

    keep = Keep(dtype)

    def quantizer(method: str, options: Mapping[str, object]) -> Quantizer:
        if method == keep.name:
            return keep
        own = {key: value for key, value in options.items() if key != "target_modules"}
        return make_quantizer(registry.quantizers[method], own)

    rules = [(re.compile(translate(rule.match)), rule, quantizer(rule.method, rule.options)) for rule in section.rules]
    main = quantizer(section.method, section.options)
    decided = [0] * len(rules)
    would = [0] * len(rules)
    fixed = [0] * len(rules)
    by_default = 0
    choices = []
    for name, info in names.items():
        choice = Choice(info, keep, "not quantizable")
        taken = False
        for number, (pattern, rule, chosen) in enumerate(rules):
            if not pattern.match(rule_name(name)):
                continue
            would[number] += 1
            if info.kind != "linear" and chosen is not keep:
                fixed[number] += 1
            elif not taken:
                decided[number] += 1
                choice = Choice(info, chosen, f"rule {rule.match!r}")
                taken = True
        if not taken and info.kind == "linear" and info.module in modules:
            by_default += 1
            choice = Choice(info, main, "quantization.method")
        choices.append(choice)

    for number, (_, rule, _) in enumerate(rules):
        where = recipe.where(f"quantization.rules[{number}]")
        if not would[number]:
            problems.append(f"{where}: {rule.match!r} matches no weight; names look like {_examples(names)}")
        elif would[number] == fixed[number]:
            problems.append(
                f"{where}: {rule.match!r} gives {rule.method} to {would[number]} tensors that are never quantized "
                "(norms, embeddings, biases, the head); remove the rule"
            )
        elif not decided[number]:
            problems.append(f"{where}: every weight that {rule.match!r} matches is taken by a rule before it")
    if main is not keep and not by_default and not any(decided):
        problems.append(f"{recipe.where('quantization.method')}: {section.method} has nothing to quantize here")
    uses = [RuleUse(rule.match, rule.method, count) for (_, rule, _), count in zip(rules, decided, strict=True)]
    uses.append(RuleUse(DEFAULT_MATCH, section.method, by_default))
    return Selection(tuple(choices), tuple(uses), tuple(problems))


def _examples(names: Mapping[str, WeightInfo]) -> str:
    linear: Sequence[str] = [rule_name(name) for name, info in names.items() if info.kind == "linear"]
    return ", ".join(repr(name) for name in (linear or [rule_name(name) for name in names])[:2])
