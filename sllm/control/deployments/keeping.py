"""How long a deployment's idle instances stay: as its policy says, or as its pauses have taught."""

from dataclasses import replace

from sllm.control.cluster.instances import Instance
from sllm.control.cluster.specs import Deployment, ScalingPolicy
from sllm.control.config import ControlConfig
from sllm.control.deployments.layers import layers_of
from sllm.control.requests.keep_times import Layer, keep_times
from sllm.control.state.state import State
from sllm.control.types.status import Learned


class Keeping:
    """Works keep times out whenever a deployment is looked at. Belongs to the event loop."""

    def __init__(self, state: State, config: ControlConfig) -> None:
        self._state = state
        self._config = config

    def policy(self, deployment: Deployment) -> ScalingPolicy:
        """The deployment's, with the time that was learned where one was."""
        scaling = deployment.spec.scaling
        learned = self._learn(deployment)
        return replace(scaling, keep_alive=learned.keep_alive) if learned else scaling

    def keep_weights(self, name: str) -> float | None:
        """Seconds for which weights are worth their room in DRAM once an instance has ended.

        None: nothing has been learned.
        """
        learned = self._state.learned.get(name)
        return learned.keep_weights if learned else None

    def _learn(self, deployment: Deployment) -> Learned | None:
        """What has been learned; `State.learned` has it from now on."""
        name, scaling = deployment.name, deployment.spec.scaling
        learns, pauses = scaling.learn_keep_alive, self._state.arrivals.of(deployment.name)
        if not (self._config.learn_keep_alive if learns is None else learns) or not pauses.suffice:
            self._state.learned.pop(name, None)
            return None
        instances = self._state.ready_replicas(name)
        layers = self._layers(instances[0], scaling.keep_alive) if instances else None
        if layers is None:
            return self._state.learned.get(name)
        instance, weights = keep_times(pauses, layers)
        learned = Learned(instance, weights - instance)
        self._state.learned[name] = learned
        return learned

    def _layers(self, instance: Instance, keep_alive: float) -> tuple[Layer, Layer] | None:
        fleet, worth = self._state.fleet, self._config.idle_worth_seconds
        node, need = fleet.nodes.get(instance.node_id), self._state.needs[instance.deployment]
        return layers_of(node, instance, need, fleet.typical, worth, keep_alive) if node else None
