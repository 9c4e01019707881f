"""The mistakes of a tired researcher, and what they are told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from retrain.config.load import config_from_mapping, parse_set, read_mapping
from retrain.errors import ConfigError, InputError
from retrain.experiments.plan import plan_runs
from retrain.preflight import load_checked

SHORT = "[training]\nmax_tokens = 64\n"
NO_TENSORS = "\2\0\0\0\0\0\0\0{}"
"""A whole safetensors file."""
FACTORS = (
    '{"q_proj.lora_A.weight": {"dtype": "F32", "shape": [8, 1], "data_offsets": [0, 32]}, '
    '"q_proj.lora_B.weight": {"dtype": "F32", "shape": [1, 8], "data_offsets": [32, 64]}}'
)
ONE_LAYER = "\0\1\0\0\0\0\0\0" + FACTORS.ljust(256) + 64 * "\0"
"""Another, with an adapter of rank 8."""
CATALOGUE = Path(__file__).with_name("mistakes.txt")


@dataclass(frozen=True)
class Mistake:
    """A config, and each message about it; `DIR` stands for the config's folder."""

    name: str
    toml: str
    messages: tuple[str, ...]


def read_mistakes() -> list[Mistake]:
    _, *entries = CATALOGUE.read_text().split("\n## ")
    mistakes = []
    for entry in entries:
        name, _, body = entry.strip().partition("\n")
        toml, *messages = ("\n" + body).split("\n-> ")
        mistakes.append(Mistake(name, toml.removeprefix("\n") + "\n", tuple(messages)))
    return mistakes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with plugins, data and a model folder, none of them quite what it should be."""
    files = {
        "my_modes.py": (
            "def advantage(rewards, params):\n    return rewards\n"
            "def wrong_shape(rewards, params):\n    return rewards[:1]\n"
            "def broken(context):\n    raise KeyError('x')\n"
        ),
        "my_rewards.py": (
            "def score(response, reference):\n    return 1.0\n"
            "def words(response, reference):\n    return 'good'\n"
        ),
        "problems.jsonl": '{"prompt": "a", "answer": "1"}\n',
        "broken.jsonl": '{"prompt": "a", "answr": "1"}\n',
        "train.jsonl": "".join(
            f'{{"prompt": "{i}", "answer": "1", "split": "train"}}\n' for i in range(20)
        ),
        "file.txt": "",
        "plugins/__init__.py": "",
        "adapter/adapter_config.json": '{"peft_type": "LORA", "r": 8, "lora_alpha": 16}',
        "rank8/adapter_config.json": '{"peft_type": "LORA", "r": 8, "lora_alpha": 16}',
        "rank8/adapter_model.safetensors": ONE_LAYER,
        "dora/adapter_config.json": (
            '{"peft_type": "LORA", "r": 32, "lora_alpha": 64, "use_dora": true}'
        ),
        "dora/adapter_model.safetensors": NO_TENSORS,
        "listed/adapter_config.json": "[]",
        "begun/run.json": "{}",
        "ended/run.json": "{}",
        "ended/final/adapter_config.json": "{}",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "circle").symlink_to("circle")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def messages(folder: Path, toml: str) -> tuple[str, ...]:
    (folder / "x.toml").write_text(toml)
    with pytest.raises(ConfigError) as caught:
        load_checked("x.toml")
    assert caught.value.exit_code == 2
    assert {issue.file for issue in caught.value.issues} == {"x.toml"}
    return tuple(
        str(issue).removeprefix("x.toml: ").replace(str(folder), "DIR")
        for issue in caught.value.issues
    )


@pytest.mark.parametrize("mistake", read_mistakes(), ids=lambda mistake: mistake.name)
def test_each_mistake_is_told_with_its_remedy(folder: Path, mistake: Mistake) -> None:
    assert messages(folder, mistake.toml) == mistake.messages


def test_all_mistakes_are_told_at_once(folder: Path) -> None:
    found = messages(
        folder,
        """
        lr = 1e-4
        [model]
        model = "./missing"
        [algorithm]
        advantage_mode = "gpro"
        [training]
        max_steps = "10"
        batchsize = 8
        warmup_steps = 0.5
        [loss]
        ratio_max = 2.0
        [reward]
        type = "custom"
        custom_module = "my_rewards"
        custom_function = "scores"
        [data]
        source = "jsonl"
        path = "problem.jsonl"
        [campaign]
        seeds = [1, 1]
        [[campaign.conditions]]
        transform_mode = "gtop"
        [campaign.conditions.training]
        lr = "high"
        """,
    )
    places = [message.partition(": ")[0] for message in found]
    assert sorted(places) == sorted(
        [
            "training.max_steps",
            "training.warmup_steps",
            "training.batchsize",
            "lr",
            "campaign.conditions[1].training.lr",
            "loss.ratio_max",
            "campaign.seeds",
            "algorithm.advantage_mode",
            "campaign.conditions[1].transform_mode",
            "reward.custom_function",
            "data.path",
            "model.model",
        ]
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train", "no such file; did you mean train.toml?"),
        ("tran.toml", "no such file; did you mean train.toml?"),
        ("missing/x.toml", "no such file: its folder does not exist"),
        ("x.toml", "no such file; . has train.toml"),
        (".", "is a folder; name a TOML file, e.g. train.toml"),
        ("latin.txt", "is not text in UTF-8; save it as plain UTF-8 text"),
        (
            "retrain.toml",
            "no such file here; name one (retrain my.toml), or write one with: retrain init",
        ),
    ],
)
def test_a_file_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    (tmp_path / "train.toml").write_text("")
    (tmp_path / "latin.txt").write_bytes("# \u00fc".encode("latin-1"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_checked(name)
    assert [str(issue) for issue in caught.value.issues] == [f"{name}: {message}"]


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (f"x = {'[' * 3000}{']' * 3000}", "tables or lists are nested too deep"),
        (f"x = {'{a=' * 2000}1{'}' * 2000}", "tables or lists are nested too deep"),
        (f"{'a.' * 3000}a = 1", "tables or lists are nested too deep"),
        (f"[training]\nlr = {'9' * 6000}", "a whole number has too many digits"),
        (f"[training]\nlr = {'9' * 30}", "training.lr: the whole number has too many digits"),
        ('[logging]\nlog_dir = "a\\u0000b"', "'logging.log_dir': no text may hold the character"),
        ('["a\\u0000b"]', r"'a\x00b': no text may hold the character NUL"),
    ],
)
def test_what_no_config_needs(folder: Path, toml: str, message: str) -> None:
    (found,) = messages(folder, toml)
    assert message in found
    (folder / "good.toml").write_text("")
    key, _, value = toml.rpartition("\n")[2].partition(" = ")
    with pytest.raises(InputError):
        load_checked("good.toml", [parse_set(f"training.{key}={value}")])


def test_a_device_that_is_not_here_is_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (folder / "x.toml").write_text(f'{SHORT}[backend]\ndevice = "cuda:1"')
    assert (
        'backend.device: "cuda:1", and this machine has no GPU for CUDA'
        in load_checked("x.toml")[1]
    )


def test_thousands_of_seeds_are_planned_at_once(folder: Path) -> None:
    loaded = config_from_mapping({"campaign": {"seeds": list(range(3000))}})
    runs = plan_runs(loaded)
    assert len(runs) == 15_000
    assert [run.config.training.seed for run in runs[:6]] == [0, 0, 0, 0, 0, 1]
    (issue,) = read_mapping({"campaign": {"seeds": list(range(10_001))}}).issues
    assert issue.message == "10001 seeds are more than a campaign can have (10000)"


def test_windows_line_ends_and_a_byte_order_mark_are_fine(folder: Path) -> None:
    (folder / "x.toml").write_bytes(b"\xef\xbb\xbf" + SHORT.replace("\n", "\r\n").encode())
    assert load_checked("x.toml")[0].config.training.max_tokens == 64


def test_plugins_that_need_not_be_here_are_warnings(folder: Path) -> None:
    (folder / "x.toml").write_text(
        SHORT
        + """
        [plugins]
        strict = false
        [algorithm]
        advantage_mode = "elsewhere.fn"
        [reward]
        type = "custom"
        custom_module = "elsewhere"
        custom_function = "score"
        """
    )
    _, warnings = load_checked("x.toml")
    assert [warning.partition(": ")[0] for warning in warnings] == [
        "algorithm.advantage_mode",
        "reward.custom_function",
    ]


def test_a_rank_that_the_machine_has_no_room_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrain.experiments.memory.main_memory", lambda: 2**30)
    toml = SHORT + '[model]\nlora_rank = 20000\n[backend]\ndevice = "cpu"\n'
    (message,) = messages(folder, toml)
    assert message == (
        "model.lora_rank: does not fit: the weights take 3 MiB, and at rank 20000 adapter, "
        "gradient and optimizer 1.4 GiB; 1.0 GiB are there"
    )
