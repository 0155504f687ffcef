"""What a user says of the targets of a set: which members hold them, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from lightning_robust.errors import InputError
from lightning_robust.shards import ShardIndex

Kind: TypeAlias = Literal["mask", "boxes", "multilabel", "json", "class"]
TargetSettings: TypeAlias = Mapping[str, str | Mapping[str, Any]]

_KINDS: tuple[str, ...] = get_args(Kind)
_KIND_OF_ENDING: dict[str, Kind] = {"png": "mask", "json": "json", "cls": "class"}
_SETTINGS = {"member", "kind", "classes", "ignore"}
# what else a batch holds
_TAKEN = {"image", "index"}


@dataclass(frozen=True)
class Target:
    """One target of every sample.

    Attributes:
        name: what the user calls it.
        kind: how it is read.
        member: extension of the member that holds it.
        classes: number of classes; None takes any class number.
        ignore: a number in masks that is no class.
    """

    name: str
    kind: Kind
    member: str
    classes: int | None = None
    ignore: int | None = None

    def __post_init__(self) -> None:
        if self.name in _TAKEN:
            raise InputError(f"A target cannot be named {self.name!r}, as another part of a batch is: rename it.")
        if self.kind not in _KINDS:
            raise InputError(f"The kind of the target {self.name!r} is {self.kind!r}: give one of {_KINDS}.")
        if self.classes is not None and (self.kind in ("json", "class") or not _is_count(self.classes)):
            raise InputError(
                f"The target {self.name!r} of kind {self.kind!r} has classes={self.classes!r}: give the number of "
                "classes of masks, boxes or multilabel targets, and to others none (num_classes is for class numbers)."
            )
        if self.kind == "multilabel" and self.classes is None:
            raise InputError(
                f"The multilabel target {self.name!r} needs the number of its classes: "
                f"{{{self.name}: {{member: {self.member}, kind: multilabel, classes: 20}}}}."
            )
        if self.ignore is not None and (self.kind != "mask" or self.classes is None):
            raise InputError(
                f"The target {self.name!r} has ignore={self.ignore!r}: this is a number that masks may hold besides "
                "their classes, so give it with kind 'mask' and classes."
            )


@dataclass(frozen=True)
class Targets:
    """All targets of a sample.

    Attributes:
        all: the targets.
        label_key: extension of the member whose class numbers the index holds; None if they are not to be used.
    """

    all: tuple[Target, ...]
    label_key: str | None

    @property
    def members(self) -> tuple[str, ...]:
        """Extensions of the members that they are read from."""
        return tuple(dict.fromkeys(target.member for target in self.read))

    @property
    def read(self) -> tuple[Target, ...]:
        """Those that are read from members; others are the class number in the index."""
        return tuple(target for target in self.all if target not in self._in_index)

    def of_kind(self, kind: Kind) -> list[str]:
        """Names of the targets of a kind."""
        return [target.name for target in self.all if target.kind == kind]

    def named(self, target: Any) -> dict[str, Any]:
        """The targets of a batch by name, from the value of a single one or the dict of several."""
        return {self.all[0].name: target} if len(self.all) == 1 else target

    def unnamed(self, values: dict[str, Any]) -> Any:
        """The value of a single target, or the dict of several."""
        return values[self.all[0].name] if len(self.all) == 1 else values

    def of_index(self, index: ShardIndex) -> Targets:
        """The targets as they are read with an index: from their members, but for the class number that it holds.

        Raises:
            InputError: it was opened without their members, or without labels.
        """
        # a part of a set may have numbered its classes anew, and its members have not
        unread = None if self.label_key in index.members else self.label_key
        found = replace(self, label_key=index.label_key if index.has_labels else unread)
        if lost := [member for member in found.members if member not in index.members]:
            raise InputError(
                f"The index does not say where the members {', '.join(f'.{member}' for member in lost)} lie: open it "
                f"with open_index(..., members={list(found.members)})."
            )
        if found._in_index and not index.has_labels:
            raise InputError(
                f"The target {found._in_index[0].name!r} is the class number, and the set was opened with "
                "label_key=None: name the member of the class numbers there, or leave the target out."
            )
        return found

    @property
    def _in_index(self) -> list[Target]:
        return [target for target in self.all if target.kind == "class" and target.member == self.label_key]


def parse_targets(targets: TargetSettings | Targets | None, label_key: str | None = "cls") -> Targets | None:
    """Read what the user said: by name, the extension of a member, or a mapping with ``member``, ``kind``, ...

    Args:
        targets: what was said; what was parsed already stays as it is.
        label_key: extension of the member whose class numbers the index holds.

    Raises:
        InputError: it names no target, or something unknown, or a kind is missing or does not go with a setting.
    """
    if targets is None or isinstance(targets, Targets):
        return targets
    if not isinstance(targets, Mapping) or not targets:
        raise InputError(
            f"targets={targets!r} names no target: give {{'mask': 'seg.png'}}, for example, or leave it out."
        )
    return Targets(tuple(_parsed(str(name), said) for name, said in targets.items()), label_key)


def _parsed(name: str, said: str | Mapping[str, Any]) -> Target:
    settings: Mapping[str, Any] = {"member": said} if isinstance(said, str) else said
    if not isinstance(settings, Mapping) or not set(settings) <= _SETTINGS or not settings.get("member"):
        raise InputError(
            f"The target {name!r} is {said!r}: give the extension of its member ('seg.png'), or a mapping with "
            "'member' and, where they are needed, 'kind', 'classes' and 'ignore'."
        )
    member = str(settings["member"]).lower().lstrip(".")
    kind = settings.get("kind") or _KIND_OF_ENDING.get(member.rpartition(".")[2])
    if kind is None:
        raise InputError(
            f"The kind of the target {name!r} cannot be told from '.{member}': give it, "
            f"{{{name}: {{member: {member}, kind: mask}}}}; the kinds are {', '.join(_KINDS)}."
        )
    if (kind == "mask") != member.endswith("png") and kind in ("mask", "boxes", "multilabel"):
        raise InputError(
            f"The target {name!r} is to be {kind} and its member ends in '.{member.rpartition('.')[2]}': masks are PNG "
            "members, boxes and multilabel JSON ones."
        )
    return Target(name, kind, member, settings.get("classes"), settings.get("ignore"))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
