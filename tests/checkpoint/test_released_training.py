from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoint.samples import model, released_file
from torch import nn

from vjepa.checkpoint import load_model, released_layout, released_training_state
from vjepa.checkpoint.state import load_optimizer_state
from vjepa.errors import UserError


def _decayed(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim > 1 and "bias" not in name


def _authors_optimizer(parts: dict[str, dict[str, nn.Parameter]]) -> torch.optim.AdamW:
    """Their groups over their parameters, position codes among them."""
    groups: list[dict[str, Any]] = []
    for decayed in (True, False):
        for part in ("encoder", "predictor"):
            members = [p for n, p in parts[part].items() if _decayed(n, p) == decayed]
            groups.append({"params": members, **({} if decayed else {"weight_decay": 0})})
    return torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1)


def _gradient(name: str, like: torch.Tensor, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(hash((len(name), name[-9:], step)) % 2**31)
    return torch.randn(like.shape, generator=generator)


def _step(parts: dict[str, dict[str, nn.Parameter]], optimizer: Any, step: int) -> None:
    for part, named in parts.items():
        for name, parameter in named.items():
            if not name.endswith("pos_embed"):
                parameter.grad = _gradient(f"{part}.{name}", parameter, step)
    optimizer.step()


@pytest.fixture
def authors() -> tuple[dict[str, dict[str, nn.Parameter]], torch.optim.AdamW]:
    """Their training after three updates."""
    layout = released_layout(model())
    parts = {
        part: {
            name.removeprefix("module.backbone."): nn.Parameter(tensor.clone())
            for name, tensor in layout[part].items()
        }
        for part in ("encoder", "predictor")
    }
    optimizer = _authors_optimizer(parts)
    for step in range(3):
        _step(parts, optimizer, step)
    return parts, optimizer


def _save(folder: Path, authors: tuple, **changes: Any) -> Path:
    parts, optimizer = authors
    states = {
        part: {f"module.backbone.{n}": p.detach() for n, p in named.items()}
        for part, named in parts.items()
    }
    return released_file(
        folder, **states, **({"opt": optimizer.state_dict(), "epoch": 2} | changes)
    )


def test_training_goes_on_as_if_it_had_never_stopped(tmp_path: Path, authors: tuple) -> None:
    path = _save(tmp_path, authors)
    parts, optimizer = authors
    ours = load_model(path, num_heads=3)
    state = released_training_state(path)
    assert (state.step, state.epoch) == (3, 2)
    modules = {part: ours.get_submodule(part) for part in ("encoder", "predictor")}
    our_parts = {part: dict(module.named_parameters()) for part, module in modules.items()}
    our_optimizer = _authors_optimizer(our_parts)
    load_optimizer_state(our_optimizer, modules, state.moments, "theirs")
    for step in range(3, 6):
        _step(parts, optimizer, step)
        _step(our_parts, our_optimizer, step)
    for part, named in our_parts.items():
        for name, parameter in named.items():
            assert torch.equal(parameter, parts[part][name]), f"{part}.{name}"


def test_an_export_has_no_steps(tmp_path: Path) -> None:
    state = released_training_state(released_file(tmp_path))
    assert (state.step, state.epoch, state.moments) == (0, 0, {})


def _without_two_groups(saved: dict) -> dict:
    return {**saved, "param_groups": saved["param_groups"][:2]}


def _with_smaller_groups(saved: dict) -> dict:
    groups = [{**group, "params": group["params"][1:]} for group in saved["param_groups"]]
    return {**saved, "param_groups": groups}


def _with_small_moments(saved: dict) -> dict:
    entry = {**saved["state"][1], "exp_avg": torch.zeros(2)}
    return {**saved, "state": {**saved["state"], 1: entry}}


def _with_momentum(saved: dict) -> dict:
    return {**saved, "state": {**saved["state"], 1: {"momentum_buffer": torch.zeros(2)}}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda _: None, "no optimiser state"),
        (_without_two_groups, "2 groups, not 4"),
        (_with_smaller_groups, "group 0"),
        (_with_small_moments, r"encoder\.patch_embed\.proj\.weight: .*shape \[2\]"),
        (_with_momentum, "not AdamW's"),
    ],
)
def test_optimisers_that_do_not_fit_are_refused(
    tmp_path: Path, authors: tuple, change: Callable[[dict], dict | None], says: str
) -> None:
    path = _save(tmp_path, authors, opt=change(authors[1].state_dict()))
    with pytest.raises(UserError, match=says):
        released_training_state(path)
