#!/bin/sh
# Start the service: 1 wait for the database, 2 flask db upgrade, 3 seeds, 4 gunicorn.
# Every step can be run again. Settings: .env.example
set -eu
unset CDPATH
cd -- "$(dirname -- "$0")"

if [ -d .venv/bin ]; then
    PATH="$PWD/.venv/bin:$PATH"
fi
if ! command -v gunicorn >/dev/null; then
    echo "init.sh: the dependencies are not installed here. Run: uv sync (README.md says how without uv)" >&2
    exit 1
fi

# Steps 1 to 3 in one Python. In the background, because a shell that waits for a program hears no
# signal before its end, and as process 1 of a container none at all.
FLASK_SKIP_DOTENV=1 python -m flask prepare &
trap 'kill $!; wait $!; exit 143' INT TERM
wait $!
trap - INT TERM

exec python -m gunicorn
