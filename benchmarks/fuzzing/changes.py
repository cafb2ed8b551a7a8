# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What may happen to a model behind a certificate's back: other weights, other settings, other code."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fuzzing.nets import Draw, vary_weights
from lightning_crmt import CRMTModule, FusionOutput, LinearFusion
from lightning_crmt.layers import Residual, Scale

#: What a change multiplies by: far more than a tolerance could hide.
FACTOR = 10.0


# Weights and settings: after the constants were computed, before they are used.


def changed_state(draw: Draw, model: CRMTModule) -> CRMTModule:
    """The same model with other numbers in it."""
    how = draw.note("change", draw.among(sorted(STATES)))
    return STATES[how](draw, model)


def _weights(model: CRMTModule) -> list[nn.Parameter]:
    return [p for p in model.encoders.parameters() if p.is_floating_point()]


def _through_data(draw: Draw, model: CRMTModule) -> CRMTModule:
    for weight in _weights(model):
        weight.data.mul_(draw.power(0.2, 1))
    return model


def _under_no_grad(draw: Draw, model: CRMTModule) -> CRMTModule:
    with torch.no_grad():
        for weight in _weights(model):
            weight.add_(torch.randn_like(weight))
    return model


def _through_numpy(draw: Draw, model: CRMTModule) -> CRMTModule:
    for weight in _weights(model):
        if weight.dtype is not torch.bfloat16:
            array = weight.detach().numpy()
            array *= draw.power(0.2, 1)
    return model


def _other_tensor(draw: Draw, model: CRMTModule) -> CRMTModule:
    for weight in _weights(model):
        weight.data = weight.data * FACTOR
    return model


def _one_entry(draw: Draw, model: CRMTModule) -> CRMTModule:
    weights = [w for w in _weights(model) if w.numel()]
    if weights:
        weight = draw.among(weights)
        weight.data.view(-1)[draw.random.randrange(weight.numel())] += 30 * float(weight.abs().max())
    return model


def _swapped_entries(draw: Draw, model: CRMTModule) -> CRMTModule:
    """The same numbers in another order: no sum of them changes."""
    for weight in _weights(model):
        flat = weight.data.view(-1)
        flat.copy_(flat[torch.randperm(flat.numel())])
    return model


def _loaded(draw: Draw, model: CRMTModule) -> CRMTModule:
    other = copy.deepcopy(model)
    _under_no_grad(draw, other)
    vary_weights(draw, other, extreme=False)
    model.load_state_dict(other.state_dict(), assign=draw.chance(0.5))
    return model


def _averaged(draw: Draw, model: CRMTModule) -> CRMTModule:
    other = copy.deepcopy(model)
    _other_tensor(draw, other)
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    average.update_parameters(other)
    return average.module.eval()


def _statistics(draw: Draw, model: CRMTModule) -> CRMTModule:
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_var.mul_(draw.power(-3, -1))
    return model


def _a_step(draw: Draw, model: CRMTModule) -> CRMTModule:
    for weight in _weights(model):
        weight.grad = -weight.detach().clone()
    if _weights(model):
        torch.optim.SGD(_weights(model), lr=2.0).step()
    for weight in _weights(model):
        weight.grad = None
    return model


def _settings(draw: Draw, model: CRMTModule) -> CRMTModule:
    """Numbers that are no tensors, and in no state dict."""
    for part in model.encoders.modules():
        if isinstance(part, Scale):
            part.factor *= FACTOR
        elif isinstance(part, nn.LeakyReLU):
            part.negative_slope = FACTOR
        elif isinstance(part, nn.ELU):
            part.alpha = FACTOR
        elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.eps = -0.99 * float(part.running_var.min())
        elif isinstance(part, Residual):
            part.weight = 2.5
        elif isinstance(part, nn.Conv1d | nn.Conv2d) and part.padding_mode == "zeros" and part.stride == (1,):
            part.dilation = (1,)
    return model


def _another_layer(draw: Draw, model: CRMTModule) -> CRMTModule:
    for encoder in model.encoders.values():
        for chain in encoder.modules():
            if isinstance(chain, nn.Sequential):
                chain.append(Scale(FACTOR))
                break
    return model


def _another_encoder(draw: Draw, model: CRMTModule) -> CRMTModule:
    for name in list(model.encoders):
        model.encoders[name] = nn.Sequential(Scale(FACTOR), model.encoders[name])
    return model


def _to_half(draw: Draw, model: CRMTModule) -> CRMTModule:
    return model.to(torch.bfloat16)


STATES: dict[str, Callable[[Draw, CRMTModule], CRMTModule]] = {
    "weights through .data": _through_data,
    "weights under no_grad": _under_no_grad,
    "weights through numpy": _through_numpy,
    "weights replaced": _other_tensor,
    "one entry": _one_entry,
    "entries swapped": _swapped_entries,
    "load_state_dict": _loaded,
    "weight averaging": _averaged,
    "running statistics": _statistics,
    "a step of SGD": _a_step,
    "settings": _settings,
    "a layer appended": _another_layer,
    "an encoder replaced": _another_encoder,
    "cast to bfloat16": _to_half,
}


# Code: what a model runs beside what its encoders and head are.


def _output(output: FusionOutput) -> FusionOutput:
    """Larger logits: margins grow, and no prediction changes."""
    return FusionOutput(FACTOR * output.logits, output.scores, output.features)


def _larger(inputs: Any) -> dict[str, Tensor]:
    return {name: FACTOR * value for name, value in inputs.items()}


def _layer(model: CRMTModule) -> nn.Module:
    """Some layer with weights, or an encoder where there is none."""
    for encoder in model.encoders.values():
        for part in encoder.modules():
            if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d):
                return part
    return next(iter(model.encoders.values()))


def _subclass(part: nn.Module, **members: Any) -> None:
    part.__class__ = type(f"Changed{type(part).__name__}", (type(part),), members)


def _forward_of_module(model: CRMTModule) -> None:
    base = type(model)
    _subclass(model, forward=lambda self, inputs: base.forward(self, _larger(inputs)))


def _forward_of_module_outputs(model: CRMTModule) -> None:
    base = type(model)
    _subclass(model, forward=lambda self, inputs: _output(base.forward(self, inputs)))


def _call_of_module(model: CRMTModule) -> None:
    base = type(model)
    _subclass(model, __call__=lambda self, inputs: base.__call__(self, _larger(inputs)))


def _instance_forward(model: CRMTModule) -> None:
    old = type(model).forward
    model.forward = lambda inputs: old(model, _larger(inputs))  # type: ignore[method-assign]


def _module_hook(model: CRMTModule) -> None:
    model.register_forward_hook(lambda module, args, output: _output(output))


def _module_pre_hook(model: CRMTModule) -> None:
    model.register_forward_pre_hook(lambda module, args: (_larger(args[0]), *args[1:]))


def _module_kwargs_hook(model: CRMTModule) -> None:
    model.register_forward_hook(lambda module, args, kwargs, output: _output(output), with_kwargs=True)


def _encoder_hook(model: CRMTModule) -> None:
    for encoder in model.encoders.values():
        encoder.register_forward_hook(lambda module, args, output: FACTOR * output)


def _layer_hook(model: CRMTModule) -> None:
    _layer(model).register_forward_hook(lambda module, args, output: FACTOR * output)


def _layer_pre_hook(model: CRMTModule) -> None:
    _layer(model).register_forward_pre_hook(lambda module, args: (FACTOR * args[0],))


def _head_hook(model: CRMTModule) -> None:
    model.head.register_forward_hook(lambda module, args, output: _output(output))


def _head_pre_hook(model: CRMTModule) -> None:
    model.head.register_forward_pre_hook(lambda module, args: (_larger(args[0]),))


def _encoder_instance_forward(model: CRMTModule) -> None:
    for encoder in model.encoders.values():
        old = type(encoder).forward
        encoder.forward = lambda x, old=old, encoder=encoder: FACTOR * old(encoder, x)  # type: ignore[method-assign]


def _encoder_class(model: CRMTModule) -> None:
    for encoder in model.encoders.values():
        base = type(encoder)
        _subclass(encoder, forward=lambda self, x, base=base: FACTOR * base.forward(self, x))


def _layer_class(model: CRMTModule) -> None:
    layer = _layer(model)
    base = type(layer)
    _subclass(layer, forward=lambda self, x: FACTOR * base.forward(self, x))


def _head_forward(model: CRMTModule) -> None:
    base = type(model.head)
    _subclass(model.head, forward=lambda self, features: _output(base.forward(self, features)))


def _head_fuse(model: CRMTModule) -> None:
    base = type(model.head)
    _subclass(model.head, fuse=lambda self, scores: FACTOR * base.fuse(self, scores))


def _head_instance_forward(model: CRMTModule) -> None:
    head, old = model.head, type(model.head).forward
    head.forward = lambda features: _output(old(head, features))  # type: ignore[method-assign]


def _head_instance_fuse(model: CRMTModule) -> None:
    head, old = model.head, type(model.head).fuse
    head.fuse = lambda scores: FACTOR * old(head, scores)


def _head_instance_checked(model: CRMTModule) -> None:
    head, old = model.head, type(model.head).checked
    head.checked = lambda features: _larger(old(head, features))  # type: ignore[method-assign]


def _compiled_with_a_hook(model: CRMTModule) -> None:
    """Compiled while a hook was there, which is removed since."""
    torch.compiler.reset()
    handles = [e.register_forward_hook(lambda module, args, output: FACTOR * output) for e in model.encoders.values()]
    for encoder in model.encoders.values():
        encoder.compile(backend="eager")
    for handle in handles:
        handle.remove()


def _compiled_elsewhere(model: CRMTModule) -> None:
    """What says that it was compiled is not what was compiled."""
    for encoder in model.encoders.values():
        own = encoder._call_impl
        encoder._compiled_call_impl = lambda x, own=own: FACTOR * own(x)


def _property_of_a_weight(model: CRMTModule) -> None:
    layer = _layer(model)
    if not isinstance(getattr(layer, "weight", None), nn.Parameter):
        return
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    kind = type(layer)
    weight = kind.weight
    kind.weight = property(lambda self: FACTOR * weight.fget(self))


def _looks_parametrised(model: CRMTModule) -> None:
    _layer_class(model)
    _layer(model).parametrizations = nn.ModuleDict({"x": nn.Identity()})


def _head_weights(model: CRMTModule) -> None:
    """Tells certificates of smaller weights than it fuses by."""
    base = type(model.head)
    _subclass(
        model.head,
        class_weights=property(lambda self: {n: w / FACTOR for n, w in base.class_weights.fget(self).items()}),
    )


def _head_features(model: CRMTModule) -> None:
    """A head of stored numbers whose numbers answer by how often they were asked."""
    head = model.head
    if isinstance(head, LinearFusion):
        _subclass(head, integration_weights=property(lambda self: {n: torch.full_like(self.bias, FACTOR)
                                                                   for n in self.in_features}))  # fmt: skip


class _Loud(nn.Parameter):
    """A weight that multiplies in its own way."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        products = (nn.functional.linear, nn.functional.conv1d, nn.functional.conv2d, torch.conv1d, torch.conv2d)
        result = result.as_subclass(Tensor) if isinstance(result, Tensor) else result
        return FACTOR * result if func in products else result


def _weight_subclass(model: CRMTModule) -> None:
    layer = _layer(model)
    if isinstance(getattr(layer, "weight", None), nn.Parameter) and not parametrize.is_parametrized(layer):
        layer.weight = _Loud(layer.weight.detach().clone(), requires_grad=False)


class _Later(nn.Module):
    """A parametrisation that is another after some passes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.calls += 1
        return weight * (1.0 if self.calls < 5 else FACTOR)


def _parametrisation_that_counts(model: CRMTModule) -> None:
    layer = _layer(model)
    if isinstance(getattr(layer, "weight", None), nn.Parameter):
        parametrize.register_parametrization(layer, "weight", _Later())


def _dropout_kept_on(model: CRMTModule) -> None:
    """Monte Carlo dropout: `eval()` leaves it on."""
    base = type(model)
    for name in list(model.encoders):
        model.encoders[name] = nn.Sequential(nn.Dropout(0.7), model.encoders[name])

    def train(self: CRMTModule, mode: bool = True) -> CRMTModule:
        base.train(self, mode)
        for part in self.modules():
            if isinstance(part, nn.Dropout):
                part.training = True
        return self

    _subclass(model, train=train)


def _dropout_class_kept_on(model: CRMTModule) -> None:
    """A layer whose `training` cannot be turned off."""
    for name in list(model.encoders):
        dropout = nn.Dropout(0.7)
        _subclass(dropout, training=property(lambda self: True, lambda self, value: None))
        model.encoders[name] = nn.Sequential(dropout, model.encoders[name])


def _batch_statistics(model: CRMTModule) -> None:
    """Batch normalisation that takes the batch's statistics in evaluation mode too."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean = part.running_var = None


CODES: dict[str, Callable[[CRMTModule], None]] = {
    "forward of the module, inputs": _forward_of_module,
    "forward of the module, logits": _forward_of_module_outputs,
    "__call__ of the module": _call_of_module,
    "forward of the instance": _instance_forward,
    "hook on the module": _module_hook,
    "pre-hook on the module": _module_pre_hook,
    "hook with kwargs on the module": _module_kwargs_hook,
    "hook on the encoders": _encoder_hook,
    "hook on a layer": _layer_hook,
    "pre-hook on a layer": _layer_pre_hook,
    "hook on the head": _head_hook,
    "pre-hook on the head": _head_pre_hook,
    "forward of an encoder's instance": _encoder_instance_forward,
    "forward of an encoder's class": _encoder_class,
    "forward of a layer's class": _layer_class,
    "forward of the head": _head_forward,
    "fuse of the head": _head_fuse,
    "forward of the head's instance": _head_instance_forward,
    "fuse of the head's instance": _head_instance_fuse,
    "checked of the head's instance": _head_instance_checked,
    "compiled with a hook": _compiled_with_a_hook,
    "compiled elsewhere": _compiled_elsewhere,
    "the property of a parametrised weight": _property_of_a_weight,
    "looks parametrised": _looks_parametrised,
    "class_weights of the head": _head_weights,
    "integration_weights of the head": _head_features,
    "a weight that is a subclass": _weight_subclass,
    "a parametrisation that counts": _parametrisation_that_counts,
    "dropout kept on by train()": _dropout_kept_on,
    "dropout kept on by its class": _dropout_class_kept_on,
    "statistics of the batch": _batch_statistics,
}


# What changes nothing that is certified.


def _backward_hooks(model: CRMTModule) -> None:
    for part in model.modules():
        part.register_full_backward_hook(lambda module, into, out: None)


def _a_subclass(model: CRMTModule) -> None:
    _subclass(model, training_step=lambda self, batch, index: None, extra=lambda self: 1)


def _state_dict_hooks(model: CRMTModule) -> None:
    model.register_state_dict_pre_hook(lambda *args: None)


def _spectral_norm(model: CRMTModule) -> None:
    layer = _layer(model)
    if isinstance(layer, nn.Linear):
        nn.utils.parametrizations.spectral_norm(layer)
        model.eval()


def _weight_norm(model: CRMTModule) -> None:
    layer = _layer(model)
    if isinstance(getattr(layer, "weight", None), nn.Parameter):
        nn.utils.parametrizations.weight_norm(layer)


def _frozen(model: CRMTModule) -> None:
    model.requires_grad_(False)
    for encoder in model.encoders.values():
        encoder.train()


HARMLESS: dict[str, Callable[[CRMTModule], None]] = {
    "backward hooks": _backward_hooks,
    "a subclass": _a_subclass,
    "hooks on the state dict": _state_dict_hooks,
    "spectral norm": _spectral_norm,
    "weight norm": _weight_norm,
    "frozen, parts in training mode": _frozen,
}
