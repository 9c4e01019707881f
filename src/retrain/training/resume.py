"""From where a run goes on: the newest checkpoint that can be trusted. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from retrain.config.changes import Change, differences, identity
from retrain.config.schema import RunConfig
from retrain.files import (
    JOURNALS,
    METRICS_FILE,
    RunRecord,
    evaluation_files,
    keep_lines,
    read_jsonl,
    remove_left_overs,
)
from retrain.training.checkpoint import (
    DAMAGED,
    Checkpoint,
    DamagedCheckpointError,
    checkpoint_folders,
    remove_folder,
)
from retrain.training.contents import Contents


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """checkpoint: None stands for the very beginning.
    skipped: newer checkpoints that cannot be trusted, newest first, and why."""

    run_dir: Path
    checkpoint: Checkpoint | None
    skipped: tuple[tuple[Path, str], ...]

    @property
    def step(self) -> int:
        """Steps that need not be trained again."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def refusal(self) -> str:
        """Why the run must not go on by itself: there were checkpoints, and none can be trusted.
        Empty otherwise."""
        if self.checkpoint is not None or not self.skipped:
            return ""
        folder, reason = self.skipped[0]
        return (
            f"none of its {len(self.skipped)} checkpoints can be trusted (of the newest, "
            f"{folder.name}: {reason}); bring the files back, or remove {folder.parent} to train "
            "the run from the beginning"
        )


class _Row(msgspec.Struct):
    step: int


def find_resume_point(run_dir: Path, *, verify: bool = True) -> ResumePoint:
    """Look for the newest checkpoint whose files match their checksums and whose rows are all
    still in `metrics.jsonl`. Raises OSError when a file cannot be read now.

    verify: whether to read those files, which are large.
    """
    skipped: list[tuple[Path, str]] = []
    for folder in reversed(checkpoint_folders(run_dir)):
        try:
            checkpoint = Checkpoint.read(folder)
            if verify:
                checkpoint.verify()
            _verify_metrics(run_dir / METRICS_FILE, checkpoint)
        except DamagedCheckpointError as error:
            skipped.append((folder, str(error)))
            continue
        return ResumePoint(run_dir, checkpoint, tuple(skipped))
    return ResumePoint(run_dir, None, tuple(skipped))


def changes_at(
    point: ResumePoint, record: RunRecord, before: RunConfig, now: RunConfig, contents: Contents
) -> list[Change]:
    """Where a run that goes on at `point` as `now` with `contents` is not the run that it was, but
    for what was allowed there already.

    before: what it was planned as, which holds for one without a checkpoint.
    """
    begun = point.checkpoint.identity if point.checkpoint else identity(before, record.contents)
    # A run that was killed before its next checkpoint is at the step where it was changed still.
    accepted = [
        Change(change["key"], change["before"], change["now"])
        for change in record.data["changes"]
        if change["step"] == point.step
    ]
    return [each for each in differences(begun, now, contents) if each not in accepted]


def go_back(point: ResumePoint) -> None:
    """Make the run's files what they were at the resume point.

    Only the process that holds the run's lock may do this. Rows and evaluations that came later
    are dropped: they will be computed again, and be the same. Damaged checkpoints are set aside
    under another name, never deleted.
    """
    run_dir = point.run_dir
    remove_left_overs(run_dir)
    remove_left_overs(*(path for path in run_dir.iterdir() if path.is_dir()))
    for folder, _ in point.skipped:
        aside = folder.with_name(DAMAGED + folder.name)
        remove_folder(aside)
        folder.rename(aside)
    rows = point.checkpoint.rows if point.checkpoint else {}
    for name in JOURNALS:
        keep_lines(run_dir / name, rows.get(name, 0))
    for step, path in evaluation_files(run_dir).items():
        if step > point.step or point.checkpoint is None:
            path.unlink()


def _verify_metrics(path: Path, checkpoint: Checkpoint) -> None:
    """The other journals are not looked at: nothing is computed from them."""
    rows = checkpoint.rows.get(METRICS_FILE, 0)
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        lines = []
    if len(lines) < rows:
        raise DamagedCheckpointError(f"{path.name} has fewer than the {rows} rows it should have")
    for step, line in enumerate(lines[:rows]):
        try:
            found = msgspec.json.decode(line, type=_Row).step
        except (ValueError, RecursionError):
            found = None
        if found != step:
            message = f"line {step + 1} of {path.name} is not the row of step {step}"
            raise DamagedCheckpointError(message)


def trained_seconds(run_dir: Path) -> float:
    """Seconds that the steps in the journal took."""
    return sum(float(row.get("step_time_s") or 0.0) for row in read_jsonl(run_dir / METRICS_FILE))
