"""Would this revision hurt a database with users? Judged by a dry run, rules on words, and squawk.

Read lint.py first: what is judged, and in which order. It puts each revision through the dry run
(dry_run.py), has what was observed turned into hazards (checks.py, statements.py, squawk.py), and
writes it down (report.py, hazards.py).
"""

from app.core.safety.lint import judge, judge_pending
from app.core.safety.report import Report

__all__ = ["Report", "judge", "judge_pending"]
