#!/usr/bin/env bash
# An agent in a shell: solves problems in sessions of a run in online mode, and rewards its own answers.
#   examples/shell_agent/agent.sh RUN_DIRECTORY [PROBLEMS.jsonl [SESSIONS_PER_PROBLEM]]
# It ends with the last problem, or when the run has ended. Several copies may run at once.
set -euo pipefail

run=$1
problems=${2:-examples/tiny/data/train.jsonl}
sessions=${3:-8}

until [[ -s $run/gateway.json ]]; do sleep 1; done
url=$(jq -r .url "$run/gateway.json")
admin_key=$(jq -r .admin_key "$run/gateway.json")

post() { # KEY PATH BODY; the key is not an argument of curl, which other users of the machine could read
  curl --silent --show-error --fail-with-body --header @<(echo "Authorization: Bearer $1") --data "$3" "$url$2"
}

attempt() { # TASK QUESTION NUMBER
  local key body answer reward=0
  key=$(post "$admin_key" /rl/start_session "{\"task_id\": \"$1\"}" | jq -er .api_key)
  body=$(jq -n --arg question "$2" '{model: "default", messages: [{role: "user", content: $question}]}')
  answer=$(post "$key" /v1/chat/completions "$body" | jq -er '.choices[0].message.content')
  [[ ! $answer =~ \#\#\#\#\ ?$3$ ]] || reward=1
  post "$key" /rl/set_reward "{\"reward\": $reward}" >/dev/null
  post "$key" /rl/end_session '{}' >/dev/null
}

number=0
while IFS=$'\t' read -r question result; do
  number=$((number + 1))
  attempts=()
  for _ in $(seq "$sessions"); do
    attempt "$$-$number" "$question" "$result" &
    attempts+=($!)
  done
  for attempt in "${attempts[@]}"; do
    wait "$attempt" || { echo "problem $number failed: the run has ended, or the message above has the reason" >&2; exit 1; }
  done
done < <(jq -r '[.question, (.answer | split("#### ")[1])] | @tsv' "$problems")
