"""Multi-objective alignment for TRL's GRPOTrainer, in two lines:

    trainer = GRPOTrainer(model, reward_funcs=[accuracy, conciseness, clarity], args=args, ...)
    multi_objective(trainer, CTWA())

CTWA is the controller in algos/ctwa.py, and so is every controller in algos/ importable from here,
with its script's flags as settings. docs/integrations.md says what each sets, what differs from its
script, and on which versions of TRL it was tested.
"""

from .errors import SettingsError
from .methods import method
from .scripts import controllers
from .trainer import multi_objective

__all__ = [*controllers(), "SettingsError", "multi_objective"]
__getattr__ = method  # CTWA and the others
