"""What must hold in every state, whichever protocol led to it."""

from __future__ import annotations

from .explore import World


def find_fault(world: World) -> str | None:
    """
    What is wrong with a state.

    The notes are ``(actor, "begins")``, ``(actor, "computes", value)``,
    ``(actor, "replies", value)``, ``(actor, "bust begins")``, ``(actor, "bust ends")``. The first
    item of a plan is its value.
    """
    bust_began = False
    bust_ended = False
    called_after_bust: set[str] = set()
    busted: set[str] = set()  # Values whose computation began before the bust.
    computed: list[str] = []
    replies: dict[str, str] = {}
    for actor, what, *rest in world.notes:
        if what == "bust begins":
            bust_began = True
            busted = set(computed)
        elif what == "bust ends":
            bust_ended = True
        elif what == "begins" and bust_ended:
            called_after_bust.add(actor)
        elif what == "computes":
            computed.append(rest[0])
        elif what == "replies":
            replies[actor] = rest[0]

    for actor in called_after_bust & replies.keys():
        if replies[actor] in busted:
            return f"{actor} was answered with {replies[actor]}, which was busted before it called"
    store = dict(world.store)
    plan = store.get("plan")
    if bust_ended and plan is not None and plan[0] in busted:
        return f"a hit would be answered with {plan[0]}, which was busted"
    if bust_began:
        return None

    if len(set(replies.values())) > 1:
        return f"two values were replied: {replies}"
    if len(computed) > 1 + len(world.dead):
        return f"computed {len(computed)} times, with {len(world.dead)} calls taken for dead"
    records = [name for name in store if name.startswith("history/")]
    if len(records) > 1:
        return f"history has two values: {records}"
    if plan is not None and replies and plan[0] not in replies.values():
        return f"{replies} was replied, and a hit would be answered with {plan[0]}"
    return None
