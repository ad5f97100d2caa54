#!/bin/sh
# Start the service: 1 wait for the database, 2 flask db upgrade, 3 seeds, 4 gunicorn.
# Every step can safely be repeated. Settings: .env.example
set -eu
unset CDPATH
cd -- "$(dirname -- "$0")"

if [ -d .venv/bin ]; then
    PATH="$PWD/.venv/bin:$PATH"
fi
if ! command -v gunicorn >/dev/null; then
    echo "init.sh: the dependencies are not installed here. README.md says how without uv. With uv, run: uv sync" >&2
    exit 1
fi

# Steps 1 to 3 in one Python process. It runs in the background, because a shell handles no signal
# while a program runs in the foreground, and as process 1 of a container it would never get any.
FLASK_SKIP_DOTENV=1 python -m flask prepare &
trap 'kill $!; wait $!; exit 143' INT TERM
wait $!
trap - INT TERM

exec python -m gunicorn
