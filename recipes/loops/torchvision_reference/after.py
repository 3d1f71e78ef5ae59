"""A training script in the style of torchvision's references/classification/train.py; --data-path: see ../make_data.py."""

import argparse
import os
import time

import torch
import torchvision
from cfaug import RandomCounterfactual
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from torchvision.transforms import v2


def train_one_epoch(model, criterion, optimizer, data_loader, device, epoch):
    model.train()
    start = time.time()
    for image, target in data_loader:
        image, target = image.to(device), target.to(device)
        loss = criterion(model(image), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"Epoch: [{epoch}] loss: {loss.item():.3f} img/s: {len(data_loader.dataset) / (time.time() - start):.0f}")


def evaluate(model, data_loader, device):
    model.eval()
    correct = []
    with torch.inference_mode():
        for image, target in data_loader:
            correct.append(model(image.to(device)).argmax(1).cpu() == target)
    correct = torch.cat(correct).double()
    groups = {}
    for (path, target), right in zip(data_loader.dataset.samples, correct.tolist()):
        groups.setdefault((target, path.split("-")[-1]), []).append(right)
    worst = min(sum(found) / len(found) for found in groups.values())
    print(f"average {correct.mean():.3f} worst group {worst:.3f}")


def load_data(traindir, valdir, args):
    dataset = torchvision.datasets.ImageFolder(
        traindir,
        v2.Compose(
            [
                RandomCounterfactual(os.path.join(args.data_path, "counterfactuals"), p=0.5),
                v2.RandomCrop(args.crop_size, padding=1),
                v2.PILToTensor(),
                v2.ToDtype(torch.float, scale=True),
                v2.Normalize(mean=[0.25] * 3, std=[0.3] * 3),
                v2.ToPureTensor(),
            ]
        ),
    )
    dataset_test = torchvision.datasets.ImageFolder(
        valdir,
        v2.Compose(
            [
                v2.PILToTensor(),
                v2.ToDtype(torch.float, scale=True),
                v2.Normalize(mean=[0.25] * 3, std=[0.3] * 3),
                v2.ToPureTensor(),
            ]
        ),
    )
    return dataset, dataset_test, RandomSampler(dataset), SequentialSampler(dataset_test)


def main(args):
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    dataset, dataset_test, train_sampler, test_sampler = load_data(
        os.path.join(args.data_path, "train"), os.path.join(args.data_path, "test"), args
    )
    data_loader = DataLoader(dataset, args.batch_size, sampler=train_sampler, num_workers=args.workers)
    data_loader_test = DataLoader(dataset_test, args.batch_size, sampler=test_sampler, num_workers=args.workers)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 4 * 4, len(dataset.classes)),
    ).to(device)  # fmt: skip
    criterion = nn.CrossEntropyLoss(label_smoothing=args.label_smoothing)
    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=0.9, weight_decay=args.weight_decay)
    lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.epochs)
    for epoch in range(args.epochs):
        train_one_epoch(model, criterion, optimizer, data_loader, device, epoch)
        lr_scheduler.step()
    evaluate(model, data_loader_test, device)


def get_args_parser():
    parser = argparse.ArgumentParser(description="PyTorch Classification Training")
    parser.add_argument("--data-path", required=True, type=str)
    parser.add_argument("--device", default="cpu", type=str)
    parser.add_argument("-b", "--batch-size", default=32, type=int)
    parser.add_argument("--epochs", default=20, type=int)
    parser.add_argument("-j", "--workers", default=0, type=int)
    parser.add_argument("--lr", default=0.05, type=float)
    parser.add_argument("--wd", "--weight-decay", default=1e-4, type=float, dest="weight_decay")
    parser.add_argument("--label-smoothing", default=0.0, type=float)
    parser.add_argument("--crop-size", default=8, type=int)
    parser.add_argument("--seed", default=0, type=int)
    return parser


if __name__ == "__main__":
    main(get_args_parser().parse_args())
