import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_sets
from PIL import Image

from radiodiff_diffusers.cli import main
from radiodiff_diffusers.data import hub
from radiodiff_diffusers.data.collate import collate
from radiodiff_diffusers.data.export import export_radiomapseer
from radiodiff_diffusers.data.hub import HubMaps, StreamedMaps, open_dataset, push_to_hub, to_datasets, write_parquet
from radiodiff_diffusers.data.hub_rows import map_features, map_pair, map_row
from radiodiff_diffusers.data.hub_users import export_users, users_folder
from radiodiff_diffusers.data.icassp2025 import ICASSP2025
from radiodiff_diffusers.data.icassp2025_arrange import ArrangedIndoor, Arrangement, arrange
from radiodiff_diffusers.data.kinds import find_kind
from radiodiff_diffusers.data.micro_doppler import MicroDopplerFolder
from radiodiff_diffusers.data.radiomapseer import RadioMapSeer
from radiodiff_diffusers.scene import GainScale, RadioMap, Scene


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    """No test may touch the network, nor the user's cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def seer(tmp_path_factory):
    return tiny_sets.make_radiomapseer(tmp_path_factory.mktemp("seer"), missing=False, k2=True)


@pytest.fixture(scope="module")
def icassp(tmp_path_factory):
    return tiny_sets.make_icassp(tmp_path_factory.mktemp("icassp"))


@pytest.fixture(scope="module")
def shards(seer, tmp_path_factory):
    data = RadioMapSeer(seer, "all", layout="polygon", cars_in_input=True, measurements="random", k2=True)
    folder = tmp_path_factory.mktemp("parquet") / "maps"
    return write_parquet(
        {"train": data, "val": data}, folder, rows_per_shard=4, title="Tiny maps", licence="cc-by-4.0"
    )


def same_plane(a, b, tolerance=0.0):
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and np.allclose(
        np.asarray(a, float), np.asarray(b, float), atol=tolerance, equal_nan=True
    )


def assert_same(pair, other):
    (scene, radio_map), (scene2, radio_map2) = pair, other
    for name in ("buildings", "cars", "measurements", "antenna_pattern"):
        assert same_plane(getattr(scene, name), getattr(scene2, name)), name
    for name in ("reflectance", "transmittance", "k2"):
        assert same_plane(getattr(scene, name), getattr(scene2, name), 1e-6), name
    for name in ("name", "transmitter", "metres_per_pixel", "frequency_hz", "azimuth", "building_height", "raster"):
        assert getattr(scene, name) == getattr(scene2, name), name
    assert (scene.polygons is None) == (scene2.polygons is None)
    for rings, rings2 in zip(scene.polygons or (), scene2.polygons or (), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(rings, rings2, strict=True))
    assert radio_map.scale == radio_map2.scale and radio_map.metres_per_pixel == radio_map2.metres_per_pixel
    assert same_plane(radio_map.gain_db, radio_map2.gain_db, 1e-4)


# Rows ----------------------------------------------------------------------------------------------------------------


def test_whole_gray_levels_are_kept_as_png_and_the_rest_exactly():
    rng = np.random.default_rng(0)
    buildings = rng.random((20, 30)) < 0.3
    buildings[4, 3] = False
    fine = rng.normal(-90, 10, (20, 30)).astype(np.float32)
    measured = np.where(rng.random((20, 30)) < 0.1, fine, np.nan)
    scene = Scene(
        buildings,
        transmitter=(3, 4),
        measurements=measured,
        reflectance=rng.random((20, 30)) * 9,
        transmittance=np.full((20, 30), 7.0),
        antenna_pattern=rng.normal(size=360),
        polygons=(([(1, 1), (5, 1), (5, 5), (1, 1)], [(2, 2), (3, 2), (3, 3), (2, 2)]),),
        metres_per_pixel=0.5,
        azimuth=12.5,
        name="odd",
    )
    row = map_row((scene, RadioMap(fine, metres_per_pixel=0.5)))
    assert row["buildings"]["bytes"][:4] == b"\x89PNG" and row["transmittance"]["bytes"][:4] == b"\x89PNG"
    assert row["gain"]["bytes"][:2] in (b"II", b"MM") and row["reflectance"]["bytes"][:2] in (b"II", b"MM")
    assert row["cars"] is None and set(row) == set(map_features())
    again = map_pair(row)
    assert_same((scene, RadioMap(fine, metres_per_pixel=0.5)), again)
    assert np.array_equal(again[1].gain_db, fine)
    gray = rng.integers(0, 256, (20, 30)).astype(np.uint8)
    for scale in (GainScale.RADIOMAPSEER, GainScale.INDOOR):
        row = map_row((scene, RadioMap.from_gray(gray, scale=scale)))
        assert row["gain"]["bytes"][:4] == b"\x89PNG"
        assert np.array_equal(np.rint(map_pair(row)[1].gray), gray)


def test_rows_without_maps_and_damaged_ones_are_refused():
    scene = Scene(np.zeros((9, 9), bool), transmitter=(1, 1), name="x")
    row = map_row((scene, RadioMap(np.full((9, 9), -80.0))))
    with pytest.raises(ValueError, match="no gain"):
        map_pair({**row, "gain": None})
    with pytest.raises(ValueError, match="buildings of x is damaged"):
        map_pair({**row, "buildings": {"bytes": row["buildings"]["bytes"][:45], "path": None}})
    minimal = {key: row[key] for key in ("name", "gain", "buildings", "transmitter_x", "transmitter_y")}
    assert map_pair(minimal)[0].frequency_hz == 5.9e9


# Parquet -------------------------------------------------------------------------------------------------------------


def test_shards_hold_all_that_a_scene_knows(seer, shards):
    data = RadioMapSeer(seer, "all", layout="polygon", cars_in_input=True, measurements="random", k2=True)
    back = open_dataset(shards, "val")
    assert isinstance(back, HubMaps) and len(back) == len(data) == 9
    for k in (0, 4, 8):
        assert_same(data[k], back[k])
    assert_same(data[8], back[-1])
    with pytest.raises(IndexError):
        back[9]
    names = sorted(p.name for p in (shards / "data").iterdir())
    assert names[:3] == [f"train-{k:05d}-of-00003.parquet" for k in range(3)] and len(names) == 6
    assert names[3].startswith("validation-")
    a = collate([back[0], back[1]], ["buildings", "transmitter", "cars", "k2", "measured"])
    b = collate([data[0], data[1]], ["buildings", "transmitter", "cars", "k2", "measured"])
    assert np.allclose(a["condition"], b["condition"], atol=1e-6) and np.allclose(a["target"], b["target"], atol=1e-6)


def test_what_rows_share_is_not_shared_by_accident(shards):
    """Masks and outlines are decoded once for all transmitters of a map; changing one scene must not change others."""
    data = open_dataset(shards, "val")
    data[0][0].buildings[:] = True
    data[0][0].cars[:] = True
    assert not data[0][0].buildings.all() and not data[1][0].cars.all()
    with pytest.raises(ValueError, match="read-only"):
        data[0][0].polygons[0][0][0] = 7


def test_streaming_reads_the_same_rows_in_order_or_shuffled(seer, shards):
    data = RadioMapSeer(seer, "all", layout="polygon", cars_in_input=True, measurements="random", k2=True)
    stream = open_dataset(shards, "train", streaming=True)
    assert isinstance(stream, StreamedMaps)
    pairs = list(stream)
    assert [s.name for s, _ in pairs] == [data[k][0].name for k in range(9)]
    assert_same(pairs[5], data[5])
    shuffled = open_dataset(shards, "train", streaming=True, shuffle_buffer=9, seed=1)
    orders = []
    for epoch in range(3):
        shuffled.set_epoch(epoch)
        orders.append([s.name for s, _ in shuffled])
    assert all(sorted(o) == sorted(orders[0]) for o in orders) and orders[0] != orders[1]
    assert len(list(open_dataset(shards, "all", streaming=True))) == 18


def test_plain_datasets_reads_the_shards_with_pictures(shards):
    import datasets

    rows = datasets.load_dataset(str(shards), split="validation")
    assert len(rows) == 9 and isinstance(rows[0]["gain"], Image.Image) and rows[0]["buildings"].size == (64, 64)
    assert set(map_features()) == set(rows.features)
    card = (shards / "README.md").read_text()
    assert '"license": "cc-by-4.0"' in card and "# Tiny maps" in card and "| validation | 9 |" in card


def test_a_data_loader_takes_maps_and_streams(shards):
    from functools import partial

    from torch.utils.data import DataLoader

    loader = DataLoader(
        open_dataset(shards, "train"), 3, collate_fn=partial(collate, condition_channels=["buildings"])
    )
    assert [batch["condition"].shape[0] for batch in loader] == [3, 3, 3]
    stream = open_dataset(shards, "train", streaming=True)
    for workers in (0, 2):  # three shards: each row comes once, whoever reads it
        loader = DataLoader(
            stream, 2, collate_fn=partial(collate, condition_channels=["buildings"]), num_workers=workers
        )
        names = sorted(name for batch in loader for name in batch["name"])
        assert names == [f"{m}_{t}" for m in range(3) for t in range(3)]


def test_only_a_few_rows_are_in_memory_while_writing(tmp_path):
    """The writer asks for rows as it goes: never more than a row group ahead of what is on disk."""
    scene = Scene(np.zeros((16, 16), bool), transmitter=(1, 1), name="x")
    pair = scene, RadioMap(np.full((16, 16), -80.0))
    folder = tmp_path / "many"
    lag = []

    class Counting:
        def __len__(self):
            return 300

        def __getitem__(self, index):
            lag.append(index - 150 * len(list((folder / "data").glob("*.parquet"))))
            return pair

    write_parquet({"train": Counting()}, folder, rows_per_shard=150)
    assert len(lag) == 300 and max(lag) < 150  # a shard is finished before the next one's first row is asked for
    groups = pq.ParquetFile(next((folder / "data").glob("train-00000*"))).metadata
    assert [groups.row_group(k).num_rows for k in range(groups.num_row_groups)] == [100, 50]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_ten_thousand_maps_do_not_fill_the_memory(tmp_path):
    """Memory at row 9,999 is that at row 1,000, when writing and when streaming; the maps would take 160 MB."""
    program = f"""
import numpy as np
from radiodiff_diffusers.data.hub import write_parquet, open_dataset
from radiodiff_diffusers.scene import RadioMap, Scene

def used():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024

marks = []

class Maps:
    def __len__(self): return 10_000
    def __getitem__(self, k):
        if k in (1000, 9999): marks.append(used())
        gray = np.random.default_rng(k).integers(0, 256, (128, 128)).astype(np.uint8)
        return Scene(np.zeros((128, 128), bool), transmitter=(9, 9), name=str(k)), RadioMap.from_gray(gray)

write_parquet({{"train": Maps()}}, {str(tmp_path / "big")!r}, rows_per_shard=1000)
for k, _ in enumerate(open_dataset({str(tmp_path / "big")!r}, "train", streaming=True)):
    if k in (1000, 9999): marks.append(used())
print(*marks)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    early, late, early_read, late_read = (float(v) for v in done.stdout.split())
    assert late - early < 40 and late_read - early_read < 60, done.stdout


def test_what_cannot_be_written_is_said(tmp_path, shards):
    with pytest.raises(ValueError, match="not empty"):
        write_parquet({"train": [1]}, shards)
    with pytest.raises(ValueError, match="nothing to write"):
        write_parquet({"train": []}, tmp_path / "none")
    for splits, line in (
        ({"my-split": [1]}, "letters, digits and _"),
        ({"all": [1]}, "all means all splits"),
        ({"val": [1], "validation": [1]}, "one name twice"),
    ):
        with pytest.raises(ValueError, match=line):
            write_parquet(splits, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_truncated_shard_is_one_line(shards, tmp_path):
    folder = tmp_path / "maps"
    shutil.copytree(shards, folder)
    first = min(folder.glob("data/train-*"))
    first.write_bytes(first.read_bytes()[:100])
    for streaming in (False, True):
        with pytest.raises(ValueError, match=rf"^{folder} is damaged: .* `radiodiff data check") as error:
            list(open_dataset(folder, "train", streaming=streaming))
        assert "\n" not in str(error.value)


# datasets.Dataset, the Hub -------------------------------------------------------------------------------------------


def test_to_datasets_and_back(icassp, tmp_path):
    data = ICASSP2025(icassp, "all", task=3, antennas=[2])
    rows = to_datasets(data, tmp_path)
    assert len(rows) == len(data) == 18
    back = HubMaps(rows)
    for k in (0, 7, 17):
        assert_same(data[k], back[k])


def test_push_uploads_shards_and_card(shards, tmp_path, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, repo_id, **options):
            calls.append(("create", repo_id, options))
            return f"https://example.org/{repo_id}"

        def upload_folder(self, **options):
            calls.append(("upload", options))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert push_to_hub(shards, "me/maps") == "https://example.org/me/maps"
    assert (
        calls[0][2]["private"] and calls[0][2]["repo_type"] == "dataset" and calls[1][1]["folder_path"] == str(shards)
    )
    with pytest.raises(ValueError, match="Parquet shards with a card"):
        push_to_hub(tmp_path, "me/maps")


def test_a_hub_name_is_loaded_by_datasets(shards, monkeypatch):
    import datasets

    asked = []

    def load(name, split, streaming, **options):
        asked.append((name, split, streaming, options))
        return original(
            "parquet", data_files=str(shards / "data" / f"{split}-*.parquet"), split="train", streaming=streaming
        )

    original = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, **_: ["train", "validation"])
    assert len(open_dataset("me/maps", "val", revision="v1")) == 9
    assert asked == [("me/maps", "validation", False, {"revision": "v1"})]
    assert len(list(open_dataset("me/maps", "train", streaming=True))) == 9
    with pytest.raises(ValueError, match="no split 'test': it has train, validation"):
        open_dataset("me/maps", "test")


# open_dataset --------------------------------------------------------------------------------------------------------


def test_every_kind_of_folder_is_known(seer, icassp, shards, tmp_path):
    arrange(icassp, tmp_path / "arranged", Arrangement(size=48))
    for user in range(3):
        for k in range(5):
            tiny_sets.save(tmp_path / f"users/user_{user:02d}/{k}.png", np.full((16, 16), 9 * k, np.uint8))
    kinds = {seer: "radiomapseer", icassp: "icassp2025", shards: "parquet"}
    kinds |= {tmp_path / "arranged": "arranged", tmp_path / "users": "spectrograms"}
    assert {root: find_kind(root) for root in kinds} == kinds
    assert isinstance(open_dataset(seer, "all", layout="polygon"), RadioMapSeer)
    assert isinstance(open_dataset("radiomapseer", "all", root=seer), RadioMapSeer)
    assert isinstance(open_dataset(str(icassp), "all", task=2), ICASSP2025)
    assert isinstance(open_dataset(tmp_path / "arranged", "all"), ArrangedIndoor)
    assert len(open_dataset(tmp_path / "users", "train", size=16)) == 12
    assert len(open_dataset(tmp_path / "users", "val", size=16)) == 3


def test_spectrograms_go_to_parquet_and_back(tmp_path):
    rng = np.random.default_rng(0)
    for user in (0, 2):
        for k in range(3):
            tiny_sets.save(
                tmp_path / f"users/user_{user:02d}/{k}.png", rng.integers(0, 256, (12, 10, 3)).astype(np.uint8)
            )
    write_parquet({"train": open_dataset(tmp_path / "users", "all")}, tmp_path / "parquet")
    rows = open_dataset(tmp_path / "parquet", "train")
    assert len(rows) == 6 and rows.features["label"].names == ["user_00", "class_1", "user_02"]
    assert [row["label"] for row in rows] == [0, 0, 0, 2, 2, 2]
    assert np.array_equal(np.asarray(rows[4]["image"]), np.asarray(Image.open(tmp_path / "users/user_02/1.png")))


def test_people_of_parquet_are_a_folder_of_images_again(tmp_path):
    rng = np.random.default_rng(0)
    for user in (1, 3):
        for k in range(3):
            picture = rng.integers(0, 256, (12, 12, 3)).astype(np.uint8)
            tiny_sets.save(tmp_path / f"users/ID_{user}/Bag_line/{k}.png", picture)
    folder = MicroDopplerFolder(tmp_path / "users", size=12)
    write_parquet(dict(zip(("train", "val"), folder.split(0.67), strict=True)), tmp_path / "parquet")
    back = users_folder(tmp_path / "parquet")
    assert users_folder(tmp_path / "users") == tmp_path / "users" and users_folder(tmp_path / "parquet") == back
    assert MicroDopplerFolder(back, size=12).fingerprint() == folder.fingerprint()
    out = tmp_path / "out"
    assert main(["data", "export", str(tmp_path / "parquet"), "-o", str(out), "--format", "users"]) == 0
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*.png"))[0] == "ID_1/Bag_line/0.png"
    with pytest.raises(ValueError, match="is not empty"):
        export_users(tmp_path / "parquet", out)
    with pytest.raises(ValueError, match="is a folder of files"):
        export_users(tmp_path / "users", tmp_path / "other")
    maps = write_parquet({"train": [(Scene(np.eye(16) > 0, (8, 2)), RadioMap(np.zeros((16, 16))))]}, tmp_path / "maps")
    with pytest.raises(ValueError, match="holds no spectrograms by user"):
        users_folder(maps)


def test_names_of_users_that_tell_no_class_and_files_that_lead_elsewhere(tmp_path):
    """A data set on the Hub may call its people and its files anything."""
    from datasets import ClassLabel, Dataset, Features, Image, Value

    tiny_sets.save(tmp_path / "a.png", np.zeros((8, 8), np.uint8))
    data = (tmp_path / "a.png").read_bytes()
    row = {"image": {"bytes": data, "path": None}, "path": "../../evil.png", "condition": "../up"}
    rows = [{**row, "label": k} for k in (0, 1, 1)]
    features = {"image": Image(), "label": ClassLabel(names=["anna", "ben"]), "path": Value("string")}
    table = Dataset.from_list(rows, features=Features(features | {"condition": Value("string")}))
    (tmp_path / "set/data").mkdir(parents=True)
    table.to_parquet(tmp_path / "set/data/train-00000-of-00001.parquet")
    out = export_users(tmp_path / "set", tmp_path / "out")
    found = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert found == ["user_00/up/evil.png", "user_01/up/000002_evil.png", "user_01/up/evil.png"]
    assert {p.name for p in tmp_path.iterdir()} == {"a.png", "set", "out"}


def test_options_of_files_do_not_fit_parquet(shards, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="leave out the option 'simulation', which is for folders of files"):
        open_dataset(shards, "train", simulation="DPM")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in ("data/RadioMapSer", "runs/x", "mine/maps"):  # not asked of the Hub
        with pytest.raises(ValueError, match=f"{name}: no such folder"):
            open_dataset(name)


def test_a_recipe_made_for_files_takes_parquet(shards, caplog):
    from radiodiff_diffusers.training.config import DataConfig
    from radiodiff_diffusers.training.data import open_split

    config = DataConfig(source=str(shards), options={"simulation": "DPM", "streaming": True})
    assert isinstance(open_split(config), StreamedMaps)
    assert "it is as it was exported, data.options.simulation of the recipe is not used" in caplog.text
    assert len(open_split(DataConfig(source=str(shards)), training=False)) == 9
    both = DataConfig(source=str(shards), options={"maps": [0]}, train_split="all", validation_split="all")
    with pytest.raises(ValueError, match="data.options.maps cannot keep training and validation apart"):
        open_split(both)


def test_the_cache_keeps_channels_of_any_kind(seer, shards, tmp_path):
    for source, options in ((seer, {}), (shards, {}), (shards, {"streaming": True})):
        data = open_dataset(source, "train", cache=tmp_path / "c", cache_channels=["log_distance"], **options)
        scene, _ = next(iter(data))
        assert "log_distance" in scene._planes
    assert any((tmp_path / "c").rglob("*.int16"))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("./nowhere", {}, "no such folder"),
        ("a/b/c", {}, "no such folder"),
        ("/nowhere/maps", {}, "^/nowhere/maps: no such folder, and no name"),
        ("{shards}/README.md", {}, "is a file: expected a folder"),
        ("radiomapseer", {}, "needs the option root"),
        ("{seer}", {"streaming": True}, "leave streaming out"),
        ("{seer}", {"simulatoin": "DPM"}, "unknown option 'simulatoin': it takes scheme, simulation"),
        ("{shards}", {"colour": "red"}, "unknown option 'colour'"),
        ("{shards}", {"split": "test"}, "no split 'test': it has train, validation"),
        ("{empty}", {}, "holds no data set that is known"),
    ],
)
def test_what_cannot_be_opened_is_said_in_one_line(source, options, message, seer, shards, tmp_path):
    source = source.format(seer=seer, shards=shards, empty=tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        open_dataset(source, **options)
    assert "\n" not in str(error.value)


def test_a_name_that_the_hub_does_not_know(monkeypatch):
    import datasets

    def fail(name, **_):
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "get_dataset_split_names", fail)
    with pytest.raises(ValueError, match="'me/none' is no folder here, and could not be read from the Hub"):
        open_dataset("me/none")
    assert hub._hub_name("me/maps") == "me/maps"


# Back to files -------------------------------------------------------------------------------------------------------


def test_the_raster_of_the_masks_travels_along(seer, tmp_path):
    """Masks half a pixel off the map must not come back as exact ones: rays would start elsewhere."""
    rasters = {"png": "radiomapseer", "polygon": "exact"}
    for layout, raster in rasters.items():
        data = RadioMapSeer(seer, "all", layout=layout)
        folder = write_parquet({"train": data}, tmp_path / layout)
        back = open_dataset(folder, "train")[4]
        assert back[0].raster == raster
        assert_same(data[4], back)
        assert np.array_equal(data[4][0].plane("visibility"), back[0].plane("visibility"))
        export_radiomapseer((data[k] for k in range(9)), tmp_path / f"{layout}-files")
        assert_same(
            data[4],
            (RadioMapSeer(tmp_path / f"{layout}-files", "all")[4][0].replace(polygons=data[4][0].polygons), back[1]),
        )
    moved = Scene(np.eye(16, dtype=bool), (8, 2), raster_offset=(0.25, -0.1))
    pair = moved, RadioMap(np.zeros((16, 16)))
    assert map_pair(map_row(pair))[0].raster_offset == (0.25, -0.1)
    row = {name: value for name, value in map_row(pair).items() if not name.startswith("raster")}
    assert map_pair(row)[0].raster == "exact"  # shards of earlier versions have no such columns
    with pytest.raises(ValueError, match="has one gray scale and one raster"):
        export_radiomapseer([pair], tmp_path / "moved")


def test_indoor_maps_keep_their_gray_scale_in_radiomapseers_layout(icassp, tmp_path, caplog):
    data = ICASSP2025(icassp, "all", task=1, buildings=[1])
    export_radiomapseer((data[k] for k in range(2)), tmp_path / "files")
    (scene, radio_map), (_, first) = RadioMapSeer(tmp_path / "files", "all")[0], data[0]
    assert radio_map.scale == GainScale.INDOOR and np.allclose(radio_map.gain_db, first.gain_db)
    assert (scene.metres_per_pixel, scene.frequency_hz, scene.raster) == (0.25, 868e6, "exact")
    data = ICASSP2025(icassp, "all", task=2, buildings=[1])  # three frequencies: the layout has no room for them
    export_radiomapseer((data[k] for k in range(6)), tmp_path / "three")
    assert "no room for a frequency_hz of each map" in caplog.text
    assert RadioMapSeer(tmp_path / "three", "all")[0][0].frequency_hz == 5.9e9


def test_export_in_radiomapseers_layout(seer, shards, tmp_path):
    data = open_dataset(shards, "train")
    counts = export_radiomapseer((data[k] for k in range(len(data))), tmp_path / "seer")
    assert counts == {"maps": 3, "samples": 9}
    back = RadioMapSeer(tmp_path / "seer", "all", layout="polygon", cars_in_input=True)
    first = RadioMapSeer(seer, "all", layout="polygon", cars_in_input=True)
    for k in range(9):
        assert back.ids(k) == first.ids(k) and back[k][0].transmitter == first[k][0].transmitter
        assert np.array_equal(back[k][0].buildings, first[k][0].buildings)
        assert np.allclose(back[k][1].gain_db, first[k][1].gain_db, atol=1e-4)
    with pytest.raises(ValueError, match="not empty"):
        export_radiomapseer([], tmp_path / "seer")
    for name in ("a", "b"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    renamed = [(data[k][0].replace(name=f"city {k}"), data[k][1]) for k in range(6)]
    assert export_radiomapseer(renamed, tmp_path / "b") == {"maps": 2, "samples": 6}


def test_maps_that_would_overwrite_each_other_are_not_exported(seer, tmp_path):
    first, second = (open_dataset(seer, "all")[k] for k in (0, 1))
    name = first[0].name
    assert export_radiomapseer([first, first], tmp_path / "twice") == {"maps": 1, "samples": 1}
    with pytest.raises(ValueError, match=f"{name} comes twice, with different radio maps"):
        export_radiomapseer([first, (first[0], second[1])], tmp_path / "changed")
    moved = second[0].replace(buildings=np.roll(second[0].buildings, 3, 0))
    with pytest.raises(ValueError, match="other buildings or cars than in the other samples of map 0"):
        export_radiomapseer([first, (moved, second[1])], tmp_path / "moved")
    unnamed = (moved.replace(name=None), second[1])
    assert export_radiomapseer([first, unnamed], tmp_path / "more") == {"maps": 2, "samples": 2}
    back = open_dataset(tmp_path / "more", "all", layout="png")
    assert np.array_equal(back[1][0].buildings, moved.buildings) and not np.array_equal(
        back[0][0].buildings, moved.buildings
    )
