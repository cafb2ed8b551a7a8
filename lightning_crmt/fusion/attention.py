# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Fusion by a small transformer over the features of all modalities as tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_crmt.checks import check_at_least
from lightning_crmt.fusion.joint import JointFusion, Scores
from lightning_crmt.modality import Inputs


class AttentionFusion(JointFusion):
    """A transformer with hierarchical attention: first within each modality, then over all modalities together.

    Features ``(B, T, d_m)`` are T tokens, a vector ``(B, d_m)`` is one. Each modality has a stream of its own of
    ``own_layers``, with a learnt embedding; then the streams are one sequence with a class token for
    ``shared_layers``, in which each modality attends to the others. Such multi-stream to one-stream attention is one of
    the fusions that Xu et al. list (Multimodal learning with transformers: a survey, TPAMI 2023); with
    ``own_layers=0`` it is early concatenation.

    The encoder must mark positions within a modality. Softmax attention has no Lipschitz constant over all inputs,
    so nothing can be certified here, only estimated.

    Args:
        in_features: size of the tokens of each modality, by name.
        num_classes: number of classes K, at least 2.
        width: size of the tokens in the transformer, a multiple of ``num_heads``.
        num_heads: heads of each attention.
        own_layers: layers of each modality's own stream.
        shared_layers: layers of the common stream, at least 1.
        dropout: of the layers.
        scores: where uni-modal scores come from; absent modalities have no tokens.

    Raises:
        ValueError: if ``width`` is not a multiple of ``num_heads``, there are too few layers, or ``scores`` is unknown.

    >>> head = AttentionFusion({"audio": 16, "image": 32}, num_classes=10)
    >>> output = head({"audio": torch.randn(4, 7, 16), "image": torch.randn(4, 32)})
    >>> output.logits.shape, output.scores["audio"].shape
    (torch.Size([4, 10]), torch.Size([4, 10]))
    """

    takes_sequences = True

    def __init__(
        self,
        in_features: Mapping[str, int],
        num_classes: int,
        width: int = 64,
        num_heads: int = 4,
        own_layers: int = 1,
        shared_layers: int = 1,
        dropout: float = 0.1,
        scores: Scores = "ablated",
    ) -> None:
        super().__init__(in_features, num_classes, scores)
        if num_heads < 1 or width % num_heads:
            raise ValueError(f"`width` must be a multiple of `num_heads` = {num_heads}, got {width}")
        check_at_least(0, own_layers=own_layers)
        check_at_least(1, shared_layers=shared_layers)

        def stream(layers: int) -> nn.Sequential:
            return nn.Sequential(
                *(
                    nn.TransformerEncoderLayer(
                        width, num_heads, 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
                    )
                    for _ in range(layers)
                )
            )

        self.tokens = nn.ModuleDict({name: nn.Linear(size, width) for name, size in in_features.items()})
        self.embeddings = nn.ParameterDict({name: nn.Parameter(0.02 * torch.randn(width)) for name in in_features})
        self.class_token = nn.Parameter(0.02 * torch.randn(width))
        self.streams = nn.ModuleDict({name: stream(own_layers) for name in in_features})
        self.shared = stream(shared_layers)
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_classes)

    @override
    def joint_logits(self, features: Inputs) -> Tensor:
        streams = [self._stream(name, value) for name, value in features.items()]
        token = self.class_token.expand(streams[0].shape[0], 1, -1).to(streams[0].dtype)
        shared = self.shared(torch.cat([token, *streams], dim=1))
        logits: Tensor = self.classifier(self.norm(shared[:, 0]))
        return logits

    def _stream(self, name: str, value: Tensor) -> Tensor:
        sequence = value if value.dim() == 3 else value[:, None]
        stream: Tensor = self.streams[name](self.tokens[name](sequence) + self.embeddings[name])
        return stream
