"""Progress bars: listeners for training and for comparisons."""

from __future__ import annotations

import contextlib
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from nmlearn.cli import console
from nmlearn.lab.train.config import TrainConfig


class TrainBar:
    """A bar over the steps of one run, and a line for each evaluation.

    Attributes:
        started: whether training began; it does not when the run had already finished.
    """

    def __init__(self, config: TrainConfig) -> None:
        pattern = "" if config.method.name == "dense" else f" {config.method.pattern}"
        self._title = f"{config.model.name} on {config.data.name}, {config.method.name}{pattern}"
        self._epochs = config.epochs
        self._bar = _bar(MofNCompleteColumn(), _Line("{task.fields[note]}"))
        self._task: TaskID | None = None
        self._density: float | None = None
        self.started = False

    def __enter__(self) -> TrainBar:
        return self  # the bar starts with training: an earlier error leaves no empty line

    def __exit__(self, *error: object) -> None:
        _stop(self._bar)

    def __call__(self, event: dict[str, Any]) -> None:
        """Show an event."""
        match event["event"]:
            case "start":
                self._start(event)
            case "step":
                self._update(completed=event["step"])
            case "train":
                loss = console.number(event["loss"], 3)
                self._update(note=f"loss {loss}, {event['examples_per_second']:.0f} examples/s")
            case "left_out":
                line = f" at step {event['step']}: the loss is not finite; the step is skipped"
                self._bar.console.print(console.say("yellow", "warning", line))
            case "sparsity":
                self._density = event["density"]
            case "eval":
                self._bar.console.print(self._line(event))

    def _start(self, event: dict[str, Any]) -> None:
        self.started = True
        self._bar.start()
        start = f", resuming from step {event['step']}" if event["resumed"] else ""
        sizes = f"{event['train_size']} training and {event['eval_size']} test examples"
        self._bar.console.print(console.say("bold", self._title, f": {sizes}{start}"))
        self._task = self._bar.add_task("training", total=event["total_steps"], completed=event["step"], note="")

    def _update(self, **values: Any) -> None:
        if self._task is not None:
            self._bar.update(self._task, **values)

    def _line(self, event: dict[str, Any]) -> str:
        parts = [f"epoch {event['epoch']:g}/{self._epochs}", f"loss {console.number(event['loss'], 4)}"]
        if event["accuracy"] is not None:
            parts.append(f"accuracy {console.percent(event['accuracy'])}")
        if event["bits_per_byte"] is not None:
            parts.append(f"{event['bits_per_byte']:.4f} bits per byte")
        parts += [f"{name} {console.percent(ap)}" for name, ap in console.precisions(event)]
        if event["ema_accuracy"] is not None:
            parts.append(f"average {console.percent(event['ema_accuracy'])}")
        if self._density is not None:
            parts.append(f"density {console.percent(self._density, 1)}")
        return "  ".join(f"{part:18}" for part in parts).rstrip()


class CompareBar:
    """A bar over all runs, one for each active run, and a line for each run that ends.

    Args:
        total: how many runs there are.
    """

    def __init__(self, total: int) -> None:
        self._bar = _bar(_Line("{task.fields[note]}"))
        self._all = self._bar.add_task("all runs", total=total, note="")
        self._runs: dict[str, TaskID] = {}

    def __enter__(self) -> CompareBar:
        return self  # as above

    def __exit__(self, *error: object) -> None:
        _stop(self._bar)

    def __call__(self, event: dict[str, Any]) -> None:
        """Show an event."""
        self._bar.start()
        name = event["run"]
        if event["event"] == "progress":
            self._progress(name, event)
        elif event["state"] == "started":
            self._runs[name] = self._bar.add_task(name, total=None, note="")
        else:
            self._end(name, event)

    def _progress(self, name: str, event: dict[str, Any]) -> None:
        task = self._runs[name]
        if "total_steps" in event:
            self._bar.update(task, total=event["total_steps"])
        self._bar.update(task, completed=event["step"])
        if event.get("accuracy") is not None:
            self._bar.update(task, note=f"accuracy {console.percent(event['accuracy'])}")

    def _end(self, name: str, event: dict[str, Any]) -> None:
        if name in self._runs:
            self._bar.remove_task(self._runs.pop(name))
        self._bar.advance(self._all)
        if event["state"] == "failed":
            self._bar.console.print(console.say("red", "failed", f" {name:22} {event['error']}", width=8))
            return
        result = (
            console.percent(event["accuracy"])
            if event["accuracy"] is not None
            else f"loss {console.number(event['loss'], 4)}"
        )
        style = "green" if event["state"] == "finished" else ""
        line = f" {name:22} {result:>9}  {console.duration(event['seconds']):>12}"
        self._bar.console.print(console.say(style, event["state"], line, width=8))


def _stop(bar: Progress) -> None:
    if bar.live.is_started:  # otherwise it would print an empty line
        with contextlib.suppress(OSError):  # a terminal that was closed takes nothing
            bar.stop()


class _Line(TextColumn):
    """A column of text, escaped."""

    def render(self, task: Task) -> Text:
        """The text of a task."""
        return console.say("", "", self.text_format.format(task=task))


def _bar(*columns: Any) -> Progress:
    return Progress(
        _Line("{task.description}"),
        BarColumn(bar_width=24),
        *columns,
        TimeRemainingColumn(compact=True),
        console=console.out,
    )
