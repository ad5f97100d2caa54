#!/bin/sh
# Run a command of the service on AWS, in a task of its own, and print what it said.
# Usage: ./aws-run.sh COMMAND …     for example: ./aws-run.sh flask backup list
# TASK is the task definition to run it with: the one that serves, unless set.
set -eu
export AWS_PAGER=
: "${1:?Usage: ./aws-run.sh COMMAND …}"
stack=${STACK:-{{ cookiecutter.project_slug }}}

output() {
    aws cloudformation describe-stacks --stack-name "$stack" --output text \
        --query "Stacks[0].Outputs[?OutputKey=='$1'].OutputValue"
}
about_run() {
    aws ecs describe-tasks --cluster "$cluster" --tasks "$run" --output text --query "tasks[0].$1"
}

words=
for word in "$@"; do
    word=$(printf '%s\n' "$word" | awk '{ gsub(/["\\]/, "\\\\&"); printf "%s%s", (NR > 1 ? "\\n" : ""), $0 }')
    words="$words${words:+, }\"$word\""
done
cluster=$(output Cluster)
log=$(output Log)
task=${TASK:-$(output Serving)}
case $task in
"" | None)
    echo "Nothing serves yet. Deploy first: ./aws-deploy.sh IMAGE" >&2
    exit 1
    ;;
esac
run=$(aws ecs run-task --cluster "$cluster" --task-definition "$task" --launch-type FARGATE \
    --network-configuration "$(output Network)" --output text --query 'tasks[0].taskArn || to_string(failures)' \
    --overrides "{\"containerOverrides\": [{\"name\": \"backend\", \"command\": [$words]}]}")
case $run in
arn:*) ;;
*)
    echo "No task started: $run" >&2
    exit 1
    ;;
esac
echo "running; to watch it: aws logs tail --follow $log" >&2
goes_on() {
    echo "It goes on. To stop it: aws ecs stop-task --cluster $cluster --task $run" >&2
    exit 1
}
trap goes_on INT TERM
status= unanswered=0
while [ "$status" != STOPPED ]; do
    sleep 5
    # AWS answers slowly at times, or not at all.
    if status=$(about_run lastStatus); then
        unanswered=0
    elif unanswered=$((unanswered + 1)) && [ "$unanswered" = 12 ]; then
        goes_on
    fi
done
trap - INT TERM
aws logs get-log-events --log-group-name "$log" --log-stream-name "service/backend/${run##*/}" \
    --output text --query 'events[].[message]' || true
code=$(about_run 'containers[0].exitCode')
if [ "$code" != 0 ]; then
    echo "It ended with $code: $(about_run stoppedReason)" >&2
    exit 1
fi
