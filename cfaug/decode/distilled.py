"""The distilled decoder: one network evaluation from (image, factual attributes, counterfactual attributes) to the counterfactual.

    abduct:   keep x, pa and the guide; nothing is evaluated
    predict:  x' = S(x, pa, pa', g), with S trained to answer what a fitted multi-step teacher answers (see ``student``)

Knowledge distillation (Hinton et al., 2015, arXiv 1503.02531), of a sampler into one step as in Luhman & Luhman (2021, arXiv
2101.02388); here from the factual image instead of noise, so that abduction is distilled with prediction. Where no attribute
changes the answer is the image itself, as the teacher's reversible solver says, too, and no evaluation is spent.

Not promised: anything that the teacher cannot do; a student of a confounded teacher is confounded. Nor interventions on the
target: the student has seen none (unless the target is the image's only parent).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch

from cfaug.config import DecoderConfig
from cfaug.data import AttributeDataset, Schema
from cfaug.decode import pairs
from cfaug.decode.diffusion import DiffusionDecoder
from cfaug.decode.mechanism import TrainedMechanism
from cfaug.decode.network import VelocityNet
from cfaug.decode.semantic import SemanticEncoder
from cfaug.decode.structure import CHANNELS
from cfaug.decode.student import Pairs, Student, train_student
from cfaug.decode.training import autocast, budget_seconds, forget
from cfaug.decode.views import load_framed, patch_for
from cfaug.errors import UsageError

_TAUGHT = (
    "space",
    "patch",
    "structure",
    "semantic",
    "sampler",
    "steps",
    "depth",
    "guidance",
)  # settings that are the teacher's


@dataclass(frozen=True)
class CarriedImage:
    """The student's exogenous noise: the factual image itself, with what belongs to it.

    Attributes:
        image: shape (B, c, h, w), in the working space.
        guide: structure map and semantic latent, shape (B, G, h, w).
        condition: the encoded factual attributes, shape (B, D + P).
        size: (H, W) of the source, restored by prediction.
        device: where the source was, and where prediction returns its image to.
    """

    image: torch.Tensor
    guide: torch.Tensor
    condition: torch.Tensor
    size: tuple[int, int]
    device: torch.device | str = "cpu"


def student_config(config: DecoderConfig, images: int) -> DecoderConfig:
    """The settings of a student whose teacher is trained with ``config`` on so many images: ``distil_share`` of its budget."""
    share = config.distil_share
    steps = max(1, round(config.max_steps * share)) if config.max_steps else None
    seconds = config.seconds or (None if steps else budget_seconds(images))
    return dataclasses.replace(
        config,
        kind="distilled",
        max_steps=steps,
        seconds=seconds * share if seconds else None,
        learning_rate=2 * config.learning_rate,  # the student's targets have no noise: an eighth less error, measured
    )


class DistilledDecoder(TrainedMechanism):
    """A one-evaluation image mechanism, trained from a :class:`DiffusionDecoder`.

    Args:
        schema: the attributes, as the teacher has them.
        parents: the image's parents in the causal graph.
        config: the settings; those that describe the teacher (space, patch, structure, semantic latent, sampler, depth, guidance)
            are taken from it by :meth:`fit`.
        settings: single fields of ``config`` to change.

    Raises:
        UsageError: no parents, a parent that is not in the schema, or an unknown setting.
    """

    kind = "distilled"
    _elsewhere = ("device", "compile", "checkpoint_seconds", "autoencoder")
    _untrained = "this decoder is not distilled yet; call fit(dataset, teacher) or load a saved model first"

    def __init__(
        self, schema: Schema, parents: Collection[str], config: DecoderConfig | None = None, **settings: Any
    ) -> None:
        super().__init__(schema, parents, config or DecoderConfig(kind="distilled"), settings)
        self.teacher = ""
        """Digest of the teacher."""

    @property
    def student(self) -> Student:
        """The trained network; UsageError before :meth:`fit` or :meth:`load`."""
        return cast(Student, self._network())

    # -- learning ------------------------------------------------------------------------------------------------

    def fit(
        self,
        dataset: AttributeDataset,
        teacher: DiffusionDecoder,
        seed: int = 0,
        progress: bool = True,
        *,
        checkpoint: str | Path | None = None,
        score: Callable[[DistilledDecoder], float] | None = None,
    ) -> DistilledDecoder:
        """Learn from what ``teacher`` makes of the training images.

        Args:
            dataset: the training images and attributes that the teacher was fitted on.
            teacher: fitted, of the same schema and parents.
            seed: of all randomness.
            progress: show it.
            checkpoint: directory that makes it resumable, see :meth:`DiffusionDecoder.fit`; the teacher's answers are
                kept there, too.
            score: of the decoder as it would be now, for early stopping.

        Raises:
            UsageError: the teacher has another schema, other parents or other images.
            CfaugError: the loss became NaN, or the memory does not suffice.
        """
        images = self._follow(teacher, dataset, progress)
        folder = Path(checkpoint) if checkpoint else None
        self._trained = student = self._build(seed, teacher)
        table, count = dataset.table, self.config.distil_pairs
        factual = pd.concat([table] * count)
        acted = pd.concat([pairs.drawn(table, self.schema, self.parents, seed * count + k) for k in range(count)])
        made = pairs.taught(teacher, images.repeat(count, 1, 1, 1), factual, acted, progress, folder)
        self.report = train_student(
            student,
            Pairs(images, made, self.condition.encode(factual), self.condition.encode(acted), self.teacher),
            self.space,
            self.condition.cells(factual),
            self.config,
            seed=seed,
            progress=progress,
            checkpoint=folder,
            score=self._judged(score),
        )
        return self

    @staticmethod
    def forget(checkpoint: str | Path) -> None:
        """Delete what :meth:`fit` kept in ``checkpoint``."""
        pairs.forget(Path(checkpoint))
        forget(Path(checkpoint))

    def _follow(self, teacher: DiffusionDecoder, dataset: AttributeDataset, progress: bool) -> torch.Tensor:
        """Take over what is the teacher's; returns the images, uint8 (N, C, H, W)."""
        if teacher.schema.digest != self.schema.digest or teacher.parents != self.parents:
            raise UsageError(
                f"the teacher was fitted for {', '.join(teacher.parents)} of another schema or graph than this student "
                f"({', '.join(self.parents)}); build it with DistilledDecoder(teacher.schema, teacher.parents)"
            )
        _ = teacher.learner  # one that is not fitted says so
        images, frame = load_framed(dataset, progress)
        if teacher.frame is None or (frame.channels, frame.size) != (teacher.frame.channels, teacher.frame.size):
            raise UsageError(
                f"the teacher was fitted on images of {teacher.frame}, but {frame} came; distil on the images it was fitted on"
            )
        self.config = dataclasses.replace(
            self.config, kind="distilled", **{name: getattr(teacher.config, name) for name in _TAUGHT}
        )
        self.frame, self.space, self.teacher = teacher.frame, teacher.space, teacher.digest
        return images

    def _build(self, seed: int, teacher: DiffusionDecoder | None = None) -> Student:
        patch = patch_for(self.config, self.trained_frame, self.space)
        semantic = self.config.semantic
        source = teacher.learner.encoder if teacher is not None else None
        self.config = config = dataclasses.replace(self.config, patch=patch)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = VelocityNet(
                self.space.channels,
                2 * self.condition.width,
                CHANNELS[config.structure] + semantic,
                patch,
                config.channels,
            )
            encoder = None
            if semantic:
                encoder = SemanticEncoder(self.space.channels, semantic, patch)
        if encoder is not None and source is not None:
            encoder.load_state_dict(source.state_dict())
        return Student(net, encoder).to(config.device).eval()

    # -- the three verbs -----------------------------------------------------------------------------------------

    def abduct(self, image: torch.Tensor, attributes: pd.DataFrame) -> CarriedImage:
        """Keep factual images with their attributes; no network evaluation (a semantic encoder's apart).

        Args:
            image: x, shape (B, C, H, W), float, in [-1, 1].
            attributes: B rows of *factual* values; a missing one is missing to the network, too.

        Raises:
            UsageError: another size, mode, range or number of rows than expected.
        """
        student = self.student
        with torch.inference_mode():
            x, structure = self._seen(image, attributes, student.net.multiple)
            guide = student.guide(x, structure)
        condition = self.condition.encode(attributes).to(self.config.device)
        return CarriedImage(x, guide, condition, (image.shape[2], image.shape[3]), image.device)

    def predict(
        self,
        noise: CarriedImage,
        attributes: pd.DataFrame,
        affected: Sequence[Collection[str]] | None = None,
        strength: float | None = None,
    ) -> torch.Tensor:
        """Render under given attributes: one network evaluation.

        Args:
            noise: from :meth:`abduct`.
            attributes: B rows of *counterfactual* values.
            affected: not used: the student sees both conditions, and knows what the teacher did with them.
            strength: None, or the teacher's ``config.guidance``, which has been distilled.

        Returns:
            x', shape (B, C, H, W), in [-1, 1]. Rows whose attributes have not changed are the image itself (in latents,
            what the autoencoder makes of it).

        Raises:
            UsageError: another strength.
        """
        if strength is not None and strength != self.config.guidance:
            raise UsageError(
                f"this decoder was distilled at strength {self.config.guidance:g}, but {strength:g} came; distil a teacher "
                "with that decoder.guidance, or use the teacher"
            )
        condition = self.condition.encode(attributes).to(self.config.device)
        rows = (condition != noise.condition).any(dim=1)
        image = noise.image
        with torch.inference_mode():
            if bool(rows.any()):
                with autocast(self.config):
                    made = self.student(image[rows], noise.guide[rows], noise.condition[rows], condition[rows])
                image = image.clone()
                image[rows] = made
            return self._shown(image, noise.size, noise.device)

    # -- disk ----------------------------------------------------------------------------------------------------

    def _description(self) -> dict[str, Any]:
        return {**super()._description(), "teacher": self.teacher}

    def _restore(self, content: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        student = self._build(seed=0)
        student.load_state_dict(weights)
        self.teacher, self._trained = str(content["teacher"]), student
