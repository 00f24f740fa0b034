"""Interleaved rounds: every contender does the case once a round, one active at a time."""

import random
import statistics
from dataclasses import dataclass, field

from .processes import Failed


@dataclass
class Result:
    """One contender on one case. Without rounds it failed, and failure says why."""

    rounds: list[float] = field(default_factory=list)  # median seconds per call of each round
    samples: list[float] = field(default_factory=list)  # of all rounds
    error: float | None = None  # of the output
    gradient_error: float | None = None  # with --mode train
    bytes: int | None = None
    failure: str | None = None

    @property
    def seconds(self):
        return statistics.median(self.rounds)

    def percentile(self, percent):
        ordered = sorted(self.samples)
        return ordered[round((len(ordered) - 1) * percent / 100)]

    def fail(self, reason):
        """Nothing measured counts once a contender has failed in the middle of its rounds."""
        self.rounds, self.samples, self.failure = [], [], str(reason)


def ratio(slower, faster):
    """How many times faster the second is: the median over the rounds."""
    pairs = zip(slower.rounds, faster.rounds, strict=True)
    return statistics.median(first / second for first, second in pairs)


def run_case(case, workers, rounds):
    """Results by contender. workers: by contender, those that cover the case."""
    results = {name: Result() for name in workers}
    for name, worker in workers.items():
        worker.new_case()
        try:
            answer = worker.ask("prepare", case=case.to_json())
            for fact in ("bytes", "error", "gradient_error"):
                setattr(results[name], fact, answer[fact])
        except Failed as problem:
            results[name].fail(problem)
    order = list(workers)
    shuffle = random.Random(case.name).shuffle  # nobody always runs first, or behind the same one
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            if results[name].failure:
                continue
            try:
                samples = workers[name].ask("round")["seconds"]
                results[name].rounds.append(statistics.median(samples))
                results[name].samples.extend(samples)
            except Failed as problem:
                results[name].fail(problem)
    return results
