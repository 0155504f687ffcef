"""Take over the calls of one net for the length of a step."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

Handler = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


@contextmanager
def intercepted(net: nn.Module, handle: Handler) -> Iterator[None]:
    """Hand the calls of a net to ``handle(original, args, kwargs)`` until the block ends.

    While ``handle`` runs, calls of the net are its own, so that the handler may use the net in any way. A deep copy
    made inside the block runs on its own. A net that was compiled in place keeps its compiled call as ``original``.

    Args:
        net: its instance is patched and afterwards left as it was.
        handle: returns what the call returns.
    """
    name = "_compiled_call_impl" if vars(net).get("_compiled_call_impl") is not None else "forward"
    previous, original = vars(net).get(name), getattr(net, name)
    inside = False

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        if self is not net:  # a copy of the net
            return type(self).forward(self, *args, **kwargs)
        if inside:
            return original(*args, **kwargs)
        inside = True
        try:
            return handle(original, args, kwargs)
        finally:
            inside = False

    vars(net)[name] = types.MethodType(call, net)
    try:
        yield
    finally:
        if previous is None:
            vars(net).pop(name, None)
        else:
            vars(net)[name] = previous
