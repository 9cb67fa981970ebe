"""The controllers of the scripts in algos/, each with its script's flags as settings.

A controller with `weights` sets the trainer's reward weights and leaves the advantages to TRL; one
with `advantages` replaces them, because they are those of no weighted sum.
"""

import inspect
import re
from dataclasses import fields
from functools import cache
from typing import get_args

from .errors import SettingsError, require
from .scripts import controllers, load


class Method:
    """A controller with its settings: the script's flags, with its defaults. Numbers per objective
    are in the order of the trainer's reward functions. `method` makes the subclasses, such as CTWA,
    whose `script` and `kind` are the module and the controller's class."""

    def __init__(self, **settings) -> None:
        """Raises SettingsError for a setting that there is not."""
        name, kind, known = type(self).__name__, self.kind, self.defaults
        weighted, measures = hasattr(kind, "weights"), hasattr(kind, "measure")
        told = "wants a gradient of each objective, which TRL has not: it runs as a script alone"
        require(weighted or hasattr(kind, "advantages"), f"{name} {told}")
        for key in settings:
            require(key in known, f"{name} has no setting {key}; it has {list(known)}")
        self.given, self.settings = settings, known | settings
        after = self.settings.pop("after_update", measures)
        # what of the updated policy it looks at: nothing; the completions that were trained on, by
        # a forward pass (and one before the update where TRL has none); or those not yet trained
        # on, as the later updates of a generation come to them, at no cost
        fresh = hasattr(kind, "learn") and not measures
        self.look = "fresh" if fresh else "same" if after else ""
        # the values of `scale_rewards` with which its mathematics holds
        self.scales = [True, "group"]
        if weighted:
            self.scales += ["batch"] if "after_update" in known else ["batch", False, "none"]

    def start(self, objectives: list[str]):
        """The controller for these objectives. Raises SettingsError naming the setting."""
        script = self.script
        # of several controllers in a script its flag `variant` chooses
        for variant in get_args(script.Args.__annotations__.get("variant")) or [""]:
            args = script.Args(**self.settings)
            args.variant = variant
            controller = self.ask(script.controller, args, objectives, "cpu")
            if isinstance(controller, self.kind):
                break
        return controller

    def ask(self, function, *inputs):
        """What a function of the script gives. Raises SettingsError in place of its UserError, and
        of what it finds in a setting of the wrong type."""
        try:
            return function(*inputs)
        except (load("common/errors").UserError, TypeError, ValueError) as error:
            given = ", ".join(f"{name}={value!r}" for name, value in self.given.items())
            told = re.sub(r"--([a-z-]+)", lambda flag: flag[1].replace("-", "_"), str(error))
            raise SettingsError(f"{type(self).__name__}({given}): {told}") from error


@cache
def method(name: str) -> type[Method]:
    """The Method of a controller's class, such as CTWA. Raises AttributeError."""
    if name not in controllers():
        raise AttributeError(f"no script in algos/ has a controller {name}")
    file = f"algos/{controllers()[name]}"
    script = load(file)
    kind, source = getattr(script, name), inspect.getsource(script.controller)
    # the name of the class says the variant, and GRPOConfig the mini-batches
    read = {*re.findall(r"\bargs\.(\w+)", source)} - {"variant", "mini_batches"}
    own = {flag.name: flag.default for flag in fields(script.Args) if flag.name in read}
    # one that learns from advantages may do so before the update, where ratios are 1; one that
    # learns from what the update did to the rewards may not
    if hasattr(kind, "measure") and not hasattr(kind, "reached"):
        own["after_update"] = False
    told = f"The controller of {file}.py, with the settings {own}"
    return type(name, (Method,), {"script": script, "kind": kind, "defaults": own, "__doc__": told})
