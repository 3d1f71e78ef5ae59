"""A completion script for bash or zsh, made from the parser: commands, options, shipped recipes, and settings as ``--a.b=``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from shlex import quote

SHELLS = ("bash", "zsh")
# the words of a command stand in one line each; `=` of a setting is typed on, and whatever is no option is a file
_BASH = """\
_cfaug() {{
    local current command words
    current="${{COMP_WORDS[COMP_CWORD]}}"
    command="${{COMP_WORDS[1]}}"
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        words={commands}
    else
        case "$command" in
{cases}
            *) words="" ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    [[ "${{COMPREPLY[0]}}" == *= ]] && compopt -o nospace 2>/dev/null
    return 0
}}
complete -o default -F _cfaug cfaug
"""


def completion_script(shell: str, parser: argparse.ArgumentParser, settings: Mapping[str, list[str]]) -> str:
    """The script; ``settings``: command -> the dotted settings that it takes."""
    commands = next(a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    cases = []
    for name, command in commands.items():
        words = [option for action in command._actions for option in action.option_strings if option.startswith("--")]
        words += [
            str(choice) for action in command._actions if not action.option_strings for choice in action.choices or ()
        ]
        words += [f"--{setting}=" for setting in settings.get(name, ())]
        cases.append(f"            {name}) words={quote(' '.join(words))} ;;")
    script = _BASH.format(commands=quote(" ".join(commands)), cases="\n".join(cases))
    # zsh runs the same script by its own emulation
    return script if shell == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{script}"
