"""What kind of data set a folder holds."""

from __future__ import annotations

from pathlib import Path

KINDS = ("radiomapseer", "icassp2025", "arranged", "parquet", "spectrograms")


def find_kind(root: str | Path) -> str:
    """One of `KINDS`, by the folders inside; or a line that says what was looked for."""
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    has = {path.name for path in root.iterdir()}
    if {"png", "gain"} & has or {"polygon", "antenna"} <= has:
        return "radiomapseer"
    if "Inputs" in has:
        return "icassp2025"
    from .icassp2025_arrange import arranged_layout

    if arranged_layout(root):
        return "arranged"
    if any(root.glob("*.parquet")) or any(root.glob("data/*.parquet")):
        return "parquet"
    from .micro_doppler import find_users

    try:
        find_users(root)
        return "spectrograms"
    except ValueError:
        pass
    raise ValueError(
        f"{root} holds no data set that is known here: expected gain/ and png/ (RadioMapSeer), Inputs/ and Outputs/ "
        "(ICASSP 2025), train/image/ and train/edge/ (arranged), data/*.parquet, or one image folder a user (user_00)"
    )
