"""The schedulers this package adds to diffusers."""

from .scheduling_const_sde import ConstSDEScheduler, ConstSDESchedulerOutput

__all__ = ["ConstSDEScheduler", "ConstSDESchedulerOutput"]
