"""`multi_objective(trainer, method)`: where a method meets TRL's GRPOTrainer.

Two of the trainer's methods are wrapped: `_calculate_rewards`, which returns the rewards of all processes before they are summed, and
`_generate_and_score_completions`, which returns this process's advantages. Both run once per generation, which TRL keeps for
steps_per_generation * num_iterations passes, and in evaluation, which is passed through. A method that looks at the updated policy needs
two more, `_compute_loss` and what computes the tokens' log-probabilities. State goes into trainer_state.json.
"""

import inspect
import logging

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from .errors import require
from .generation import Generation
from .methods import AdvantageRule, Method
from .scripts import mathematics

OLDEST = (0, 19, 1)  # the oldest TRL that was tested
PARAMETERS = {
    "_calculate_rewards": ["inputs", "prompts", "completions", "completion_ids_list"],
    "_generate_and_score_completions": ["inputs"],
}
LOGPS = ("_get_per_token_logps_and_entropies", "_get_per_token_logps")  # its name since TRL 0.20, and before
SAVED = "MultiObjective"  # the entry in trainer_state.json
ROW = "multi_objective_row"  # in a generation's tensors: which of this process's completions a row is
logger = logging.getLogger(__name__)


def multi_objective(trainer, method: Method):
    """Let a method weigh the rewards of a GRPOTrainer; call it before `trainer.train()`. Returns the trainer.

    Raises SettingsError, in one line, for another kind of trainer or an older TRL, a trainer that has a method already, fewer than two
    reward functions or two of one name, settings of the trainer that contradict the method, and arguments of the method that do not fit.
    """
    _check_trainer(trainer, method)
    method.start(list(trainer.reward_func_names))
    session = _Session(trainer, method)
    trainer._multi_objective = session
    # a class of its own per trainer: transformers may restore a callback by calling its class anew
    trainer.add_callback(type(SAVED, (_Callback,), {"session": session})())
    return trainer


def _check_trainer(trainer, method: Method) -> None:
    import trl  # here, so that the methods can be imported, and tested, without it

    version = tuple(int(part) for part in trl.__version__.split(".")[:3] if part.isdigit())
    require(version >= OLDEST, f"multi_objective needs TRL {'.'.join(map(str, OLDEST))} or newer, this is {trl.__version__}: upgrade trl")
    require(isinstance(trainer, trl.GRPOTrainer), f"multi_objective needs a trl.GRPOTrainer, got a {type(trainer).__name__}")
    require(isinstance(method, Method), f"multi_objective needs a method such as CTWA(), got {method!r}: call the class, CTWA()")
    for name, wanted in PARAMETERS.items():
        found = list(inspect.signature(getattr(trainer, name)).parameters) if hasattr(trainer, name) else None
        told = "has no such method" if found is None else f"takes ({', '.join(found)}) there"
        require(found == wanted, f"multi_objective wraps {name}({', '.join(wanted)}), which {told}: TRL {trl.__version__} is not supported")
    require(not hasattr(trainer, "_multi_objective"), "this trainer has a method already: call multi_objective once, on a new trainer")
    names, args = list(trainer.reward_func_names), trainer.args
    require(len(names) > 1, f"reward_funcs has one function, {names[0]}: there is nothing to weigh; give two or more")
    twice = sorted({name for name in names if names.count(name) > 1})
    require(not twice, f"reward_funcs has two functions named {', '.join(twice)}: set __name__, by which objectives are logged")
    kind = type(method).__name__
    given = args.reward_weights
    require(given is None, f"GRPOConfig(reward_weights={given}) would be overwritten: leave it out and give {kind} its own weights")
    how = getattr(trainer, "multi_objective_aggregation", "sum_then_normalize")
    fits = how == "sum_then_normalize"
    require(
        fits, f"GRPOConfig(multi_objective_aggregation={how!r}) is a method of its own: leave it out, or take it alone in place of {kind}"
    )
    scale, known = trainer.scale_rewards, method.SCALES
    told = "'group' (True in old TRL)" + (" or 'batch'" if "batch" in known else "")
    require(scale in known, f"GRPOConfig(scale_rewards={scale!r}) does not go with {kind}, whose advantages have unit variance: set {told}")
    _check_passes(trainer, method)


def _check_passes(trainer, method: Method) -> None:
    """Whether the passes of a generation let the method look at the updated policy."""
    if not method.LOOK:
        return
    kind, args = type(method).__name__, trainer.args
    passes, accumulated = args.steps_per_generation * trainer.num_iterations, args.gradient_accumulation_steps
    whole = passes % accumulated == 0
    told = f"steps_per_generation * num_iterations = {passes} must be a multiple of gradient_accumulation_steps={accumulated}"
    require(whole, f"{kind} looks at the policy after the last update of a generation: {told}")
    require(
        any(hasattr(trainer, name) for name in LOGPS), f"{kind} needs the trainer's {LOGPS[0]}, which this version of TRL does not have"
    )
    if method.LOOK == "fresh":
        several = args.steps_per_generation >= 2 * accumulated
        told = f"set steps_per_generation to {2 * accumulated} or more, it is {args.steps_per_generation}"
        require(several, f"{kind} judges an update by completions it was not trained on: {told}")
        liger = getattr(trainer, "use_liger_kernel", False) or getattr(trainer, "use_liger_loss", False)
        require(not liger, f"{kind} reads the tokens' log-probabilities, which the liger kernel does not tell: switch it off in GRPOConfig")


class _Session:
    """One trainer and its method: the wrapped methods of the trainer, and what they have to remember between them."""

    def __init__(self, trainer, method: Method) -> None:
        self.trainer, self.method = trainer, method
        self.rewards: Tensor | None = None  # [B, K] of the generation that is being scored
        self.generation: Generation | None = None  # whose update the method waits for
        self.passes = self.updates = 0  # micro-batches and updates since then
        self.row: Tensor | None = None  # [b] rows of the micro-batch whose loss is being computed, if they are to be looked at
        wrapped = ["_calculate_rewards", "_generate_and_score_completions"]
        if method.LOOK:
            self.logps = next(name for name in LOGPS if hasattr(trainer, name))
            wrapped += ["_compute_loss", self.logps]
        self.own = {name: getattr(trainer, name) for name in wrapped}
        trainer._calculate_rewards, trainer._generate_and_score_completions = self.calculate_rewards, self.generate
        if method.LOOK:
            trainer._compute_loss = self.compute_loss
            setattr(trainer, self.logps, self.compute_logps)

    # --- the trainer's methods ---

    def calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        """In training: keep the rewards of all processes, and let a weight rule set the weights that TRL sums them with."""
        trainer = self.trainer
        rewards = self.own["_calculate_rewards"](inputs, prompts, completions, completion_ids_list)
        if not trainer.model.training:
            return rewards
        self.rewards = _on_cpu(rewards)
        if not isinstance(self.method, AdvantageRule):
            lengths = torch.tensor([float(len(ids)) for ids in completion_ids_list], device=rewards.device)
            weights = self.method.weigh(self.generated(lengths))
            trainer.reward_weights = weights.to(trainer.reward_weights)
        return rewards

    def generate(self, inputs):
        """In training: let an advantage rule replace this process's advantages, and the method learn from those of all."""
        trainer, method = self.trainer, self.method
        out = self.own["_generate_and_score_completions"](inputs)
        if not trainer.model.training:
            return out
        mask, own = _token_mask(out), out["advantages"]
        generation = self.generated(mask.sum(1).double())
        if isinstance(method, AdvantageRule):
            weights, first = method.weigh(generation), trainer.accelerator.process_index * len(own)
            advantages = method.advantages(generation).nan_to_num(0.0)  # a completion without advantage moves nothing, as in TRL
            out["advantages"] = advantages[first : first + len(own)].to(own)
            self.correct_table(advantages.tolist())
        else:
            advantages, weights = _on_cpu(trainer.accelerator.gather(own)), trainer.reward_weights.double().cpu()
        method.learn(generation, advantages)
        covariance = generation.over_prompts(mathematics("linear").within_prompt_covariance, advantages)
        self.log({"weight": weights, "cov": covariance} | ({} if method.LOOK else method.log))
        if method.LOOK:
            self.begin_look(generation, out, mask)
        return out

    def compute_loss(self, model, inputs):
        """Note whose log-probabilities are computed next, if they tell of the policy after an update."""
        if not self.trainer.model.training or self.generation is None:
            return self.own["_compute_loss"](model, inputs)
        first_pass = self.passes < self.trainer.args.steps_per_generation
        self.row = inputs.get(ROW) if first_pass and self.updates else None
        self.inputs = inputs
        try:
            return self.own["_compute_loss"](model, inputs)
        finally:
            self.row, self.passes = None, self.passes + 1

    def compute_logps(self, *args, **kwargs):
        """What TRL computes; the first of a loss are those of the policy that is being trained."""
        result = self.own[self.logps](*args, **kwargs)
        if self.row is not None:
            logps, old = result if isinstance(result, Tensor) else result[0], self.inputs["old_per_token_logps"]
            mask, rows = _token_mask(self.inputs), self.row.cpu()
            self.measured[rows] = self.measure(logps.detach() - old, mask, self.inputs["advantages"])
            self.age[rows], self.row = self.updates, None
        return result

    # --- what the updates did ---

    def begin_look(self, generation: Generation, out: dict, mask: Tensor) -> None:
        """Wait for the updates of this generation. One that was cut short, by a stop or the end of an epoch, is not looked at."""
        self.generation, self.passes, self.updates = generation, 0, 0
        self.measured, self.age = torch.zeros(2, len(mask), dtype=torch.float64)
        if self.method.LOOK == "fresh":
            out[ROW] = torch.arange(len(mask), device=mask.device)  # follows its row through TRL's shuffle
            return
        require("pixel_values" not in out, f"{type(self.method).__name__} looks at the completions anew, and does so for text alone")
        self.kept = {name: out[name] for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages")}
        old = out.get("old_per_token_logps")
        self.kept |= {"mask": mask, "old": self.logps_of_kept() if old is None else old}

    @torch.no_grad()
    def logps_of_kept(self) -> Tensor:
        """Log-probabilities of this process's completions under the policy as it is, as TRL computes them. [b, T]."""
        kept, trainer = self.kept, self.trainer
        ids = torch.cat([kept["prompt_ids"], kept["completion_ids"]], 1)
        attention = torch.cat([kept["prompt_mask"], kept["completion_mask"]], 1)
        width, size = kept["completion_ids"].size(1), trainer.args.per_device_train_batch_size
        result = self.own[self.logps](trainer.model, ids, attention, width, batch_size=size)
        return result if isinstance(result, Tensor) else result[0]

    def measure(self, log_ratio: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
        clip = self.trainer.epsilon_low, self.trainer.epsilon_high
        return self.method.measure(_on_cpu(log_ratio), _on_cpu(mask), _on_cpu(advantages), clip)

    def stepped(self) -> None:
        """The optimizer has made an update; after the last one of a generation the method is told. Collective, at the same step."""
        if self.generation is None:
            return
        args, gather = self.trainer.args, self.trainer.accelerator.gather
        self.updates += 1
        if self.passes < args.steps_per_generation * self.trainer.num_iterations:
            return
        if self.method.LOOK == "same":
            kept = self.kept
            self.measured[:] = self.measure(self.logps_of_kept() - kept["old"], kept["mask"], kept["advantages"])
            self.age[:] = self.updates
        device = self.trainer.accelerator.device
        measured, age = (_on_cpu(gather(each.float().to(device))) for each in (self.measured, self.age))
        self.method.updated(self.generation, measured, age, self.updates)
        self.log(self.method.log)
        self.generation = self.kept = None

    # --- logs and state ---

    def generated(self, lengths: Tensor) -> Generation:
        """The generation that is being scored. lengths [b] of this process's completions. Collective."""
        lengths = _on_cpu(self.trainer.accelerator.gather(lengths))
        fits = len(lengths) == len(self.rewards) and len(lengths) % self.trainer.num_generations == 0
        told = f"{len(self.rewards)} rewards for {len(lengths)} completions of groups of {self.trainer.num_generations}"
        require(fits, f"{type(self.trainer).__name__} scores in a way that multi_objective does not know: {told}")
        return Generation(self.rewards, lengths, self.trainer.num_generations)

    def log(self, logged: dict[str, Tensor]) -> None:
        """[K] each, as <name>/<objective> among the trainer's metrics; what is not known is left out."""
        for name, values in logged.items():
            for objective, value in zip(self.method.objectives, values.tolist(), strict=True):
                if value == value:
                    self.trainer._metrics["train"][f"{name}/{objective}"].append(value)

    def correct_table(self, advantages: list[float]) -> None:
        """The trainer's table of completions has TRL's advantages; put these in their place."""
        table = next((getattr(self.trainer, name) for name in ("_logs", "_textual_logs") if hasattr(self.trainer, name)), None)
        if table is not None:
            for _ in advantages:
                table["advantages"].pop()
            table["advantages"].extend(advantages)

    def save(self) -> dict:
        """What goes into trainer_state.json: plain numbers, None for what is not known yet."""
        state = {name: _plain(value.tolist()) for name, value in self.method.state.items()}
        return {"method": type(self.method).__name__, "objectives": self.method.objectives, "state": state}

    def restore(self, saved: dict) -> None:
        """Go on from what `save` gave. Raises SettingsError if that was another method, or other objectives."""
        own = self.save()
        same = saved["method"] == own["method"] and saved["objectives"] == own["objectives"]
        was, now = (f"{each['method']} on {', '.join(each['objectives'])}" for each in (saved, own))
        require(same, f"resume_from_checkpoint: the checkpoint is of {was}, this trainer has {now}; give the same, or train anew")
        for name, value in saved["state"].items():
            self.method.state[name] = torch.tensor(_numbers(value), dtype=torch.float64)


class _Callback(TrainerCallback, ExportableState):
    """Tells the session of updates, and has its state saved and restored."""

    session: _Session

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        saved = state.stateful_callbacks.get(SAVED)
        if saved is None:  # else transformers would look for the entry when it saves
            logger.warning("resume_from_checkpoint: the checkpoint has no state of multi_objective, whose method begins anew")
            state.stateful_callbacks[SAVED] = self.state()
            return
        self.session.restore(saved["attributes"]["saved"])

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.session.stepped()

    def state(self) -> dict:
        return {"args": {}, "attributes": {"saved": self.session.save()}}


def _token_mask(tensors: dict) -> Tensor:
    """The completion tokens that the loss counts. [b, T]."""
    mask = tensors["completion_mask"]
    return mask * tensors["tool_mask"] if "tool_mask" in tensors else mask


def _on_cpu(values: Tensor) -> Tensor:
    return values.detach().double().cpu()


def _plain(value):
    """NaN, which JSON does not have, as None."""
    return [_plain(each) for each in value] if isinstance(value, list) else (value if value == value else None)


def _numbers(value):
    return [_numbers(each) for each in value] if isinstance(value, list) else (torch.nan if value is None else value)
