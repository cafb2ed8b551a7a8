# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Gradient norms of many classes from few backward passes, where the way from the input to the scores is narrow."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from lightning_crmt.modality import widened

#: The most numbers in the gradients that are held at once: 256 MiB in single precision.
_MOST = 2**26
#: The most that two ways to the same gradient may differ, relative to it.
_TOLERANCE = 1e-3


def narrow_norms(scores: Tensor, leaf: Tensor) -> Tensor | None:
    r"""Gradient norms of each score at each sample, from fewer backward passes than there are classes.

    Where the scores depend on the input by way of a vector u alone, of fewer dimensions than there are classes, the
    gradients of its d entries through the encoder give those of all classes:

    .. math:: \| \partial s_k / \partial x \|^2 = w_k^\top G \, w_k, \qquad
        w_k = \partial s_k / \partial u, \quad G = J J^\top, \quad J = \partial u / \partial x

    The inner products are in double precision: what they cancel is no more than in the gradients themselves.

    Args:
        scores: ``(B, K)``, computed from ``leaf``; their graph is kept.
        leaf: the input, ``(B, ...)``.

    Returns:
        ``(B, K)``; None where there is no such vector, its gradients would take too much memory, or samples trade
        places between u and the scores. Then gradients must be taken class by class.

    >>> first, second = torch.randn(2, 30), torch.randn(9, 2)
    >>> x = torch.randn(4, 30, requires_grad=True)
    >>> norms = narrow_norms(x @ first.mT @ second.mT, x)
    >>> torch.allclose(norms, (second @ first).norm(dim=1).expand(4, 9), rtol=1e-4)
    True
    """
    edge = bottleneck(scores, leaf)
    width = narrow_width(scores, leaf)
    if edge is None or width is None:
        return None
    rows = torch.stack(list(_class_rows(scores, edge)), dim=1)  # (B, K, d)
    # Stand-ins of samples that lack the modality are real samples too, which no score depends on.
    counted = rows.flatten(1).ne(0).any(dim=1).to(rows)
    jacobian = torch.stack([_pulled_back(edge, one * counted[:, None], leaf) for one in torch.eye(width).to(rows)], 1)

    # Another way to one combination of the gradients of all classes tells whether samples are in the same places.
    mixture = torch.linspace(0.5, 1.5, scores.shape[1]).to(scores)
    (expected,) = torch.autograd.grad((scores @ mixture).sum(), leaf, retain_graph=True)
    expected = expected.flatten(1)
    found = ((mixture @ rows)[:, None] @ jacobian)[:, 0]
    if not (found - expected).norm() <= _TOLERANCE * expected.norm():
        return None

    wide = widened(rows[:0]).dtype
    gram = torch.zeros(len(rows), width, width, dtype=wide, device=rows.device)
    for part in torch.split(jacobian, 4096, dim=2):
        part = part.to(wide)
        gram.baddbmm_(part, part.mT)
    squares = ((rows.to(wide) @ gram) * rows).sum(dim=2)
    return squares.clamp(min=0).sqrt().to(leaf.dtype)


def narrow_width(scores: Tensor, leaf: Tensor, samples: int = 1) -> int | None:
    """How many backward passes :func:`narrow_norms` needs; None where it would not pay, or take too much memory.

    Args:
        scores: ``(B, K)``, computed from ``leaf``.
        leaf: the input, ``(B, ...)``.
        samples: how many times as many there are to be.

    >>> x = torch.randn(4, 30, requires_grad=True)
    >>> narrow_width(x @ torch.randn(30, 2) @ torch.randn(2, 9), x)
    2
    """
    edge = bottleneck(scores, leaf)
    if edge is None or leaf.dtype.itemsize < 4:  # in half precision, both ways to a gradient are too far apart
        return None
    width = _shape(edge)[1]
    return width if 4 * width <= 3 * scores.shape[1] and samples * width * leaf.numel() <= _MOST else None


def bottleneck(scores: Tensor, leaf: Tensor) -> GradientEdge | None:
    """Where the graph from ``leaf`` to the scores ``(B, K)`` is narrowest: a vector ``(B, d)`` that all ways pass.

    None if there is no vector between the two, such as where the scores do not depend on ``leaf``.

    >>> x = torch.randn(4, 30, requires_grad=True)
    >>> hidden = (x @ torch.randn(30, 2)).relu()
    >>> bottleneck(hidden @ torch.randn(2, 9), x).node.name()  # of two as narrow, the one nearer to the input
    'MmBackward0'
    >>> bottleneck(hidden @ torch.randn(2, 9) + x[:, :9], x) is None  # some of x goes another way
    True
    """
    if not scores.requires_grad:
        return None
    start, end = get_gradient_edge(scores).node, get_gradient_edge(leaf).node
    order = _towards(start, end)
    best: GradientEdge | None = None
    open_edges: set[tuple[Node, int]] = set()
    for node in order:
        # What was walked so far and what was not are joined by these edges alone.
        if len(open_edges) == 1 and node is not end:
            edge = GradientEdge(node, next(iter(open_edges))[1])
            shape = _shape(edge)
            narrower = best is None or (len(shape) == 2 and shape[1] <= _shape(best)[1])
            if len(shape) == 2 and shape[0] == len(scores) and narrower:
                best = edge
        open_edges = {edge for edge in open_edges if edge[0] is not node}
        open_edges |= {(after, number) for after, number in node.next_functions if after in order}
    return best


def _towards(start: Node, end: Node) -> dict[Node, None]:
    """The nodes on the ways from ``start`` to ``end``, each after all that lead to it."""
    leads: dict[Node, bool] = {}
    stack = [start]
    while stack:
        node = stack[-1]
        after = [each for each, _ in node.next_functions if each is not None]
        todo = [] if node is end else [each for each in after if each not in leads]
        if todo:
            stack.extend(todo)
            continue
        stack.pop()
        if node not in leads:
            leads[node] = node is end or any(leads[each] for each in after)
    return {node: None for node in reversed(leads) if leads[node]}


def _shape(edge: GradientEdge) -> tuple[int, ...]:
    return tuple(edge.node._input_metadata[edge.output_nr].shape)


def _class_rows(scores: Tensor, edge: GradientEdge) -> Iterator[Tensor]:
    """Of each class, the gradients ``(B, d)`` of its scores."""
    for k in range(scores.shape[1]):
        (row,) = torch.autograd.grad(scores[:, k].sum(), [edge], retain_graph=True)
        yield row


def _pulled_back(edge: GradientEdge, gradient: Tensor, leaf: Tensor) -> Tensor:
    (back,) = torch.autograd.grad([edge], [leaf], [gradient], retain_graph=True)
    return back.flatten(1)
