"""Multi-objective alignment for TRL's GRPOTrainer, in two lines:

    trainer = GRPOTrainer(model, reward_funcs=[accuracy, conciseness, clarity], args=args, train_dataset=data)
    multi_objective(trainer, CTWA())

The mathematics is that of the scripts in algos/, loaded from them. docs/integrations.md says what each method sets, what differs from its
script, and on which versions of TRL it was tested.
"""

from .errors import SettingsError
from .methods import (
    CTWA,
    FAMO,
    GDPO,
    PAMA,
    RVPO,
    SAMRPO,
    Gated,
    Lagrangian,
    Linear,
    MirrorDescent,
    Ratchet,
    SmoothTchebycheff,
    Tchebycheff,
)
from .trainer import multi_objective

__all__ = [
    "CTWA",
    "FAMO",
    "GDPO",
    "PAMA",
    "RVPO",
    "SAMRPO",
    "Gated",
    "Lagrangian",
    "Linear",
    "MirrorDescent",
    "Ratchet",
    "SettingsError",
    "SmoothTchebycheff",
    "Tchebycheff",
    "multi_objective",
]
