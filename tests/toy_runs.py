"""Runs of the toy recipe, in this process and in others, for the tests of the run."""

import json
import multiprocessing
import socket
import time
from pathlib import Path

import pytest
import toy_recipe
from accelerate.state import AcceleratorState
from toy_recipe import ToyConfig, make_run

# real processes that can be killed, forked from one that has imported all that takes long
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["radiodiff_diffusers.training.run"])


@pytest.fixture(autouse=True)
def fresh_accelerator(one_thread):
    AcceleratorState._reset_state()  # it is one for the process, and refuses another precision


def config_for(folder, **train):
    config = ToyConfig()
    config.train.output_dir = str(folder)
    for name, value in train.items():
        setattr(config.train, name, value)
    return config


def go(config, **arguments):
    run, step = make_run(config, **arguments)
    return run, run.train(step)


def events(folder, event="train"):
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["event"] == event]


def curve(folder):
    return {e["step"]: e["loss"] for e in events(folder)}


def start_toy(folder, *arguments, seconds=0.0):
    process = PROCESSES.Process(target=toy_recipe.main, args=(["--output_dir", str(folder), *arguments], seconds))
    process.start()
    return process


def run_toy(folder, *arguments):
    process = start_toy(folder, *arguments)
    process.join(timeout=300)
    return process.exitcode


def run_together(count, folder, *arguments, **options):
    """As `accelerate launch --cpu --num_processes count` starts them, over gloo; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
              "LOCAL_WORLD_SIZE": str(count), "ACCELERATE_USE_CPU": "true"}  # fmt: skip
    processes = []
    for rank in range(count):
        environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}
        given = {**options, "environment": environment | options.get("environment", {})}
        argv = ["--output_dir", str(folder), *arguments]
        processes.append(PROCESSES.Process(target=toy_recipe.main, args=(argv,), kwargs=given))
        processes[-1].start()
    end = time.monotonic() + 200
    for process in processes:
        process.join(timeout=max(end - time.monotonic(), 0))
        if process.is_alive():  # waiting for one that has gone
            process.kill()
            process.join()
    return [p.exitcode for p in processes]


def wait_until(condition, process, seconds=400):
    end = time.monotonic() + seconds
    while not condition():
        assert process.is_alive(), f"ended with {process.exitcode}"
        assert time.monotonic() < end, "took too long"
        time.sleep(0.01)
