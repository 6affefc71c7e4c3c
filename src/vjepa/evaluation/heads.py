"""Many probe heads on one pass over the features.

A probe's learning rate and weight decay are chosen among several heads that train side by side on
the same batches. Every head is an ordinary :class:`AttentiveClassifier` or
:class:`LinearClassifier`; only the computation is joined, in two ways.

First, the heads' weights are stacked, so that each layer is one batched matrix product.

Second, the keys and values of the cross-attention are never formed. With one query, which no clip
changes, head h's logit of token n is ``q_h . (W_k x_n + b_k) = (W_k^T q_h) . x_n + constant``, and
the softmax ignores the constant; the value projection, being linear, may follow the weighted sum.
So reading N tokens costs one product with a [D, heads] matrix instead of one with [D, 2 D], and a
whole grid of heads costs little more than one. The LayerNorm before it has its scale and shift
moved into these matrices, so that the normalised tokens are shared by all heads.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vjepa.config import config_dataclass
from vjepa.errors import UserError
from vjepa.models import AttentiveClassifier, LinearClassifier
from vjepa.models.pooling import PROBE_NORM_EPS, PoolerVariant

_RELATIVE_PENALTIES = tuple(10.0 ** (power / 2) for power in range(-10, 5))
_TEMPERATURES = tuple(10.0 ** (power / 4) for power in range(-8, 2))
_SMALLEST_SCALE = 1e-6
MOST_RIDGE_NUMBERS = 1 << 29


@dataclass(frozen=True)
class RidgeClassifier:
    """A fitted classifier on standardised features; float64, on the CPU.

    Attributes:
        mean, scale: [D], of the training features.
        weight: [D, classes].
        bias: [classes].
        penalty: The chosen ridge penalty, per training sample.
        temperature: Scores divided by it are the logits that fit best to left-out rows.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    penalty: float
    temperature: float

    def scores(self, features: Tensor) -> Tensor:
        """Class scores: features float [n, D] -> float64 [n, classes]; the largest wins."""
        standard = (features.to("cpu", torch.float64) - self.mean) / self.scale
        return standard @ self.weight + self.bias


def fit_ridge(features: Tensor, labels: Tensor, num_classes: int) -> RidgeClassifier:
    """Fit by ridge regression, the penalty by leave-one-out squared error on the same rows.

    Features are float [n, D], n at least 2, labels int64 [n]. With more features than rows all is
    computed in the space of rows. UserError: more than 2^29 numbers, for which 8 GB are not enough.
    """
    if features.numel() > MOST_RIDGE_NUMBERS:
        raise UserError(
            f"ridge: {features.shape[0]} videos of {features.shape[1]} numbers are too many; "
            "use probe.pool steps or mean, or fewer videos"
        )
    data = features.detach().to("cpu", torch.float64)
    if data.shape[0] < 2:
        raise ValueError(f"features: {data.shape[0]} rows, at least 2 are needed")
    if not bool(torch.isfinite(data).all()):
        raise ValueError("features: a value is not finite")
    count = data.shape[0]
    mean, scale = data.mean(dim=0), data.std(dim=0, correction=0).clamp_min(_SMALLEST_SCALE)
    standard = (data - mean).div_(scale)
    targets = F.one_hot(labels.cpu(), num_classes).to(torch.float64)
    bias = targets.mean(dim=0)
    if standard.shape[1] > count:
        squares, left = torch.linalg.eigh(standard @ standard.T)
        squares = squares.clamp_min(0)
    else:
        left, singular, _ = torch.linalg.svd(standard, full_matrices=False)
        squares = singular**2
    projected = left.T @ (targets - bias)
    best_error, best_penalty = float("inf"), _RELATIVE_PENALTIES[-1]
    for penalty in _RELATIVE_PENALTIES:
        shrinkage = squares / (squares + penalty * count)
        fitted = left @ (shrinkage[:, None] * projected)
        # Leverage of each row; 1 / n belongs to the intercept.
        leverage = (left**2 @ shrinkage) + 1.0 / count
        residual = (targets - bias - fitted) / (1.0 - leverage).clamp_min(1e-9)[:, None]
        error = float(residual.square().sum())
        if error < best_error:
            best_error, best_penalty = error, penalty
            # What each row would be given by a fit to the others.
            held_out = targets - residual
    factors = 1 / (squares + best_penalty * count)
    weight = standard.T @ (left @ (factors[:, None] * projected))
    losses = [
        float(F.cross_entropy(held_out / temperature, labels.cpu()))
        for temperature in _TEMPERATURES
    ]
    temperature = _TEMPERATURES[losses.index(min(losses))]
    return RidgeClassifier(mean, scale, weight, bias, best_penalty, temperature)


def pool_tokens(tokens: Tensor, groups: int) -> Tensor:
    """Means of `groups` equal stretches of tokens: [..., N, D] -> [..., groups * D].

    1 gives the mean token, the number of time steps each step's mean, N all tokens as they are.
    """
    return tokens.unflatten(-2, (groups, -1)).mean(dim=-2).flatten(-2)


def to_compare(features: Tensor) -> tuple[Tensor, Tensor]:
    """To tell which of features [n, D] are alike: their mean [D] and a matrix W [D, D], float32.

    The cosine of (x - mean) W counts every direction in which features differ about alike. Without
    W the few that vary most decide, as do colours and brightness of a small model (docs/log.md): a
    direction of variance v is divided by sqrt(v + the largest / 100), so noise is not blown up.
    """
    mean = features.double().mean(dim=0)
    _, values, directions = torch.linalg.svd(features.double() - mean, full_matrices=False)
    scale = torch.rsqrt(
        values.square() + (values.square().max() / 100).clamp(min=_SMALLEST_SCALE**2)
    )
    return mean.float(), ((directions.T * scale) @ directions).float()


class NearestNeighbours(nn.Module):
    """A vote of the k most similar training videos, weighted by exp(cosine / temperature).

    The weighted vote of Wu et al. 2018, as DINO evaluates features. With fewer than k training
    videos all of them vote.

    `bank` float32 [n, D] are the training videos' mean tokens, of length 1, and `bank_labels`
    int64 [n] their class numbers.
    """

    bank: Tensor
    bank_labels: Tensor

    def __init__(
        self, width: int, num_classes: int, neighbours: int, temperature: float, num_stored: int
    ) -> None:
        super().__init__()
        self.num_classes, self.neighbours, self.temperature = num_classes, neighbours, temperature
        self.register_buffer("bank", torch.zeros(num_stored, width))
        self.register_buffer("bank_labels", torch.zeros(num_stored, dtype=torch.int64))

    def fit(self, pooled: Tensor, labels: Tensor) -> None:
        """Remember training features float [n, D] and class numbers int64 [n]."""
        self.bank.copy_(F.normalize(pooled.float(), dim=1))
        self.bank_labels.copy_(labels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logarithms of the shares of votes: tokens float [B, N, D] -> [B, classes]."""
        similar = F.normalize(tokens.float().mean(dim=1), dim=1) @ self.bank.T
        best = similar.topk(min(self.neighbours, len(self.bank)), dim=1)
        weights = (best.values / self.temperature).softmax(dim=1)
        # `len` would fix the number of videos where a probe is exported.
        votes = weights.new_zeros(tokens.shape[0], self.num_classes)
        votes.scatter_add_(1, self.bank_labels[best.indices], weights)
        return votes.clamp_min(torch.finfo(votes.dtype).tiny).log()


class NearestMean(nn.Module):
    """The class whose mean direction is most similar; logits are cosine / temperature.

    `means` float32 [classes, D] are the means of the training videos' directions, of length 1.
    """

    means: Tensor

    def __init__(self, width: int, num_classes: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.register_buffer("means", torch.zeros(num_classes, width))

    def fit(self, pooled: Tensor, labels: Tensor) -> None:
        """Average training features float [n, D] by class numbers int64 [n]."""
        directions = F.normalize(pooled.float(), dim=1)
        sums = torch.zeros_like(self.means).index_add_(0, labels, directions)
        self.means.copy_(F.normalize(sums, dim=1))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits: tokens float [B, N, D] -> [B, classes]."""
        pooled = F.normalize(tokens.float().mean(dim=1), dim=1)
        return pooled @ self.means.T / self.temperature


class RidgeHead(nn.Module):
    """A ridge classifier on the means of equal stretches of tokens (:func:`pool_tokens`).

    Buffers are float32: `mean` and `scale` [F], `weight` [F, classes], `bias` [classes] give
    logits; F is the number of stretches times the width of a token.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, width: int, num_classes: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.register_buffer("mean", torch.zeros(groups * width))
        self.register_buffer("scale", torch.ones(groups * width))
        self.register_buffer("weight", torch.zeros(groups * width, num_classes))
        self.register_buffer("bias", torch.zeros(num_classes))

    def fit(self, pooled: Tensor, labels: Tensor) -> None:
        """Fit to training features float [n, F] and class numbers int64 [n]."""
        found = fit_ridge(pooled, labels, len(self.bias))
        self.mean.copy_(found.mean)
        self.scale.copy_(found.scale)
        self.weight.copy_(found.weight / found.temperature)
        self.bias.copy_(found.bias / found.temperature)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits: tokens float [B, N, D] -> [B, classes]."""
        features = pool_tokens(tokens.float(), self.groups)
        return ((features - self.mean) / self.scale) @ self.weight + self.bias


TrainedKind = Literal["attentive", "linear"]
HeadKind = Literal["attentive", "linear", "knn", "nearest_mean", "ridge"]


@config_dataclass
class HeadConfig:
    """The probe's form."""

    kind: HeadKind = "attentive"
    """`attentive`: a learnt query reads all tokens by cross-attention; `linear`: a linear layer on
    their average; `knn`: a vote of the most similar training videos, and `nearest_mean`: the most
    similar class mean, both by the cosine of average tokens and without any training; `ridge`: a
    linear classifier found in one step, the penalty by leaving each training video out once."""
    variant: PoolerVariant = "released"
    """Attentive only. `released`: what the authors' code computes (no output projection, no last
    LayerNorm); `paper`: as their text says, with both; `released_2`: as in V-JEPA 2, where further
    blocks stand over all tokens before the query reads them."""
    depth: Annotated[int, Field(ge=1)] = 1
    """Attentive only. 1: the cross-attention block; each one more adds a block over the query
    (V-JEPA 2: 4 with `released_2`)."""
    num_heads: Annotated[int, Field(ge=1)] | None = None
    """Attentive only. Attention heads; null takes the encoder's number (V-JEPA 2 has 16)."""
    norm: bool = True
    """Linear only. Whether the average passes a LayerNorm before the linear layer."""
    pool: Literal["mean", "steps", "all"] = "mean"
    """Ridge only. It sees the average of all tokens, that of each time step, or all tokens: the
    average alone hides what differs over time and place."""
    neighbours: Annotated[int, Field(ge=1)] = 20
    """k of `knn`."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """`knn` and `nearest_mean`: cosines are divided by it before exp. It moves the weight of the
    votes, and the confidence."""

    def __post_init__(self) -> None:
        if self.kind != "attentive" and self.depth != 1:
            raise ValueError(f"depth: a {self.kind} probe has depth 1, got {self.depth}")
        if self.kind != "ridge" and self.pool != "mean":
            raise ValueError(f"pool: a {self.kind} probe has none; for probe.kind ridge")

    @property
    def is_trained(self) -> bool:
        """Whether the head has weights that are learnt step by step."""
        return self.kind in ("attentive", "linear")


TrainedHead = AttentiveClassifier | LinearClassifier
ProbeHead = TrainedHead | NearestNeighbours | NearestMean | RidgeHead


def build_head(
    config: HeadConfig, width: int, encoder_heads: int, num_classes: int, num_stored: int = 0
) -> ProbeHead:
    """One head: with fresh weights, drawn from torch's generator, or that remembers nothing yet.

    It takes tokens float [B, N, width] and gives logits [B, num_classes]. `encoder_heads` are for
    `config.num_heads` None; `num_stored` is the number of training videos, for `knn`, or of
    stretches of tokens that are averaged, for `ridge`.
    """
    if config.kind == "linear":
        return LinearClassifier(width, num_classes, norm=config.norm)
    if config.kind == "attentive":
        heads = encoder_heads if config.num_heads is None else config.num_heads
        return AttentiveClassifier(width, heads, num_classes, config.depth, config.variant)
    if config.kind == "knn":
        return NearestNeighbours(
            width, num_classes, config.neighbours, config.temperature, num_stored
        )
    if config.kind == "ridge":
        return RidgeHead(width, num_classes, num_stored)
    return NearestMean(width, num_classes, config.temperature)


class ProbeHeads(nn.Module):
    """Heads that are computed together, those of one form in one go; each is usable alone."""

    def __init__(self, heads: Sequence[TrainedHead]) -> None:
        """Take the heads over: at least one, those of one form next to each other."""
        super().__init__()
        if not heads:
            raise ValueError("heads: at least one is needed")
        self.heads = nn.ModuleList(heads)
        same_form = itertools.groupby(heads, key=_form)
        self._groups = [_HeadsOfOneForm(list(members)) for _, members in same_form]

    def __len__(self) -> int:
        return len(self.heads)

    def __getitem__(self, index: int) -> TrainedHead:
        head = self.heads[index]
        assert isinstance(head, TrainedHead)
        return head

    def trainable(self) -> dict[str, nn.Module]:
        """The heads by name: each gets its own parameter groups and its own gradient clipping."""
        return {f"head_{index:02d}": head for index, head in enumerate(self.heads)}

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of all heads: tokens float [B, N, D] -> [H, B, classes].

        Row i is what ``heads[i](tokens)`` gives, up to rounding.
        """
        tokens = tokens.to(next(self.parameters()).dtype)
        return torch.cat([group.logits(tokens) for group in self._groups])


def _form(head: TrainedHead) -> tuple[str, list[tuple[str, torch.Size]]]:
    """What heads have in common that are computed in one go."""
    variant = head.pooler.variant if isinstance(head, AttentiveClassifier) else ""
    return variant, [(name, p.shape) for name, p in head.named_parameters()]


class _HeadsOfOneForm:
    """Heads whose parameters have the same names and shapes."""

    def __init__(self, heads: list[TrainedHead]) -> None:
        self.heads = heads
        self._names = {name for name, _ in heads[0].named_parameters()}

    def logits(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> [H, B, classes]."""
        first = self.heads[0]
        if isinstance(first, AttentiveClassifier) and first.pooler.variant == "released_2":
            # Blocks over all tokens are the cost, and no head shares them with another.
            return torch.stack([head(tokens) for head in self.heads])
        if isinstance(first, AttentiveClassifier):
            pooled = self._pool_attentively(tokens, first.pooler.heads)
        else:
            pooled = tokens.mean(dim=1).expand(len(self.heads), -1, -1)
            if "norm.weight" in self._names:
                pooled = self._norm("norm", pooled)
        return self._linear("linear", pooled)

    def _pool_attentively(self, tokens: Tensor, attention_heads: int) -> Tensor:
        """The poolers of all heads: [B, N, D] -> [H, B, D]."""
        query = self._stack("pooler.query_tokens")[:, 0, :]  # [H, 1, D]
        attended = self._cross_attention(tokens, query, attention_heads)
        pooled = query + attended
        prefix = "pooler.cross_attention_block"
        pooled = pooled + self._mlp(f"{prefix}.mlp", self._norm(f"{prefix}.norm2", pooled))
        level = 0
        while f"pooler.blocks.{level}.norm1.weight" in self._names:
            pooled = self._block_over_one_query(f"pooler.blocks.{level}", pooled)
            level += 1
        if "pooler.norm.weight" in self._names:
            pooled = self._norm("pooler.norm", pooled)
        return pooled

    def _cross_attention(self, tokens: Tensor, query: Tensor, attention_heads: int) -> Tensor:
        """What the query of each head reads: [H, B, D]. A: attention heads, E: their width."""
        prefix = "pooler.cross_attention_block"
        count, width = query.shape[0], query.shape[-1]
        split = (count, attention_heads, width // attention_heads)
        key_weight, value_weight = self._stack(f"{prefix}.xattn.kv.weight").chunk(2, dim=1)
        value_bias = self._stack(f"{prefix}.xattn.kv.bias").chunk(2, dim=1)[1]
        scale, shift = (self._stack(f"{prefix}.norm1.{name}") for name in ("weight", "bias"))
        normal = F.layer_norm(tokens, (width,), eps=PROBE_NORM_EPS)

        q = self._linear(f"{prefix}.xattn.q", query).view(split)
        reader = torch.einsum("hae,haed->had", q, key_weight.unflatten(1, split[1:]))
        reader = reader * (scale[:, None] * split[2] ** -0.5)
        batch = tokens.shape[0]
        logits = torch.matmul(reader.flatten(0, 1), normal.transpose(1, 2))  # [B, H A, N]
        read = torch.bmm(logits.softmax(dim=-1), normal).view(batch, *split[:2], width)
        read = read.permute(1, 2, 0, 3) * scale[:, None, None] + shift[:, None, None]
        values = torch.matmul(read, value_weight.unflatten(1, split[1:]).transpose(2, 3))
        values = values.transpose(1, 2).flatten(2) + value_bias[:, None]  # [H, B, D]
        if f"{prefix}.xattn.proj.weight" in self._names:
            values = self._linear(f"{prefix}.xattn.proj", values)
        return values

    def _block_over_one_query(self, prefix: str, pooled: Tensor) -> Tensor:
        """An ordinary block over a single token, whose self-attention is its value alone."""
        normal = self._norm(f"{prefix}.norm1", pooled)
        weight = self._stack(f"{prefix}.attn.qkv.weight").chunk(3, dim=1)[2]
        bias = self._stack(f"{prefix}.attn.qkv.bias").chunk(3, dim=1)[2]
        value = torch.baddbmm(bias[:, None], normal, weight.transpose(1, 2))
        pooled = pooled + self._linear(f"{prefix}.attn.proj", value)
        return pooled + self._mlp(f"{prefix}.mlp", self._norm(f"{prefix}.norm2", pooled))

    def _mlp(self, prefix: str, inputs: Tensor) -> Tensor:
        return self._linear(f"{prefix}.fc2", F.gelu(self._linear(f"{prefix}.fc1", inputs)))

    def _norm(self, prefix: str, inputs: Tensor) -> Tensor:
        """LayerNorm of each head: [H, ..., D]."""
        weight, bias = self._stack(f"{prefix}.weight"), self._stack(f"{prefix}.bias")
        normal = F.layer_norm(inputs, inputs.shape[-1:], eps=PROBE_NORM_EPS)
        return torch.addcmul(bias[:, None], normal, weight[:, None])

    def _linear(self, prefix: str, inputs: Tensor) -> Tensor:
        """Linear layer of each head: [H, B, in] -> [H, B, out]."""
        weight, bias = self._stack(f"{prefix}.weight"), self._stack(f"{prefix}.bias")
        return torch.baddbmm(bias[:, None], inputs, weight.transpose(1, 2))

    def _stack(self, name: str) -> Tensor:
        return torch.stack([head.get_parameter(name) for head in self.heads])
