"""A fine-tuned model on disk, opened as the probe that it then is: classes of any video."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vjepa.checkpoint.folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    explained_version,
    read_config,
    read_json,
    read_weights,
)
from vjepa.checkpoint.strict import load_strictly
from vjepa.config import from_dict
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import ViewConfig
from vjepa.data.loader.evaluation import OnBadVideo
from vjepa.data.loader.reading import ReadingConfig
from vjepa.errors import UserError
from vjepa.evaluation.frozen import (
    ClipSettings,
    EncoderIdentity,
    EncodingConfig,
    FeatureExtractor,
    FrozenEncoder,
    weights_hash,
)
from vjepa.evaluation.heads import HeadConfig
from vjepa.evaluation.labels import SPLIT_FILE
from vjepa.evaluation.saved_probe import SavedProbe
from vjepa.jobs.finetune.config import FinetuneConfig
from vjepa.jobs.probe.predict import Probe, with_record
from vjepa.models import Encoder, LinearClassifier
from vjepa.models.encoder import NORM_EPS
from vjepa.paths import as_path
from vjepa.runtime.device import DeviceName
from vjepa.runtime.process import set_num_threads

MODEL_FOLDER = "model"


class MeanToken(nn.Module):
    """An encoder that gives the mean of its tokens alone: float [B, C, T, H, W] -> [B, 1, D]."""

    def __init__(self, encoder: Encoder, *, final_norm: bool) -> None:
        super().__init__()
        self.encoder, self._final_norm = encoder, final_norm
        self.config = encoder.config

    def forward(self, video: Tensor) -> Tensor:
        """Encode normalised clips."""
        return self.encoder(video, final_norm=self._final_norm).mean(dim=1, keepdim=True)


def load_finetuned(
    folder: str | Path,
    *,
    device: DeviceName = "auto",
    num_threads: int | None = None,
    on_bad_video: OnBadVideo = "list",
    reading: ReadingConfig | None = None,
) -> Probe:
    """Load what fine-tuning wrote; it is used as a probe is, and ``predict`` takes any videos.

    `folder` is the run's, or the ``model`` folder in it. The other arguments are as for
    :func:`vjepa.load_probe`.

    Raises:
        UserError: It is no such folder, its training has not ended, or a file is damaged.
    """
    set_num_threads(num_threads)
    folder = as_path(folder)
    model = folder if (folder / WEIGHTS_FILE).is_file() else folder / MODEL_FOLDER
    if not (model / CONFIG_FILE).is_file():
        begun = (folder / "checkpoints").is_dir()
        why = "its training has not ended" if begun else "it was not written by `vjepa finetune`"
        raise UserError(
            f"{folder}: not a fine-tuned model: {why}; "
            + ("the command that began it goes on" if begun else "give the --out of such a run")
        )
    about, told = read_config(model), read_json(model / CONFIG_FILE)
    source, classes = str(model / CONFIG_FILE), told.get("classes")
    if about.objective != "class" or not isinstance(classes, list):
        raise UserError(f"{model}: a checkpoint without a classifier; give one of a finetune run")
    with explained_version(source, about.version):
        run = from_dict(FinetuneConfig, about.run, f"{source} (run)")
        clip = from_dict(ClipConfig, about.preprocess["clip"], f"{source} (clip)")
        view = from_dict(ViewConfig, about.preprocess["view"], f"{source} (view)")
    has_norm = run.classifier.readout != "final_norm_then_mean"
    with torch.device("meta"):
        encoder = Encoder(about.model.encoder)
        head = LinearClassifier(
            encoder.config.width, len(classes), norm=has_norm, norm_eps=NORM_EPS
        )
    weights = model / WEIGHTS_FILE
    for prefix, module in (("encoder.", encoder), ("head.", head)):
        what = f"the {prefix[:-1]} of a fine-tuned model"
        load_strictly(module, read_weights(weights, prefix), str(weights), what)
    encoder.reset_position_code()
    whole = MeanToken(encoder, final_norm=not has_norm).eval().requires_grad_(False)
    identity = EncoderIdentity(
        weights_hash=weights_hash(whole), config=encoder.config, path=str(model), which="fine-tuned"
    )
    setup = replace(run.training, device=device).set_up_device()
    features = EncodingConfig(precision=setup.precision)
    settings = ClipSettings(clip=clip, view=view, features=features)
    saved = SavedProbe(
        label=str(told.get("label")),
        classes=tuple(classes),
        encoder=identity,
        settings=settings,
        form=HeadConfig(kind="linear", norm=has_norm),
        head=head.eval(),
        training={
            "num_train": told.get("num_train"),
            "kind": told.get("kind"),
            "steps": about.step,
            "seed": run.seed,
        },
    )
    extractor = FeatureExtractor(
        FrozenEncoder(whole, identity), settings, setup, reading or ReadingConfig(), on_bad_video
    )
    return with_record(Probe(saved, extractor), model.parent / SPLIT_FILE)
