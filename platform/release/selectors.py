"""Reads of release that others build on: the gateway's routes, and what the ledger says about a promotion."""

from collections.abc import Iterable

from audit import selectors as ledger
from audit.selectors import EventRow
from release.models import Deployment, ModelVersion, PolicyNode, Promotion
from release.routing import Route, Target


def routes() -> list[Route]:
    """Every alias of the installation with the versions that may answer it now, in two queries.

    An alias whose base no node serves is left out, and so is a canary that no node has loaded: a node that
    came back empty must cost the canary its share for a moment, not the callers their answers.
    """
    nodes = list(PolicyNode.objects.order_by("name"))
    deployments = Deployment.objects.select_related("champion", "canary").order_by("pk")
    found = []
    for deployment in deployments:
        champion = _target(deployment.champion, nodes, only_loaded=False)
        canary = _target(deployment.canary, nodes, only_loaded=True) if deployment.canary else None
        if champion is not None:
            found.append(
                Route(
                    project_id=str(deployment.project_id),
                    alias=deployment.alias,
                    deployment_id=str(deployment.pk),
                    champion=champion,
                    canary=canary,
                    canary_share=deployment.canary_share if canary else 0.0,
                    salt=f"{deployment.pk}/{deployment.generation}",
                )
            )
    return found


def history(promotion: Promotion) -> list[EventRow]:
    """What the ledger says about a promotion, its own events and the deployment's that name it, oldest
    first."""
    own = ("promotion", str(promotion.pk))
    deployment = ("deployment", str(promotion.deployment_id))
    histories = ledger.events_of_many([own, deployment])
    events = [
        *histories.get(own, ()),
        *(row for row in histories.get(deployment, ()) if any((r.type, r.id) == own for r in row.related)),
    ]
    return sorted(events, key=lambda row: (row.at, row.id))


def _target(version: ModelVersion, nodes: Iterable[PolicyNode], *, only_loaded: bool) -> Target | None:
    """The version on a node that has it loaded, or else, unless `only_loaded`, on one that serves its
    base."""
    able = [node for node in nodes if node.base_sha256 == version.base_sha256]
    loaded = [node for node in able if version.served_name in node.loaded]
    node = next(iter(loaded or ([] if only_loaded else able)), None)
    if node is None:
        return None
    return Target(
        model_version_id=str(version.pk),
        version=version.name,
        served_name=version.served_name,
        node_url=node.base_url,
    )
