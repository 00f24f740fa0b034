"""What a run found: comparisons of a contender with the baseline, the best peer and the limit."""

import math
from dataclasses import dataclass

from .contenders import CONTENDERS
from .limits import Limits
from .measure import Result, ratio
from .suites import Case


@dataclass(frozen=True)
class Comparison:
    """The figures of one contender on one case; None where one cannot be had."""

    over_baseline: float | None
    best_peer: str | None
    over_best_peer: float | None
    limit_share: float | None
    limit: str | None  # what binds: "copy", "read", "arithmetic" or "peak"


@dataclass
class Outcome:
    machine: dict
    baseline: str
    contenders: list[str]  # that were measured
    absent: dict[str, str]  # contender: reason
    limits: Limits | None
    no_limits: str  # why limits is None
    results: list[tuple[Case, dict[str, Result]]]

    @property
    def train(self):
        return self.machine["mode"] == "train"

    @property
    def subjects(self):
        """Whom the report is about: our own contenders; without them, everybody but the baseline;
        without those, the baseline."""
        own = [name for name in self.contenders if CONTENDERS[name].ours]
        others = [name for name in self.contenders if name != self.baseline]
        return own or others or self.contenders

    def compare(self, case, results, name):
        mine = results[name]
        done = {other: result for other, result in results.items() if not result.failure}
        peers = [other for other in done if other != name and not CONTENDERS[other].ours]
        best = min(peers, key=lambda other: done[other].seconds, default=None)
        least = self.limits and self.limits.least(case, mine.bytes, self.train)
        return Comparison(
            over_baseline=ratio(done[self.baseline], mine) if self.baseline in done else None,
            best_peer=best,
            over_best_peer=ratio(done[best], mine) if best else None,
            limit_share=least[0] / mine.seconds if least else None,
            limit=least[1] if least else None,
        )

    def comparisons(self, name, selected):
        """Of those results that the contender finished."""
        return [self.compare(case, results, name) for case, results in finished(name, selected)]

    def below(self, least):
        """(case name, ratio or the reason of the failure) of our cases under this ratio."""
        found = []
        for case, results in self.results:
            for name in (name for name in results if CONTENDERS[name].ours):
                if results[name].failure:
                    found.append((f"{case.name} {name}", results[name].failure))
                    continue
                over = self.compare(case, results, name).over_baseline
                if over is None:
                    found.append((f"{case.name} {name}", f"{self.baseline} failed"))
                elif over < least:
                    found.append((f"{case.name} {name}", f"{over:.3f}x"))
        return found


def finished(name, selected):
    return [
        (case, results)
        for case, results in selected
        if name in results and not results[name].failure
    ]


def geometric_mean(values):
    values = [value for value in values if value is not None]
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None
