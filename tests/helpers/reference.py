"""The README's reference of options, made from the option dataclasses.

`python tests/helpers/reference.py` writes it into the README.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from picopose_cli import cli
from picopose_cli.base.option_fields import OptionField, option_fields

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN = "<!-- The reference is made by tests/helpers/reference.py from picopose_cli/base/options.py. -->"
END = "<!-- End of the reference. -->"


def reference() -> str:
    """Return the reference of all commands as Markdown."""
    return "\n\n".join(_command(name, command) for name, command in cli.COMMANDS.items())


def written_reference(readme: str) -> str:
    """Return the reference that a README contains."""
    return readme.split(BEGIN)[1].split(END)[0].strip()


def _command(name: str, command: cli.Command) -> str:
    fields = option_fields(cli.options_type(command))
    usage = " ".join(_usage(one) for one in fields if one.required)
    rows = [f"| `{_cell(_usage(one))}` | {_cell(_default(one))} | {_cell(one.info.help)} |" for one in fields]
    table = "\n".join(["| option | default | meaning |", "|---|---|---|", *rows])
    text = inspect.getdoc(command)
    return f"### picopose {name}\n\n{text}\n\n    picopose {name} {usage}".rstrip() + f"\n\n{table}"


def _usage(one: OptionField) -> str:
    if one.info.argument:
        return one.value + ("..." if one.item_type else "")
    return f"{one.declaration} {one.value}".rstrip()


def _default(one: OptionField) -> str:
    if one.required:
        return "required"
    return one.default_text or "-"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n\n{reference()}\n\n{END}{after}", encoding="utf-8")
