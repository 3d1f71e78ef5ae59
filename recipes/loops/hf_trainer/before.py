"""Hugging Face's Trainer on a datasets.Dataset with an image column, and a tiny ConvNeXt from its configuration (no download).

Its argument is the folder that ../make_data.py wrote.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import load_dataset
from torchvision.transforms import v2
from transformers import ConvNextConfig, ConvNextForImageClassification, Trainer, TrainingArguments, set_seed

parser = argparse.ArgumentParser()
parser.add_argument("data", type=Path)
parser.add_argument("--epochs", type=int, default=15)
parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> None:
    set_seed(args.seed)
    files = {split: f"{args.data}/{split}/**" for split in ("train", "test")}
    # image, and the columns of metadata.csv
    dataset = load_dataset("imagefolder", data_files=files).class_encode_column("digit")
    to_tensor = v2.Compose(
        [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.25] * 3, [0.3] * 3)]
    )

    def preprocess(batch: dict) -> dict:
        return {"pixel_values": [to_tensor(image) for image in batch["image"]], "labels": batch["digit"]}

    colours = dataset["test"]["colour"]
    train = dataset["train"].with_transform(preprocess)
    test = dataset["test"].with_transform(preprocess)
    classes = dataset["train"].features["digit"].num_classes
    config = ConvNextConfig(patch_size=2, num_stages=2, hidden_sizes=[32, 64], depths=[1, 1], num_labels=classes)
    model = ConvNextForImageClassification(config)

    def compute_metrics(prediction) -> dict[str, float]:
        right = (prediction.predictions.argmax(1) == prediction.label_ids).astype(float)
        groups = pd.Series(right).groupby([prediction.label_ids, np.asarray(colours)]).mean()
        return {"average": right.mean(), "worst_group": groups.min()}

    with tempfile.TemporaryDirectory() as output:
        settings = TrainingArguments(
            output, num_train_epochs=args.epochs, per_device_train_batch_size=32, per_device_eval_batch_size=256,
            learning_rate=2e-3, seed=args.seed, use_cpu=True, remove_unused_columns=False, report_to="none",
            save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model, settings, train_dataset=train, eval_dataset=test, compute_metrics=compute_metrics)
        trainer.train()
        found = trainer.evaluate()
    print(f"average {found['eval_average']:.3f} worst group {found['eval_worst_group']:.3f}")


if __name__ == "__main__":
    main(parser.parse_args())
