"""Action detection: several labels of each box in a clip (section 4; Tables 5, 6, 10)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vjepa.models import Encoder, RegionConfig, region_features
from vjepa.runtime.device import to_device
from vjepa.tasks.fine_tuning import drop_path, layer_scale
from vjepa.tasks.task import Output, Task, slice_of_part


class Detection(Task):
    """Binary cross-entropy of a linear layer on the vectors of boxes, over boxes and classes.

    The head maps vectors [M, layers * D] to logits [M, classes]. With `encoder` it is trained on
    clips, together with what of the encoder takes gradients; without, on vectors that were computed
    before. `seed`, `drop_path` and `layer_decay`, as for fine-tuning, are of the encoder.
    """

    def __init__(
        self,
        head: nn.Linear,
        encoder: Encoder | None = None,
        regions: RegionConfig | None = None,
        *,
        seed: int = 0,
        drop_path: float = 0.0,
        layer_decay: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self._regions, self._seed = regions or RegionConfig(), seed
        self._drop_path, self._layer_decay = drop_path, layer_decay
        if encoder is not None:
            sizes = encoder.config
            last = max(self._regions.layers_of(sizes))
            self.has_unused = last < sizes.depth - 1 or sizes.has_spare

    def inputs(
        self, batch: Any, part: int, parts: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, int]:
        """What is looked at, its boxes and their labels, what is dropped, the batch's boxes.

        A batch has ``ordinals`` int64 [B] (its key frames), ``clips`` (uint8 [B, C, T, H, W]) or
        ``vectors`` (float [M, layers * D]), ``boxes`` (float [M, 5], the clip's number and pixels,
        clips in order), ``labels`` (float [M, classes]) and ``count``: boxes of the whole batch.
        """
        here = slice_of_part(len(batch.ordinals), part, parts)
        clip = batch.boxes[:, 0]
        mine = (clip >= here.start) & (clip < here.stop)
        boxes, labels = (to_device(x[mine], self.device) for x in (batch.boxes, batch.labels))
        if self.encoder is None:
            return to_device(batch.vectors[mine], self.device), boxes, labels, None, batch.count
        clips = self.encoder.normalise(to_device(batch.clips[here], self.device))
        boxes = boxes - boxes.new_tensor([here.start, 0, 0, 0, 0])
        dropped = None
        if self._drop_path:
            depth = self.encoder.config.depth
            factors = drop_path(self._seed, batch.ordinals[here], depth, self._drop_path)
            dropped = to_device(factors, self.device)
        return clips, boxes, labels, dropped, batch.count

    def forward(
        self,
        inputs: Tensor,
        boxes: Tensor,
        labels: Tensor,
        dropped: Tensor | None = None,
        count: int | None = None,
    ) -> Output:
        """The loss, from clips or vectors; `count` None: these boxes are the whole batch."""
        vectors = inputs
        if self.encoder is not None:
            vectors = region_features(self.encoder, inputs, boxes, self._regions, dropped)
        logits = self.head(vectors.float()).float()
        every = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        return Output(every / max(1, (count or len(labels)) * labels.shape[1]), {})

    def lr_scale(self, name: str) -> float:
        """By layer of the encoder; 1 for the head."""
        depth = 0 if self.encoder is None else self.encoder.config.depth
        return layer_scale(name, depth, self._layer_decay)
