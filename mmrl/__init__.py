"""mmrl: reinforcement learning for models that see, paint and act.

The core knows decisions with a log-probability and no domain. Start at `mmrl/trainer.py`.
"""

__version__ = "0.1.0"
