#!/usr/bin/env bash
# An agent in a shell: solves problems in sessions of a run in online mode, and rewards its own answers.
#   examples/shell_agent/agent.sh RUN_DIRECTORY [PROBLEMS.jsonl [SESSIONS_PER_PROBLEM [SESSIONS_AT_A_TIME]]]
# It ends with the last problem, or when the run has ended. Several copies may run at once.
set -euo pipefail

run=$1
problems=${2:-examples/tiny/data/train.jsonl}
sessions=${3:-8}
at_a_time=${4:-32}

until [[ -s $run/gateway.json ]]; do sleep 1; done
url=$(jq -r .url "$run/gateway.json")
admin_key=$(jq -r .admin_key "$run/gateway.json")

bearer() { echo "Authorization: Bearer $1"; } # not an argument of curl, which other users of the machine could read

# A session: two requests open it and call the model, two reward and end it. curl makes two requests per process, and
# the session's key is chosen here, because starting processes is most of the work.
attempt() { # TASK REQUEST RESULT
  local key answer reward=0
  read -r key </proc/sys/kernel/random/uuid
  answer=$(curl --silent --show-error --fail-early \
    --fail-with-body --header @<(bearer "$admin_key") --data "{\"task_id\": \"$1\", \"api_key\": \"$key\"}" \
    --output /dev/null "$url/rl/start_session" \
    --next --fail-with-body --header @<(bearer "$key") --data "$2" "$url/v1/chat/completions")
  [[ ! $answer =~ \#\#\#\#\ ?$3\" ]] || reward=1 # the end of "content" in the answer's JSON
  curl --silent --show-error --fail-early \
    --fail-with-body --header @<(bearer "$key") --data "{\"reward\": $reward}" "$url/rl/set_reward" \
    --next --fail-with-body --header @<(bearer "$key") --data '{}' "$url/rl/end_session" >/dev/null
}

failed() {
  echo "a session failed: the run has ended, or the message above has the reason" >&2
  exit 1
}

number=0
running=0
while read -r request && read -r result; do
  number=$((number + 1))
  for _ in $(seq "$sessions"); do
    if [[ $running -ge $at_a_time ]]; then
      wait -n || failed
      running=$((running - 1))
    fi
    attempt "$$-$number" "$request" "$result" &
    running=$((running + 1))
  done
done < <(jq -cr '{model: "default", messages: [{role: "user", content: .question}]}, (.answer | split("#### ")[1])' "$problems")
while [[ $running -gt 0 ]]; do
  wait -n || failed
  running=$((running - 1))
done
