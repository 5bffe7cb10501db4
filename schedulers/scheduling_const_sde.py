"""Decoupled diffusion with a constant drift: the forward process, sampler and loss weights of RadioDiff."""

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

SOLVERS = ("sde", "ode")


@dataclass
class ConstSDESchedulerOutput(BaseOutput):
    """
    Output of [`ConstSDEScheduler.step`].

    Args:
        prev_sample (`torch.Tensor`):
            The sample at the next, smaller time; the model's next input.
        pred_original_sample (`torch.Tensor`):
            The clean sample as predicted at this step, useful for previews and guidance.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class ConstSDEScheduler(SchedulerMixin, ConfigMixin):
    """
    The constant-drift diffusion of RadioDiff. Time is continuous and runs from 1 (noise) down to 0 (data):

        x_t = x_0 + C t + sqrt(t) noise,   C = -x_0,   t in (0, 1]

    The model predicts drift C and noise, in this order, as one tensor of twice the sample's channels.

    Args:
        num_train_timesteps (`int`, defaults to 1000):
            The length diffusers' tools report for this schedule. Time is continuous, so nothing else depends on it.
        eps (`float`, defaults to 1e-4):
            The smallest time the model is trained at, and the length of the extra last step.
        prediction_type (`str`, defaults to `"pred_KC"`):
            What the model predicts. Drift and noise are the only pair known.
        final_denoise (`bool`, defaults to `True`):
            Split the last step in two, the second of length `eps`: one more evaluation of the model near the data.
        clip_sample (`bool`, defaults to `False`):
            Clip the predicted clean sample to [-1, 1]. For models that work on pixels; latents have no such range.
        solver (`str`, defaults to `"sde"`):
            `"sde"` draws from the exact reverse transition and adds fresh noise at every step; `"ode"` puts the
            current predictions back into the forward process and adds none, so the result depends on the start alone.
    """

    _compatibles = []
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        eps: float = 1e-4,
        prediction_type: str = "pred_KC",
        final_denoise: bool = True,
        clip_sample: bool = False,
        solver: str = "sde",
    ):
        if prediction_type != "pred_KC":
            raise ValueError(f"prediction_type is {prediction_type!r}; ConstSDEScheduler only knows 'pred_KC'.")
        if solver not in SOLVERS:
            raise ValueError(f"solver is {solver!r}; choose one of {', '.join(SOLVERS)}.")
        if not 0 < eps < 1:
            raise ValueError(f"eps is {eps}; it must lie between 0 and 1 (RadioDiff uses 1e-4).")
        self.init_noise_sigma = 1.0  # x_1 is pure standard normal noise
        self.num_inference_steps = None
        self.timesteps = torch.linspace(1.0, 1.0 / num_train_timesteps, num_train_timesteps)
        self._times: list[float] | None = None
        self._step_index = None
        self._begin_index = None

    @property
    def step_index(self) -> int | None:
        """The index of the next step, or `None` before the first one."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The index of the first step when sampling starts in the middle of the schedule."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0):
        """Start at this index of the schedule, for image-to-image use."""
        self._begin_index = begin_index

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None) -> torch.Tensor:
        """Return the sample as it is: this process needs no input scaling."""
        return sample

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[float] | None = None,
    ):
        """
        Choose the times at which the model is evaluated.

        Args:
            num_inference_steps (`int`, *optional*):
                Number of equal steps from 1 to 0. With `final_denoise` the last of them is split in two, so the model
                runs once more than this number.
            device (`str` or `torch.device`, *optional*):
                Where `timesteps` should live.
            timesteps (`list[float]`, *optional*):
                Your own times instead, strictly descending, in (0, 1]. The last step always lands on 0.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("Pass either num_inference_steps or timesteps to set_timesteps.")
        if timesteps is not None:
            times = torch.as_tensor(timesteps, dtype=torch.float32).cpu()
            if times.ndim != 1 or times.numel() == 0 or not bool(((times > 0) & (times <= 1)).all()):
                raise ValueError(f"timesteps must be a list of times in (0, 1], got {timesteps}.")
            if not bool((times[1:] < times[:-1]).all()):
                raise ValueError(f"timesteps must be strictly descending, got {timesteps}.")
        else:
            if isinstance(num_inference_steps, bool) or int(num_inference_steps) != num_inference_steps:
                raise ValueError(f"num_inference_steps must be a whole number, got {num_inference_steps!r}.")
            if not 1 <= num_inference_steps < 1 / self.config.eps:
                raise ValueError(
                    f"num_inference_steps must be at least 1 and below 1/eps = {1 / self.config.eps:g},"
                    f" got {num_inference_steps}."
                )
            times = self._uniform_times(int(num_inference_steps))
        self.num_inference_steps = len(times) if timesteps is not None else int(num_inference_steps)
        self._times = times.tolist()
        self.timesteps = times.to(device)
        self._step_index = None
        self._begin_index = None

    def _uniform_times(self, num_steps: int) -> torch.Tensor:
        # Subtracting step by step in float32 gives the very times the published sampler evaluates its network at: near
        # t = 0 the rounding of the sum matters, since the step divides by sqrt(t).
        lengths = torch.full((num_steps,), 1.0 / num_steps)
        if self.config.final_denoise:
            step, eps = 1.0 / num_steps, self.config.eps
            lengths = torch.cat([lengths[:-1], torch.tensor([step - eps, eps])])
        time, times = torch.tensor(1.0), []
        for length in lengths:
            times.append(time)
            time = time - length
        return torch.stack(times)

    def index_for_timestep(self, timestep: float | torch.Tensor) -> int:
        """The position of a time in the current schedule."""
        if self._times is None:
            raise ValueError("Call set_timesteps(num_inference_steps) before step.")
        times = torch.as_tensor(timestep, dtype=torch.float32).flatten()
        if times.numel() > 1 and not bool((times == times[0]).all()):
            raise ValueError("step takes one time for the whole batch, got several different ones.")
        time = float(times[0])
        index = min(range(len(self._times)), key=lambda i: abs(self._times[i] - time))
        if abs(self._times[index] - time) > 1e-6 + 5e-3 * time:  # 5e-3: a time that went through bfloat16 still counts
            raise ValueError(f"timestep {time:g} is not in the schedule; pass one of scheduler.timesteps.")
        return index

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> ConstSDESchedulerOutput | tuple:
        """
        Go from one time of the schedule to the next.

        Args:
            model_output (`torch.Tensor`):
                Drift and noise, concatenated along the channels.
            timestep (`float` or `torch.Tensor`):
                The time the model was evaluated at, one of `timesteps`.
            sample (`torch.Tensor`):
                The sample at that time.
            generator (`torch.Generator` or a list of them, *optional*):
                Source of the step's noise; a list holds one generator for each sample of the batch.
            variance_noise (`torch.Tensor`, *optional*):
                The step's noise itself, instead of drawing it.
            return_dict (`bool`, defaults to `True`):
                Return a [`ConstSDESchedulerOutput`] rather than a tuple.

        Returns:
            [`ConstSDESchedulerOutput`] or `tuple`: the next sample, in the dtype of `sample`, and the predicted clean
            sample.
        """
        index = self.index_for_timestep(timestep)
        if model_output.shape[1] != 2 * sample.shape[1]:
            raise ValueError(
                f"model_output has {model_output.shape[1]} channels; drift and noise for a sample of"
                f" {sample.shape[1]} channels take {2 * sample.shape[1]}."
            )
        t = self._times[index]
        t_next = self._times[index + 1] if index + 1 < len(self._times) else 0.0
        s = t - t_next

        # 1. Clean sample from drift and noise; in float32, for the differences are small near t = 0
        x = sample.float()
        drift, noise = model_output.float().chunk(2, dim=1)
        x0 = x - drift * t - t**0.5 * noise
        if self.config.clip_sample:
            x0 = x0.clamp(-1, 1)

        # 2. The next sample
        if self.config.solver == "ode":
            prev_sample = (1 - t_next) * x0 + t_next**0.5 * noise
        else:
            # the reverse transition q(x_{t-s} | x_t, x_0) of the forward process with C = -x_0
            prev_sample = x + s * x0 - s / t**0.5 * noise
            deviation = (s * t_next / t) ** 0.5
            if deviation > 0:
                if variance_noise is None:
                    variance_noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
                prev_sample = prev_sample + deviation * variance_noise.to(x)

        self._step_index = index + 1
        prev_sample = prev_sample.to(sample.dtype)
        x0 = x0.to(sample.dtype)
        if not return_dict:
            return prev_sample, x0
        return ConstSDESchedulerOutput(prev_sample=prev_sample, pred_original_sample=x0)

    # What follows serves training.

    def sample_timesteps(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        device: str | torch.device | None = None,
    ) -> torch.Tensor:
        """Draw one training time for each sample, uniform in [eps, 1]."""
        drawn_on = generator.device if generator is not None else device  # a generator only draws on its own device
        uniform = torch.rand(batch_size, generator=generator, device=drawn_on).to(device or drawn_on)
        return uniform * (1 - self.config.eps) + self.config.eps

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The noised sample (1 - t) x_0 + sqrt(t) noise."""
        t = _per_sample(timesteps, original_samples)
        return ((1 - t) * original_samples + t.sqrt() * noise).to(original_samples.dtype)

    def get_targets(self, original_samples: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the model is to predict: drift C = -x_0, and the noise."""
        return -original_samples, noise

    def loss_weights(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """RadioDiff's weights of the drift's and the noise's loss, 2 e^(1-t) and e^sqrt(t)."""
        return 2 * torch.exp(1 - timesteps), torch.exp(timesteps.sqrt())

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def _per_sample(timesteps: torch.Tensor | float, samples: torch.Tensor) -> torch.Tensor:
    t = torch.as_tensor(timesteps, dtype=torch.float32, device=samples.device).flatten()
    return t.reshape(-1, *[1] * (samples.ndim - 1))
