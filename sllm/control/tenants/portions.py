"""What one tenant may fill of a room that all share, such as the queue.

Half of it is kept: for each tenant a part by its weight, which nobody else can fill. The other half
is for whoever comes first. A tenant that is alone has all of it.

    fits("acme", 10, room=100, used={"acme": 45, "zebra": 0}, weights={"acme": 1.0, "zebra": 1.0})
"""

from collections.abc import Mapping


def fits(
    tenant: str, more: float, room: float, used: Mapping[str, float], weights: Mapping[str, float]
) -> bool:
    """Whether a tenant may take so much more, as far as what is kept for others is concerned.

    Args:
        tenant: Who.
        more: What it would take.
        room: What there is altogether.
        used: What each has of it.
        weights: Of all tenants for whom some is kept.
    """
    unit = room / 2 / (sum(weights.values()) or 1.0)
    kept = {one: unit * weight for one, weight in weights.items()}
    wanted = used.get(tenant, 0.0) + more
    if wanted <= kept.get(tenant, 0.0):
        return True
    after = {**used, tenant: wanted}
    beyond = sum(max(0.0, amount - kept.get(one, 0.0)) for one, amount in after.items())
    return beyond <= room / 2
