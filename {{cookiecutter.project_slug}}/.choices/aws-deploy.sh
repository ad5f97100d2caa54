#!/bin/sh
# Deploy an image to AWS: a new task definition, the migration with it, then the service rolls.
# Usage: ./aws-deploy.sh IMAGE [PARAMETER=VALUE …]     parameters of aws.yaml; AWS keeps them
set -eu
image=${1:?Usage: ./aws-deploy.sh IMAGE [PARAMETER=VALUE …]}
shift
stack=${STACK:-{{ cookiecutter.project_slug }}}

deploy() {
    aws cloudformation deploy --stack-name "$stack" --template-file aws.yaml \
        --capabilities CAPABILITY_IAM --no-fail-on-empty-changeset --parameter-overrides "$@"
}
output() {
    aws cloudformation describe-stacks --stack-name "$stack" --output text \
        --query "Stacks[0].Outputs[?OutputKey=='$1'].OutputValue"
}

deploy "Image=$image" "$@"
cluster=$(output Cluster) task=$(output Task)

run=$(aws ecs run-task --cluster "$cluster" --task-definition "$task" --launch-type FARGATE \
    --network-configuration "$(output Network)" --output text --query 'tasks[0].taskArn || to_string(failures)' --overrides \
    '{"containerOverrides": [{"name": "backend", "command": ["flask", "db", "upgrade"]}]}')
case $run in
arn:*) ;;
*)
    echo "No task started to migrate: $run. The service was not touched." >&2
    exit 1
    ;;
esac
echo "migrating: aws logs tail --follow $(output Log)"
about_run() {
    aws ecs describe-tasks --cluster "$cluster" --tasks "$run" --output text --query "tasks[0].$1"
}
status=
while [ "$status" != STOPPED ]; do
    sleep 5
    status=$(about_run lastStatus)
done
code=$(about_run 'containers[0].exitCode')
if [ "$code" != 0 ]; then
    echo "The migration ended with $code ($(about_run stoppedReason)). The service was not touched." >&2
    exit 1
fi

deploy "Serving=$task"
