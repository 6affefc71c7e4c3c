"""Released probes by path: what they read is what the authors' code read, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.clip_files import write_video
from tests.evaluation.tiny_videos import make_set
from tests.golden.golden_files import FEATURES, tensors
from torch.testing import assert_close

from vjepa.config import from_dict, load_config, recipe_names
from vjepa.data.clips.plan import ClipConfig
from vjepa.errors import UserError
from vjepa.jobs.probe.predict import load_probe
from vjepa.jobs.probe.released import ReleasedProbeConfig, open_released
from vjepa.models import VJEPA2_MODELS

SIZES = {"num_heads": 2, "image_size": 64, "num_frames": 8}
CLIP = {"num_frames": 8, "stride": None, "fps": 4}
VIEW = {"crop_size": 64}


@pytest.fixture(scope="module")
def folder(golden_dir: Path) -> Path:
    return golden_dir / "vjepa2"


def _config(**more: object) -> ReleasedProbeConfig:
    values = {"encoder": SIZES, "num_heads": 4, "clip": CLIP, "view": VIEW}
    return from_dict(ReleasedProbeConfig, values | more, "test")


@torch.no_grad()
def test_it_reads_what_the_authors_probe_read(folder: Path) -> None:
    """The last block, several blocks together, and tokens of the future."""
    clip = tensors(folder, "v2_forward")["input/clip"]
    results, source = tensors(folder, "v2_probe_forward"), folder / "v2_pretrain_tiny.pt"
    for layers, wanted in ((None, "probe0/logits"), ([0, 1, 2], "levels/logits")):
        config = _config(layers=layers)
        saved, frozen = open_released(folder / "v2_probe_tiny.pt", source, config)
        found = saved.head(frozen.encoder(clip))
        assert_close(found, results[wanted], atol=2e-5, rtol=0)
    times = results["anticipation/times"].tolist()
    for number, seconds in enumerate(times):
        for question in ("verb", "noun", "action"):
            config = _config(question=question, seconds_ahead=seconds)
            path = folder / "v2_anticipation_probe_tiny.pt"
            saved, frozen = open_released(path, source, config)
            tokens = frozen.encoder(clip[number : number + 1])
            assert_close(tokens[0], results["anticipation/tokens"][number], **FEATURES)
            wanted = results[f"anticipation/logits_{question}"][number]
            assert_close(saved.head(tokens)[0], wanted, atol=2e-5, rtol=0)


@torch.no_grad()
def test_a_hugging_face_folder_is_probe_encoder_and_names(folder: Path) -> None:
    hub, clip = folder / "hf_classification_tiny", tensors(folder, "v2_forward")["input/clip"]
    probe = load_probe(hub, device="cpu", released=_config())
    assert probe.saved.classes[:2] == ("class 0", "class 1")
    found = probe.saved.head(probe.extractor.frozen.encoder(clip))
    assert_close(found, tensors(folder, "v2_probe_forward")["probe0/logits"], atol=2e-5, rtol=0)
    theirs = _config(as_transformers=True, num_heads=None)
    saved, frozen = open_released(hub, None, theirs)
    wanted = tensors(folder, "hf_forward")["classification/logits"]
    assert_close(saved.head(frozen.encoder(clip)), wanted, atol=2e-5, rtol=0)


def test_from_videos_to_figures(
    folder: Path, golden_dir: Path, tmp_path: Path, vjepa: Callable
) -> None:
    """`probe eval` and `probe predict`, of V-JEPA 2's and of the first."""
    manifest = make_set(tmp_path, {"test": 3})
    names = tmp_path / "names.txt"
    names.write_text("red\ngreen\nblue\n3\n4\n5\n6\n")
    video = next(tmp_path.glob("test_*.mp4"))
    encoder = ("--encoder", folder / "v2_pretrain_tiny.pt")
    sizes = [f"--encoder.{name}={value}" for name, value in SIZES.items()]
    seen = ["--num_heads=4", *sizes, "--view.crop_size=64", "--view.num_segments=2"]
    evaluate = ("probe", "eval", folder / "v2_probe_tiny.pt", manifest, *encoder, *seen)
    measured = vjepa(*evaluate, "--label", "colour", "--classes", names, "--device", "cpu")
    assert measured.code == 0, measured.err
    assert "v2_pretrain_tiny.pt" in measured.out
    assert "assumed the encoder's usual clip" in measured.out
    assert "3 videos" in measured.out
    assert "--label NAME" in vjepa(*evaluate).error
    first = golden_dir / "attentive_probe_tiny.pth.tar"
    guess = ("probe", "predict", first, video, "--encoder", golden_dir / "pretrain_tiny.pth.tar")
    heads = ("--encoder.num_heads", 3, "--num_heads", 3, "--top", 1, "--device", "cpu")
    guessed = vjepa(*guess, *heads)
    assert guessed.code == 0, guessed.err
    assert guessed.out.count("%") == 1


# Verbs 0 to 4, nouns 2 to 7, nine pairs; 3 and 4 are mostly called alike.
_ACTIONS = [(3, 2), (0, 7), (1, 2), (2, 5), (4, 3), (0, 4), (0, 2), (1, 6), (1, 7), (3, 2)]
_WORDS = ("take", "put", "wash", "open", "open")


def _kitchen_list(path: Path, rows: list[tuple[int, int]], columns: str) -> Path:
    lines = [f"{n},{_WORDS[v]},{v},n{c},{c},{v}" for n, (v, c) in enumerate(rows)]
    path.write_text("\n".join([columns, *lines, "99,shut,3,n2,2,3", ""]))
    return path


def test_classes_of_epic_kitchens_are_those_of_its_list(folder: Path, tmp_path: Path) -> None:
    """Verbs and nouns in rising order; pairs in the order of Python's set of them."""
    columns = "narration_id,verb,verb_class,noun,noun_class,other"
    full = _kitchen_list(tmp_path / "a.csv", _ACTIONS, columns)
    bare = _kitchen_list(tmp_path / "b.csv", _ACTIONS, columns.replace("verb,", "x,", 1))

    def classes(question: str, file: Path) -> tuple[str, ...]:
        paths = folder / "v2_anticipation_probe_tiny.pt", folder / "v2_pretrain_tiny.pt"
        return open_released(*paths, _config(question=question, classes=file))[0].classes

    assert classes("verb", full) == ("take", "put", "wash", "open 3", "open 4")
    quoted = ",".join(f'"{name}"' for name in columns.split(","))
    assert classes("verb", _kitchen_list(tmp_path / "q.csv", _ACTIONS, quoted))[0] == "take"
    assert classes("verb", bare) == ("0", "1", "2", "3", "4")
    assert classes("noun", full) == ("n2", "n3", "n4", "n5", "n6", "n7")
    names = ("take", "put", "wash", "open 3", "open 4")
    wanted = tuple(f"{names[v]} n{c}" for v, c in set(_ACTIONS))
    assert classes("action", full) == wanted
    short = _kitchen_list(tmp_path / "c.csv", _ACTIONS[:3], columns)
    with pytest.raises(UserError, match=r"3 classes \(verb\), the probe has 5; give the whole"):
        classes("verb", short)
    (tmp_path / "d.csv").write_text(f"{columns}\n0,take,zero,n1,1,0\n")
    with pytest.raises(UserError, match="row 2: verb_class 'zero' and noun_class '1' must be"):
        classes("verb", tmp_path / "d.csv")
    (tmp_path / "e.csv").write_text("path,label\na.mp4,take\n")
    with pytest.raises(UserError, match="or the list with verb_class and noun_class"):
        classes("verb", tmp_path / "e.csv")
    (tmp_path / "f.csv").write_text(f'{columns}\n0,"take,0,n1,1,0{200_000 * "x"}\n')
    with pytest.raises(UserError, match=r"f\.csv: cannot be read \(field larger"):
        classes("verb", tmp_path / "f.csv")
    with pytest.raises(UserError, match="set question"):
        open_released(
            folder / "v2_probe_tiny.pt", folder / "v2_pretrain_tiny.pt", _config(classes=full)
        )


@pytest.mark.parametrize(
    ("probe", "encoder", "config", "message"),
    [
        ("v2_probe_tiny.pt", None, {}, "say which"),
        ("v2_probe_tiny.pt", "v2_1_distilled_tiny.pt", {}, "an encoder of width 44"),
        ("v2_probe_tiny.pt", "v2_pretrain_tiny.pt", {"layers": [3]}, "has the blocks 0 to 2"),
        ("v2_probe_tiny.pt", "v2_pretrain_tiny.pt", {"question": "verb"}, "leave question out"),
        ("v2_anticipation_probe_tiny.pt", "v2_pretrain_tiny.pt", {}, "--question"),
        ("v2_probe_tiny.pt", "v2_pretrain_tiny.pt", {"index": 2}, "there is no number 2"),
        ("v2_probe_tiny.pt", "v2_pretrain_tiny.pt", {"as_transformers": True}, "leave it out"),
        ("v2_probe_tiny.pt", "v2_pretrain_tiny.pt", {"classes": __file__}, "of 7 classes"),
        (
            "v2_anticipation_probe_tiny.pt",
            "v2_pretrain_tiny.pt",
            {"question": "verb", "clip": {"num_frames": 8, "stride": 4}},
            "clip.fps",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    probe: str, encoder: str | None, config: dict, message: str, folder: Path
) -> None:
    path = None if encoder is None else folder / encoder
    with pytest.raises(UserError, match=message) as caught:
        open_released(folder / probe, path, _config(**config))
    assert "\n" not in str(caught.value)


def test_a_probe_from_python_takes_text_and_plain_values(folder: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4")
    file, source = str(folder / "v2_probe_tiny.pt"), str(folder / "v2_pretrain_tiny.pt")
    plain: dict[str, Any] = {"device": "cpu", "num_threads": 1, "cache_dir": str(tmp_path / "c")}
    told: Any = {"encoder": SIZES, "num_heads": 4, "clip": CLIP, "view": VIEW}
    with pytest.raises(UserError, match=r"give it \(--num_heads; in Python released=\{'num_heads'"):
        load_probe(folder / "hf_classification_tiny", **plain)
    probe = load_probe(file, encoder=source, released=told, **plain)
    reading: Any = {"num_workers": 0}
    (found,) = probe.predict(video, reading=reading)
    assert probe.predict(path for path in [video]) == [found]
    for wrong, said in (
        ({"on_bad_video": "skip"}, "on_bad_video: 'skip' must be 'error' or 'list'"),
        ({"num_threads": 0}, "num_threads: must be 1 or more"),
        ({"encoder": probe.extractor.frozen.encoder}, "Encoder was given, where a path"),
        ({"encoder": None}, r"which \(--encoder, in Python encoder=\)"),
    ):
        with pytest.raises(UserError, match=said):
            load_probe(file, **{"encoder": source, "released": told, **plain, **wrong})
    for sources, top, said in ((None, 5, "NoneType was given"), (video, "3", "top: .* got '3'")):
        with pytest.raises(UserError, match=said):
            probe.predict(sources, top=top)


def test_settings_are_for_released_probes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave them out"):
        load_probe(tmp_path, released=ReleasedProbeConfig())
    with pytest.raises(ValueError, match=r"seconds_ahead: .* set question"):
        ReleasedProbeConfig(seconds_ahead=2.0)


@pytest.mark.parametrize("name", recipe_names("released"))
def test_recipes(name: str) -> None:
    """Clips go to the encoder's sizes, and blocks that are read are there."""
    config = load_config(ReleasedProbeConfig, [name], recipes="released")
    assert config.clip is not None
    assert config.view is not None
    assert isinstance(config.clip, ClipConfig)
    parts = name.split("_")
    if parts[1] == "vjepa2":
        preset = VJEPA2_MODELS["_".join(["vjepa2", parts[2] + "16", *parts[3:]])].encoder
        sizes = (config.clip.num_frames, config.view.crop_size)
        assert sizes == (config.encoder.num_frames, config.encoder.image_size)
        assert config.view.crop_size % preset.patch_size == 0
        assert max(config.layers or (0,)) < preset.depth
