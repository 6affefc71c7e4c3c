from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import ViewConfig
from vjepa.errors import UserError
from vjepa.evaluation.frozen import ClipSettings, EncoderIdentity, EncodingConfig, weights_hash
from vjepa.evaluation.heads import HeadConfig, build_head
from vjepa.evaluation.saved_probe import SavedProbe, check_encoder, load_saved_probe
from vjepa.models import Encoder, EncoderConfig

TINY = EncoderConfig(
    width=12, depth=1, heads=3, image_size=16, num_frames=4, patch_size=8, tubelet_size=2
)


def _encoder(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(TINY)


def _probe(form: HeadConfig) -> SavedProbe:
    torch.manual_seed(1)
    return SavedProbe(
        label="motion",
        classes=("left", "right"),
        encoder=EncoderIdentity(
            weights_hash=weights_hash(_encoder()), config=TINY, path="runs/x", which="target"
        ),
        settings=ClipSettings(
            clip=ClipConfig(num_frames=4, stride=2),
            view=ViewConfig(crop_size=16, short_side=16),
            features=EncodingConfig(batch_size=7, storage="bfloat16"),
        ),
        form=form,
        head=build_head(form, TINY.width, TINY.heads, 2),
        training={"steps": 3},
    )


@pytest.mark.parametrize(
    "form", [HeadConfig(), HeadConfig(depth=2, variant="paper"), HeadConfig(kind="linear")]
)
def test_a_probe_survives_the_disk(tmp_path: Path, form: HeadConfig) -> None:
    probe = _probe(form)
    probe.save(tmp_path)
    got = load_saved_probe(tmp_path)
    tokens = torch.randn(3, 8, 12)
    assert torch.equal(got.head(tokens), probe.head(tokens))
    assert replace(got, head=probe.head) == probe
    assert not got.head.training


def test_another_encoder_is_refused() -> None:
    wanted = _probe(HeadConfig()).encoder
    check_encoder(wanted, _encoder(0), "runs/x", "probe")
    with pytest.raises(UserError, match=r"runs/y: the probe was trained for another encoder \(w"):
        check_encoder(wanted, _encoder(1), "runs/y", "probe")
    # Attention heads change no tensor.
    same = replace(wanted, config=replace(TINY, heads=2 * TINY.heads))
    with pytest.raises(UserError, match=r"the detector was trained for another encoder \(\d+ att"):
        check_encoder(same, _encoder(0), "runs/y", "detector")


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    _probe(HeadConfig()).save(tmp_path)
    stored = load_file(tmp_path / "probe.safetensors")
    query = stored.pop("pooler.query_tokens")
    save_file(stored, tmp_path / "probe.safetensors")
    with pytest.raises(UserError, match=r"1 missing \(pooler\.query_tokens\)"):
        load_saved_probe(tmp_path)
    save_file(
        {**stored, "pooler.query_tokens": query, "x": query.clone()}, tmp_path / "probe.safetensors"
    )
    with pytest.raises(UserError, match=r"1 unexpected \(x\)"):
        load_saved_probe(tmp_path)
    described = json.loads((tmp_path / "probe.json").read_text())
    described["classes"].append("up")
    (tmp_path / "probe.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"weights for 2 classes, but probe\.json names 3"):
        load_saved_probe(tmp_path)


def test_foreign_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a probe: probe\.json is missing"):
        load_saved_probe(tmp_path)
    for text, message in (
        ("{", "cannot be read as JSON"),
        ('{"format": "other"}', "format 'other'"),
        ('{"format": "vjepa-probe-9", "version": "9.1"}', "by vjepa 9.1, .*newer.*format 'vjepa-"),
        ('{"format": "vjepa-probe-1"}', "not a complete probe description"),
    ):
        (tmp_path / "probe.json").write_text(text)
        with pytest.raises(UserError, match=message):
            load_saved_probe(tmp_path)
    _probe(HeadConfig()).save(tmp_path)
    weights = tmp_path / "probe.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])
    with pytest.raises(UserError, match="truncated or not"):
        load_saved_probe(tmp_path)
