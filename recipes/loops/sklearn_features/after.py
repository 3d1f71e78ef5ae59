"""scikit-learn on features of a frozen backbone; its argument is the folder that ../make_data.py wrote.

The backbone here has random weights, so that nothing is downloaded; put your pretrained one in its place.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from cfaug import CounterfactualDataset
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

parser = argparse.ArgumentParser()
parser.add_argument("data", type=Path)
parser.add_argument("--seed", type=int, default=0)


@torch.inference_mode()
def features(backbone: nn.Module, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) features and (N,) labels."""
    found = [(backbone(images), labels) for images, labels in DataLoader(dataset, 256)]
    x, y = (torch.cat(parts).numpy() for parts in zip(*found))
    return x, y


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    backbone = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()).eval()
    train = ImageFolder(args.data / "train", transforms.ToTensor())
    test = ImageFolder(args.data / "test", transforms.ToTensor())
    train = CounterfactualDataset(train, args.data / "counterfactuals", p=1.0, policy="append", seed=args.seed)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    model.fit(*features(backbone, train))
    x, y = features(backbone, test)
    right = (model.predict(x) == y).astype(float)
    colours = [Path(path).stem.split("-")[1] for path, _ in test.samples]
    groups = pd.Series(right).groupby([y, colours]).mean()
    print(f"average {right.mean():.3f} worst group {groups.min():.3f}")


if __name__ == "__main__":
    main(parser.parse_args())
