#!/usr/bin/env bash
# The same as `python eval/run_tests.py`, from any folder; uses the project's .venv if no environment is active.
set -eu
cd "$(dirname "$0")/.."
[ -n "${VIRTUAL_ENV:-}" ] || [ ! -x .venv/bin/python ] || PATH="$PWD/.venv/bin:$PATH"
exec python eval/run_tests.py "$@"
