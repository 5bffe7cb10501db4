"""The commands of `radiodiff`, a module each; `cli` imports the one that is asked for."""

from __future__ import annotations


def choose_device(name: str | None) -> str:
    """The device asked for, if it can be used here; a GPU where there is one, if none was."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch says it in each of these ways
        reason = str(error).strip().splitlines()[0].split(". ")[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}): choose another, such as cpu") from None
    return name
