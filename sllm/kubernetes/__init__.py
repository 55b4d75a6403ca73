"""The operator: deployments as Kubernetes' resources."""
