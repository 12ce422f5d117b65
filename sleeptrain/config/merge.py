"""How a newer layer of a recipe changes the older ones."""

from dataclasses import replace
from typing import Any

from sleeptrain.config.names import element_type, variant
from sleeptrain.config.tree import KeyPath, Node, claim, items


def merge(below: Node, above: Node, kind: Any, errors: list[str], path: KeyPath = ()) -> Node:
    """The older tree `below`, changed by the newer `above`; both stand at `path`, where a value of type `kind` belongs.

    Mappings are merged key by key, `{1: x}` over a list changes an element, and everything else is replaced, as are the
    keys of another variant of a union. An element that the list does not have is added to `errors`. (OmegaConf.merge
    refuses a list over a mapping, merges into the target of a reference and cannot change an element.)
    """
    old, new = dict(items(below)), above.value
    elements = isinstance(below.value, list) and isinstance(new, dict) and new and all(map(str.isdecimal, new))
    if not isinstance(new, dict) or not (elements or isinstance(below.value, dict)):
        return above
    meant = variant(kind, above)
    if meant and meant is not (variant(kind, below) or meant):
        return above
    meant = meant or variant(kind, below)
    merged = {
        key: merge(old[key], child, element_type(meant, key), errors, (*path, key)) if key in old else child
        for key, child in new.items()
    }
    if not elements:
        return replace(above, value=old | merged)
    for key in [key for key in new if key not in old]:
        told, name = claim((*path, key), new[key]), ".".join(path)
        errors.append(f"{told}: {name} has {len(old)} elements, from 0 on; give a longer list whole: {name}=[...]")
    return replace(above, value=[merged.get(key, child) for key, child in old.items()])
