"""Which quantizer each weight gets: the first rule whose glob matches, else the recipe's method."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate

from ..api.models import ModelAdapter
from ..api.quantizers import Quantizer
from ..api.targets import Target
from ..api.values import WeightInfo
from ..errors import unknown
from ..plugins.registry import Registry
from ..recipe.load import Recipe, quantizer_for
from .passthrough import Passthrough

DEFAULT_MATCH = "(target_modules)"
"""Stands for the weights that the recipe's own method gets."""


@dataclass(frozen=True)
class RuleUse:
    """A rule and how many weights it decided; the recipe's own method comes last, as ``DEFAULT_MATCH``."""

    match: str
    method: str
    matched: int


@dataclass(frozen=True)
class Assignment:
    """A weight's quantizer and the rule that chose it, in words."""

    info: WeightInfo
    quantizer: Quantizer
    rule: str


@dataclass(frozen=True)
class Assignments:
    """Of all weights. rules: how many weights each rule decided."""

    all: tuple[Assignment, ...]
    rules: tuple[RuleUse, ...]
    problems: tuple[str, ...]


def rule_name(name: str) -> str:
    """What a rule's glob is matched against: ``blocks.0.self_attn.q`` for ``blocks.0.self_attn.q.weight``."""
    return name.removesuffix(".weight")


def quantizer_of(registry: Registry, method: str, options: Mapping[str, object], target: Target) -> Quantizer | None:
    """With the options that are its own, those left out as the target takes them; None for the method ``none``."""
    if method == Passthrough.name:
        return None
    own = {key: value for key, value in options.items() if key != "target_modules"}
    return quantizer_for(registry.quantizers[method], own, target)


class _Rule:
    """A rule of the recipe, and the weights it met."""

    def __init__(self, match: str, method: str, quantizer: Quantizer | None) -> None:
        self.match = match
        self.method = method
        self.quantizer = quantizer
        self._pattern = re.compile(translate(match))
        self.matched = self.fixed = self.decided = 0

    def takes(self, names: Collection[str], info: WeightInfo, free: bool) -> bool:
        """Whether it decides a weight. names: every name that the weight goes by. free: no rule before it does."""
        if not any(self._pattern.match(rule_name(name)) for name in names):
            return False
        self.matched += 1
        if info.kind != "linear" and self.quantizer is not None:
            self.fixed += 1
            return False
        self.decided += free
        return free

    def problem(self, examples: str) -> str:
        """Why it is of no use; empty if it is."""
        if not self.matched:
            return f"{self.match!r} matches no weight; names look like {examples}"
        if self.matched == self.fixed:
            return (
                f"{self.match!r} gives {self.method} to {self.matched} tensors that are never quantized "
                "(norms, embeddings, biases, the head); remove the rule"
            )
        return "" if self.decided else f"every weight that {self.match!r} matches is taken by a rule before it"


def assign(
    recipe: Recipe,
    registry: Registry,
    adapter: ModelAdapter,
    infos: Sequence[WeightInfo],
    target: Target,
    passthrough: Passthrough,
    main: Quantizer | None,
) -> Assignments:
    """A rule may use the target's names as well as the model's own. main: the recipe's own method.

    A weight is quantizable if its kind is ``linear``; a rule with a method speaks of those only, ``none`` of all.
    """
    section = recipe.quantization
    modules = section.options.get("target_modules", adapter.modules)
    problems = [
        unknown("target module", module, adapter.modules) for module in modules if module not in adapter.modules
    ]
    rules = [
        _Rule(rule.match, rule.method, quantizer_of(registry, rule.method, rule.options, target))
        for rule in section.rules
    ]
    by_default = 0
    found = []
    key_format = target.key_format_for(adapter.key_formats)
    for info in infos:
        names = {info.name, adapter.rename(info.name, key_format)}
        taken = _first(rules, names, info)
        if taken:
            found.append(Assignment(info, taken[0].quantizer or passthrough, f"rule {taken[0].match!r}"))
        elif info.kind == "linear" and info.module in modules:
            by_default += 1
            found.append(Assignment(info, main or passthrough, "quantization.method"))
        else:
            found.append(Assignment(info, passthrough, "not quantizable"))

    examples = _examples(infos)
    for number, rule in enumerate(rules):
        if reason := rule.problem(examples):
            problems.append(f"{recipe.where(f'quantization.rules[{number}]')}: {reason}")
    if main is not None and not by_default and not any(rule.decided for rule in rules):
        remedy = "" if adapter.modules else f"; {adapter.name} names no modules: choose with quantization.rules"
        problems.append(f"{recipe.where('quantization.method')}: {section.method} has nothing to quantize here{remedy}")
    uses = [RuleUse(rule.match, rule.method, rule.decided) for rule in rules]
    uses.append(RuleUse(DEFAULT_MATCH, section.method, by_default))
    return Assignments(tuple(found), tuple(uses), tuple(problems))


def _first(rules: Sequence[_Rule], names: Collection[str], info: WeightInfo) -> list[_Rule]:
    """The rule that decides, as a list of one; empty if none does. Every rule is asked, for it counts its matches."""
    taken: list[_Rule] = []
    for rule in rules:
        if rule.takes(names, info, free=not taken):
            taken.append(rule)
    return taken


def _examples(infos: Sequence[WeightInfo]) -> str:
    linear: Sequence[str] = [rule_name(info.name) for info in infos if info.kind == "linear"]
    return ", ".join(repr(name) for name in (linear or [rule_name(info.name) for info in infos])[:2])
