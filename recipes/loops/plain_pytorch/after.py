"""A training loop in plain PyTorch; its argument is the folder that ../make_data.py wrote."""

import argparse
from pathlib import Path

import pandas as pd
import torch
from cfaug import CounterfactualDataset
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

parser = argparse.ArgumentParser()
parser.add_argument("data", type=Path)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--workers", type=int, default=0)
parser.add_argument("--seed", type=int, default=0)


def network(classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 4 * 4, classes),
    )  # fmt: skip


@torch.inference_mode()
def evaluate(net: nn.Module, test: ImageFolder) -> None:
    net.eval()
    right = torch.cat([net(images).argmax(1) == labels for images, labels in DataLoader(test, 256)])
    colours = [Path(path).stem.split("-")[1] for path, _ in test.samples]
    groups = pd.Series(right.double().numpy()).groupby([test.targets, colours]).mean()
    print(f"average {right.double().mean():.3f} worst group {groups.min():.3f}")


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    augment = transforms.Compose([transforms.RandomCrop(8, padding=1), transforms.ToTensor()])
    train = ImageFolder(args.data / "train", augment)
    test = ImageFolder(args.data / "test", transforms.ToTensor())
    net = network(len(train.classes))
    train = CounterfactualDataset(train, args.data / "counterfactuals", p=0.5, seed=args.seed)
    loader = DataLoader(train, 32, shuffle=True, num_workers=args.workers)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for epoch in range(args.epochs):
        train.set_epoch(epoch)
        net.train()
        for images, labels in loader:
            loss = nn.functional.cross_entropy(net(images), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        print(f"epoch {epoch} loss {loss.item():.3f}")
    evaluate(net, test)


if __name__ == "__main__":
    main(parser.parse_args())
