"""diffusers' loaders know our classes, and importing this package stays light; and what of diffusers that depends on.

How saved folders and the Hub work in fresh processes, in several orders of import, is in test_hub.py.
"""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from fresh import run_fresh

OURS = [
    "RadioDiffPipeline",
    "LightningDiTPipeline",
    "RadioDiffUNet2DModel",
    "LightningDiTTransformer2DModel",
    "ConstSDEScheduler",
]

LIGHT = """
import json, sys, time
started = time.perf_counter()
import radiodiff_diffusers
seconds = time.perf_counter() - started
names = dir(radiodiff_diffusers)
scene = radiodiff_diffusers.Scene([[0] * 12] * 12, transmitter=(2, 2))
plane = scene.plane("test_slope")
heavy = [m for m in ("torch", "diffusers", "transformers", "matplotlib", "datasets") if m in sys.modules]
print(json.dumps({
    "heavy": heavy, "seconds": seconds, "missing": sorted(set(radiodiff_diffusers.__all__) - set(names)),
    "channels": radiodiff_diffusers.channel_names(), "plane": [float(plane[0, 0]), float(plane[0, -1])],
}))
"""

# the plugin is a package like any other: nothing in it or here edits ours
PLUGIN = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "slope-channel"
version = "1.0"

[project.entry-points."radiodiff_diffusers.plugins"]
slope = "slope_channel"
broken = "slope_channel.nothing_there"

[tool.setuptools]
py-modules = ["slope_channel"]
""",
    "slope_channel.py": """
import numpy as np
from radiodiff_diffusers import register_channel


@register_channel("test_slope")
def slope(scene):
    return np.broadcast_to(np.linspace(-1, 1, scene.shape[1], dtype=np.float32), scene.shape)
""",
}


@pytest.fixture(scope="session")
def plugin(tmp_path_factory):
    """A second package, installed by pip into a folder of its own; gives that folder."""
    source, target = tmp_path_factory.mktemp("slope-channel"), tmp_path_factory.mktemp("site")
    for name, text in PLUGIN.items():
        (source / name).write_text(text)
    words = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*words, "--target", target, source], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return target


def test_import_is_light_and_finds_plugins(plugin):
    import os

    environment = os.environ | {"PYTHONPATH": f"{plugin}:{Path(__file__).parents[1]}"}
    found = run_fresh(LIGHT, environment)
    assert found["heavy"] == [] and found["missing"] == []
    assert found["seconds"] < 2.0  # some 0.1 s on a quiet machine; torch alone takes more
    assert "test_slope" in found["channels"] and "visibility" in found["channels"]
    assert found["plane"] == [-1.0, 1.0]


def test_a_broken_plugin_is_reported_and_left_out(monkeypatch, caplog):
    from importlib.metadata import EntryPoint

    from radiodiff_diffusers import plugins

    called = []
    monkeypatch.setattr(sys.modules[__name__], "register", lambda: called.append(1), raising=False)
    group = plugins.ENTRY_POINT_GROUP
    points = [EntryPoint("broken", "no_such_module_at_all", group), EntryPoint("good", f"{__name__}:register", group)]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    assert plugins.load_plugins.__wrapped__() == ("good",)
    assert called == [1] and "plugin broken (no_such_module_at_all) could not be loaded" in caplog.text


# In this process -----------------------------------------------------------------------------------------------------


def test_diffusers_has_our_classes():
    import diffusers

    import radiodiff_diffusers

    assert diffusers.DiffusionPipeline and diffusers.AutoModel  # the loaders, whose import brings ours
    for name in OURS:
        assert getattr(diffusers, name) is getattr(radiodiff_diffusers, name)


def test_a_class_of_diffusers_with_our_name_is_not_overwritten(monkeypatch):
    import diffusers

    from radiodiff_diffusers import registration
    from radiodiff_diffusers.schedulers import scheduling_const_sde

    monkeypatch.setattr(diffusers, "ConstSDEScheduler", type("ConstSDEScheduler", (), {}))
    with pytest.raises(RuntimeError, match="diffusers has a ConstSDEScheduler of its own"):
        registration._add_class(scheduling_const_sde)


def test_guard_what_we_hook_into_is_as_we_know_it():
    """A newer diffusers that fails here resolves class names in another way: see registration.py before shipping."""
    from diffusers import DiffusionPipeline
    from diffusers.pipelines import pipeline_loading_utils as loading

    loadable = loading.LOADABLE_CLASSES
    assert loadable["diffusers"]["ModelMixin"] == ["save_pretrained", "from_pretrained"]
    assert loadable["diffusers"]["SchedulerMixin"] == ["save_pretrained", "from_pretrained"]
    assert loadable["radiodiff_diffusers"] == {
        "ModelMixin": ["save_pretrained", "from_pretrained"],
        "SchedulerMixin": ["save_pretrained", "from_pretrained"],
    }
    # read by these, and only at call time: a copy of the table would not see ours
    for function in (loading._fetch_class_library_tuple, loading._get_custom_components_and_folders):
        assert "LOADABLE_CLASSES" in function.__code__.co_names, function
    assert loading._get_library_or_raise("radiodiff_diffusers").__name__ == "radiodiff_diffusers"
    pipeline_class = loading._get_pipeline_class(DiffusionPipeline, {"_class_name": "RadioDiffPipeline"})
    assert pipeline_class.__name__ == "RadioDiffPipeline"
    assert "pretrained_model_name_or_path" in inspect.signature(DiffusionPipeline.from_pretrained).parameters
    # both ways to the Hub end in this method, which SavedPipelineMixin extends
    assert "_upload_folder" in inspect.unwrap(DiffusionPipeline.push_to_hub).__code__.co_names
    assert "_upload_folder" in inspect.unwrap(DiffusionPipeline.save_pretrained).__code__.co_names


def test_guard_the_modules_whose_import_triggers_us_exist():
    import diffusers.models.auto_model
    import diffusers.pipelines.pipeline_utils

    assert hasattr(diffusers.pipelines.pipeline_utils, "DiffusionPipeline")
    assert hasattr(diffusers.models.auto_model, "AutoModel")


def test_classes_are_saved_under_the_packages_name():
    """`["radiodiff_diffusers", "Class"]` is the checkpoint format; a module path would break when a file moves."""
    from diffusers.pipelines.pipeline_loading_utils import _fetch_class_library_tuple

    from radiodiff_diffusers import ConstSDEScheduler, LightningDiTTransformer2DModel, RadioDiffUNet2DModel
    from radiodiff_diffusers.models.presets import RADIODIFF_UNET_PRESETS

    unet = RadioDiffUNet2DModel(**RADIODIFF_UNET_PRESETS["test"])
    assert _fetch_class_library_tuple(unet) == ("radiodiff_diffusers", "RadioDiffUNet2DModel")
    assert _fetch_class_library_tuple(ConstSDEScheduler()) == ("radiodiff_diffusers", "ConstSDEScheduler")
    folders = LightningDiTTransformer2DModel.__module__.split(".")
    assert folders[0] == "radiodiff_diffusers" and folders[-2] == "models"  # "dit" would be taken for diffusers' own


# Other orders of import; each costs a fresh process ------------------------------------------------------------------

OUR_MODEL = "radiodiff_diffusers.models.radiodiff_unet"
LAST = "from diffusers import DiffusionPipeline as P"
ORDERS = {
    "diffusers only named": "import diffusers, radiodiff_diffusers; P = diffusers.DiffusionPipeline",
    "a model loader first": f"from diffusers import AutoModel\nimport radiodiff_diffusers\n{LAST}",
    "our module first": f"from {OUR_MODEL} import RadioDiffUNet2DModel\n{LAST}",
    "our scheduler first": f"from radiodiff_diffusers.schedulers import scheduling_const_sde\n{LAST}",
    "the other pipeline first": f"from radiodiff_diffusers import LightningDiTPipeline\n{LAST}",
}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_any_order_of_imports(order, tmp_path):
    import torch

    from radiodiff_diffusers import ConstSDEScheduler, RadioDiffPipeline, RadioDiffUNet2DModel
    from radiodiff_diffusers.models.presets import RADIODIFF_UNET_PRESETS

    torch.manual_seed(0)
    unet = RadioDiffUNet2DModel(**RADIODIFF_UNET_PRESETS["test"])
    RadioDiffPipeline(unet, ConstSDEScheduler()).save_pretrained(tmp_path)
    script = f"import json, sys\n{ORDERS[order]}\nprint(json.dumps(type(P.from_pretrained(sys.argv[1])).__name__))"
    assert run_fresh(script, None, tmp_path) == "RadioDiffPipeline"
