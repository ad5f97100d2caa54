"""Answers are data: what a person answers is not run as a template.

Cookiecutter renders what it is given on the command line, in a configuration file or by cruft as
Jinja, in the same way as the defaults of cookiecutter.json: `{% raw %}` in a description ends it.

A released version of this file is never changed, a change gets a new file name: `cruft update`
renders the old and the new template in one process, which imports a module of one name once.
"""

import sys

from jinja2 import Environment
from jinja2.ext import Extension

# The default of cookiecutter.json that is made of another answer.
PROJECT_SLUG = (
    "{% set slug = cookiecutter.project_name | string | slugify(max_length=55) %}"
    "{{ slug if slug[:1].isalpha() else ('service-' ~ slug).strip('-') }}"
)
# The last entry of cookiecutter.json: when Cookiecutter knows it, all questions are answered, and
# what it renders from then on are hooks and paths.
LAST = "_extensions"


class AnswersAreData(Extension):
    """Jinja as Cookiecutter uses it, but for answers, which it returns as they are."""

    def __init__(self, environment):
        super().__init__(environment)
        environment.from_string = lambda source: Source(environment, source)
        # cruft renders the project for these two only to compare it.
        environment.globals["compared"] = sys.argv[1:2] in (["update"], ["diff"])


class Source:
    """Stands for a Jinja template with the one method that Cookiecutter calls."""

    def __init__(self, environment, source):
        self.environment = environment
        self.source = source

    def render(self, **context):
        asked = LAST in context["cookiecutter"]
        if self.source == PROJECT_SLUG or (asked and "cookiecutter" in self.source):
            return Environment.from_string(self.environment, self.source).render(**context)
        return self.source
