"""`vjepa app`: every tab through a real server, by clients as a browser is one."""

from __future__ import annotations

import logging
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.jobs.probe.tiny_probe import TINY
from tests.jobs.test_show_frozen import save_probe

from vjepa.checkpoint import save_model
from vjepa.checkpoint.folder import write_manifest, write_weights
from vjepa.cli.main import main
from vjepa.config import to_dict
from vjepa.demo.synthetic import SyntheticConfig, render_clip
from vjepa.errors import UserError
from vjepa.evaluation.preprocess import load_model, preprocess_of
from vjepa.jobs import app, app_looks
from vjepa.jobs.app_looks import TRAINED, UNTRAINED, Session
from vjepa.jobs.decode import DecodeConfig, new_decoder, open_model, predicting_hash
from vjepa.models import VJEPA, DecoderConfig
from vjepa.reporting.pictures import write_moving

httpx = pytest.importorskip("httpx")
gradio_client = pytest.importorskip("gradio_client")
pytest.importorskip("lancedb")

_BOTH = [TRAINED, UNTRAINED]
_LONG = SyntheticConfig(num_frames=16, travel=0.6, background_speed=0.6)
_BOX = ("a box", 0, 0.25, 0.25, 0.75, 0.75)
_MASK = ("as in its training", 0, *_BOX[2:])


def _drawn(path: Path, number: int, frames: int = 16, seconds_each: float = 0.125) -> Path:
    write_moving(list(render_clip(_LONG, "train", number).frames[:frames]), path, seconds_each)
    return path


def _write_decoder(folder: Path) -> Path:
    """A decoder of the shipped model that has learnt nothing, as `decode train` writes one."""
    model = open_model(Path("demo"))
    config = DecodeConfig(model=Path("demo"), decoder=DecoderConfig(width=24, depth=1, heads=3))
    tensors = new_decoder(model, config.decoder).state_dict()
    seen = preprocess_of("demo", model.config.encoder)
    about = {
        "objective": "decoder",
        "model": to_dict(model.config),
        "run": to_dict(config),
        "preprocess": {"clip": to_dict(seen.clip), "view": to_dict(seen.view)},
        "weights_hash": predicting_hash(model),
    }
    folder.mkdir()
    write_weights(folder, {f"average.{name}": one for name, one in tensors.items()}, 1, about)
    write_manifest(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Videos, good and bad, and models, a decoder, a probe and a database."""
    folder = tmp_path_factory.mktemp("files")
    made = {name: folder / f"{name}.mp4" for name in ("walk", "short", "long", "broken", "large")}
    _drawn(made["walk"], 0)
    _drawn(made["short"], 1, frames=3)
    _drawn(made["long"], 2, seconds_each=1.0)
    made["broken"].write_bytes(made["walk"].read_bytes()[:700])
    made["large"].write_bytes(bytes(3 << 20))
    made["tiny"] = save_model(folder / "tiny", VJEPA(TINY))
    made["other"] = save_model(folder / "other", VJEPA(load_model("demo").config))
    made["pixel"] = save_model(folder / "pixel", VJEPA(TINY))
    described = made["pixel"] / "config.json"
    described.write_text(
        described.read_text().replace('"objective": "vjepa"', '"objective": "pixel"')
    )
    made["probe"] = save_probe(folder / "probe", "linear")
    videos = [str(_drawn(folder / f"{number}.mp4", number)) for number in (3, 4)]
    encoder = ("--encoder.path", "demo", "--readers", "0", "--device", "cpu")
    made["database"] = folder / "database"
    assert main(["search", "index", *videos, *encoder, "--out", str(made["database"])]) == 0
    made["decoder"] = _write_decoder(folder / "decoder")
    return made


@pytest.fixture(scope="module")
def url(files: dict[str, Path]) -> Iterator[str]:
    """A server whose limits are small; at its end nothing of it is left."""

    def examples(folder: Path) -> dict[str, Path]:
        return {"a walk": shutil.copy(files["walk"], folder / "example.mp4")}

    with pytest.MonkeyPatch.context() as patch:
        for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_OFFLINE"):
            patch.setenv(name, "")
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setattr(app, "_LIMITS", replace(app._LIMITS, max_bytes=2 << 20))
        patch.setattr(app, "MOST_SECONDS", 10.0)
        with app.open_server(0, examples) as (address, serve, stop):
            root = Path(app.os.environ["GRADIO_TEMP_DIR"]).parent
            thread = threading.Thread(target=serve)
            thread.start()
            yield address
            late, said = _client(address), list[logging.LogRecord]()
            logging.getLogger("uvicorn.error").addFilter(lambda one: said.append(one) or True)
            stop()
            thread.join(60)
            late.close()
        assert not thread.is_alive()
        assert not said, "a page that is open at the end fills no terminal"
        assert not root.exists()


Call = Callable[..., Any]


@pytest.fixture(scope="module")
def call(url: str) -> Iterator[Call]:
    """A client's calls: (tab, values) -> files' paths, other values, words."""
    client = _client(url)
    yield lambda tab, *values: _call(client, tab, *values)
    client.close()


def _client(url: str) -> Any:
    how = {"verbose": False, "download_files": False, "httpx_kwargs": {"timeout": 300}}
    return gradio_client.Client(url, **how)


def _call(client: Any, tab: str, *values: Any) -> Any:
    return client.predict(*values, api_name=f"/{tab}")


def _words(found: Any) -> str:
    text = found if isinstance(found, str) else found[-1]
    return re.sub(r"<[^>]*>", " ", text).replace("&#x27;", "'")


def _upload(call: Call, path: Path) -> str:
    return _words(call("upload", gradio_client.handle_file(str(path))))


def test_every_tab_shows_what_its_function_finds(call: Call, files: dict[str, Path]) -> None:
    assert "a walk: 2.00 s, 16 frames of 40 x 40 px" in _words(call("example", "a walk"))
    film, still, _ = found = call("features", _BOTH, 0.0, 0.6)
    assert Path((film.get("video") or film)["path"]).stat().st_size > 1000
    assert Path(still["path"]).stat().st_size > 1000
    assert "untrained: 0.00 to 0.88 s, 8 frames of 32 px seen as 4 x 4 x 4" in _words(found)
    assert "demo: asked for at 0.75 s" in _words(call("similar", _BOTH, 0.25, 0.6, 0.5, 0.5))
    for hidden in (_MASK, _BOX, ("what comes next", *_BOX[1:])):
        words = _words(call("hide", _BOTH, 0.0, *hidden))
        errors = [float(one) for one in re.findall(r"error (\d\.\d\d) \(1: no better", words)]
        assert len(errors) == 2
        assert words.count("never trained on such a part") == (hidden is _BOX), "it hid the future"
    assert errors[0] < errors[1], "who has learnt predicts what comes next better"
    words = _words(call("surprise", _BOTH))
    assert words.count("unusual here: a surprise of") == 2
    assert re.search(r"demo: \d\.\d\d s: surprise .* untrained: \d\.\d\d s: surprise", words)
    assert "demo: 0.81 s: surprise" in _words(call("moment", 0.8))
    words = _words(call("samples", 0.0, *_BOX, str(files["decoder"]), "", 2))
    assert "mean absolute error where it was hidden" in words
    found = call("classes", str(files["probe"]), "")
    assert {one["label"] for one in found[0]["confidences"]} == {"left", "right"}
    words = _words(call("search", str(files["database"]), "", 0, 0, 2))
    assert words.count("alike: ") == 2


def test_an_uploaded_video_is_looked_at_and_a_bad_one_is_refused_in_a_line(
    call: Call, url: str, files: dict[str, Path]
) -> None:
    for _ in ("once", "again"):
        assert "walk.mp4: 2.00 s, 16 frames" in _upload(call, files["walk"])
    assert "error" not in _words(call("features", _BOTH, 1.0, 0.6))
    assert "short.mp4: 0.38 s" in _upload(call, files["short"])
    assert "the last frame is repeated" in _words(call("features", [TRAINED], 0.0, 0.6))
    words = _words(call("hide", [TRAINED], 0.0, *_BOX))
    assert "demo: error: too short for this model: 3 frames" in words
    words = _words(call("surprise", [TRAINED]))
    assert "too few frames (3)" in words
    assert words.count("error: ") == 1
    words = _upload(call, files["broken"])
    assert "error: broken.mp4: " in words
    assert "give another file" in words
    assert "error: no video yet" in _words(call("features", [TRAINED], 0.0, 0.6))
    assert "error: long.mp4: lasts 16 s, and at most 10 s" in _upload(call, files["long"])
    with files["large"].open("rb") as large:
        answer = httpx.post(
            f"{url}/gradio_api/upload", files={"files": large}, timeout=300, trust_env=False
        )
    assert answer.status_code == 413
    assert "exceeded maximum allowed size" in answer.text


def test_a_model_or_file_that_does_not_fit_is_refused_in_a_line(
    call: Call, files: dict[str, Path]
) -> None:
    call("example", "a walk")
    assert "error: nowhere: no such file" in _words(call("model", "nowhere", _BOTH))
    assert "tiny: 4 frames of 32 px" in _words(call("model", f"file://{files['tiny']}", _BOTH))
    assert "no path of this machine" in _words(call("classes", "https://host/probe", ""))
    pixel, other = str(files["pixel"]), str(files["other"])
    words = _words(call("model", pixel, [TRAINED]))
    assert "there is no prediction to look at" in words
    assert "a model of 'pixel', which predicts no features" in words
    assert "error" not in _words(call("features", [TRAINED, pixel], 0.0, 0.6))
    words = _words(call("hide", [TRAINED, pixel], 0.0, *_BOX))
    assert re.search(r"demo: error \d\.\d\d \(1: no better", words)
    assert f"{pixel}: error: there is no prediction to look at" in words
    assert "error: no model is ticked" in _words(call("features", [], 0.0, 0.6))
    assert "error: no curve yet" in _words(call("moment", 0.8))
    assert "error: name a decoder" in _words(call("samples", 0.0, *_BOX, "", "", 2))
    words = _words(call("samples", 0.0, *_BOX, str(files["decoder"]), other, 2))
    assert "was trained on other weights" in words
    words = _words(call("search", str(files["database"]), other, None, None, 2))
    assert "holds moments of " in words
    assert "trained for another encoder" in _words(call("classes", str(files["probe"]), other))
    nothing = ("a box", 0, 0.0, 0.0, 1.0, 1.0)
    assert "nothing would be left to predict from" in _words(call("hide", _BOTH, 0.0, *nothing))
    assert "the box is empty" in _words(call("hide", _BOTH, 0.0, "a box", 0, 0.5, 0.5, 0.5, 0.9))


def test_two_users_do_not_disturb_each_other_and_leave_nothing(
    url: str, files: dict[str, Path]
) -> None:
    one, other = _client(url), _client(url)
    walk = gradio_client.handle_file(str(files["walk"]))
    _call(one, "example", "a walk")
    assert "no video yet" in _words(_call(other, "features", [TRAINED], 0.0, 0.6))
    short = gradio_client.handle_file(str(files["short"]))
    _call(other, "upload", short), _call(one, "upload", walk)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(_call, one, "features", _BOTH, 0.0, 0.6)
        second = threads.submit(_call, other, "features", _BOTH, 0.0, 0.6)
        first, second = first.result(), second.result()
    assert "repeated" in _words(second)
    assert "repeated" not in _words(first)
    mine, theirs = (Path(found[1]["path"]).parents[1] for found in (first, second))
    assert mine != theirs
    _call(other, "upload", walk)
    one.close()
    began = time.monotonic()
    while mine.exists() and time.monotonic() - began < 60:
        time.sleep(0.1)
    assert not mine.exists(), "a closed tab leaves no file"
    assert "error" not in _words(_call(other, "features", _BOTH, 0.0, 0.6)), "the shared upload"
    other.close()


def test_work_ends_at_the_next_step_after_a_stop(tmp_path: Path, files: dict[str, Path]) -> None:
    session = Session(tmp_path)
    session.video = app.inspect_file(str(files["walk"]))
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        session.stops += 1

    with pytest.raises(UserError, match="stopped at your request"):
        app_looks.surprises(session, session.watched(progress), _BOTH)
    assert seen == [1]
    view, moment = app_looks.surprises(session, session.watched(), _BOTH)
    assert moment > 0
    assert "deviations" in view.words


def test_a_curve_of_surprise_is_of_the_video_that_is_chosen(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    sessions = app.Sessions(tmp_path, {name: files[name] for name in ("walk", "long")})
    session = sessions.of("tab")
    sessions.choose(session, "walk")

    def other(done: int, total: int) -> None:
        if session.video and session.video.path == str(files["walk"]) and done == total:
            sessions.choose(session, "long")

    with pytest.raises(UserError, match="stopped at your request"):
        app_looks.surprises(session, session.watched(other), _BOTH)
    with pytest.raises(UserError, match="no curve yet"):
        app_looks.moment_of_surprise(session, 0.5)
    app_looks.surprises(session, session.watched(), [TRAINED])
    assert session.surprises[TRAINED][1].seconds.max() > 10, "the long video's"


def test_the_page_names_no_other_host_and_answers_to_no_other_name(url: str) -> None:
    page = httpx.get(url, trust_env=False).text
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']([^\"']*)", page)
    loaded += re.findall(r"url\(([^)]*)\)", httpx.get(f"{url}/theme.css", trust_env=False).text)
    assert loaded
    assert [one for one in loaded if re.match(r"[\"']?(https?:)?//", one)] == []
    other = httpx.get(url, headers={"host": "elsewhere.example"}, trust_env=False)
    assert other.status_code == 400


def test_what_cannot_begin_says_so_in_one_line(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")
    port = url.rpartition(":")[2]
    assert main(["app", "--port", port]) == 2
    assert f"error: --port {port}: cannot be had (" in capsys.readouterr().err
    assert main(["app", "--port", "99999"]) == 2
    assert "error: --port 99999: cannot be had (" in capsys.readouterr().err
    assert main(["app", "--port", "0", "--model", "nowhere"]) == 2
    assert "error: --model nowhere: no such file" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app", "--port", "0"]) == 2
    assert "app needs gradio: pip install 'open-vjepa[app]'" in capsys.readouterr().err


def test_models_with_other_clips_stand_on_one_time_axis(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    session = Session(tmp_path)
    session.video = app.inspect_file(str(files["walk"]))
    shown: list[app_looks.Rows] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app_looks, "write_side_by_side", lambda rows, *_, **__: shown.append(rows))
        names = [TRAINED, str(files["tiny"])]
        view = app_looks.features(session, session.watched(), names, 0.0, 0.0)
    assert "error" not in view.words
    (_, clip), _, (_, tiny) = shown[0]
    # At strength 0 a row is the model's own clip: frames 0, 5, 10 and 15, of 8 a second.
    assert [len(rows) for _, rows in shown[0]] == [8, 8, 8]
    np.testing.assert_array_equal(tiny[[0, 5]], clip[[0, 5]])
    np.testing.assert_array_equal(tiny[1], clip[0])
    assert not np.array_equal(clip[1], clip[0])


def test_files_of_the_authors_stand_beside_the_shipped_model(
    tmp_path: Path, files: dict[str, Path], golden_dir: Path
) -> None:
    session = Session(tmp_path)
    clip = render_clip(replace(_LONG, num_frames=64), "train", 5)
    write_moving(list(clip.frames), tmp_path / "long.mp4", 0.125)
    session.video = app.inspect_file(str(tmp_path / "long.mp4"))
    watch = session.watched()
    second = golden_dir / "vjepa2"
    sizes = "num_heads=2 image_size=64 num_frames=8"
    names = [
        TRAINED,
        f"{golden_dir / 'pretrain_tiny.pth.tar'} num_heads=3",
        f"{second / 'v2_pretrain_tiny.pt'} {sizes}",
        f"{second / 'v2_1_pretrain_tiny.pt'}  {sizes} ",
        f"{second / 'hf_base_tiny'}",
    ]
    words = app_looks.features(session, watch, names, 0.0, 0.6).words
    assert "error" not in words
    assert "16 frames of 64 px seen as 8 x 4 x 4 tokens of 48 numbers" in words
    assert "error: " not in app_looks.similar(session, watch, names, 0.0, 0.0, 0.5, 0.5).words
    for how, strange in (("a box", 1), ("what comes next", 4), ("as in its training", 0)):
        words = app_looks.predictions(session, watch, names, 0.0, how, *_BOX[1:])
        assert "error: " not in words.words
        assert words.words.count("never trained on such a part") == strange
    words = app_looks.surprises(session, watch, names)[0].words
    assert words.count("unusual here") == len(names)
    distilled = f"{second / 'v2_1_distilled_tiny.pt'} {sizes}"
    words = app_looks.predictions(session, watch, [distilled], 0.0, *_BOX).words
    assert "error: this model predicts 48 numbers a token" in words
    session.video = app.inspect_file(str(files["short"]))
    pixel = str(files["pixel"])
    words = app_looks.predictions(session, watch, [pixel], 0.0, *_BOX).words
    assert "error: there is no prediction to look at" in words, "and not that it is too short"
    with pytest.raises(UserError, match=r"heads of an encoder .* cannot be told from its file"):
        app_looks.open_for_page(str(second / "v2_pretrain_tiny.pt"))
    with pytest.raises(UserError, match=r"image_size: .*"):
        app_looks.open_for_page(f"{TRAINED} image_size=32")


def test_models_of_single_images_stand_beside_those_of_video(
    tmp_path: Path, files: dict[str, Path], golden_dir: Path
) -> None:
    pytest.importorskip("timm")
    session = Session(tmp_path)
    session.video = app.inspect_file(str(files["walk"]))
    watch, folder = session.watched(), golden_dir / "baselines"
    images = [
        f"{folder / 'dinov2_tiny.pth'} num_heads=3 image_size=56",
        f"{folder / 'openclip_tiny.bin'} num_heads=3",
        f"{folder / 'ijepa_tiny.pth.tar'} num_heads=3",
    ]
    for names in (images[:1], [*images, "nowhere", str(files["tiny"]), TRAINED]):
        seen = "0.00 to 0.88 s" if len(names) == 1 else "0.00 to 1.88 s"
        words = app_looks.features(session, watch, names, 0.0, 0.6).words
        assert f"{names[0]}: {seen}, single images of 56 px seen as 4 x 4 tokens of 48 " in words
        assert words.count(seen) == (1 if len(names) == 1 else 4), "as the first model of video"
        assert words.count("error: ") == words.count("nowhere: error: no such file")
    words = app_looks.similar(session, watch, images, 0.0, 0.99, 0.5, 0.5).words
    assert words.count("asked for at 0.88 s") == 3
    assert app_looks.frame_picture(session, images, 0.0, 0.99, at=(0.5, 0.5)).is_file()
    told = "error: there is no prediction to look at: {} of width 48, depth 2, an encoder without"
    lines = app_looks.predictions(session, watch, [*images, TRAINED], 0.0, *_BOX).words.splitlines()
    for name, title, line in zip(images, ("DINOv2", "OpenCLIP", "I-JEPA"), lines, strict=False):
        assert line.startswith(f"{name}: {told.format(title)} a predictor")
    assert lines[-1].startswith("demo: error 1.")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app_looks, "MAX_LINES", 1)
        words = app_looks.surprises(session, watch, [images[0], *_BOTH])[0].words
    assert words.startswith(f"{images[0]}: {told.format('DINOv2')}")
    assert "demo: unusual here" in words
    assert "untrained: error: a chart holds 1" in words
    Image.new("RGB", (60, 40), "red").save(tmp_path / "still.png")
    session.video = app.inspect_file(str(tmp_path / "still.png"))
    words = app_looks.features(session, watch, [images[0], TRAINED], 0.0, 0.6).words
    assert words.count("a still picture, the same in every frame") == 2
    assert "repeated" not in words
    words = app_looks.predictions(session, watch, [TRAINED], 0.0, *_BOX).words
    assert words == "demo: error: a still picture, in which nothing comes next; give a video"


@pytest.mark.parametrize("place", ["checkpoints", "run/checkpoints"])  # of a run, of `learn`
def test_of_a_run_that_goes_on_the_newest_checkpoint_is_shown(tmp_path: Path, place: str) -> None:
    shown = []
    for step in (1, 2):
        torch.manual_seed(step)
        save_model(tmp_path / place / f"step_{step:08d}", VJEPA(TINY), step=step)
        shown.append(app_looks.open_for_page(str(tmp_path)))
        assert app_looks.open_for_page(str(tmp_path)) is shown[-1], "it is kept"
    first, second = (opened.encoder.state_dict() for opened in shown)
    assert any(not torch.equal(first[name], second[name]) for name in first)
