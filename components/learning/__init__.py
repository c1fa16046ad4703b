"""Learning a concept: flow matching, the objective of pure learning, the two stages and their one training loop."""

from components.learning.extractor import train_extractor
from components.learning.pure import train_pure
from components.learning.tracker import NullTracker, Tracker

__all__ = ["NullTracker", "Tracker", "train_extractor", "train_pure"]
