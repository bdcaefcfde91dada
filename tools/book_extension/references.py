"""Short names in the library reference."""

from docutils.nodes import Element, TextElement
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode


def resolve_short_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: TextElement
) -> Element | None:
    """Link ``Mask`` to ``attention_lib.masks.Mask`` where only one object has that name."""
    if node.get("refdomain") != "py":
        return None
    name = node["reftarget"].rpartition(".")[2]
    objects = env.get_domain("py").objects
    found = {full: entry for full, entry in objects.items() if full.rpartition(".")[2] == name}
    if len(found) != 1:
        return None
    full, entry = found.popitem()
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, full)
