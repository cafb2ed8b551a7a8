# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Draws of noise around the samples of a batch, which depend on each sample alone and not on its place."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lightning_crmt.modality import Inputs, modalities_of, present_of
from lightning_crmt.smoothing.ablation import Ablation

#: Noise is drawn in blocks of this many draws, so that it is the same however draws are split over forward passes.
BLOCK = 64


class NoisyBatch:
    """Noise around each sample from a stream of its own, seeded by the sample's content, its modality and a purpose.

    So a sample gets the same noise in any batch, order and process, and different samples get independent noise. The
    numbers are those that the device of the batch draws from that seed.

    Args:
        inputs: by modality, ``(B, ...)``, on the device where noise is drawn and added.
        sigma: standard deviations of modalities of real numbers.
        ablations: of modalities of tokens.
        counted: which tokens are no padding, bool, for those.
        seeds: of the samples, see :func:`content_seeds`.
        purpose: streams of different purposes are independent.
    """

    def __init__(
        self,
        inputs: Inputs,
        sigma: Mapping[str, float],
        ablations: Mapping[str, Ablation],
        counted: Mapping[str, Tensor],
        seeds: Sequence[bytes],
        purpose: str,
    ) -> None:
        self.inputs, self.sigma, self.ablations, self.counted = inputs, sigma, ablations, counted
        self._seeds, self._purpose = seeds, purpose
        self._streams: dict[tuple[int, str], torch.Generator] = {}

    def draws(self, samples: Sequence[int], count: int, rows: int) -> Iterator[tuple[Sequence[int], dict[str, Tensor]]]:
        """The next ``count`` draws around some samples, in portions of about ``rows``.

        Args:
            samples: places in the batch.
            count: a multiple of :data:`BLOCK`, or the last draws of these samples.
            rows: how many draws a portion may hold, if that is at least a block.

        Returns:
            An iterator over the places of a portion and its noisy inputs: the draws of the first sample, then those of
            the second, as many of each.
        """
        blocks = -(-count // BLOCK)
        at_once = max(1, rows // (min(blocks, max(1, rows // BLOCK)) * BLOCK))
        for first in range(0, len(samples), at_once):
            some = samples[first : first + at_once]
            step = max(1, rows // (len(some) * BLOCK))
            for block in range(0, blocks, step):
                here = min(step, blocks - block)
                yield some, self._noisy(some, here, min(here * BLOCK, count - block * BLOCK))

    def _noisy(self, samples: Sequence[int], blocks: int, count: int) -> dict[str, Tensor]:
        noisy = {}
        for name, value in self.inputs.items():
            chosen = value[torch.tensor(samples, device=value.device)]
            many = chosen[:, None].expand(-1, blocks * BLOCK, *chosen.shape[1:])
            if name in self.sigma:
                noise = torch.empty(many.shape, dtype=value.dtype, device=value.device)
                for place, sample in enumerate(samples):
                    for part in torch.split(noise[place], BLOCK):
                        torch.randn(part.shape, generator=self._stream(sample, name), out=part)
                many = noise.mul_(self.sigma[name]).add_(chosen[:, None])
            elif name in self.ablations:
                counted = self.counted[name]
                many = torch.stack(
                    [
                        self.ablations[name].apply(part, counted[sample].expand_as(part), self._stream(sample, name))
                        for place, sample in enumerate(samples)
                        for part in torch.split(many[place], BLOCK)
                    ]
                ).reshape(many.shape)
            # Of its own memory: models may work in place.
            noisy[name] = many[:, :count].reshape(-1, *chosen.shape[1:]).contiguous()
        return noisy

    def _stream(self, sample: int, name: str) -> torch.Generator:
        if (sample, name) not in self._streams:
            digest = hashlib.blake2b(self._seeds[sample], digest_size=8)
            digest.update(f"{self._purpose}/{name}".encode())
            generator = torch.Generator(self.inputs[name].device)
            generator.manual_seed(int.from_bytes(digest.digest(), "little") >> 1)  # of which a CPU keeps 32 bits
            self._streams[sample, name] = generator
        return self._streams[sample, name]


def content_seeds(inputs: Inputs, seed: int) -> list[bytes]:
    """A seed for each sample from its modalities, but for those that it lacks, and from a seed of all.

    >>> inputs = {"audio": torch.tensor([[1.0], [2.0], [1.0]])}
    >>> first, second, third = content_seeds(inputs, seed=0)
    >>> first == third, first == second, first == content_seeds(inputs, seed=1)[0]
    (True, False, False)
    """
    values = {name: value.detach().cpu().contiguous() for name, value in sorted(modalities_of(inputs).items())}
    present = {name: here.tolist() for name, here in present_of(inputs).items()}
    size = len(next(iter(values.values())))
    seeds = []
    for index in range(size):
        digest = hashlib.blake2b(str(seed).encode(), digest_size=16)
        for name, value in values.items():
            if name not in present or present[name][index]:
                digest.update(f"/{name}/".encode())
                digest.update(value[index].reshape(-1).view(torch.uint8).numpy().tobytes())
        seeds.append(digest.digest())
    return seeds
