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


def _authors_optimizer(parts: dict[str, dict[str, nn.Parameter]]) -> torch.optim.AdamW:
    """Their groups over their parameters, position codes among them."""
    groups: list[dict[str, Any]] = []
    for decay in ({}, {"weight_decay": 0}):
        for part in ("encoder", "predictor"):
            members = [
                parameter
                for name, parameter in parts[part].items()
                if (parameter.ndim > 1 and "bias" not in name) == (not decay)
            ]
            groups.append({"params": members, **decay})
    return torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1)


def _step(parts: dict[str, dict[str, nn.Parameter]], optimizer: Any, step: int) -> None:
    for part, named in parts.items():
        for name, parameter in named.items():
            if not name.endswith("pos_embed"):
                seed = len(part) + 1000 * len(name) + step
                generator = torch.Generator().manual_seed(seed)
                parameter.grad = torch.randn(parameter.shape, generator=generator)
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


def _groups(change: Callable[[list], list]) -> Callable[[dict], dict]:
    return lambda saved: {**saved, "param_groups": change(saved["param_groups"])}


def _entry(**changes: torch.Tensor) -> Callable[[dict], dict]:
    """Another entry for the first parameter that has a state."""

    def change(saved: dict) -> dict:
        kept = saved["state"][1] if "exp_avg" in changes else {}
        return {**saved, "state": {**saved["state"], 1: {**kept, **changes}}}

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda _: None, "no optimiser state"),
        (_groups(lambda groups: groups[:2]), "2 groups, not 4"),
        (_groups(lambda gs: [{**g, "params": g["params"][1:]} for g in gs]), "group 0"),
        (
            _entry(exp_avg=torch.zeros(2)),
            r"encoder\.patch_embed\.proj\.weight: .*shape \[2\]",
        ),
        (_entry(momentum_buffer=torch.zeros(2)), "not AdamW's"),
    ],
)
def test_optimisers_that_do_not_fit_are_refused(
    tmp_path: Path, authors: tuple, change: Callable[[dict], dict | None], says: str
) -> None:
    path = _save(tmp_path, authors, opt=change(authors[1].state_dict()))
    with pytest.raises(UserError, match=says):
        released_training_state(path)
