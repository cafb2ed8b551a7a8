# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from lightning_crmt.attacks.external.one_vector import Flat

KINDS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def batch(*dtypes):
    torch.manual_seed(0)
    shapes = {"audio": (5,), "image": (2, 3, 1), "depth": (1, 4)}
    x = {n: torch.randn(6, *s).to(d) for (n, s), d in zip(shapes.items(), dtypes, strict=True)}
    for value in x.values():
        info = torch.finfo(value.dtype)
        value.view(6, -1)[0, :4] = torch.tensor([-0.0, info.tiny, info.max, info.eps]).to(value.dtype)
    return {"text": torch.arange(18).reshape(6, 3), **x}


def same_bits(one, other):
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    integers = kinds[one.element_size()]
    return one.dtype is other.dtype and one.shape == other.shape and one.view(integers).equal(other.view(integers))


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_the_way_back_is_exact(first, second):
    x = batch(first, second, torch.float32)
    flat = Flat(x, ["image", "audio", "depth"])
    back = flat.restore(flat.join(x))
    assert list(back) == list(x)
    assert all(same_bits(back[n], v) for n, v in x.items())
    assert back["text"] is not None
    assert flat.sizes == {"image": 6, "audio": 5, "depth": 4}


@pytest.mark.parametrize("dtype", KINDS)
def test_one_kind_stays_what_it_is(dtype):
    x = batch(dtype, dtype, dtype)
    vectors = Flat(x, ["audio", "image"]).join(x)
    assert vectors.dtype is dtype
    assert vectors.shape == (6, 11)


def test_what_is_not_in_the_vector_comes_back_untouched():
    x = batch(*KINDS[:3])
    flat = Flat(x, ["audio"])
    vectors = flat.join(x)
    back = flat.restore(vectors + 1)
    assert all(same_bits(back[n], x[n]) for n in ("text", "image", "depth"))
    assert not back["audio"].equal(x["audio"])


def test_rows_in_any_order_and_number():
    x = batch(*KINDS[1:])
    flat = Flat(x, ["audio", "depth"])
    rows = torch.tensor([4, 0, 4])
    back = flat.restore(flat.join(x)[rows], rows)
    assert all(same_bits(back[n], v[rows]) for n, v in x.items())


def test_the_norm_of_the_vector_is_the_joint_norm():
    x = batch(torch.float64, torch.float64, torch.float64)
    x = {n: v.clamp(-9, 9) for n, v in x.items()}
    flat = Flat(x, ["audio", "image"])
    joint = (x["audio"].square().flatten(1).sum(1) + x["image"].square().flatten(1).sum(1)).sqrt()
    assert torch.allclose(flat.join(x).norm(dim=1), joint)


def test_gradients_go_through():
    x = {"audio": torch.ones(2, 3), "image": torch.ones(2, 2, 2)}
    flat = Flat(x, ["audio", "image"])
    vectors = flat.join(x).requires_grad_(True)
    parts = flat.restore(vectors)
    (2 * parts["audio"].sum() + 3 * parts["image"].sum()).backward()
    assert vectors.grad.equal(torch.tensor([2.0, 2, 2, 3, 3, 3, 3]).expand(2, 7))
