"""Two processes under torchrun: one model on both, checkpoints that both go on from, chunks with one exchange of gradients,
hooks of rank 0 alone and patience that ends training on both."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

SCRIPT = """
import gc
import os
import sys
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset
from pml_fast import losses, samplers, testers, trainers
from pml_fast.utils import logging_presets
from pml_fast.utils.accuracy_calculator import AccuracyCalculator

torch.distributed.init_process_group("gloo")
rank, folder = torch.distributed.get_rank(), sys.argv[1]
bunch = load_digits()
x, labels = torch.tensor(bunch.data[:400] / 16).float(), torch.tensor(bunch.target[:400])


def made(chunk=None):
    torch.manual_seed(7)
    trunk = DistributedDataParallel(nn.Sequential(nn.Linear(64, 32), nn.Dropout(0.2), nn.ReLU(), nn.Linear(32, 8)))
    torch.manual_seed(100 + rank)  # dropout of its own on every rank
    batches = samplers.MPerClassSampler(labels, 4, batch_size=40, seed=rank).batched()
    seen = []
    trainer = trainers.MetricLossOnly(
        {"trunk": trunk}, {"trunk_optimizer": torch.optim.Adam(trunk.parameters(), lr=0.01)}, 40,
        {"metric_loss": losses.ContrastiveLoss()}, TensorDataset(x, labels), iterations_per_epoch=4,
        sampler=samplers.DistributedBatchSampler(batches), dataloader_num_workers=0, encoder_chunk_size=chunk,
        accumulation_steps=1 if chunk else 2, end_of_iteration_hook=lambda t: seen.append(t.losses["total_loss"].item()),
    )
    return trunk, trainer, seen


def compare(chunk):
    path = f"{folder}/checkpoint{chunk}"
    trunk, trainer, seen = made(chunk)
    hook = trainer.end_of_iteration_hook

    def save(t, hook=hook, path=path):
        hook(t)
        if t.get_global_iteration() == 5:
            t.save_checkpoint(path)

    trainer.end_of_iteration_hook = save
    trainer.train(num_epochs=2)
    weights = torch.cat([p.detach().flatten() for p in trunk.parameters()])
    everyones = [torch.empty_like(weights) for _ in range(2)]
    torch.distributed.all_gather(everyones, weights)
    assert torch.equal(*everyones), "the ranks' weights differ"
    losses_seen = [None, None]
    torch.distributed.all_gather_object(losses_seen, seen)
    assert losses_seen[0] != losses_seen[1], "the ranks saw the same rows"

    again, trainer, resumed = made(chunk)
    trainer.load_checkpoint(path)
    trainer.train(num_epochs=2)
    assert resumed == seen[6:], (resumed, seen)
    assert all(torch.equal(p, q) for p, q in zip(trunk.parameters(), again.parameters()))


for chunk in (None, 6):
    compare(chunk)


def patience():
    # Rank 0 tests, records and saves by itself; the ranks end together, an epoch after the best.
    # Nothing is learned, so that no epoch is better than the first; the buffers are what parallel modules exchange.
    trunk = DistributedDataParallel(nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8, momentum=0.0)))
    data = TensorDataset(x, labels)
    if rank == 0:
        keeper, _, _ = logging_presets.get_record_keeper(f"{folder}/logs")
        hooks = logging_presets.get_hook_container(keeper, primary_metric="precision_at_1")
        calculator = AccuracyCalculator(include=("precision_at_1",))
        tester = testers.GlobalEmbeddingSpaceTester(
            end_of_testing_hook=hooks.end_of_testing_hook, dataloader_num_workers=0, accuracy_calculator=calculator
        )
        test_and_save = hooks.end_of_epoch_hook(tester, {"val": data}, f"{folder}/models", patience=0)

    def end_of_epoch(trainer):
        go_on = [test_and_save(trainer) if rank == 0 else None]
        torch.distributed.broadcast_object_list(go_on, src=0)
        return go_on[0]

    trainer = trainers.MetricLossOnly(
        {"trunk": trunk}, {"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.0)}, 40,
        {"metric_loss": losses.ContrastiveLoss()}, data, iterations_per_epoch=2, dataloader_num_workers=0,
        end_of_epoch_hook=end_of_epoch,
    )
    trainer.train(num_epochs=5)
    assert trainer.epoch == 2, trainer.epoch
    torch.distributed.barrier()
    assert {"trunk_2.pth", "trunk_best1.pth"} <= set(os.listdir(f"{folder}/models"))


patience()
gc.collect()  # the parallel modules go before the process group that they use
torch.distributed.barrier()
torch.distributed.destroy_process_group()
open(f"{folder}/done{rank}", "w").close()
os._exit(0)  # torch's threads now and then abort an interpreter that shuts down
"""


def test_two_processes_train_one_model_and_go_on_from_its_checkpoint(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script), str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1", "USE_LIBUV": "0"}
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "done0").exists() and (tmp_path / "done1").exists()
