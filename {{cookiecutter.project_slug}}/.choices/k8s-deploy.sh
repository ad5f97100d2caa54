#!/bin/sh
# Deploy a release to Kubernetes: its Job migrates, then the service rolls.
# Usage: k8s/deploy.sh TAG     the tag of an image that was pushed
set -eu
tag=${1:?Usage: k8s/deploy.sh TAG}
job=migrate-$tag
if ! echo "$tag" | grep -vx latest | grep -Ex '.{1,55}' | grep -Eqx '[a-z0-9]+([.-][a-z0-9]+)*'; then
    echo "No Job can be named after the tag $tag. Take 55 small letters, digits, dots and hyphens at" \
        "most, v1.2 for example." >&2
    exit 1
fi
cd "$(dirname "$0")/production"
sed -i.bak "s/newTag: .*/newTag: \"$tag\"/" kustomization.yaml && rm kustomization.yaml.bak
namespace=$(sed -n 's/^namespace: *//p' kustomization.yaml)
kube() { kubectl --namespace "$namespace" "$@"; }

# That of an earlier try.
kube delete job "$job" --ignore-not-found
kubectl apply -k . -l app.kubernetes.io/component=migration
echo "migrating: kubectl logs --namespace $namespace --follow job/$job"
state=
while [ "${state#*Complete}" = "$state" ]; do
    sleep 2
    state=$(kube get job "$job" --output 'jsonpath={.status.conditions[?(@.status=="True")].type}')
    # What its pod waits for.
    state="$state $(kube get pods --selector "job-name=$job" \
        --output 'jsonpath={.items[*].status.containerStatuses[*].state.waiting.reason}')"
    case $state in
    *Failed* | *ImagePullBackOff* | *ConfigError*)
        kube logs "job/$job" >&2 || true
        echo "The migration did not succeed ($(echo $state)). The service was not touched." >&2
        exit 1
        ;;
    esac
done

kubectl apply -k .
kube rollout status "deployment/{{ cookiecutter.project_slug }}" --timeout=15m
