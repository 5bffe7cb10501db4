"""What an installed copy holds; the other tests run in the source tree and would not miss it."""

from pathlib import Path

import pytest

from radiodiff_diffusers.cli import main

ROOT = Path(__file__).parents[1]


def test_every_folder_of_code_is_a_package():
    # find_packages in setup.py passes over a folder without __init__.py; from the source tree it imports all the same
    tops = ("radiodiff_diffusers", "pipelines", "schedulers")
    folders = {path.parent for top in tops for path in (ROOT / top).rglob("*.py")}
    assert len(folders) > 8
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["-o", "map.jpg"], "cannot write a radio map as 'map.jpg'"),
        (["--device", "gpu"], "device 'gpu' cannot be used here"),
        (["--device", "cuda:99"], "device 'cuda:99' cannot be used here"),
        (["--adapter", "/no/such/adapter"], "/no/such/adapter: no such adapter"),
        (["--tx", "128"], "--tx takes two numbers"),
    ],
)
def test_wrong_options_of_predict_are_one_line(options, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(ROOT / "examples/city.png"), "--tx", "128,120", *options]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("radiodiff predict: ") and line in said
    assert not list(tmp_path.iterdir())
