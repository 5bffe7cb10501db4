"""Two processes do what one does, whole or in parts (FSDP)."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toy_recipe import make_run
from toy_runs import config_for, curve, events, fresh_accelerator, run_together  # noqa: F401

from radiodiff_diffusers.training import guard

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
CALM = ["--batch_norm_eval", "true", "--validation.steps", "0", "--max_grad_norm", "0.5"]  # below the gradients


def checkpoint(folder, step, name="models"):
    return load_file(folder / f"checkpoints/step_{step:08d}/{name}.safetensors")


def assert_equal_ends(folder, other, step):
    """Weights, averages and the optimiser's state, to what adding up in another order may do."""
    for name in ("models", "ema"):
        ends = checkpoint(folder, step, name), checkpoint(other, step, name)
        assert ends[0].keys() == ends[1].keys()
        for key, value in ends[0].items():
            torch.testing.assert_close(value, ends[1][key], rtol=1e-4, atol=1e-6)
    states = [torch.load(f / f"checkpoints/step_{step:08d}/training.pt")["optimizers"] for f in (folder, other)]
    for number, values in states[0]["model"]["state"].items():
        for key, value in values.items():
            torch.testing.assert_close(value, states[1]["model"]["state"][number][key], rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    steps = ["--max_steps", "6", "--checkpoint_steps", "3", "--keep_checkpoints", "9"]
    assert run_together(1, folder, "--batch_size", "4", *CALM, *steps, dropout=0.0) == [0]
    return folder


@pytest.mark.parametrize("how", ["whole", "fsdp"])
def test_two_processes_do_what_one_does(tmp_path, one, how):
    """The same global batch, nothing that looks at its own share of it: losses to 1e-4, and weights. The model's last
    bias has one element: with FSDP one process has nothing of it."""
    steps = ["--max_steps", "6", "--checkpoint_steps", "3", "--batch_size", "2"]
    given = {"dropout": 0.0, "environment": FSDP if how == "fsdp" else {}}
    assert run_together(2, tmp_path, *CALM, *steps, **given) == [0, 0]
    assert list(curve(one)) == list(curve(tmp_path)) == [1, 2, 3, 4, 5, 6]
    assert np.allclose(list(curve(one).values()), list(curve(tmp_path).values()), rtol=1e-4)
    norms = [[e["grad_norm/model"] for e in events(f)] for f in (one, tmp_path)]
    assert np.allclose(*norms, rtol=1e-4)
    assert_equal_ends(one, tmp_path, 6)


@pytest.mark.parametrize("before, after", [(2, 1), (1, 2), (2, 2)])
def test_a_sharded_run_goes_on_with_other_processes(tmp_path, one, before, after):
    """Checkpoints hold whole tensors: saved by two processes with parts, loaded by one without, and the other way."""

    def go(processes, *more):
        environment = FSDP if processes > 1 else {}
        arguments = ["--batch_size", str(4 // processes), *CALM, "--checkpoint_steps", "3", *more]
        assert run_together(processes, tmp_path, *arguments, dropout=0.0, environment=environment) == [0] * processes

    go(before, "--max_steps", "3")
    go(after, "--max_steps", "6", "--resume", "latest", "--allow_config_change", "true")
    assert np.allclose(list(curve(one).values()), list(curve(tmp_path).values()), rtol=1e-4)
    assert_equal_ends(one, tmp_path, 6)


@pytest.mark.parametrize("trouble, code", [({"bad_losses": (1, 4, 5, 6)}, 3), ({"overflows": (1, 4)}, 0)])
def test_a_sharded_run_guards_itself(tmp_path, trouble, code):
    """An infinite loss in one process, so that no backward pass follows, three of them a rollback; a gradient that
    overflows in the part of one process only: all processes leave the step out, and end where whole models end."""
    steps = ["--max_steps", "8", "--checkpoint_steps", "3", "--batch_size", "2", *CALM]
    for how, environment in (("whole", {}), ("fsdp", FSDP)):
        ends = run_together(2, tmp_path / how, *steps, dropout=0.0, environment=environment, **trouble)
        assert ends == [code, code]
    whole, sharded = (events(tmp_path / how, "end")[-1] for how in ("whole", "fsdp"))
    counts = ("step", "bad_steps", "rollbacks", "overflows")
    assert [whole[c] for c in counts] == [sharded[c] for c in counts]
    assert sharded["overflows"] == len(trouble.get("overflows", ())) and sharded["step"] == 8
    assert sharded["rollbacks"] == (1 if code else 0)
    assert_equal_ends(tmp_path / "whole", tmp_path / "fsdp", 8)


def test_what_fsdp_cannot_do_stops_in_one_line(monkeypatch, tmp_path):
    from radiodiff_diffusers.training.sharding import sharding_plugin

    run, _ = make_run(config_for(tmp_path))
    train = run.config.train
    several = type("Accelerator", (), {"num_processes": 2, "state": None})()
    assert sharding_plugin(several, train, {"a": None}) is None  # not asked for
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert sharding_plugin(run.accelerator, train, {"a": None}) is None  # one process has nothing to share
    with pytest.raises(ValueError, match="fsdp_version: 2"):
        sharding_plugin(several, train, {"a": None})
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert sharding_plugin(several, train, {"a": None}).fsdp_version == 2
    with pytest.raises(ValueError, match="one optimiser .* vae and discriminator: .*MULTI_GPU"):
        sharding_plugin(several, train, {"vae": None, "discriminator": None})
    train.compile = True
    with pytest.raises(ValueError, match="train.compile"):
        sharding_plugin(several, train, {"a": None})
    train.compile = False
    monkeypatch.setenv("FSDP_ACTIVATION_CHECKPOINTING", "true")
    with pytest.raises(ValueError, match="train.gradient_checkpointing"):
        sharding_plugin(several, train, {"a": None})
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(ValueError, match="fsdp_offload_params: false"):
        sharding_plugin(several, train, {"a": None})


def test_two_processes_skip_a_bad_file_together_and_resume(tmp_path):
    """One sees the bad file, both leave the batch out; nobody waits for ever. Then they resume to the same curve."""
    steps = ["--max_steps", "10", "--checkpoint_steps", "5"]
    incidents = [guard.EXIT_FINISHED_WITH_INCIDENTS] * 2
    assert run_together(2, tmp_path / "run", *steps, bad_sample=3) == incidents
    bad = events(tmp_path / "run", "guard")
    assert bad and all(e["files"] == ["map_3"] for e in bad)
    whole = curve(tmp_path / "run")
    assert run_together(2, tmp_path / "run", *steps, "--resume", "5", bad_sample=3) == incidents
    assert curve(tmp_path / "run") == whole and len(whole) == 10


def asked(monkeypatch, *command):
    """What torch's launcher would be told, were this process started by that command."""
    from radiodiff_diffusers.training import processes

    parent = type("Process", (), {"__init__": lambda self, pid: None, "cmdline": lambda self: list(command)})
    monkeypatch.setattr("psutil.Process", parent)
    return processes._torch_arguments()


def test_processes_that_accelerate_leaves_out_are_started(monkeypatch, tmp_path):
    two = ["--standalone", "--nproc_per_node", "2"]
    recipe = ["examples/ldm/train.py", "--config", "some.yaml", "--num_processes", "7"]
    for start in (["accelerate", "launch"], ["/bin/accelerate-launch"], ["-m", "accelerate.commands.launch"]):
        assert asked(monkeypatch, "python", *start, "--cpu", "--num-processes=2", *recipe) == two
    config = tmp_path / "accelerate.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n"
    )
    assert asked(monkeypatch, "python", "accelerate", "launch", "--config_file", str(config), *recipe) == two
    address = ["--main_process_ip", "10.0.0.1", "--main_process_port", "29511"]
    machines = ["--cpu", "--num_processes", "4", "--num_machines", "2", "--machine_rank", "1", *address]
    assert asked(monkeypatch, "python", "accelerate", "launch", *machines, *recipe) == [
        "--nproc_per_node", "2", "--nnodes", "2", "--node_rank", "1", "--master_addr", "10.0.0.1",
        "--master_port", "29511",
    ]  # fmt: skip
    assert asked(monkeypatch, "bash") is None


def test_only_what_accelerate_left_alone_starts_others(monkeypatch, caplog):
    """Not a plain start, nor one of several; and where nothing is known of the number, a word of warning."""
    from radiodiff_diffusers.training.processes import start_missing_processes

    started = []
    monkeypatch.setattr("os.execv", lambda program, arguments: started.append(arguments))
    asked(monkeypatch, "python", "accelerate", "launch", "--cpu", "--num_processes", "3", "train.py")
    monkeypatch.setattr("sys.argv", ["train.py", "--config", "some.yaml"])
    start_missing_processes()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    start_missing_processes()
    assert started == []
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    start_missing_processes()
    assert started.pop()[1:] == [
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3", "train.py", "--config", "some.yaml"
    ]  # fmt: skip
    asked(monkeypatch, "bash")
    start_missing_processes()
    assert "torchrun --standalone --nproc_per_node 2 train.py" in caplog.text
    monkeypatch.setenv("RANK", "0")
    asked(monkeypatch, "python", "accelerate", "launch", "--cpu", "--num_processes", "3", "train.py")
    start_missing_processes()
    assert started == []
