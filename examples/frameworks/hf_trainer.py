"""fusedrnn.LSTM in your own transformers model, trained by Hugging Face's Trainer, offline.

    pip install transformers accelerate
    python examples/frameworks/hf_trainer.py

Ends with exit status 1 if it did not learn, or if the saved model is not the trained one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile

import torch
from rising import Classifier, sequences, verdict
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput


class Config(PretrainedConfig):
    model_type = "fused_lstm_classifier"
    hidden_size: int = 32


class Model(PreTrainedModel):
    """The classifier as transformers has models."""

    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.classifier = Classifier(config.hidden_size)
        self.post_init()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        logits = self.classifier(x)
        loss = None if labels is None else cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def examples(count: int, seed: int) -> list[dict[str, Tensor]]:
    x, labels = sequences(count, seed)
    return [{"x": a, "labels": b} for a, b in zip(x, labels, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description="Train a classifier with transformers' Trainer.")
    parser.add_argument("--epochs", type=int, default=5, help="default: %(default)s")
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder, num_train_epochs=options.epochs, per_device_train_batch_size=50,
            learning_rate=1e-2, use_cpu=True, report_to="none", save_strategy="no",
            dataloader_pin_memory=False, seed=0,
        )  # fmt: skip
        held_out = examples(500, seed=2)
        trainer = Trainer(Model(Config()), settings, train_dataset=examples(1000, seed=1))
        trainer.train()
        scores = trainer.predict(held_out).predictions
        trainer.save_model(folder)
        with torch.no_grad():
            x, labels = sequences(500, seed=2)
            again = Model.from_pretrained(folder).eval()(x).logits
    if not torch.allclose(torch.tensor(scores), again, atol=1e-5):
        print("FAILED: the saved model answers otherwise than the trained one")
        return 1
    return verdict((again.argmax(1) == labels).double().mean().item())


if __name__ == "__main__":
    sys.exit(main())
