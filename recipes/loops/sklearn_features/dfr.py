"""Deep feature reweighting on counterfactuals: the last layer is fitted where every group has as many images.

Its argument is the folder that ../make_data.py wrote. Groups come from the records of the counterfactuals: no label is needed
that the shards do not have.

The backbone here has random weights, so that nothing is downloaded; put your pretrained one in its place.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from cfaug import CounterfactualDataset
from cfaug.train.objectives import dfr
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
    train = CounterfactualDataset(train, args.data / "counterfactuals", p=1.0, seed=args.seed)
    shown = pd.Categorical([train.attributes(i)["colour"] for i in range(len(train))]).codes
    x, y = map(torch.from_numpy, features(backbone, train))
    model = dfr(x, y, torch.tensor(shown).long(), c=0.1, subsamples=5, seed=args.seed)
    x, y = features(backbone, test)
    right = (model.predict(torch.from_numpy(x)).numpy() == y).astype(float)
    colours = [Path(path).stem.split("-")[1] for path, _ in test.samples]
    groups = pd.Series(right).groupby([y, colours]).mean()
    print(f"average {right.mean():.3f} worst group {groups.min():.3f}")


if __name__ == "__main__":
    main(parser.parse_args())
