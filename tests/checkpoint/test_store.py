"""Checkpoints of a run: exact, atomic, verified, pruned, in the background; nothing is lost."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.toy import OPTIM, ToyTask
from torch import nn

from vjepa.checkpoint.folder import step_folders
from vjepa.checkpoint.state import optimizer_state
from vjepa.checkpoint.store import CheckpointStore, load_checkpoint
from vjepa.errors import UserError
from vjepa.runtime.distributed import ProcessGroup
from vjepa.training.optim import GuardedAdamW, build_optimizer

CONFIG = {"objective": "toy", "model": {"width": 8}, "run": {"seed": 3}}
EXTRA = {"note": [1, 2.5]}


def _trained(seed: int = 0) -> tuple[ToyTask, GuardedAdamW]:
    objective = ToyTask(seed)
    optimizer = build_optimizer(objective.trainable(), OPTIM)
    for _ in range(2):
        optimizer.zero_grad()
        objective(torch.randn(4, 6)).loss.backward()
        optimizer.step()
    return objective, optimizer


def _save(store: CheckpointStore, step: int, seed: int = 0) -> Path:
    objective, optimizer = _trained(seed)
    return store.save(step, objective.saved_modules(), optimizer, CONFIG, EXTRA)


def _load(folder: Path) -> None:
    objective, optimizer = _trained(seed=9)
    load_checkpoint(folder, objective.saved_modules(), optimizer, ProcessGroup())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (3, 6):
        _save(CheckpointStore(folder), step)
    return folder


@pytest.fixture
def store(written: Path, tmp_path: Path) -> CheckpointStore:
    """Two checkpoints, of steps 3 and 6."""
    return CheckpointStore(Path(shutil.copytree(written, tmp_path / "two")))


def test_weights_and_moments_come_back_bit_for_bit(tmp_path: Path) -> None:
    objective, optimizer = _trained(seed=0)
    folder = CheckpointStore(tmp_path / "checkpoints").save(
        7, objective.saved_modules(), optimizer, CONFIG, EXTRA
    )
    other, other_optimizer = _trained(seed=1)
    loaded = load_checkpoint(folder, other.saved_modules(), other_optimizer, ProcessGroup())
    assert loaded == (7, EXTRA)
    for name, value in objective.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    ours = optimizer_state(optimizer, objective.saved_modules())
    theirs = optimizer_state(other_optimizer, other.saved_modules())
    assert ours.keys() == theirs.keys()
    assert len(ours) == len(list(nn.ModuleDict(objective.trainable()).parameters()))
    for name, moments in ours.items():
        assert moments.keys() == theirs[name].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(moments[key], theirs[name][key]) for key in moments)


def test_a_checkpoint_of_before_this_format_had_one_module_resumes() -> None:
    """Written by the package at commit 4694179; nothing that was saved may become unreadable."""
    store = CheckpointStore(Path(__file__).parent / "assets")
    folder = store.latest()
    assert folder is not None
    objective, optimizer = _trained(seed=9)
    step, extra = load_checkpoint(folder, objective.saved_modules(), optimizer, ProcessGroup())
    assert (step, extra) == (2, EXTRA)
    stored = load_file(folder / "model.safetensors")
    tensors = nn.ModuleDict(objective.saved_modules()).state_dict()
    assert tensors.keys() == stored.keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in tensors.items())
    moments = optimizer_state(optimizer, objective.saved_modules())
    assert all(entry["step"] == 2 and entry["exp_avg"].any() for entry in moments.values())


def test_layout_is_readable_by_anyone(store: CheckpointStore) -> None:
    folder = store.path(3)
    assert folder.name == "step_00000003"
    names = load_file(folder / "model.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"encoder", "target_encoder", "predictor"}
    config = json.loads((folder / "config.json").read_text())
    assert (config["format"], config["step"]) == ("vjepa", 3)
    assert {key: config[key] for key in CONFIG} == CONFIG
    manifest = json.loads((folder / "manifest.json").read_text())
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == found - {"manifest.json"}


def test_parameters_without_state_start_afresh(tmp_path: Path) -> None:
    """A fresh optimiser, as after loading weights only, has no moments to store."""
    store = CheckpointStore(tmp_path)
    objective = ToyTask()
    optimizer = build_optimizer(objective.trainable(), OPTIM)
    folder = store.save(1, objective.saved_modules(), optimizer, CONFIG, EXTRA)
    other, other_optimizer = _trained()
    load_checkpoint(folder, other.saved_modules(), other_optimizer, ProcessGroup())
    assert not optimizer_state(other_optimizer, other.trainable())


def test_last_n_and_every_k_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2, keep_every_steps=4)
    for step in range(2, 15, 2):
        _save(store, step)
    assert list(step_folders(store.folder)) == [4, 8, 12, 14]
    assert store.latest() == tmp_path / "step_00000014"


def test_existing_step_is_never_overwritten(store: CheckpointStore) -> None:
    before = (store.path(3) / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"step_00000003: .*never overwritten"):
        _save(store, 3, seed=1)
    assert (store.path(3) / "model.safetensors").read_bytes() == before


def test_leftovers_are_no_checkpoints_and_are_removed_by_the_next_save(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    assert store.latest() is None
    first = _save(store, 3)
    leftover = tmp_path / "step_00000005.partial"
    shutil.copytree(first, leftover)
    (tmp_path / "step_00000006").mkdir()
    (tmp_path / "notes").mkdir()
    assert store.latest() == first
    assert leftover.exists(), "looking must not disturb a run that is writing"
    _save(store, 4)
    assert not leftover.exists()


def test_a_newer_checkpoint_of_which_a_part_is_left_is_named_before_training(
    tmp_path: Path,
) -> None:
    """Its step could not be saved, and what is lost is not trained again without a word."""
    store = CheckpointStore(tmp_path)
    first, torn = _save(store, 3), _save(store, 7)
    for name in ("manifest.json", "model.safetensors"):
        (torn / name).unlink()
    with pytest.raises(UserError, match=r"step_00000007: .*remove it to go on from step_00000003"):
        store.clean()
    shutil.rmtree(torn)
    (tmp_path / "step_00000002").mkdir()  # an older one is in nobody's way
    assert store.clean() == first


def _damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "altered":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("how", "message"),
    [("missing", "is missing"), ("truncated", "truncated"), ("altered", "SHA-256")],
)
@pytest.mark.parametrize(
    "file", ["model.safetensors", "config.json", "state/trainer.json", "state/__0_0.distcp"]
)
def test_damaged_newest_is_an_error_that_names_the_remedy(
    store: CheckpointStore, file: str, how: str, message: str
) -> None:
    newest = store.path(6)
    _damage(newest / file, how)
    assert store.latest() == newest, "never a silent step back"
    with pytest.raises(UserError) as caught:
        _load(newest)
    assert str(newest / file) in str(caught.value)
    assert message in str(caught.value)
    assert f"remove {newest} to resume from step 3" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "JSON"),
        ("[1]", "no JSON object"),
        ('{"format": "other"}', "not the integrity file"),
        ('{"files": 1', "JSON"),
        ('{"format": "vjepa-checkpoint", "files": {}}', "does not list model"),
        ('"x"', r"entry of config\.json is damaged"),
        ('{"bytes": 3}', r"entry of config\.json is damaged"),
    ],
)
def test_damaged_integrity_file(store: CheckpointStore, content: str, says: str) -> None:
    path = store.path(3) / "manifest.json"
    if "entry" in says:
        manifest = json.loads(path.read_text())
        manifest["files"]["config.json"] = json.loads(content)
        content = json.dumps(manifest)
    path.write_text(content)
    with pytest.raises(UserError, match=rf"manifest\.json.*{says}.*no older checkpoint"):
        _load(store.path(3))


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"no optimiser state.*keep_optimizer false"):
        _load(tmp_path)
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        load_checkpoint(tmp_path, _trained()[0].saved_modules(), None, ProcessGroup())


def test_weights_alone_need_no_state(store: CheckpointStore) -> None:
    folder = store.path(6)
    objective = ToyTask(seed=5)
    wanted = load_file(folder / "model.safetensors")
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json: no such file"):
        load_checkpoint(folder, objective.saved_modules(), None, ProcessGroup())
    shutil.rmtree(folder / "state")
    load_checkpoint(folder, objective.saved_modules(), None, ProcessGroup())
    assert all(torch.equal(v, wanted[k]) for k, v in objective.state_dict().items())


def test_compiled_and_plain_modules_resume_from_each_other(tmp_path: Path) -> None:
    store, (objective, optimizer) = CheckpointStore(tmp_path), _trained()
    modules = objective.saved_modules()
    compiled = {name: torch.compile(part, backend="eager") for name, part in modules.items()}
    folder = store.save(3, compiled, optimizer, CONFIG, EXTRA)
    assert not [name for name in load_file(folder / "model.safetensors") if "_orig_mod" in name]
    for wrap in (lambda part: part, lambda part: torch.compile(part, backend="eager")):
        other, other_optimizer = _trained(seed=1)
        parts = {name: wrap(part) for name, part in other.saved_modules().items()}
        assert load_checkpoint(folder, parts, other_optimizer, ProcessGroup()) == (3, EXTRA)
        assert all(torch.equal(v, objective.state_dict()[k]) for k, v in other.state_dict().items())
        found = optimizer_state(other_optimizer, other.saved_modules())
        moments = optimizer_state(optimizer, modules)
        assert found.keys() == moments.keys()
        assert all(torch.equal(found[k]["exp_avg"], v["exp_avg"]) for k, v in moments.items())


def test_another_model_is_refused_before_anything_changes(store: CheckpointStore) -> None:
    objective, optimizer = _trained(seed=5)
    objective.predictor = nn.Sequential(nn.Dropout(), nn.Linear(8, 9), nn.Linear(9, 8))
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_checkpoint(store.path(3), objective.saved_modules(), optimizer, ProcessGroup())
    message = str(caught.value)
    assert "model.safetensors: does not fit the model" in message
    assert "of another shape (predictor.1.weight: file [8, 8], model [9, 8]" in message
    assert "2 missing (predictor.2.weight, predictor.2.bias)" in message
    assert all(torch.equal(v, before[k]) for k, v in objective.state_dict().items())
    with pytest.raises(UserError, match="6 unexpected"):
        load_checkpoint(store.path(3), {"encoder": objective.encoder}, None, ProcessGroup())


@pytest.fixture
def no_large_files() -> Iterator[None]:
    """The operating system refuses to write any file beyond 1 kB."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_what_cannot_be_removed_fails_no_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path, keep_last=1)
    first, rename = _save(store, 3), Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path == first:
            raise OSError(39, "Directory not empty")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    _save(store, 6)
    assert list(step_folders(store.folder)) == [3, 6]
    assert "step_00000003 could not be removed: [Errno 39] Directory not empty" in caplog.text


def test_a_leftover_that_cannot_be_emptied_stops_neither_save_nor_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, stuck, rmtree = (
        CheckpointStore(tmp_path),
        tmp_path / "step_00000002.partial",
        shutil.rmtree,
    )
    (stuck / "state").mkdir(parents=True)

    def fail(path: Path, **how: bool) -> None:
        if path == stuck:
            raise OSError(16, "Device or resource busy")
        rmtree(path, **how)

    monkeypatch.setattr(shutil, "rmtree", fail)
    saved = _save(store, 4)
    assert store.clean() == saved
    assert caplog.text.count("step_00000002.partial could not be removed: [Errno 16]") == 2


@pytest.mark.usefixtures("no_large_files")
def test_failed_write_leaves_no_trace(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with pytest.raises(UserError, match=r"could not be written: .*File too large"):
        _save(store, 6)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["model.safetensors", "state"])
def test_full_disk_keeps_the_last_good_one(tmp_path: Path, file: str, small_disk: Path) -> None:
    """A real full file system, filled up before the weights or before the optimiser's state."""
    store = CheckpointStore(small_disk / "checkpoints")
    first = _save(store, 3)
    weights = (first / "model.safetensors").stat().st_size
    free = shutil.disk_usage(small_disk).free
    room = 0 if file == "model.safetensors" else weights + 8192
    (small_disk / "filler").write_bytes(bytes(max(0, free - room)))
    with pytest.raises(UserError, match=r"step_00000006: .*the disk is full.*untouched"):
        _save(store, 6)
    assert list(step_folders(store.folder)) == [3]
    assert [p.name for p in (small_disk / "checkpoints").iterdir()] == ["step_00000003"]
    _load(first)
    (small_disk / "filler").unlink()
    _save(store, 6)
    assert list(step_folders(store.folder)) == [3, 6]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB; needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_what_is_written_in_the_background_is_a_copy(tmp_path: Path) -> None:
    """What training does to the weights meanwhile does not reach the checkpoint."""
    (objective, optimizer), store = _trained(), CheckpointStore(tmp_path, background=True)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    goes_on, rename = threading.Event(), Path.rename
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", lambda *args: goes_on.wait(60) and rename(*args))
        folder = store.save(3, objective.saved_modules(), optimizer, CONFIG, EXTRA)
        with torch.no_grad():
            for parameter in objective.parameters():
                parameter.fill_(7.0)
        assert list(step_folders(store.folder)) == [], "it is there only when it is complete"
        goes_on.set()
        store.finish()
    assert list(step_folders(store.folder)) == [3]
    loaded = ToyTask(seed=5)
    load_checkpoint(folder, loaded.saved_modules(), None, ProcessGroup())
    assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_is_told_at_the_next_occasion(
    store: CheckpointStore, background: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    store = CheckpointStore(store.folder, background=background)
    monkeypatch.setattr(os, "fsync", fail)

    def save_and_wait() -> None:
        _save(store, 7)
        store.finish()

    with pytest.raises(UserError, match=r"step_00000007: .*the disk is full"):
        save_and_wait()
    monkeypatch.undo()
    assert {path.name for path in store.folder.iterdir()} == {"step_00000003", "step_00000006"}
    _load(store.path(6))
    save_and_wait()
    assert list(step_folders(store.folder)) == [6, 7]
