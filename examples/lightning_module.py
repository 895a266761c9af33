"""A Lightning module: the loss and the miner in training_step, MAP@R at the end of each validation epoch."""

import argparse

import pytorch_lightning as lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pml_fast import losses, miners, samplers
from pml_fast.utils.accuracy_calculator import AccuracyCalculator


class MetricLearning(lightning.LightningModule):
    def __init__(self, lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
        self.miner = miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard")
        self.loss_func = losses.TripletMarginLoss(margin=0.2)
        self.calculator = AccuracyCalculator(include=("mean_average_precision_at_r",), k="max_bin_count")
        self.validated: list[tuple[torch.Tensor, torch.Tensor]] = []

    def training_step(self, batch, index):
        images, labels = batch
        embeddings = self.model(images)
        loss = self.loss_func(embeddings, labels, self.miner(embeddings, labels))
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, index):
        images, labels = batch
        self.validated.append((nn.functional.normalize(self.model(images)), labels))

    def on_validation_epoch_end(self):
        embeddings, labels = (torch.cat(parts) for parts in zip(*self.validated))
        self.validated.clear()
        self.log("map_at_r", self.calculator.get_accuracy(embeddings, labels)["mean_average_precision_at_r"])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    lightning.seed_everything(0)

    digits = load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32) / 16, torch.tensor(digits.target)
    train = TensorDataset(images[:1200], labels[:1200])
    sampler = samplers.MPerClassSampler(labels[:1200], m=12, batch_size=120, length_before_new_iter=1200)
    train_loader = DataLoader(train, batch_size=120, sampler=sampler)
    val_loader = DataLoader(TensorDataset(images[1200:], labels[1200:]), batch_size=256)

    module = MetricLearning()
    trainer = lightning.Trainer(
        max_epochs=args.epochs, logger=False, enable_checkpointing=False, enable_model_summary=False, log_every_n_steps=1
    )
    (before,) = trainer.validate(module, val_loader, verbose=False)
    trainer.fit(module, train_loader, val_loader)
    print(f"MAP@R before: {before['map_at_r']:.4f}")
    print(f"MAP@R after: {trainer.callback_metrics['map_at_r']:.4f}")


if __name__ == "__main__":
    main()
