"""The configuration: one strict model a TOML table, the larger ones in modules beside this one.

The docstring under each field is the reference that `docs/configuration.md` prints. Checks of
one value live in its type; checks that need two values live in `config/checks.py`; checks that
need the parts themselves (plugins, models, files) live in `preflight.py`. Nothing here imports
torch or any other part of retrain.
"""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, create_model

from retrain.config.algorithm import AlgorithmConfig, GtpoConfig, HicraConfig, SepaConfig
from retrain.config.data import DataConfig
from retrain.config.evidence import ReportConfig
from retrain.config.inference import InferenceConfig
from retrain.config.reward import RewardConfig
from retrain.config.stopping import StoppingConfig
from retrain.config.table import Count, FewThousand, Names, PositiveInt, Seed, Table

STANDARD_SEEDS = (42, 101, 202, 303, 404, 505, 606, 707)

STANDARD_CONDITIONS = (
    ("grpo", "none"),
    ("maxrl", "none"),
    ("maxrl", "gtpo"),
    ("maxrl", "gtpo_hicra"),
    ("maxrl", "gtpo_sepa"),
)


def _day(value: Any) -> Any:
    """A date of TOML's, or as text, as ISO text."""
    if isinstance(value, date):
        return value.isoformat()[:10]
    if isinstance(value, str) and value:
        try:
            return date.fromisoformat(value).isoformat()
        except ValueError:
            raise ValueError("must be a date like 2026-01-31") from None
    return value


class ModelConfig(Table):
    """`[model]`: the base model and the LoRA adapter that is trained on it."""

    model: Annotated[str, Field(min_length=1)] = "embedded"
    """`"embedded"` for the tiny model that ships with retrain, a local folder, or a hub id; for
    `tinker` the service's name of a model."""
    revision: str = ""
    """Branch, tag or commit of a hub model; empty takes the default branch."""
    lora_rank: PositiveInt = 32
    """Rank r of the LoRA adapter."""
    lora_alpha: Annotated[float, Field(ge=0.0)] = 0.0
    """LoRA alpha; the adapter is scaled by alpha / rank. 0 means 2 x rank."""
    lora_targets: Literal["all-linear"] | Names = "all-linear"
    """`"all-linear"` (every linear layer but the output head; experts are none), or a list of
    module names such as `["q_proj", "v_proj"]`."""
    local_files_only: bool = False
    """Take a hub model only from what is on this machine already; never ask the network."""
    base_url: str = ""
    """For `tinker`: address of the service; empty takes the variable `TINKER_BASE_URL`, else the
    service's own. The key comes from the variable `TINKER_API_KEY` alone."""
    chat_template_args: dict[str, Any] = Field(default_factory=dict)
    """Arguments for the model's chat template, e.g. `{ enable_thinking = false }`."""
    chat_template: Annotated[str, Field(min_length=1)] = "default"
    """Name of the chat template, for a model that has several."""
    chat_template_date: Annotated[str, BeforeValidator(_day)] = ""
    """The date, e.g. `2026-01-31`, that a chat template is told which asks for today's. Empty
    takes the day on which the run, or its campaign, began, and keeps it."""
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """How models compute attention that run through their own Hugging Face code; `auto` takes
    the best that is installed."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the frozen base weights. `auto`: float32 on a CPU, bfloat16 on a GPU. The adapter
    and its optimizer are always float32."""
    init_adapter: str = ""
    """Folder of a trained adapter (another run's `final/` or one of its checkpoints) to start
    from at step 0, with a fresh optimizer; for `tinker`, weights of the service, `tinker://…`. To
    go on with a run itself, resume it."""

    @property
    def alpha(self) -> float:
        """`lora_alpha` with its default filled in."""
        return self.lora_alpha or 2.0 * self.lora_rank


class LossConfig(Table):
    """`[loss]`: the policy-gradient loss."""

    type: Literal["importance_sampling", "ppo", "gspo", "cispo"] = "importance_sampling"
    """The loss per token; see `docs/algorithms.md`."""
    aggregation: Literal["token_mean", "sequence_mean", "constant", "sum"] = "token_mean"
    """The denominator: completion tokens of the optimizer step, completions and their lengths,
    `batch_size x group_size x max_tokens`, or 1. Unless written: `sequence_mean` for `gspo`."""
    eps_low: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Lower clip of the ratio, for `ppo` (default 0.2) and `gspo` (default 3e-4)."""
    eps_high: Annotated[float, Field(gt=0.0)] | None = None
    """Upper clip of the ratio, for `ppo` (default 0.2) and `gspo` (default 4e-4)."""
    dual_clip: Annotated[float, Field(gt=1.0)] | None = None
    """For `ppo`: caps the loss of negative advantages at this ratio; off unless written."""
    ratio_max: Annotated[float, Field(gt=0.0)] | None = None
    """For `cispo`: absolute cap of the ratio (default 5)."""
    kl_coef: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the KL penalty against the base model (adapter off); 0 costs nothing."""
    kl_estimator: Literal["k2", "k3"] = "k3"
    """Estimator of that KL per token: `k2` = x^2 / 2, `k3` = exp(x) - 1 - x, with x = log base -
    log policy."""
    sampler_correction: Literal["auto", "off", "truncate"] = "auto"
    """Importance weights, cut off at `truncate`, for a sampler whose probabilities are not quite
    the trainer's; see `docs/inference.md`. `auto`: `truncate` with a server in `[inference]`, else
    `off`."""
    truncate: Annotated[float, Field(ge=1.0)] = 2.0
    """Largest of these weights."""


class TrainingConfig(Table):
    """`[training]`: steps, batches and the optimizer."""

    seed: Seed = 42
    """Names every random stream of the run."""
    max_steps: PositiveInt = 500
    """Training steps; each samples one batch."""
    batch_size: FewThousand = 8
    """Problems a step."""
    group_size: FewThousand = 16
    """Completions a problem."""
    max_tokens: PositiveInt = 10240
    """Longest completion, in tokens. Unless written: 64 for the embedded model, of which at most
    239 fit."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Sampling temperature; the loss uses the same."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus sampling. Below 1 only with `importance_sampling` and no KL penalty, whose ratio
    weighs what is drawn rightly; nothing is learnt from what is cut off."""
    lr: Annotated[float, Field(gt=0.0)] = 4e-5
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: constant, or falling to 0 at the last step."""
    warmup_steps: Count = 0
    """Steps of linear warm-up."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Decoupled weight decay of the adapter."""
    betas: Annotated[
        list[Annotated[float, Field(ge=0.0, lt=1.0)]], Field(min_length=2, max_length=2)
    ] = [0.9, 0.99]
    """AdamW's two decay rates."""
    grad_clip: Annotated[float, Field(ge=0.0)] = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    updates_per_batch: FewThousand = 1
    """Passes over one batch of rollouts (PPO's epochs)."""
    minibatches: PositiveInt = 1
    """Optimizer steps a pass, each on an equal share of the batch."""
    micro_batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Padded tokens computed at once inside an optimizer step; changes memory and speed, never
    the result."""
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    """Compute a layer's activations a second time in the backward pass instead of keeping them:
    slower, and far less memory. `auto`: when they would not fit otherwise. Changes memory and
    speed, never the result."""
    decode_rows: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Completions decoded at once; the others wait for a free place. `auto`: as many as the
    memory holds with their keys and values up to `max_tokens`."""
    save_every: Count = 20
    """Steps between checkpoints; 0 keeps only the final adapter."""
    keep_last: Count = 0
    """Newest checkpoints kept; 0 keeps all."""
    keep_best: bool = True
    """With `keep_last`: also keep the checkpoint with the best held-out accuracy, among those
    that were evaluated at their step."""


class EvaluationConfig(Table):
    """`[evaluation]`: held-out accuracy."""

    every: Count = 0
    """Steps between evaluations; 0 evaluates only before and after training."""
    before_training: bool = True
    """Evaluate at step 0 as well."""
    num_problems: Annotated[int, Field(ge=0, le=100_000)] = 128
    """Held-out problems; 0 turns evaluation off."""
    samples_per_problem: FewThousand = 1
    """Completions a problem at `temperature`."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Temperature of the sampled accuracy."""
    greedy: bool = True
    """Also measure greedy accuracy."""


class BackendConfig(Table):
    """`[backend]`: where the policy lives."""

    backend: Literal["local", "tinker"] = "local"
    """`local`: torch on this machine. `tinker`: the Tinker service, see `docs/tinker.md`."""
    device: str = "auto"
    """`auto` (a GPU when there is one), `cpu`, `cuda`, `cuda:1`."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads a worker; 0 takes one (several workers on a small machine are then fastest)."""
    max_concurrent: PositiveInt = 4
    """For `tinker`: calls to the service at the same time, over all that share `throttle_dir`."""
    throttle_dir: str = ""
    """For `tinker`: folder through which processes share the calls. A campaign's runs take
    `tinker_throttle` in its folder; empty for a single run, which then makes as many as it has
    completions."""


class LoggingConfig(Table):
    """`[logging]`: what is written, and where."""

    log_dir: Annotated[str, Field(min_length=1)] = "logs"
    """Folder under which runs and campaigns are written."""
    strategic_grams: str | list[str] = ""
    """Phrases that mark planning tokens, as a list, a JSON list or comma-separated; empty for
    the 18 built-in ones."""
    log_generations: Count = 4
    """Completions a step written in full to `emergence/generations.jsonl`."""
    wandb_project: str = ""
    """Also track with `trackers`, in this project; empty: off. See `docs/tracking.md`."""
    wandb_entity: str = ""
    """User or team that the project belongs to; empty takes your own default."""
    wandb_run_name: str = ""
    """Name of the run there; empty takes the run's own, `<condition>_s<seed>`."""
    wandb_group: str = ""
    """Group of the run there; empty takes the condition."""
    wandb_tags: list[Annotated[str, Field(min_length=1, max_length=64)]] = []
    """Tags besides the condition and `seed<seed>`."""
    trackers: list[Literal["wandb", "trackio"]] = ["wandb"]
    """Where a run with a `wandb_project` is tracked: `wandb` (Weights & Biases), `trackio` (on this
    machine, with the same keys), or both."""
    wandb_artifacts: Literal["none", "final", "checkpoints"] = "none"
    """What trackers get besides numbers: nothing, the final adapter, or also each checkpoint."""
    wandb_mode: Literal["online", "offline"] = "online"
    """`offline` only writes into the run's folder, for `wandb sync` to send later."""


class PluginsConfig(Table):
    """`[plugins]`: where dotted paths are looked up."""

    search_paths: list[str] = Field(default_factory=list)
    """Folders, besides the TOML file's own, from which plugin modules may be imported; relative
    ones are taken from the TOML file's folder."""
    strict: bool = True
    """Refuse to start when a plugin cannot be imported or fails its trial call. `false` makes
    that a warning, for plugins that only the workers' machine can load."""


class ConditionConfig(Table):
    """`[[campaign.conditions]]`: changes to the base config.

    Any other table of the file may be repeated inside, with the keys to change.
    """

    name: str = ""
    """Label of the condition; empty makes one from its modes and changes."""
    advantage_mode: str = ""
    """Empty takes `[algorithm].advantage_mode`."""
    transform_mode: str = ""
    """Empty takes `[algorithm].transform_mode`."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Changes to `[model]`."""
    algorithm: dict[str, Any] = Field(default_factory=dict)
    """Changes to `[algorithm]`."""
    gtpo: dict[str, Any] = Field(default_factory=dict)
    """Changes to `[gtpo]`."""
    hicra: dict[str, Any] = Field(default_factory=dict)
    """Changes to `[hicra]`."""
    sepa: dict[str, Any] = Field(default_factory=dict)
    """Changes to `[sepa]`."""
    loss: dict[str, Any] = Field(default_factory=dict)
    """Changes to `[loss]`."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Changes to `[training]`, except `seed`."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Changes to `[data]`."""
    reward: dict[str, Any] = Field(default_factory=dict)
    """Changes to `[reward]`."""
    evaluation: dict[str, Any] = Field(default_factory=dict)
    """Changes to `[evaluation]`."""
    backend: dict[str, Any] = Field(default_factory=dict)
    """Changes to `[backend]`."""
    inference: dict[str, Any] = Field(default_factory=dict)
    """Changes to `[inference]`."""


class CampaignConfig(Table):
    """`[campaign]`: conditions x seeds."""

    seeds: Annotated[list[Seed], Field(min_length=1)] = list(STANDARD_SEEDS)
    """Every condition is trained once under each of them."""
    max_steps: PositiveInt = 500
    """Training steps a run; overrides `[training].max_steps` only when it is written."""
    parallel: bool = False
    """Train runs at the same time, in several warm workers."""
    max_workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Workers when `parallel`; 0 takes as many as there are runs, but no more than the cores, the
    memory or the GPUs allow."""
    stagger_seconds: Annotated[float, Field(ge=0.0)] = 0.0
    """Pause between the starts of workers."""
    devices: str | list[str] = ""
    """Devices for the workers when `parallel`, one worker each: `"cuda:0,cuda:1"`, or a list.
    Empty leaves it to `[backend].device`."""
    max_retries: Count = 1
    """How often a run that failed for no fault of its own (killed, hung, out of memory, disk,
    lost service) is tried again at once, from its last checkpoint."""
    worker_timeout: Annotated[float, Field(ge=0.0)] = 1800.0
    """Seconds without a finished step after which a worker is taken as hung and killed; 0 waits
    for ever. The model is loaded, and an evaluation takes place, within it as well."""
    max_runs: Count = 0
    """Train only so many runs for now, in whole seeds, so that every condition has the same ones; 0
    trains all. `retrain resume FOLDER --set campaign.max_runs=0` trains the rest."""
    seeds_first: bool = True
    """All conditions under one seed before the next seed, so that at any time they have nearly the
    same seeds. `false`: all seeds of one condition before the next condition."""
    stopping: StoppingConfig | None = None
    """When to stop conditions that cannot win; see `[campaign.stopping]`."""
    conditions: list[ConditionConfig] = Field(default_factory=list)
    """The conditions; none given takes the five standard ones."""

    @property
    def device_list(self) -> list[str]:
        """`devices` as a list."""
        given = self.devices.split(",") if isinstance(self.devices, str) else self.devices
        return [device.strip() for device in given if device.strip()]


class SqueezeConfig(Table):
    """`[squeeze]`: how much of an adapter each LoRA rank keeps, and the adapter cut to one.

    In a campaign it is done for the first run that succeeds; alone, for `adapter_path`.
    """

    adapter_path: str = ""
    """The adapter (PEFT format): a folder, a safetensors file, or an archive of one; or weights of
    the Tinker service, `tinker://…`, which are downloaded. Not for a campaign, which takes the
    first run that succeeds."""
    adapter_name: str = ""
    """Which one, when the file or folder holds several."""
    min_variance_retention: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Share of the squared singular values that the recommended rank keeps, in the mean over the
    adapted layers."""
    source_rank: Count = 0
    """The rank that the adapter must have; 0 takes the adapter's own."""
    target_ranks: list[PositiveInt] = Field(default_factory=list)
    """Ranks to show, besides the powers of two and the recommended one."""
    compress_to: Count = 0
    """Rank to cut to; 0 takes the recommended one."""
    output_path: str = ""
    """Folder for the compressed adapter; empty only analyses. A campaign writes it to
    `squeeze/adapter` in its folder."""
    allocation: Literal["uniform", "per_module"] = "uniform"
    """One rank for all layers, or the same number of parameters where they keep most."""
    device: str = "auto"
    """Where the singular values are computed: `auto`, `cpu`, `cuda`, `cuda:1`, …"""
    dtype: Literal["float64", "float32"] = "float64"
    """Precision in which they are computed."""
    check: bool = False
    """Also evaluate the compressed adapter beside the original on the held-out problems: the same
    problems and the same random numbers. What is kept of the variance says little about that."""
    finetune_steps: Count = 0
    """Steps to train the compressed adapter on after the check, to evaluate it again."""


class RunConfig(Table):
    """Everything one run needs: the base config with a condition's changes merged in."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    algorithm: AlgorithmConfig = Field(default_factory=AlgorithmConfig)
    gtpo: GtpoConfig = Field(default_factory=GtpoConfig)
    hicra: HicraConfig = Field(default_factory=HicraConfig)
    sepa: SepaConfig = Field(default_factory=SepaConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    reward: RewardConfig = Field(default_factory=RewardConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    backend: BackendConfig = Field(default_factory=BackendConfig)
    inference: InferenceConfig = Field(default_factory=InferenceConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    plugins: PluginsConfig = Field(default_factory=PluginsConfig)

    @property
    def corrects_sampler(self) -> bool:
        """Whether `[loss].sampler_correction` is in force."""
        given = self.loss.sampler_correction
        return given == "truncate" or (given == "auto" and self.inference.engine != "local")


if TYPE_CHECKING:

    class ResumeConfig(Table):
        """`[resume]`."""
else:
    # `from` is a word of Python's, which a class body cannot have as a name.
    ResumeConfig = create_model(
        "ResumeConfig",
        __base__=Table,
        __doc__="""`[resume]`: go on with what is there, instead of starting anew.""",
        **{
            "from": (
                str,
                Field(
                    default="",
                    description="Folder of the run or campaign to go on with, as `--resume` "
                    "names it; empty starts a new one.",
                ),
            )
        },
    )


class RetrainConfig(RunConfig):
    """A whole TOML file: a run's tables, `[resume]`, `[report]` and `[campaign]` for a campaign."""

    resume: ResumeConfig = Field(default_factory=ResumeConfig)
    squeeze: SqueezeConfig | None = None
    report: ReportConfig = Field(default_factory=ReportConfig)
    campaign: CampaignConfig | None = None
