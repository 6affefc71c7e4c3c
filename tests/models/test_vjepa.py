from __future__ import annotations

import torch
from tests.models.tiny import MODEL, clips, shaken

from vjepa.models import VJEPA


def test_target_starts_as_a_copy_without_gradient() -> None:
    model = VJEPA(MODEL)
    assert not any(p.requires_grad for p in model.target_encoder.parameters())
    assert all(p.requires_grad for p in model.encoder.parameters())
    pairs = zip(model.encoder.parameters(), model.target_encoder.parameters(), strict=True)
    assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in pairs)


def test_state_has_the_three_parts_and_no_position_codes() -> None:
    names = VJEPA(MODEL).state_dict()
    assert {name.split(".")[0] for name in names} == {"encoder", "target_encoder", "predictor"}
    assert not any("pos_embed" in name for name in names)


def test_meta_model_comes_to_life() -> None:
    with torch.device("meta"):
        model = VJEPA(MODEL)
    assert all(t.is_meta for t in [*model.parameters(), *model.buffers()])
    model.to_empty(device="cpu")
    model.init_weights()
    video = clips(1)
    assert torch.equal(model.encoder(video), model.target_encoder(video))
    assert torch.isfinite(model.encoder(video)).all()
    born = VJEPA(MODEL)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, born.get_buffer(name)), name


def test_reset_position_codes_mends_all_three() -> None:
    model = shaken(VJEPA(MODEL))
    wanted = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert len(wanted) == 3
    for buffer in model.buffers():
        buffer.zero_()
    model.reset_position_codes()
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, wanted[name]), name
