from __future__ import annotations

import pytest
import torch

from vjepa.config import dump_yaml, load_config, recipe_names
from vjepa.errors import UserError
from vjepa.evaluation.heads import build_head
from vjepa.jobs.probe.config import HeadSetting, ProbeConfig
from vjepa.models import PRESETS
from vjepa.models.pooling import AttentiveClassifier


@pytest.mark.parametrize("name", recipe_names("probe"))
def test_recipes_load_and_build(name: str, tmp_path) -> None:
    config = load_config(ProbeConfig, [name], recipes="probe")
    with torch.device("meta"):
        head = build_head(config.probe, PRESETS["vitl16"].width, 16, 400)
        assert head(torch.empty(2, 1568, 1024)).shape == (2, 400)
    (tmp_path / "again.yaml").write_text(dump_yaml(config))
    assert load_config(ProbeConfig, [tmp_path / "again.yaml"]) == config


def test_the_papers_recipe() -> None:
    config = load_config(ProbeConfig, ["k400_16x1x1"], recipes="probe")
    assert config.optim.epochs == 20
    assert config.optim.batch_size == 256
    assert config.grid == (HeadSetting(1e-3, 0.01),)
    assert config.data.clip is not None
    assert (config.data.clip.num_frames, config.data.clip.stride) == (16, 4)
    assert config.data.view is not None
    assert (config.data.view.short_side, config.data.view.crop_size) == (256, 224)
    with torch.device("meta"):
        probe = build_head(config.probe, 1024, PRESETS["vitl16"].heads, 400)
        assert isinstance(probe, AttentiveClassifier)
        huge = build_head(config.probe, 1280, PRESETS["vith16"].heads, 400)
    # Sizes of the released 400-class probes, less their unused output projection.
    millions = [sum(p.numel() for p in head.parameters()) / 1e6 for head in (probe, huge)]
    unused = [(width**2 + width) / 1e6 for width in (1024, 1280)]
    assert [round(a + b, 1) for a, b in zip(millions, unused, strict=True)] == [13.0, 20.2]


def test_the_grid_has_every_pair() -> None:
    config = load_config(
        ProbeConfig,
        overrides={"optim.learning_rates": [1e-3, 1e-2], "optim.weight_decays": [0.0, 0.1]},
    )
    assert config.grid == (
        HeadSetting(1e-3, 0.0),
        HeadSetting(1e-3, 0.1),
        HeadSetting(1e-2, 0.0),
        HeadSetting(1e-2, 0.1),
    )
    both = load_config(ProbeConfig, overrides={"optim.poolings": ["attentive", "linear"]})
    assert [setting.kind for setting in both.grid] == ["attentive", "linear"]
    form = load_config(
        ProbeConfig, overrides={"optim.poolings": ["linear", "attentive"], "probe.norm": False}
    )
    assert not form.form("linear").norm, "it is of one of the two"
    lookup = load_config(
        ProbeConfig, overrides={"probe.kind": "knn", "optim.learning_rates": [1e-3, 1e-2]}
    )
    assert lookup.grid == (HeadSetting(0.0, 0.0, "knn"),)  # nothing to try


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optim.steps": 10}, r"optim\.steps"),
        ({"optim.epochs": 0}, r"optim\.epochs"),
        ({"optim.epochs": None}, r"optim\.steps"),
        ({"optim.epochs": None, "optim.steps": 0}, r"optim\.steps"),
        ({"optim.batch_size": 0}, r"optim\.batch_size"),
        ({"optim.learning_rates": []}, r"optim\.learning_rates"),
        ({"optim.learning_rates": [0.0]}, r"optim\.learning_rates"),
        ({"optim.weight_decays": [-1.0]}, r"optim\.weight_decays"),
        ({"optim.weight_decay_end": 2}, r"optim\.weight_decay_end"),
        ({"optim.clip_norm": 0}, r"optim\.clip_norm"),
        ({"features.batch_size": 0}, r"features\.batch_size"),
        ({"data.labels_per_class": 0}, r"data\.labels_per_class"),
        ({"data.label_fraction": 1.5}, r"data\.label_fraction"),
        ({"data.label_fraction": 0.5, "data.labels_per_class": 3}, r"data\.label_fraction"),
        ({"data.held_out_fraction": 0}, r"data\.held_out_fraction"),
        ({"encoder.which": "teacher"}, r"encoder\.which"),
        ({"data.metric": "f1"}, r"data\.metric: unknown setting"),
        ({"probe.kind": "mean"}, r"probe\.kind: 'mean' is not valid here"),
        ({"probe.kind": "knn", "probe.neighbours": 0}, r"probe\.neighbours"),
        ({"probe.kind": "knn", "probe.temperature": 0}, r"probe\.temperature"),
        ({"probe.kind": "knn", "probe.depth": 2}, r"probe\.depth"),
        ({"probe.kind": "knn", "features.online": True}, "features: a knn probe is not trained"),
        ({"probe.kind": "knn", "optim.poolings": ["linear"]}, r"optim\.poolings"),
        (
            {"probe.kind": "knn", "data.multi_label": True},
            "multi_label: .*attentive or linear",
        ),
        ({"optim.steps": 6}, "steps: give exactly one of epochs and steps; the other is null"),
        ({"training.device": "cpu"}, r"training: unknown .* did you mean device\?"),
        ({"data.loader.num_workers": 0}, r"data\.loader: unknown .* did you mean data\.reading\?"),
        ({"probe.kind": "ridge", "probe.neighbours": 5}, r"probe\.neighbours: is of kind knn"),
        (
            {"probe.kind": "ridge", "probe.variant": "paper"},
            r"probe\.variant: is of kind attentive",
        ),
        ({"probe.kind": "linear", "probe.num_heads": 2}, r"probe\.num_heads: is of kind attentive"),
        ({"probe.norm": False}, r"probe\.norm: is of kind linear; leave it out"),
        ({"probe.temperature": 0.1}, r"probe\.temperature: is of kind knn or nearest_mean"),
        ({"optim.poolings": []}, r"optim\.poolings"),
        ({"optim.poolings": ["linear", "linear"]}, r"optim\.poolings"),
        ({"data.num_splits": 0}, r"data\.num_splits"),
        ({"data.num_splits": 3}, r"data\.num_splits"),
        ({"data.view.num_segments": 0}, r"data\.view\.num_segments"),
        ({"data.view.num_views": 0}, r"data\.view\.num_views"),
        ({"data.view.join": "sum"}, r"data\.view\.join"),
        ({"data.view.placement": "anywhere"}, r"data\.view\.placement"),
        ({"data.augment.policy": "strong"}, r"data\.augment\.policy"),
        ({"data.augment.crop_scale": [0.5, 0.2]}, r"data\.augment\.crop_scale"),
        ({"data.augment.crop_aspect": [0, 1]}, r"data\.augment\.crop_aspect"),
        ({"features.passes": 2}, r"features\.passes"),
        ({"features.passes": 0}, r"features\.passes"),
        ({"features.shard_clips": 0}, r"features\.shard_clips"),
        ({"features.online": True, "features.passes": 2}, r"features\.online"),
        ({"features.online": True, "features.cache_dir": "x"}, r"features\.online"),
        ({"optim.learning_rate": 1e-3}, "learning_rates"),
    ],
    ids=str,
)
def test_impossible_settings_name_the_field(overrides: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(ProbeConfig, overrides=overrides)
