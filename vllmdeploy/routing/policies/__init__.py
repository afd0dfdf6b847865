"""Routing policies: each orders candidates and does nothing else."""

from vllmdeploy.routing.policies.base import Chance, Choose, Policy, chooser, reads_requests
from vllmdeploy.routing.policies.registry import DEFAULT, create, names

__all__ = ["DEFAULT", "Chance", "Choose", "Policy", "chooser", "create", "names", "reads_requests"]
