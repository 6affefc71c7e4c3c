"""`vjepa models`: the table, fetching from a server on this machine, and what a file is."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.cli.conftest import Outcome
from tests.runtime.web import Web, serving

from vjepa.checkpoint import catalogue
from vjepa.checkpoint.catalogue import MODELS, downloaded
from vjepa.checkpoint.load import read_sizes

Run = Callable[..., Outcome]


@pytest.fixture
def run(vjepa: Run) -> Run:
    """Runs ``vjepa ARGS``, which must end with `code`."""

    def call(*argv: object, code: int = 0) -> Outcome:
        done = vjepa(*argv)
        assert done.code == code, done
        return done

    return call


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache of models."""
    monkeypatch.setenv("VJEPA_MODELS", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A server that stands for all others."""
    with serving() as web:
        monkeypatch.setenv("HF_ENDPOINT", web.address)
        moved = {
            name: replace(model, url=f"{web.address}/{name}.pth") if model.url else model
            for name, model in MODELS.items()
        }
        monkeypatch.setattr(catalogue, "MODELS", moved)
        for name, model in moved.items():
            monkeypatch.setitem(MODELS, name, model)
        yield web


def test_the_table(run: Run, cache: Path) -> None:
    said = run("models", "list").out
    assert all(name in said for name in MODELS)
    (row,) = [line for line in said.splitlines() if line.startswith("mvd_vitl16")]
    assert row.split()[1:8] == ["16", "x", "224", "px", "by", "hand", "CC"]
    for name in MODELS:
        everything = run("models", "list", name).out
        for word in ("arXiv", "licence", "published", "proved", "width"):
            assert word in everything, name
        assert max(map(len, everything.splitlines())) <= 130


def test_a_model_is_fetched_once_and_said(run: Run, cache: Path, web: Web) -> None:
    web.files["/dinov2_vitg14.pth"] = b"weights"
    done = run("models", "get", "dinov2_vitg14")
    target = cache / "dinov2_vitg14" / "dinov2_vitg14.pth"
    assert done.out.strip() == str(target) == str(downloaded("dinov2_vitg14"))
    for word in ("Apache-2.0", f"{web.address}/dinov2_vitg14.pth -> {target}", "sha256 ", "100 %"):
        assert word in done.err
    name = target.name
    assert target.with_name(f"{name}.sha256").read_text().split() == [_sum(b"weights"), name]
    asked = len(web.asked)
    assert str(target) in run("models", "get", "dinov2_vitg14").out
    get = ("models", "get", "dinov2_vitg14", "--sha256")
    assert str(target) in run(*get, _sum(b"weights").upper()).out
    assert "is there already, with another checksum" in run(*get, _sum(b"others"), code=2).err
    assert target.read_bytes() == b"weights"
    assert str(target) in run("models", "get", "dinov2_vitg14", "--offline").out
    assert len(web.asked) == asked
    assert "downloaded" in run("models", "list").out


def test_a_checksum_is_compared_also_where_a_file_was_put_by_hand(run: Run, cache: Path) -> None:
    file = cache / "mvd_vitl16" / "mvd.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    get = ("models", "get", "mvd_vitl16", "--sha256")
    assert run(*get, _sum(b"weights")).out.strip() == str(file)
    assert "is there already, with another checksum" in run(*get, _sum(b"others"), code=2).err


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_folder_of_hugging_face_is_whole_or_not_there(
    run: Run, cache: Path, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By HTTPS alone."""
    monkeypatch.setattr("vjepa.jobs.models.find_spec", lambda name: None)
    base = "/MCG-NJU/videomae-large/resolve/main"
    web.files[f"{base}/config.json"] = b"{}"
    failed = run("models", "get", "videomae_vitl16", code=2)
    assert "404 Not Found: it does not lie there any more" in failed.err
    missing = run("models", "check", "videomae_vitl16", code=2)
    assert "was not downloaded yet: `vjepa models get videomae_vitl16`" in missing.err
    web.files[f"{base}/model.safetensors"] = b"weights"
    web.checksum = _sum(b"other weights")
    assert "another checksum" in run("models", "get", "videomae_vitl16", code=2).err
    web.checksum = _sum(b"weights")
    out = tmp_path / "mine"
    folder = run("models", "get", "videomae_vitl16", "--out", out).out.strip()
    assert folder == str(out)
    assert (out / "model.safetensors").read_bytes() == b"weights"
    assert run("models", "get", "videomae_vitl16").out.strip() == str(downloaded("videomae_vitl16"))


def test_a_folder_of_hugging_face_through_its_library(
    run: Run, cache: Path, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transfer that breaks goes on, the checksum is compared, and its cache is shared."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    base, weights = "/MCG-NJU/videomae-large/resolve/main", b"weights" * 3_600_000
    web.files[f"{base}/config.json"] = b"{}"
    assert "404" in run("models", "get", "videomae_vitl16", code=2).err
    web.files[f"{base}/model.safetensors"], web.checksum = weights, _sum(b"other weights")
    assert "another checksum" in run("models", "get", "videomae_vitl16", code=2).err
    web.checksum, web.cuts = _sum(weights), [15_000_000]
    folder = run("models", "get", "videomae_vitl16").out.strip()
    assert folder == str(downloaded("videomae_vitl16")) == str(cache / "videomae_vitl16")
    file = cache / "videomae_vitl16" / "model.safetensors"
    assert file.read_bytes() == weights
    assert file.resolve().is_relative_to(tmp_path / "hub")
    assert any("range" in map(str.lower, headers) for _, headers in web.asked), "it went on"
    shutil.rmtree(cache)
    asked = len(web.asked)
    assert run("models", "get", "videomae_vitl16", "--offline").out.strip() == folder
    assert file.read_bytes() == weights
    assert len(web.asked) == asked


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["get", "dinov2_vitg41"],
            "no such model (`vjepa models list` names all); did you mean dinov2_vitg14?",
        ),
        (["list", "nothing_like_it"], "no such model (`vjepa models list` names all)"),
        (["get", "mvd_vitl16"], "cannot be fetched by a program: Google Drive"),
        (["get", "hiera_l", "--offline"], "--offline fetches nothing; fetch it where there is"),
        (["get", "hiera_l", "--sha256", "0"], "another checksum than it should"),
        (["get", "dinov2_vitg14"], "404 Not Found"),
        (["check", "nothing.pth"], "no such file or folder"),
        (["check", "hiera_l"], "was not downloaded yet"),
        (["check", "web.py"], "web.py"),
    ],
)
def test_bad_input_is_one_line(
    run: Run,
    cache: Path,
    web: Web,
    tmp_path: Path,
    argv: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "web.py").write_text("no weights")
    web.files["/hiera_l.pth"] = b"weights"
    failed = run("models", *argv, code=2)
    (line,) = [line for line in failed.err.splitlines() if line.startswith("error: ")]
    assert said in line
    assert "Traceback" not in failed.err


def test_what_a_file_is(run: Run, golden_dir: Path) -> None:
    file = golden_dir / "baselines" / "mvd_tiny.pth"
    said = run("models", "check", file, "--num-heads", 3).out
    assert "MVD of width 48" in said
    assert "matched     29 tensors" in said
    assert "fits: an encoder of 0.1 M parameters, 16 frames of 64 px, 128 tokens" in said
    assert "fits: an encoder of" in run("models", "check", "demo").out


def test_a_name_of_the_authors_files_is_opened_where_it_was_put(
    run: Run, cache: Path, golden_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V-JEPA's and V-JEPA 2's, by hand instead of over the network; only if it is that model."""
    for name, file in (
        ("vjepa_vitl16", "pretrain_tiny.pth.tar"),
        ("vjepa2_vitl16", "vjepa2/v2_pretrain_tiny.pt"),
    ):
        place = cache / name / MODELS[name].url.rpartition("/")[2]
        place.parent.mkdir(parents=True)
        shutil.copy(next(golden_dir.rglob(Path(file).name)), place)
        other = run("models", "check", name, "--num-heads", 2, code=2).err
        assert f"and {MODELS[name].title} is 1024 wide, 24 blocks" in other
        sizes = read_sizes(place, 2).encoder
        monkeypatch.setitem(MODELS, name, replace(MODELS[name], encoder=sizes))
        said = run("models", "check", name, "--num-heads", 2).out
        assert str(place) in said
        assert "fits: an encoder of" in said
