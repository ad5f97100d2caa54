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
    echo "init.sh: the dependencies are not installed here. Run: uv sync" >&2
    exit 1
fi

# Steps 1 to 3 in one Python. app/config.py reads .env by itself.
FLASK_SKIP_DOTENV=1 python -m flask prepare

exec python -m gunicorn
