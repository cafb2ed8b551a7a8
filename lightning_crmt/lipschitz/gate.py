# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Which models can be bounded and certified: checks of a model, its head, its modules, and their arithmetic."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from torch.nn.utils import parametrize

from lightning_crmt.checks import describe
from lightning_crmt.fusion import FixedFusion, LateFusion, LinearFusion
from lightning_crmt.lipschitz.known_code import HEADS, LOOKUPS, is_closed, replaced_code
from lightning_crmt.lipschitz.rigorous.verified import UNIT_ROUNDOFF
from lightning_crmt.modality import PRESENT, Inputs, context_of

T = TypeVar("T")
#: One module per modality, by name.
Encoders: TypeAlias = Mapping[str, nn.Module] | nn.ModuleDict

# Where torch makes the properties that stand in for parametrised weights.
_INJECTED = parametrize._inject_property.__qualname__ + "."
# Environment variables that make libraries shorten the factors of products in single precision.
_SHORTENING = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "NVIDIA_TF32_OVERRIDE")


class NoBoundError(ValueError):
    """A module has no Lipschitz bound that could be proved; the message names it.

    >>> from lightning_crmt import lipschitz_bound
    >>> try:
    ...     lipschitz_bound(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)))
    ... except NoBoundError as error:
    ...     print(error)
    no Lipschitz bound is known for '1', a LayerNorm; if you can prove one, register it with @lipschitz_rule
    """


def place_of(module: nn.Module, path: str) -> str:
    """Path and type of a module for error messages.

    >>> place_of(nn.ReLU(), "encoder.1"), place_of(nn.ReLU(), "")
    ("'encoder.1', a ReLU", 'the module, a ReLU')
    """
    return f"{repr(path) if path else 'the module'}, a {type(module).__name__}"


def encoders_and_head(model: nn.Module) -> tuple[Encoders, LateFusion]:
    """The encoders and the head of a model that consists of these alone.

    Raises:
        TypeError: if it has none, a head that is not a late fusion, or parts that are not submodules of it; and for
            what ``torch.compile`` made of a model, which does not show its code.

    >>> model = nn.Module()
    >>> model.encoders = nn.ModuleDict({"audio": nn.Linear(3, 4)})
    >>> model.head = LinearFusion({"audio": 4}, num_classes=2)
    >>> encoders, head = encoders_and_head(model)
    >>> list(encoders), head.num_classes
    (['audio'], 2)
    """
    if hasattr(model, "_orig_mod"):
        raise TypeError("`model` must be the module itself, got what torch.compile made of it: use model.compile()")
    encoders, head = getattr(model, "encoders", None), getattr(model, "head", None)
    if not isinstance(encoders, Mapping | nn.ModuleDict) or not isinstance(head, LateFusion):
        raise TypeError(
            "`model` must have `encoders`, a mapping of modules, and `head`, a LateFusion by a linear head; "
            f"got {describe(encoders)} and {describe(head)}. Of another model radii can be estimated, not certified: "
            "certify(output, None, estimate_lipschitz(model, batches, of='margins'))"
        )
    if isinstance(model, nn.Module):
        registered = set(model.modules())
        for name, part in [*encoders.items(), ("head", head)]:
            if part not in registered:
                raise TypeError(
                    f"`model` must register {name!r} as a submodule, so that `eval()` and `to()` reach it: keep "
                    f"`encoders` in an nn.ModuleDict, got {describe(encoders)}"
                )
    return encoders, head


def refuse_parts_out_of_reach(model: nn.Module) -> None:
    """Refuse a model that ``eval()`` does not wholly put into evaluation mode; it is left in the modes it was in.

    Raises:
        ValueError: naming the parts that stay in training mode.

    >>> class AlwaysOn(nn.Dropout):
    ...     def train(self, mode=True):
    ...         return self
    >>> refuse_parts_out_of_reach(nn.Sequential(nn.Linear(3, 3), AlwaysOn()))
    Traceback (most recent call last):
        ...
    ValueError: `model.eval()` must put every part into evaluation mode, and leaves ['1'] in training mode
    """
    modes = [(part, part.training) for part in model.modules()]
    try:
        model.eval()
        left = [path or type(part).__name__ for path, part in model.named_modules() if part.training]
    finally:
        if modes[0][1]:
            model.train()  # what a `train` of a user's own does beside setting flags, such as merging weights
        for part, mode in modes:
            part.training = mode
    if left:
        raise ValueError(f"`model.eval()` must put every part into evaluation mode, and leaves {left} in training mode")


def examine(encoders: Mapping[str, nn.Module], head: LateFusion) -> None:
    """Refuse encoders and heads in which anything but the code and the numbers of known types could take part.

    Types of layers are examined where they are bounded, as each has its rule there.

    Raises:
        TypeError: for a head that is not exactly of a known type, and weights that are not plain tensors.
        NoBoundError: a ``ValueError``, for hooks, replaced methods, and weights that change at every pass.

    >>> encoder, head = nn.Linear(3, 4), LinearFusion({"audio": 4}, num_classes=2)
    >>> examine({"audio": encoder}, head)
    >>> encoder.forward = lambda x: 100 * x
    >>> try:
    ...     examine({"audio": encoder}, head)
    ... except NoBoundError as error:
    ...     print(error)
    'audio', a Linear, must run its type's code; {'forward'} was replaced
    """
    if type(head) not in HEADS:
        raise TypeError(
            f"`head` must be exactly one of {', '.join(kind.__name__ for kind in HEADS)} to be certified, got "
            f"{describe(head)}: a subclass may compute something else. Estimated constants still give estimates"
        )
    for name, module in {**encoders, "head": head}.items():
        for path, part in module.named_modules(prefix=name):
            refuse_changed_behaviour(part, path)
            if isinstance(part, LOOKUPS) and part.max_norm is not None:
                raise NoBoundError(
                    f"{path!r}, a {type(part).__name__}, must not have `max_norm` to be certified: it changes its "
                    "weights when it is run"
                )
            plain = [own for own, value in vars(part).items() if isinstance(value, Tensor)]
            if plain and is_closed(part):
                raise TypeError(
                    f"`{path}.{plain[0]}` must be a parameter or a buffer to be certified, got a plain tensor, which "
                    "`double()` and `to()` do not reach"
                )
            for own, tensor in [*part._parameters.items(), *part._buffers.items()]:
                if tensor is not None and type(tensor) not in (Tensor, nn.Parameter):
                    raise TypeError(
                        f"`{path}.{own}` must be a plain tensor or parameter to be certified, got a "
                        f"{type(tensor).__name__}, which may compute something else"
                    )


def refuse_context(inputs: Inputs) -> None:
    """Refuse what encoders get besides their modality: bounds say nothing about what they do with it.

    Raises:
        NoBoundError: naming it.

    >>> refuse_context({"audio": torch.ones(2, 3), "audio.present": torch.tensor([True, False])})
    """
    if context := [name for name in context_of(inputs) if not name.endswith(f".{PRESENT}")]:
        raise NoBoundError(
            f"`inputs` must be modalities alone to be certified, and presence: what encoders do with {context[0]!r} "
            "has no bound; estimated constants still give estimates"
        )


def of_each_encoder(encoders: Encoders, prove: Callable[[str, nn.Module], T]) -> dict[str, T]:
    """What is proved of each encoder, by modality.

    Raises:
        ValueError: naming the modality, for what ``prove`` refuses; a ``NoBoundError`` where it raised one.
    """
    proved = {}
    for name, encoder in encoders.items():
        try:
            proved[name] = prove(name, encoder)
        except ValueError as error:
            kind = NoBoundError if isinstance(error, NoBoundError) else ValueError
            raise kind(f"the encoder of {name!r}: {error}") from error
    return proved


def fixed_head(head: nn.Module | None) -> LinearFusion | FixedFusion:
    """``head``, if its numbers are stored and the rounding of its arithmetic is known.

    Raises:
        ValueError: if it computes its numbers anew in every pass, does not run the code of its type, or runs where
            nothing is proved about rounding.

    >>> from lightning_crmt import OrthogonalFusion
    >>> head = OrthogonalFusion({"audio": 4}, num_classes=2)
    >>> type(fixed_head(head.fixed())).__name__  # the head itself is refused
    'FixedFusion'
    """
    if not isinstance(head, LinearFusion | FixedFusion) or type(head) not in (LinearFusion, FixedFusion):
        raise ValueError(
            f"`head` must hold fixed numbers where `errors` are given, got {describe(head)}: what is computed anew, as "
            "by a QR decomposition, differs in the last bits from one number of threads to another; fix them first "
            "with lightning_crmt.with_fixed_weights"
        )
    refuse_compiled(head, "head")
    for name, part in head.named_modules(prefix="head"):
        refuse_changed_behaviour(part, name)
        refuse_parametrised(part, name)
    tensors = [head.bias, *head.directions.values(), *head.integration_weights.values()]
    precisions = sorted({f"{tensor.dtype} on {tensor.device.type}" for tensor in tensors})
    if precisions not in (["torch.float32 on cpu"], ["torch.float64 on cpu"]):
        raise ValueError(
            "`head` must compute in float32 or float64 on the CPU where `errors` are given: nothing is proved about "
            f"rounding elsewhere; got {', '.join(precisions)}"
        )
    return head


def refuse_changed_behaviour(module: nn.Module, path: str) -> None:
    """Refuse what makes a module compute something other than the code of its type.

    Raises:
        NoBoundError: for hooks, replaced methods, and weights that change at every pass.
    """
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    hooks += [*torch_modules._global_forward_hooks.values(), *torch_modules._global_forward_pre_hooks.values()]
    where = place_of(module, path)
    if hooks:
        raise NoBoundError(
            f"{where}, must have no forward hooks, they can change what it computes; "
            f"got {', '.join(getattr(hook, '__qualname__', type(hook).__name__) for hook in hooks)}"
        )
    if hasattr(module, "_orig_mod"):
        raise NoBoundError(f"{where}, hides the module that torch.compile got: compile it in place, encoder.compile()")
    replaced = replaced_code(module, parametrize.type_before_parametrizations(module))
    for name in _parametrised(module):
        if not getattr(getattr(vars(type(module)).get(name), "fget", None), "__qualname__", "").startswith(_INJECTED):
            replaced.add(name)
    if replaced:
        raise NoBoundError(f"{where}, must run its type's code; {replaced} was replaced")
    for name in _parametrised(module):
        first, second = getattr(module, name), getattr(module, name)
        if isinstance(first, Tensor) and not torch.equal(first, second) and first.isfinite().all():
            raise NoBoundError(
                f"{where}, must have a fixed `{name}`; it changes at every pass, "
                "fix it with torch.nn.utils.parametrize.remove_parametrizations"
            )


def refuse_other_weights(running: nn.Module, twin: nn.Module, unit: float) -> None:
    """Refuse weights that are computed to other numbers in double precision than in the precision that they run in.

    Args:
        running: a layer as it runs.
        twin: in double precision.
        unit: roundoff of the precision that it runs in: 1,024 of them, of the largest entry, pass.

    Raises:
        NoBoundError: naming the layer's type and the weight.
    """
    for path, exact in twin.named_modules():
        part = running.get_submodule(path)
        for name in [*exact._parameters, *exact._buffers, *_parametrised(exact)]:
            weight, right = getattr(part, name), getattr(exact, name)
            if not isinstance(right, Tensor):
                continue
            apart = (weight.to(right) - right).abs()
            if not (apart <= 1024 * unit * right.abs().max()).all():
                raise NoBoundError(
                    f"{place_of(part, path)}, must have a `{name}` that is the same in double precision up to "
                    f"rounding, it is off by up to {float(apart.max()):.3g}, as where weights are rounded: store it "
                    "with torch.nn.utils.parametrize.remove_parametrizations"
                )


def refuse_parametrised(module: nn.Module, path: str) -> None:
    """Refuse weights that are computed: they may differ in their last bits from one pass to the next.

    Raises:
        NoBoundError: naming the module and, where its norm is measured by power iteration, the weight.
    """
    parametrised = _parametrised(module)
    spectral = [name for name, kinds in parametrised.items() if any("spectral" in kind.lower() for kind in kinds)]
    if parametrised:
        why = (
            f"the norm of `{spectral[0]}` is measured by power iteration"
            if spectral
            else "its weights are parametrised"
        )
        raise NoBoundError(
            f"{place_of(module, path)}, is refused at level 'rigorous': {why} and computed anew in every pass; "
            "fix them first with torch.nn.utils.parametrize.remove_parametrizations"
        )


def refuse_compiled(module: nn.Module, name: str) -> None:
    """Refuse parts that were compiled: rounding was proved of torch's own code, and a compiler orders sums as it likes.

    Raises:
        NoBoundError: naming the part.
    """
    for path, part in module.named_modules(prefix=name):
        if part._compiled_call_impl is not None:
            raise NoBoundError(
                f"{place_of(part, path)}, is refused at level 'rigorous': nothing is proved about the rounding of "
                "compiled code; level 'sound' takes it"
            )


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[bool]:
    """Inside, no part of ``model`` runs compiled code; gives whether any part does outside.

    >>> layer = nn.Linear(3, 2)
    >>> with uncompiled(layer) as compiled:
    ...     compiled
    False
    """
    compiled = [(part, part._compiled_call_impl) for part in model.modules() if part._compiled_call_impl is not None]
    try:
        for part, _ in compiled:
            part._compiled_call_impl = None
        yield bool(compiled)
    finally:
        for part, code in compiled:
            part._compiled_call_impl = code


def _parametrised(module: nn.Module) -> dict[str, list[str]]:
    """Names of the weights that are parametrised, with the types of what computes them."""
    parts = module._modules.get("parametrizations") if parametrize.is_parametrized(module) else None
    return {name: [type(p).__name__ for p in part.children()] for name, part in parts.named_children()} if parts else {}


def exact_numbers(weight: object, name: str) -> Tensor:
    """``weight``, of any shape, in double precision on the CPU: exactly the numbers that the network uses.

    Args:
        weight: a tensor in half, single or double precision.
        name: what an error calls it.

    Raises:
        ValueError: if they are not real and finite.

    >>> exact_numbers(torch.tensor([0.1]), "weight").item()  # as single precision has it
    0.10000000149011612
    """
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        kind = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"`{name}` must be a real floating point tensor, got {kind}")
    if not weight.isfinite().all():
        raise ValueError(f"`{name}` must be finite, it holds NaN or Inf: the model diverged")
    return weight.detach().cpu().double()


def proved_precision(module: nn.Module, x: Tensor) -> torch.dtype:
    """The precision that ``module`` runs in, if its products of matrices are known to round in it and no coarser.

    Raises:
        ValueError: for other or mixed precisions, or settings of torch that shorten products or flush small numbers.
    """
    # Without weights it runs in the precision of what it is given; single numbers do not widen that.
    precisions = {parameter.dtype for parameter in module.parameters() if parameter.dim()} or {x.dtype}
    precisions |= {parameter.dtype for parameter in module.parameters()}
    if len(precisions) != 1 or not precisions <= UNIT_ROUNDOFF.keys():
        names = sorted(map(str, precisions))
        raise ValueError(f"the network must run in float32 or in float64, its parameters are {names}")
    if unit_of_factors(torch.device("cpu")) > 0:
        raise ValueError(
            "products of matrices must run in full precision: torch.set_float32_matmul_precision('highest'), "
            f"and none of {_SHORTENING} set"
        )
    refuse_flushed_numbers()
    return precisions.pop()


def refuse_flushed_numbers() -> None:
    """Refuse a setting of torch by which tiny numbers count as 0, in bounds too.

    Raises:
        ValueError: if it is on.
    """
    if not (torch.full((1,), 2.0**-130) * 0.5).any():
        raise ValueError("small numbers must not be flushed to zero: torch.set_flush_denormal(False)")


def unit_of_factors(device: torch.device) -> float:
    """By how much torch's settings let factors of products in single precision be rounded first; 0 if not at all."""
    units = {"highest": 0.0, "ieee": 0.0, "none": 0.0, "high": 2.0**-11, "tf32": 2.0**-11}
    chosen = ["bf16" for name in _SHORTENING if os.environ.get(name, "strict").lower() not in ("strict", "0")]
    try:
        chosen.append(torch.get_float32_matmul_precision())
    except RuntimeError:  # precision was set by backend, the newer way, and differs among backends
        chosen.append("bf16")
    backends: list[Any] = [torch.backends]
    if device.type == "cuda":
        backends += [torch.backends.cudnn, getattr(torch.backends.cudnn, "conv", None), torch.backends.cuda.matmul]
    else:
        mkldnn = torch.backends.mkldnn
        backends += [mkldnn, getattr(mkldnn, "conv", None), getattr(mkldnn, "matmul", None)]
    for backend in backends:
        chosen.append(getattr(backend, "fp32_precision", "none"))
        if device.type == "cuda" and getattr(backend, "allow_tf32", False):
            chosen.append("tf32")
    return max(units.get(each, 2.0**-8) for each in chosen)
