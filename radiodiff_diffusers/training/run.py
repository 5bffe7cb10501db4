"""One training run, whatever the recipe: a readable loop that cannot be lost.

A recipe makes models, optimisers and samples, and gives two functions:

    training_step(batch) -> ({optimiser's name: loss to minimise}, {name: value to log})
    validate(step) -> {metric: value}        (its models are their moving averages then)

The run does the rest: accumulation, clipping, averages, schedules, the guard, logs, checkpoints, resuming, signals.
Several optimisers step one after the other on gradients of the same batch; each loss reaches only its own optimiser's
parameters.
"""

from __future__ import annotations

import json
import logging
import math
import random
import signal
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, broadcast, broadcast_object_list, gather_object, set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import checkpoints, guard, sharding
from .checkpoints import CheckpointNotWritten
from .config import TrainConfig, write_yaml
from .data import Samples, training_batches
from .ema import ModelEMA
from .logs import RunLog, forget_after
from .preflight import check_trackers, check_train_config, describe_run, validation_interval
from .processes import is_one_of_several_on_the_cpu, start_missing_processes
from .publish import NotUploaded, check_push
from .schedules import make_schedule

logger = logging.getLogger(__name__)

TrainingStep = Callable[[dict[str, Any]], tuple[dict[str, Tensor], dict[str, Any]]]
# What may differ between a checkpoint's configuration and the one that resumes it: nothing of it decides the next
# step.
FREE_TO_CHANGE = (
    "train.output_dir", "train.max_steps", "train.log_steps", "train.trackers", "train.checkpoint_steps",
    "train.compile", "train.keep_checkpoints", "train.milestone_every", "train.resume", "train.init_from",
    "train.allow_config_change", "train.gradient_checkpointing", "data.workers", "validation", "guard", "hub",
)  # fmt: skip


class GuardStop(Exception):
    """The guard has given up."""


def make_accelerator(train: TrainConfig) -> Accelerator:
    """Accelerate as the configuration asks, and this process's random state from the seed."""
    start_missing_processes()
    folder = Path(train.output_dir)
    accelerator = Accelerator(
        cpu=is_one_of_several_on_the_cpu(),
        mixed_precision="no"
        if train.mixed_precision == "fp16" and not torch.cuda.is_available()
        else train.mixed_precision,
        log_with=train.trackers or None,
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "logs")),
    )
    check_train_config(train, accelerator.device)
    check_trackers(train, accelerator)
    set_seed(train.seed)
    return accelerator


class Run:
    """See the top of this file.

    Args:
        recipe: its name, for the log.
        config: the recipe's configuration, with sections `train`, `ema`, `guard`, `validation`.
        accelerator: from `make_accelerator`.
        models: what is trained, by name. The run moves them to the device and keeps them in train mode.
        optimizers: by name; a loss of that name reaches its parameters.
        samples: what to train on.
        averaged: names of the models that have a moving average.
        about: further facts for the log's first line, such as `disc_start`.
        best_by: the validation's number that is smallest at the best checkpoint.
        tracked_as: other names for the groups `loss` and `validation` in the trackers, as an original has them.
    """

    def __init__(
        self,
        recipe: str,
        config: Any,
        accelerator: Accelerator,
        *,
        models: dict[str, nn.Module],
        optimizers: dict[str, torch.optim.Optimizer],
        samples: Samples,
        averaged: tuple[str, ...] = (),
        about: dict[str, Any] | None = None,
        best_by: str = "nmse",
        tracked_as: dict[str, str] | None = None,
    ):
        self.recipe, self.config, self.accelerator, self.about = recipe, config, accelerator, about or {}
        self.best_by, self.tracked_as = best_by, tracked_as or {}
        self.folder = Path(config.train.output_dir)
        self.checkpoints = self.folder / "checkpoints"
        self.models = {name: model.to(accelerator.device) for name, model in models.items()}
        self.optimizers, self.samples = optimizers, samples
        if config.hub.push:
            check_push(config)
        self._send_from_main()
        plugin = sharding.sharding_plugin(accelerator, config.train, optimizers)
        self.sharded = {
            name: sharding.Sharded(self.models[name], optimizer, accelerator, plugin)
            for name, optimizer in optimizers.items()
            if plugin
        }
        self.parameters = {n: [p for g in o.param_groups for p in g["params"]] for n, o in optimizers.items()}
        self.averages = {n: ModelEMA(models[n], config.ema) for n in averaged if config.ema.decay}
        self.guard = guard.Guard(config.guard)
        train = config.train
        batch = train.batch_size * train.gradient_accumulation_steps * accelerator.num_processes
        self.validation_steps = validation_interval(config.validation.steps, self.dataset_size, batch)
        self.schedule = make_schedule(
            train.lr_schedule,
            train.learning_rate,
            train.max_steps,
            train.lr_warmup_steps,
            train.lr_floor,
            train.lr_power,
        )
        # a recipe may give an optimiser a rate of its own: it keeps its ratio to the schedule's
        self._rates = {n: [g["lr"] / train.learning_rate for g in o.param_groups] for n, o in optimizers.items()}

        self.step = 0  # optimiser steps taken
        self.samples_seen = 0  # position in the data, over all processes
        self.lr_scale = 1.0  # shrinks at every rollback
        self.last_loss: float | None = None
        self.best: dict[str, Any] = {}
        self._stop_signal = 0
        self._validated: dict[str, Any] = {}

    @property
    def dataset_size(self) -> int | None:
        return None if self.samples.config.streaming else len(self.samples)

    # The loop
    # ---------------------------------------------------------------------------------------------------------

    def train(
        self,
        training_step: TrainingStep,
        validate: Callable[[int], dict[str, Any]] | None = None,
        export: Callable[[Path], None] | None = None,
    ) -> int:
        """Train to the end and return the process's exit code; see `guard.py` and docs/training.md for what it
        means."""
        train, every = self.config.train, self.validation_steps
        # a run that is asked to stop while it begins stops before its first step
        with self._signals(), checkpoints.naming_a_full_disk(self.folder):
            self._begin()
        status, code = "failed", 1
        try:
            with self._signals():
                while self.step < train.max_steps and not self._stopping():
                    try:
                        values = self._optimizer_step(training_step)
                        if values is None:
                            continue
                        if self.step % train.log_steps == 0 or self.step == train.max_steps:
                            self._log_step(values)
                        is_best = False
                        if validate and every and (self.step % every == 0 or self.step == train.max_steps):
                            is_best = self._validate(validate)
                        if is_best or self.step % train.checkpoint_steps == 0 or self.step == train.max_steps:
                            self.save(is_best)
                    except _RollbackNeeded as needed:
                        self._roll_back(str(needed))
                stopped = self._stopping()
                status, code = self._verdict(stopped, self._is_saved() or self._save_last())
            if not stopped and export is not None:
                code = self._export(export, code)
        except GuardStop as stop:
            code = guard.EXIT_STOPPED_BY_GUARD
            self._give_up(str(stop))
        finally:
            self.log.write("end", self.step, status=status, **_counts_only(self.guard))
            self.log.message(
                f"{status} at step {self.step} of {train.max_steps}: {self.guard.summary()} (exit {code})"
            )
            self.log.close()
        return code

    def _optimizer_step(self, training_step: TrainingStep) -> dict[str, float] | None:
        """One step of every optimiser that has a loss; None where the step was not taken."""
        accumulate = self.config.train.gradient_accumulation_steps
        sums: dict[str, Tensor] = {}
        for _ in range(accumulate):
            batch = self._next_good_batch()
            with self.accelerator.autocast():
                losses, named = training_step(batch)
            loss = torch.stack([v.detach().float() for v in losses.values()]).sum()
            if self._any(not bool(torch.isfinite(loss))):
                self._bad_step(f"the loss is {float(loss)}", batch["name"])
                return None
            for name, value in losses.items():
                # `inputs`: the adversarial loss passes through the discriminator but must not train it
                only = {"inputs": self.parameters[name]} if len(self.optimizers) > 1 else {}
                self.accelerator.backward(value / accumulate, **only)
            for name, value in {"loss": loss, **{f"loss/{n}": v for n, v in named.items()}}.items():
                value = torch.as_tensor(value, dtype=torch.float32, device=loss.device).detach() / accumulate
                sums[name] = sums[name] + value if name in sums else value

        self._average_gradients(losses)
        norms = self._clip(losses)
        if not all(math.isfinite(v) for v in norms.values()):
            self._not_finite(norms, batch["name"])
            return None
        self._set_learning_rates()
        scaler = self.accelerator.scaler
        for name in losses:
            scaler.step(self.optimizers[name]) if scaler else self.optimizers[name].step()
        if scaler:
            scaler.update()
        self._zero_gradients()

        self.step += 1
        self.guard.good_step()
        for average in self.averages.values():
            average.update(self.step)
        self.log.bar.update()
        if self.step % self.config.guard.weight_check_steps == 0:
            self._check_weights()
        return {**sums, **{f"grad_norm/{n}": v for n, v in norms.items()}}

    def _next_good_batch(self) -> dict[str, Any]:
        while True:
            batch = next(self._batches)
            self.samples_seen += self.config.train.batch_size * self.accelerator.num_processes
            problem = guard.find_bad_input(batch)
            if not self._any(problem is not None):
                device = self.accelerator.device
                return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
            found = gather_object([problem] if problem else [])
            files = gather_object(guard.bad_files(batch) if problem else [])
            self.guard.bad_batch(files)
            self._report("bad_batch", "; ".join(found), files)
            if self.guard.wants_rollback:
                raise _RollbackNeeded(f"{self.guard.in_a_row} bad batches in a row")

    def _average_gradients(self, names: Any) -> None:
        """Mean over the processes, as one tensor. The models are not wrapped: autograd and two optimisers stay
        simple. FSDP has averaged its gradients already."""
        if self.accelerator.num_processes == 1:
            return
        for model in self.sharded.values():
            model.take_gradients()
        gradients = [p.grad for n in names for p in self.parameters[n] if p.grad is not None and not self.sharded]
        # each process has seen its own share: running statistics of batch norm are averaged along
        buffers = [b for m in self.models.values() for b in m.buffers() if b.is_floating_point()]
        tensors = gradients + buffers
        if not tensors:
            return
        mean = self.accelerator.reduce(torch.cat([t.detach().flatten().float() for t in tensors]), reduction="mean")
        for tensor, part in zip(tensors, mean.split([t.numel() for t in tensors]), strict=False):
            tensor.data.copy_(part.view_as(tensor))

    def _clip(self, names: Any) -> dict[str, float]:
        """Clip each optimiser's gradients; their norms from before."""
        largest = self.config.train.max_grad_norm
        norms = {}
        for name in names:
            if self.accelerator.scaler:
                self.accelerator.scaler.unscale_(self.optimizers[name])
            norms[name] = sharding.clip_gradients(
                self.parameters[name], largest if largest else math.inf, self.accelerator, name in self.sharded
            )
        return norms

    def _set_learning_rates(self) -> None:
        rate = self.schedule(self.step) * self.lr_scale
        for name, optimizer in self.optimizers.items():
            for group, ratio in zip(optimizer.param_groups, self._rates[name], strict=False):
                group["lr"] = rate * ratio

    def _zero_gradients(self) -> None:
        for model in self.models.values():
            model.zero_grad(set_to_none=True)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)  # of a sharded model's parts

    # What goes wrong
    # --------------------------------------------------------------------------------------------------

    def _not_finite(self, norms: dict[str, float], names: list[str]) -> None:
        bad = ", ".join(f"{n} ({v})" for n, v in norms.items() if not math.isfinite(v))
        scaler = self.accelerator.scaler
        if scaler is None:
            return self._bad_step(f"the gradient's norm is not finite: {bad}", names)
        scaler.update()  # fp16 finds its scale by overflowing: smaller now, and on with the next batch
        self.guard.overflow(scaler.get_scale())
        self._zero_gradients()
        self._report("bad_step", f"fp16 overflow, scale now {scaler.get_scale():g}", names)
        if self.guard.wants_rollback:
            raise _RollbackNeeded("fp16 overflows at every scale")

    def _bad_step(self, what: str, names: list[str]) -> None:
        self._zero_gradients()
        for model in self.sharded.values():
            model.reshard()  # the loss may have been bad, so that no backward pass did it
        self.guard.bad_step()
        self._report("bad_step", what, gather_object(list(names)))
        if self.guard.wants_rollback:
            raise _RollbackNeeded(f"{self.guard.in_a_row} bad steps in a row, the last because {what}")

    def _check_weights(self) -> None:
        bad = self._bad_weights()
        if bad:
            raise _RollbackNeeded(f"weights are not finite: {', '.join(bad[:3])}{' ...' if len(bad) > 3 else ''}")

    def _bad_weights(self) -> list[str]:
        """Those of all processes, which may hold other parts."""
        bad = guard.bad_weights(self.models)
        return list(dict.fromkeys(gather_object(bad))) if self._any(bool(bad)) else []

    def _roll_back(self, reason: str) -> None:
        """Back to the last good checkpoint with a smaller learning rate; the data go on, past what did the harm."""
        self._zero_gradients()
        allowed, scale = self.guard.rolled_back(), self.lr_scale * self.config.guard.lr_factor
        folder = self._choose("latest")
        if not allowed or folder is None:
            raise GuardStop(f"{reason}; after {self.guard.counts.rollbacks - 1} rollbacks the run is given up")
        counts, seen = self.guard.state_dict(), self.samples_seen
        self._load(folder)
        self.guard.load_state_dict(counts)
        self.samples_seen, self.lr_scale = seen, scale
        self.log.move_to(self.step)
        self._report("rollback", f"{reason}; back to step {self.step}, learning rate x {scale:g}", [str(folder)])

    def _give_up(self, reason: str) -> None:
        self._report("stop", reason, self.guard.counts.files)
        if self.accelerator.is_main_process:
            self.guard.write_report(self.folder / "guard_report.json", self.step, reason)

    def _report(self, kind: str, detail: str, files: list[str]) -> None:
        self.log.write("guard", self.step, kind=kind, detail=detail, files=files)
        counts = _counts_only(self.guard)
        self.log.track({f"guard/{k}": v for k, v in counts.items()}, self.step)
        self.log.message(f"guard, step {self.step}: {kind}: {detail}")

    # Looking at it
    # ----------------------------------------------------------------------------------------------------

    def _log_step(self, values: dict[str, Any]) -> None:
        tensors = {k: v for k, v in values.items() if isinstance(v, Tensor)}
        means = self.accelerator.reduce(torch.stack(list(tensors.values())), reduction="mean").tolist()
        values = {**dict(zip(tensors, means, strict=False)), **{k: v for k, v in values.items() if k not in tensors}}
        self.last_loss = values["loss"]
        first = next(iter(self.optimizers.values()))
        self.log.train(self.step, self.samples_seen, {**values, "lr": first.param_groups[0]["lr"]})

    def _validate(self, validate: Callable[[int], dict[str, Any]]) -> bool:
        """Validate the averages; whether this is the best so far."""
        with self.evaluating():
            self._validated = validate(self.step)
        score = self._validated.get(self.best_by)
        is_best = score is not None and math.isfinite(score) and score < self.best.get(self.best_by, math.inf)
        if is_best:
            self.best = {"step": self.step, self.best_by: score}
        self.log.write("validation", self.step, **self._validated)
        self.log.track({f"validation/{k}": v for k, v in self._validated.items()}, self.step)
        self.log.restart_clock(self.samples_seen)
        return is_best

    @contextmanager
    def evaluating(self):
        """Averages in place of weights, eval mode, no trace in the random state; sharded models are whole."""
        modes = [(module, module.training) for model in self.models.values() for module in model.modules()]
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
            stack.enter_context(torch.no_grad())
            for average in self.averages.values():
                stack.enter_context(average.swapped_in())
            for model in self.sharded.values():
                stack.enter_context(model.whole())
            for model in self.models.values():
                model.eval()
            try:
                yield
            finally:
                for module, training in modes:
                    module.training = training

    # Saving and resuming
    # ----------------------------------------------------------------------------------------------

    def save(self, is_best: bool = False) -> bool:
        """Write a checkpoint; false, and a message, where the disk does not take it. The older ones stay."""
        self._check_weights()
        contents = self._collect()
        written = True
        if self.accelerator.is_main_process:
            try:
                path = checkpoints.write_checkpoint(self.checkpoints, self.step, lambda f: self._write(f, *contents))
                checkpoints.prune(
                    self.checkpoints,
                    self.config.train.keep_checkpoints,
                    keep={checkpoints.folder_name(self.best["step"])} if self.best else set(),
                    milestone=self._is_milestone,
                )
                self.log.write("checkpoint", self.step, path=str(path), best=is_best)
            except CheckpointNotWritten as error:
                written = False
                self.log.message(f"WARNING: {error}; training goes on, the last good checkpoint is kept")
                self.log.write("checkpoint", self.step, path=None, error=str(error))
        self.log.restart_clock(self.samples_seen)
        return not self._any(not written)

    def _save_last(self) -> bool:
        try:
            return self.save()
        except _RollbackNeeded as needed:
            self._report("bad_step", f"not saved: {needed}", [])
            return False

    def _collect(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint holds, in full in the main process: any number of processes can go on with it."""
        main = self.accelerator.is_main_process
        training = {
            "optimizers": {
                n: self.sharded[n].collect_optimizer(main) if n in self.sharded else o.state_dict()
                for n, o in self.optimizers.items()
            },
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "random": gather_object([_random_state()]),
        }
        models, averages = self._model_tensors(), self._average_tensors()
        return sharding.collect(models, main), sharding.collect(averages, main), training

    def _write(self, folder: Path, models: dict[str, Tensor], averages: dict[str, Tensor], training: dict) -> None:
        for name, tensors in (("models", models), ("ema", averages)):
            if tensors:
                save_file({k: v.contiguous() for k, v in tensors.items()}, folder / f"{name}.safetensors")
        torch.save(training, folder / "training.pt")
        state = {
            "step": self.step,
            "samples_seen": self.samples_seen,
            "lr_scale": self.lr_scale,
            "loss": self.last_loss,
            "best": self.best,
            "guard": self.guard.state_dict(),
            "validation": {k: v for k, v in self._validated.items() if isinstance(v, (int, float, str))},
            "recipe": self.recipe,
            "config": asdict(self.config),
        }
        (folder / "state.json").write_text(json.dumps(state, indent=1))

    def _model_tensors(self) -> dict[str, Tensor]:
        """What training changes: trained parameters, and buffers. Frozen weights are where they came from."""
        return {
            f"{model_name}.{name}": value.detach()
            for model_name, model in self.models.items()
            for name, value in [*model.named_parameters(), *model.named_buffers()]
            if not (isinstance(value, nn.Parameter) and not value.requires_grad)
        }

    def _average_tensors(self) -> dict[str, Tensor]:
        return {f"{n}.{k}": v for n, a in self.averages.items() for k, v in a.tensors().items()}

    @torch.no_grad()
    def _load(self, folder: Path) -> dict[str, Any]:
        """Put everything back as the checkpoint holds it."""
        state = checkpoints.read_state(folder)
        _copy_tensors(load_file(folder / "models.safetensors"), self._model_tensors(), folder)
        if self.averages:
            _copy_tensors(load_file(folder / "ema.safetensors"), self._average_tensors(), folder)
        training = torch.load(folder / "training.pt", map_location="cpu", weights_only=True)
        for name, optimizer in self.optimizers.items():
            # both take what an optimiser of whole parameters would hold
            load = self.sharded[name].load_optimizer if name in self.sharded else optimizer.load_state_dict
            load(training["optimizers"][name])
        if self.accelerator.scaler and training["scaler"]:
            self.accelerator.scaler.load_state_dict(training["scaler"])
        rank = self.accelerator.process_index
        if rank < len(training["random"]):
            _set_random_state(training["random"][rank])
        self.step, self.samples_seen = state["step"], state["samples_seen"]
        self.lr_scale, self.last_loss, self.best = state["lr_scale"], state["loss"], state["best"]
        self.guard.load_state_dict(state["guard"])
        self._validated = state["validation"]
        return state

    def _begin(self) -> None:
        """Resume or start: afterwards the next step can be taken."""
        train = self.config.train
        existing = checkpoints.list_checkpoints(self.checkpoints)
        folder = self._choose(train.resume) if train.resume else None
        if existing and not train.resume:
            raise ValueError(
                f"{self.folder} already holds a run with checkpoints: go on with --resume latest, or choose another "
                "--output_dir"
            )
        if train.resume and folder is None:
            logger.warning("nothing to resume in %s: the run starts at step 0", self.checkpoints)
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
        state = None
        if folder is not None:
            self._check_config(checkpoints.read_state(folder), folder)
            state = self._load(folder)
            if self.accelerator.is_main_process:
                forget_after(self.folder / "metrics.jsonl", self.step)
                checkpoints.set_aside_after(self.checkpoints, self.step)
        else:
            set_seed(train.seed, device_specific=True)  # random states (dropout) of their own for all processes
        self.accelerator.wait_for_everyone()
        for model in self.models.values():
            model.train()
            if train.batch_norm_eval:
                for module in model.modules():
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):
                        module.eval()
        self._batches = training_batches(
            self.samples,
            train.batch_size,
            self.samples_seen,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        self.log = RunLog(self.folder, self.accelerator, train.max_steps, asdict(self.config), self.tracked_as)
        self.log.message(describe_run(self))
        self.log.move_to(self.step)
        self.log.restart_clock(self.samples_seen)
        if state is not None:
            self.log.write("resume", self.step, **{"from": str(folder), "loss": state["loss"]})
            return
        self.log.write(
            "start", 0, recipe=self.recipe, config=asdict(self.config), **{"disc_start": None, **self.about}
        )
        if self.accelerator.is_main_process:
            write_yaml(self.config, self.folder / "config.yaml")
        bad = self._bad_weights()
        if bad:
            raise ValueError(f"weights are not finite at the start ({bad[0]}): check train.init_from")
        self.save()  # so that there is always something to roll back to

    @torch.no_grad()
    def _send_from_main(self) -> None:
        """All processes begin with the main one's weights."""
        if self.accelerator.num_processes > 1:
            for tensor in self._model_tensors().values():
                tensor.copy_(broadcast(tensor))

    def _check_config(self, state: dict[str, Any], folder: Path) -> None:
        if state["recipe"] != self.recipe:
            raise ValueError(f"{folder} belongs to a run of {state['recipe']}, this is {self.recipe}")
        changed = _differences(state["config"], asdict(self.config))
        changed = [c for c in changed if not any(c[0] == f or c[0].startswith(f + ".") for f in FREE_TO_CHANGE)]
        if not changed:
            return
        text = ", ".join(f"{key} was {old!r} and is {new!r}" for key, old, new in changed)
        if not self.config.train.allow_config_change:
            raise ValueError(f"{folder} was trained otherwise: {text}; to go on so, add --allow_config_change true")
        logger.warning("resuming with a changed configuration: %s", text)

    def _choose(self, which: str) -> Path | None:
        """The main process looks at the checkpoints, the others follow."""
        answer: list[Any] = [None, None]
        if self.accelerator.is_main_process:
            try:
                answer[0] = checkpoints.choose_checkpoint(self.checkpoints, which)
            except ValueError as error:
                answer[1] = str(error)
        broadcast_object_list(answer)
        if answer[1]:
            raise ValueError(answer[1])
        return answer[0]

    def _is_milestone(self, step: int) -> bool:
        every = self.config.train.milestone_every * self.config.train.checkpoint_steps
        return every > 0 and step > 0 and step % every == 0

    def _is_saved(self) -> bool:
        return (self.checkpoints / checkpoints.folder_name(self.step) / checkpoints.MANIFEST).exists()

    # The end
    # ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def _signals(self):
        """SIGTERM and Ctrl-C ask the run to save and leave after the step it is in; a second Ctrl-C leaves at once."""

        def ask(number: int, _frame: Any) -> None:
            if self._stop_signal and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._stop_signal = number

        try:
            old = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread: whoever started it handles signals
            old = {}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _stopping(self) -> bool:
        return self._any(bool(self._stop_signal))

    def _verdict(self, stopped: bool, saved: bool) -> tuple[str, int]:
        if not saved:
            return ("stopped" if stopped else "finished"), guard.EXIT_NOT_SAVED
        if stopped:
            return "stopped", 128 + (self._stop_signal or signal.SIGTERM)
        return "finished", self.guard.exit_code

    def _export(self, export: Callable[[Path], None], code: int) -> int:
        """Write the model that the run was for, from its averages."""
        with self.evaluating():
            if self.accelerator.is_main_process:
                try:
                    export(self.folder / "model")
                except NotUploaded as error:
                    self.log.message(f"WARNING: {error}")
                    code = guard.EXIT_NOT_SAVED
                except Exception as error:
                    if not checkpoints.is_about_the_disk(error):
                        raise
                    self.log.message(f"WARNING: the model could not be written to {self.folder}: {error}")
                    code = guard.EXIT_NOT_SAVED
        self.accelerator.wait_for_everyone()
        return code

    def _any(self, flag: bool) -> bool:
        """Whether it is so in any process; all of them get the same answer."""
        if self.accelerator.num_processes == 1:
            return flag
        count = torch.tensor(float(flag), device=self.accelerator.device)
        return bool(self.accelerator.reduce(count, reduction="sum") > 0)


class _RollbackNeeded(Exception):
    pass


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_random_state(state: dict[str, Any]) -> None:
    kind, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _copy_tensors(stored: dict[str, Tensor], own: dict[str, Tensor], folder: Path) -> None:
    strange = sorted(stored.keys() ^ own.keys()) or sorted(k for k in own if own[k].shape != stored[k].shape)
    if strange:
        raise ValueError(f"{folder} holds another model: {strange[0]} and {len(strange) - 1} more tensors do not fit")
    for name, value in own.items():
        sharding.local(value).copy_(sharding.local(sharding.part_like(value, stored[name])))


def _differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            d for k in old.keys() | new.keys() for d in _differences(old.get(k), new.get(k), f"{path}.{k}".strip("."))
        ]
    return [] if old == new else [(path, old, new)]


def _counts_only(guard_: guard.Guard) -> dict[str, int]:
    return {k: v for k, v in guard_.state_dict().items() if isinstance(v, int)}
