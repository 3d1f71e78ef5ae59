"""The command line: each command resolves a configuration and calls one stage.

Exit codes: 0 done, 1 a failure the message explains, 2 wrong usage or configuration. Results go to standard output, progress and
messages to standard error. Heavy modules are imported by the commands that need them.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cfaug.command_line import STAGES, make_parser, overrides_of
from cfaug.completion import completion_script
from cfaug.errors import CfaugError, UsageError
from cfaug.shipped_recipes import copy_shipped, shipped_names, shipped_recipes

if TYPE_CHECKING:
    from cfaug.stages import Run


def _stage(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    from cfaug.config import load_recipe
    from cfaug.data.files import expand
    from cfaug.recipe_file import dump_yaml

    overrides = overrides_of(rest)
    if arguments.seed is not None:
        overrides.append(f"--seed={arguments.seed}")
    photos = arguments.photos if arguments.command == "demo" else None
    given = expand(arguments.recipe or shipped_recipes()["demo" if photos is None else "demo_photos"])
    if photos is not None:
        from cfaug.stages.demo_photos import photo_settings

        overrides = photo_settings(given, photos, overrides)
    there = given if (given / "config.yaml").exists() else None
    recipe = load_recipe(given if there is None else there / "config.yaml", overrides)
    if arguments.print_config:
        _print(dump_yaml(recipe.to_dict()).removesuffix("\n"), recipe.to_dict(), arguments.json)
        return 0
    from cfaug.decode.diffusion import distributed
    from cfaug.stages import open_run
    from cfaug.stages.ranks import SHARED

    name = arguments.command
    sharing = name == "generate" and recipe.generate.engine in SHARED
    together = name == "fit" or (name == "train" and recipe.train.mode == "finetune") or sharing
    if distributed.several() and not together:
        raise UsageError(
            f"`cfaug {name}` is one process, but torchrun started several; start `cfaug fit`, `cfaug train` with train.mode finetune, or "
            "`cfaug generate` with --generate.engine=torchrun, with it, and the rest without"
        )
    with open_run(
        recipe,
        arguments.out or there or Path("shards") / recipe.name,
        overwrite=arguments.overwrite,
        keep_model=name in ("plan", "generate"),
        sharing=sharing,
        progress=not arguments.no_progress,
    ) as run:
        text, content = _result(name, run)
        if run.leads or sharing:  # any other process of a fit only helps; the first one speaks
            _print(text, content, arguments.json)
    return 0


def _print(text: str, content: Any, as_json: bool) -> None:
    sys.stdout.write((json.dumps(content, indent=1, sort_keys=True, default=str) if as_json else text) + "\n")


def _result(name: str, run: Run) -> tuple[str, Any]:
    """Run the stage ``name``; what it has to say, as text and as JSON."""
    from cfaug import stages
    from cfaug.judge.tables import format_table

    if name in ("demo", "run"):
        page, rows = stages.run_recipe(run), stages.train(run)
        found = stages.advice(run.inputs, rows)
        told = _guessed(run) + ("" if found is None else f"\n\n{found}")
        return f"\n{format_table(rows)}{told}\n\nresults  {run.out / 'results.jsonl'}\nreport   {page}", rows
    if name == "diagnose":
        diagnosis = stages.diagnose(run)
        return "\n".join(diagnosis["text"]), diagnosis
    if name == "discover":
        findings = stages.discover(run)
        return "\n".join(findings.text), findings.to_json()
    if name == "fit":
        digest = stages.fit_with_gate(run).digest
        return f"model {digest[:12]} in {run.out / 'model'}", {"model": digest}
    if name == "plan":
        plan = stages.plan(run)
        nulls, shards = plan.summary.nulls, len(plan.shards())
        text = f"{len(plan)} rows ({nulls} null interventions) in {shards} shards, plan {plan.digest[:12]}"
        return text, {"rows": len(plan), "null": nulls, "shards": shards, "plan": plan.digest}
    if name == "generate":
        done = stages.generate(run)
        parts = [f"{done.retried} retried"] if done.retried else []
        if done.written:
            written = f"{done.written} written now ({done.images} images, {done.images_per_second:.0f} per second)"
            parts = [written, f"{done.skipped} there before", *parts]
        elif done.complete:
            parts = ["all there before, nothing to do", *parts]
        if not done.complete:
            parts.append("others still to come")
        return f"{done.shards} shards in {done.directory}: {', '.join(parts)}", vars(done)
    if name == "train":
        rows = stages.train(run)
        return f"{format_table(rows)}{_guessed(run)}", rows
    if name == "evaluate":
        figures = {key: value for key, value in stages.evaluate(run).figures.items() if key != "rows"}
        return json.dumps(figures, indent=1), figures
    page = stages.report(run)
    return str(page), {"report": str(page)}


def _guessed(run: Run) -> str:
    from cfaug.stages.reporting import pseudo_groups

    found = pseudo_groups(run.recipe)
    return f"\n\n{found}" if found else ""


def _verify(arguments: argparse.Namespace) -> int:
    from cfaug.stages import regenerate_run, verify_run

    if arguments.regenerate is not None and arguments.regenerate < 1:
        raise UsageError(f"--regenerate: expected how many samples to make again, got {arguments.regenerate}; write 20")
    report = verify_run(arguments.directory)
    content: dict[str, Any] = dataclasses.asdict(report)
    text, ok = str(report), report.ok
    if ok and arguments.regenerate is not None:
        again = regenerate_run(
            arguments.directory, arguments.regenerate, arguments.seed, not arguments.no_progress, arguments.tolerance
        )
        content["regenerated"] = {**dataclasses.asdict(again), "ok": again.ok}
        text, ok = f"{text}\n{again}", again.ok
    _print(text, {**content, "ok": ok}, arguments.json)
    return 0 if ok else 1


def _inspect(arguments: argparse.Namespace) -> int:
    from cfaug.data.files import expand
    from cfaug.offline.inspect.contact_sheet import contact_sheet
    from cfaug.offline.inspect.inspection import inspect_shards
    from cfaug.stages.run_directory import shards_of

    place = shards_of(arguments.directory)
    found = inspect_shards(place, progress=not arguments.no_progress)
    text = str(found)
    if arguments.contact_sheet:
        sheet = contact_sheet(place, expand(arguments.contact_sheet), seed=arguments.seed)
        text += f"\n\ncontact sheet  {sheet}"
    _print(text, found.to_json(), arguments.json)
    return 0


def _audit(arguments: argparse.Namespace) -> int:
    from cfaug.stages.audit import audit_run
    from cfaug.stages.audited_models import Told

    if arguments.against and not arguments.model:
        raise UsageError("--against compares two models: expected --model as well, got none; give both")
    if arguments.images < 2:
        raise UsageError(f"--images: expected how many sources to ask about, got {arguments.images}; write 1000")
    classes = None if arguments.classes is None else tuple(name.strip() for name in arguments.classes.split(","))
    found = audit_run(
        arguments.directory,
        [name for name in (arguments.model, arguments.against) if name],
        Told(arguments.architecture, arguments.normalization, classes),
        arguments.images,
        arguments.seed,
        not arguments.no_progress,
    )
    _print(str(found), found.to_json(), arguments.json)
    return 0


def _review(arguments: argparse.Namespace) -> int:
    from cfaug.stages.review import agreement, review_page

    if arguments.pairs < 1:
        raise UsageError(f"--pairs: expected how many pairs to show, got {arguments.pairs}; write 200")
    if arguments.decisions:
        found = agreement(arguments.directory, arguments.decisions)
        _print(str(found), dataclasses.asdict(found), arguments.json)
        return 0
    page = review_page(arguments.directory, arguments.pairs, arguments.seed, not arguments.no_progress)
    _print(
        f"{page}\nOpen it in a browser, save decisions.json, then: cfaug review {arguments.directory} --decisions decisions.json",
        {"page": str(page)},
        arguments.json,
    )
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from cfaug.stages.exported import export_edits

    found = export_edits(arguments.directory, arguments.edits, not arguments.no_progress)
    _print(
        f"{found}\nEdit the images, save each under its file_name beside a copy of the table, then: cfaug import {arguments.directory} EDITS",
        dataclasses.asdict(found),
        arguments.json,
    )
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from cfaug.stages.imported import import_edits

    found = import_edits(
        arguments.directory, arguments.edits, arguments.overrides, arguments.overwrite, not arguments.no_progress
    )
    _print(str(found), dataclasses.asdict(found), arguments.json)
    return 0


def _suspect(arguments: argparse.Namespace) -> int:
    from cfaug.config import load_recipe
    from cfaug.data.files import expand
    from cfaug.stages.suspicion import suspect

    recipe = load_recipe(arguments.recipe, arguments.overrides, labels_only=True)
    found = suspect(recipe, expand(arguments.out or Path("suspects") / recipe.name), not arguments.no_progress)
    _print(str(found), found.to_json(), arguments.json)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from cfaug.stages.doctor import examine

    found = examine(arguments.recipe, arguments.overrides)
    _print(str(found), found.to_json(), arguments.json)
    refused = next((line.found for line in found.verdicts if line.verdict == "refused"), None)
    if refused is not None:  # as the run would say it
        print(f"cfaug: {refused}", file=sys.stderr)
    return found.exit_code


def _compare(arguments: argparse.Namespace) -> int:
    from cfaug.data.files import expand
    from cfaug.judge.accuracy import read_results
    from cfaug.judge.tables import format_table

    found = {}
    for run in arguments.runs:
        path = expand(run)
        found[run] = read_results(path / "results.jsonl" if path.is_dir() else path)
    text = "\n\n".join(f"{run}\n{format_table(rows)}" for run, rows in found.items())
    if arguments.out:
        from cfaug.judge.report import ReportData, write_report

        text += f"\n\n{write_report(expand(arguments.out), ReportData(title='Runs side by side', compared=found))}"
    _print(text, found, arguments.json)
    return 0


def _recipes(arguments: argparse.Namespace) -> int:
    if arguments.action == "ls":
        _print("\n".join(shipped_names()), sorted(shipped_names()), arguments.json)
        return 0
    target = copy_shipped(arguments.name)
    _print(str(target), {"recipe": str(target)}, arguments.json)
    return 0


def _completion(arguments: argparse.Namespace) -> int:
    from cfaug.config import option_names

    settings = dict.fromkeys((*STAGES, "demo", "doctor", "suspect", "import"), option_names())
    sys.stdout.write(completion_script(arguments.shell, make_parser(), settings))
    return 0


_OTHERS = {
    "completion": _completion,
    "audit": _audit,
    "suspect": _suspect,
    "review": _review,
    "export": _export,
    "import": _import,
    "verify": _verify,
    "inspect": _inspect,
    "doctor": _doctor,
    "compare": _compare,
    "recipes": _recipes,
}


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as a scheduler sends it before it takes the machine away: the end of Ctrl-C, with its own exit code."""


def _terminated(*_: Any) -> NoReturn:
    raise _Terminated


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):  # a name of a class may be one that this terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if threading.current_thread() is not threading.main_thread():
        return _command(argv)
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        return _command(argv)
    finally:
        signal.signal(signal.SIGTERM, before)


def _command(argv: Sequence[str] | None) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("cfaug").setLevel(logging.INFO)
    try:
        arguments, rest = make_parser().parse_known_args(argv)
        if arguments.command in _OTHERS:
            checks = arguments.command in ("doctor", "suspect") and arguments.recipe is not None
            if rest and not (checks or arguments.command == "import"):
                raise UsageError(
                    f"`cfaug {arguments.command}` does not take {rest[0]!r}; see `cfaug {arguments.command} --help`"
                )
            arguments.overrides = overrides_of(rest)
            return _OTHERS[arguments.command](arguments)
        return _stage(arguments, rest)
    except CfaugError as error:
        sys.stderr.write(f"cfaug: {error}\n")
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        sys.stderr.write("cfaug: interrupted; what is committed stays, and the same command continues\n")
        return 143 if isinstance(interrupt, _Terminated) else 130
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (the reader of our output has gone)
        return 1
    except OSError as error:
        sys.stderr.write(
            f"cfaug: {error.filename or 'the system'}: {error.strerror or error}; free space or mend the path, then run the same command again\n"
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
