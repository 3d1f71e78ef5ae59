"""What can be written on the command line: the commands, their arguments, and settings as ``--a.b=value``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from cfaug import __version__
from cfaug.completion import SHELLS
from cfaug.errors import UsageError

STAGES = {
    "run": "every stage; resumes where it stopped",
    "diagnose": "measure the confounding and say what is safe to intervene on",
    "discover": "propose edges between the attributes, and a graph to paste, with a ? at every edge to confirm",
    "fit": "fit the SCM and train the decoder",
    "plan": "decide every counterfactual",
    "generate": "write the counterfactual shards",
    "train": "train and test the listed methods",
    "evaluate": "judge the counterfactuals: composition, effectiveness, reversibility",
    "report": "write report.html",
}


class Parser(argparse.ArgumentParser):
    """One line of error, as for everything else that is wrong."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def make_parser() -> argparse.ArgumentParser:
    """Every command with its arguments."""
    parser = Parser(prog="cfaug", description="Counterfactual data augmentation that debiases image classifiers.")
    parser.add_argument("--version", action="version", version=f"cfaug {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        found.add_argument("--json", action="store_true", help="print the result as JSON")
        return found

    demo = command("demo", "the whole story on data that ships with scikit-learn")
    demo.set_defaults(recipe=None)
    demo.add_argument(
        "--photos", metavar="DIR", help="on photographs instead: a folder with metadata.csv and masks of the objects"
    )
    _run_options(demo)
    for name, text in STAGES.items():
        stage = command(name, text)
        stage.add_argument("recipe", metavar="RECIPE.yaml", help="or the directory of a run, which is gone on with")
        _run_options(stage)
    verify = command("verify", "re-read every committed byte of a run or of its shards")
    verify.add_argument("directory", metavar="DIR", help="a run, its shards, or a URL of either")
    verify.add_argument(
        "--regenerate", type=int, metavar="N", help="also make N random samples again and compare bytes"
    )
    verify.add_argument("--seed", type=int, default=0, metavar="N", help="which ones (default: 0)")
    verify.add_argument(
        "--tolerance", type=float, default=0.0, metavar="LEVELS",
        help="grey levels of 255 by which an image that is made again may differ on average, on a GPU (default: 0, the same bytes)",
    )  # fmt: skip
    inspect = command("inspect", "what a run's shards hold: counts, groups, confounding before and after")
    inspect.add_argument("directory", metavar="DIR", help="a run, its shards, or a URL of either")
    inspect.add_argument(
        "--contact-sheet", metavar="FILE.png", help="write a grid of sources and their counterfactuals"
    )
    inspect.add_argument("--seed", type=int, default=0, metavar="N", help="which sources the grid shows (default: 0)")
    for parser_ in (verify, inspect):
        parser_.add_argument("--no-progress", action="store_true", help="no progress bars")
    audit = command("audit", "what a classifier uses, asked with the run's counterfactuals")
    audit.add_argument("directory", metavar="DIR", help="a run with shards")
    audit.add_argument(
        "--model",
        metavar="FILE",
        help=".pt2, .onnx, TorchScript, .safetensors or .csv (default: the run's own classifiers)",
    )
    audit.add_argument("--against", metavar="FILE", help="a second one, to compare with the first")
    audit.add_argument(
        "--architecture", metavar="NAME", help="the net of torchvision that a safetensors file has the weights of"
    )
    audit.add_argument(
        "--normalization", default="imagenet", metavar="NAME", help="what the net expects (default: imagenet)"
    )
    audit.add_argument(
        "--classes", metavar="A,B,...", help="names of its outputs, in their order (default: the values of the target)"
    )
    audit.add_argument(
        "--images", type=int, default=1000, metavar="N", help="sources, at most, that it is asked about (default: 1000)"
    )
    audit.add_argument("--seed", type=int, default=0, metavar="N", help="which ones (default: 0)")
    audit.add_argument("--no-progress", action="store_true", help="no progress bars")
    suspect = command("suspect", "which attributes could be shortcuts, from images and labels alone")
    suspect.add_argument(
        "recipe",
        metavar="RECIPE.yaml",
        help="data, attributes.target and train.weights are read; attributes.spurious may be []",
    )
    suspect.add_argument("--out", metavar="DIR", help="where columns and collages go (default: suspects/NAME)")
    suspect.add_argument("--no-progress", action="store_true", help="no progress bars")
    review = command("review", "a page of pairs to say yes or no to, and what becomes of the answers")
    review.add_argument("directory", metavar="DIR", help="a run with shards")
    review.add_argument("--pairs", type=int, default=200, metavar="N", help="pairs on the page, at most (default: 200)")
    review.add_argument(
        "--decisions", metavar="FILE", help="what the page has saved: say how far a person agrees with the gate"
    )
    review.add_argument("--seed", type=int, default=0, metavar="N", help="which pairs (default: 0)")
    review.add_argument("--no-progress", action="store_true", help="no progress bars")
    export = command("export", "the edits that a run's plan wants, for a tool of your own")
    export.add_argument("directory", metavar="DIR", help="a run with a plan")
    export.add_argument(
        "--edits",
        metavar="FILE",
        help="the table, .jsonl or .csv; images go beside it (default: DIR/edits/edits.jsonl)",
    )
    import_ = command("import", "make shards of images that were edited elsewhere")
    import_.add_argument("directory", metavar="DIR", help="a run with a plan")
    import_.add_argument("edits", metavar="EDITS", help="a folder of edited images with edits.jsonl or edits.csv")
    import_.add_argument(
        "--overwrite", action="store_true", help="drop the model, the shards and what came of them first"
    )
    import_.epilog = "How the shards are written can be changed: --generate.workers=4, ..."
    for parser_ in (export, import_):
        parser_.add_argument("--no-progress", action="store_true", help="no progress bars")
    doctor = command("doctor", "check this installation, and a recipe's inputs")
    doctor.add_argument("recipe", metavar="RECIPE.yaml|RUN", nargs="?", help="a recipe, or the directory of a run")
    doctor.epilog = "One verdict per line: ok, warning or refused; --json has them as `verdicts`, and `starts`: whether `cfaug run` would start. With a recipe any setting can be changed, as for the stages: --train.epochs=5, ..."
    compare = command("compare", "the results of several runs side by side")
    compare.add_argument("runs", metavar="RUN", nargs="+")
    compare.add_argument("--out", metavar="PAGE.html", help="also as a page like the report")
    recipes = command("recipes", "list the shipped recipes, or copy one here to change it")
    recipes.add_argument("action", choices=["ls", "cp"])
    recipes.add_argument("name", nargs="?")
    completion = commands.add_parser("completion", help="a completion script for your shell, to be evaluated")
    completion.add_argument("shell", choices=SHELLS)
    completion.epilog = (
        'In ~/.bashrc: eval "$(cfaug completion bash)"; in ~/.zshrc, after compinit: eval "$(cfaug completion zsh)"'
    )
    return parser


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", help="output directory (default: shards/NAME)")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of model, plan and generation")
    parser.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue what is in the directory (the default)")
    again.add_argument(
        "--overwrite", action="store_true", help="start over; `plan` and `generate` keep a model that still fits"
    )
    parser.epilog = "Any setting can be changed: --train.epochs=5, --decoder.seconds=60, ... (see --print_config)"


def overrides_of(rest: Sequence[str]) -> list[str]:
    """``--a.b value`` and ``--a.b=value`` as the latter."""
    found: list[str] = []
    for word in rest:
        if word.startswith("--"):
            found.append(word)
        elif found and "=" not in found[-1]:
            found[-1] += f"={word}"
        else:
            raise UsageError(f"unexpected argument {word!r}; settings are written --a.b=value")
    return found
