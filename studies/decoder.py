"""What the decoder's samples show: measured on clips whose every object is known.

The shipped demo model hides the future: from the first 4 frames of a clip it predicts features of
the last 4. Decoders learn to draw those; on test clips of the synthetic set what they draw is
compared with what came, and with simpler answers. Called again, it goes on.

    vjepa data synth --seed 1 --num_clips_train 6000 --num_clips_validation 200 \\
        --num_clips_test 600 --out DATA
    python studies/decoder.py --data DATA --out OUT

Results: docs/decoder.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vjepa.checkpoint.folder import step_folders
from vjepa.config import load_config
from vjepa.counter_random import derive_seed
from vjepa.data.clips.dataset import centre_view
from vjepa.data.clips.views import ViewConfig
from vjepa.demo.synthetic import SyntheticConfig, render_clip
from vjepa.demo.synthetic_files import clip_path
from vjepa.jobs.decode import (
    DecodeConfig,
    OpenDecoder,
    build_task,
    new_decoder,
    open_decoder,
    train,
)
from vjepa.jobs.pretrain import PretrainConfig
from vjepa.masking import MaskSampler, TokenMasks
from vjepa.models import VJEPA, patchify, to_pixels, unpatchify
from vjepa.reporting.pictures import write_side_by_side
from vjepa.runtime.files import atomic_write
from vjepa.tasks import Decoding
from vjepa.tasks.decoding import token_noise
from vjepa.tasks.masked_prediction import normalise_features

JOBS = (("samples", 0), ("regression", 0), ("true", 0), ("samples", 1), ("samples", 2))
"""Decoders that are trained, with their seeds."""
SAMPLES = 2
STEPS = 10
_VIEW = ViewConfig(crop_size=32, short_side=40)
_BORDER = 4  # pixels of the 40 that the centre crop leaves out on each side
_REACH = 5  # pixels from the middle of a template to its edge
_WINDOW = 7  # of SSIM
_SEEN = 4  # frames
_LEAST_WAY = 2.0  # pixels
_PICTURED = 3  # clips
_SHOWN = {
    "what came": "what came",
    "samples, seed 0": "drawn from the prediction",
    "regression": "the same without noise",
    "decoder trained on true features": "drawn from the true features",
}


class Regression(Decoding):
    """The same network without noise: it learns the mean of the pixels, given the features."""

    def inputs(self, batch: Any, part: int, parts: int) -> tuple[Any, ...]:
        """All at time 0, nothing of the noise, no features hidden."""
        clips, masks, size, noise, times, kept = super().inputs(batch, part, parts)
        return clips, masks, size, 0 * noise, 0 * times, torch.ones_like(kept)


class OfTrueFeatures(Decoding):
    """A decoder of what the target encoder says of the hidden tokens: no prediction is made."""

    def __init__(self, model: VJEPA, *rest: Any) -> None:
        super().__init__(model, *rest)
        self.target_encoder = model.target_encoder.eval().requires_grad_(False)

    @torch.no_grad()
    def features(self, clips: Tensor, mask: TokenMasks, kind: int) -> Tensor:  # noqa: ARG002
        """The targets of pretraining."""
        return mask.gather_target(normalise_features(self.target_encoder(clips)))


def builder(cls: type[Decoding]) -> Callable[[DecodeConfig, VJEPA, PretrainConfig], Decoding]:
    """What makes a task of this class of a config."""

    def build(config: DecodeConfig, model: VJEPA, learnt_from: PretrainConfig) -> Decoding:
        sizes = model.config.encoder
        sampler = MaskSampler(learnt_from.masking, sizes.grid, sizes.tubelet_size, config.seed)
        decoder = new_decoder(model, config.decoder)
        share, batch_size = config.no_features_share, config.data.batch_size
        return cls(model, decoder, share, config.seed, sampler, batch_size)

    return build


KINDS = {"samples": build_task, "regression": builder(Regression), "true": builder(OfTrueFeatures)}


def train_all(data: Path, out: Path, jobs: Sequence[tuple[str, int]]) -> None:
    """Train the decoders that are not there yet."""
    for kind, seed in jobs:
        overrides = [
            "model=demo",
            f"seed={seed}",
            f"data.sources.0.manifest={data / 'manifest.parquet'}",
            "data.sources.0.split=train",
            f"data.loader.frame_cache_folder={out / 'frames'}",
            "training.num_threads=1",
        ]
        config = load_config(DecodeConfig, ["demo"], overrides, recipes="decode")
        if train(config, out / f"{kind}_{seed}", KINDS[kind]).interrupted:
            raise KeyboardInterrupt


@dataclass(frozen=True)
class TestClips:
    """Clips of the test split, and where object A is in those in which it moves straight."""

    clips: Tensor
    """uint8 [B, 3, 8, 32, 32]."""
    places: NDArray[np.float64]
    """[B, 8, 2], x and y of A in pixels."""
    last: NDArray[np.int64]
    """[B]: the last frame in which A can be looked for, being far enough inside; -1 where it can in
    none to which it has come some way, and in clips of other motions."""


def read_clips(data: Path, split: str, count: int, side: int) -> TestClips:
    """The first clips of a split, by their files, with the truth by the simulator."""
    config = load_config(SyntheticConfig, [data / "config.yaml"])
    clip = load_config(PretrainConfig, ["demo"], recipes="pretrain").data.clip
    clips, places, last = [], [], []
    for index in range(count):
        clips.append(centre_view(str(data / clip_path(split, index)), clip, _VIEW).transpose(0, 1))
        known = render_clip(config, split, index)
        place = known.centre_a * config.size - _BORDER
        inside = ((place > _REACH) & (place < side - _REACH - 1)).all(axis=1)
        way = np.linalg.norm(place - place[_SEEN - 1], axis=1)
        usable = np.flatnonzero(inside & (way >= _LEAST_WAY) & (np.arange(len(place)) >= _SEEN))
        straight = known.motion.startswith("move_") and inside[_SEEN - 1]
        places.append(place)
        last.append(usable.max() if straight and len(usable) else -1)
    return TestClips(torch.stack(clips), np.stack(places), np.array(last))


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Structural similarity of grey frames [B, T, H, W] on the scale 0..1 -> [B]; square windows.

    Wang et al. 2004, with their constants, in windows of 7 x 7 pixels of equal weight.
    """
    pool = lambda x: functional.avg_pool2d(x, _WINDOW, stride=1)  # noqa: E731
    a, b = pool(one), pool(other)
    unbiased = _WINDOW**2 / (_WINDOW**2 - 1)
    aa, bb, ab = (
        unbiased * (pool(x * y) - pool(x) * pool(y))
        for x, y in ((one, one), (other, other), (one, other))
    )
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * a * b + c1) * (2 * ab + c2) / ((a**2 + b**2 + c1) * (aa + bb + c2))
    return value.flatten(1).mean(1)


def found_places(video: Tensor, truth: Tensor, test: TestClips) -> NDArray[np.float64]:
    """Where A is drawn in the last frame in which it can be looked for: [B, 2], x and y in pixels.

    The picture around A in the last frame seen is looked for, by the highest correlation over the
    three colours. `video`, `truth` float [B, 3, 8, S, S].
    """
    result = np.full((len(video), 2), np.nan)
    side = 2 * _REACH + 1
    across = video.shape[-1] - side + 1
    for b in np.flatnonzero(test.last >= 0):
        x, y = test.places[b, _SEEN - 1].astype(int)
        rows, columns = (slice(i - _REACH, i + _REACH + 1) for i in (y, x))
        template = truth[b, :, _SEEN - 1, rows, columns].flatten(1)
        template = (template - template.mean(1, keepdim=True)).flatten()
        frame = video[b, None, :, test.last[b]]
        windows = functional.unfold(frame, side)[0].unflatten(0, (3, side**2))
        windows = (windows - windows.mean(1, keepdim=True)).flatten(0, 1)
        score = functional.normalize(template, dim=0) @ functional.normalize(windows, dim=0)
        best = int(score.argmax())
        # The template's middle is a whole pixel: the part that was cut off is put back.
        rest = test.places[b, _SEEN - 1] - (x, y)
        result[b] = np.array([best % across, best // across]) + _REACH + rest
    return result


def measure(
    drawn: Tensor, test: TestClips, model: VJEPA, true_features: Tensor, scale: float
) -> dict[str, NDArray[np.float64]]:
    """What is said of one answer, by clip [B]: `drawn` is normalised, [B, 3, 8, S, S].

    rmse, mae: of 255; ssim; features: squared distance of the target encoder's features from the
    true clip's, by `scale`, that between clips; sharpness: mean difference of neighbouring
    pixels, by the true one; motion: how much of A's way since the last frame seen is drawn (1: all
    of it, 0: it stays where it was); off: pixels between A as drawn and A.
    """
    truth = model.encoder.normalise(test.clips)
    deviation = truth.new_tensor(model.config.encoder.input.mean_and_deviation[1])
    mean = truth.new_tensor(model.config.encoder.input.mean_and_deviation[0])
    pixels, wanted = (
        (x * deviation[:, None, None, None] + mean[:, None, None, None]).clamp(0, 1)
        for x in (drawn, truth)
    )
    late, after = pixels[:, :, _SEEN:], wanted[:, :, _SEEN:]
    error = (late - after).flatten(1)
    features = normalise_features(model.target_encoder(drawn))[:, -true_features.shape[1] :]
    far = (features - true_features).square().mean((1, 2)) / scale
    edges = [
        sum(x.diff(dim=axis).abs().flatten(1).mean(1) for axis in (-1, -2)) for x in (late, after)
    ]
    found = found_places(pixels, wanted, test)
    start, end = test.places[:, _SEEN - 1], test.places[np.arange(len(found)), test.last]
    way = end - start
    values = {
        "rmse": 255 * error.square().mean(1).sqrt(),
        "mae": 255 * error.abs().mean(1),
        "ssim": ssim(late.mean(1), after.mean(1)),
        "features": far,
        "sharpness": edges[0] / edges[1],
    }
    return {name: value.double().numpy() for name, value in values.items()} | {
        "motion": ((found - start) * way).sum(1) / (way**2).sum(1),
        "off": np.linalg.norm(found - end, axis=1),
    }


def open_any(folder: Path) -> OpenDecoder | None:
    """A decoder, as far as it is trained."""
    done = list(step_folders(folder / "checkpoints"))
    if not done:
        return None
    print(f"{folder.name}: {done[-1]} updates")
    return open_decoder(folder)


@torch.no_grad()
def answers(
    data: Path, out: Path, count: int
) -> tuple[dict[str, list[Tensor]], TestClips, VJEPA, Tensor, float]:
    """Every way to fill the hidden frames, by name: some clips each, normalised [B, 3, 8, S, S]."""
    decoders = {(kind, seed): open_any(out / f"{kind}_{seed}") for kind, seed in JOBS}
    first = decoders["samples", 0]
    assert first is not None, "the first decoder is not trained"
    model, size = first.model, first.model.config.encoder
    test, some = (read_clips(data, s, count, size.image_size) for s in ("test", "train"))
    truth = model.encoder.normalise(test.clips)
    mask = first.masks()[0]  # the future: the same for every clip
    wide = TokenMasks(mask.context.expand(count, -1), mask.target.expand(count, -1))
    context = model.encoder(truth, wide.context)
    predicted = model.predictor(context, wide.context, wide.target).float()
    targets = normalise_features(model.target_encoder(truth))
    true = wide.gather_target(targets)
    scale = float((true - true.roll(1, 0)).square().mean())
    tokens = patchify(truth, size.tubelet_size, size.patch_size)
    usual = patchify(model.encoder.normalise(some.clips), size.tubelet_size, size.patch_size)

    def laid(named: Tensor) -> Tensor:
        filled = tokens.clone()
        filled[wide.target_rows(), wide.target] = named
        return unpatchify(filled, size.grid, size.tubelet_size, size.patch_size)

    def sampled(opened: OpenDecoder, features: Tensor, guidance: float = 1.0) -> list[Tensor]:
        drawn = []
        for seed in range(SAMPLES):
            shape = (count, wide.target.shape[1], opened.decoder.patch_values)
            noise = token_noise(shape, derive_seed(seed, "study"), torch.device("cpu"))
            named = opened.decoder.sample(
                features, wide.target, noise, steps=STEPS, guidance=guidance
            )
            drawn.append(laid(named))
        return drawn

    repeated = truth.clone()
    repeated[:, :, _SEEN:] = truth[:, :, _SEEN - 1, None]
    found = {
        "what came": [truth],
        "mean patch": [laid(wide.gather_target(usual.mean(0).expand(count, -1, -1)))],
        "last frame repeated": [repeated],
    }
    for (kind, seed), opened in decoders.items():
        if opened is None:
            continue
        if kind == "regression":
            zeros = torch.zeros(count, wide.target.shape[1], opened.decoder.patch_values)
            named = opened.decoder(zeros, zeros[..., 0], predicted, wide.target)
            found["regression"] = [laid(named)]
        elif kind == "true":
            found["decoder trained on true features"] = sampled(opened, true)
        else:
            found[f"samples, seed {seed}"] = sampled(opened, predicted)
            if seed == 0:
                found["mean of the samples"] = [torch.stack(found["samples, seed 0"]).mean(0)]
                found["samples, guidance 2"] = sampled(opened, predicted, 2.0)
                found["given the true features"] = sampled(opened, true)
                found["given another clip's"] = sampled(opened, predicted.roll(1, 0))
    return found, test, model, true, scale


def draw(found: dict[str, list[Tensor]], test: TestClips, model: VJEPA, path: Path) -> None:
    """The first clips in which A moves straight, as they came and as they are drawn, moving."""
    rows = [
        (_SHOWN[name], to_pixels(found[name][0][b], model.config.encoder.input))
        for b in np.flatnonzero(test.last >= 0)[:_PICTURED].tolist()
        for name in _SHOWN
        if name in found
    ]
    frames = [(name, clip.permute(1, 2, 3, 0).numpy()) for name, clip in rows]
    write_side_by_side(frames, path, len(rows) // _PICTURED)


@torch.no_grad()
def main() -> None:
    """Train what is missing, measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=256, help="test clips")
    parser.add_argument("--measure", action="store_true", help="only what is trained already")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.measure:
        with torch.enable_grad():
            train_all(args.data, args.out, JOBS)
    found, test, *known = answers(args.data, args.out, args.clips)
    draw(found, test, known[0], args.out / "pictures.webp")
    names = ("rmse", "mae", "ssim", "features", "sharpness", "motion", "off")
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    table = {}
    for name, several in found.items():
        each = [measure(drawn, test, *known) for drawn in several]
        by_clip = {key: np.mean([values[key] for values in each], axis=0) for key in names}
        cells = []
        for key in names:
            value = by_clip[key][np.isfinite(by_clip[key])]
            mean, error = value.mean(), value.std(ddof=1) / np.sqrt(len(value))
            table[f"{name}/{key}"] = (float(mean), float(error), len(value))
            cells.append(f"{mean:.3g} ± {error:.2g}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    atomic_write(args.out / "results.json", json.dumps(table, indent=1))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
