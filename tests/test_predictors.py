"""The benchmark's predictors: what each must give where the right answer is known."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from radiodiff_diffusers import GainScale, RadioMap, Scene
from radiodiff_diffusers.evaluation import predictors
from radiodiff_diffusers.evaluation.predictors import fit_variogram, make_predictors, ordinary_kriging

FLOOR = GainScale.RADIOMAPSEER.floor_db
INTERPOLATORS = ["log_distance", "nearest", "idw", "rbf", "kriging", "trend_kriging"]


def city(side=40, transmitter=(20, 4)):
    buildings = np.zeros((side, side), bool)
    buildings[12:20, 8:16] = True
    buildings[25:34, 22:30] = True
    return Scene(buildings, transmitter=transmitter)


def measured(scene, gain, count=30, seed=0):
    rng = np.random.default_rng(seed)
    free = np.argwhere(~scene.buildings)
    rows, columns = free[rng.choice(len(free), count, replace=False)].T
    values = np.full(scene.shape, np.nan, np.float32)
    values[rows, columns] = gain[rows, columns]
    scene.measurements = values
    return scene


def predict(name, scene, **options):
    (predictor,) = make_predictors(name, **options)
    (radio_map,) = predictor.load()([scene])
    return radio_map


def slope(scene):
    """A gain that is a plane in x and y."""
    rows, columns = np.indices(scene.shape)
    return (-90.0 - 0.5 * rows + 0.3 * columns).astype(np.float32)


@pytest.mark.parametrize("name", INTERPOLATORS)
def test_interpolators_keep_what_was_measured_and_stay_near_it(name):
    scene = measured(city(), slope(city()))
    radio_map = predict(name, scene)
    assert radio_map.gain_db.dtype == np.float32 and np.isfinite(radio_map.gain_db).all()
    assert (radio_map.gain_db[scene.buildings] == FLOOR).all()
    known = ~np.isnan(scene.measurements)
    error = np.abs(radio_map.gain_db - scene.measurements)[known]
    if name in ("nearest", "idw", "rbf"):
        assert error.max() < 1e-3
    if name != "log_distance":  # whose form a plane has not
        free = ~scene.buildings
        spread = slope(scene)[free].std()
        assert np.sqrt(np.mean((radio_map.gain_db - slope(scene))[free] ** 2)) < 0.5 * spread


@pytest.mark.parametrize("name", INTERPOLATORS)
def test_interpolators_ask_for_measurements_in_one_line(name):
    (predictor,) = make_predictors(name)
    assert predictor.needs_measurements
    with pytest.raises(ValueError, match="needs measurements"):
        predict(name, city())


@pytest.mark.parametrize("name", INTERPOLATORS)
@pytest.mark.parametrize("count", [1, 2])
def test_interpolators_live_with_very_few_measurements(name, count):
    scene = measured(city(), slope(city()), count=count)
    gain = predict(name, scene).gain_db[~scene.buildings]
    assert np.isfinite(gain).all()
    assert FLOOR <= gain.min() and gain.max() <= -47.84 + 1e-3


def test_log_distance_finds_the_law_it_assumes():
    scene = city()
    rows, columns = np.indices(scene.shape)
    distance = np.hypot(columns - 20, rows - 4)
    gain = (-50 - 31 * np.log10(np.maximum(distance, 1))).astype(np.float32)
    fitted = predict("log_distance", measured(scene, gain)).gain_db
    free = ~scene.buildings
    assert np.abs(fitted - gain)[free].max() < 1e-3
    one = predict("log_distance", measured(city(), gain, count=1)).gain_db  # free space's slope through the one point
    law = one[free] + 20 * np.log10(np.maximum(distance, 1))[free]
    assert np.ptp(law) < 1e-3


def test_idw_weighs_by_the_square_of_the_distance():
    scene = city()
    scene.measurements = np.full(scene.shape, np.nan, np.float32)
    scene.measurements[0, 0], scene.measurements[0, 9] = -60, -90
    assert predict("idw", scene).gain_db[0, 3] == pytest.approx((-60 / 9 - 90 / 36) / (1 / 9 + 1 / 36), abs=1e-4)
    assert predict("nearest", scene).gain_db[0, 4] == -60


def test_kriging_solves_the_semivariogram_equations():
    """The same predictor from its other form: weights that sum to one and least variance, in semivariances."""
    rng = np.random.default_rng(1)
    places, values, targets = rng.uniform(0, 50, (15, 2)), rng.normal(-90, 8, 15), rng.uniform(0, 50, (6, 2))
    nugget, sill, reach = 3.0, 60.0, 17.0

    def gamma(a, b):
        h = cdist(a, b)
        return np.where(h > 0, nugget + sill * (1 - np.exp(-h / reach)), 0.0)

    system = np.ones((16, 16))
    system[:15, :15], system[15, 15] = gamma(places, places), 0.0
    right = np.vstack([gamma(places, targets), np.ones(6)])
    solution = np.linalg.solve(system, right)
    assert np.allclose(solution[:15].sum(0), 1)
    mean, std = ordinary_kriging(places, values, targets, (nugget, sill, reach))
    assert np.allclose(mean, values @ solution[:15], atol=1e-8)
    assert np.allclose(std**2, (solution * right).sum(0), atol=1e-8)


def test_kriging_of_a_gaussian_field_is_calibrated_and_its_variogram_found():
    rng = np.random.default_rng(2)
    places = rng.uniform(0, 200, (700, 2))
    sill, reach = 40.0, 25.0
    values = np.linalg.cholesky(sill * np.exp(-cdist(places, places) / reach) + 1e-8 * np.eye(700)) @ rng.normal(
        size=700
    )
    nugget, found_sill, found_reach = fit_variogram(places[:400], values[:400])
    assert (
        nugget < 0.25 * sill
        and 0.5 * sill < found_sill + nugget < 2 * sill
        and 0.4 * reach < found_reach < 2.5 * reach
    )
    mean, std = ordinary_kriging(places[:400], values[:400], places[400:], (0.0, sill, reach))
    assert 0.91 < np.mean(np.abs(mean - values[400:]) < 2 * std) < 0.99
    assert np.sqrt(np.mean((mean - values[400:]) ** 2)) < 0.8 * values.std()
    assert ordinary_kriging(places[:50], values[:50], places[:50], (0.0, sill, reach))[1].max() < 1e-2


def test_kriging_reports_its_spread_and_refuses_what_would_not_end():
    scene = measured(city(), slope(city()))
    assert predict("kriging", scene).std_db.shape == scene.shape
    with pytest.raises(ValueError, match="at most 4000 measurements; got 4001"):
        ordinary_kriging(np.zeros((4001, 2)), np.zeros(4001), np.zeros((1, 2)))


def test_dominant_path_sees_a_scene_as_it_is_now_and_crops_of_one():
    from radiodiff_diffusers.engines import dominant_path

    predict_all = make_predictors("dominant_path")[0].load()
    scene, cars = city(), np.eye(40, dtype=bool)
    predict_all([scene])
    scene.cars = cars
    (changed,), (again,) = predict_all([scene]), predict_all([city().replace(cars=cars)])
    expected = dominant_path(city().replace(cars=cars)).gain_db
    assert np.array_equal(changed.gain_db, expected) and np.array_equal(again.gain_db, expected)
    scene.cars, scene.buildings = None, scene.buildings.T.copy()
    assert np.array_equal(predict_all([scene])[0].gain_db, dominant_path(scene.replace()).gain_db)
    crop = city().crop(0, 0, 24, 20)
    assert np.array_equal(predict_all([crop])[0].gain_db, dominant_path(city()).gain_db[:20, :24])


def test_dominant_path_prepares_a_city_once_and_takes_constants(monkeypatch):
    from radiodiff_diffusers import channels, engines
    from radiodiff_diffusers.engines import dominant_paths

    scenes = [city(), city(transmitter=(5, 30))]
    alone = [engines.dominant_path(scene.replace()).gain_db for scene in scenes]
    prepared = []
    prepare = dominant_paths.prepare
    monkeypatch.setattr(dominant_paths, "prepare", lambda scene: prepared.append(1) or prepare(scene))
    (predictor,) = make_predictors("dominant_path")
    predict_all = predictor.load()
    maps = [*predict_all(scenes[:1]), *predict_all(scenes[1:])]
    assert len(prepared) == 1
    for gain, radio_map in zip(alone, maps, strict=True):
        assert np.array_equal(radio_map.gain_db, gain)
    with_cars = scenes[0].replace(cars=np.eye(40, dtype=bool))
    predictor.load()([scenes[0].replace(), with_cars])
    assert len(prepared) == 3  # a new predictor remembers nothing, and cars make another city
    prepared.clear()
    monkeypatch.setattr(channels, "LARGEST_KEPT", 10)  # of large cities the last one is remembered
    for _ in range(2):
        predict_all([scenes[0].replace(buildings=np.eye(40, dtype=bool))])
    assert len(prepared) == 1
    shallow = predict("dominant_path:shadow_exponent=3.5,corner_loss=5", scenes[0]).gain_db
    assert np.array_equal(shallow, engines.dominant_path(scenes[0], shadow_exponent=3.5, corner_loss=5).gain_db)
    assert (shallow < maps[0].gain_db).any()


def test_free_space_is_the_engines():
    from radiodiff_diffusers.engines import free_space

    assert np.array_equal(predict("free_space", city()).gain_db, free_space(city()).gain_db)


@pytest.mark.parametrize(
    "spec, says",
    [
        ("krigging", "unknown predictor 'krigging': use one of free_space"),
        ("dominant_path:corner=3", "dominant_path has no constant 'corner': its constants are corner_loss"),
        ("dominant_path:corner_loss=much", "expected NAME=NUMBER, got 'corner_loss=much'"),
        ("nearest:k=3", "nearest has no constant 'k': it has none"),
        ("model:", "expected a folder or Hub id"),
        ("model:folder@0", "numbers of steps from 1 up"),
        ("model:folder@1,two", "numbers of steps from 1 up"),
        ("model:/no/such/folder@1", "/no/such/folder: no such folder; expected that of a RadioDiff pipeline"),
        ("unet:", "needs the folder"),
        ("unet:./nowhere", "no such folder; expected that of a plain U-Net"),
    ],
)
def test_wrong_specifications_get_one_line(spec, says):
    with pytest.raises(ValueError) as error:
        make_predictors(spec)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_folder_of_another_kind_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match="is not the folder of a RadioDiff pipeline: it has no model_index.json"):
        make_predictors(f"model:{tmp_path}@1")


def test_own_predictors_by_name():
    @predictors.register_predictor("test_constant")
    def constant(scene, level=-80.0):
        return RadioMap(np.full(scene.shape, level, np.float32))

    try:
        assert (predict("test_constant", city()).gain_db == -80).all()
        assert (predict("test_constant:level=-70", city()).gain_db == -70).all()
        with pytest.raises(ValueError, match="registered already"):
            predictors.register_predictor("test_constant")(lambda scene: None)
    finally:
        del predictors._FUNCTIONS["test_constant"]


# Networks ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    import torch

    from radiodiff_diffusers import ConstSDEScheduler, RadioDiffPipeline, RadioDiffUNet2DModel
    from radiodiff_diffusers.models.presets import RADIODIFF_UNET_PRESETS

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved") / "small"
    RadioDiffPipeline(RadioDiffUNet2DModel(**RADIODIFF_UNET_PRESETS["test"]), ConstSDEScheduler()).save_pretrained(
        folder
    )
    return folder


def test_models_at_several_steps(model_folder):
    from radiodiff_diffusers import RadioDiffPipeline

    scene = city()
    made = make_predictors(f"model:{model_folder}@1,2", num_maps=3, seed=5, device="cpu")
    assert [p.name for p in made] == ["small @ 1 step", "small @ 2 steps"]
    pipe = RadioDiffPipeline.from_pretrained(model_folder)
    pipe.set_progress_bar_config(disable=True)
    for predictor, steps in zip(made, (1, 2), strict=True):
        (radio_map,) = predictor.load()([scene])
        direct = pipe(scene, num_inference_steps=steps, num_maps=3, generator=5).maps[0]
        assert np.allclose(radio_map.gain_db, direct.gain_db, atol=1e-3) and np.allclose(
            radio_map.std_db, direct.std_db, atol=1e-3
        )
    assert [p.name for p in make_predictors(f"model:{model_folder}")] == ["small"]


def test_default_names_the_model_in_the_package(model_folder, monkeypatch):
    monkeypatch.setattr("radiodiff_diffusers.DEFAULT_MODEL", str(model_folder))
    assert [p.name for p in make_predictors("default@1,5")] == ["small @ 1 step", "small @ 5 steps"]


def test_plain_unet_learns_saves_loads_and_takes_any_size(tmp_path):
    import torch

    from radiodiff_diffusers.channels import condition_planes
    from radiodiff_diffusers.evaluation.plain_unet import PlainUNet

    torch.manual_seed(0)
    channels = ["buildings", "transmitter", "log_distance"]
    model = PlainUNet(channels, block_out_channels=[8, 16], layers_per_block=1, patch_size=2)
    scene = city()
    condition = torch.from_numpy(condition_planes(scene, channels))[None]
    target = torch.from_numpy(scene.plane("log_distance"))[None, None] * -0.5
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = (model(condition) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    model.eval().save_pretrained(tmp_path / "unet")
    scenes = [scene, city(side=47), city(transmitter=(3, 3))]
    (predictor,) = make_predictors(f"unet:{tmp_path / 'unet'}", device="cpu")
    maps = predictor.load()(scenes)
    assert [m.shape for m in maps] == [(40, 40), (47, 47), (40, 40)]
    with torch.no_grad():
        unit = model(condition)[0, 0].numpy()
    expected = np.where(scene.buildings, FLOOR, GainScale.RADIOMAPSEER.from_unit(unit))
    assert np.allclose(maps[0].gain_db, expected, atol=1e-2)
