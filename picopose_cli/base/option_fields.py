"""Options as dataclass fields: help, range and form of an option are metadata of its field.

The command line, the README's reference, the range check and the conversion of options to JSON and to arguments are
made from this metadata.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from picopose_cli.base.errors import PicoPoseError

T = TypeVar("T")
REQUIRED: Any = MISSING
"""Default of an option that has none."""
_METADATA_KEY = "option"


@dataclass(frozen=True)
class OptionInfo:
    """Metadata of an option's field; see `option`."""

    help: str
    value: str
    default_text: str
    choices: tuple[str, ...]
    minimum: float | None
    below: float | None
    positive: bool
    argument: bool


def option(
    default: T,
    help: str,
    *,
    value: str = "",
    default_text: str = "",
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    below: float | None = None,
    positive: bool = False,
    argument: bool = False,
) -> T:
    """Return the field of an option or, with `argument`, of a positional argument.

    The field's type decides the form: bool is a flag, a tuple is a list, written 1,5 for an option. `value` is the
    placeholder of the value in the help, `default_text` describes a default that is not a constant. Ranges: one of
    `choices`, at least `minimum`, less than `below`, `positive`; they apply to each item of a list.
    """
    info = OptionInfo(help, value, default_text, choices, minimum, below, positive, argument)
    return field(default=default, metadata={_METADATA_KEY: info})


@dataclass(frozen=True)
class OptionField:
    """An option of a dataclass: name and type of its field, default (REQUIRED: none) and metadata."""

    name: str
    type: Any
    default: Any
    info: OptionInfo

    @property
    def flag(self) -> str:
        """The option on the command line, `--data-dir`."""
        return _flag(self.name)

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is REQUIRED

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        return self.type is bool

    @property
    def item_type(self) -> Any:
        """Type of the items of a list; None: no list."""
        return get_args(self.type)[0] if get_origin(self.type) is tuple else None

    @property
    def declaration(self) -> str:
        """The option with its opposite, where it is a switch that is on by default."""
        return f"{self.flag}/--no-{self.flag[2:]}" if self.is_switch and self.default else self.flag

    @property
    def value(self) -> str:
        """Placeholder of the value in the help: the choices, or for example DIR; empty for a switch."""
        if self.info.argument:
            return self.name.upper()
        kinds = {self.type, *get_args(self.type)}
        number = "N" if int in kinds else "X" if float in kinds else ""
        return self.info.value or "|".join(self.info.choices) or number

    @property
    def default_text(self) -> str:
        """The default as the help shows it; empty where there is nothing to show."""
        if self.info.default_text:
            return self.info.default_text
        if self.is_switch:
            return self.flag[2:] if self.default else ""
        return "" if self.required or self.default in (None, ()) else f"{self.default}"

    @property
    def help(self) -> str:
        """The help text, with the default at its end."""
        return self.info.help + (f" [default: {self.default_text}]" if self.default_text else "")

    def write(self, value: Any) -> list[str]:
        """Return the arguments that give the option a value."""
        if self.info.argument:
            return [str(item) for item in value] if self.item_type else [str(value)]
        if self.is_switch:
            return [self.flag if value else f"--no-{self.flag[2:]}"]
        return [self.flag, value_text(value)]

    def parse(self, value: Any) -> Any:
        """Return the field's value from that of the command line: a list is text there, or a Python list.

        Raises PicoPoseError when the text is not a list of such items.
        """
        if not self.item_type:
            return value
        items = filter(str.strip, value.split(",")) if isinstance(value, str) else value
        try:
            return tuple(self.item_type(item) for item in items)
        except ValueError as error:
            raise PicoPoseError(f"{self.flag} {value!r} is invalid: use numbers like 1,5,12") from error


def option_fields(options_type: Any) -> tuple[OptionField, ...]:
    """Return the options of a dataclass in the order of its fields."""
    types = get_type_hints(options_type)
    return tuple(
        OptionField(one.name, types[one.name], one.default, one.metadata[_METADATA_KEY]) for one in fields(options_type)
    )


def require(condition: bool, what: str, fix: str) -> None:
    """Raise PicoPoseError unless a condition on several options holds."""
    if not condition:
        raise PicoPoseError(what, fix=fix)


def check_ranges(options: Any) -> None:
    """Check each value of an option dataclass, except None; raises PicoPoseError for the first one out of range."""
    for one in fields(options):
        info, value = one.metadata[_METADATA_KEY], getattr(options, one.name)
        items = value if isinstance(value, tuple) else () if value is None else (value,)
        for problem in (problem for item in items for problem in _problems(info, item)):
            raise PicoPoseError(f"{_flag(one.name)} {value_text(value)} is invalid: {problem}")


def _problems(info: OptionInfo, value: Any) -> Iterator[str]:
    if info.choices and value not in info.choices:
        yield f"use {', '.join(info.choices[:-1])} or {info.choices[-1]}"
    if info.positive and not value > 0:
        yield "must be positive"
    if info.minimum is not None and not value >= info.minimum:
        yield f"must be at least {info.minimum}"
    if info.below is not None and not value < info.below:
        yield f"must be less than {info.below}"


def value_text(value: Any) -> str:
    """Return a value as it is written on the command line, a list as 1,5."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def options_record(options: Any) -> dict[str, Any]:
    """Return options as they are stored in reports: plain JSON values, paths as text."""
    return {one.name: _plain(getattr(options, one.name)) for one in fields(options)}


def command_line(options: Any) -> list[str]:
    """Return the arguments that give a command these options, without options that have their default value."""
    named: list[str] = []
    positional: list[str] = []
    for one in option_fields(type(options)):
        value = getattr(options, one.name)
        if one.required or value != one.default:
            (positional if one.info.argument else named).extend(one.write(value))
    return [*named, "--", *positional] if positional else named


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
