"""Training: one loop for every objective, with checkpoints that resume exactly."""

from tamis.training.config import TuneConfig
from tamis.training.tune import TuneResult, tune

__all__ = ["TuneConfig", "TuneResult", "tune"]
