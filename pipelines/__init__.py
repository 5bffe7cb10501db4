"""Pipelines: a scene or a label in, a radio map or a spectrogram out."""

from .pipeline_lightningdit import LightningDiTPipeline
from .pipeline_radiodiff import RadioDiffPipeline, RadioDiffPipelineOutput

__all__ = ["LightningDiTPipeline", "RadioDiffPipeline", "RadioDiffPipelineOutput"]
