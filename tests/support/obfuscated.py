# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Models whose gradients exist and mislead, the same without, and healthy ones; and how an attack fares on each.

All are trained on two modalities of four Gaussian classes, so that there is an accuracy to lose. An obfuscated model
computes the function of a healthy one, or nearly: what an attack finds on that one, it should find on this one too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_crmt.attacks import APGD, Attack, Budget, RandomSearch, strongest, suspicions
from lightning_crmt.encoders import LipschitzMLP

CLASSES = 4
SIZES = {"a": 10, "b": 14}
#: Where strongest() breaks about half of what the plain MLP gets right.
RADIUS = 2.5

Inputs = dict[str, Tensor]


class Data:
    """Gaussian classes in two modalities, drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(1000 + seed)
        self.centres = {m: 0.9 * torch.randn(CLASSES, d, generator=self.generator) for m, d in SIZES.items()}

    def draw(self, count: int) -> tuple[Inputs, Tensor]:
        """Inputs ``(count, d)`` by modality, and classes."""
        target = torch.randint(CLASSES, (count,), generator=self.generator)
        noise = {m: torch.randn(count, d, generator=self.generator) for m, d in SIZES.items()}
        return {m: self.centres[m][target] + 0.8 * noise[m] for m in SIZES}, target


def joined(inputs: Inputs) -> Tensor:
    return torch.cat([inputs[m] for m in SIZES], dim=1)


class Joined(nn.Module):
    """A net on the concatenated modalities."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Inputs) -> Tensor:
        return self.net(joined(inputs))


# Healthy ones.


def mlp() -> nn.Module:
    return Joined(nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, CLASSES)))


def conv() -> nn.Module:
    """Convolutions with batch normalisation over the concatenated numbers as one sequence."""
    return Joined(
        nn.Sequential(
            nn.Unflatten(1, (1, 24)),
            nn.Conv1d(1, 8, 5, padding=2),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(8, 8, 3, padding=1),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(96, CLASSES),
        )
    )


class Attention(nn.Module):
    """Tokens of two numbers each, one layer of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 16)
        self.place = nn.Parameter(0.5 * torch.randn(12, 16))
        self.attend = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(12 * 16, CLASSES)

    def forward(self, inputs: Inputs) -> Tensor:
        tokens = self.embed(joined(inputs).unflatten(1, (12, 2))) + self.place
        mixed, _ = self.attend(tokens, tokens, tokens, need_weights=False)
        return self.head(self.norm(tokens + mixed).flatten(1))


def lipschitz() -> nn.Module:
    return Joined(nn.Sequential(LipschitzMLP(24, 16, hidden=(32,), scale=5.0), nn.Linear(16, CLASSES)))


HEALTHY: dict[str, Callable[[], nn.Module]] = {
    "MLP": mlp,
    "conv with BatchNorm": conv,
    "attention": Attention,
    "LipschitzMLP": lipschitz,
}


# Obfuscated ones: each takes a trained MLP and answers as it does.


class Leak(nn.Module):
    """Detaches its inputs, but for a tiny useless path: gradients exist."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Inputs) -> Tensor:
        logits = self.model({m: value.detach() for m, value in inputs.items()})
        return logits + 1e-9 * joined(inputs).sum(1, keepdim=True) * torch.arange(float(CLASSES))


class Ripple(nn.Module):
    """Adds a fine wave to the inputs: too small to matter, its slope many times that of the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Inputs) -> Tensor:
        return self.model({m: value + 2e-3 * torch.sin(1e4 * value) for m, value in inputs.items()})


class WrongSign(nn.Module):
    """A straight-through estimator with the wrong sign: gradients lead to where the model is surer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Inputs) -> Tensor:
        return self.model({m: 2 * value.detach() - value for m, value in inputs.items()})


class KWinners(nn.Module):
    """k-winners-take-all (Xiao et al., ICLR 2020): its slopes are those of a region that no step stays in."""

    def __init__(self, keep: int) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        least = x.topk(self.keep, dim=1).values[:, -1:]
        return torch.where(x >= least, x, 0.0)


def k_winners() -> nn.Module:
    """Wide, and few winners; trained as such."""
    return Joined(
        nn.Sequential(nn.Linear(24, 512), KWinners(12), nn.Linear(512, 512), KWinners(12), nn.Linear(512, CLASSES))
    )


class GradientSwitch(nn.Module):
    """Answers with another net wherever somebody takes gradients."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.decoy = mlp()

    def forward(self, inputs: Inputs) -> Tensor:
        watched = torch.is_grad_enabled() and any(value.requires_grad for value in inputs.values())
        logits = self.model({m: value.detach() for m, value in inputs.items()})
        if not watched:
            return logits
        decoy = self.decoy(inputs)
        return logits + decoy - decoy.detach()


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "leak": Leak,
    "ripple": Ripple,
    "wrong sign": WrongSign,
    "gradient switch": GradientSwitch,
}
OBFUSCATED = [*WRAPPED, "k winners"]


def trained(model: nn.Module, data: Data, steps: int = 150) -> nn.Module:
    """A plain loop."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(steps):
        inputs, target = data.draw(128)
        loss = nn.functional.cross_entropy(model(inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def build(name: str, seed: int, count: int = 24) -> tuple[nn.Module, Inputs, Tensor]:
    """A trained model of a name in ``HEALTHY`` or ``OBFUSCATED``, with inputs that it gets right, and their classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        data = Data(seed)
        make = k_winners if name == "k winners" else HEALTHY.get(name, mlp)
        model = trained(make(), data)
        if name in WRAPPED:
            model = WRAPPED[name](model).eval().requires_grad_(False)
        inputs, target = data.draw(8 * count)
        with torch.no_grad():
            right = (model(inputs).argmax(1) == target).nonzero().squeeze(1)[:count]
    return model, {m: value[right] for m, value in inputs.items()}, target[right]


# What attacks leave.


def accuracy_after(
    attack: Attack, model: nn.Module, inputs: Inputs, target: Tensor, on: nn.Module | None = None
) -> float:
    """Share that ``model`` still gets right after an attack on it, or on another model."""
    moved = attack(model if on is None else on, inputs, target)
    with torch.no_grad():
        logits = model(moved)
    return float(((logits.argmax(1) == target) & logits.isfinite().all(1)).float().mean())


def surrogate(model: nn.Module, inputs: Inputs, seed: int, steps: int = 300) -> nn.Module:
    """A smooth net that learnt the model's answers around the inputs, without a gradient of it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Joined(nn.Sequential(nn.Linear(24, 96), nn.GELU(), nn.Linear(96, CLASSES)))
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
        for _ in range(steps):
            rows = torch.randint(len(inputs["a"]), (256,))
            near = {m: value[rows] + 0.3 * torch.randn(256, value.shape[1]) for m, value in inputs.items()}
            with torch.no_grad():
                answer = model(near)
            scale = answer.std().clamp(min=1e-6)
            loss = nn.functional.mse_loss(net(near), answer / scale)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval().requires_grad_(False)


@dataclass
class Measured:
    """Accuracy that each attack leaves, and what the sanity checks say."""

    strongest: float
    random: float
    transfer: float
    doubts: list[str]

    @property
    def misled(self) -> bool:
        """Whether the search by gradients leaves 5 points more than one without."""
        return self.strongest > min(self.random, self.transfer) + 0.05

    @property
    def held(self) -> bool:
        """Whether the attack is not misled, or somebody says so."""
        return not self.misled or bool(self.doubts)


def measure(name: str, seed: int, count: int = 24, steps: int = 10) -> Measured:
    """All of it for one model."""
    model, inputs, target = build(name, seed, count)
    budget = Budget(RADIUS)
    attack = strongest(budget, steps=steps)
    return Measured(
        accuracy_after(attack, model, inputs, target),
        accuracy_after(RandomSearch(budget, steps=400), model, inputs, target),
        accuracy_after(APGD(budget, steps=20), model, inputs, target, on=surrogate(model, inputs, seed)),
        suspicions(attack, model, inputs, target),
    )
