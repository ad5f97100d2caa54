"""The verdicts on revisions, for people and for tools."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from app.core.safety.hazards import Hazard


@dataclass
class Verdict:
    """What is known about one revision."""

    revision: str
    file: str
    hazards: list[Hazard]
    acknowledged: dict[str, str] = field(default_factory=dict)
    not_judged: str | None = None
    # It failed for want of rows: what comes after it can be judged all the same.
    needs_rows: bool = False


@dataclass
class Report:
    """The verdicts on some revisions, and what is wrong with all of them together."""

    verdicts: list[Verdict] = field(default_factory=list)
    history: list[Hazard] = field(default_factory=list)
    not_judged: str | None = None

    @property
    def exit_code(self) -> int:
        """0 clean, 1 hazards, 2 could not judge."""
        if self.history or any(verdict.hazards for verdict in self.verdicts):
            return 1
        return 2 if self.not_judged or any(verdict.not_judged for verdict in self.verdicts) else 0

    def text(self) -> str:
        """The report for people."""
        lines = []
        if self.history:
            lines.append(f"the history as a whole{described(self.history)}\n")
        for verdict in self.verdicts:
            state = "clean" if not (verdict.hazards or verdict.not_judged) else ""
            lines.append(f"{verdict.file}: {state}{described(verdict.hazards)}".rstrip(": "))
            for key, why in verdict.acknowledged.items():
                lines.append(f"  acknowledged: {key} ({why})")
            offered = [each.key for each in verdict.hazards if each.can_be_acknowledged]
            if offered:
                example = {offered[0]: "the reason"}
                lines.append(f"\n  Or, in the file, if you know better: acknowledged = {example}\n")
            if verdict.not_judged:
                lines.append(f"  could not be judged: {verdict.not_judged}")
        if self.not_judged:
            lines.append(f"could not be judged: {self.not_judged}")
        return "\n".join(lines) or "nothing to judge: no unapplied revision"

    def json(self) -> str:
        """The report for tools."""
        return json.dumps(
            {
                "revisions": [
                    asdict(verdict) | {"hazards": [_as_dict(each) for each in verdict.hazards]}
                    for verdict in self.verdicts
                ],
                "history": [_as_dict(each) for each in self.history],
                "not_judged": self.not_judged,
                "exit_code": self.exit_code,
            },
            indent=2,
        )


def described(hazards: Iterable[Hazard]) -> str:
    """The hazards for people, one paragraph each."""
    return "\n".join(f"\n  {h.key}\n    {h.happens}\n    Safe: {h.recipe}" for h in hazards)


def _as_dict(hazard: Hazard) -> dict[str, str]:
    return asdict(hazard) | {
        "key": hazard.key,
        "happens": hazard.happens,
        "recipe": hazard.recipe,
    }
