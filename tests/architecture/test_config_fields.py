"""Configuration that does not lie: every field is read, explained and of a type that loads."""

from __future__ import annotations

import ast
import importlib
import typing
from collections.abc import Iterator

import pytest
from tests.architecture.source_tree import Module, functions, modules, nodes, place

from vjepa.config import describe_type, field_types, group_of, meanings


def _config_classes() -> Iterator[tuple[Module, ast.ClassDef]]:
    for module in modules():
        for cls in nodes(module.tree, ast.ClassDef):
            if cls.name.endswith("Config") and cls.decorator_list:
                yield module, cls


def _fields(cls: ast.ClassDef) -> list[str]:
    return [
        statement.target.id
        for statement in cls.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    ]


def _reads() -> set[str]:
    """Attributes that are read outside of the checks in ``__post_init__``."""
    checks = {
        id(node)
        for module in modules()
        for function in functions(module.tree)
        if function.name == "__post_init__"
        for node in ast.walk(function)
    }
    return {
        node.attr
        for module in modules()
        for node in nodes(module.tree, ast.Attribute)
        if isinstance(node.ctx, ast.Load) and id(node) not in checks
    }


def test_there_are_configs() -> None:
    names = {cls.name for _, cls in _config_classes()}
    assert {"PretrainConfig", "EncoderConfig", "MaskConfig", "OptimConfig"} <= names


def test_every_field_is_read_somewhere() -> None:
    reads = _reads()
    dead = [
        f"{place(module, cls)}: {cls.name}.{name}"
        for module, cls in _config_classes()
        for name in _fields(cls)
        if name not in reads
    ]
    assert not dead, "\n".join(dead)


ROOTS = (
    "vjepa.jobs.pretrain:PretrainConfig",
    "vjepa.jobs.probe.config:ProbeConfig",
    "vjepa.jobs.finetune.config:FinetuneConfig",
    "vjepa.jobs.detect.config:DetectConfig",
    "vjepa.jobs.features:FeaturesConfig",
    "vjepa.jobs.decode:DecodeConfig",
    "vjepa.jobs.bench_step:BenchConfig",
    "vjepa.jobs.bench_loader:BenchConfig",
    "vjepa.jobs.bench_encode:BenchConfig",
    "vjepa.jobs.learn:LearnConfig",
    "vjepa.jobs.search:SearchConfig",
    "vjepa.jobs.probe.released:ReleasedProbeConfig",
    "vjepa.data.manifest.lists:IndexConfig",
    "vjepa.data.manifest.lists:InspectConfig",
    "vjepa.data.ava:AvaConfig",
    "vjepa.data.prepare.config:PrepareConfig",
    "vjepa.demo.config:DemoConfig",
    "vjepa.demo.synthetic:SyntheticConfig",
)


@pytest.mark.parametrize("root", ROOTS)
def test_every_setting_of_a_job_is_typed_and_explained(root: str) -> None:
    module, _, name = root.partition(":")
    root_class = getattr(importlib.import_module(module), name)
    todo, seen = [root_class], set()
    while todo:
        cls = todo.pop()
        if cls in seen:
            continue
        seen.add(cls)
        assert hasattr(cls, "__pydantic_validator__"), f"{cls}: use config_dataclass"
        for name, hint in field_types(cls).items():
            describe_type(hint)
            assert meanings(cls).get(name), f"{cls.__name__}.{name} has no docstring"
            todo += filter(None, map(group_of, (hint, *typing.get_args(hint))))
