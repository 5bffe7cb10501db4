"""The demo: its functions, the running page spoken to as a browser does, and a real browser where there is one."""

import json
import shutil
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from radiodiff_diffusers import demo_maps
from radiodiff_diffusers.scene import RadioMap, Scene


@pytest.fixture
def scene():
    buildings = np.zeros((60, 80), bool)
    buildings[20:30, 40:50] = True
    return Scene(buildings, transmitter=(20, 25), metres_per_pixel=2.0)


def slope(scene):
    """Gain that falls by 1 dB a pixel to the right."""
    return RadioMap(-60.0 - np.arange(80, dtype=np.float32)[None].repeat(60, 0), metres_per_pixel=2.0)


def test_scenes_from_files_drawings_and_seeds(tmp_path):
    plane = np.zeros((40, 50), np.uint8)
    plane[10:20, 5:15] = 200
    Image.fromarray(plane).save(tmp_path / "a.png")
    made = demo_maps.scene_from_upload(tmp_path / "a.png", metres_per_pixel=0.5)
    assert made.buildings.sum() == 100 and made.metres_per_pixel == 0.5
    drawn = np.full((40, 50, 4), 255, np.uint8)
    drawn[5:9, 5:9, :3] = 0
    drawn[30:, :, 3] = 0  # transparent is paper, whatever colour lies below
    assert demo_maps.scene_from_drawing(drawn).buildings.sum() == 16
    assert (demo_maps.scene_from_seed(3, 64).buildings == demo_maps.scene_from_seed(3, 64).buildings).all()
    ring = [[11.0, 48.0], [11.001, 48.0], [11.001, 48.001], [11.0, 48.001], [11.0, 48.0]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    (tmp_path / "b.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    # One thousandth of a degree: 111 m to the north, 75 m to the east.
    town = demo_maps.scene_from_upload(tmp_path / "b.geojson").buildings
    assert town.sum() == pytest.approx(111 * 75, rel=0.05)
    assert not town[:20].any() and not town[:, -20:].any(), "there is ground for a transmitter"


def test_what_is_too_large_or_no_map_is_refused(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((1200, 1200), np.uint8)).save(tmp_path / "wide.png")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "bad.geojson").write_text("{")
    for name, message in (
        ("wide.png", "at most 1024 x 1024"),
        ("text.png", "not an image"),
        ("bad.geojson", "bad.geojson"),
    ):
        with pytest.raises(ValueError, match=message) as failure:
            demo_maps.scene_from_upload(tmp_path / name)
        assert "\n" not in str(failure.value)
    monkeypatch.setattr(demo_maps, "MAX_FILE_BYTES", 3)
    with pytest.raises(ValueError, match="are taken here"):
        demo_maps.scene_from_upload(tmp_path / "text.png")


def test_a_wrong_model_is_told_before_the_page_opens(tmp_path):
    for model, message in ((tmp_path, "no model_index.json"), (tmp_path / "none", "no such folder")):
        with pytest.raises(ValueError, match=message) as failure:
            demo_maps.Predictor(str(model)).check()
        assert "\n" not in str(failure.value)
    demo_maps.Predictor(None).check()


def test_users_read_the_name_they_gave_and_no_folder(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "mine.png").write_text("hello")
    with pytest.raises(ValueError, match="mine.png is not an image") as failure:
        demo_maps.scene_from_upload(tmp_path / "secret" / "mine.png")
    assert "secret" not in str(failure.value)


def test_coverage_counts_open_ground(scene):
    free = ~scene.buildings
    expected = (np.arange(80)[None].repeat(60, 0)[free] <= 40).mean()
    assert demo_maps.coverage(slope(scene), scene, -100) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("degrees", "end", "step"), [(0, (79, 25), -0.5), (90, (20, 59), 0), (180, (0, 25), 0.5), (270, (20, 0), 0)]
)
def test_profiles_run_to_the_border(scene, degrees, end, step):
    line = demo_maps.profile(slope(scene), scene, degrees)
    assert line.end == pytest.approx(end) and line.metres[0] == 0
    assert line.metres[-1] == pytest.approx(2 * np.hypot(end[0] - 20, end[1] - 25))
    assert np.diff(line.gain_db).mean() == pytest.approx(step, abs=0.02)
    assert line.inside.any() == (degrees == 0)


def test_the_picture_to_click_has_no_margins(scene):
    picture = demo_maps.draw_scene(scene, 3)
    assert picture.shape == (180, 240, 3) and tuple(picture[25 * 3 + 1, 20 * 3 + 1]) == (213, 94, 0)
    assert tuple(picture[75, 135]) == (90, 97, 107) and tuple(picture[5, 5]) == (245, 245, 245)


def test_pictures_are_drawn(scene):
    made = slope(scene)
    truth = RadioMap(made.gain_db - 3, metres_per_pixel=2.0)
    line = demo_maps.profile(made, scene, 10)
    for picture in (
        demo_maps.draw_map(scene, made, "map", line.end),
        demo_maps.draw_truth(scene, made, truth, "free_space"),
        demo_maps.draw_profile(line, demo_maps.profile(truth, scene, 10), "free_space", -100),
    ):
        assert picture.dtype == np.uint8 and picture.shape[2] == 3 and len(np.unique(picture)) > 50
    assert demo_maps.draw_spread(scene, made, [made.gain_db]) is None
    made.std_db = np.abs(made.gain_db) / 20
    assert demo_maps.draw_spread(scene, made, [made.gain_db] * 4).shape[1] > 900


def test_downloads_hold_the_map(scene, tmp_path):
    made = slope(scene)
    made.std_db = np.ones(made.shape, np.float32)
    png, npz, tif = demo_maps.save_downloads(made, tmp_path)
    assert (np.asarray(Image.open(png)) == np.rint(made.gray)).all()
    loaded = RadioMap.load(npz)
    assert (loaded.gain_db == made.gain_db).all() and loaded.metres_per_pixel == 2 and (loaded.std_db == 1).all()
    assert (RadioMap.load(tif).gain_db == made.gain_db).all()


def test_the_geotiff_knows_its_metres(scene, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    path = demo_maps.save_geotiff(slope(scene), tmp_path / "map.tif")
    with rasterio.open(path) as file:
        assert file.dtypes == ("float32",) and tuple(file.bounds) == (0, 0, 160, 120) and file.res == (2, 2)
        assert file.xy(0, 0) == (1.0, 119.0) and 'UNIT["metre",1' in file.crs.to_wkt()


# The running page ----------------------------------------------------------------------------------------------------


class Visitor:
    """Speaks to the page as a browser does: joins the queue, waits for the answer of its session."""

    def __init__(self, address, session):
        self.address, self.session = address, session
        config = json.loads(self._get("config"))
        self.events = {event["api_name"]: event["id"] for event in config["dependencies"]}

    def _get(self, path):
        return urllib.request.urlopen(self.address + path, timeout=120).read()

    def do(self, event, data, event_data=None):
        body = {"data": data, "fn_index": self.events[event], "session_hash": self.session, "event_data": event_data}
        request = urllib.request.Request(
            self.address + "gradio_api/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=120).read()
        stream = urllib.request.urlopen(
            self.address + f"gradio_api/queue/data?session_hash={self.session}", timeout=300
        )
        for line in stream:
            message = json.loads(line[5:]) if line.startswith(b"data:") else {}
            if message.get("msg") == "process_completed":
                return message
        raise AssertionError("the page gave no answer")


def free_spot(seed=7):
    """A place of the seed's city well away from walls."""
    from scipy.ndimage import distance_transform_edt

    city = demo_maps.scene_from_seed(seed)
    row, column = np.unravel_index(distance_transform_edt(~city.buildings).argmax(), city.shape)
    return int(column), int(row)


@pytest.fixture(scope="module")
def page():
    """The page without a model: the engine answers, as the page says, and no weights are needed."""
    pytest.importorskip("gradio")
    from radiodiff_diffusers import app

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("radiodiff_diffusers.DEFAULT_MODEL", "/nonexistent")
        with app.serving(port=None) as (_, address):
            yield address
    # All it wrote was in its temporary folder.
    assert not list(Path(tempfile.gettempdir()).glob("radiodiff_demo_*/result_*"))


def test_it_listens_on_this_machine_only_and_loads_no_fonts(page):
    assert page.startswith("http://127.0.0.1:")
    text = urllib.request.urlopen(page, timeout=60).read().decode()
    assert "fonts.googleapis" not in text and "fonts.gstatic" not in text and "no model is installed" in text


def test_click_predict_and_download(page):
    visitor = Visitor(page, "one")
    assert visitor.do("city", [7])["success"]
    x, y = free_spot()
    assert visitor.do("place", [None], {"index": [2 * x, 2 * y], "value": None})["success"]
    answer = visitor.do("predict", [None, 0, 1, 0, -110, 30, "dominant_path"])
    assert answer["success"], answer
    result, facts, line, compared, spread, files = answer["output"]["data"]
    assert f"({x}, {y})" in facts and "of the open ground hears at least -110 dB" in facts
    assert compared["visible"] and not spread["visible"]
    names = [Path(file["path"]).suffix for file in files]
    assert names == [".png", ".npz", ".tif"]
    for file in (result, line, *files):
        assert len(urllib.request.urlopen(file["url"], timeout=60).read()) > 1000


def test_wrong_use_is_told_in_words(page):
    visitor = Visitor(page, "two")
    answer = visitor.do("predict", [None, 0, 1, 0, -110, 30, "none"])
    assert not answer["success"] and "Click into the city first" in answer["output"]["error"]
    visitor.do("city", [7])
    buildings = demo_maps.scene_from_seed(7).buildings
    from scipy.ndimage import distance_transform_edt

    row, column = np.unravel_index(distance_transform_edt(buildings).argmax(), buildings.shape)
    answer = visitor.do("place", [None], {"index": [int(2 * column), int(2 * row)], "value": None})
    assert not answer["success"] and "stands inside a building" in answer["output"]["error"]


def test_ten_visitors_are_all_served(page):
    x, y = free_spot()

    def visit(number):
        visitor = Visitor(page, f"many{number}")
        done = visitor.do("city", [7])["success"]
        done &= visitor.do("place", [None], {"index": [2 * x, 2 * y], "value": None})["success"]
        return done and visitor.do("predict", [None, 0, 1, number, -110, 0, "none"])["success"]

    with ThreadPoolExecutor(10) as pool:
        assert all(pool.map(visit, range(10)))


@pytest.mark.slow
def test_in_a_real_browser(page, tmp_path):
    """Load, click, see a map; click elsewhere, see another; download it; hand in a wrong file and read why."""
    playwright = pytest.importorskip("playwright.sync_api")
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser_path is None:
        pytest.skip("no chromium on this machine: apt install chromium")
    x, y = free_spot()
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1400, "height": 1800})
        tab.set_default_timeout(120_000)
        tab.goto(page)
        city = tab.locator("#city img")
        city.wait_for()
        seen = []
        for dx in (0, 6):
            box = city.bounding_box()
            scale = box["width"] / 256
            city.click(position={"x": (x + dx + 0.5) * scale, "y": (y + 0.5) * scale})
            tab.wait_for_function(f"document.querySelector('#facts').innerText.includes('({x + dx}, {y})')")
            tab.locator("#map img").wait_for()
            seen.append(tab.locator("#map img").get_attribute("src"))
        assert seen[0] != seen[1]
        with tab.expect_download() as download:
            tab.locator("#downloads a[download]").first.click()
        saved = tmp_path / "map.png"
        download.value.save_as(saved)
        assert Image.open(saved).size == (256, 256)
        tab.get_by_role("tab", name="File").click()
        (tmp_path / "wrong.png").write_text("this is no picture")
        tab.locator("#upload input[type=file]").set_input_files(tmp_path / "wrong.png")
        tab.get_by_text("is not an image").first.wait_for()
        browser.close()
