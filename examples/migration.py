"""A script for pytorch-metric-learning 2.9, moved here by its first import; every line below that is as it was."""

from pml_fast import compat

compat.install()

import torch
from pytorch_metric_learning import losses, miners, testers, trainers
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import InferenceModel
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

torch.manual_seed(0)
digits = load_digits()
images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
train, test = TensorDataset(images[:1200], labels[:1200]), TensorDataset(images[1200:], labels[1200:])

trunk = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU())
embedder = torch.nn.Linear(128, 32)
tester = testers.GlobalEmbeddingSpaceTester(
    accuracy_calculator=AccuracyCalculator(include=("mean_average_precision_at_r",), k="max_bin_count"),
    dataloader_num_workers=0,
)


def map_at_r(epoch):
    return tester.test({"test": test}, epoch, trunk, embedder)["test"]["mean_average_precision_at_r_level0"]


trainer = trainers.MetricLossOnly(
    models={"trunk": trunk, "embedder": embedder},
    optimizers={
        "trunk_optimizer": torch.optim.Adam(trunk.parameters(), lr=1e-3),
        "embedder_optimizer": torch.optim.Adam(embedder.parameters(), lr=1e-3),
    },
    batch_size=120,
    loss_funcs={"metric_loss": losses.MultiSimilarityLoss()},
    mining_funcs={"tuple_miner": miners.MultiSimilarityMiner()},
    dataset=train,
    dataloader_num_workers=0,
)
before = map_at_r(0)
trainer.train(num_epochs=5)
after = map_at_r(5)

model = InferenceModel(trunk, embedder)
model.train_knn(train)
_, nearest = model.get_nearest_neighbors(images[1200:], k=1)
right = (labels[nearest[:, 0].cpu()] == labels[1200:]).float().mean()

print(f"MAP@R before: {before:.4f}")
print(f"MAP@R after: {after:.4f}")
print(f"nearest training image of the same digit: {right:.4f}")
