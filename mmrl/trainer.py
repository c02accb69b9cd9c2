"""Collect, update, log, evaluate, checkpoint. Composed of parts, never subclassed."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, replace

import torch
from tqdm import tqdm

from mmrl import checkpoint
from mmrl.ahead.feed import Position
from mmrl.ahead.start import feed_of
from mmrl.checkpoint import SaveConfig
from mmrl.critic import parameter_groups, scale_rates
from mmrl.ema import Average
from mmrl.journal import Journal
from mmrl.metrics import with_measured
from mmrl.parts import Parts
from mmrl.run import RunFolder
from mmrl.runtime import Runtime, acting, evaluating
from mmrl.settings import EvaluateConfig, LoggingConfig, TrainConfig
from mmrl.sharding import to_load
from mmrl.state import State
from mmrl.stopping import StopRule, Watch
from mmrl.summary import summarise
from mmrl.terminal import interruptible
from mmrl.types import Estimate, Rollout
from mmrl.update import update


class Trainer:
    """One run. `folder` None keeps nothing on disk (controls, tests)."""

    def __init__(
        self, parts: Parts, train: TrainConfig, runtime: Runtime, folder: RunFolder | None = None,
        evaluate: EvaluateConfig | None = None, save: SaveConfig | None = None, logging: LoggingConfig | None = None,
        stop: Sequence[StopRule] = (), overrides: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.parts, self.train, self.runtime, self.folder = parts, train, runtime, folder
        self.evaluation, self.saving = evaluate or EvaluateConfig(), save or SaveConfig()
        self.logging = logging or LoggingConfig()
        self.watch = Watch(tuple(stop), self.saving)
        parts.check(train.update)
        parts.to(runtime.device)
        parts.ask_policy()
        self.feed = feed_of(parts, train, runtime, folder, overrides)
        if parts.algorithm.needs_exact_kl and parts.reference is not None:
            parts.policy.kl_reference = (parts.reference,)
        groups = parameter_groups(parts.policy, train.critic_lr, train.lr)
        self.optimizer = torch.optim.AdamW(groups, train.lr, train.betas, weight_decay=train.weight_decay, fused=True)
        self.optimizer.register_step_post_hook(lambda *_: parts.policy.weights_changed())
        self.policy, self.prepared = runtime.prepare(parts.policy, self.optimizer)
        trainable = [p for p in parts.policy.parameters() if p.requires_grad]
        self.average = None if train.ema is None else Average(trainable, train.ema)
        if self.average is not None:
            self.optimizer.register_step_post_hook(lambda *_: self.average.update())  # type: ignore[union-attr]
        self.state = State()
        self.interrupted = False

    def fit(self, resume: bool = False) -> dict[str, object]:
        """Train to the last step, or until a rule stops it; returns the summary."""
        with closing(self.feed):
            self.feed.ready()
            if resume:
                self._restore()
            self._train()
        if self.state.keep_best:
            self._return_to_best()
        return summarise(self.state, self.parts.primary_metric, self.runtime)

    def _train(self) -> None:
        journal = Journal(self.folder, self.logging, self.runtime, self.state, self.train.steps)
        if not self.state.eval_before:
            line = self._evaluate(journal)
            self.state.eval_before = self.state.eval_after
            self.watch.look(self.state, line)
            if self.watch.note_best(self.state, line):
                self._save(self._position())
        with interruptible(self._stop), closing(journal):
            done = self._look(journal, {}) if self.state.owes_a_look(self._done()) else self._done()
            while not done and not self.interrupted:
                cpu, wall = self._cpu_s(), time.perf_counter()
                metrics = self.step()
                self.state.cpu_s += max(0.0, self._cpu_s() - cpu)
                self.state.wall_s += time.perf_counter() - wall
                metrics["time/cpu"] = self.state.cpu_s
                try:
                    journal.step(self.state, metrics)
                except OSError:  # a disk that is full, say
                    self._rescue()
                    raise
                if self.state.step == 1:
                    self.watch.check_names(self.state, metrics)
                self.interrupted = self.runtime.any_rank(self.interrupted)
                done = self._look(journal, metrics)

    def _look(self, journal: Journal, metrics: dict[str, float]) -> bool:
        """After a step: evaluate, heed the stop rules, save, each if it is due. Whether training ends."""
        last = self._done()
        if last or self.state.unevaluated or self._due(self.evaluation.every):
            metrics |= self._evaluate(journal, between=not last)
        done = self.watch.look(self.state, metrics) or last
        if done and not last:
            metrics |= self._evaluate(journal)
        better = self.watch.note_best(self.state, metrics)
        self.state.looked = self.state.step
        if better or self._due(self.saving.every) or done or self.interrupted:
            self._save(self._position())
        return done

    def _cpu_s(self) -> float:
        """Of this process, of those that it started and that have ended, and of the collector's."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + ended.ru_utime + ended.ru_stime + self.feed.cpu_s()

    def _done(self) -> bool:
        budget = self.train.cpu_budget_s
        spent = budget is not None and self.runtime.any_rank(self.state.cpu_s >= budget)
        return self.state.step >= self.train.steps or spent

    def step(self) -> dict[str, float]:
        """One RL step, top to bottom."""
        runtime, parts = self.runtime, self.parts
        began = time.perf_counter()
        rollout = self._collect()
        collected = time.perf_counter()
        lr = self.train.lr * self.train.schedule(self.state.step, self.train.steps)
        scale_rates(self.optimizer, lr)
        critic_only = self.state.step < self.train.critic_warmup
        with evaluating(self.policy):  # dropout would make the ratio noise
            metrics = update(
                self.policy, rollout, parts.algorithm, self.prepared, runtime, self.train.update, critic_only
            )
        self._count(rollout)
        self.feed.updated(self.state.step)
        return {
            **with_measured(metrics, self.feed.measured(), runtime),
            "update/lr": lr,
            "time/collect": collected - began,
            "time/update": time.perf_counter() - collected,
        }

    def _collect(self) -> Rollout:
        """A rollout. Should it fail, on a reward say, the run is saved as it stood before this step."""
        before = self._position() if self.runtime.world == 1 else None
        try:
            return self.feed.next(self.state.step)
        except Exception:
            self._rescue(before)
            raise

    def _count(self, rollout: Rollout) -> None:
        own = {"decisions": float(rollout.mask.sum()), "samples": float(len(rollout))}
        everyone = self.runtime.sum_over_ranks(own)
        self.state.step += 1
        self.state.decisions += int(everyone["decisions"])
        self.state.samples += int(everyone["samples"])

    @contextmanager
    def _result(self) -> Iterator[None]:
        """Inside, the policy acts with the weights that are the result: their moving average, where there is one."""
        averaged = nullcontext() if self.average is None else self.average.applied()
        with averaged, acting(self.parts.policy), self.runtime.accelerator.autocast():
            yield

    def evaluate(self, between: bool = False) -> dict[str, Estimate]:
        """Held-out evaluation of the policy as it is now; the same draws every time."""
        evaluator, generator = self.parts.evaluator, self.runtime.fresh_generator("evaluate")
        with self._result():
            return (evaluator.between if between else evaluator.evaluate)(self.parts.policy, generator)

    def _evaluate(self, journal: Journal, between: bool = False) -> dict[str, float]:
        """Evaluate, write figures and samples; returns eval/<metric> with its interval."""
        drawing, step = self._cpu_s(), self.state.step
        journal.evaluating()
        self.feed.settle()
        before = self._cpu_s()
        self.state.cpu_s += max(0.0, before - drawing)  # what is drawn for training
        try:
            own = {name: asdict(estimate) for name, estimate in self.evaluate(between).items()}
            found = json.loads(self.runtime.from_main(json.dumps(own)))  # ranks must agree on when to stop
            if self.folder is not None:
                target = self.folder.path / "samples" / f"step_{step:06d}"
                with self._result():  # on all ranks, for each has a part of the weights
                    generator, parts = self.runtime.fresh_generator("samples"), self.parts
                    if self.runtime.is_main:
                        parts.evaluator.samples(parts.policy, generator, target, self.evaluation.samples)
        except Exception:
            self.state.unevaluated = True
            self._rescue()
            raise
        journal.evaluated(step, found, self.parts.primary_metric)
        self.runtime.wait()
        self.state.eval_cpu_s += self._cpu_s() - before
        self.state.eval_after, self.state.unevaluated = found, False
        self.state.evaluated = self.state.evaluated if between else step
        return {f"eval/{name}": e["value"] for name, e in found.items()}

    def _rescue(self, position: Position | None = None) -> None:
        """Save before an error ends the run. Not with other ranks: their positions could not be asked for."""
        if self.runtime.world == 1 and self.folder is not None and self.state.step > 0:
            self._save(position or self._position())
            tqdm.write(f"saved at step {self.state.step}: mend the cause below, then --resume")

    def _position(self) -> Position:
        found = self.feed.position()
        return replace(found, generators=self.runtime.generator_states(found.generators))

    def _save(self, position: Position) -> None:
        if self.folder is None:
            return
        self.state.collector = position.collector
        self.state.advantage = self.parts.algorithm.advantage.state_dict()
        self.state.parts = self.parts.algorithm.state_dict()
        target, policy, writes = self.folder.checkpoints, self.parts.policy, self.runtime.is_main
        keep, drawn_from, behind = self.saving.keep, position.generators, position.behind
        checkpoint.save(target, policy, self.optimizer, drawn_from, self.state, keep, self.average, behind, writes)
        self.runtime.wait()

    def _restore(self) -> None:
        found = checkpoint.latest(self.folder.checkpoints) if self.folder is not None else None
        if found is None:
            return
        self.state, generators = checkpoint.load(
            checkpoint.verified(found), self.parts.policy, self.optimizer, self.average
        )
        self.state.stopped_by, self.state.keep_best = "", False  # who resumes wants to go on
        self.parts.algorithm.advantage.load_state_dict(self.state.advantage)
        self.parts.algorithm.load_state_dict(self.state.parts)
        self.runtime.load_generator_states(generators)
        self.feed.restore(self.state.step, Position(self.state.collector, generators, checkpoint.load_behind(found)))

    def _due(self, every: int | None) -> bool:
        return every is not None and self.state.step % every == 0

    def _return_to_best(self) -> None:
        """Make the best checkpoint the result of the run."""
        if self.folder is not None and self.state.best_step is not None:
            with to_load(self.parts.policy):
                self.parts.policy.load_weights(self.folder.checkpoint("best") / "policy")
            self.parts.policy.weights_changed()
            self.state.eval_after = self.state.best_eval

    def _stop(self) -> None:
        self.interrupted = True
