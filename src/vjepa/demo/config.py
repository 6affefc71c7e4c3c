"""Settings of the demo."""

from __future__ import annotations

from dataclasses import field, fields
from pathlib import Path
from typing import Annotated

from pydantic import Field

from vjepa.config import config_dataclass
from vjepa.demo.synthetic import SyntheticConfig


@config_dataclass
class DemoDataConfig(SyntheticConfig):
    """The demo's videos: the synthetic set, or others with labels."""

    num_clips_train: Annotated[int, Field(ge=0)] = 8000
    """Fewer than `vjepa data synth` draws: each is watched some ten times in the demo's minutes."""
    size: Annotated[int, Field(ge=16)] = 80
    """Height and width of a frame in pixels; even. The recipe shrinks them to 40 for the model."""
    colours: bool = True
    """Digits in six colours, and the question which of them the moving one has."""
    manifest: Path | None = None
    """Videos of one's own instead (made by `vjepa data index`), with labels and the splits `train`
    and `test`; videos of `validation`, if there are any, are for the curves while training. The
    other settings of `data` are for the synthetic set."""
    labels: tuple[str, ...] = ()
    """Labels to probe; none named: the first two of that manifest, or motion and colour."""

    @property
    def synthetic(self) -> SyntheticConfig:
        """The settings of the synthetic set alone."""
        return SyntheticConfig(**{f.name: getattr(self, f.name) for f in fields(SyntheticConfig)})


@config_dataclass
class DemoConfig:
    """The whole way from video files to a report, at the size of a laptop."""

    minutes: Annotated[float, Field(gt=0)] = 3.5
    """Pretraining time of each model, in minutes of CPU time; the two models train side by side, on
    one CPU thread each. On a machine that is busy otherwise it takes longer by the clock."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the pretraining; each one trains both models, one seed after the other."""
    recipe: str = "demo"
    """Pretraining recipe, or a YAML file."""
    probe_recipe: str = "demo"
    """Recipe of every probe, or a YAML file."""
    few_labels_per_class: Annotated[int, Field(ge=1)] = 15
    """Labelled videos of each class in the few-label probes."""
    many_labels_per_class: Annotated[int, Field(ge=1)] = 180
    """Labelled videos of each class in the many-label probes, which are ridge classifiers."""
    label_draws: Annotated[int, Field(ge=1)] = 3
    """Random choices of the few labelled videos; the report shows their mean."""
    decoder_recipe: str = "demo"
    """Recipe of the decoder that draws what is predicted, or a YAML file."""
    decoder_steps: Annotated[int, Field(ge=0)] = 400
    """Updates of that decoder; 0 leaves the drawn predictions out."""
    data: DemoDataConfig = field(default_factory=lambda: DemoDataConfig(seed=1))
    """The embedded video set. Its seed is not the one that the recipe was chosen on (0)."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be one or more different numbers, got {self.seeds}")
        few, many = self.few_labels_per_class, self.many_labels_per_class
        if many < few:
            raise ValueError(
                f"many_labels_per_class: {many} is less than few_labels_per_class {few}; raise it, "
                "or lower that"
            )
        for name in ("num_clips_train", "num_clips_test") if self.data.manifest is None else ():
            if getattr(self.data, name) == 0:
                raise ValueError(f"data.{name}: probes need some; give more than 0")

    @property
    def labels(self) -> tuple[str, ...]:
        """What is probed; the headline is of the first."""
        return self.data.labels or ("motion", "colour" if self.data.colours else "appearance")
