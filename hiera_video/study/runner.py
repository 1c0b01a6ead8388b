"""Runs the parts of a study, each a command of its own in a folder of its own.

What is finished is not run again, so a study that was stopped goes on.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import hiera_video
from hiera_video import build
from hiera_video.config import Config, changed_keys, load_config
from hiera_video.data.lists import VideoList
from hiera_video.models.weights import load_weights
from hiera_video.stages.inputs import read_list
from hiera_video.study import arms, results
from hiera_video.study.arms import Pretraining, Run
from hiera_video.system.errors import RunStopped, UserError
from hiera_video.system.files import written_whole
from hiera_video.training.checkpoint import save_weights
from hiera_video.training.plan import Plan


@dataclass(frozen=True)
class Settings:
    """A study, as it was asked for."""

    pretrain: str  # configs
    finetune: str
    baseline: str | None
    output: Path
    pretrainings: tuple[Pretraining, ...]  # the first is the config's own
    budgets: tuple[float, ...]
    rates: tuple[float, ...]
    seeds: int
    steps: int
    at: tuple[int, ...]  # steps of pretraining after which fine-tuning is tried, too
    equal_time: bool
    probes: bool
    jobs: int
    overrides: tuple[str, ...]


class Study:
    def __init__(self, settings: Settings, say: Callable[[str], None]):
        """Reads everything that the runs will read. Raises UserError."""
        self.settings = settings
        self._say = say
        self._config = load_config(settings.finetune, settings.overrides)
        if self._config.classify.multilabel:
            raise UserError("--finetune: a study compares top-1, which several labels do not have")
        self._videos: VideoList = read_list(self._config, "data.train")
        self._tried: list[results.Outcome] = []
        self._ran = False  # whether anything had to be run
        names = [way.name for way in settings.pretrainings]
        if len(set(names)) < len(names):
            raise UserError(f"--also: {max(names, key=names.count)} is named twice")
        if settings.baseline is not None:
            load_config(settings.baseline, settings.overrides)
        plans = [self._pretraining_plan(way) for way in settings.pretrainings]
        for step in settings.at:
            if not 0 < step < plans[0].steps or not plans[0].saves_after(step):
                raise UserError(
                    f"--at {step}: checkpoints are kept every {plans[0].save_steps} of the "
                    f"{plans[0].steps} steps of pretraining (train.save_every)"
                )

    @property
    def tunes_on_the_test(self) -> bool:
        """Whether rates are chosen on the very videos that tell the accuracy."""
        data = self._config.data
        return data.test in (None, data.val)

    def run(self) -> Iterator[results.Results]:
        """What is found so far, after every arm that ran anew. Raises RunStopped, UserError."""
        seeds = range(self.settings.seeds)
        for way in self.settings.pretrainings:
            self._each(partial(self._pretrain, way), seeds)
        self._each(self._write_start, seeds)
        self._write_lists()
        chosen: list[results.Outcome] = []
        # Equal time needs to know what a step of its arm takes, a curve the rate of its last point.
        for name in self._arms():
            for budget in self._budgets(name):
                chosen += self._tune(name, budget)
            if self._ran:
                yield self._results(chosen, frozen={})
        yield self._results(chosen, frozen=self._frozen() if self.settings.probes else {})

    def _results(
        self, chosen: list[results.Outcome], frozen: dict[str, list[dict[str, Any]]]
    ) -> results.Results:
        ways = self.settings.pretrainings
        seeds = range(self.settings.seeds)
        return results.Results(
            tried=list(self._tried),
            chosen=list(chosen),
            frozen=frozen,
            pretraining={way.name: results.rows_of(self._folder(way, 0), "probe") for way in ways},
            seconds={way.name: [self._pretraining_s(way, seed) for seed in seeds] for way in ways},
        )

    # -- arms

    def _arms(self) -> list[str]:
        s = self.settings
        names = [way.name for way in s.pretrainings]
        for control in [arms.SAME_START, *([arms.BASELINE] if s.baseline else [])]:
            names.append(control)
            if s.equal_time:
                names.append(control + arms.EQUAL_TIME)
        names.append(arms.PUBLISHED)
        return names + [arms.earlier(step) for step in s.at]

    def _budgets(self, arm: str) -> tuple[float, ...]:
        """What costs as much as pretraining, and what only draws a curve, is done once."""
        once = arm.endswith(arms.EQUAL_TIME) or arms.step_of(arm) is not None
        return self.settings.budgets[:1] if once else self.settings.budgets

    def _tune(self, arm: str, budget: float) -> list[results.Outcome]:
        """Seed 0 at every rate, then every seed at the one that data.val chooses.

        Earlier checkpoints take the rate of the last one.
        """
        rates = self.settings.rates
        if arms.step_of(arm) is not None:
            of_last = [o for o in self._tried if (o.arm, o.budget) == (arms.PRETRAINED, budget)]
            rates = (results.best_rate(of_last),)
        runs = [self._run(arm, budget, rate, 0) for rate in rates]
        tried = self._each(self._finetune, runs)
        self._tried += tried
        rate = results.best_rate(tried)
        others = [self._run(arm, budget, rate, seed) for seed in range(1, self.settings.seeds)]
        first = [outcome for outcome in tried if outcome.rate == rate]
        return first + self._each(self._finetune, others)

    def _run(self, arm: str, budget: float, rate: float, seed: int) -> Run:
        s = self.settings
        kind = arm.removesuffix(arms.EQUAL_TIME)
        steps = s.steps
        if kind != arm:
            steps += self._steps_of_pretraining(kind)
        cfg = s.finetune
        if kind == arms.BASELINE:
            assert s.baseline is not None  # or there is no such arm
            cfg = s.baseline
        return Run(arm, budget, rate, seed, steps, self._weights(kind, seed), cfg)

    def _weights(self, kind: str, seed: int) -> Path | None:
        if kind == arms.SAME_START:
            return self._start_file(seed)
        for way in self.settings.pretrainings:
            if kind == way.name:
                return self._folder(way, seed)
        step = arms.step_of(kind)
        if step is not None:
            first = self.settings.pretrainings[0]
            return self._folder(first, seed) / f"checkpoints/step_{step:09d}"
        return None

    # -- time

    def _pretraining_s(self, way: Pretraining, seed: int) -> float:
        clips = clips_a_step(self._pretrain_config(way, seed))
        return results.seconds_of(self._folder(way, seed), clips)

    def _steps_of_pretraining(self, kind: str) -> int:
        """How many steps on labels the arm takes in the time of the pretraining, of seed 0."""
        short = next(outcome for outcome in self._tried if outcome.arm == kind)
        seconds = self._pretraining_s(self.settings.pretrainings[0], 0)
        return round(seconds * short.steps / short.seconds)

    # -- the parts

    def _each(self, work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """Some at a time. Raises what the first of them raises."""
        with ThreadPoolExecutor(self.settings.jobs) as pool:
            return list(pool.map(work, items))

    def _folder(self, way: Pretraining, seed: int) -> Path:
        return self.settings.output / f"pretraining_{way.name.replace(' ', '_')}_{seed}"

    def _start_file(self, seed: int) -> Path:
        return self.settings.output / f"start_{seed}.safetensors"

    def _pretrain_overrides(self, way: Pretraining, seed: int) -> list[str]:
        keep = ["train.keep=1000"] if self.settings.at else []
        output = f"output={self._folder(way, seed)}"
        return [*self.settings.overrides, *way.overrides, f"seed={seed}", output, *keep]

    def _pretrain_config(self, way: Pretraining, seed: int) -> Config:
        return load_config(self.settings.pretrain, self._pretrain_overrides(way, seed))

    def _pretraining_plan(self, way: Pretraining) -> Plan:
        config = self._pretrain_config(way, 0)
        return Plan.make(config.train, config.optim, len(read_list(config, "data.train")))

    def _pretrain(self, way: Pretraining, seed: int) -> None:
        output = self._folder(way, seed)
        last = output / f"checkpoints/step_{self._pretraining_plan(way).steps:09d}"
        if last.exists() and is_of(output, self._pretrain_config(way, seed)):
            return
        overrides = self._pretrain_overrides(way, seed)
        self._command(output, "run", "--cfg", self.settings.pretrain, *overrides)

    def _write_start(self, seed: int) -> None:
        if not self._start_file(seed).exists():
            config = self._pretrain_config(self.settings.pretrainings[0], seed)
            write_start(config, self._start_file(seed))

    def _finetune(self, run: Run) -> results.Outcome:
        output = self.settings.output / run.name
        overrides = self._finetune_overrides(run)
        config = load_config(run.cfg, overrides)
        there = (output / "test/metrics.json").exists() and is_of(output, config)
        if not there:
            self._command(output, "run", "--cfg", run.cfg, *overrides)
        found = results.outcome(run, output, clips_a_step(config))
        if not there:
            self._say(f"{output.name}: top-1 {found.top1:.1f}, of data.val {found.val_top1:.1f}")
        return found

    def _finetune_overrides(self, run: Run) -> list[str]:
        config = load_config(run.cfg, self.settings.overrides)
        rows = arms.labelled_part(self._videos, run.budget, run.seed)
        # Half a step less, so that the step that is not whole rounds up to the last one.
        epochs = (run.steps - 0.5) * clips_a_step(config) / len(rows)
        warmup = config.optim.warmup_epochs / config.train.epochs
        return [
            *self.settings.overrides,
            f"output={self.settings.output / run.name}",
            "stages=[train,test]",
            f"seed={run.seed}",
            f"data.train={self._part(run.budget, run.seed)}",
            *self._classes(),
            f"train.epochs={epochs}",
            f"optim.warmup_epochs={warmup * epochs}",
            # After the last step alone.
            f"train.val_every={2 * epochs}",
            f"train.save_every={2 * epochs}",
            f"optim.lr={run.rate}",
            f"init.weights={run.weights or 'null'}",
        ]

    def _classes(self) -> list[str]:
        """Parts of class folders are lists, which do not name the classes."""
        if self._config.data.classes is not None or not self._videos.classes:
            return []
        file = (self.settings.output / "classes.txt").resolve()
        return [f"data.classes={file}"]

    def _part(self, budget: float, seed: int) -> Path:
        """The list of that share of the labelled videos."""
        return (self.settings.output / f"train_{budget:g}_{seed}.csv").resolve()

    def _write_lists(self) -> None:
        """All of them before the first run, written anew: a run refuses a list that has changed."""
        for budget in {*self.settings.budgets, 1.0}:
            for seed in range(self.settings.seeds):
                rows = arms.labelled_part(self._videos, budget, seed)
                arms.write_part(self._part(budget, seed), self._videos, rows)
        if self._videos.classes:
            text = "".join(f"{name}\n" for name in self._videos.classes)
            (self.settings.output / "classes.txt").write_text(text)

    def _frozen(self) -> dict[str, list[dict[str, Any]]]:
        names = [way.name for way in self.settings.pretrainings] + [arms.SAME_START]
        seeds = range(self.settings.seeds)
        return {name: self._each(partial(self._probe, name), seeds) for name in names}

    def _probe(self, name: str, seed: int) -> dict[str, Any]:
        """What frozen features of data.train and data.test are worth."""
        output = self.settings.output / f"frozen_{name.replace(' ', '_')}_{seed}"
        file = output / "probes.json"
        config = replace(self._config, output=str(output))
        lists = [self._part(1.0, 0), Path(read_list(config, "data.test").source).absolute()]
        if not file.exists():
            for split, videos in zip(("train", "test"), lists):
                self._command(
                    output / split,
                    *(
                        "extract-features",
                        "--cfg",
                        self.settings.finetune,
                        *self.settings.overrides,
                    ),
                    *("--weights", self._weights(name, seed), "--videos", videos),
                    *("--output", output / split, "features.stages=[4]", "features.clips=1"),
                    "model.head_pool=mean",  # the probes take means over time themselves
                )
            self._command(
                output,
                *("probe", output / "train", output / "test", "--lists", *lists),
                *("--seed", seed, "--json", file),
            )
        return json.loads(file.read_text())

    def _command(self, output: Path, *arguments: object) -> None:
        """In a process of its own. Raises UserError or RunStopped with its last line."""
        self._ran = True
        name = output.relative_to(self.settings.output)
        self._say(f"{name}: started")
        paths = [str(Path(hiera_video.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        threads = max(1, (os.cpu_count() or 1) // self.settings.jobs)
        done = subprocess.run(
            [sys.executable, "-m", "hiera_video", *map(str, arguments)],
            capture_output=True,
            text=True,
            env={
                "OMP_NUM_THREADS": str(threads),
                **os.environ,
                # The same code as this process runs, from any folder.
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            },
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["?"])[-1]
            if done.returncode == 2:
                raise UserError(f"{output}: {last.removeprefix('error: ')}")
            raise RunStopped(f"{output}: exit status {done.returncode}: {last}")
        self._say(f"{name}: done")


def write_start(config: Config, file: Path) -> None:
    """The autoencoder of a pretraining as it is before the first step."""
    spec = build.model_spec(config, None)
    model = build.build_model(spec, seed=config.seed)
    if config.init.file:
        load_weights(model, config.init.file, strict=False)
    with written_whole(file) as temporary:
        save_weights(temporary, model.state_dict(), build.build_metadata(config, spec, []))


def clips_a_step(config: Config) -> int:
    return config.train.batch_size * config.train.repeats


def is_of(folder: Path, config: Config) -> bool:
    """Whether the run in the folder is of this config; if not, the run itself will say so."""
    stored = folder / "config.yaml"
    return stored.exists() and not changed_keys(config, stored.read_text())
