"""Several processes on the CPU, as they were asked for.

    accelerate launch --cpu --num_processes 2 examples/ldm/train.py --config ...

starts one process, whatever the number: on the CPU accelerate leaves the others to mpirun. The recipe notices and
starts all of them with torch's own launcher, which accelerate uses on GPUs.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

# Set in a process that is one of several, whoever started it.
_STARTED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
# `accelerate launch`, by its ways to be called.
_LAUNCHERS = ("launch", "accelerate-launch", "launch.py", "accelerate.commands.launch")


def start_missing_processes() -> None:
    """Where accelerate was asked for several processes on the CPU and started one: become the launcher of them all."""
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    # accelerate sets the address for more than one process, and nothing else that tells
    if not on_cpu or "MASTER_ADDR" not in os.environ or any(name in os.environ for name in _STARTED):
        return
    arguments = _torch_arguments()
    if arguments is None:
        logger.warning(
            "accelerate launch starts one process on the CPU, whatever --num_processes says; for several: "
            "torchrun --standalone --nproc_per_node 2 %s ...",
            sys.argv[0],
        )
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", *arguments, *sys.argv])


def is_one_of_several_on_the_cpu() -> bool:
    """Accelerate takes processes on a machine without GPU for strangers to each other unless it is told."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()


def _torch_arguments() -> list[str] | None:
    """What `accelerate launch` was asked for, for torch's launcher; the parent's command line is the only trace."""
    import psutil
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    try:
        command = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return None
    start = next((i for i, word in enumerate(command) if Path(word).name in _LAUNCHERS), None)
    if start is None:
        return None
    asked = launch_command_parser().parse_args(command[start + 1 :])
    if asked.config_file or (not asked.cpu and os.path.isfile(default_config_file)):
        for name, value in vars(load_config_from_file(asked.config_file)).items():
            if getattr(asked, name, None) is None:
                setattr(asked, name, value)
    machines = asked.num_machines or 1
    processes = (asked.num_processes or 1) // machines
    if machines == 1 and not asked.main_process_port:
        return ["--standalone", "--nproc_per_node", str(processes)]
    return [
        "--nproc_per_node", str(processes), "--nnodes", str(machines), "--node_rank", str(asked.machine_rank or 0),
        "--master_addr", str(asked.main_process_ip or "127.0.0.1"), "--master_port", str(asked.main_process_port),
    ]  # fmt: skip
