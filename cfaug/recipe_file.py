"""Groups of settings: frozen dataclasses whose types and ranges stand on the fields, and the YAML they are read from.

A value that does not fit raises UsageError in one line: which setting, what it expects, what it got, what to do.
The YAML is that of a recipe: true and false are the only booleans and numbers are decimal, so that ``no``, ``on``, ``01``, ``12:30`` and
``2020-01-01`` stay the text that they are in a table of attributes. (YAML 1.1 reads False, True, 1, 750 and a date.)
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, field, fields, is_dataclass
from functools import wraps
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml
from pydantic import ConfigDict, Field, Strict, StrictFloat, StrictInt, StrictStr, ValidationError
from pydantic.dataclasses import dataclass as validated

from cfaug.errors import UsageError, near, one_line, shown

T = TypeVar("T")

MAX_SEED = (1 << 53) - 1  # exact in every reader of JSON, and a seed to torch and numpy

Count = Annotated[int, Strict(), Field(ge=1)]
Number = Annotated[int, Strict(), Field(ge=0)]
Seed = Annotated[int, Strict(), Field(ge=0, le=MAX_SEED)]
Share = Annotated[float, Strict(), Field(ge=0, le=1)]
Finite = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Flag = Annotated[bool, Strict()]
Category = StrictStr | StrictInt | Annotated[StrictFloat, Field(allow_inf_nan=False)]

_WORDS = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("text", "texts"),
    type(None): ("null", "null"),
}


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def settings(name: str) -> Callable[[type[T]], type[T]]:
    """Make a class a frozen dataclass that checks its fields; ``name`` is its group in a recipe ("" for the recipe itself)."""

    def decorate(cls: type[T]) -> type[T]:
        made: Any = validated(frozen=True, config=ConfigDict(extra="forbid"))(cls)
        init = made.__init__

        @wraps(init)
        def checked(self: Any, *args: Any, **kwargs: Any) -> None:
            try:
                init(self, *args, **kwargs)
            except ValidationError as error:
                raise UsageError(_refusal(made, name, error)) from None

        made.__init__ = checked
        return made  # type: ignore[no-any-return]

    return decorate


def field_types(kind: Any) -> dict[str, Any]:
    """Field -> its type, ranges included."""
    return get_type_hints(kind, include_extras=True)


def option_names(kind: Any, prefix: str = "") -> list[str]:
    """Every dotted name of a setting (``train.epochs``)."""
    names: list[str] = []
    for key, hint in field_types(kind).items():
        names += option_names(hint, f"{prefix}{key}.") if is_dataclass(hint) else [prefix + key]
    return names


# -- words ---------------------------------------------------------------------------------------------------------


def expected(hint: Any, several: bool = False) -> str:
    """What a type with its ranges allows, in words: ``a whole number of at least 1``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return expected(arguments[0], several) + _bounds(arguments[1:])
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (Union, types.UnionType):
        words = dict.fromkeys(expected(one, several) for one in arguments)
        if _WORDS[float][several] in words:  # a whole number is one of them
            words.pop(_WORDS[int][several], None)
        return " or ".join(words)
    if origin is list:
        return f"a list of {expected(arguments[0], True)}"
    if origin is dict:
        return "a mapping of names" + (
            "" if "JsonValue" in str(arguments[1]) else f" to {expected(arguments[1], True)}"
        )
    return _WORDS[hint][several] if hint in _WORDS else "a group of settings"


def _bounds(metadata: tuple[Any, ...]) -> str:
    found = {
        name: getattr(rule, name)
        for one in metadata
        for rule in getattr(one, "metadata", (one,))
        for name in ("ge", "le", "multiple_of", "min_length")
        if hasattr(rule, name)
    }
    multiple = f" divisible by {found['multiple_of']}" if "multiple_of" in found else ""
    if "min_length" in found:
        return f", at least {found['min_length']}"
    if "ge" in found and "le" in found:
        return f"{multiple} from {found['ge']:g} to {found['le']:.16g}"
    return multiple + (f" of at least {found['ge']:g}" if "ge" in found else "")


def _refusal(kind: type, group: str, error: ValidationError) -> str:
    """The line for the first setting that does not fit."""
    found = error.errors(include_url=False)
    first = found[0]
    said = (first.get("ctx") or {}).get("error")
    if isinstance(said, UsageError):  # a rule of a group's own
        return str(said)
    # among the members of a union the one that came furthest knows best what is wrong
    same = [one for one in found if one["loc"][:2] == first["loc"][:2]]
    deepest = max(same, key=lambda one: len(one["loc"]))
    names, hint, default = [group] if group else [], kind, None  # type: list[str], Any, Any
    for part in deepest["loc"]:
        while get_origin(hint) is Annotated:
            hint = get_args(hint)[0]
        if is_dataclass(hint):
            known = field_types(hint)
            if part not in known:
                return f"unknown setting {'.'.join([*names, str(part)])!r}; {near(str(part), known)}"
            default = _default(hint, str(part))
            names, hint = [*names, str(part)], known[str(part)]
        elif get_origin(hint) in (Union, types.UnionType):
            inside = [one for one in get_args(hint) if get_origin(one) is dict]
            hint = inside[0] if str(part).startswith("dict") and inside else hint
        elif get_origin(hint) is dict and part != "[key]":
            names, hint, default = [*names, str(part)], get_args(hint)[1], None
        elif get_origin(hint) is list:
            hint = get_args(hint)[0]
    value, setting = deepest["input"], ".".join(names)
    if "JsonValue" in str(hint):
        return f"{setting}: expected text, numbers, lists and mappings, got {shown(value)}; write it so"
    got = "nothing" if value is None else shown(value)
    return f"{setting}: expected {expected(hint)}, got {got}; {_cure(hint, value, default)}"


def _default(kind: Any, name: str) -> Any:
    found: Any = next(one for one in fields(kind) if one.name == name)
    made = found.default_factory() if found.default_factory is not MISSING else found.default
    return getattr(made, "default", made)  # pydantic wraps some of them


def _cure(hint: Any, value: Any, default: Any) -> str:
    words = expected(hint)
    if get_origin(hint) is Literal:
        return near(str(value), get_args(hint))
    if value is not None and not isinstance(value, list | dict):
        if words.startswith("a list"):
            return f"write [{value}]"
        if "text" in words and not isinstance(value, str):
            return f"quote it: '{str(value).lower() if isinstance(value, bool) else value}'"
        if "true or false" in words:
            return "write true or false"
    if default not in (None, [], {}, "", MISSING) and not is_dataclass(type(default)):
        return f"write for example {dump_yaml(default, flow=True)}"
    return "write it so, or remove the line"


# -- YAML ----------------------------------------------------------------------------------------------------------

_SCALARS = (
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("tag:yaml.org,2002:int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"^(?:[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+.0123456789",
    ),
)
_KEPT = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if (name := (key.tag, key.value)) in lines:
                    said = f"key {key.value!r} is given twice, in lines {lines[name]} and {line}"
                    raise yaml.constructor.ConstructorError(None, None, said, key.start_mark)
                lines[name] = line
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """It quotes text that YAML 1.1 or our own reader would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag in _KEPT]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))
    _Dumper.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))


def read_yaml(text: str, where: object) -> Any:
    """The content of YAML text; UsageError names ``where`` and the line for a mistake or for a key that is given twice."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        reason = one_line(getattr(error, "problem", None) or error)
        cure = "keep one of them" if "given twice" in reason else "check indentation and quotes"
        raise UsageError(f"{where} is not valid YAML{line}: {reason}; {cure}") from None


def dump_yaml(content: Any, flow: bool = False) -> str:
    """YAML text that :func:`read_yaml` and any reader of YAML 1.1 read back as ``content``; ``flow``: on one line."""
    text = yaml.dump(
        content, Dumper=_Dumper, sort_keys=False, default_flow_style=flow, width=10_000, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...") if flow else text


# -- nested mappings as they are read, before they are checked ---------------------------------------------


def refuse_keys(content: Mapping[Any, Any], kind: type, removed: Mapping[str, str], where: str = "") -> None:
    """Raise UsageError for the first key of nested mappings that ``kind`` does not have, and for what was ``removed``."""
    known = field_types(kind)
    for key, value in content.items():
        name = f"{where}{key}"
        _refuse_removed(name, value, removed)
        if key not in known:
            raise UsageError(f"unknown key {name!r} in the recipe; {near(str(key), known)}")
        if is_dataclass(known[key]):
            if not isinstance(value, Mapping):
                raise UsageError(f"{name}: expected a group of settings, got {value!r}; indent them below it")
            refuse_keys(value, known[key], removed, f"{name}.")


def _refuse_removed(name: str, value: Any, removed: Mapping[str, str]) -> None:
    for past in (name, f"{name}: {value}" if isinstance(value, str) else name):
        if past in removed:
            raise UsageError(f"{past} was removed; {removed[past]}")


def set_option(content: dict[str, Any], kind: type, override: str, removed: Mapping[str, str]) -> None:
    """Lay ``a.b=value`` over nested mappings of settings of ``kind``; text needs no quotes, everything else is YAML."""
    name, equals, text = override.partition("=")
    known = option_names(kind)
    inside = next((k for k in known if k.startswith(name + ".")), None)
    if inside:
        raise UsageError(f"--{name} is a group of settings; set one of them, for example --{inside}=VALUE")
    _refuse_removed(name, None, removed)
    option = next((k for k in known if name == k or name.startswith(k + ".")), None)  # attributes.kinds.age: an entry
    hint: Any = kind
    for part in option.split(".") if option else ():
        hint = field_types(hint)[part]
    if option is None or (name != option and "dict[" not in str(hint)):
        raise UsageError(f"unknown option --{name}; {near(name, known)}")
    if not equals:
        raise UsageError(f"option --{name} needs a value: write --{name}=VALUE")
    *groups, leaf = option.split(".")
    for group in groups:
        content = content.setdefault(group, {})
    if name != option:
        entries = found if isinstance(found := content.get(leaf), dict) else {}
        content[leaf] = {**entries, name[len(option) + 1 :]: read_yaml(text, f"--{name}")}
        return
    plain = hint is str or (get_origin(hint) is types.UnionType and str in get_args(hint))
    quoted = text[:1] in ("'", '"') or (text in ("null", "~") and hint is not str)
    content[leaf] = text if plain and not quoted else read_yaml(text, f"--{name}")
    _refuse_removed(option, content[leaf], removed)
