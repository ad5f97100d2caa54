"""squawk's opinion where it is installed; only what our own judgement does not cover."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from app.core.safety.hazards import Hazard
from app.core.safety.report import Verdict
from app.core.safety.statements import Statement

# squawk's rules that need no knowledge of the database, and which of ours cover them.
ALWAYS = {"ban-truncate-cascade": "truncate", "ban-drop-database": "database-drop"}
WORDS_OF_ALWAYS = re.compile(r"\b(truncate|database)\b", re.IGNORECASE)
WITHOUT_DRY_RUN = ALWAYS | {
    "ban-drop-column": "column-drop",
    "ban-drop-table": "table-drop",
    "renaming-column": "column-rename",
    "renaming-table": "table-rename",
    "constraint-missing-not-valid": "table-scan",
    "disallowed-unique-constraint": "unique-constraint",
    "require-concurrent-index-creation": "index-build",
}


def findings(statements: list[Statement], verdict: Verdict) -> list[Hazard]:
    """What squawk says of the statements, as hazards that the verdict does not have yet."""
    here = Path(sys.executable).parent / "squawk"
    program = str(here) if here.exists() else shutil.which("squawk")
    if program is None or not statements:
        return []
    script = ";\n".join(each.text for each in statements) + ";\n"
    if verdict.not_judged is None and not WORDS_OF_ALWAYS.search(script):
        return []
    result = subprocess.run(
        [program, "--reporter", "json"],
        input=script,
        capture_output=True,
        encoding="utf-8",
        timeout=30,
        check=False,
    )
    try:
        found: list[dict[str, Any]] = json.loads(result.stdout or "[]")
    except ValueError:
        return []
    rules = ALWAYS if verdict.not_judged is None else WITHOUT_DRY_RUN
    names = {each.name for each in verdict.hazards}
    return [
        Hazard("squawk", item=finding["rule_name"], detail=finding["message"])
        for finding in found
        if finding["rule_name"] in rules and rules[finding["rule_name"]] not in names
    ]
