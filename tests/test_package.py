"""What an installed copy holds; the other tests run in the source tree and would not miss it."""

from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_folder_of_code_is_a_package():
    # setup.py's find_packages passes over a folder without __init__.py, which imports from the source tree all the same
    folders = {path.parent for top in ("radiodiff_diffusers", "pipelines", "schedulers") for path in
               (ROOT / top).rglob("*.py")}  # fmt: skip
    assert len(folders) > 8
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []
