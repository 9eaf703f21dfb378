"""fusedrnn.LSTM in a LightningModule, trained by Lightning's Trainer.

    pip install lightning
    python examples/frameworks/lightning_module.py

Ends with exit status 1 if it did not learn.
"""

from __future__ import annotations

import argparse
import sys
import tempfile

import lightning
import torch
from rising import Classifier, sequences, verdict
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset


class Trained(lightning.LightningModule):
    """The classifier, and how it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = Classifier()

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        x, labels = batch
        return cross_entropy(self.classifier(x), labels)

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        x, labels = batch
        self.log("accuracy", (self.classifier(x).argmax(1) == labels).double().mean().float())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def main() -> int:
    parser = argparse.ArgumentParser(description="Train a classifier with Lightning.")
    parser.add_argument("--epochs", type=int, default=5, help="default: %(default)s")
    options = parser.parse_args()
    lightning.seed_everything(0, verbose=False)
    training = DataLoader(TensorDataset(*sequences(1000, seed=1)), batch_size=50, shuffle=True)
    held_out = DataLoader(TensorDataset(*sequences(500, seed=2)), batch_size=500)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=options.epochs,
            accelerator="cpu",
            devices=1,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        trainer.fit(Trained(), training, held_out)
        return verdict(float(trainer.callback_metrics["accuracy"]))


if __name__ == "__main__":
    sys.exit(main())
