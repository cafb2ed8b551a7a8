# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""`predict_step` may return certificates, which the Trainer moves, writers save, and `torch.load` reads."""

import copy
import pickle
from dataclasses import FrozenInstanceError, fields

import pytest
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_crmt import Certificate, CRMTModule, FusionOutput
from lightning_crmt.encoders import MLP


class Certifying(CRMTModule):
    def predict_step(self, batch, index):
        certificate = self.certify(batch)
        return {"certificate": certificate, "both": [certificate, self(batch)], "of": ("batch", index)}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Certifying({"a": MLP(5, 8), "b": MLP(4, 8)}, 3)


@pytest.fixture
def batches():
    torch.manual_seed(1)
    return [{"a": torch.randn(size, 5), "b": torch.randn(size, 4)} for size in (6, 6, 2)]


def tensors(value):
    if isinstance(value, Tensor):
        return [value]
    return [each for part in value.values() for each in tensors(part)] if isinstance(value, dict) else []


def assert_equal(one, other):
    assert type(one) is type(other) is Certificate
    for field in fields(Certificate):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if tensors(left):
            assert all(map(torch.equal, tensors(left), tensors(right)))
        else:
            assert left == right


def test_the_trainer_returns_them(model, batches, make_trainer):
    found = make_trainer().predict(model, DataLoader(batches, batch_size=None))
    assert [each["of"] for each in found] == [("batch", 0), ("batch", 1), ("batch", 2)]
    for each, batch in zip(found, batches, strict=True):
        assert_equal(each["certificate"], model.certify(batch))
        assert_equal(each["both"][0], each["certificate"])
        assert isinstance(each["both"][1], FusionOutput)
        assert each["certificate"].radius().shape == (len(batch["a"]),)
        assert each["certificate"].tolerates({"a": 1e-9}).dtype is torch.bool


class Writer(BasePredictionWriter):
    def __init__(self, folder, interval):
        super().__init__(interval)
        self.folder = folder

    def write_on_batch_end(self, trainer, pl_module, prediction, batch_indices, batch, batch_idx, dataloader_idx):
        torch.save(prediction, self.folder / f"{batch_idx}.pt")

    def write_on_epoch_end(self, trainer, pl_module, predictions, batch_indices):
        torch.save(predictions, self.folder / "all.pt")


@pytest.mark.filterwarnings("ignore:Couldn't infer the batch indices")
@pytest.mark.parametrize("interval", ["batch", "epoch", "batch_and_epoch"])
def test_writers_save_them_and_torch_load_reads_them(interval, model, batches, make_trainer, tmp_path):
    writer = Writer(tmp_path, interval)
    make_trainer(writer).predict(model, DataLoader(batches, batch_size=None), return_predictions="epoch" in interval)
    for index, batch in enumerate(batches):
        if "batch" in interval:
            assert_equal(torch.load(tmp_path / f"{index}.pt")["certificate"], model.certify(batch))
        if "epoch" in interval:
            assert_equal(torch.load(tmp_path / "all.pt")[index]["certificate"], model.certify(batch))


def test_copies_are_equal_and_nothing_can_be_set(model, batches):
    certificate = model.certify(batches[0])
    for other in (pickle.loads(pickle.dumps(certificate)), copy.deepcopy(certificate), certificate.to("cpu")):
        assert_equal(certificate, other)
        with pytest.raises(FrozenInstanceError):
            other.margins = torch.zeros(6, 3)


def test_every_tensor_is_moved_in_its_own_precision(model, batches):
    certificate = model.certify(batches[0])
    moved = certificate.to(torch.device("meta"))
    places = [tensor for field in fields(moved) for tensor in tensors(getattr(moved, field.name))]
    assert len(places) == 4
    assert {tensor.device.type for tensor in places} == {"meta"}
    assert moved.margins.dtype is certificate.margins.dtype is torch.float64
    assert certificate.margins.device.type == "cpu"
