#!/bin/sh
# Deploy an image to AWS: a new task definition, the migration with it, then the service rolls.
# Usage: ./aws-deploy.sh IMAGE [PARAMETER=VALUE …]     parameters of aws.yaml; AWS keeps them
set -eu
image=${1:?Usage: ./aws-deploy.sh IMAGE [PARAMETER=VALUE …]}
shift
export AWS_PAGER=
stack=${STACK:-{{ cookiecutter.project_slug }}}

deploy() {
    aws cloudformation deploy --stack-name "$stack" --template-file aws.yaml \
        --capabilities CAPABILITY_IAM --no-fail-on-empty-changeset --parameter-overrides "$@"
}

deploy "Image=$image" "$@"
task=$(aws cloudformation describe-stacks --stack-name "$stack" --output text \
    --query "Stacks[0].Outputs[?OutputKey=='Task'].OutputValue")
TASK=$task ./aws-run.sh flask db upgrade || {
    echo "The migration was not seen to succeed. The service was not touched." >&2
    exit 1
}
deploy "Serving=$task"
