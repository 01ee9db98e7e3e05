"""The options that jobs share: each is declared, described, bounded and checked once, and inherited by those jobs.

``option`` states at the field what holds of an option wherever it stands: its bounds, whether it is part of a run's
identity, whether it says how states are captured. A job declares an option anew only where it means something else
there, or where its default differs; ``--help`` shows the description that is nearest in the class tree.
"""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from probing.data.pair_columns import PairColumns
from probing.data.places import expand_places
from probing.data.portions import Part
from probing.data.rollouts import RolloutColumns
from probing.errors import UsageError
from probing.models.checkpoints import TENSOR_PARALLEL
from probing.ranks import is_launched
from probing.runs.common.held import InMemory
from probing.statistics.folds import LEAST_FOLDS
from probing.store.files import check_output_name
from probing.types import SHORT_DTYPES, AdvantageName, Over, check_label_smoothing, find_loss

Dtype = Literal["auto", "float32", "bfloat16", "float16", "fp32", "bf16", "fp16"]
MOST_TOKENS = 10**8
"""Of a sequence or a batch: far beyond any memory, and small enough for every product of two counts."""
MOST_ROWS = 10**7
MOST_ACTORS = 10**5
MOST_DRAWS = 10**5
"""Of permutations, replicates and the like: the smallest p-value is then 1e-5, and all draws of a row fit in memory."""
MOST_SEED = 2**32 - 1
"""The greatest seed that every library takes."""
TEXT = "text"
"""``split_by`` where only rows of equal text must stay together."""
PAIR = "pair"
"""``split_by`` where only pairs of statements that share a text must."""
DEFAULT_PLACES = "resid_post:all"
NUMBERS: dict[Any, tuple[type, str]] = {
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    bool: (int, "true or false"),
}
"""What an option of a kind may be given as in Python, and how that is said."""


def option(
    default: Any = MISSING,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    form: str | None = None,
    written: str | None = None,
    identity: bool = True,
    of_capture: bool = False,
    repeatable: bool = False,
    positional: bool = False,
    holds: Literal["model", "rows"] | None = None,
) -> Any:
    """A field of an options class.

    Args:
        default: value of the option where it is not given; without one it is required.
        least: the smallest value that is allowed. None stands for "not given" and is always allowed.
        above: a value that it must exceed.
        most: the greatest value that is allowed.
        form: a regular expression that a text must match.
        written: the texts of that form, in words, for messages.
        identity: whether a run with another value is another run. False where no byte of the results depends on the
            value, or where what it names is told apart by its content.
        of_capture: whether it says how states are captured, so that it has no meaning beside states of a store.
        repeatable: whether the command line collects the values of an option that is given several times.
        positional: whether it is written without its name on the command line.
        holds: what it may name that a caller in Python has in memory instead.
    """
    given = (("least", least), ("above", above), ("most", most), ("form", form), ("written", written))
    bounds = {name: bound for name, bound in given if bound is not None}
    metadata = {"bounds": bounds, "identity": identity, "of_capture": of_capture, "repeatable": repeatable}
    metadata |= {"positional": positional, "holds": holds}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a job."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is None and entry.default is not None and type(None) not in get_args(entry.type):
                raise ValueError(f"{entry.name} must have a value, and null is none")
            _check_kind(entry, value)
            _check_bounds(entry, value)
            if entry.name == "out" and value is not None:
                self._check_out(value)

    def _check_out(self, out: str | Path) -> None:
        """Raise ``UsageError`` unless results can be written under this name."""
        check_output_name(Path(out))
        # A path has one slash where an address has two.
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(out)):
            raise UsageError(
                f"{out}: is an address, and a run is written into a folder of this machine, where it can go on after "
                f"it was stopped; give a folder as --out, and copy it when the run is finished"
            )

    def plain(self) -> dict[str, Any]:
        """Every option as JSON holds it."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    def identity(self) -> dict[str, Any]:
        """The options that are part of a run's identity, as JSON holds them."""
        values = self.plain()
        return {entry.name: values[entry.name] for entry in fields(self) if entry.metadata.get("identity", True)}

    def recorded_identity(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Identity of the run that a record tells of.

        Args:
            config: options of that run, as ``plain`` gave them. An option that its version did not have is taken at the
                default, which is what that version did.
        """
        defaults = {entry.name: entry.default for entry in fields(self)}
        return {name: config.get(name, defaults[name]) for name in self.identity()}


def _check_kind(entry: "Field[Any]", value: Any) -> None:
    """Raise unless a value is one of an option's words, or a number where it takes numbers: Python lets all pass."""
    kinds = get_args(entry.type) if get_origin(entry.type) in (Union, UnionType) else (entry.type,)
    kind = kinds[0]
    if value is None and type(None) in kinds:
        return
    if get_origin(kind) is Literal and value not in get_args(kind):
        raise ValueError(f"{entry.name} must be one of {', '.join(get_args(kind))}, not {value!r:.60}")
    if len(set(kinds) - {type(None)}) > 1:
        # Of several kinds; the option itself says what is wrong.
        return
    wanted, words = NUMBERS.get(kind, (object, ""))
    if not isinstance(value, wanted):
        raise ValueError(f"{entry.name} must be {words}, not {value!r:.60}")


def _check_bounds(entry: "Field[Any]", value: Any) -> None:
    bounds = entry.metadata.get("bounds")
    if not bounds or value is None:
        return
    least, above, most, form = (bounds.get(name) for name in ("least", "above", "most", "form"))
    if form is not None:
        if not isinstance(value, str) or re.fullmatch(form, value) is None:
            wanted = bounds.get("written", f"of the form {form}")
            raise ValueError(f"{entry.name} must be {wanted}, not {value!r:.60}")
        return
    low = f"at least {least}" if above is None else f"above {above}"
    if not ((least is None or value >= least) and (above is None or value > above)):
        raise ValueError(f"{entry.name} must be {low}, not {value}")
    if most is not None and value > most:
        wanted = f"in [{least}, {most}]" if above is None else f"{low} and at most {most}"
        raise ValueError(f"{entry.name} must be {wanted}, not {value}")
    if value == float("inf"):
        raise ValueError(f"{entry.name} must be {low} and finite, not {value}")


@dataclass(frozen=True, kw_only=True)
class DatasetOptions(Options):
    """The dataset, and where to write.

    Args:
        data: dataset to read: a JSONL, JSON, CSV or Parquet file (also gzipped), a folder of such files or a pattern
            that they match ("shards/*.parquet"), an address ("s3://bucket/pairs.jsonl"), a folder that the datasets
            library saved, a hub id, "-" for JSONL on standard input, or "bundled" for the one in this package. May be
            repeated; the rows follow one another.
        out: folder for the results; an interrupted run in it is continued.
        split: which split of the dataset to read, where it has several; also a slice of it, or of a file, such as
            train[:200], train[:5%] or [100:200].
        subset: which configuration of a dataset of the hub to read, where it has several.
        data_revision: branch, tag or commit of a dataset of the hub.
        limit: number of rows to read from the start, of several files together.
        sample: number of rows to read at random, always the same ones, in the order of the data.
        id_column: column of unique ids; by default "id" if there is one, otherwise ids are made from the content.
    """

    data: str | list[str] = option(identity=False, repeatable=True, holds="rows")
    out: Path = option(identity=False)
    split: str | None = option(None, identity=False)
    subset: str | None = option(None, identity=False)
    data_revision: str | None = option(None, identity=False)
    limit: int | None = option(None, least=1, most=MOST_ROWS, identity=False)
    sample: int | None = option(None, least=1, most=MOST_ROWS, identity=False)
    id_column: str | None = option(None, identity=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sources:
            raise ValueError("data must name at least one dataset")
        others = [
            entry.name for entry in fields(self) if entry.metadata.get("holds") == "rows" and entry.name != "data"
        ]
        twice = next((name for name in others if getattr(self, name) == "-"), None)
        if twice is not None and "-" in self.sources:
            raise ValueError(f"{twice} and data are both standard input, which can be read only once; name a file")
        _ = self.part

    @property
    def sources(self) -> list[str]:
        """The datasets that are named, in order."""
        return [self.data] if isinstance(self.data, str) else list(self.data)

    @property
    def part(self) -> Part:
        """Which part of the dataset is read."""
        return Part(self.split, self.subset, self.data_revision, self.limit, self.sample)


@dataclass(frozen=True, kw_only=True)
class ArrayOptions(DatasetOptions):
    """The shard of the dataset, where the members of an array of jobs share its rows.

    Args:
        shard_index: number of the shard to make, from 0: of n rows and N shards, shard K has those from n*K/N to the
            one before n*(K+1)/N, rounded down. "probing merge" joins the finished shards.
        num_shards: number of shards that the rows are cut into, after --split, --limit and --sample.
    """

    shard_index: int | None = option(None, least=0, most=MOST_ROWS)
    num_shards: int | None = option(None, least=1, most=MOST_ROWS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.shard_index is None) != (self.num_shards is None):
            raise ValueError("give both of shard_index and num_shards, or neither")
        if self.shard_index is not None and self.num_shards is not None and self.shard_index >= self.num_shards:
            raise ValueError(
                f"shard_index counts from 0: of num_shards {self.num_shards} the last is {self.num_shards - 1}, not "
                f"{self.shard_index}"
            )

    def choose_rows(self, count: int) -> range:
        """Numbers of the rows of the shard, of so many; of all where the dataset is not cut."""
        if self.shard_index is None or self.num_shards is None:
            return range(count)
        first, end = (count * number // self.num_shards for number in (self.shard_index, self.shard_index + 1))
        return range(first, end)


@dataclass(frozen=True, kw_only=True)
class EngineOptions(Options):
    """The processes that run the rows.

    Args:
        engine: "local" runs the rows in this process, or in those of a launch by torchrun; "ray" in actors of Ray, on
            the machines of a cluster, which needs model-probing[ray].
        ray_address: address of a cluster of Ray, such as head:6379, or auto for the one on this machine. By default
            what the environment variable RAY_ADDRESS says, or else Ray is started here and ended with the command.
        ray_actors: number of actors, each of which loads the model; by default one a card of the cluster, or one where
            there is no card.
        ray_max_actors: most actors; more than ray_actors are started where there is room and work for them.
        ray_cpus: cores of an actor.
        ray_gpus: cards of an actor, by default one where the cluster has any; with --device balanced a model can be
            spread over several.
    """

    engine: Literal["local", "ray"] = option("local", identity=False)
    ray_address: str | None = option(None, identity=False)
    ray_actors: int | None = option(None, least=1, most=MOST_ACTORS, identity=False)
    ray_max_actors: int | None = option(None, least=1, most=MOST_ACTORS, identity=False)
    ray_cpus: float = option(1.0, above=0, most=MOST_ACTORS, identity=False)
    ray_gpus: float | None = option(None, least=0, most=MOST_ACTORS, identity=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        of_ray = [entry for entry in fields(EngineOptions) if entry.name.startswith("ray_")]
        given = [entry.name for entry in of_ray if getattr(self, entry.name) != entry.default]
        if self.engine != "ray":
            if given:
                raise ValueError(f"{given[0]} says something of Ray; give --engine ray with it")
            return
        if importlib.util.find_spec("ray") is None:
            raise UsageError('--engine ray needs Ray: pip install "model-probing[ray]", or leave it out')
        if getattr(self, "device", None) == TENSOR_PARALLEL:
            raise UsageError(
                f"--engine ray has a whole model in each actor, and --device {TENSOR_PARALLEL} splits one over the "
                f"processes of torchrun; leave out one of them"
            )
        if is_launched():
            raise UsageError("--engine ray starts processes of its own; run the command without a launcher")
        if self.ray_max_actors is not None and self.ray_max_actors < (self.ray_actors or 1):
            raise ValueError(f"ray_max_actors is {self.ray_max_actors}, less than ray_actors, {self.ray_actors}")
        held = [entry.name for entry in fields(self) if entry.metadata.get("holds") == "model"]
        in_memory = [name for name in held if isinstance(getattr(self, name), InMemory)]
        if in_memory:
            raise UsageError(
                f"{in_memory[0]}: a model in memory cannot be sent to actors of Ray, which load it themselves; name "
                f"its folder or its hub id"
            )


@dataclass(frozen=True, kw_only=True)
class PairColumnOptions(Options):
    """The columns of preference pairs.

    Args:
        prompt_column: column of the prompts; by default prompt, or as a known layout has it.
        chosen_column: column of the chosen responses; by default chosen, or as a known layout has it.
        rejected_column: column of the rejected responses; by default rejected, or as a known layout has it.
        system_column: column of the system prompts, with which every row is a conversation; read by default in known
            layouts that have one.
        implicit_prompt: take what both responses begin with as the prompt, where they are plain text and there is no
            other. Whole conversations need no such option.
    """

    prompt_column: str | None = None
    chosen_column: str | None = None
    rejected_column: str | None = None
    system_column: str | None = None
    # Without it such rows are refused: where a run is allowed with it and without, its pairs are the same.
    implicit_prompt: bool = option(False, identity=False)

    @property
    def pair_columns(self) -> PairColumns:
        """How pairs are read."""
        return PairColumns(
            self.prompt_column, self.chosen_column, self.rejected_column, self.system_column, self.implicit_prompt
        )


@dataclass(frozen=True, kw_only=True)
class PairDataOptions(PairColumnOptions, DatasetOptions):
    """A dataset of preference pairs."""


@dataclass(frozen=True, kw_only=True)
class HubOptions(Options):
    """The version of a model.

    Args:
        revision: branch, tag or commit of a hub model.
    """

    revision: str | None = option(None, identity=False, of_capture=True)


@dataclass(frozen=True, kw_only=True)
class TwoModelOptions(Options):
    """The model before and the model after, and their versions.

    Args:
        reference: folder or hub id of the model before training, or "bundled".
        reference_revision: branch, tag or commit of a reference from the hub.
        policy_revision: branch, tag or commit of a policy from the hub.
    """

    reference: str = option(identity=False, holds="model")
    reference_revision: str | None = option(None, identity=False)
    policy_revision: str | None = option(None, identity=False)


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Options):
    """Where and in what precision models run.

    Args:
        dtype: precision of the model's weights; "auto" keeps the checkpoint's on an accelerator and takes float32 on
            the CPU. fp32, bf16 and fp16 are short names.
        device: "auto", "cpu", "cuda", "cuda:1", ...: where the model runs and its states are worked on. "balanced"
            spreads the layers over all cards and the host, and works on the states on the first card.
            "tensor-parallel" splits every layer over the processes of torchrun, a card each.
        trust_remote_code: run Python code that the checkpoint brings with it.
    """

    dtype: Dtype = option("auto", identity=False, of_capture=True)
    device: str = option("auto", identity=False)
    trust_remote_code: bool = option(False, identity=False, of_capture=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "dtype", SHORT_DTYPES.get(self.dtype, self.dtype))


@dataclass(frozen=True, kw_only=True)
class RunOptions(DeviceOptions):
    """How texts are run through a model.

    Args:
        batch_tokens: tokens in a batch; by default as many as the memory of the device allows.
        max_length: longest sequence in tokens; a longer one gets a status and no number, and none is cut. By default
            the model's limit.
        compile: compile the blocks of the model with torch.compile, which pays for many rows on a card. Changes the
            last digits.
        metrics_port: port at which the progress is served as Prometheus text while the command runs; it needs
            model-probing[metrics]. It can be reached from this machine alone (127.0.0.1), unless an address is given
            with it: 0.0.0.0:9100 stands for every interface, which a container needs.
    """

    batch_tokens: int | None = option(None, least=1, most=MOST_TOKENS, of_capture=True)
    max_length: int | None = option(None, least=1, most=MOST_TOKENS, of_capture=True)
    compile: bool = option(False, of_capture=True)
    metrics_port: int | str | None = option(None, identity=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compile and self.device == TENSOR_PARALLEL:
            raise ValueError(f"the blocks of a model in device {TENSOR_PARALLEL} cannot be compiled; leave out compile")
        if self.metrics_address is not None and importlib.util.find_spec("prometheus_client") is None:
            raise UsageError(
                '--metrics-port needs prometheus-client: pip install "model-probing[metrics]", or leave it out'
            )

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """Host and port at which progress is served; None where it is not."""
        if self.metrics_port is None:
            return None
        host, _, port = str(self.metrics_port).rpartition(":")
        if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            raise ValueError(
                f"metrics_port must be a port from 1 to 65535, or HOST:PORT, not '{self.metrics_port!s:.60}'"
            )
        return host.strip("[]") or "127.0.0.1", int(port)


@dataclass(frozen=True, kw_only=True)
class ResponseOptions(Options):
    """What belongs to a response.

    Args:
        eos: whether the end of turn belongs to the response, as in training.
    """

    eos: bool = True


@dataclass(frozen=True, kw_only=True)
class PairRunOptions(PairDataOptions, ResponseOptions, RunOptions):
    """How preference pairs are run.

    Args:
        shard_pairs: number of pairs that are run together and saved; an interrupted run loses at most so many.
    """

    max_length: int | None = option(None, least=2, most=MOST_TOKENS)
    shard_pairs: int = option(512, least=1, most=MOST_ROWS)


@dataclass(frozen=True, kw_only=True)
class PairOptions(PairRunOptions):
    """How rates of preference pairs are computed.

    Args:
        rate_parameters: parameters over which the exact columns take gradients: "all", "head" or "last:K".
    """

    rate_parameters: str = option(
        "all", form=r"all|head|last:[1-9]\d{0,3}", written="all, head or last:K with K at least 1"
    )


@dataclass(frozen=True, kw_only=True)
class GroupOptions(Options):
    """The groups of pairs.

    Args:
        group_column: column by whose values the summary is repeated.
    """

    group_column: str | None = option(None, identity=False)


@dataclass(frozen=True, kw_only=True)
class BetaOptions(Options):
    """The coefficient of a preference loss.

    Args:
        beta: coefficient of the preference loss (of DPO, where a displacement asks what its optimum would reach).
    """

    beta: float = option(0.1, above=0, most=1e6)


@dataclass(frozen=True, kw_only=True)
class LossOptions(BetaOptions):
    """The loss of the preference training that rates and influences are about.

    Args:
        loss: loss of the training: dpo, ipo, hinge (or slic), robust, exo_pair, nca_pair, bco_pair, sppo_hard,
            apo_zero, apo_down, discopop, sigmoid_norm, cpo, simpo or orpo; "margin" stands for any loss of the margin
            of the two log-probabilities, per unit of its slope.
        sft_weight: weight of the mean negative log-likelihood of the chosen response, where the training adds it to the
            loss. The column least_sft_weight does not depend on it.
        gamma: margin that SimPO aims at.
        label_smoothing: share of labels that the training takes to be wrong, of robust, exo_pair, cpo and simpo.
    """

    loss: str = "margin"
    sft_weight: float = option(0.0, least=0, most=1e6)
    gamma: float = option(0.5, least=0, most=1e6)
    label_smoothing: float = option(0.0, least=0, most=0.49)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_label_smoothing(find_loss(self.loss), self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class RolloutOptions(ArrayOptions, ResponseOptions, RunOptions):
    """How groups of responses with rewards are read and run.

    Args:
        prompt_column: column of the prompts, texts or conversations; by default prompt, question, problem, instruction
            or messages.
        responses_column: column of the lists of responses; by default responses, completions or generations.
        rewards_column: column of the lists of rewards, numbers or true and false; by default rewards or scores.
        correct_above: a response is correct if its reward is above this. The default is right for rewards of 0 and 1,
            which verifiers give; for other rewards name another threshold.
        advantage: how rewards become weights of responses, each trained by its weight times the gradient of its ln p:
            "grpo" (advantage (r - mean)/(std + 1e-4) over the response's tokens), "dapo" (the same over the tokens of
            the group, TRL's default), "dr_grpo" (r - mean).
        shard_groups: number of groups that are run together and saved; an interrupted run loses at most so many.
    """

    prompt_column: str | None = None
    responses_column: str | None = None
    rewards_column: str | None = None
    correct_above: float = option(0.5, least=-1e9, most=1e9)
    advantage: AdvantageName = "grpo"
    max_length: int | None = option(None, least=2, most=MOST_TOKENS)
    shard_groups: int = option(64, least=1, most=MOST_ROWS)

    @property
    def rollout_columns(self) -> RolloutColumns:
        """How groups are read."""
        return RolloutColumns(self.prompt_column, self.responses_column, self.rewards_column)


@dataclass(frozen=True, kw_only=True)
class CategoryOptions(Options):
    """The categories of rows.

    Args:
        category_column: column of the categories; by default category, if there is one.
    """

    category_column: str | None = option(None, identity=False)


@dataclass(frozen=True, kw_only=True)
class PromptOptions(DatasetOptions, CategoryOptions):
    """The texts and their labels.

    Args:
        text_column: column of the texts or conversations; by default text, prompt, instruction, question, statement or
            messages. A row with chosen and rejected becomes two rows. Files that are given as --data LABEL=FILE label
            their rows.
        label_column: column of the labels; by default label, if there is one.
    """

    text_column: str | None = option(None, identity=False)
    label_column: str | None = option(None, identity=False)


@dataclass(frozen=True, kw_only=True)
class TextOptions(PairColumnOptions, PromptOptions):
    """What belongs to a text, and which of its tokens count.

    Args:
        response_column: column of the responses; by default response or completion, if there is one.
        over: which tokens count: "text" (all), "content" (without special tokens at both ends), "prompt", "response",
            "template" (what the chat template writes after an instruction), "instruction_end" (the same and the last
            token of the instruction), "span".
        chat: put plain texts into a user's turn of the chat template.
    """

    response_column: str | None = option(None, identity=False)
    over: Over = option("text", of_capture=True)
    chat: bool = option(False, of_capture=True)


@dataclass(frozen=True, kw_only=True)
class StatesOptions(DatasetOptions, RunOptions, HubOptions):
    """Which states are read.

    Args:
        places: places in the model, separated by commas: resid_pre, resid_post, attn_out or mlp_out with a layer
            (resid_post:3, resid_post:-1, resid_post:4..8, resid_post:all), or final_norm.
    """

    places: str | list[str] = DEFAULT_PLACES

    def __post_init__(self) -> None:
        super().__post_init__()
        expand_places(self.places, None)

    def check_states(self, model: object, store: object) -> None:
        """Raise ``ValueError`` unless either models or stores are given, and no option of a capture beside a store."""
        if bool(model) == bool(store):
            raise ValueError("give one of --model and --store")
        given = [entry for entry in fields(self) if getattr(self, entry.name) != entry.default]
        settled = [f"--{entry.name.replace('_', '-')}" for entry in given if entry.metadata.get("of_capture")]
        if store and settled:
            raise ValueError(f"the states of a store are captured already; leave out {', '.join(settled)}")


@dataclass(frozen=True, kw_only=True)
class OneModelOptions(StatesOptions):
    """The model, or its states.

    Args:
        model: folder or hub id of a causal language model or an encoder, or "bundled" for the one in this package.
        store: in place of a model, a folder that 'probing capture' wrote from the same data; all its places are read
            unless some are named.
    """

    model: str | None = option(None, identity=False, holds="model")
    store: Path | None = option(None, identity=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_states(self.model, self.store)


@dataclass(frozen=True, kw_only=True)
class PlotOptions(Options):
    """How plots are drawn.

    Args:
        interactive: draw the plots with plotly, which makes pages of 5 MB whose pictures can be zoomed; it needs
            model-probing[report]. The pages of a run that is finished stay as it wrote them.
    """

    interactive: bool = option(False, identity=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interactive and importlib.util.find_spec("plotly") is None:
            raise UsageError("--interactive needs plotly: pip install 'model-probing[report]', or leave it out")


@dataclass(frozen=True, kw_only=True)
class DrawOptions(Options):
    """What is drawn at random.

    Args:
        resamples: number of bootstrap replicates.
        seed: seed of folds and of what is held out, of permutations, bootstrap replicates and starting points.
    """

    resamples: int = option(1000, least=1, most=MOST_DRAWS)
    seed: int = option(0, least=0, most=MOST_SEED)


@dataclass(frozen=True, kw_only=True)
class FoldOptions(DrawOptions):
    """What is held out, and what stays together.

    Args:
        folds: number of folds of the nested cross-validation; each is held out once.
        split_by: "text" keeps rows of equal text in one fold; the name of a column (category, for instance) also keeps
            the rows of each of its values together.
    """

    folds: int = option(5, least=LEAST_FOLDS, most=1000)
    split_by: str = TEXT


@dataclass(frozen=True, kw_only=True)
class LabelledOptions(TextOptions, StatesOptions, FoldOptions):
    """States of labelled texts, one state a text.

    Args:
        pooling: "last", "first", "mean" or "sum" of the tokens that count.
    """

    pooling: Literal["last", "first", "mean", "sum"] = option("last", of_capture=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.over == "span":
            raise ValueError("spans are captured by 'probing capture'; give its folder as --store")


@dataclass(frozen=True, kw_only=True)
class PermutationOptions(Options):
    """Null distributions.

    Args:
        permutations: number of permutations of the labels that make the null distribution of what is not fitted to
            them.
    """

    permutations: int = option(1000, least=1, most=MOST_DRAWS)


@dataclass(frozen=True, kw_only=True)
class SupervisedOptions(Options):
    """Supervised probes.

    Args:
        refits: number of permutations of the labels that supervised probes are refitted to, for their null
            distribution.
        inverse_penalty: C of the logistic regression, the inverse strength of its penalty.
    """

    refits: int = option(20, least=1, most=MOST_DRAWS)
    inverse_penalty: float = option(1.0, above=0, most=1e12)
