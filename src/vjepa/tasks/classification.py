"""Classification: the loss of one classifier, or of many heads that train side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vjepa.runtime.device import to_device
from vjepa.tasks.task import Output, Task, slice_of_part


class Classification(Task):
    """Cross-entropy between a classifier's logits and class numbers (frozen evaluation, section 4).

    Where a sample may have several classes it is the binary cross-entropy, averaged over classes.
    The loss is the *sum* over heads of each head's mean cross-entropy: a head's gradient is then
    what it would be alone, whatever is trained beside it.

    The classifier gives logits [B, classes], or [H, B, classes] of H heads; `modules` are those of
    it that are trained, each clipped on its own (None: all of it, as ``classifier``).
    """

    def __init__(
        self, classifier: nn.Module, modules: Mapping[str, nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self._by_name = {"classifier": classifier} if modules is None else dict(modules)

    def saved_modules(self) -> dict[str, nn.Module]:
        """The heads by name."""
        return self._by_name

    def inputs(self, batch: Any, part: int, parts: int) -> tuple[Tensor, Tensor, int]:
        """The classifier's inputs, the labels, and the number of samples in the whole batch."""
        here = slice_of_part(len(batch.labels), part, parts)
        tokens, labels = (to_device(x[here], self.device) for x in (batch.tokens, batch.labels))
        return tokens, labels, len(batch.labels)

    def forward(self, inputs: Tensor, labels: Tensor, count: int | None = None) -> Output:
        """The loss; as terms means over samples and heads, and for several heads the best head's.

        Args:
            inputs: What the classifier takes, for a probe tokens [B, N, D].
            labels: int64 [B], class numbers; or float [B, classes] of 0 and 1, several a sample.
            count: Samples of the batch that these are a part of; None: they are all of it.
        """
        count = count or len(labels)
        logits = self.classifier(inputs)
        by_head = (logits if logits.ndim == 3 else logits[None]).float()
        heads, batch, classes = by_head.shape
        truth = labels.expand(heads, *labels.shape)
        if labels.is_floating_point():
            every = F.binary_cross_entropy_with_logits(by_head, truth, reduction="none")
            entropy = every.sum(dim=(1, 2)) / (count * classes)
        else:
            every = F.cross_entropy(
                by_head.reshape(-1, classes), truth.reshape(-1), reduction="none"
            )
            entropy = every.view(heads, batch).sum(dim=1) / count
        with torch.no_grad():
            terms = {"cross_entropy": entropy.mean()}
            if heads > 1:
                terms["cross_entropy_best"] = entropy.min()
            if not labels.is_floating_point():
                top1 = (by_head.argmax(dim=-1) == truth).float().sum(dim=1) / count
                terms["top1"] = top1.mean()
                if heads > 1:
                    terms["top1_best"] = top1.max()
        return Output(entropy.sum(), {name: value.detach() for name, value in terms.items()})
