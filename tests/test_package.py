"""What an installed copy holds; the other tests run in the source tree and would not miss it."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
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


# They are the interface of a package that setup.py names, and come with it.
COME_WITH = {"cycler": "matplotlib", "drjit": "sionna-rt", "mitsuba": "sionna-rt", "pyarrow": "datasets"}


def test_every_package_that_is_imported_is_named_in_setup():
    named = set(re.findall(r'["\']([\w-]+)(?:>=|==)', (ROOT / "setup.py").read_text()))
    imported = set()
    for top in ("radiodiff_diffusers", "pipelines", "schedulers"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    imported.add(node.module.split(".")[0])
    imported -= {*sys.stdlib_module_names, "radiodiff_diffusers"}
    assert {"numpy", "psutil", "yaml"} < imported
    found = packages_distributions()
    packages = {COME_WITH.get(name, found.get(name, [name])[0].lower().replace("_", "-")) for name in imported}
    assert sorted(packages - named) == []


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
