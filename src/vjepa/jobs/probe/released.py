"""Probes as their authors published them, used as one of ours: `vjepa probe eval | predict FILE`.

Such a file holds the weights of the head and no more: neither its encoder, what is seen of a video,
nor the names of the classes. A recipe says them for the published ones.
"""

from __future__ import annotations

import csv
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vjepa.checkpoint import hub_classes, read_anticipation_probe, read_model, read_probe
from vjepa.checkpoint.load import is_hub
from vjepa.config import config_dataclass
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import ViewConfig
from vjepa.errors import UserError
from vjepa.evaluation.frozen import ClipSettings, EncodingConfig, FrozenEncoder, weights_hash
from vjepa.evaluation.heads import HeadConfig
from vjepa.evaluation.preprocess import preprocess_of
from vjepa.evaluation.saved_probe import CONFIG_FILE, SavedProbe
from vjepa.jobs.probe.config import EncoderSourceConfig
from vjepa.jobs.probe.encoder import fit_to_clips, open_encoder
from vjepa.models import Encoder, Predictor
from vjepa.models.anticipation import AnticipationClassifier, with_future

_LOGGER = logging.getLogger(__name__)


@config_dataclass
class ReleasedProbeConfig:
    """What the file of a released probe does not say."""

    encoder: EncoderSourceConfig = field(default_factory=EncoderSourceConfig)
    """Its encoder, unless `--encoder` names it; null for a Hugging Face folder, which holds it."""
    clip: ClipConfig | None = None
    """Which frames are seen; null takes the encoder's usual clip, and the result says so."""
    view: ViewConfig | None = None
    """Segments and crops; null takes one centre crop of the encoder's image size."""
    features: EncodingConfig = field(default_factory=EncodingConfig)
    """How the encoder is run."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Blocks of the encoder, counted from 0, whose outputs the probe reads together (Diving48 of
    V-JEPA 2); null: the last one's."""
    question: Literal["verb", "noun", "action"] | None = None
    """For a probe that says what will be done (EPIC-KITCHENS-100): which of its answers."""
    seconds_ahead: Annotated[float, Field(ge=0)] = 1.0
    """For such a probe: how long after the clip."""
    num_heads: Annotated[int, Field(ge=1)] | None = None
    """Attention heads of the probe, where its size was not published."""
    index: Annotated[int, Field(ge=0)] = 0
    """Which of the probes that a file of V-JEPA 2 holds."""
    as_transformers: bool = False
    """Compute what the transformers library does of a Hugging Face folder, with other heads for g
    than those of the training."""
    label: str | None = None
    """Name of the label in the manifest that `probe eval` measures on."""
    classes: Path | None = None
    """File with a class name a line, in the order of the outputs; with `question` also the list
    that the probe was trained on (EPIC-KITCHENS' `EPIC_100_train.csv`), whose rows give names and
    order. null: their numbers, or the names that a Hugging Face folder holds."""

    def __post_init__(self) -> None:
        if self.question is None and self.seconds_ahead != ReleasedProbeConfig.seconds_ahead:
            raise ValueError("seconds_ahead: is for a probe that is asked a question; set question")


def is_released(path: Path) -> bool:
    """Whether it is a released probe rather than the folder of one of ours."""
    return path.is_file() or (not (path / CONFIG_FILE).exists() and is_hub(path))


def open_released(
    path: Path, encoder: Path | None, config: ReleasedProbeConfig
) -> tuple[SavedProbe, FrozenEncoder]:
    """A released probe in the form of one of ours, and its encoder.

    `encoder` is where that is, if the config does not say it.

    Raises:
        UserError: A file cannot be read, or probe, encoder and config do not go together.
    """
    where = encoder or config.encoder.path or (path if path.is_dir() else None)
    if where is None:
        raise UserError(
            f"{path}: a released probe, whose encoder is in another file: say which (--encoder, in "
            "Python encoder=); a probe of ours is a folder"
        )
    if config.question is None:
        shown = {"as_transformers": config.as_transformers}
        head, report = read_probe(path, config.num_heads, config.index, **shown)
    else:
        whole, report = read_anticipation_probe(path, config.num_heads, config.index)
        head = _Answer(whole, config.question, str(path))
    _LOGGER.info("probe: %s", report.kind)
    frozen = open_encoder(replace(config.encoder, path=where))
    sizes, pooler = frozen.identity.config, head.pooler
    if pooler.width != sizes.width:
        raise UserError(
            f"{path}: a probe for an encoder of width {pooler.width}, and {where} has "
            f"{sizes.width}; give the encoder that it was trained on"
        )
    usual, assumed = preprocess_of(where, sizes), list(frozen.identity.assumed)
    clip, view = usual.unless_given(config.clip, config.view)
    assumed += [
        f"the encoder's usual {name} (--{name}, or a recipe)"
        for name in ("clip", "view")
        if getattr(config, name) is None
    ]
    frozen = fit_to_clips(frozen, config.encoder, clip.num_frames, view.crop_size)
    made = _tokens_read(frozen.encoder, where, clip, config).eval().requires_grad_(False)
    identity = replace(frozen.identity, assumed=tuple(assumed))
    if made is not frozen.encoder:
        identity = replace(identity, weights_hash=weights_hash(made))
    saved = SavedProbe(
        label=config.label or "",
        classes=_classes(path, config, head.linear.out_features),
        encoder=identity,
        settings=ClipSettings(clip=clip, view=view, features=config.features),
        form=HeadConfig(variant=pooler.variant, depth=pooler.depth, num_heads=pooler.heads),
        head=head.eval(),
        training={"seed": 0},
    )
    return saved, FrozenEncoder(made, identity)


class _Answer(nn.Module):
    """One of the answers of a probe with several: tokens float [B, N, D] -> logits [B, classes]."""

    def __init__(self, probe: AnticipationClassifier, question: str, source: str) -> None:
        super().__init__()
        if question not in probe.questions:
            raise UserError(
                f"{source}: has no {question}; set question to {' or '.join(probe.questions)}"
            )
        self.probe, self.question, self.pooler = probe, question, probe.pooler
        linear = probe.get_submodule(f"{question}_classifier")
        assert isinstance(linear, nn.Linear)
        self.linear = linear

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits of the question."""
        return self.probe(tokens)[self.question]


class _Levels(nn.Module):
    """The outputs of several blocks, one after the other: [B, C, T, H, W] -> [B, levels * N, D]."""

    def __init__(self, encoder: Encoder, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder, self.config = encoder, encoder.config
        self.register_buffer("layers", torch.tensor(layers))  # part of what cached features are of
        self._layers = layers

    def forward(self, video: Tensor) -> Tensor:
        """Encode normalised clips."""
        return torch.cat(self.encoder(video, layers=self._layers), dim=1)


class _WithFuture(nn.Module):
    """A clip's tokens and those that are expected some time later, with the mask token of EK100."""

    def __init__(self, encoder: Encoder, predictor: Predictor, seconds: float, fps: float) -> None:
        super().__init__()
        self.encoder, self.predictor, self.config = encoder, predictor, encoder.config
        self.register_buffer("ahead", torch.tensor([seconds, fps]))  # as `layers` above
        self._seconds, self._fps = seconds, fps

    def forward(self, video: Tensor) -> Tensor:
        """Encode normalised clips."""
        tokens, grid = self.encoder(video), self.encoder.patch_embed.grid(video.shape)
        return with_future(self.predictor, tokens, grid, [self._seconds] * len(video), self._fps)


def _tokens_read(
    encoder: nn.Module, path: Path, clip: ClipConfig, config: ReleasedProbeConfig
) -> nn.Module:
    """The encoder as the probe reads it: some of its blocks, or with what it expects later."""
    if config.layers is None and config.question is None:
        return encoder
    name = "layers" if config.layers is not None else "question"
    if not isinstance(encoder, Encoder) or None not in (config.layers, config.question):
        raise UserError(f"{name}: is for probes of V-JEPA 2, and not both; leave it out")
    if config.layers is not None:
        if not config.layers or max(config.layers) >= encoder.config.depth:
            raise UserError(
                f"layers: {list(config.layers)}: {path} has the blocks 0 to "
                f"{encoder.config.depth - 1}"
            )
        return _Levels(encoder, config.layers)
    if clip.fps is None:
        raise UserError(
            "clip.fps: must be set with question, since the clip's rate says how far ahead a "
            "second is; EPIC-KITCHENS-100: --clip.fps 8 --clip.stride null"
        )
    own, sizes = config.encoder, encoder.config
    shown = {"image_size": own.image_size, "num_frames": own.num_frames}
    model, _ = read_model(path, own.num_heads, **shown)
    if model.config.predictor.levels > 1 or model.config.encoder.width != sizes.width:
        raise UserError(f"{path}: its predictor takes several levels; give a model of V-JEPA 2")
    return _WithFuture(encoder, model.predictor, config.seconds_ahead, clip.fps)


def _classes(path: Path, config: ReleasedProbeConfig, count: int) -> tuple[str, ...]:
    """The names of the classes, in the order of the outputs."""
    file = config.classes
    if file is None:
        return hub_classes(path) if path.is_dir() else tuple(map(str, range(count)))
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        rows = list(csv.DictReader(lines))
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"classes: {file}: cannot be read ({error}); give a text file") from error
    if rows and rows[0].keys() >= _KITCHEN_COLUMNS:
        names = _kitchen_classes(file, rows, config.question)
        if len(names) != count or len(set(names)) != count:
            raise UserError(
                f"classes: {file}: its rows have {len(set(names))} classes ({config.question}), "
                f"the probe has {count}; give the whole list that it was trained on"
            )
        return names
    if len(lines) != count or len(set(lines)) != count:
        or_list = ", or the list with verb_class and noun_class" if config.question else ""
        raise UserError(
            f"classes: {file}: {len(lines)} lines, {len(set(lines))} different ones, for a probe "
            f"of {count} classes; give one name a line, in the order of its outputs{or_list}"
        )
    return tuple(lines)


_KITCHEN_COLUMNS = {"verb_class", "noun_class"}


def _kitchen_classes(
    file: Path, listed: Sequence[Mapping[str, str | None]], question: str | None
) -> tuple[str, ...]:
    """Names of verbs, nouns or actions (pairs of them) in the order of a probe's outputs.

    Its authors number what Python's set of the rows' class numbers, or pairs of them, gives in
    turn; the order of a set of whole numbers is the same in every run. A class is called what most
    of its rows call it (columns `verb` and `noun`), or its number where there are none.
    """
    if question is None:
        raise UserError(f"classes: {file}: lists actions; set question, or give a name a line")
    rows: list[tuple[int, int]] = []
    words: tuple[dict[int, Counter[str]], ...] = defaultdict(Counter), defaultdict(Counter)
    for row in listed:
        try:
            both = int(row["verb_class"] or ""), int(row["noun_class"] or "")
        except (TypeError, ValueError):
            raise UserError(
                f"classes: {file}: row {len(rows) + 2}: verb_class {row['verb_class']!r} and "
                f"noun_class {row['noun_class']!r} must be whole numbers; mend it"
            ) from None
        rows.append(both)
        for part, own, number in zip(("verb", "noun"), words, both, strict=True):
            own[number][row.get(part) or str(number)] += 1
    names = []
    for own in words:
        called = {number: counts.most_common(1)[0][0] for number, counts in own.items()}
        often = Counter(called.values())
        names.append({n: word if often[word] == 1 else f"{word} {n}" for n, word in called.items()})
    if question == "action":
        return tuple(f"{names[0][verb]} {names[1][noun]}" for verb, noun in set(rows))
    column = ("verb", "noun").index(question)
    return tuple(names[column][number] for number in {row[column] for row in rows})
