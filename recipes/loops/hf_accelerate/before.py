"""A training loop with accelerate, on any number of processes; its argument is the folder that ../make_data.py wrote."""

import argparse
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

parser = argparse.ArgumentParser()
parser.add_argument("data", type=Path)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--seed", type=int, default=0)


def network(classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 4 * 4, classes),
    )  # fmt: skip


@torch.inference_mode()
def evaluate(accelerator: Accelerator, net: nn.Module, loader: DataLoader, test: ImageFolder) -> None:
    net.eval()
    # in the order of the data set, and without what was repeated to make the batches even
    right = [accelerator.gather_for_metrics(net(images).argmax(1) == labels) for images, labels in loader]
    right = torch.cat(right).double().cpu()
    colours = [Path(path).stem.split("-")[1] for path, _ in test.samples]
    groups = pd.Series(right.numpy()).groupby([test.targets, colours]).mean()
    accelerator.print(f"average {right.mean():.3f} worst group {groups.min():.3f}")


def main(args: argparse.Namespace) -> None:
    accelerator = Accelerator(cpu=True)
    set_seed(args.seed)
    augment = transforms.Compose([transforms.RandomCrop(8, padding=1), transforms.ToTensor()])
    train = ImageFolder(args.data / "train", augment)
    test = ImageFolder(args.data / "test", transforms.ToTensor())
    net = network(len(train.classes))
    loader, test_loader = DataLoader(train, 16, shuffle=True), DataLoader(test, 128)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    net, optimiser, loader, test_loader = accelerator.prepare(net, optimiser, loader, test_loader)
    for epoch in range(args.epochs):
        net.train()
        for images, labels in loader:
            loss = nn.functional.cross_entropy(net(images), labels)
            optimiser.zero_grad()
            accelerator.backward(loss)
            optimiser.step()
        accelerator.print(f"epoch {epoch} loss {loss.item():.3f}")
    evaluate(accelerator, net, test_loader, test)
    accelerator.end_training()


if __name__ == "__main__":
    main(parser.parse_args())
