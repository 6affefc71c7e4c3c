"""Classification: the loss of one classifier, or of many heads that train side by side."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vjepa.tasks.task import StepOutput


class ClassificationObjective(nn.Module):
    """Cross-entropy between a classifier's logits and class numbers (frozen evaluation, section 4).

    Where a sample may have several classes it is the binary cross-entropy, averaged over classes.
    The loss is the *sum* over heads of each head's mean cross-entropy: a head's gradient is then
    what it would be alone, whatever is trained beside it.

    Attributes:
        classifier: inputs -> logits [B, classes], or [H, B, classes] of H heads.
    """

    def __init__(self, classifier: nn.Module, modules: dict[str, nn.Module] | None = None) -> None:
        """Take the classifier.

        Args:
            classifier: As above.
            modules: Its trained modules by name, each with its own gradient clipping; None means
                the classifier as a whole, named ``classifier``.
        """
        super().__init__()
        self.classifier = classifier
        self._modules_by_name = {"classifier": classifier} if modules is None else dict(modules)

    def forward(self, inputs: Tensor, labels: Tensor) -> StepOutput:
        """Loss of one batch.

        Args:
            inputs: What the classifier takes, for a probe tokens [B, N, D].
            labels: int64 [B], class numbers; or float [B, classes] of 0 and 1, several a sample.

        Returns:
            The loss; metrics ``cross_entropy`` and, for class numbers, ``top1``, means over samples
            and heads, and for several heads ``cross_entropy_best`` and ``top1_best``, of the best.
        """
        logits = self.classifier(inputs)
        by_head = logits if logits.ndim == 3 else logits[None]
        heads, batch, classes = by_head.shape
        truth = labels.expand(heads, *labels.shape)
        if labels.is_floating_point():
            every = F.binary_cross_entropy_with_logits(by_head.float(), truth, reduction="none")
            entropy = every.mean(dim=(1, 2))
        else:
            every = F.cross_entropy(
                by_head.float().reshape(-1, classes), truth.reshape(-1), reduction="none"
            )
            entropy = every.view(heads, batch).mean(dim=1)
        with torch.no_grad():
            metrics = {"cross_entropy": entropy.mean()}
            if heads > 1:
                metrics["cross_entropy_best"] = entropy.min()
            if not labels.is_floating_point():
                top1 = (by_head.argmax(dim=-1) == truth).float().mean(dim=1)
                metrics["top1"] = top1.mean()
                if heads > 1:
                    metrics["top1_best"] = top1.max()
        return StepOutput(
            loss=entropy.sum(), metrics={name: value.detach() for name, value in metrics.items()}
        )

    def trainable(self) -> dict[str, nn.Module]:
        """The trained modules by name."""
        return self._modules_by_name

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """None: classification has no moving average."""
        return []
