"""Device, precision, compiling, seeds."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from vjepa.errors import UserError
from vjepa.runtime.device import (
    Precision,
    checkpoint_blocks,
    compile_blocks,
    seed_torch,
    set_up_device,
    to_device,
)
from vjepa.training import TrainingConfig


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.GELU()) for _ in range(2))
        self.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def test_auto_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert set_up_device("auto").device.type == "cpu"
    with pytest.raises(UserError, match=r"device: cuda was asked for.*ask for cpu"):
        set_up_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert set_up_device("auto").device.type == "cuda"
    assert set_up_device("cpu").device.type == "cpu"
    for name in ("gpu", "cuda:1"):
        with pytest.raises(UserError, match=f"device: '{name}' must be one of auto, cpu, cuda"):
            set_up_device(name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "shown", "number"), [(4, None, 3), (4, "0,1,2,3", 3), (1, "2", 0), (1, None, None)]
)
def test_of_several_processes_each_takes_a_gpu_that_it_is_shown(
    count: int, shown: str | None, number: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler may show each process one GPU, which then is number 0 for each."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    if number is None:
        with pytest.raises(UserError, match="LOCAL_RANK=3: this machine shows 1 GPUs"):
            set_up_device()
    else:
        assert set_up_device().device == torch.device("cuda", number)
        assert chosen == [torch.device("cuda", number)]


def test_gpu_without_bfloat16_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old GPU")
    with pytest.raises(UserError, match=r"precision: Old GPU does not compute in bfloat16"):
        set_up_device("cuda", "bfloat16")
    assert set_up_device("cuda", "float32").precision == "float32"


@pytest.mark.parametrize(
    ("known", "precision"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
        ({"avx2": True, "avx512_bf16": False}, "float32"),
        ({}, "float32"),
    ],
)
def test_auto_computes_in_bfloat16_where_the_processor_does(
    known: dict[str, bool], precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert set_up_device("cpu", "auto").precision == precision
    assert TrainingConfig(device="cpu", precision="auto").set_up_device().precision == precision
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert set_up_device("cpu", "auto").precision == "float32", "an older torch says nothing"


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_precision_of_products(precision: Precision, dtype: torch.dtype) -> None:
    with set_up_device("cpu", precision).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_what_is_there_is_not_copied() -> None:
    numbers = torch.arange(6)
    assert to_device(numbers, torch.device("cpu")) is numbers
    assert to_device(numbers, torch.device("meta")).device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_may_be_used_again_after_a_copy_to_a_gpu() -> None:
    numbers = torch.arange(1 << 20)
    wanted = numbers.clone()
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = to_device(numbers, torch.device("cuda"))
        numbers.zero_()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(there.cpu(), wanted)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_blocks_keep_names_and_results(monkeypatch: pytest.MonkeyPatch) -> None:
    # With it set to `default` torch 2.14 writes C++ for GELU that does not compile (at::vec).
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    torch.manual_seed(0)
    model, x = Model(), torch.randn(3, 4)
    names, expected = list(model.state_dict()), model(x)
    assert compile_blocks([model]) == 2
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(x), expected)
    assert model.blocks[0]._compiled_call_impl is not None


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"compile: no C\+\+ compiler"):
        compile_blocks([Model()])


def test_checkpointed_blocks_have_the_same_gradients_and_keep_less() -> None:
    gradients, kept = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        module = Model()
        names = list(module.state_dict())
        if recompute:
            assert checkpoint_blocks([module]) == 2
        assert list(module.state_dict()) == names
        saved: list[int] = []
        count = lambda tensor, saved=saved: saved.append(tensor.numel()) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = module(torch.ones(5, 4)).square().sum()
        loss.backward()
        gradients.append([p.grad for p in module.parameters()])
        kept.append(sum(saved))
        module.requires_grad_(requires_grad=False)
        assert not module(torch.ones(1, 4)).requires_grad
    for one, two in zip(*gradients, strict=True):
        assert torch.equal(one, two)
    assert kept[1] < kept[0]


def _draw(seed: int, purpose: str, ordinal: int) -> list[float]:
    seed_torch(seed, purpose, ordinal)
    return torch.rand(4).tolist()


def test_draws_depend_on_all_three_and_on_nothing_else() -> None:
    first = _draw(1, "step", 5)
    others = [_draw(2, "step", 5), _draw(1, "weights", 5), _draw(1, "step", 6)]
    assert first not in others
    assert len({tuple(draw) for draw in others}) == 3
    assert _draw(1, "step", 5) == first


def test_gpus_in_use_are_seeded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    seed_torch(1, "step", 5)
    assert seeds == [] or torch.cuda.is_initialized()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    seed_torch(1, "step", 5)
    assert seeds[-1] == torch.initial_seed()
