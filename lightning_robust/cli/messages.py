"""Turn what jsonargparse says about a wrong configuration into a sentence with a suggestion."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator

import pytorch_lightning as pl

import lightning_robust.callbacks
import lightning_robust.datamodules
import lightning_robust.models
from lightning_robust.cli.suggest import did_you_mean

_UNKNOWN_KEY = re.compile(r"does not accept (?:nested key|option|key) '([^']+)'")
_UNKNOWN_FLAG = re.compile(r"[Uu]nrecognized arguments: --([\w.+-]+)")
_UNKNOWN_ARGUMENT = re.compile(r"Option '([^']+)' is not accepted")
_UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_WRONG_VALUE = re.compile(r"""Parser key "([^"]+)":\s+Expected a (.+?)\. Got value: (.*)""", re.DOTALL)
_WRONG_UNION = re.compile(r"""Parser key "([^"]+)":.*Given value: (.*)""", re.DOTALL)
_EXPECTED = re.compile(r"- Expected a (.+)")
_QUOTED = re.compile("'([^']+)'")
_LONGEST = 6


def explain(message: str, parser: argparse.ArgumentParser) -> str:
    """Shorten an error of the parser and add what the user may have meant.

    Args:
        message: what jsonargparse would print.
        parser: of the command that runs; its options are the candidates for a wrong key.
    """
    if found := _UNKNOWN_KEY.search(message) or _UNKNOWN_FLAG.search(message):
        key = found[1].removesuffix("+")
        return f"There is no option {key!r}.{did_you_mean(key, _options(parser))}"
    if found := _UNKNOWN_ARGUMENT.search(message):
        return _explain_argument(found[1].rpartition(".")[2])
    if found := _UNKNOWN_CLASS.search(message):
        name = found[1]
        return (
            f"There is no class {name!r}.{did_you_mean(name, _class_names())} "
            "Give a name of this package or of Lightning, or the import path of a class."
        )
    if found := _WRONG_VALUE.search(message):
        key, expected, value = found[1], _plain_type(found[2]), found[3].strip()
        allowed = _QUOTED.findall(expected)
        return f"{key} should be {expected}, not {value!r}.{did_you_mean(value, allowed)}"
    if (found := _WRONG_UNION.search(message)) and (expected_types := _EXPECTED.findall(message)):
        expected = " or ".join(dict.fromkeys(_plain_type(one) for one in expected_types))
        return f"{found[1]} should be {expected}, not {found[2].strip()!r}."
    if "arguments are required" in message and "model" in message:
        return (
            "There is no model. Give a configuration (--config demo; `lightning-robust configs` lists them) or --model."
        )
    lines = message.strip().splitlines()
    return "\n".join(lines[:_LONGEST])


def _explain_argument(name: str) -> str:
    owners = _arguments()
    if name in owners:
        return (
            f"Argument {name!r} belongs to {' and '.join(owners[name])}, which is not the class that this option sets "
            "(of a list, as --trainer.callbacks, the last entry). Give the list anew, or save the configuration "
            "(`lightning-robust configs NAME`) and edit it."
        )
    hint = did_you_mean(name, owners)
    meant = hint.rpartition(" Did you mean ")[2].strip("'?")
    owner = f" It belongs to {' and '.join(owners[meant])}." if meant in owners else ""
    return f"There is no argument {name!r}.{hint}{owner}"


def _plain_type(text: str) -> str:
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text).replace("NoneType", "None")
    return re.sub(r"^typing\.Literal\[(.*)\]$", r"one of \1", text)


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [name.lstrip("-") for action in parser._actions for name in action.option_strings]


def _class_names() -> list[str]:
    bases = (pl.Callback, pl.LightningModule, pl.LightningDataModule)
    names = {subclass.__name__ for base in bases for subclass in _subclasses(base)}
    return sorted(names | set(lightning_robust.models.__all__))


def _subclasses(base: type) -> Iterator[type]:
    subclasses: list[type] = base.__subclasses__()
    for subclass in subclasses:
        yield subclass
        yield from _subclasses(subclass)


def _arguments() -> dict[str, list[str]]:
    """Arguments of the public classes of this package, with the classes that take them."""
    owners: dict[str, list[str]] = {}
    for module in (lightning_robust.callbacks, lightning_robust.datamodules, lightning_robust.models):
        for name in module.__all__:
            for argument in inspect.signature(getattr(module, name)).parameters:
                owners.setdefault(argument, []).append(name)
    return owners
