"""One of two ranks that train with Lightning and accelerate; writes what it was given (run by test_frameworks)."""

import json
import logging
import os
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from typing_extensions import override

import xloader as xl
import xloader.errors
from tests.doubles import cells
from xloader import torch as xt


def make(**options):
    options = {"batch_size": 4, "variables": ["X_pca"], "shuffle": True, "seed": 5, **options}
    return xl.Loader(cells().chunk(cell=10), remainder="drop", memory_budget="1kB", **options)


def mapped(**options):
    source = xt.MapDataset(make())
    return DataLoader(source, batch_sampler=xt.BlockSampler(source), **options)


class Net(pl.LightningModule):
    """Remembers the samples of each step."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = torch.nn.Linear(3, 1), []

    @override
    def training_step(self, batch):
        self.seen.append(batch["sample_id"].tolist())
        return self.net(batch["X_pca"]).square().mean()

    @override
    def predict_step(self, batch):
        return batch["sample_id"]

    @override
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def trainer(**options):
    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    options = {**dict.fromkeys(quiet, False), "accelerator": "cpu", "max_epochs": 2, **options}
    return pl.Trainer(**options)


def fitted(loader, **options):
    net = Net()
    trainer(strategy="ddp", devices=2, **options).fit(net, loader)
    return net.seen


def taken(loader):
    return [batch["sample_id"].tolist() for _ in range(2) for batch in loader]


def prepared(loader, **options):
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))
    return taken(accelerator.prepare(loader))


def unprepared():
    accelerator = Accelerator(cpu=True)
    net = torch.nn.Linear(3, 1)
    model, _ = accelerator.prepare(net, torch.optim.SGD(net.parameters(), 0.01))
    loader, seen = xt.make_loader(make()), []
    for batch in loader:
        accelerator.backward(model(batch["X_pca"].to(accelerator.device)).square().mean())
        seen.append(batch["sample_id"].tolist())
    return seen + [batch["sample_id"].tolist() for batch in loader]


def halfway():
    """Stop in the middle of the second epoch, and say where that is."""
    loader = xt.make_loader(make(), num_workers=2)
    seen = fitted(loader, max_steps=10)
    return [seen, loader.state_dict()]


def distributed_sampler():
    source = xt.MapDataset(make())
    sampler = DistributedSampler(source, drop_last=True)
    return [b["sample_id"].tolist() for b in DataLoader(source, 4, sampler=sampler)]


def spawning():
    return xt.make_loader(make(), num_workers=1, start_method="spawn")


CASES = {
    "lightning": lambda: fitted(xt.make_loader(make())),
    "lightning workers": lambda: fitted(xt.make_loader(make(), num_workers=2)),
    "lightning halfway": halfway,
    "lightning BlockSampler": lambda: fitted(mapped()),
    "lightning BlockSampler as sampler": lambda: fitted(
        DataLoader(xt.MapDataset(make()), sampler=xt.BlockSampler(make()), batch_size=None)
    ),
    "lightning BlockSampler alone": lambda: fitted(mapped(), use_distributed_sampler=False),
    "accelerate": unprepared,
    "accelerate prepared": lambda: prepared(xt.make_loader(make())),
    "accelerate prepared workers": lambda: prepared(xt.make_loader(make(), num_workers=2)),
    "accelerate prepared spawn": lambda: prepared(spawning()),
    "accelerate sharded": lambda: prepared(xt.make_loader(make()), dispatch_batches=False),
    "accelerate sharded workers": lambda: prepared(
        xt.make_loader(make(), num_workers=2), dispatch_batches=False
    ),
    "accelerate sharded spawn": lambda: prepared(spawning(), dispatch_batches=False),
    "accelerate stateful": lambda: prepared(
        xt.make_loader(make()), use_stateful_dataloader=True, dispatch_batches=False
    ),
    "accelerate one rank's own": lambda: prepared(xt.make_loader(make(rank=0, world_size=1))),
    "accelerate BlockSampler": lambda: prepared(mapped()),
    "accelerate BlockSampler workers": lambda: prepared(mapped(num_workers=2)),
    "accelerate MapDataset": lambda: prepared(DataLoader(xt.MapDataset(make()), 4, shuffle=True)),
    "DistributedSampler": distributed_sampler,
}


def main(folder):
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    told = {}
    for name, case in CASES.items():
        try:
            told[name] = case()
        except Exception as e:  # noqa: BLE001 # the test says what each should be
            e = next((x for x in (e, e.__context__) if isinstance(x, xl.errors.PlanError)), e)
            told[name] = f"{type(e).__name__}: {e}"
    Path(folder, f"{os.environ['RANK']}.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
