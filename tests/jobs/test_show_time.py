"""Similarity and surprise: on features that are known, and on a video that turns back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vjepa
from vjepa.cli.main import main
from vjepa.data.clips.plan import ClipConfig
from vjepa.demo.synthetic import SyntheticConfig, render_clip
from vjepa.errors import UserError
from vjepa.jobs.show_time import Surprise, similarity, surprise_of
from vjepa.reporting.pictures import write_moving

TURN = 10  # of 16 frames: from here on the video runs backwards
_LONG = SyntheticConfig(num_frames=16, travel=0.6, background_speed=0.6)


def _clip(number: int, *, turns: bool) -> np.ndarray:
    frames = render_clip(_LONG, "train", number).frames
    return np.concatenate([frames[:TURN], frames[TURN - 2 :: -1][:6]]) if turns else frames


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    straight = next(
        n for n in range(50) if render_clip(_LONG, "train", n).motion.startswith("move_")
    )
    paths = {name: folder / f"{name}.mp4" for name in ("natural", "turns", "short")}
    write_moving(list(_clip(straight, turns=False)), paths["natural"], 0.125)
    write_moving(list(_clip(straight, turns=True)), paths["turns"], 0.125)
    write_moving(list(_clip(straight, turns=False)[:6]), paths["short"], 0.125)
    return paths


def test_similarity_is_the_cosine_to_the_token_without_the_mean() -> None:
    features = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    tokens = features.reshape(-1, 5) - features.mean((0, 1, 2))
    wanted = tokens @ tokens[21] / np.linalg.norm(tokens, axis=1) / np.linalg.norm(tokens[21])
    found = similarity(features, (1, 2, 1))
    np.testing.assert_allclose(found.reshape(-1), wanted, atol=1e-5)
    assert found[1, 2, 1] == pytest.approx(1.0, abs=1e-5)


def test_the_model_is_surprised_where_a_video_turns_back(videos: dict[str, Path]) -> None:
    model, clip = vjepa.load_model("demo"), ClipConfig(num_frames=8, stride=1)
    natural, turns = (surprise_of(model, videos[name], clip) for name in ("natural", "turns"))
    # Windows of 8 frames, 2 apart: judged are frames 4 and 5, 6 and 7, ... 12 and 13.
    np.testing.assert_allclose(natural.seconds, (np.arange(4, 14, 2) + 0.5) / 8)
    np.testing.assert_allclose(natural.starts, np.arange(2, 12, 2) / 8)
    assert natural.errors.shape == (5, 4, 4)
    there = (TURN - 4) // 2
    assert turns.values.argmax() == there
    assert turns.values[there] > 1.5 * natural.values.max()
    np.testing.assert_allclose(turns.values[:2], natural.values[:2], atol=0.05)


def test_peaks_are_apart_and_the_worst_quarter_counts() -> None:
    errors = np.zeros((6, 2, 2), np.float32)
    errors[:, 0, 0] = [1, 5, 4, 1, 3, 1]
    found = Surprise(np.arange(6.0), np.arange(6.0), errors, (0, 0, 1, 1))
    np.testing.assert_array_equal(found.values, [1, 5, 4, 1, 3, 1])
    assert found.peaks(3, 2) == [1, 4]
    assert found.peaks(1, 2) == [1]
    assert found.heights[1] == pytest.approx((5 - 2) / (1.4826 * 1.0))
    assert found.line(1).endswith("2.0 deviations above the median: not unusual")
    assert found.line(0).endswith("0.7 deviations below the median: not unusual")
    assert found.rule().startswith("unusual here: a surprise of 9.41 or more, 5 deviations of 1.48")
    assert found.rule().endswith("so few moments (6)")


def test_what_is_unusual_is_measured_on_the_video() -> None:
    errors = np.full((40, 1, 1), 0.5, np.float32)
    errors[::2] += 0.2
    errors[30] = 1.4
    found = Surprise(np.arange(40.0), np.arange(40.0), errors, (0, 0, 1, 1))
    values = errors.ravel()
    deviation = 1.4826 * np.median(np.abs(values - np.median(values)))
    assert found.unusual == pytest.approx(np.median(values) + 5 * deviation, abs=1e-6)
    assert [n for n in range(40) if found.values[n] >= found.unusual] == [30]
    assert found.line(30).endswith("above the median: unusual")
    assert "guess" not in found.rule()
    even = Surprise(np.arange(3.0), np.arange(3.0), errors[1:6:2], (0, 0, 1, 1))
    assert even.unusual == pytest.approx(0.5 + 5 * 0.05), "a deviation is at least a tenth"


def test_the_commands_write_a_picture_and_a_page(
    videos: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "surprise.html"
    video = str(videos["turns"])
    picture = str(tmp_path / "surprise.png")
    assert main(["show", "surprise", video, "--model", "demo", "--out", picture]) == 2
    assert "surprise.png: must end in .html" in capsys.readouterr().err
    assert main(["show", "surprise", video, "--model", "demo", "--out", str(out)]) == 0
    assert "1.31 s: surprise" in capsys.readouterr().out
    page = out.read_text()
    assert "1.31 s" in page
    assert page.count("<img") == 4 + 4, "one peak: the windows are fewer than two clips"
    picture = tmp_path / "similarity.png"
    command = ["show", "similarity", video, "--model", "demo", "--out", str(picture)]
    assert main([*command, "--at", "0.2", "0.7", "--frame", "3"]) == 0
    assert Image.open(picture).height > 2 * 192


def test_bad_input_is_one_line(videos: dict[str, Path], tmp_path: Path) -> None:
    model, clip = vjepa.load_model("demo"), ClipConfig(num_frames=8, stride=1)
    with pytest.raises(UserError, match=r"short\.mp4: too few frames \(6\)"):
        surprise_of(model, videos["short"], clip)
    Image.new("RGB", (40, 40)).save(tmp_path / "still.png")
    with pytest.raises(UserError, match=r"still\.png: a picture"):
        surprise_of(model, tmp_path / "still.png", clip)
    with pytest.raises(UserError, match="No such file"):
        surprise_of(model, tmp_path / "none.mp4", clip)
    command = ["show", "similarity", str(videos["turns"]), "--model", "demo"]
    assert main([*command, "--at", "1.5", "0"]) == 2
    assert main([*command, "--frame", "8"]) == 2
