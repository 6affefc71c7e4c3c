"""Tasks of pretraining that came after the paper, made from its config."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vjepa.errors import UserError
from vjepa.masking import MaskSampler
from vjepa.models import VJEPA, Encoder
from vjepa.tasks import DensePrediction, LeVJEPA
from vjepa.tasks.masked_prediction import BatchMasks

if TYPE_CHECKING:
    from vjepa.jobs.pretrain import PretrainConfig


def levjepa_task(config: PretrainConfig) -> LeVJEPA:
    """The task of LeVJEPA; UserError where the config cannot be."""
    views, size = config.objective.levjepa, config.data.batch_size
    try:
        return LeVJEPA(config.model.encoder, views, config.seed, size)
    except ValueError as error:
        raise UserError(str(error)) from error


def dense_task(
    config: PretrainConfig, sampler: MaskSampler, teacher: Encoder | None
) -> DensePrediction | None:
    """The task of V-JEPA 2.1, if the model's predictor is of that kind."""
    objective, images = config.objective, config.data.images
    encoder, predictor, own = config.model.encoder, config.model.predictor, None
    if not predictor.predicts_context:
        if predictor.levels > 1:
            raise UserError("model.predictor.predicts_context: must be true with several levels")
        return None
    unlike = {
        "objective.target": teacher is not None,
        "objective.loss_exponent": objective.loss_exponent != 1,
        "objective.variance_coefficient": objective.variance_coefficient != 0,
        "objective.sigreg_coefficient": objective.sigreg_coefficient != 0,
        "masking.count": config.masking.count == "packed",
    }
    for name, is_so in unlike.items():
        if is_so:
            raise UserError(
                f"{name}: not together with model.predictor.predicts_context, the loss of V-JEPA "
                "2.1; leave it out"
            )
    if predictor.out_width not in (None, encoder.width * predictor.levels):
        raise UserError(
            f"model.predictor.out_width: {predictor.out_width}: this model was trained towards "
            "features of another encoder (V-JEPA 2.1 B and L: of G), which its file lacks, so it "
            "cannot go on; continue from V-JEPA 2.1 g or G, or from V-JEPA 2"
        )
    if images.sources:
        masking = replace(config.masking, masks=images.masks)
        drawn = MaskSampler(masking, (1, *encoder.grid[1:]), 1, config.seed)
        own = BatchMasks(drawn, images.batch_size)
    return DensePrediction(
        VJEPA(config.model),
        sampler,
        config.data.batch_size,
        context_weight=objective.context_weight,
        context_from_step=objective.context_from_step,
        context_full_step=objective.context_full_step,
        by_distance=objective.context_by_distance,
        images=own,
        image_share=images.share,
    )
