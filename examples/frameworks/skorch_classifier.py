"""fusedrnn.LSTM as a scikit-learn estimator, through skorch.

    pip install skorch
    python examples/frameworks/skorch_classifier.py

Ends with exit status 1 if it did not learn.
"""

from __future__ import annotations

import argparse
import sys

import torch
from rising import Classifier, sequences, verdict
from skorch import NeuralNetClassifier
from torch import nn


def main() -> int:
    parser = argparse.ArgumentParser(description="Train a classifier with skorch.")
    parser.add_argument("--epochs", type=int, default=5, help="default: %(default)s")
    options = parser.parse_args()
    torch.manual_seed(0)
    x, labels = (part.numpy() for part in sequences(1000, seed=1))
    estimator = NeuralNetClassifier(
        Classifier,
        module__hidden_size=32,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=1e-2,
        batch_size=50,
        max_epochs=options.epochs,
        iterator_train__shuffle=True,
        train_split=None,
    )
    estimator.fit(x, labels)
    x, labels = (part.numpy() for part in sequences(500, seed=2))
    return verdict(estimator.score(x, labels))


if __name__ == "__main__":
    sys.exit(main())
