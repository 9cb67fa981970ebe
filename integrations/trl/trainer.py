"""`multi_objective(trainer, method)`: where a controller meets TRL's GRPOTrainer.

Two of the trainer's methods are wrapped: `_calculate_rewards`, which returns the rewards of all
processes before they are summed, and `_generate_and_score_completions`, which returns advantages of
this one. Both run once per generation, which TRL keeps for steps_per_generation * num_iterations
passes, and in evaluation, which is passed through. A method that looks at the updated policy needs
two more, `_compute_loss` and what computes the tokens' log-probabilities. Everything is computed on
the CPU from what all processes have, so state is the same on all; it goes into trainer_state.json.
"""

import logging
import math

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from .errors import require
from .methods import Method
from .scripts import load

# its name since TRL 0.20, and before
LOGPS = ("_get_per_token_logps_and_entropies", "_get_per_token_logps")
SAVED = "MultiObjective"  # the entry in trainer_state.json
ROW = "multi_objective_row"  # in a generation's tensors: which of this process's completions it is
logger = logging.getLogger(__name__)


def multi_objective(trainer, method: Method):
    """Let a method weigh the rewards of a GRPOTrainer; call it before `trainer.train()`. Returns
    the trainer.

    Raises SettingsError, in one line, for another kind of trainer or an older TRL, a trainer that
    has a method already, fewer than two reward functions or two of one name, settings of the
    trainer that contradict the method, and settings of the method that do not fit.
    """
    told = f"multi_objective needs a method such as CTWA(), got {method!r}: call the class"
    require(isinstance(method, Method), told)
    _check(trainer, method, type(method).__name__)
    session = trainer._multi_objective = _Session(trainer, method)
    # a class of its own per trainer: transformers may restore a callback by calling its class anew
    trainer.add_callback(type(SAVED, (_Callback,), {"session": session})())
    return trainer


def _check(trainer, method: Method, kind: str) -> None:
    """Whether the trainer and its settings go with the method, which is called `kind`."""
    import trl  # here, so that the methods can be imported, and tested, without it

    told = f"multi_objective needs a trl.GRPOTrainer, got a {type(trainer).__name__}"
    require(isinstance(trainer, trl.GRPOTrainer), told)
    told = "this trainer has a method already: call multi_objective once, on a new trainer"
    require(not hasattr(trainer, "_multi_objective"), told)
    names, args, scale = trainer.reward_func_names, trainer.args, trainer.scale_rewards
    told = f"reward_funcs has one function, {names[0]}: there is nothing to weigh; give two or more"
    require(len(names) > 1, told)
    told = f"reward_funcs has two functions of one name: {', '.join(names)}; set their __name__"
    require(len(set(names)) == len(names), told)
    told = f"GRPOConfig(reward_weights={args.reward_weights}) would be overwritten: leave it out"
    require(args.reward_weights is None, f"{told} and give {kind} its own weights")
    how = getattr(trainer, "multi_objective_aggregation", "sum_then_normalize")
    told = f"GRPOConfig(multi_objective_aggregation={how!r}) is a method of its own: leave it out"
    require(how == "sum_then_normalize", f"{told}, or take it alone in place of {kind}")
    told = f"GRPOConfig(scale_rewards={scale!r}) does not go with {kind}: leave it out, or take one"
    require(scale in method.scales, f"{told} of {method.scales}")
    if not method.look:
        return
    each, accumulated = args.steps_per_generation, args.gradient_accumulation_steps
    told = f"{kind} looks at the policy after the last update of a generation: steps_per_generation"
    told = f"{told}={each} times num_iterations must be a multiple of gradient_accumulation_steps"
    require(each * trainer.num_iterations % accumulated == 0, f"{told}={accumulated}")
    if method.look == "fresh":
        told = f"{kind} judges an update by completions it was not trained on: steps_per_generation"
        require(each >= 2 * accumulated, f"{told}={each} must be {2 * accumulated} or more")
        told = f"{kind} reads log-probabilities, which the liger kernel hides: switch it off"
        liger = ("use_liger_kernel", "use_liger_loss")
        require(not any(getattr(trainer, name, False) for name in liger), told)


class _Session:
    """One trainer and its controller: the wrapped methods of the trainer, and what they have to
    remember between them. B completions of all processes, b of this one, K objectives."""

    def __init__(self, trainer, method: Method) -> None:
        self.trainer, self.method = trainer, method
        self.objectives = list(trainer.reward_func_names)
        self.controller = method.start(self.objectives)
        self.rewards = None  # [B, K] of the newest generation; NaN where one does not apply
        self.kept = {}  # its tensors, while the controller waits for its updates
        self.passes = self.updates = 0  # micro-batches and updates since then
        self.micro = {}  # the tensors whose loss is computed, if they are to be looked at
        wraps = {
            "_calculate_rewards": self.calculate_rewards,
            "_generate_and_score_completions": self.generate,
        }
        if method.look:
            self.logps = LOGPS[0] if hasattr(trainer, LOGPS[0]) else LOGPS[1]
            wraps |= {"_compute_loss": self.compute_loss, self.logps: self.compute_logps}
        told = "multi_objective needs TRL 0.19.1 or newer, whose trainer has"
        require(wraps.keys() <= set(dir(trainer)), f"{told} {', '.join(wraps)}")
        self.own = {name: getattr(trainer, name) for name in wraps}
        vars(trainer).update(wraps)

    # --- the trainer's methods ---

    def calculate_rewards(self, *args, **kwargs):
        """In training: keep the rewards of all processes, and set the weights of their sum."""
        rewards, trainer = self.own["_calculate_rewards"](*args, **kwargs), self.trainer
        if trainer.model.training:
            self.rewards = _on_cpu(rewards)
            if hasattr(self.controller, "weights"):
                weights = self.method.ask(self.controller.weights, self.rewards)
                trainer.reward_weights = (weights / weights.sum()).to(trainer.reward_weights)
        return rewards

    def generate(self, inputs):
        """In training: replace this process's advantages, or learn from those of all."""
        trainer, controller = self.trainer, self.controller
        out = self.own["_generate_and_score_completions"](inputs)
        if not trainer.model.training:
            return out
        rewards, G, own = self.rewards, trainer.num_generations, out["advantages"]
        lengths = self.gather(_token_mask(out).sum(1))  # [B], 0 where the loss leaves one out
        if hasattr(controller, "weights"):
            advantages, weights = self.gather(own), _on_cpu(trainer.reward_weights)
        else:
            batch = (rewards, lengths, G, "grpo")
            advantages, weights = self.method.ask(controller.advantages, *batch)
            each = advantages.split(len(own))
            out["advantages"] = each[trainer.accelerator.process_index].to(own)
            self.correct_table(advantages.tolist())
        covariance = load("common/controllers").within_prompt_covariance(advantages, rewards, G)
        if self.method.look:
            self.begin_look(out)
        elif hasattr(controller, "learn"):
            controller.learn(rewards, torch.where(lengths > 0, advantages, 0.0), G)
        self.log({"weight": weights, "cov": covariance} | controller.log)
        return out

    def compute_loss(self, model, inputs):
        """Note whose log-probabilities are computed next, if they tell of an updated policy."""
        own = self.own["_compute_loss"]
        if not (self.trainer.model.training and self.kept):
            return own(model, inputs)
        first_pass = self.passes < self.trainer.args.steps_per_generation
        self.micro = inputs if ROW in inputs and first_pass and self.updates else {}
        loss = own(model, inputs)
        self.micro, self.passes = {}, self.passes + 1
        return loss

    def compute_logps(self, *args, **kwargs):
        """What TRL computes; in a loss those of the policy that is being trained."""
        result, micro = self.own[self.logps](*args, **kwargs), self.micro
        if micro:
            moved = _on_cpu(result) - _on_cpu(micro["old_per_token_logps"])
            rows = micro[ROW].cpu()
            self.drift[rows] = (moved * _on_cpu(_token_mask(micro))).sum(1)
            self.age[rows] = self.updates
        return result

    # --- what the updates did ---

    def begin_look(self, out: dict) -> None:
        """Wait for the updates of this generation. One that was cut short, by a stop or the end of
        an epoch, is not looked at."""
        self.kept, self.passes, self.updates = out, 0, 0
        ids = out["completion_ids"]
        if self.method.look == "fresh":
            self.drift, self.age = torch.zeros(2, len(ids))  # as common/meter.py has them
            out[ROW] = torch.arange(len(ids), device=ids.device)  # goes through TRL's shuffle
            return
        told = f"{type(self.method).__name__} looks at completions anew, and does so for text alone"
        require("pixel_values" not in out, told)
        old = out.get("old_per_token_logps")
        self.old = self.logps_of_kept() if old is None else old

    @torch.no_grad()
    def logps_of_kept(self):
        """Log-probabilities of this process's completions under the policy as it is, as TRL
        computes them: [b, T], or the first of a tuple."""
        kept, trainer = self.kept, self.trainer
        ids = torch.cat([kept["prompt_ids"], kept["completion_ids"]], 1)
        attention = torch.cat([kept["prompt_mask"], kept["completion_mask"]], 1)
        width, size = kept["completion_ids"].size(1), trainer.args.per_device_train_batch_size
        return self.own[self.logps](trainer.model, ids, attention, width, batch_size=size)

    def stepped(self) -> None:
        """The optimizer has made an update; after the last one of a generation the controller
        learns. Collective, at the same step."""
        trainer, controller, kept = self.trainer, self.controller, self.kept
        self.updates += 1
        last = trainer.args.steps_per_generation * trainer.num_iterations
        if not kept or self.passes < last:
            return
        G = trainer.num_generations
        if self.method.look == "fresh":
            drift, age = self.gather(self.drift), self.gather(self.age)
            controller.learn(self.rewards, drift, age, self.updates, G)
        else:
            log_ratio = (_on_cpu(self.logps_of_kept()) - _on_cpu(self.old)).clamp(-20, 20)
            batch = (log_ratio, _on_cpu(_token_mask(kept)), _on_cpu(kept["advantages"]))
            measured = controller.measure(*batch, trainer.epsilon_low, trainer.epsilon_high)
            # NaN: a completion without tokens in the loss moves nothing
            measured = self.gather(measured).to(measured).nan_to_num(0.0)
            controller.learn(self.rewards, measured, G)
        self.log(controller.log)
        self.kept, controller.log = {}, {}

    # --- logs and state ---

    def gather(self, values: Tensor) -> Tensor:
        """[b] -> [B]. Collective."""
        accelerator = self.trainer.accelerator
        return _on_cpu(accelerator.gather(values.float().to(accelerator.device)))

    def log(self, logged: dict) -> None:
        """Numbers and tensors [K], these as <name>/<objective>, among the trainer's metrics; what
        is not known is left out."""
        metrics = self.trainer._metrics["train"]
        for name, values in logged.items():
            if isinstance(values, float):
                metrics[name].append(values)
                continue
            for objective, value in zip(self.objectives, values.tolist(), strict=True):
                if math.isfinite(value):
                    metrics[f"{name}/{objective}"].append(value)

    def correct_table(self, advantages: list[float]) -> None:
        """The trainer's table of completions has TRL's advantages; put these in their place."""
        for name in ("_logs", "_textual_logs"):  # now, and in TRL 0.19
            if hasattr(self.trainer, name):
                # as long as a generation, so that TRL's fall out
                getattr(self.trainer, name)["advantages"].extend(advantages)

    def save(self) -> dict:
        """What goes into trainer_state.json, plain numbers."""
        # -inf, the best reward before the first one, is no number in JSON
        state = {
            name: value.nan_to_num().tolist() if isinstance(value, Tensor) else value
            for name, value in self.controller.state.items()
        }
        kind = type(self.method).__name__
        return {"method": kind, "objectives": self.objectives, "state": state}

    def restore(self, saved: dict) -> None:
        """Go on from what `save` gave. Raises SettingsError if that was another method, or other
        objectives."""
        own = self.save()
        for key in ("method", "objectives"):
            told = f"resume_from_checkpoint: its {key} {saved[key]!r}, this trainer's {own[key]!r}"
            require(saved[key] == own[key], f"{told}: give the same, or train anew")
        state = self.controller.state
        for name, value in saved["state"].items():
            if isinstance(value, list):
                value = torch.tensor(value, dtype=getattr(state[name], "dtype", None))
            state[name] = value


class _Callback(TrainerCallback, ExportableState):
    """Tells the session of updates, and has its state saved and restored."""

    session: _Session

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        saved = state.stateful_callbacks.get(SAVED)
        if saved:
            self.session.restore(saved["attributes"]["saved"])
        else:  # transformers will look for the entry when it saves
            told = "resume_from_checkpoint: the checkpoint has no state of multi_objective"
            logger.warning("%s, whose method begins anew", told)
            state.stateful_callbacks[SAVED] = self.state()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.session.stepped()

    def state(self) -> dict:
        return {"args": {}, "attributes": {"saved": self.session.save()}}


def _token_mask(tensors: dict) -> Tensor:
    """The completion tokens that the loss counts. [b, T]."""
    mask = tensors["completion_mask"]
    return mask * tensors["tool_mask"] if "tool_mask" in tensors else mask


def _on_cpu(values: Tensor | tuple) -> Tensor:
    """In float32; of a tuple the first."""
    values = values if isinstance(values, Tensor) else values[0]
    return values.detach().float().cpu()
